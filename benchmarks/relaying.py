"""What one ask costs in CPU, beside nginx's proxy_pass of the same bytes in the same run.

Usage: .venv/bin/python benchmarks/relaying.py [asks per round]

The CPU is the kernel's own accounting of the serving process (/proc/PID/stat, ticks of 10 ms), medians of interleaved
rounds. Machines are noisy: only the ratios within one run mean something. All traffic stays on 127.0.0.1.
"""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlencode

ROOT = Path(__file__).parent.parent
ROUNDS = 5
TICK = 1 / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def cpu(pids: list[int]) -> float:
    """Seconds of CPU that these processes have used so far."""
    stats = [
        Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split() for pid in pids
    ]
    return sum(int(stat[11]) + int(stat[12]) for stat in stats) * TICK


def started(
    stack: ExitStack, command: list[str], **options: object
) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options
    )  # type: ignore[call-overload]
    stack.callback(process.wait)
    stack.callback(process.terminate)
    return process  # type: ignore[no-any-return]


def answering(port: int) -> None:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise SystemExit(f"nothing listens on port {port}")


def asks(port: int, body: bytes, count: int) -> bytes:
    """Ask `count` times on one connection; the last answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    answer = b""
    for _ in range(count):
        connection.request(
            "POST",
            "/send_message",
            body,
            {"Content-Type": "application/x-www-form-urlencoded"},
        )
        response = connection.getresponse()
        answer = response.read()
        assert response.status == 200, answer
    connection.close()
    return answer


def nginx(stack: ExitStack, folder: Path, answer: bytes) -> tuple[int, list[int]]:
    """An nginx that passes to another one, which gives `answer`; the port and the passing worker's pid."""
    (folder / "answer").write_bytes(answer)
    ports = free_port(), free_port()
    servers = (
        f"server {{ listen 127.0.0.1:{ports[0]}; root {folder}; error_page 405 =200 $uri; "
        "location / { try_files /answer =404; } }",
        f"server {{ listen 127.0.0.1:{ports[1]}; location / {{ proxy_pass http://origin; proxy_http_version 1.1; "
        'proxy_set_header Connection ""; proxy_buffering off; } }',
    )
    pids = []
    for number, server in enumerate(servers):
        temp = "".join(
            f"{kind}_temp_path {folder}/{kind}{number};\n"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        origin = (
            f"upstream origin {{ server 127.0.0.1:{ports[0]}; keepalive 8; }}\n"
            if number
            else ""
        )
        user = "user root;\n" if os.geteuid() == 0 else ""
        config = folder / f"nginx{number}.conf"
        config.write_text(
            f"{user}daemon off;\nworker_processes 1;\npid {folder}/pid{number};\n"
            f"error_log {folder}/error{number}.log;\n"
            f"events {{}}\nhttp {{\naccess_log off;\nkeepalive_requests 1000000;\n{temp}{origin}{server}\n}}\n"
        )
        program = shutil.which(
            "nginx", path=os.environ["PATH"] + ":/usr/sbin"
        ) or sys.exit("nginx is not installed")
        process = started(
            stack,
            [str(program), "-e", str(folder / f"error{number}.log"), "-c", str(config)],
        )
        answering(ports[number])
        children = subprocess.run(
            ["pgrep", "-P", str(process.pid)], capture_output=True, text=True
        ).stdout.split()
        pids = [int(child) for child in children]
    return ports[1], pids


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        port = free_port()
        environ = {
            "PATH": os.environ["PATH"],
            "DATA_DIR": str(folder / "data"),
            "PORT": str(port),
            "LOG_LEVEL": "warning",
        }
        service = started(
            stack,
            [sys.executable, str(ROOT / "chatgpt_webapi.py")],
            env=environ,
            cwd=folder,
        )
        answering(port)
        plain = urlencode({"prompt": "hello " * 60}).encode()
        nginx_port, nginx_pids = nginx(stack, folder, asks(port, plain, 1))
        passed: Callable[[], bytes] = lambda: asks(nginx_port, plain, count)  # noqa: E731
        kinds: dict[str, tuple[list[int], Callable[[], bytes]]] = {
            "nginx, proxy_pass of the same answer": (nginx_pids, passed),
            "plain answer, kept": ([service.pid], lambda: asks(port, plain, count)),
            "stream of events, kept": (
                [service.pid],
                lambda: asks(port, plain + b"&stream=true", count),
            ),
        }
        spent: dict[str, list[float]] = {name: [] for name in kinds}
        for _ in range(ROUNDS):
            for name, (pids, run) in kinds.items():
                before = cpu(pids)
                run()
                spent[name].append((cpu(pids) - before) / count)
        base = (
            statistics.median(spent["nginx, proxy_pass of the same answer"])
            or TICK / count
        )
        print(
            f"{'CPU per ask':40} {'us':>8} {'x nginx':>8}   ({ROUNDS} rounds of {count} asks)"
        )
        for name, figures in spent.items():
            print(
                f"{name:40} {statistics.median(figures) * 1e6:8.0f} {statistics.median(figures) / base:8.1f}"
            )
        resident = (
            Path(f"/proc/{service.pid}/status")
            .read_text()
            .split("VmRSS:")[1]
            .split()[0]
        )
        print(
            f"resident memory after {2 * ROUNDS * count + 1} asks: {int(resident) / 1024:.0f} MB"
        )


if __name__ == "__main__":
    main()
