"""Turns as Flask responses: what every dialect's views share once they have an Ask and a Printer."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from flask import Response, after_this_request, g, request

from relay.chat import Chat, Printer
from relay.domain import Ask, Remarks, Reply
from relay.driver import Background, Clocks, Detached, Drive, Silent
from relay.serving import Serving

MOST_IGNORED = 20
_PLAIN = re.compile(
    r"[!-~]{1,64}"
)  # what others named may hold anything; a server fails on what no header can hold
STREAM_HEADERS = {
    "X-Accel-Buffering": "no"
}  # nginx would else hold a stream back until its end


def headers_of(reply: Reply) -> dict[str, str]:
    """What is told of a whole answer beside its text."""
    headers = {
        "X-Conversation-Id": reply.conversation_id,
        "X-Parent-Message-Id": reply.message_id,
    }
    if _PLAIN.fullmatch(reply.finish_reason):
        headers["X-Finish-Reason"] = reply.finish_reason
    return headers | remarked(reply.remarks)


def remarked(remarks: Remarks) -> dict[str, str]:
    """What is told beside an answer, as headers."""
    headers = {}
    if remarks.dropped:
        headers["X-History-Dropped"] = str(remarks.dropped)
    if ignored := sorted(filter(_PLAIN.fullmatch, remarks.ignored)):
        headers["X-Ignored-Parameters"] = ", ".join(ignored[:MOST_IGNORED])
    if remarks.replayed:
        headers["Idempotent-Replayed"] = "true"
    return headers


@dataclass(frozen=True)
class Answering:
    """Drives turns for the request at hand, and lets them go when its response ends.

    One with an idempotency key goes on in the background when its caller leaves.
    """

    chat: Chat
    clocks: Clocks
    serving: Serving
    background: Background = field(default_factory=Background)

    def whole(self, ask: Ask) -> Reply:
        """The whole answer; raises RelayError."""
        drive, end_watch = self._drive(ask, Silent())

        @after_this_request
        def watch_until_sent(response: Response) -> Response:
            response.call_on_close(end_watch)  # the total clock bounds the sending too
            return response

        try:
            return drive.reply()
        finally:
            drive.close()

    def stream(self, ask: Ask, printer: Printer, mimetype: str) -> Response:
        """A response that streams what the printer prints; raises RelayError for what fails before the first event."""
        drive, end_watch = self._drive(ask, printer)

        def let_go() -> None:
            end_watch()
            drive.close()

        try:
            response = Response(
                drive.stream(),
                content_type=f"{mimetype}; charset=utf-8",
                headers=STREAM_HEADERS,
            )
            if (turn := drive.turn) is not None:
                response.headers.update(remarked(turn.remarks))
                if turn.conversation_id:
                    response.headers["X-Conversation-Id"] = turn.conversation_id
        except BaseException:
            let_go()
            raise
        response.call_on_close(let_go)
        return response

    def _drive(
        self, ask: Ask, printer: Printer
    ) -> tuple[Drive | Detached, Callable[[], None]]:
        name: str = g.request_id
        drive: Drive | Detached
        if ask.key is None:
            drive = Drive(
                lambda: self.chat.open(ask, printer, name),
                printer,
                self.clocks,
                ask.timeout,
                name,
            )
        else:
            patient = replace(ask, timeout=None)
            lasting = Drive(
                lambda: self.chat.open(patient, printer, name),
                printer,
                self.clocks,
                None,
                name,
            )
            drive = Detached(
                lasting, self.background, printer, self.clocks, ask.timeout
            )
        environ: dict[str, Any] = request.environ
        end_watch = self.serving.watch(environ, drive.leave, drive.seconds)
        g.drive = drive
        return drive, end_watch
