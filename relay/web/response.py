"""What a view answers, as WSGI's servers take it: werkzeug's own response builds its head several times over."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from http import HTTPStatus
from typing import Any

from relay.delivery import Delivery

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
        self._check_fields()
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
        fields = [*self.passed, *self.headers.items()]
        if self.status not in WITHOUT_BODY:
            fields.append(("Content-Length", str(len(self.body))))
        return fields

    def _check_fields(self) -> None:
        """Raise ValueError for a field that would begin another one: some hold others' words."""
        text = "".join(self.headers.values())
        if not text.isprintable() and ("\r" in text or "\n" in text):
            raise ValueError("a field of the header holds a line end")


@lru_cache(maxsize=100)
def status_line(status: int) -> str:
    """A status as WSGI has it. Upstreams have some that no standard names."""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"{status} Unknown"
