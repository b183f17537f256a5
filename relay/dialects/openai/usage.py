"""The counts of tokens that go with an answer, one that passes as it is too. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from relay.domain import Ask, Findings, Message, Reply, Tokens
from relay.window import (
    PER_MESSAGE,
    TextCount,
    estimate_answer,
    estimate_tokens,
    tokens_of,
)

#: routes of the API that are questions to a model, whose JSON names it
COUNTED = (
    "chat/completions",
    "completions",
    "responses",
    "embeddings",
    "images/generations",
    "audio/speech",
)
MOST_PARTS = 10_000  # of a request, that an estimate looks at
TAIL = 4096  # bytes at an answer's end that are held: its usage stands there
_REST = rb'"\s*:\s*"([^"\\]*(?:\\.[^"\\]*)*)'
_CHAT = (b"content", b"reasoning_content", b"reasoning", b"refusal", b"arguments")
#: route, whether it streams -> an answer's fields that are words of the model: the name, and its pattern; see `wire`
_WORDS = {
    (path, streams): tuple((name, re.compile(b'"' + name + _REST)) for name in names)
    for path, streams, names in (
        ("chat/completions", False, _CHAT),
        ("chat/completions", True, _CHAT),
        ("completions", False, (b"text",)),
        ("completions", True, (b"text",)),
        ("responses", False, (b"text", b"arguments")),
        ("responses", True, (b"delta",)),
    )
}
_MODEL = re.compile(rb'"model"\s*:\s*"([^"\\]+)"')
_USAGE = re.compile(rb'"usage"\s*:\s*(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})')
#: patterns that begin with a text: those are looked for much faster
_FAILED = (
    re.compile(rb'\ndata: ?\{\s*"error"\s*:\s*\{'),
    re.compile(rb'"type"\s*:\s*"(?:response\.failed|error)"'),
)
#: members of a request with words for the model
_ASKED = ("messages", "input", "prompt", "instructions")
_PARTS = ("content", "text", "tool_calls", "function", "arguments", "output")


def prompt_tokens_of(ask: Ask) -> int:
    """The estimated tokens of an ask's messages."""
    messages = (*ask.path, *ask.preamble, ask.question)
    tokens = sum(estimate_tokens(message) for message in messages)
    if ask.instructions:
        tokens += estimate_tokens(Message("system", ask.instructions))
    return tokens


def usage_of(reply: Reply, prompt_tokens: int) -> dict[str, Any]:
    """The upstream's own counts, if it has both; else estimated ones."""
    usage = dict(reply.usage or {})
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if type(prompt) is not int or type(completion) is not int:
        return _estimated(reply, prompt_tokens)
    if type(usage.get("total_tokens")) is not int:
        usage["total_tokens"] = prompt + completion
    for name in ("prompt_tokens_details", "completion_tokens_details"):
        if name in usage:
            usage[name] = _integers(usage[name])
    return usage


def _integers(details: Any) -> dict[str, int] | None:
    """The whole numbers of an object; None where it is none."""
    if not isinstance(details, Mapping):
        return None
    return {name: count for name, count in details.items() if type(count) is int}


def _estimated(reply: Reply, prompt_tokens: int) -> dict[str, Any]:
    reasoning_tokens, answer_tokens = estimate_answer(reply)
    completion_tokens = reasoning_tokens + answer_tokens
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": reasoning_tokens,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def tokens_asked(payload: Mapping[str, Any]) -> int:
    """The estimated tokens of a request that passes; of one with very many parts, those of the last."""
    text = TextCount()
    others = 0
    pending: list[Any] = [payload.get(name) for name in _ASKED]
    for _ in range(MOST_PARTS):
        if not pending:
            break
        value = pending.pop()
        if isinstance(value, str):
            text.append(value)
        elif isinstance(value, list):
            pending.extend(value)
        elif isinstance(value, dict):
            others += PER_MESSAGE if "role" in value else 0
            pending.extend(value[name] for name in _PARTS if name in value)
        elif isinstance(value, int):
            others += 1  # a token by its number
    return text.tokens + others


class PassedAnswer:
    """Reads along with an answer that passes, in constant memory. See `relay.usage.AnswerReader`.

    `path`: the route's, below /v1. What an answer states stands near its end; only of one that states nothing the words
    are counted, of a stream as they pass.
    """

    may_block = False

    def __init__(self, path: str, *, streams: bool) -> None:
        self._words = _WORDS.get((path, streams), ())
        self._streams = streams
        self._tail = b""
        self._size = 0
        self._model: str | None = None
        self._text = TextCount()

    def accepted(self, account: object) -> None:
        pass

    def end(self) -> None:
        pass

    def feed(self, text: bytes) -> None:
        """Of a stream: whole events."""
        self._size += len(text)
        self._tail = (self._tail + text)[-TAIL:]
        if self._model is None and (found := _MODEL.search(text)):
            self._model = found[1].decode("utf-8", "replace")
        if self._streams:
            self._count_words(text, self._text)

    def _count_words(self, text: bytes, count: TextCount) -> None:
        for name, pattern in self._words:
            if name in text:
                words = b"".join(pattern.findall(text))
                count.append(words.decode("utf-8", "replace"))

    def findings(self, asked: Callable[[], int]) -> Findings:
        tokens = _stated_in(self._tail)
        if tokens is None:
            tokens = Tokens(asked(), self._estimated(), estimated=True)
        has_failed = self._streams and _tells_of_failure(self._tail)
        return Findings(self._model, tokens, has_failed)

    def _estimated(self) -> int:
        if self._streams or not self._words:
            return self._text.tokens
        if self._size > TAIL:
            return tokens_of(self._size, 0)
        text = TextCount()
        self._count_words(self._tail, text)
        return text.tokens


def _tells_of_failure(events: bytes) -> bool:
    lines = b"\n" + events
    return any(pattern.search(lines) for pattern in _FAILED)


def _stated_in(text: bytes) -> Tokens | None:
    """The last usage that a part of an answer states."""
    at = len(text)
    while (at := text.rfind(b'"usage"', 0, at)) >= 0:
        found = _USAGE.match(text, at)
        tokens = _stated(found[1]) if found else None
        if tokens is not None:
            return tokens
    return None


def _stated(text: bytes) -> Tokens | None:
    """The counts of a usage object, as chat completions, responses or embeddings have it."""
    try:
        usage = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    prompt = usage.get("prompt_tokens", usage.get("input_tokens"))
    total = usage.get("total_tokens")
    completion = usage.get("completion_tokens", usage.get("output_tokens"))
    if completion is None and total == prompt:
        completion = 0
    return Tokens.stated(prompt, completion)
