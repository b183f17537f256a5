"""What the service costs, beside nginx's proxy_pass to the same upstreams in the same run.

Usage: .venv/bin/python benchmarks/gateways.py [--rounds 5] [--calls 2000] [--streams 1000] [--seconds 20] [--only WORD]
                                               [--peers litellm,portkey] [--workers 1]

Needs a C compiler (gcc), nginx and two cores. The gateway under test has core 0, the upstream and the caller (`load.c`)
core 1. CPU is the kernel's accounting of the gateway's threads in nanoseconds; medians of interleaved rounds, with the
spread (largest less smallest, of the median) where it is wide. Only ratios mean something: machines are noisy. The share
of their core that caller and upstream needed is printed too: near 1, it would be they who are measured. The service runs
as its users have it: with a key, a log line for each request, and SQLite. All traffic stays on 127.0.0.1.

Peers come from their registries: `pip install 'litellm[proxy]'` and `npm install @portkey-ai/gateway`, both somewhere in
PATH. Of each the plain answer and the chunk of a stream are measured.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

ROOT = Path(__file__).parent.parent
KEY = "the-client-key-0"
MARK = "ID00000000.000000@000000000000000"  # see load.c
WIDE = 0.25  # a spread that is told
CHUNKS = 100  # of a paced stream
PACE = 5000  # microseconds between two of them
HELD_PACE = 1_000_000
CONNECTIONS = 32
STREAMING = 50  # paced streams at once: 10,000 chunks a second
RATE = 100  # requests a second for latencies
MODEL = "tiny-1"
TEXT = "hello " * 60


def wanted(program: str, package: str) -> str:
    path = shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin")
    return path or sys.exit(f"{program} is not here: apt-get install {package}")


# --- what upstreams answer


def chunk(delta: dict[str, str], reason: str | None = None) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1}
    return event({**head, "model": MODEL, "choices": [choice]})


def event(payload: object, name: str = "") -> str:
    line = f"event: {name}\n" if name else ""
    return f"{line}data: {json.dumps(payload, separators=(',', ':'))}\n\n"


def openai_events(pieces: list[str]) -> str:
    chunks = "".join(chunk({"content": piece}) for piece in pieces)
    return chunks + chunk({}, "stop") + "data: [DONE]\n\n"


def openai_answer(text: str) -> str:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 9, "completion_tokens": 60, "total_tokens": 69}
    head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1}
    return json.dumps({**head, "model": MODEL, "choices": [choice], "usage": usage})


def web_message(text: str, status: str) -> dict[str, Any]:
    return {
        "id": "8d6a9b6e-4ef3-4c5f-9d3a-5b0f2a0c1d11",
        "author": {"role": "assistant", "metadata": {}},
        "create_time": 1700000000.0,
        "content": {"content_type": "text", "parts": [text]},
        "status": status,
        "end_turn": status == "finished_successfully" or None,
        "weight": 1.0,
        "metadata": {"model_slug": "gpt-4o", "message_type": "next"},
        "recipient": "all",
    }


CONVERSATION = "5c2f6a1e-7d43-4b1a-8f0e-3c9d2b1a0f55"


def classic_events(pieces: list[str]) -> str:
    """Each event has the whole text so far, so none can be marked."""
    pieces = [piece.replace(MARK, "some words") for piece in pieces]
    text = ""
    found = []
    for piece in pieces:
        text += piece
        message = web_message(text, "in_progress")
        found.append({"message": message, "conversation_id": CONVERSATION})
    last = web_message(text, "finished_successfully")
    found.append({"message": last, "conversation_id": CONVERSATION})
    return "".join(map(event, found)) + "data: [DONE]\n\n"


def delta_events(pieces: list[str]) -> str:
    message = web_message("", "in_progress")
    first = {
        "p": "",
        "o": "add",
        "v": {"message": message, "conversation_id": CONVERSATION},
        "c": 0,
    }
    path = "/message/content/parts/0"
    appended = [
        {"p": path, "o": "append", "v": pieces[0]},
        *({"v": piece} for piece in pieces[1:]),
    ]
    last = {
        "p": "",
        "o": "patch",
        "v": [
            {"p": "/message/status", "o": "replace", "v": "finished_successfully"},
            {"p": "/message/end_turn", "o": "replace", "v": True},
        ],
    }
    deltas = "".join(event(payload, "delta") for payload in (first, *appended, last))
    opening = event("v1", "delta_encoding")
    end = event({"type": "message_stream_complete", "conversation_id": CONVERSATION})
    return f"{opening}{deltas}{end}data: [DONE]\n\n"


EVENTS: dict[str, Callable[[list[str]], str]] = {
    "openai": openai_events,
    "classic": classic_events,
    "delta": delta_events,
}


# --- what is asked


def http(path: str, body: bytes, kind: str) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nAccept: */*\r\nUser-Agent: curl/7.88.1\r\n"
        f"Authorization: Bearer {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def as_json(path: str, **fields: object) -> bytes:
    return http(path, json.dumps(fields).encode(), "application/json")


def as_form(path: str, **fields: str) -> bytes:
    return http(
        path, urlencode(fields, safe="@").encode(), "application/x-www-form-urlencoded"
    )


def messages(text: str = "hello there") -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def completion(streams: bool = False) -> bytes:
    path = "/v1/chat/completions"
    if streams:
        return as_json(path, model=MODEL, messages=messages(MARK), stream=True)
    return as_json(path, model=MODEL, messages=messages())


def web_question() -> bytes:
    """As ChatGPT's own page asks."""
    content = {"content_type": "text", "parts": [MARK]}
    message = {"id": "b2", "author": {"role": "user"}, "content": content}
    fields = {
        "action": "next",
        "messages": [message],
        "parent_message_id": "p1",
        "model": "auto",
        "stream": True,
    }
    return as_json("/chatgpt/backend-api/conversation", **fields)


