"""Chat completions: what a request asks, and its answer as a whole object or as chunks. Pure.

Source: OpenAI's ChatCompletion and ChatCompletionChunk. Beyond them: `reasoning_content`, as DeepSeek and vLLM have it,
and `conversation_id` and `message_id`, as chat2api has them. A client takes a stream that merely ends for a whole
answer, so a failed one ends with an event that has an `error`, and never with `[DONE]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import orjson

from relay import sse
from relay.dialects import fields as read
from relay.dialects.bodies import Fields
from relay.dialects.ndjson import keeps
from relay.dialects.openai import errors, parameters
from relay.dialects.openai.messages import NOT_SENT, ONLY_FILES, dialogue_of
from relay.dialects.openai.usage import prompt_tokens_of, usage_of
from relay.domain import (
    Ask,
    Caller,
    Delta,
    Event,
    FinishReason,
    Reasoning,
    Refusal,
    Reply,
    Restarted,
    Started,
    ToolCall,
)
from relay.errors import RelayError
from relay.ids import random_digits

__all__ = ["Chunks", "ask", "completion", "keeps"]

ROUTE = "chat_completions"
PREAMBLE_FIELD = "messages[:-1]"  # the messages before the question, as a name
_WHOLE = "chat.completion"
_CHUNK = "chat.completion.chunk"
_NO_DELTA = b'"delta":{}'  # in a text of JSON the quotes would be escaped


def ask(
    payload: Fields,
    caller: Caller,
    key: str | None,
    *,
    accepts_options: bool,
    accepts_files: bool = False,
    keeps_unasked: bool = False,
) -> Ask:
    """The ask that a request makes: its last message is the question, those before it begin a new conversation.

    `key`: the header Idempotency-Key. `accepts_options`: whether the upstream takes parameters of
    OpenAI's API; else the options are those that the answer is cut by. `accepts_files`: whether it
    takes images and files of the user's also then. `keeps_unasked`: see `keeps`. Raises BadRequest,
    or Unsupported for what would make the answer another one than was asked for.
    """
    parameters.check_form(payload)
    if not accepts_options:
        parameters.check_abilities(payload)
    parameters.includes_usage(payload)  # raises for a wrong type
    why = ONLY_FILES if accepts_files else NOT_SENT
    dialogue = dialogue_of(
        payload, "" if accepts_options else why, accepts_files=accepts_files
    )
    conversation_id = read.conversation_of(payload)
    preamble = dialogue.preamble
    ignored = dialogue.ignored
    if conversation_id and preamble:
        preamble = ()
        ignored += (PREAMBLE_FIELD,)
    ignored += parameters.ignored_of(payload, accepts_options=accepts_options)
    read_options = parameters.options_of if accepts_options else parameters.limits_of
    return Ask(
        prompt=dialogue.question.text,
        payloads=dialogue.question.payloads,
        caller=caller,
        conversation_id=conversation_id,
        conversation_name=read.conversation_name_of(payload),
        parent_id=read.parent_of(payload),
        preamble=preamble,
        model=read.text_of(payload, "model") or None,
        options=read_options(payload),
        keep=keeps(payload, keeps_unasked),
        idempotency_key=read.key_of(payload, key),
        route=ROUTE,
        ignored=ignored,
    )


def completion(reply: Reply, ask: Ask, *, created: int) -> dict[str, Any]:
    """A whole answer as the object `chat.completion`. `created`: seconds since 1970."""
    identifier = _new_id()
    choice = {
        "index": 0,
        "message": _message(reply, identifier),
        "logprobs": None,
        "finish_reason": reply.finish_reason,
    }
    return {
        "id": identifier,
        "object": _WHOLE,
        "created": created,
        "model": reply.model or ask.model or "",
        "choices": [choice],
        "usage": usage_of(reply, prompt_tokens_of(ask)),
        "service_tier": "default",
        "system_fingerprint": None,
        **_place(reply),
    }


def _message(reply: Reply, identifier: str) -> dict[str, Any]:
    """The message of a whole answer. Its content is null where it has no text and is something else."""
    is_something_else = reply.refusal or reply.tool_calls
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if is_something_else and not reply.text else reply.text,
        "refusal": reply.refusal or None,
        "annotations": [],
    }
    if reply.reasoning:
        message["reasoning_content"] = reply.reasoning
    if reply.tool_calls:
        message["tool_calls"] = [_call(call, identifier) for call in reply.tool_calls]
    return message


def _call(call: ToolCall, identifier: str) -> dict[str, Any]:
    """A call, or the first piece of one. One without an id gets one: its result must name it."""
    name = call.id or f"call_{identifier[-24:]}_{call.index}"
    return replace(call, id=name).as_sent


class Chunks:
    """A stream of `chat.completion.chunk`: role, deltas, finish reason, usage where it is asked for, `[DONE]`.

    Each has the same id, `created` (seconds since 1970) and model: the upstream's, if it names one
    when it starts, else `model`. Text that became void stays, with an empty line after it.
    """

    keep_alive = sse.KEEP_ALIVE
    needs_text = False

    def __init__(
        self, model: str, include_usage: bool, prompt_tokens: int, *, created: int
    ) -> None:
        self._id = _new_id()
        self._created = created
        self._model = model
        self._include_usage = include_usage
        self._prompt_tokens = prompt_tokens
        self._has_begun = False
        self._around_delta: list[bytes] = []  # what all chunks but the last have alike
        # while there are none, a third of a set's size
        self._calls: dict[int, None] = {}

    @classmethod
    def of(cls, payload: Fields, ask: Ask, *, created: int) -> Chunks:
        """The printer for a request and the ask that it made. Raises BadRequest."""
        include_usage = parameters.includes_usage(payload)
        tokens = prompt_tokens_of(ask)
        return cls(ask.model or "", include_usage, tokens, created=created)

    def print(self, batch: list[Event]) -> bytes:
        for event in batch:
            if isinstance(event, Started) and not self._has_begun:
                self._model = event.model or self._model
        chunks = [self._begin()]
        chunks += [self._delta(delta) for delta in self._deltas(batch)]
        return b"".join(chunks)

    def end(self, reply: Reply) -> bytes:
        place = _place(reply)
        chunks = self._begin() + self._choice(reply.finish_reason, place)
        if self._include_usage:
            usage = usage_of(reply, self._prompt_tokens)
            chunks += self._chunk([], usage, place)
        return chunks + sse.event(b"[DONE]")

    def fail(self, error: RelayError) -> bytes:
        return sse.event(orjson.dumps(errors.body(error)))

    def _begin(self) -> bytes:
        """The chunk with the role, once."""
        if self._has_begun:
            return b""
        self._has_begun = True
        return self._delta({"role": "assistant", "content": "", "refusal": None})

    def _deltas(self, batch: list[Event]) -> list[dict[str, Any]]:
        """The deltas of the events, in their order; texts of one kind that follow each other are one."""
        deltas: list[dict[str, Any]] = []
        last_name = ""
        for event in batch:
            if isinstance(event, ToolCall):
                deltas.append({"tool_calls": [self._call_piece(event)]})
                last_name = ""
                continue
            name, text = _named_text(event)
            if not text:
                continue
            if name == last_name:
                deltas[-1][name] += text
            else:
                deltas.append({name: text})
                last_name = name
        return deltas

    def _call_piece(self, call: ToolCall) -> dict[str, Any]:
        if call.index in self._calls:
            return {"index": call.index, "function": {"arguments": call.arguments}}
        self._calls[call.index] = None
        return {"index": call.index, **_call(call, self._id)}

    def _delta(self, delta: dict[str, Any]) -> bytes:
        """A chunk within the answer."""
        if not self._around_delta:
            self._around_delta = self._choice(None, {}).split(_NO_DELTA)
        before, after = self._around_delta
        return b'%b"delta":%b%b' % (before, orjson.dumps(delta), after)

    def _choice(
        self, finish_reason: FinishReason | None, place: Mapping[str, str]
    ) -> bytes:
        """A chunk with the one choice, to which nothing is added."""
        choice = {
            "index": 0,
            "delta": {},
            "logprobs": None,
            "finish_reason": finish_reason,
        }
        return self._chunk([choice], None, place)

    def _chunk(
        self,
        choices: list[dict[str, Any]],
        usage: dict[str, Any] | None,
        place: Mapping[str, str],
    ) -> bytes:
        chunk: dict[str, Any] = {
            "id": self._id,
            "object": _CHUNK,
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }
        if self._include_usage:
            chunk["usage"] = usage
        return sse.event(orjson.dumps({**chunk, **place}))


def _named_text(event: Event) -> tuple[str, str]:
    """The field of a delta that an event adds to, and its text; "" where it adds none."""
    match event:
        case Delta(text):
            return "content", text
        case Restarted():
            return "content", "\n\n"
        case Reasoning(text):
            return "reasoning_content", text
        case Refusal(text):
            return "refusal", text
    return "", ""


def _new_id() -> str:
    return f"chatcmpl-{random_digits()}"


def _place(reply: Reply) -> dict[str, str]:
    """Where to go on, if the conversation is kept."""
    ids = {"conversation_id": reply.conversation_id, "message_id": reply.message_id}
    return {name: value for name, value in ids.items() if value}
