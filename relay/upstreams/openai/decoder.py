"""The stream of chat/completions as events. Pure.

Source: OpenAI's chat.completion.chunk. Compatible servers differ: reasoning stands in `reasoning_content` (DeepSeek,
vLLM, llama.cpp, LiteLLM) or `reasoning` (OpenRouter, Ollama), content may be a list of parts (Mistral), usage may come
with the last chunk or after it, and `[DONE]` may be missing. Without a finish reason the answer is not complete.

How it works: each chunk is a set of additions to one message, so its events are yielded as they are read and nothing is
kept of them. Only the model, the usage and the finish reason are kept, for `Finished`, which is yielded at `[DONE]` or
at the end of the bytes. The decoder is `complete` once it has the finish reason: what may still come is usage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import orjson

from relay import sse
from relay.domain import (
    Delta,
    Event,
    Finished,
    FinishReason,
    Reasoning,
    Refusal,
    Started,
    ToolCall,
)
from relay.errors import UpstreamCut, UpstreamFailed
from relay.upstreams.openai.failures import in_event
from relay.upstreams.wording import parse_json, replaced_in_texts

MOST_CALLS = 1000  # of tools, in one answer
CUT = "The upstream ended its stream without a finish reason: the answer is not whole."
#: what compatible servers call their finish reasons, in lower case; other words mean `stop`
FINISH_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "eos": "stop",
    "end_turn": "stop",
    "stop_sequence": "stop",
    "complete": "stop",
    "length": "length",
    "max_tokens": "length",
    "max_output_tokens": "length",
    "model_length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "tool_use": "tool_calls",
    "content_filter": "content_filter",
    "sensitive": "content_filter",  # GLM
    "safety": "content_filter",  # this and the rest: Gemini
    "recitation": "content_filter",
    "blocklist": "content_filter",
    "prohibited_content": "content_filter",
    "spii": "content_filter",
}
#: finish reasons that mean that the server gave up (DeepSeek, vLLM, SGLang, GLM, gateways)
FAILURE_REASONS = (
    "error",
    "failed",
    "abort",
    "aborted",
    "cancelled",
    "canceled",
    "network_error",
    "insufficient_system_resource",
)


class OpenAIDecoder:
    """Follows the first choice of a completion. `redact` takes the credential out of what a failure quotes."""

    message_id = None

    def __init__(self, redact: Callable[[bytes], bytes] = bytes) -> None:
        self._redact = redact
        self._parser = sse.Parser(strays=True)
        self.started = False
        self._finished = False
        self._failure = ""
        self._model: str | None = None
        self._reason: FinishReason | None = None
        self._usage: Mapping[str, Any] | None = None

    @property
    def complete(self) -> bool:
        """The finish reason has come: all of the answer is there."""
        return self._reason is not None

    def feed(self, piece: bytes) -> Iterator[Event]:
        """The events that this piece completes, lazily: those before an error come before it is raised."""
        if self._finished:
            return
        for name, data in self._parser.feed(piece):
            if data.strip() == "[DONE]":
                yield from self.end()
                return
            yield from self._chunk(name, data)
            if self._failure:
                raise UpstreamFailed(
                    f"The upstream gave up within its answer ({self._failure})."
                )

    def end(self) -> list[Event]:
        """The last event; none if it was yielded already. Raises UpstreamCut without a finish reason."""
        if self._finished:
            return []
        if self._reason is None:
            raise UpstreamCut(CUT)
        self._finished = True
        return [Finished(self._reason, model=self._model, usage=self._usage)]

    def _chunk(self, name: str, data: str) -> list[Event]:
        if name == sse.STRAY and not data.startswith("{"):
            return []
        chunk = parse_json(data.encode())
        if in_event(chunk, name) is not None:
            error = in_event(replaced_in_texts(chunk, self._redact), name)
            raise error or UpstreamFailed("The upstream failed within its answer.")
        if name == sse.STRAY:
            return []
        if not isinstance(chunk, dict):
            raise UpstreamFailed("The upstream sent an event that is no JSON object.")
        events: list[Event] = []
        if not self.started:
            events.append(self._start(chunk))
        usage = chunk.get("usage")
        if isinstance(usage, dict):
            self._usage = _counts(usage)
        choices = chunk.get("choices")
        if isinstance(choices, list):
            events += self._choices(choices)
        return events

    def _choices(self, choices: list[Any]) -> list[Event]:
        """The events of the first choice."""
        events: list[Event] = []
        for choice in choices:
            if isinstance(choice, dict) and choice.get("index", 0) == 0:
                events += self._choice(choice)
        return events

    def _start(self, chunk: dict[str, Any]) -> Started:
        self.started = True
        self._model = _text(chunk.get("model")) or None
        return Started(self._model)

    def _choice(self, choice: dict[str, Any]) -> list[Event]:
        reason = choice.get("finish_reason")
        if reason:
            self._finish(_text(reason))
        # a server that does not stream sends the whole message
        message = choice.get("delta") or choice.get("message")
        return _message_events(message) if isinstance(message, dict) else []

    def _finish(self, reason: str) -> None:
        """Keep the finish reason, or the failure that it means."""
        if reason.lower() in FAILURE_REASONS:
            self._failure = reason
        elif reason:
            self._reason = FINISH_REASONS.get(reason.lower(), "stop")


def _message_events(message: dict[str, Any]) -> list[Event]:
    content = message.get("content")
    events = _content(content) if content else []
    thought = message.get("reasoning_content") or message.get("reasoning")
    if thought and (reasoning := _text(thought)):
        events.append(Reasoning(reasoning))
    refused = message.get("refusal")
    if refused and (refusal := _text(refused)):
        events.append(Refusal(refusal))
    calls = message.get("tool_calls")
    if not calls and "function_call" in message:  # the API before `tool_calls`
        calls = [{"function": message["function_call"]}]
    if calls:
        events += _tool_calls(calls)
    return events


def _content(content: Any) -> list[Event]:
    """Text, or a list of parts: of text, or of reasoning."""
    if isinstance(content, str):
        return [Delta(content)]
    events: list[Event] = []
    for part in _objects(content):
        text = _text(part.get("text"))
        if text:
            events.append(Delta(text))
            continue
        steps = [_text(step.get("text")) for step in _objects(part.get("thinking"))]
        events += [Reasoning(step) for step in steps if step]
    return events


def _tool_calls(calls: Any) -> list[ToolCall]:
    """Pieces of calls, or whole ones."""
    if not isinstance(calls, list):
        return []
    pieces = [
        _tool_call(call, position)
        for position, call in enumerate(calls)
        if isinstance(call, dict)
    ]
    return [piece for piece in pieces if piece is not None]


def _tool_call(call: dict[str, Any], position: int) -> ToolCall | None:
    """One piece of a call; None where it says nothing. Without an index its position counts."""
    index = call.get("index")
    if not isinstance(index, int) or isinstance(index, bool) or index < 0:
        index = position
    if index >= MOST_CALLS:
        raise UpstreamFailed(f"The upstream asks for more than {MOST_CALLS} calls.")
    identifier = _text(call.get("id"))
    function = call.get("function")
    if not isinstance(function, dict):
        function = {}
    name = _text(function.get("name"))
    arguments = _arguments(function.get("arguments"))
    if not (identifier or name or arguments):
        return None
    return ToolCall(index, identifier, name, arguments)


def _arguments(arguments: Any) -> str:
    """A piece of JSON; some servers send the object itself."""
    if not isinstance(arguments, dict):
        return _text(arguments)
    try:
        return orjson.dumps(arguments).decode()
    except orjson.JSONEncodeError:
        raise UpstreamFailed(
            "The upstream sent a tool call that is nested too deep."
        ) from None


def _counts(usage: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a usage object, and its objects of numbers; no more than that."""
    return {name: value for name, value in usage.items() if _is_count(value)}


def _is_count(value: Any) -> bool:
    numbers = value.values() if isinstance(value, dict) else (value,)
    return all(isinstance(number, (int, float, type(None))) for number in numbers)


def _objects(value: Any) -> list[dict[str, Any]]:
    """The objects of a list; none where it is no list."""
    if not isinstance(value, list):
        return []
    return [each for each in value if isinstance(each, dict)]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
