"""Stand-ins that come in by the real door: an upstream that follows a script."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from threading import Event as Flag

from relay.accounts import Resting
from relay.domain import Caller, Delta, Event, Finished, Model, Question, Started
from relay.errors import RelayError, UpstreamCut, UpstreamFailed


@dataclass(frozen=True)
class Wait:
    """Seconds of silence."""

    seconds: float


class ScriptedDecoder:
    """A wire of single letters between bars: `S` starts, `F` ends, anything else is text."""

    started = complete = False
    message_id = None

    def __init__(self) -> None:
        self._held = b""

    def feed(self, piece: bytes) -> Iterator[Event]:
        *words, self._held = (self._held + piece).split(b"|")
        for word in words:
            yield self._event(word)

    def _event(self, word: bytes) -> Event:
        match word:
            case b"S":
                self.started = True
                return Started("scripted-model")
            case b"F":
                return Finished("stop")
            case b"?":
                raise UpstreamFailed("The scripted upstream sent garbage.")
        return Delta(word.decode())

    def end(self) -> list[Event]:
        raise UpstreamCut()


class ScriptedStream:
    dispatched = True

    def __init__(self, script: list[bytes | Wait | Exception]) -> None:
        self._script = list(script)
        self._interrupted = Flag()
        self._due: float | None = None
        self.closed = False

    def read(self, seconds: float) -> bytes | None:
        if self._interrupted.is_set() or not self._script:
            return b""
        step = self._script[0]
        if isinstance(step, Wait):
            self._due = self._due or time.monotonic() + step.seconds
            left = self._due - time.monotonic()
            self._interrupted.wait(max(0.0, min(left, seconds)))
            if self._interrupted.is_set():
                return b""
            if left > seconds:
                return None
            self._due = None
            self._script.pop(0)
            return self.read(max(0.0, seconds - left))
        self._script.pop(0)
        if isinstance(step, Exception):
            raise step
        return step

    @property
    def waits(self) -> bool:
        """Whether somebody reads it while its script is silent."""
        return self._due is not None

    def interrupt(self) -> None:
        self._interrupted.set()

    def close(self) -> None:
        self.closed = True


WHOLE: list[bytes | Wait | Exception] = [b"S|", b"Hel|lo|", b"F|"]


class Scripted:
    """An upstream that follows its script at every ask, and remembers what it was asked."""

    def __init__(
        self,
        *script: bytes | Wait | Exception,
        name: str = "scripted",
        needs_client_key: bool = False,
        accepts_caller_tokens: bool = False,
        accepts_options: bool = False,
    ) -> None:
        self.script = list(script) or WHOLE
        self.name = name
        self.needs_client_key = needs_client_key
        self.accepts_caller_tokens = accepts_caller_tokens
        self.stores_conversations = False
        self.history = None
        self.forwarder = None
        self.gateway = None
        self.accepts_options = accepts_options
        self.accepts_files = False
        self.asked: list[Question] = []
        self.streams: list[ScriptedStream] = []

    def recognizes(self, token: str) -> bool:
        return True

    def models(self, caller: Caller) -> tuple[Model, ...]:
        return (Model("scripted-1", "A script", self.name),)

    def listed_model(self, name: str) -> str:
        return name

    def resting(self) -> tuple[Resting, ...]:
        return ()

    def ask(self, question: Question) -> tuple[ScriptedStream, ScriptedDecoder]:
        self.asked.append(question)
        if self.script and isinstance(self.script[0], RelayError):
            raise self.script[0]
        self.streams.append(ScriptedStream(self.script))
        return self.streams[-1], ScriptedDecoder()
