"""The offline upstream: a tiny model server within the process, for first runs, demos and rehearsals.

It needs no key, calls nobody and says so. Words in the prompt rehearse what real upstreams do; `WORDS` lists them.
On its wire is what a model server would send: server-sent events with JSON, ended by an event that says `done`.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from threading import Event as Flag
from threading import Lock

import orjson

from relay import sse
from relay.accounts import Resting
from relay.deadline import Deadline
from relay.domain import (
    Caller,
    Delta,
    Event,
    Finished,
    Message,
    Model,
    Question,
    Started,
)
from relay.errors import (
    BadRequest,
    RateLimited,
    UpstreamCut,
    UpstreamFailed,
    UpstreamRefused,
)
from relay.settings import Settings
from relay.upstreams import Resources

MODEL = "offline"
LONGEST_ANSWER = 5_000_000
MOST_REFUSALS = 1_000  # prompts whose refusals are counted
_LONGEST_QUOTE = 2_000

#: word -> (lowest, highest, default, what it rehearses); a number follows it as in offline:status=503.
WORDS: dict[str, tuple[float, float, float | None, str]] = {
    "status": (400, 599, None, "the upstream refuses with this HTTP status"),
    "limit": (0, 86400, 30, "a rate limit (429) with this many seconds in Retry-After"),
    "flaky": (
        0,
        1000,
        1,
        "so many asks of this prompt get 503, the next one its answer",
    ),
    "delay": (0, 3600, 2, "this many seconds pass before the first byte"),
    "pace": (0, 60, 0.1, "this many seconds pass between the pieces"),
    "long": (1, LONGEST_ANSWER, 20_000, "the answer has at least this many characters"),
    "silence": (0, 0, 0, "the upstream falls silent in mid-answer and stays so"),
    "cut": (0, 0, 0, "the upstream's connection ends in mid-answer"),
}
#: it begins with a text, which is looked for much faster in a long prompt
_WORD = re.compile(r"offline:(?<!\woffline:)([a-z]+)(?:=([^\s]*))?")


def open_upstream(settings: Settings, resources: Resources) -> Offline:
    """It needs no settings."""
    return Offline()


class Offline:
    """Answers every question by itself."""

    name = "offline"
    accepts_caller_tokens = False
    needs_client_key = False
    stores_conversations = False
    accepts_options = False
    accepts_files = False
    has_responses = False
    history = None
    forwarder = None
    gateway = None

    def __init__(self) -> None:
        self._refusals = Refusals()

    def recognizes(self, token: str) -> bool:
        return False

    def listed_model(self, name: str) -> str:
        return name

    def resting(self) -> Sequence[Resting]:
        return ()

    def models(self, caller: Caller) -> Sequence[Model]:
        return (Model(MODEL, "The offline responder, which is no model", self.name),)

    def ask(self, question: Question) -> tuple[OfflineStream, OfflineDecoder]:
        return OfflineStream(question.messages, self._refusals), OfflineDecoder()


class Refusals:
    """How often each prompt was refused in a row; that of a prompt that was not asked lately is forgotten."""

    def __init__(self) -> None:
        self._counts: OrderedDict[bytes, int] = OrderedDict()
        self._lock = Lock()

    def is_due(self, prompt: str, most: int) -> bool:
        """Whether to refuse this ask too; after `most` refusals one is answered, and it begins anew."""
        name = hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).digest()
        with self._lock:
            count = self._counts.pop(name, 0)
            if count >= most:
                return False
            self._counts[name] = count + 1
            if len(self._counts) > MOST_REFUSALS:
                self._counts.popitem(last=False)
            return True


def rehearsed(prompt: str) -> dict[str, float]:
    """The words of a prompt that rehearse something, each with its number. Raises BadRequest for one that cannot be."""
    found = {}
    for word, given in _WORD.findall(prompt):
        if word not in WORDS:
            raise BadRequest(
                f"offline:{word} is not a word of the offline upstream; it knows {', '.join(WORDS)}.",
                quoted=word,
            )
        lowest, highest, default, _ = WORDS[word]
        try:
            number = float(given or default or 0)
        except ValueError:
            number = float("nan")
        if not lowest <= number <= highest:
            raise BadRequest(
                f"offline:{word} takes a number from {lowest:g} to {highest:g}, as offline:{word}=NUMBER."
            )
        found[word] = number
    return found


def answer_to(messages: tuple[Message, ...]) -> str:
    """What the offline upstream says: what it is, and that it knows the conversation so far."""
    prompts = [message.text for message in messages if message.role == "user"]
    systems = [message.text for message in messages if message.role == "system"]
    lines = [
        "This is the offline responder of chatgpt-webapi: no model was asked, and "
        "nothing left this machine.",
        f"Turn {len(prompts)}.",
    ]
    lines += [f"System prompt: {_quote(text)}" for text in systems]
    lines.append(f"You said: {_quote(prompts[-1])}")
    if len(prompts) > 1:
        lines.append(f"Before that you said: {_quote(prompts[-2])}")
    return "\n".join(lines)


def _quote(text: str) -> str:
    return text if len(text) <= _LONGEST_QUOTE else text[:_LONGEST_QUOTE] + "…"


class OfflineStream:
    """The server's side: what it sends, and when."""

    dispatched = True
    awaited = None

    def __init__(self, messages: tuple[Message, ...], refusals: Refusals) -> None:
        self._prompt = messages[-1].text
        self._plan = rehearsed(self._prompt)
        self._refusals = refusals
        self._pieces = self._serve(answer_to(messages))
        self._due = Deadline.after(self._plan.get("delay", 0))
        self._interrupted = Flag()

    def read(self, seconds: float) -> bytes | None:
        wait = self._due.left
        if wait:
            self._interrupted.wait(min(wait, seconds))
        if self._interrupted.is_set():
            return b""
        if wait > seconds:
            return None
        piece = next(self._pieces, b"")
        pause = math.inf if piece is None else self._plan.get("pace", 0)
        self._due = Deadline.after(pause)
        return piece

    def interrupt(self) -> None:
        self._interrupted.set()

    def close(self) -> None:
        self._interrupted.set()
        self._pieces = iter(())  # it holds the whole answer, and us

    def _serve(self, text: str) -> Iterator[bytes | None]:
        """The answer's pieces; None where the server falls silent for good."""
        plan = self._plan
        if "limit" in plan:
            raise RateLimited(
                "Rehearsed: too many requests.", retry_after=int(plan["limit"])
            )
        status = int(plan.get("status", 0))
        if self._refusals.is_due(self._prompt, int(plan.get("flaky", 0))):
            status = 503
        if status:
            raise UpstreamRefused(
                f"Rehearsed: the upstream answered {status}.",
                status=status,
                is_own=True,
            )
        if len(text) < (length := int(plan.get("long", 0))):
            text += _padding(length - len(text))
        words = re.findall(r"\S+\s*", text)
        step = max(3, len(words) // 200)
        pieces = ["".join(words[at : at + step]) for at in range(0, len(words), step)]
        yield sse.event(orjson.dumps({"model": MODEL}))
        for number, piece in enumerate(pieces):
            if number == len(pieces) // 2:
                if "cut" in plan:
                    return
                if "silence" in plan:
                    yield None
            yield sse.event(orjson.dumps({"text": piece}))
        yield sse.event(orjson.dumps({"done": "stop"}))


def _padding(length: int) -> str:
    phrase = "\nAnd so on, for a long answer was asked for."
    return phrase * (length // len(phrase) + 1)


class OfflineDecoder:
    """Our side: the server's bytes as events."""

    started = complete = False
    message_id = None

    def __init__(self) -> None:
        self._events = sse.Parser()

    def feed(self, piece: bytes) -> Iterator[Event]:
        for _, data in self._events.feed(piece):
            self.started = True
            yield _decode(data)

    def end(self) -> list[Event]:
        raise UpstreamCut()


def _decode(data: str) -> Event:
    try:
        match orjson.loads(data):
            case {"model": str(model)}:
                return Started(model)
            case {"text": str(text)}:
                return Delta(text)
            case {"done": "stop"}:
                return Finished("stop")
    except orjson.JSONDecodeError:
        pass
    raise UpstreamFailed("The offline upstream sent what it never sends.")
