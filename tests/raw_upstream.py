"""An upstream that records the bytes of each request, and answers with the bytes that a test gives it."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO


@dataclass(frozen=True)
class Received:
    """A request: its first line, its headers by lower-case name, and its body without framing."""

    line: str
    headers: dict[str, str]
    body: bytes


class RawUpstream:
    """`answers`: one each, then the last again and again; each a list of packets. `close`: after an answer."""

    def __init__(self) -> None:
        self.received: list[Received] = []
        self.answers: list[list[bytes]] = []
        self.size = 0  # bytes of all bodies
        self.keep_bodies = True
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(
                target=self._serve, args=(connection,), daemon=True
            ).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, EOFError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.received.append(self._read(connection.makefile("rb")))
            for packet in self._next_answer():
                connection.sendall(packet)

    def _next_answer(self) -> Iterator[bytes]:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        yield from answer

    def _read(self, file: BinaryIO) -> Received:
        line = file.readline().decode().strip()
        if not line:
            raise EOFError
        headers = {}
        while (field := file.readline().decode("latin-1").strip()) != "":
            name, _, value = field.partition(":")
            headers[name.lower()] = value.strip()
        body = b"".join(self._body(file, headers))
        return Received(line, headers, body)

    def _body(self, file: BinaryIO, headers: dict[str, str]) -> Iterator[bytes]:
        if headers.get("transfer-encoding") == "chunked":
            while size := int(file.readline(), 16):
                yield self._taken(file, size)
                file.readline()
            file.readline()
            return
        left = int(headers.get("content-length", 0))
        while left:
            piece = self._taken(file, min(left, 65536))
            left -= len(piece) if self.keep_bodies else min(left, 65536)
            yield piece

    def _taken(self, file: BinaryIO, size: int) -> bytes:
        piece: bytes = file.read(size)
        if len(piece) < size:
            raise EOFError
        self.size += size
        return piece if self.keep_bodies else b""

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def whole(body: bytes, kind: str = "application/json", *more: str) -> list[bytes]:
    """A whole answer with status 200, in one packet."""
    return [response(200, body, kind, *more)]


def response(status: int, body: bytes, kind: str, *more: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"Content-Type: {kind}", *more]
    lines += [f"Content-Length: {len(body)}", "Connection: close", "", ""]
    return "\r\n".join(lines).encode() + body


def chunked(packets: list[bytes], kind: str = "text/event-stream") -> list[bytes]:
    """A streamed answer, a chunk for each packet; the end is its last packet."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    frames = [b"%x\r\n%b\r\n" % (len(packet), packet) for packet in packets if packet]
    return [head.encode(), *frames, b"0\r\n\r\n"]
