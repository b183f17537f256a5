"""One question and its answer, while it runs.

A `Turn` is pushed from outside: bytes from the upstream go in, bytes for the caller come out. `feed`
does no I/O; `accepted`, `end` and `fail` make one write to the store each, at most. Who reads the
upstream, and in which thread, is the delivery's business.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Protocol

from relay.domain import (
    AnswerSize,
    Delta,
    Event,
    Finished,
    Reasoning,
    Refusal,
    Remarks,
    Reply,
    Restarted,
    Started,
    Tokens,
    ToolCall,
    joined_call,
)
from relay.errors import RelayError, StoreFailed, UpstreamCut
from relay.growing_text import GrowingText
from relay.ids import random_digits
from relay.keeping import Keeper
from relay.upstreams import Decoder, Stream
from relay.usage import Meter, tokens_of
from relay.values import frozen
from relay.window import TextCount, estimate_rest, estimate_text

log = logging.getLogger(__name__)

SMALLEST_ESTIMATE = 1000  # tokens; below it an estimate may be far off


class Printer(Protocol):
    """Events as a caller's dialect has them. Pure; one for each answer, driven by one thread.

    `keep_alive`: bytes that mean nothing in that dialect, for times of silence. `needs_text`: the end
    of an answer, or the dialect's check of it, asks for its texts; else a `Reply` may come without.
    """

    keep_alive: bytes
    needs_text: bool

    def print(self, batch: list[Event]) -> bytes:
        """The events that one read gave, in their order; b"" where the dialect prints none of them."""

    def end(self, reply: Reply) -> bytes:
        """After all events of a whole answer."""

    def fail(self, error: RelayError) -> bytes | None:
        """A failure within an answer; None where the dialect has no way to say it, so the body is aborted."""


@frozen
class TurnContext:
    """What a turn knows beside its answer.

    `answer_id` and `question_id`: see `Started`. `check`: the dialect's; see `Ask.check`. `tokens`:
    the estimated size of what was sent upstream. `meter`: None for an answer that was counted before.
    """

    conversation_id: str = ""
    answer_id: str = ""
    remarks: Remarks = Remarks()
    check: Callable[[Reply], None] = lambda reply: None
    tokens: int = 0
    question_id: str = ""
    meter: Meter | None = None


class Turn:
    """One question and its answer, pushed from outside by one thread.

    `failure`: an error that the bytes fed so far tell of; what came before it was printed, and the
    driver raises it. `started`: the upstream took the question. `over`: the answer is whole; what the upstream may
    still send is not waited for. `ended`: `end` or `fail` was called.
    """

    def __init__(
        self,
        stream: Stream,
        decoder: Decoder,
        keeper: Keeper,
        printer: Printer,
        context: TurnContext,
    ) -> None:
        self.stream = stream
        self.conversation_id = context.conversation_id
        self.remarks = context.remarks
        self.started = False
        self.over = False
        self.ended = False
        self.failure: RelayError | None = None
        self.reply: Reply | None = None
        self._decoder = decoder
        self._keeper = keeper
        self._printer = printer
        self._context = context
        self._started: Started | None = None
        self._finished: Finished | None = None
        self._acceptance_kept = False
        self._is_counted = False
        is_held = keeper.needs_text or printer.needs_text
        collect = GrowingText if is_held else TextCount
        self._text: GrowingText | TextCount = collect()
        self._reasoning: GrowingText | TextCount = collect()
        self._refusal = GrowingText()
        self._tool_calls: dict[int, list[ToolCall]] = {}  # pieces, by their index

    @property
    def complete(self) -> bool:
        """The answer's text is complete, only the stream's trailer is missing."""
        return self._decoder.complete

    def feed(self, piece: bytes) -> bytes:
        """What the caller gets for this piece. Nothing is stored; a failure is left in `failure`."""
        return b"" if self.over else self._take(self._decoder.feed(piece))

    def _take(self, events: Iterable[Event]) -> bytes:
        batch: list[Event] = []
        try:
            for event in events:
                if isinstance(event, Delta):  # which most are
                    self._text.append(event.text)
                elif isinstance(event, Finished):
                    self._finished = event
                    self.over = True
                    break
                else:
                    event = self._with_ids(event)
                    self._add(event)
                batch.append(event)
        except RelayError as error:
            self.failure = error
        return self._printer.print(batch) if batch else b""

    def _with_ids(self, event: Event) -> Event:
        """The event with what it must name: the place of the answer, and a call's id, which its result will name."""
        if isinstance(event, Started) and self._keeper.returns_ids:
            # an upstream may name a place of its own also where it stores nothing
            context = self._context
            place = context.conversation_id or event.conversation_id or None
            ids = context.answer_id, context.question_id
            return Started(event.model, place, event.account, *ids)
        if isinstance(event, ToolCall) and not event.id:
            is_first = event.index not in self._tool_calls
            return replace(event, id=f"call_{random_digits()}") if is_first else event
        return event

    def _add(self, event: Event) -> None:
        match event:
            case Started():
                self._started = event
                self.started = True
                if event.conversation_id and self._keeper.returns_ids:
                    self.conversation_id = event.conversation_id
            case Restarted():
                self._text = type(self._text)()
            case Reasoning(text):
                self._reasoning.append(text)
            case Refusal(text):
                self._refusal.append(text)
            case ToolCall():
                self._tool_calls.setdefault(event.index, []).append(event)

    def accepted(self) -> None:
        """Store that the upstream accepted the question, once it has said so."""
        if self._started is not None and not self._acceptance_kept:
            self._acceptance_kept = True
            self._keeper.accepted(self._started)

    def end(self) -> bytes:
        """The stream is over: store the answer, and print its end.

        Raises UpstreamCut where the answer is not whole, and what the dialect's check raises.
        """
        rest = b"" if self.over else self._take(self._decoder.end())
        if self.failure is not None:
            raise self.failure
        if self._finished is None:
            raise UpstreamCut()
        self.accepted()
        reply = self._reply(self._finished)
        self._context.check(reply)
        self._report_cut_window(self._finished)
        self._keeper.completed(reply)
        self.reply = reply
        self.ended = True
        self._count(reply)
        return rest + self._printer.end(reply)

    def _count(
        self, reply: Reply, failure: RelayError | None = None, sent: bool = True
    ) -> None:
        """Count the ask. `reply`: its answer, as far as it came. `sent`: the upstream may have the question."""
        meter = self._context.meter
        if meter is not None and not self._is_counted:
            self._is_counted = True
            tokens = (sent and reply.tokens) or Tokens()
            meter.count(failure, tokens, reply.model, accepted=self.started)

    def _reply(self, finished: Finished) -> Reply:
        conversation_id, message_id = self._ids_of(finished)
        refusal = self._refusal.text
        tool_calls = tuple(map(joined_call, self._tool_calls.values()))
        answer = _cost_of(self._text) + estimate_rest(refusal, tool_calls)
        size = AnswerSize(_cost_of(self._reasoning), answer)
        is_metered = self._context.meter is not None
        sent = self._context.tokens
        return Reply(
            text=self._text.text,
            conversation_id=conversation_id,
            message_id=message_id,
            model=finished.model or self._model,
            finish_reason=finished.reason,
            reasoning=self._reasoning.text,
            refusal=refusal,
            tool_calls=tool_calls,
            usage=finished.usage,
            remarks=self.remarks,
            tokens=tokens_of(finished.usage, sent, size) if is_metered else None,
            size=size,
        )

    def _ids_of(self, finished: Finished) -> tuple[str, str]:
        """The conversation's id and the answer's; none where the conversation is not stored."""
        if not self._keeper.returns_ids:
            return "", ""
        message_id = self._context.answer_id or finished.message_id or ""
        return self.conversation_id, message_id or self._keeper.request.answer_id

    @property
    def _model(self) -> str | None:
        return self._started.model if self._started else None

    def _report_cut_window(self, finished: Finished) -> None:
        """Some servers cut a conversation to their context window and do not say so (Ollama)."""
        counted = (finished.usage or {}).get("prompt_tokens")
        sent = self._context.tokens
        if not isinstance(counted, int) or sent < SMALLEST_ESTIMATE:
            return
        if 0 < counted < sent / 2:
            log.warning(
                "The upstream read %d tokens of about %d that were sent: its context "
                "window may be too small (Ollama: OLLAMA_CONTEXT_LENGTH), or "
                "HISTORY_BUDGET too large.",
                counted,
                sent,
            )

    def fail(self, error: RelayError) -> bytes | None:
        """The turn failed: store what came as a broken answer, and print the error.

        None where the dialect cannot print it, so that the body is to be aborted.
        """
        self.ended = True
        may_have_arrived = error.may_have_been_sent or self._decoder.started
        sent = self.stream.dispatched and may_have_arrived
        reply = self._reply(self._finished or Finished())
        self._count(reply, error, sent)
        try:
            if not self._keeper.failed(reply.text, self._model, error, sent):
                self.conversation_id = ""
        except StoreFailed as failure:
            log.warning("A broken answer could not be stored: %s", failure)
        return self._printer.fail(error)

    def close(self) -> None:
        self.stream.close()


def _cost_of(text: GrowingText | TextCount) -> int:
    return text.tokens if isinstance(text, TextCount) else estimate_text(text.text)
