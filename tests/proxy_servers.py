"""Proxies for the tests: real ones as processes on free ports, TLS before them, and one that answers what a test says."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.nginx import certificate
from tests.processes import free_port, need

USER = "proxy-user"
PASSWORD = "invented-proxy-password"
KINDS = ("http", "http-password", "https-password", "socks5", "socks5-password")


@dataclass(frozen=True)
class Authority:
    """A certificate for localhost, that vouches for itself."""

    key: Path
    chain: Path

    @classmethod
    def make(cls, folder: Path) -> Authority:
        return cls(*certificate(folder))

    def server_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.chain, self.key)
        return context


class TLSFront:
    """Takes TLS connections for a server on another port of this machine, and passes their bytes on."""

    def __init__(self, authority: Authority, target: int) -> None:
        self._target = target
        self._context = authority.server_context()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self.port = 0
        self._writers: list[asyncio.StreamWriter] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        listening = asyncio.start_server(
            self._serve, "127.0.0.1", 0, ssl=self._context, backlog=256
        )
        server = self._loop.run_until_complete(listening)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        for writer in self._writers:
            writer.transport.abort()
        self._loop.run_until_complete(asyncio.sleep(0.05))
        self._loop.close()

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._writers.append(writer)
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.close()
            return
        self._writers.append(back)
        await asyncio.gather(
            self._copy(reader, back, writer), self._copy(there, writer, back)
        )

    async def _copy(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        other: asyncio.StreamWriter,
    ) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            while piece := await source.read(65536):
                sink.write(piece)
                await sink.drain()
        sink.close()
        other.close()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)


@contextlib.contextmanager
def process(*command: str, port: int) -> Iterator[None]:
    """A server as a process, from when it accepts connections."""
    running = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        until = time.monotonic() + 10
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            assert running.poll() is None and time.monotonic() < until, command
            time.sleep(0.02)
        yield
    finally:
        running.terminate()
        running.wait(10)


@contextlib.contextmanager
def tinyproxy(folder: Path, password: str = "") -> Iterator[int]:
    """An HTTP proxy; its port."""
    program, port = need("tinyproxy"), free_port()
    config = folder / f"tinyproxy-{port}.conf"
    lines = [f"Port {port}", "Listen 127.0.0.1", "Timeout 600", "MaxClients 400"]
    lines += ["Allow 127.0.0.1", f'LogFile "{folder}/tinyproxy-{port}.log"']
    if password:
        lines.append(f"BasicAuth {USER} {password}")
    config.write_text("\n".join([*lines, ""]))
    with process(program, "-d", "-c", str(config), port=port):
        yield port


@contextlib.contextmanager
def microsocks(password: str = "") -> Iterator[int]:
    """A SOCKS5 proxy; its port."""
    program, port = need("microsocks"), free_port()
    credentials = ["-u", USER, "-P", password] if password else []
    command = [program, "-i", "127.0.0.1", "-p", str(port), *credentials]
    with process(*command, port=port):
        yield port


@contextlib.contextmanager
def pgbouncer(folder: Path, server: int) -> Iterator[int]:
    """Gives each transaction one of two connections to the PostgreSQL at a port; its own port."""
    program, port = need("pgbouncer"), free_port()
    config = folder / "pgbouncer.ini"
    config.write_text(
        f"[databases]\n* = host=127.0.0.1 port={server} user=tests\n"
        f"[pgbouncer]\nlisten_addr=127.0.0.1\nlisten_port={port}\nunix_socket_dir=\nauth_type=any\n"
        "pool_mode=transaction\ndefault_pool_size=2\nmax_client_conn=100\n"
    )
    user = ["-u", "nobody"] if os.geteuid() == 0 else []  # it refuses to run as root
    with process(program, "-q", *user, str(config), port=port):
        yield port


@contextlib.contextmanager
def proxy(kind: str, folder: Path, authority: Authority) -> Iterator[str]:
    """A real proxy of a kind in KINDS; its URL."""
    password = PASSWORD if kind.endswith("-password") else ""
    user = f"{USER}:{password}@" if password else ""
    if kind.startswith("socks5"):
        with microsocks(password) as port:
            yield f"socks5h://{user}localhost:{port}"
        return
    with tinyproxy(folder, password) as port:
        if kind.startswith("https"):
            front = TLSFront(authority, port)
            yield f"https://{user}localhost:{front.port}"
            front.close()
        else:
            yield f"http://{user}localhost:{port}"


class FakeProxy:
    """Answers the n-th thing that is sent to it with the n-th of its answers, then says nothing more.

    `drip`: seconds between two bytes of an answer. `cut`: closes the connection after the last.
    """

    def __init__(self, *answers: bytes, drip: float = 0.0, cut: bool = False) -> None:
        self._answers = answers
        self._drip = drip
        self._cut = cut
        self.received: list[bytes] = []
        self.ended = threading.Event()  # whoever asked left
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(
                    target=self._serve, args=(connection,), daemon=True
                ).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            for answer in self._answers:
                self.received.append(connection.recv(65536))
                self._send(connection, answer)
            if self._cut:
                return
            while piece := connection.recv(65536):
                self.received.append(piece)
        self.ended.set()

    def _send(self, connection: socket.socket, answer: bytes) -> None:
        if not self._drip:
            connection.sendall(answer)
            return
        for byte in answer:
            connection.sendall(bytes([byte]))
            if self.ended.wait(self._drip):
                return

    def close(self) -> None:
        self.ended.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
