"""One question's way to an OpenAI-compatible API: finds a key and a model, and brings back the stream."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from threading import Event as Flag
from typing import Any

from relay import sse
from relay.accounts import Account, AccountPool, Attempts
from relay.domain import Question
from relay.errors import RelayError, Unreachable, UpstreamCut, UpstreamFailed
from relay.transports import Call, Exchange, Transport
from relay.upstreams.openai import body
from relay.upstreams.openai.body import Extras
from relay.upstreams.openai.failures import from_response, within
from relay.upstreams.words import json_of

LONGEST_ERROR = 64 * 1024
LONGEST_ANSWER = 32 * 1024 * 1024  # of a server that does not stream
MODELS_SECONDS = 3600.0  # for so long the first listed model stays the default
KEYLESS = Account("keyless", "")


@dataclass
class Default:
    """The model for asks that name none, where the operator names none either: the first that the server lists."""

    model: str = ""
    until: float = 0.0

    @property
    def known(self) -> str:
        return self.model if time.monotonic() < self.until else ""


@dataclass(frozen=True)
class API:
    """An OpenAI-compatible API and how to speak to it: what does not change from ask to ask."""

    transport: Transport
    base: str = body.DEFAULT_BASE
    pool: AccountPool = field(default_factory=lambda: AccountPool((KEYLESS,)))
    model: str = ""
    extras: Extras = Extras()
    retries: int = 3
    has_keys: bool = False
    default: Default = field(default_factory=Default)

    def attempts(self, question: Question) -> Attempts:
        """The keys that may be shown: the caller's own alone, or all in turn. Limits are of a key and a model."""
        if question.token:
            own = Account.of(question.token)
            return Attempts(AccountPool((own,)), (own,), 0)
        model = question.model or self.model or self.default.known
        return Attempts(self.pool, self.pool.in_turn(), self.retries, model)


class Session:
    """One question's stream."""

    def __init__(self, api: API, question: Question) -> None:
        self._api = api
        self._question = question
        self._model = question.model or api.model
        self._attempts = api.attempts(question)
        self._account = self._attempts.next()
        self._exchange: Exchange | None = None
        self.asked = False
        self._lists = False
        self._streams = False
        self._gathered = b""
        self._interrupted = Flag()

    def read(self, seconds: float) -> bytes | None:
        """What has arrived. Refusals that another key may mend are not told."""
        until = time.monotonic() + seconds
        while not self._interrupted.is_set():
            try:
                piece = self._step(max(0.0, until - time.monotonic()))
            except UpstreamCut:
                if self._interrupted.is_set():
                    return b""
                if self._lists:
                    raise _no_model("it broke the connection") from None
                raise
            if piece is not None or time.monotonic() >= until:
                return piece
        return b""

    def _step(self, seconds: float) -> bytes | None:
        """One wait for what comes next; None if it led to nothing that can be told yet."""
        if self._exchange is None:
            call = self._call()
            self.asked = not self._lists
            self._exchange = self._api.transport.send(call)
        try:
            head = self._exchange.head(seconds)
        except Unreachable as error:
            if self._interrupted.is_set():
                raise UpstreamCut() from None
            self._refused(error)
            return None
        if head is None:
            return None
        if self._streams:
            return self._exchange.read(seconds)
        if (
            head.status == 200
            and "text/event-stream" in head.headers.get("content-type", "").lower()
        ):
            self._streams = True
            return None
        return self._gather(head.status, head.headers, seconds)

    def _gather(
        self, status: int, headers: dict[str, str], seconds: float
    ) -> bytes | None:
        """A body that is no stream, or does not say so."""
        assert self._exchange is not None
        try:
            piece = self._exchange.read(seconds)
        except UpstreamCut:
            if status < 400 or self._interrupted.is_set():
                raise
            piece = b""  # what there is of an error is told
        if piece is None:
            return None
        self._gathered += piece
        if (
            status == 200
            and not self._lists
            and self._gathered.lstrip().startswith((b"data:", b"event:", b":"))
        ):
            self._streams, told, self._gathered = True, self._gathered, b""
            return told
        if piece and len(self._gathered) < (
            LONGEST_ERROR if status >= 400 else LONGEST_ANSWER
        ):
            return None
        told, self._gathered = self._gathered, b""
        answer = json_of(told)
        if status == 200 and self._lists:
            self._choose(answer)
            return None
        if (
            status == 200
            and isinstance(answer, dict)
            and answer.get("choices")
            and within(answer) is None
        ):
            self._streams = True  # its own end is the stream's
            return sse.event(b" ".join(told.splitlines()))
        self._refused(from_response(status, headers, self.hidden_in(told)))
        return None

    def _call(self) -> Call:
        own = bool(self._question.token)
        headers = body.headers(
            self._account.token, self._api.extras, self._question.request_id, own=own
        )
        if not self._model and not own:
            self._model = self._attempts.scope = self._api.default.known
        self._lists = not self._model
        if self._lists:
            return Call("GET", f"{self._api.base}/models", headers)
        told = body.completion(self._question, self._model, self._api.extras)
        headers |= {
            "Content-Type": "application/json",
            "Accept": "text/event-stream, application/json",
        }
        return Call("POST", f"{self._api.base}/chat/completions", headers, told)

    def hidden_in(self, told: bytes) -> bytes:
        return self._account.hidden_in(told)

    def _choose(self, listed: Any) -> None:
        """Take the first model that is listed."""
        self._drop()
        found = listed.get("data") if isinstance(listed, dict) else None
        first = found[0] if isinstance(found, list) and found else None
        if (
            not isinstance(first, dict)
            or not isinstance(first.get("id"), str)
            or not first["id"]
        ):
            raise _no_model("it lists none")
        self._model = self._attempts.scope = first["id"]
        if not self._question.token:
            self._api.default.model = self._model
            self._api.default.until = time.monotonic() + MODELS_SECONDS

    def _refused(self, error: RelayError) -> None:
        """Go on with another key; raises the error where none may help."""
        self._drop()
        if self._lists and not error.another_account_may_help:
            raise _no_model(error.message) from error
        self._attempts.refused(error)
        self.asked = False
        self._account = self._attempts.next()

    def _drop(self) -> None:
        if self._exchange is not None:
            self._exchange.close()
        self._exchange, self._streams, self._gathered = None, False, b""

    def interrupt(self) -> None:
        self._interrupted.set()
        if (exchange := self._exchange) is not None:
            exchange.interrupt()

    def close(self) -> None:
        self._interrupted.set()
        self._drop()


def _no_model(reason: str) -> UpstreamFailed:
    said = f"No model was named, and the upstream gives none ({reason.rstrip('.')})."
    return UpstreamFailed(f"{said} Send the field model, or set OPENAI_MODEL.")
