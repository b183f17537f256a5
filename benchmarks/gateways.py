"""What the service costs, beside nginx's proxy_pass to the same upstreams in the same run.

Usage: .venv/bin/python benchmarks/gateways.py [--rounds 5] [--calls 2000] [--streams 1000] [--seconds 20] [--only WORD]
                                               [--peers litellm,portkey] [--parts cpu,latency,streams,workers]

Needs a C compiler (gcc), nginx and two cores. The gateway under test has core 0, the upstream and the caller (`load.c`)
core 1. CPU is the kernel's accounting of the gateway's threads in nanoseconds; medians of interleaved rounds, with the
spread (largest less smallest, of the median) where it is wide. Only ratios mean something: machines are noisy. The share
of their core that caller and upstream needed is printed too: near 1, it would be they who are measured. The service runs
as its users have it: with a key, a log line for each request, and SQLite. All traffic stays on 127.0.0.1.

Run it with the Python that the service is to have: Debian's own and those of Docker's images are built with
optimizations, which take a quarter to a third less CPU than a plain build does (pyenv's, where nothing else is said).

Peers come from their registries: `pip install 'litellm[proxy]'` and `npm install @portkey-ai/gateway`, both somewhere in
PATH. Of each the plain answer and the chunk of a stream are measured. Portkey's 1.15.2 streams nothing with the
@hono/node-server that npm takes for it today ("immutable"): have 1.3.3 of that, by "overrides" in a package.json.
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
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.postgresql import PostgreSQL, programs
from tests.processes import children_of, free_port

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
    """What is asked of whom. `streams`: the CPU is that of a chunk, and else that of an answer."""

    name: str
    upstream: str
    request: bytes = field(repr=False)
    streams: bool = False

    @property
    def full_name(self) -> str:
        return f"{self.name} {'chunk' if self.streams else 'plain'}"


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
    """`pids`: of all of its processes. `is_peer`: its failures are its own, and end no run."""

    port: int
    pids: tuple[int, ...]
    is_peer: bool = False

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


class Bench:
    """The programs of one run, in one folder."""

    def __init__(self, stack: ExitStack) -> None:
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self.stack = stack
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
        output = self.stack.enter_context(
            (self.folder / f"{program}-{free_port()}.log").open("wb")
        )
        pinned = command if core is None else ["taskset", "-c", str(core), *command]
        environ = {"PATH": os.environ["PATH"], "HOME": str(self.folder), **environ}
        process = subprocess.Popen(
            pinned, stdout=output, stderr=output, env=environ, cwd=self.folder
        )
        self.stack.callback(process.wait)
        self.stack.callback(process.terminate)
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

    def service(
        self,
        kind: str,
        upstream: int,
        workers: int = 1,
        database: str = "",
        core: int | None = 0,
    ) -> Gateway:
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
            }
        environ |= {"WORKERS": str(workers), "DATABASE_URL": database}
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
        return Gateway(port, (process.pid, *children_of(process.pid)), is_peer=True)

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
        return Gateway(port, (process.pid, *children_of(process.pid)), is_peer=True)

    def calls(
        self,
        port: int,
        request: bytes,
        connections: int,
        total: int,
        rate: int = 0,
        core: int | None = 1,
        may_fail: bool = False,
    ) -> dict[str, Any]:
        """What the caller found: see load.c. Ends the run where an answer was wrong, or not whole unless it may be so."""
        file = self.folder / "request"
        file.write_bytes(request)
        numbers = map(str, (connections, total, rate))
        command = [str(self._load), "calls", str(port), str(file), *numbers]
        if core is not None:
            command = ["taskset", "-c", str(core), *command]
        finished = subprocess.run(command, capture_output=True, text=True)
        found: dict[str, Any] = json.loads(finished.stdout or "null") or {}
        if not found or found["wrong"] or (found["failed"] and not may_fail):
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


@dataclass(frozen=True)
class Spent:
    """Microseconds of CPU for an answer or a chunk, the caller's share of its core, and answers that were not whole."""

    each: float
    of_core: float
    failed: int