@dataclass(frozen=True)
class Scenario:
    """`units`: what the CPU is divided by: answers, or the chunks of all of them."""

    name: str
    upstream: str
    request: bytes = field(repr=False)
    streams: bool = False


SCENARIOS = (
    Scenario("/v1/chat/completions, openai", "openai", completion()),
    Scenario(
        "/chat (not kept), openai", "openai", as_json("/chat", messages=messages())
    ),
    Scenario("/ask (form, kept), openai", "openai", as_form("/ask", msg="hello there")),
    Scenario(
        "/send_message (form, kept), openai",
        "openai",
        as_form("/send_message", prompt="hello there"),
    ),
    Scenario(
        "/v1/responses (kept), openai",
        "openai",
        as_json("/v1/responses", model=MODEL, input="hello there"),
    ),
    Scenario("/v1/chat/completions, web classic", "classic", completion()),
    Scenario("/v1/chat/completions, web delta", "delta", completion()),
    Scenario("/ask (form), web classic", "classic", as_form("/ask", msg="hello there")),
    Scenario("/ask (form), web delta", "delta", as_form("/ask", msg="hello there")),
    Scenario(
        "/send_message (form), web delta",
        "delta",
        as_form("/send_message", prompt="hello there"),
    ),
    Scenario("/v1/chat/completions, openai", "openai", completion(True), True),
    Scenario(
        "/send_message (form, kept), openai",
        "openai",
        as_form("/send_message", prompt=MARK, stream="true"),
        True,
    ),
    Scenario("/v1/chat/completions, web classic", "classic", completion(True), True),
    Scenario("/v1/chat/completions, web delta", "delta", completion(True), True),
    Scenario(
        "/send_message (form), web delta",
        "delta",
        as_form("/send_message", prompt=MARK, stream="true"),
        True,
    ),
    Scenario("/chatgpt/backend-api, web classic", "classic", web_question(), True),
)


# --- what runs


@dataclass(frozen=True)
class Gateway:
    """`pids`: of all of its processes."""

    port: int
    pids: tuple[int, ...]

    def cpu(self) -> float:
        """Seconds that its threads have run so far."""
        files = (
            task / "schedstat"
            for pid in self.pids
            for task in Path(f"/proc/{pid}/task").iterdir()
        )
        return sum(int(file.read_text().split()[0]) for file in files) / 1e9

    def resident(self) -> float:
        """Kilobytes."""
        sizes = (
            Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]
            for pid in self.pids
        )
        return sum(map(int, sizes))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for_port(
    port: int, process: subprocess.Popen[bytes], seconds: float = 60
) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    sys.exit(f"nothing listens on port {port}: {process.args}")


