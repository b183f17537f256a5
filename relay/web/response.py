"""What a view answers, as WSGI's servers take it: werkzeug's own response builds its head several times over."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from http import HTTPStatus
from typing import Any

from relay.delivery import Delivery

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
WITHOUT_BODY = (204, 304)  # statuses whose responses say no length either


class Response:
    """A head and a body; as WSGI has it, the iterable that gives the body.

    `headers`: its fields, by their names as they are written. `passed`: an upstream's, which stand before them.
    `when_closed`: called once it was sent, or broke off. `delivery`: what gives a stream, which a server may park.
    """

    delivery: Delivery | None = None
    passed: Iterable[tuple[str, str]] = ()

    def __init__(
        self,
        body: bytes = b"",
        content_type: str = "",
        *,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.body = body
        self.status = status
        self.headers = {"Content-Type": content_type} if content_type else {}
        if headers:
            self.headers.update(headers)
        self.when_closed: list[Callable[[], None]] = []
        self._is_closed = False

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Response:
        start_response(status_line(self.status), self._fields())
        if environ["REQUEST_METHOD"] == "HEAD":
            self.body = b""
        return self

    def __iter__(self) -> Iterator[bytes]:
        return iter((self.body,))

    def close(self) -> None:
        """The last call: it was sent, or will not be."""
        if self._is_closed:
            return
        self._is_closed = True
        for callback in self.when_closed:
            callback()

    def _fields(self) -> list[tuple[str, str]]:
        """The head's fields. Some hold others' words, which can begin no other field."""
        text = "".join(self.headers.values())
        if not (text.isascii() and text.isprintable()):
            self.headers = {
                name: _sendable(self.headers[name]) for name in self.headers
            }
        return [*self.passed, *self.headers.items(), *self._framing()]

    def _framing(self) -> list[tuple[str, str]]:
        """The fields that say where the body ends."""
        if self.status in WITHOUT_BODY:
            return []
        return [("Content-Length", str(len(self.body)))]


class HeadAlone(Response):
    """What a HEAD gets where nobody knows how long the body would be."""

    def _framing(self) -> list[tuple[str, str]]:
        return []


def _sendable(value: str) -> str:
    """A field's value without what no header can carry."""
    return _CONTROL.sub(" ", value).encode("latin-1", "replace").decode("latin-1")


@lru_cache(maxsize=100)
def status_line(status: int) -> str:
    """A status as WSGI has it. Upstreams have some that no standard names."""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"{status} Unknown"