def measure_cpu(
    bench: Bench,
    gateway: Gateway,
    request: bytes,
    streams: bool,
    calls: int,
) -> Spent:
    connections = STREAMING if streams else CONNECTIONS
    total = connections if streams else calls
    before = gateway.cpu()
    found = bench.calls(
        gateway.port, request, connections, total, may_fail=gateway.is_peer
    )
    spent = gateway.cpu() - before
    units = total * CHUNKS if streams else total
    if streams and 0 < found["fewest"] < CHUNKS:
        sys.exit(f"chunks are missing: {found}")
    of_core = found["cpu"] / found["seconds"]
    return Spent(spent / units * 1e6, of_core, found["failed"])


@dataclass(frozen=True)
class Rivals:
    """Who answers the requests of one scenario, and with which request each is asked."""

    scenario: Scenario
    asked: dict[str, tuple[Gateway, bytes]]


class Contest:
    """The upstreams and gateways of a run, each started when it is first needed."""

    def __init__(self, bench: Bench, peers: list[str]) -> None:
        self._bench = bench
        self._peers = peers
        self._upstreams: dict[tuple[str, bool], int] = {}
        self._gateways: dict[tuple[str, str, bool], Gateway] = {}

    def rivals(self, scenario: Scenario) -> Rivals:
        plain = completion(scenario.streams)
        # a web upstream always streams: the plain answer beside it is the other upstream's
        beside = scenario.upstream if scenario.streams else "openai"
        asked = {
            "nginx": (self._gateway("nginx", beside, scenario.streams), plain),
            "service": (
                self._gateway("service", scenario.upstream, scenario.streams),
                scenario.request,
            ),
        }
        if scenario.upstream == "openai" and scenario.request == plain:
            for name in self._peers:
                request = (
                    plain
                    if name != "portkey"
                    else self._for_portkey(plain, scenario.streams)
                )
                asked[name] = self._gateway(name, "openai", scenario.streams), request
        return Rivals(scenario, asked)

    def _upstream(self, kind: str, streams: bool) -> int:
        if (kind, streams) not in self._upstreams:
            pieces, pace = ([f"{MARK} "] * CHUNKS, PACE) if streams else ([TEXT], 0)
            self._upstreams[kind, streams] = self._bench.upstream(kind, pieces, pace)
        return self._upstreams[kind, streams]

    def _gateway(self, name: str, kind: str, streams: bool) -> Gateway:
        place = name, kind, streams
        if place not in self._gateways:
            upstream = self._upstream(kind, streams)
            begin = getattr(self._bench, name)
            self._gateways[place] = (
                begin(kind, upstream) if name == "service" else begin(upstream)
            )
        return self._gateways[place]

    def _for_portkey(self, request: bytes, streams: bool) -> bytes:
        base = f"http://127.0.0.1:{self._upstream('openai', streams)}/v1"
        told = (
            f"x-portkey-provider: openai\r\nx-portkey-custom-host: {base}\r\n".encode()
        )
        return request.replace(b"Accept:", told + b"Accept:", 1)


