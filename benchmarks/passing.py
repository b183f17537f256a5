"""What a passage of /v1/chat/completions costs in CPU, beside nginx's proxy_pass to the same upstream in the same run.

Usage: .venv/bin/python benchmarks/passing.py [plain answers per round] [streams per round]

The upstream is a process of its own that answers with the same bytes at once, or sends a chunk every 0.5 ms; its CPU and
the caller's do not count. The CPU is the kernel's accounting of the passing process, medians of interleaved rounds; a
stream's head is counted with its chunks. All traffic stays on 127.0.0.1.
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
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from relaying import ROOT, ROUNDS, TICK, answering, cpu, free_port, started

CHUNKS = 1000  # of each stream
PAUSE = 0.0005  # seconds between two of them
KEY = "the-client-key-0"
PLAIN = b'{"model": "tiny-1", "messages": [{"role": "user", "content": "hello"}]}'
STREAMED = PLAIN[:-1] + b', "stream": true}'
ANSWER = b'{"id":"chatcmpl-1","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"%b"},"finish_reason":"stop"}]}'
CHUNK = b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"word "},"finish_reason":null}]}\n\n'
END = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


def serve(port: int) -> None:
    """The upstream."""
    listener = socket.create_server(("127.0.0.1", port))
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=answer, args=(connection,), daemon=True).start()


def answer(connection: socket.socket) -> None:
    file = connection.makefile("rb")
    body = ANSWER % (b"hello " * 60)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    while file.readline():
        length = 0
        while (line := file.readline()) not in (b"\r\n", b""):
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        if b'"stream": true' in file.read(length):
            stream(connection)
        else:
            connection.sendall(head % len(body) + body)


def stream(connection: socket.socket) -> None:
    connection.sendall(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    due = time.monotonic()
    for _ in range(CHUNKS):
        connection.sendall(b"%x\r\n%b\r\n" % (len(CHUNK), CHUNK))
        due += PAUSE
        if (left := due - time.monotonic()) > 0:
            time.sleep(left)
    connection.sendall(b"%x\r\n%b\r\n0\r\n\r\n" % (len(END), END))


def asks(port: int, body: bytes, count: int) -> None:
    """Ask `count` times on one connection, and read each answer whole."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    for _ in range(count):
        connection.request("POST", "/v1/chat/completions", body, headers)
        response = connection.getresponse()
        received = response.read()
        is_whole = body is PLAIN or received.endswith(END)
        assert response.status == 200 and is_whole, received[:300]
    connection.close()


def nginx(stack: ExitStack, folder: Path, upstream: int) -> tuple[int, list[int]]:
    """An nginx that passes to the upstream: its port, and its worker's pid."""
    port = free_port()
    temp = "".join(
        f"{kind}_temp_path {folder}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;\n" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(
        f"{user}daemon off;\nworker_processes 1;\npid {folder}/pid;\nerror_log {folder}/error.log;\nevents {{}}\n"
        f"http {{\naccess_log off;\nkeepalive_requests 1000000;\n{temp}upstream origin {{ server 127.0.0.1:{upstream}; keepalive 8; }}\n"
        f"server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://origin; proxy_http_version 1.1; "
        'proxy_set_header Connection ""; proxy_buffering off; } }\n}\n'
    )
    program = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
    if program is None:
        sys.exit("nginx is not installed")
    command = [program, "-e", f"{folder}/error.log", "-c", f"{folder}/nginx.conf"]
    process = started(stack, command)
    answering(port)
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True
    )
    return port, [int(child) for child in children.stdout.split()]


def service(stack: ExitStack, folder: Path, upstream: int) -> tuple[int, list[int]]:
    """The service in front of the upstream: its port, and its pid."""
    port = free_port()
    environ = {
        "PATH": os.environ["PATH"],
        "DATA_DIR": str(folder / "data"),
        "PORT": str(port),
        "AUTHORIZATION": KEY,
        "OPENAI_BASE_URL": f"http://127.0.0.1:{upstream}/v1",
        "OPENAI_MODEL": "tiny-1",
    }
    command = [sys.executable, str(ROOT / "chatgpt_webapi.py")]
    process = started(stack, command, env=environ, cwd=folder)
    answering(port)
    return port, [process.pid]


def main() -> None:
    if sys.argv[1:2] == ["--upstream"]:
        serve(int(sys.argv[2]))
    plain = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    streams = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        upstream = free_port()
        started(stack, [sys.executable, __file__, "--upstream", str(upstream)])
        answering(upstream)
        passing = {
            "nginx": nginx(stack, folder, upstream),
            "service": service(stack, folder, upstream),
        }
        spent: dict[tuple[str, str], list[float]] = {}
        for _ in range(ROUNDS):
            for name, (port, pids) in passing.items():
                for kind, body, count, units in (
                    ("plain answer", PLAIN, plain, plain),
                    ("chunk of a stream", STREAMED, streams, streams * CHUNKS),
                ):
                    figures = spent.setdefault((kind, name), [])
                    before = cpu(pids)
                    asks(port, body, count)
                    figures.append((cpu(pids) - before) / units)
        print(f"{'CPU per':20} {'nginx us':>10} {'service us':>11} {'ratio':>6}")
        for kind in ("plain answer", "chunk of a stream"):
            base = statistics.median(spent[kind, "nginx"]) or TICK / (plain * ROUNDS)
            ours = statistics.median(spent[kind, "service"])
            print(f"{kind:20} {base * 1e6:10.1f} {ours * 1e6:11.1f} {ours / base:6.1f}")


if __name__ == "__main__":
    main()
