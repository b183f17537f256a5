"""OpenAI's Responses API, translated: what a request asks, and its answer as a `response` object. Pure.

Source: OpenAI's ResponseCreateParams and Response. The request becomes a chat completion; our own store is its memory,
so a response's id is that of a stored answer.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from relay.dialects import fields as read
from relay.dialects.bodies import Fields
from relay.dialects.openai import items, response_parameters
from relay.dialects.openai.messages import dialogue_of
from relay.dialects.openai.usage import prompt_tokens_of, usage_of
from relay.domain import Ask, Caller, Message, Reply, StoredTurn
from relay.errors import BadRequest, RelayError, Unsupported
from relay.ids import random_digits

ROUTE = "responses"
#: finish reason -> why a response is incomplete; the others are complete
INCOMPLETE: dict[str, str] = {
    "length": "max_output_tokens",
    "content_filter": "content_filter",
}
#: what a response shows of its request, and what it shows where the request has none of it
_SHOWN: dict[str, Any] = {
    "background": False,
    "conversation": None,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "service_tier": "default",
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}
#: of what is stored with an answer, what a response shows beside those
_MADE = ("model", "created_at")
#: fields of other routes that say where an ask belongs
_ELSEWHERE = (
    "conversation_id",
    "conversationId",
    "parent_id",
    "parent_message_id",
    "parentMessageId",
)
_FAILED = "The answer is not whole: it ended in the error {}."


def previous_of(payload: Fields) -> str | None:
    """The id in `previous_response_id`; None where there is none. Raises BadRequest."""
    return read.text_of(payload, "previous_response_id") or None


def stores(payload: Fields) -> bool:
    """Whether the response is stored: this API's default is that it is. Raises BadRequest."""
    return payload.get("store") is None or read.flag_of(payload, "store")


def ask(
    payload: Fields,
    caller: Caller,
    key: str | None,
    *,
    accepts_options: bool,
    accepts_files: bool = False,
    previous: StoredTurn | None = None,
    path: tuple[Message, ...] = (),
    known: Mapping[str, StoredTurn] | None = None,
    created: int = 0,
) -> Ask:
    """The ask that a request makes.

    `previous`: the answer that it goes on from; `path`: the messages up to it, where the response is
    not to be stored. `known`: the stored answers that its items refer to. Otherwise as for
    `chat.ask`. Raises BadRequest, or Unsupported.
    """
    response_parameters.check(payload, accepts_options=accepts_options)
    keep = stores(payload)
    name = _conversation_name(payload)
    if name and (previous or not keep):
        raise BadRequest(
            "The field conversation goes neither with previous_response_id nor with "
            "store: false."
        )
    messages, ignored = items.messages_of(
        payload.get("input"),
        known or {},
        text_only=not accepts_options,
        accepts_files=accepts_files,
    )
    dialogue = dialogue_of({"messages": messages})
    asked = Ask(
        prompt=dialogue.question.text,
        payloads=dialogue.question.payloads,
        caller=caller,
        conversation_id=previous.conversation_id if previous and keep else None,
        conversation_name=name,
        parent_id=previous.answer.id if previous and keep else None,
        preamble=dialogue.preamble,
        path=path,
        instructions=read.text_of(payload, "instructions"),
        model=read.text_of(payload, "model") or None,
        options=response_parameters.options_of(
            payload, accepts_options=accepts_options
        ),
        keep=keep,
        keep_here=keep,
        idempotency_key=read.key_of(payload, key),
        route=ROUTE,
        ignored=ignored
        + response_parameters.ignored_of(payload, accepts_options=accepts_options),
    )
    return replace(asked, echo=_echo(payload, asked, created))


def _conversation_name(payload: Fields) -> str | None:
    """The caller's name for a conversation, given as text or as the API's object with an id."""
    for name in _ELSEWHERE:
        if payload.get(name):
            raise Unsupported(
                f"A response has no {name}: it goes on with previous_response_id, or "
                "in a conversation.",
                parameter=name,
            )
    value = payload.get("conversation")
    if isinstance(value, Mapping):
        value = value.get("id") or ""  # an error, because whoever sent it counts on it
    return read.conversation_name_of({"conversation": value})


def _echo(payload: Fields, asked: Ask, created: int) -> dict[str, Any]:
    """What the response shows of its request, when it was made, in seconds since 1970, and its estimated tokens."""
    shown = {
        field: payload[field] for field in _SHOWN if payload.get(field) is not None
    }
    if asked.conversation_name is not None:
        shown["conversation"] = {"id": asked.conversation_name}
    return {
        **shown,
        "store": asked.keep,
        "model": asked.model or "",
        "created_at": created,
        "prompt_tokens": prompt_tokens_of(asked),
    }