def compare_cpu(bench: Bench, options: argparse.Namespace) -> None:
    contest = Contest(bench, list(filter(None, options.peers.split(","))))
    chosen = [
        contest.rivals(each) for each in SCENARIOS if options.only in each.full_name
    ]
    figures = Figures()
    failed: Counter[tuple[str, str]] = Counter()
    share = 0.0
    for number in range(options.rounds + 1):  # the first one warms up
        for rivals in chosen:
            streams = rivals.scenario.streams
            for who, (gateway, request) in rivals.asked.items():
                calls = (
                    options.calls if who == "nginx" else max(200, options.calls // 4)
                )
                spent = measure_cpu(bench, gateway, request, streams, calls)
                if number:
                    figures.add(rivals.scenario.full_name, who, spent.each)
                    share = max(share, spent.of_core)
                    failed[rivals.scenario.full_name, who] += spent.failed
    for streams, title in (
        (False, "CPU per plain answer"),
        (True, "CPU per chunk of a stream"),
    ):
        shown = [rivals for rivals in chosen if rivals.scenario.streams is streams]
        if shown:
            print(f"\n{title}")
        for rivals in shown:
            what = rivals.scenario.full_name
            base = figures.median(what, "nginx")
            print(
                f"  {rivals.scenario.name:40} {figures.ratio(what, 'service')}   (nginx {base:.1f} us)"
            )
            for name in list(rivals.asked)[2:]:
                lost = failed[what, name]
                told = f", {lost} answers were not whole" if lost else ""
                print(f"      {name:36} {figures.ratio(what, name)}{told}")
    print(f"\nthe caller had {share:.0%} of its core at most")


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


def hold_streams(bench: Bench, options: argparse.Namespace) -> None:
    """Streams of one chunk a second: each arrives, in its order, at its own caller."""
    print(f"\n{options.streams} open streams, one chunk a second, {options.seconds} s")
    for name, kind in (
        ("nginx", "openai"),
        ("passage", "openai"),
        ("translated", "delta"),
    ):
        upstream = bench.upstream(kind, [f"{MARK} "] * options.seconds, HELD_PACE)
        is_nginx = name == "nginx"
        gateway = bench.nginx(upstream) if is_nginx else bench.service(kind, upstream)
        with looked_at(gateway, not is_nginx) as seen:
            before, spent = gateway.resident(), gateway.cpu()
            found = bench.calls(
                gateway.port, completion(True), options.streams, options.streams, 500
            )
            spent = gateway.cpu() - spent
        per_stream = (max(seen.resident) - before) / options.streams
        delivered = found["chunks"] / options.streams / options.seconds
        latency = (
            f"{found['chunk_p50'] / 1000:.1f} and {found['chunk_p99'] / 1000:.1f} ms"
        )
        print(
            f"  {name:10} {per_stream:6.1f} kB a stream, {delivered:.2%} of the chunks, on their way {latency} (p50, p99), "
            f"CPU {spent / found['chunks'] * 1e6:.0f} us each, idle {before / 1024:.0f} MB, /healthz {seen.health_told()}"
        )


@dataclass
class Seen:
    """What was seen of a gateway meanwhile: kilobytes, and how long /healthz took (ms)."""

    resident: list[float]
    health: list[float]

    def health_told(self) -> str:
        if not self.health:
            return "-"
        times = sorted(self.health)
        return f"{times[len(times) // 2]:.1f} ms at the median, {times[-1]:.0f} at most"


@contextmanager
def looked_at(gateway: Gateway, has_health: bool) -> Iterator[Seen]:
    """Look five times a second."""
    seen = Seen([gateway.resident()], [])
    is_over = threading.Event()

    def look() -> None:
        while not is_over.wait(0.2):
            seen.resident.append(gateway.resident())
            if has_health:
                begun = time.monotonic()
                address = f"http://127.0.0.1:{gateway.port}/healthz"
                urllib.request.urlopen(address, timeout=30).read()
                seen.health.append((time.monotonic() - begun) * 1000)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield seen
    finally:
        is_over.set()
        looking.join()


def compare_workers(bench: Bench, options: argparse.Namespace) -> None:
    """Answers a second of one and of two processes, which share the machine's cores with caller and upstream."""
    upstream = bench.upstream("openai", [TEXT], 0)
    asks = {"passage": completion(), "/ask, kept": as_form("/ask", msg="hello there")}
    databases = {"SQLite": ""}
    if (folder := programs()) is not None:
        server = PostgreSQL(folder, free_port())
        bench.stack.callback(server.remove)
        databases["PostgreSQL"] = server.database()
    print("\nAnswers a second of 1 and 2 workers")
    for database, url in databases.items():
        running = [
            bench.service("openai", upstream, count, url, core=None) for count in (1, 2)
        ]
        for name, request in asks.items():
            if url and name == "passage":
                continue
            rates: list[list[float]] = [[], []]
            for number in range(options.rounds + 1):
                for service, found in zip(running, rates, strict=True):
                    result = bench.calls(
                        service.port,
                        request,
                        CONNECTIONS,
                        options.calls // 2,
                        core=None,
                    )
                    if number:
                        found.append(result["done"] / result["seconds"])
            one, two = map(statistics.median, rates)
            print(
                f"  {name:12} {database:10} {one:7.0f} and {two:7.0f}: {two / one:.2f} x"
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
    parser.add_argument("--parts", default="cpu,latency,streams,workers")
    options = parser.parse_args()
    print(f"{sys.executable}: Python {sys.version}")
    parts = {
        "cpu": compare_cpu,
        "latency": compare_latency,
        "streams": hold_streams,
        "workers": compare_workers,
    }
    for name in options.parts.split(","):
        with ExitStack() as stack:
            parts[name](Bench(stack), options)


if __name__ == "__main__":
    main()