def children_of(pid: int) -> tuple[int, ...]:
    found = subprocess.run(
        ["pgrep", "-P", str(pid)], capture_output=True, text=True
    ).stdout.split()
    return tuple(map(int, found))


class Bench:
    """The programs of one run, in one folder."""

    def __init__(self, stack: ExitStack, workers: int) -> None:
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self._stack = stack
        self._workers = workers
        self._load = self.folder / "load"
        compiled = [
            wanted("gcc", "gcc"),
            "-O2",
            "-o",
            str(self._load),
            str(Path(__file__).with_name("load.c")),
        ]
        subprocess.run(compiled, check=True)

    def start(
        self, command: list[str], core: int | None = 0, **environ: str
    ) -> subprocess.Popen[bytes]:
        """A process, on a core of its own. Its output goes to a file: a log is part of what a service does."""
        program = Path(command[0]).name
        output = self._stack.enter_context(
            (self.folder / f"{program}-{free_port()}.log").open("wb")
        )
        pinned = command if core is None else ["taskset", "-c", str(core), *command]
        environ = {"PATH": os.environ["PATH"], "HOME": str(self.folder), **environ}
        process = subprocess.Popen(
            pinned, stdout=output, stderr=output, env=environ, cwd=self.folder
        )
        self._stack.callback(process.wait)
        self._stack.callback(process.terminate)
        return process

    def upstream(self, kind: str, pieces: list[str], pace: int) -> int:
        port = free_port()
        events = self.folder / f"{port}.sse"
        events.write_text(EVENTS[kind](pieces))
        plain = "-"
        if kind == "openai":
            plain = str(self.folder / "plain.json")
            Path(plain).write_text(openai_answer(TEXT))
        process = self.start(
            [str(self._load), "upstream", str(port), plain, str(events), str(pace)],
            core=1,
        )
        wait_for_port(port, process)
        return port

    def nginx(self, upstream: int) -> Gateway:
        port = free_port()
        folder = self.folder / f"nginx-{port}"
        folder.mkdir()
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        places = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in kinds)
        user = "user root;\n" if os.geteuid() == 0 else ""
        (folder / "nginx.conf").write_text(
            f"{user}daemon off;\nworker_processes 1;\npid {folder}/pid;\nerror_log {folder}/error.log;\n"
            "worker_rlimit_nofile 20000;\nevents { worker_connections 16000; }\n"
            f"http {{\naccess_log {folder}/access.log;\nkeepalive_requests 1000000;\n{places}"
            f"upstream origin {{ server 127.0.0.1:{upstream}; keepalive 64; }}\n"
            f"server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ proxy_pass http://origin; proxy_http_version 1.1; "
            'proxy_set_header Connection ""; proxy_buffering off; proxy_read_timeout 300s; } }\n}\n'
        )
        program = wanted("nginx", "nginx-light")
        process = self.start(
            [program, "-e", f"{folder}/error.log", "-c", f"{folder}/nginx.conf"]
        )
        wait_for_port(port, process)
        return Gateway(port, children_of(process.pid))

    def service(self, kind: str, upstream: int) -> Gateway:
        port = free_port()
        environ = {
            "PORT": str(port),
            "DATA_DIR": str(self.folder / f"data-{port}"),
            "AUTHORIZATION": KEY,
        }
        if kind == "openai":
            environ |= {
                "OPENAI_BASE_URL": f"http://127.0.0.1:{upstream}/v1",
                "OPENAI_MODEL": MODEL,
            }
        else:
            address = f"http://127.0.0.1:{upstream}/backend-api/conversation"
            environ |= {
                "REVERSE_PROXY": address,
                "ACCESS_TOKEN": "token-of-the-server",
                "MAX_CONCURRENCY": "0",
            }
        if self._workers > 1:
            environ["WORKERS"] = str(self._workers)
        core = 0 if self._workers == 1 else None
        process = self.start(
            [sys.executable, str(ROOT / "chatgpt_webapi.py")], core=core, **environ
        )
        wait_for_port(port, process)
        time.sleep(1)
        return Gateway(port, (process.pid, *children_of(process.pid)))

    def litellm(self, upstream: int) -> Gateway:
        port = free_port()
        config = self.folder / "litellm.yaml"
        parameters = f"{{model: openai/{MODEL}, api_base: 'http://127.0.0.1:{upstream}/v1', api_key: sk-1}}"
        config.write_text(
            f"model_list: [{{model_name: {MODEL}, litellm_params: {parameters}}}]\ngeneral_settings: {{master_key: {KEY}}}\n"
        )
        command = [
            wanted("litellm", "(pip) litellm[proxy]"),
            "--config",
            str(config),
            "--port",
            str(port),
            "--host",
            "127.0.0.1",
        ]
        process = self.start(
            command, LITELLM_LOG="ERROR", LITELLM_TELEMETRY="False", DO_NOT_TRACK="1"
        )
        wait_for_port(port, process, 120)
        return Gateway(port, (process.pid, *children_of(process.pid)))

    def portkey(self, upstream: int) -> Gateway:
        """Told by headers where to go, which the requests for it carry."""
        command = [
            wanted("gateway", "(npm) @portkey-ai/gateway"),
            f"--port={(port := free_port())}",
            "--headless",
        ]
        process = self.start(
            command, NODE_ENV="production", TRUSTED_CUSTOM_HOSTS="localhost,127.0.0.1"
        )
        wait_for_port(port, process)
        return Gateway(port, (process.pid, *children_of(process.pid)))

    def calls(
        self, port: int, request: bytes, connections: int, total: int, rate: int = 0
    ) -> dict[str, Any]:
        """What the caller found: see load.c. Ends the run where an answer was wrong."""
        file = self.folder / "request"
        file.write_bytes(request)
        command = [
            "taskset",
            "-c",
            "1",
            str(self._load),
            "calls",
            str(port),
            str(file),
            str(connections),
            str(total),
            str(rate),
        ]
        finished = subprocess.run(command, capture_output=True, text=True)
        found: dict[str, Any] = json.loads(finished.stdout or "null") or {}
        if not found or found["failed"] or found["wrong"]:
            sys.exit(f"port {port}: {finished.stdout}{finished.stderr}")
        return found


