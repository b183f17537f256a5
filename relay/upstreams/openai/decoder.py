"""The stream of chat/completions as events. Pure.

Source: OpenAI's chat.completion.chunk. Compatible servers differ: reasoning stands in `reasoning_content` (DeepSeek,
vLLM, llama.cpp, LiteLLM) or `reasoning` (OpenRouter, Ollama), content may be a list of parts (Mistral), usage may come
with the last chunk or after it, and `[DONE]` may be missing. Without a finish reason there is no whole answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from relay import sse
from relay.domain import Delta, Event, Finished, Reasoning, Refusal, Started
from relay.errors import UpstreamCut, UpstreamFailed
from relay.upstreams.openai.failures import within
from relay.upstreams.words import json_of

CUT = "The upstream ended its stream without a finish reason: the answer is not whole."
#: finish reasons by which compatible servers say that they gave up (DeepSeek, vLLM, SGLang, GLM, gateways)
_GAVE_UP = (
    "error",
    "failed",
    "abort",
    "aborted",
    "cancelled",
    "canceled",
    "network_error",
    "insufficient_system_resource",
)
#: and that a filter stopped the answer (GLM, Gemini)
_FILTERED = (
    "content_filter",
    "sensitive",
    "safety",
    "recitation",
    "blocklist",
    "prohibited_content",
    "spii",
)


class OpenAIDecoder:
    """Follows the first choice of a completion. `hide` takes the credential out of what a failure quotes."""

    def __init__(self, hide: Callable[[bytes], bytes] = bytes) -> None:
        self._hide = hide
        self._events = sse.Parser(strays=True)
        self.started = False
        self._model: str | None = None
        self._reason: str | None = None
        self._usage: Mapping[str, Any] | None = None

    @property
    def settled(self) -> bool:
        return self._reason is not None

    def feed(self, piece: bytes) -> list[Event]:
        events: list[Event] = []
        for event in self._events.feed(piece):
            if event.data.strip() == "[DONE]":
                return events + self._end()
            events += self._chunk(event)
        return events

    def end(self) -> list[Event]:
        return self._end()

    def _end(self) -> list[Event]:
        if self._reason is None:
            raise UpstreamCut(CUT)
        return [Finished(self._reason, model=self._model, usage=self._usage)]

    def _chunk(self, event: sse.ServerEvent) -> list[Event]:
        told = json_of(event.data.encode())
        if within(told, event.name) is not None:
            hidden = within(json_of(self._hide(event.data.encode())), event.name)
            raise hidden or UpstreamFailed("The upstream failed within its answer.")
        if event.name == sse.STRAY:
            return []
        if not isinstance(told, dict):
            raise UpstreamFailed("The upstream sent an event that is no JSON object.")
        events: list[Event] = []
        if not self.started:
            self.started = True
            self._model = _text(told.get("model")) or None
            events.append(Started(self._model))
        if isinstance(told.get("usage"), dict):
            self._usage = {
                name: value for name, value in told["usage"].items() if _counts(value)
            }
        choices = told.get("choices")
        for choice in choices if isinstance(choices, list) else []:
            if isinstance(choice, dict) and choice.get("index", 0) == 0:
                events += self._choice(choice)
        return events

    def _choice(self, choice: dict[str, Any]) -> list[Event]:
        said = choice.get("delta") or choice.get(
            "message"
        )  # a server that does not stream sends the whole message
        events: list[Event] = []
        if isinstance(said, dict):
            events += _content(said.get("content"))
            thought = _text(said.get("reasoning_content")) or _text(
                said.get("reasoning")
            )
            events += [Reasoning(thought)] if thought else []
            events += (
                [Refusal(refusal)] if (refusal := _text(said.get("refusal"))) else []
            )
        if reason := _text(choice.get("finish_reason")):
            if reason.lower() in _GAVE_UP:
                raise UpstreamFailed(
                    f"The upstream gave up within its answer ({reason})."
                )
            self._reason = "content_filter" if reason.lower() in _FILTERED else reason
        return events


def _content(content: Any) -> list[Event]:
    """Text, or a list of parts: of text, or of what the model thinks."""
    if isinstance(content, str):
        return [Delta(content)] if content else []
    events: list[Event] = []
    for part in content if isinstance(content, list) else []:
        if isinstance(part, dict) and (text := _text(part.get("text"))):
            events.append(Delta(text))
        elif isinstance(part, dict) and isinstance(part.get("thinking"), list):
            inner = (
                _text(step.get("text"))
                for step in part["thinking"]
                if isinstance(step, dict)
            )
            events += [Reasoning(text) for text in inner if text]
    return events


def _counts(value: Any) -> bool:
    """A number, or an object of them: what is told of usage, and no more than that."""
    inner = value.values() if isinstance(value, dict) else (value,)
    return all(isinstance(number, (int, float, type(None))) for number in inner)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