def whole(reply: Reply, ask: Ask) -> dict[str, Any]:
    """A whole answer as the object `response`. One that is not stored has an id that leads nowhere."""
    key = uuid.UUID(reply.message_id).hex if reply.message_id else random_digits()
    return finished(key, ask.echo or {}, reply)


def stored(turn: StoredTurn) -> dict[str, Any]:
    """A stored answer as the object `response`, however it ended, or while it is made."""
    answer = turn.answer
    key = uuid.UUID(answer.id).hex
    echo = {"created_at": int(answer.created), **(answer.echo or {})}
    if answer.status == "open":
        return in_progress(key, echo, answer.model)
    if answer.status == "broken":
        message = items.assistant_payload(answer)
        output = (
            items.output_items(key, "", message, "incomplete") if answer.text else []
        )
        cause = _FAILED.format(answer.finish_reason or "interrupted")
        error = {"code": "server_error", "message": cause}
        return response(key, echo, answer.model, "failed", output, error=error)
    return finished(key, echo, items.stored_reply(answer))


def in_progress(key: str, echo: Mapping[str, Any], model: str | None) -> dict[str, Any]:
    """A response of which nothing has come yet."""
    return response(key, echo, model, "in_progress", [])


def finished(key: str, echo: Mapping[str, Any], reply: Reply) -> dict[str, Any]:
    """A response that ended in good order. Of an answer to another route the usage may not be known."""
    why = INCOMPLETE.get(reply.finish_reason)
    status = "incomplete" if why else "completed"
    output = items.output_items(key, reply.reasoning, reply.as_sent, status)
    whole = response(key, echo, reply.model, status, output)
    whole["incomplete_details"] = {"reason": why} if why else None
    if reply.usage or "prompt_tokens" in echo:
        whole["usage"] = _usage(usage_of(reply, echo.get("prompt_tokens", 0)))
    return whole


def failed(
    key: str, echo: Mapping[str, Any], model: str | None, error: RelayError
) -> dict[str, Any]:
    """A response that did not end in good order."""
    code = "rate_limit_exceeded" if error.status == 429 else "server_error"
    cause = {"code": code, "message": error.message}
    return response(key, echo, model, "failed", [], error=cause)


def response(
    key: str,
    echo: Mapping[str, Any],
    model: str | None,
    status: str,
    output: list[dict[str, Any]],
    error: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The object `response`. `key`: its id's hexadecimal part. `echo`: see `Ask`."""
    shown = {name: echo[name] for name in (*_SHOWN, *_MADE) if name in echo}
    return {
        **_SHOWN,
        **shown,
        "id": f"resp_{key}",
        "object": "response",
        "status": status,
        "model": model or echo.get("model") or "",
        "output": output,
        "error": error,
        "incomplete_details": None,
        "usage": None,
    }


def _usage(counts: Mapping[str, Any]) -> dict[str, Any]:
    """The counts of a chat completion under their names in this API."""
    prompt = counts.get("prompt_tokens_details") or {}
    completion = counts.get("completion_tokens_details") or {}
    return {
        "input_tokens": counts["prompt_tokens"],
        "input_tokens_details": {
            "cached_tokens": prompt.get("cached_tokens", 0),
            "cache_write_tokens": prompt.get("cache_write_tokens", 0),
        },
        "output_tokens": counts["completion_tokens"],
        "output_tokens_details": {
            "reasoning_tokens": completion.get("reasoning_tokens", 0)
        },
        "total_tokens": counts["total_tokens"],
    }


def input_list(
    turn: StoredTurn, *, order: str, limit: int, after: str
) -> dict[str, Any]:
    """A page of what a stored answer was asked. `order`: asc or desc. `after`: the id of the last known item.

    Raises BadRequest where there is no such item.
    """
    listed = items.input_items(turn)
    if order == "desc":
        listed.reverse()
    ids = [item["id"] for item in listed]
    if after and after not in ids:
        raise BadRequest(
            "There is no item with the id in after: leave it out to begin anew."
        )
    start = ids.index(after) + 1 if after else 0
    page = listed[start : start + limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": start + limit < len(listed),
    }


def deletion(response_id: str) -> dict[str, Any]:
    """What a deletion is answered with."""
    return {"id": response_id, "object": "response", "deleted": True}
