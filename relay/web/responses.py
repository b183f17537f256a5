"""Turns as Flask responses: what every dialect's views share once they have an Ask and a Printer."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from typing import Any

import orjson
from flask import Response

from relay.chat import Printer, Turn
from relay.delivery import (
    BackgroundDelivery,
    BodyAborted,
    Delivery,
    DirectDelivery,
    Silent,
)
from relay.dialects import report
from relay.domain import Ask, Remarks, Reply, changed
from relay.errors import UpstreamCut
from relay.newcomers import NewcomerDelivery
from relay.passage import Passage
from relay.web.incoming import Incoming

MOST_IGNORED = 20
_PLAIN = re.compile(r"[!-~]{1,64}")  # others' words may hold what no header can
EVENT_STREAM = "text/event-stream; charset=utf-8"
#: nginx would hold a stream back until its end, and a CDN compress it
STREAM_HEADERS = {
    "X-Accel-Buffering": "no",
    "Cache-Control": "no-store, no-transform",
}


def json_response(value: object) -> Response:
    """A value as JSON, with a line end."""
    body = orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)
    return WholeResponse(body, mimetype="application/json")


def text_response(text: str, mimetype: str = "text/plain") -> Response:
    """A text with a line end; one that has one, or is empty, gets no other."""
    if text and not text.endswith("\n"):
        text += "\n"
    return bytes_response(text.encode(), mimetype)


def bytes_response(body: bytes, mimetype: str) -> Response:
    """UTF-8 as it is."""
    return WholeResponse(body, content_type=f"{mimetype}; charset=utf-8")


class WholeResponse(Response):
    """A body as the server takes it, without what Flask would look for in its head once more."""

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        if environ["REQUEST_METHOD"] == "HEAD":
            return super().__call__(environ, start_response)
        start_response(self.status, list(self.headers))
        return WholeBody(self)


class WholeBody:
    """The body of such a response; to close it closes that."""

    __slots__ = ("_response",)

    def __init__(self, response: Response) -> None:
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._response.iter_encoded())

    def close(self) -> None:
        self._response.close()


def reply_headers(reply: Reply) -> dict[str, str]:
    """What goes with a whole answer beside its text."""
    headers = {
        "X-Conversation-Id": reply.conversation_id,
        "X-Parent-Message-Id": reply.message_id,
        "X-Finish-Reason": reply.finish_reason,
        **remark_headers(reply.remarks),
    }
    if reply.tokens is not None:
        headers["X-Usage"] = report.header(reply.tokens)
    return headers


def remark_headers(remarks: Remarks) -> dict[str, str]:
    headers = {}
    if remarks.dropped:
        headers["X-History-Dropped"] = str(remarks.dropped)
    ignored = sorted(filter(_PLAIN.fullmatch, remarks.ignored))
    if ignored:
        headers["X-Ignored-Parameters"] = ", ".join(ignored[:MOST_IGNORED])
    if remarks.replayed:
        headers["Idempotent-Replayed"] = "true"
    return headers


def deliver_whole(incoming: Incoming, ask: Ask) -> Reply:
    """The whole answer; raises RelayError."""
    delivery = _delivery(incoming, ask, Silent())
    incoming.when_sent.append(_watch(incoming, delivery))
    try:
        return delivery.reply()
    finally:
        delivery.close()


def deliver_stream(
    incoming: Incoming, ask: Ask, printer: Printer, mimetype: str
) -> Response:
    """A response that streams what the printer prints; raises RelayError for what fails before the first event."""
    delivery = _delivery(incoming, ask, printer)
    with OpenDelivery(incoming, delivery) as opened:
        response = StreamedResponse(
            content_type=f"{mimetype}; charset=utf-8", headers=STREAM_HEADERS
        )
        response.response = StreamedBody(delivery.stream(), opened, response)
        if delivery.turn is not None:
            response.headers.update(_turn_headers(delivery.turn))
        return response


def deliver_passage(incoming: Incoming, passage: Passage) -> Response:
    """An answer that passes as it is; raises RelayError for what fails before its head is there."""
    incoming.delivery = passage
    caller = incoming.caller
    if caller.unverified and caller.token is not None:
        leave = incoming.service.newcomers.enter(caller.token)
        incoming.when_sent.append(lambda: leave(passage.accepted))
    with OpenDelivery(incoming, passage) as opened:
        return _passed_response(incoming, passage, opened)


class OpenDelivery:
    """A delivery under way, and the watch over its caller: both end with `close`, or where no response comes of it."""

    __slots__ = ("_end_watch", "delivery")

    def __init__(self, incoming: Incoming, delivery: Delivery) -> None:
        self.delivery = delivery
        self._end_watch = _watch(incoming, delivery)

    def __enter__(self) -> OpenDelivery:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if kind is not None:
            self.close()

    def close(self) -> None:
        self._end_watch()
        self.delivery.close()


class StreamedResponse(Response):
    """A response as the server takes it, without what Flask would put around its head and its pieces.

    `passed`: fields of an upstream's, which stand before its own.
    """

    default_mimetype = None
    passed: Iterable[tuple[str, str]] = ()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        if not isinstance(self.response, StreamedBody):
            self.headers.extend(self.passed)
            return super().__call__(environ, start_response)
        start_response(self.status, [*self.passed, *self.headers])
        return self.response


class StreamedBody:
    """The body of such a response; to close it closes that. `delivery`: what gives it, which a server may park."""

    def __init__(
        self,
        pieces: Generator[bytes, None, None],
        opened: OpenDelivery,
        response: Response,
    ) -> None:
        self.delivery = opened.delivery
        self._opened = opened
        self._pieces = pieces
        self._response = response
        self._is_closed = False

    def __iter__(self) -> Iterator[bytes]:
        return self._pieces

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._pieces.close()
            self._opened.close()
            self._response.close()  # which closes its body in turn
            self._response.response = ()  # they would hold each other, and the request


def _passed_response(
    incoming: Incoming, passage: Passage, opened: OpenDelivery
) -> Response:
    head = passage.start()
    response = StreamedResponse(status=head.status if head else 200)
    response.response = StreamedBody(passage.body(), opened, response)
    response.passed = passed = passage.headers
    if head is None:
        response.content_type = EVENT_STREAM
    if passage.is_event_stream:
        response.passed = _without(passed, STREAM_HEADERS)
        response.headers.update(STREAM_HEADERS)
    elif (length := passage.length) is not None:
        passed.append(("Content-Length", str(length)))
    elif incoming.environ.get("SERVER_PROTOCOL") == "HTTP/1.0":
        response.set_data(_whole_body(passage))  # else a cut would look whole
        response.call_on_close(opened.close)
    return response


def _without(
    pairs: Iterable[tuple[str, str]], names: Iterable[str]
) -> list[tuple[str, str]]:
    """The fields that have other names."""
    dropped = {name.lower() for name in names}
    return [pair for pair in pairs if pair[0] not in dropped]


def _whole_body(passage: Passage) -> bytes:
    """The body of a passage; raises RelayError where it was cut."""
    try:
        return b"".join(passage.body())
    except BodyAborted:
        raise passage.failure or UpstreamCut() from None


def _turn_headers(turn: Turn) -> dict[str, str]:
    """What goes with a stream whose turn has begun."""
    headers = remark_headers(turn.remarks)
    if turn.conversation_id:
        headers["X-Conversation-Id"] = turn.conversation_id
    return headers


def _delivery(incoming: Incoming, ask: Ask, printer: Printer) -> Delivery:
    """How the answer reaches this caller: one with an idempotency key goes on when its caller leaves."""
    service = incoming.service
    if ask.idempotency_key is None:
        delivery: Delivery = _direct(incoming, ask, printer)
    else:
        source = _direct(incoming, changed(ask, timeout=None), printer)
        delivery = BackgroundDelivery(
            source, service.background, printer, service.clocks, ask.timeout
        )
    incoming.delivery = delivery
    return delivery


def _direct(incoming: Incoming, ask: Ask, printer: Printer) -> DirectDelivery:
    """A delivery of this ask; one with a token that nobody has checked is counted while it is in flight."""
    service = incoming.service
    ask = changed(ask, base_url=incoming.base_url)
    open_turn = partial(service.chat.open, ask, printer, incoming.id)
    if ask.caller.token is None or not ask.caller.unverified:
        return DirectDelivery(
            open_turn, printer, service.clocks, ask.timeout, incoming.id
        )
    return NewcomerDelivery(
        partial(service.newcomers.enter, ask.caller.token),
        open_turn,
        printer,
        service.clocks,
        timeout=ask.timeout,
        request_id=incoming.id,
    )


def _watch(incoming: Incoming, delivery: Delivery) -> Callable[[], None]:
    """Watch the caller's connection; gives a function that ends the watch. The total clock bounds the sending too."""
    return incoming.service.server.watch(
        incoming.environ, delivery.leave, delivery.seconds
    )