# --- what is measured


class Figures:
    """The figures of all rounds, by what they are of and by whom."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], list[float]] = {}

    def add(self, what: str, who: str, value: float) -> None:
        self._found.setdefault((what, who), []).append(value)

    def median(self, what: str, who: str) -> float:
        return statistics.median(self._found[what, who])

    def ratio(self, what: str, who: str, base: str = "nginx") -> str:
        """As a table has it, with the spread where that is wide."""
        values = self._found[what, who]
        middle = statistics.median(values)
        spread = (max(values) - min(values)) / middle if middle else 0.0
        wide = f" (spread {spread:.0%})" if spread > WIDE else ""
        return f"{middle:9.1f} us {middle / self.median(what, base):7.1f} x{wide}"


def measure_cpu(
    bench: Bench, gateway: Gateway, request: bytes, streams: bool, calls: int
) -> tuple[float, float]:
    """Microseconds of CPU for an answer or a chunk, and the share of its core that the caller had."""
    connections = STREAMING if streams else CONNECTIONS
    total = connections if streams else calls
    before = gateway.cpu()
    found = bench.calls(gateway.port, request, connections, total)
    spent = gateway.cpu() - before
    units = total * CHUNKS if streams else total
    if streams and 0 < found["fewest"] < CHUNKS:
        sys.exit(f"chunks are missing: {found}")
    return spent / units * 1e6, found["cpu"] / found["seconds"]


def compare_cpu(bench: Bench, options: argparse.Namespace) -> None:
    plain = {kind: bench.upstream(kind, [TEXT], 0) for kind in EVENTS}
    paced = {kind: bench.upstream(kind, [f"{MARK} "] * CHUNKS, PACE) for kind in EVENTS}
    if options.only:
        chosen = tuple(
            s
            for s in SCENARIOS
            if options.only in f"{s.name} {'chunk' if s.streams else 'plain'}"
        )
    else:
        chosen = SCENARIOS
    gateways: dict[tuple[str, bool], Gateway] = {}
    nginx: dict[tuple[str, bool], Gateway] = {}
    for scenario in chosen:
        place = scenario.upstream, scenario.streams
        if place not in gateways:
            port = (paced if scenario.streams else plain)[scenario.upstream]
            gateways[place] = bench.service(scenario.upstream, port)
            # a web upstream always streams: the plain answer beside it is the other upstream's
            beside = port if scenario.streams else plain["openai"]
            nginx[place] = bench.nginx(beside)
    peers = {
        (name, streams): getattr(bench, name)((paced if streams else plain)["openai"])
        for name in filter(None, options.peers.split(","))
        for streams in (False, True)
    }
    figures = Figures()
    shares = []
    for number in range(options.rounds + 1):  # the first one warms up
        for scenario in chosen:
            place = scenario.upstream, scenario.streams
            what = str(chosen.index(scenario))
            running = {"nginx": nginx[place], "service": gateways[place]}
            is_passage = (
                scenario.request in (completion(), completion(True))
                and scenario.upstream == "openai"
            )
            if is_passage:
                running |= {
                    name: peer
                    for (name, streams), peer in peers.items()
                    if streams == scenario.streams
                }
            for who, gateway in running.items():
                request = (
                    completion(scenario.streams) if who == "nginx" else scenario.request
                )
                if who == "portkey":
                    base = f"http://127.0.0.1:{(paced if scenario.streams else plain)['openai']}/v1"
                    told = f"x-portkey-provider: openai\r\nx-portkey-custom-host: {base}\r\n".encode()
                    request = request.replace(b"Accept:", told + b"Accept:", 1)
                calls = (
                    options.calls if who == "nginx" else max(200, options.calls // 4)
                )
                spent, share = measure_cpu(
                    bench, gateway, request, scenario.streams, calls
                )
                if number:
                    figures.add(what, who, spent)
                    shares.append(share)
    for streams, title in (
        (False, "CPU per plain answer"),
        (True, "CPU per chunk of a stream"),
    ):
        shown = [s for s in chosen if s.streams is streams]
        if shown:
            print(f"\n{title}")
        for scenario in shown:
            what = str(chosen.index(scenario))
            print(
                f"  {scenario.name:40} {figures.ratio(what, 'service')}   (nginx {figures.median(what, 'nginx'):.1f} us)"
            )
            for name in {name for name, _ in peers}:
                if (what, name) in figures._found:
                    print(f"  {'':4}{name:36} {figures.ratio(what, name)}")
    print(f"\nthe caller had {max(shares):.0%} of its core at most")


def compare_latency(bench: Bench, options: argparse.Namespace) -> None:
    """Added latency at RATE requests a second over calling the upstream directly, and of a chunk on its way."""
    plain = bench.upstream("openai", [TEXT], 0)
    paced = bench.upstream("openai", [f"{MARK} "] * CHUNKS, PACE)
    quick = {"direct": plain, "nginx": bench.nginx(plain).port}
    service = bench.service("openai", plain)
    streaming = {
        "direct": paced,
        "nginx": bench.nginx(paced).port,
        "service": bench.service("openai", paced).port,
    }
    asks = {"passage": completion(), "/ask, kept": as_form("/ask", msg="hello there")}
    figures = Figures()
    for number in range(options.rounds + 1):
        ways = {name: (port, completion()) for name, port in quick.items()}
        ways |= {name: (service.port, request) for name, request in asks.items()}
        for name, (port, request) in ways.items():
            found = bench.calls(port, request, CONNECTIONS, 3 * RATE, RATE)
            if number:
                figures.add("p50", name, found["p50"])
                figures.add("p99", name, found["p99"])
        for name, port in streaming.items():
            found = bench.calls(port, completion(True), 10, 10)
            if number:
                figures.add("chunk p50", name, found["chunk_p50"])
                figures.add("chunk p99", name, found["chunk_p99"])
    print(f"\nAdded latency, {RATE} requests a second: p50, p99 (us); x of nginx's")
    for name in ("nginx", *asks):
        values = [
            figures.median(what, name) - figures.median(what, "direct")
            for what in ("p50", "p99")
        ]
        nginx = figures.median("p50", "nginx") - figures.median("p50", "direct")
        print(
            f"  {name:40} {values[0]:9.0f} {values[1]:9.0f} {values[0] / max(nginx, 1):7.1f} x"
        )
    print(
        "A chunk on its way, 2,000 a second: p50, p99 (us), less those of none between"
    )
    for name in ("nginx", "service"):
        values = [
            figures.median(what, name) - figures.median(what, "direct")
            for what in ("chunk p50", "chunk p99")
        ]
        print(f"  {name:40} {values[0]:9.0f} {values[1]:9.0f}")


@contextmanager
def health_looked_at(port: int) -> Iterator[list[float]]:
    """Ask for /healthz ten times a second; how long each took (ms)."""
    times: list[float] = []
    is_over = threading.Event()

    def look() -> None:
        while not is_over.wait(0.1):
            begun = time.monotonic()
            urllib.request.urlopen(
                f"http://127.0.0.1:{port}/healthz", timeout=30
            ).read()
            times.append((time.monotonic() - begun) * 1000)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield times
    finally:
        is_over.set()
        looking.join()


def hold_streams(bench: Bench, options: argparse.Namespace) -> None:
    """Streams of one chunk a second: each arrives, in its order, at its own caller."""
    print(f"\n{options.streams} open streams, one chunk a second, {options.seconds} s")
    pieces = [f"{MARK} "] * options.seconds
    kinds = {
        "passage": ("openai", completion(True)),
        "translated": ("delta", completion(True)),
    }
    for name, (kind, request) in {"nginx": kinds["passage"], **kinds}.items():
        upstream = bench.upstream(kind, pieces, HELD_PACE)
        gateway = (
            bench.nginx(upstream) if name == "nginx" else bench.service(kind, upstream)
        )
        idle = before = gateway.resident()
        if name != "nginx":  # what is loaded with the first asks is not the streams'
            few = bench.upstream(kind, [f"{MARK} "], 1000)
            warm = as_json("/chat", messages=messages()) if kind == "none" else b""
            del few, warm
        peak = [before]
        is_over = threading.Event()

        def watch(
            gateway: Gateway = gateway,
            peak: list[float] = peak,
            is_over: threading.Event = is_over,
        ) -> None:
            while not is_over.wait(0.5):
                peak.append(gateway.resident())

        watching = threading.Thread(target=watch)
        watching.start()
        spent = gateway.cpu()
        port = gateway.port
        if name == "nginx":
            found = bench.calls(port, request, options.streams, options.streams, 500)
            health = "-"
        else:
            with health_looked_at(port) as times:
                found = bench.calls(
                    port, request, options.streams, options.streams, 500
                )
            times.sort()
            health = f"{times[len(times) // 2]:.1f} / {times[-1]:.0f} ms"
        spent = gateway.cpu() - spent
        is_over.set()
        watching.join()
        per_stream = (max(peak) - before) / options.streams
        delivered = found["chunks"] / options.streams / options.seconds
        print(
            f"  {name:12} {per_stream:6.1f} kB a stream, {delivered:7.2%} of the chunks, fewest {found['fewest']}, chunk p50 {found['chunk_p50'] / 1000:.1f} ms p99 "
            f"{found['chunk_p99'] / 1000:.1f} ms, CPU {spent / found['chunks'] * 1e6:.1f} us a chunk, idle {idle / 1024:.0f} MB, /healthz median and longest {health}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="See the module.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument(
        "--only",
        default="",
        help="scenarios whose name has this, with 'plain' or 'chunk' after it",
    )
    parser.add_argument("--peers", default="")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--parts", default="cpu,latency,streams")
    options = parser.parse_args()
    parts = {"cpu": compare_cpu, "latency": compare_latency, "streams": hold_streams}
    for name in options.parts.split(","):
        with ExitStack() as stack:
            parts[name](Bench(stack, options.workers), options)


if __name__ == "__main__":
    main()
