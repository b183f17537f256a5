"""Turns as responses: what every dialect's views share once they have an Ask and a Printer."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from functools import partial

import orjson

from relay.delivery import (
    BackgroundDelivery,
    BodyAborted,
    Delivery,
    DirectDelivery,
    Silent,
)
from relay.dialects import report
from relay.domain import Arrival, Ask, Remarks, Reply
from relay.errors import UpstreamCut
from relay.newcomers import NewcomerDelivery
from relay.passage import Passage
from relay.turn import Printer, Turn
from relay.values import changed
from relay.web.incoming import Incoming
from relay.web.response import Response

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
    return Response(body, "application/json")


def text_response(text: str, mimetype: str = "text/plain") -> Response:
    """A text with a line end; one that has one, or is empty, gets no other."""
    if text and not text.endswith("\n"):
        text += "\n"
    return bytes_response(text.encode(), mimetype)


def bytes_response(body: bytes, mimetype: str) -> Response:
    """UTF-8 as it is."""
    return Response(body, f"{mimetype}; charset=utf-8")


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
        pieces = delivery.stream()
        response = StreamedResponse(opened, pieces, headers=STREAM_HEADERS)
        response.headers["Content-Type"] = f"{mimetype}; charset=utf-8"
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
    """A response whose body comes in pieces, as the delivery gives them; to close it closes that."""

    def __init__(
        self,
        opened: OpenDelivery,
        pieces: Generator[bytes, None, None],
        *,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status=status, headers=headers)
        self.delivery = opened.delivery
        self.when_closed += (pieces.close, opened.close)
        self._pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        return self._pieces

    def _fields(self) -> list[tuple[str, str]]:
        fields = super()._fields()
        self.headers = {}  # a stream may stay open for long
        return fields

    def _framing(self) -> list[tuple[str, str]]:
        return []


def _passed_response(
    incoming: Incoming, passage: Passage, opened: OpenDelivery
) -> Response:
    head = passage.start()
    status = head.status if head else 200
    passed, length = passage.headers, passage.length
    is_stream = passage.is_event_stream
    is_unframed = length is None and not is_stream
    response: Response
    if is_unframed and incoming.environ.get("SERVER_PROTOCOL") == "HTTP/1.0":
        # else a cut would look whole
        response = Response(_whole_body(passage), status=status)
        response.when_closed.append(opened.close)
    else:
        response = StreamedResponse(opened, passage.body(), status=status)
    if head is None:
        response.headers["Content-Type"] = EVENT_STREAM
    if is_stream:
        passed = _without(passed, STREAM_HEADERS)
        response.headers.update(STREAM_HEADERS)
    elif length is not None:
        passed.append(("Content-Length", str(length)))
    response.passed = passed
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
    arrival = Arrival(incoming.id, lambda: incoming.base_url)
    open_turn = partial(service.chat.open, ask, printer, arrival)
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
