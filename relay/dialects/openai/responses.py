"""OpenAI's Responses API, translated: what a request asks, and its answer as a `response` object. Pure.

Source: OpenAI's ResponseCreateParams and Response. The request becomes a chat completion; our own store is its memory,
so a response's id is that of a stored answer.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from relay.dialects import fields as read
from relay.dialects.bodies import Fields
from relay.dialects.openai import items, response_parameters
from relay.dialects.openai.messages import dialogue_of, joined
from relay.dialects.openai.usage import prompt_tokens_of, usage_of
from relay.domain import Ask, Caller, Message, Reply, StoredTurn
from relay.errors import BadRequest, RelayError

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
        payload.get("input"), known or {}, text_only=not accepts_options
    )
    dialogue = dialogue_of({"messages": messages})
    question, preamble = dialogue.question, dialogue.preamble
    if previous is not None:
        question = joined((*preamble, question))
        preamble = () if keep else path
    return Ask(
        prompt=question.text,
        payloads=question.payloads,
        caller=caller,
        conversation_id=previous.conversation_id if previous and keep else None,
        conversation_name=name,
        parent_id=previous.answer.id if previous and keep else None,
        preamble=preamble,
        instructions=read.text_of(payload, "instructions"),
        model=read.text_of(payload, "model") or None,
        options=response_parameters.options_of(
            payload, accepts_options=accepts_options
        ),
        keep=keep,
        keep_here=keep,
        echo=_echo(payload, name, created),
        idempotency_key=read.key_of(payload, key),
        route=ROUTE,
        ignored=ignored
        + response_parameters.ignored_of(payload, accepts_options=accepts_options),
    )


def _conversation_name(payload: Fields) -> str | None:
    """The caller's name for a conversation, given as text or as the API's object with an id."""
    value = payload.get("conversation")
    if isinstance(value, Mapping):
        value = value.get("id")
    return read.conversation_name_of({"conversation": value})


def _echo(payload: Fields, name: str | None, created: int) -> dict[str, Any]:
    """What the response shows of its request, and when it was made, in seconds since 1970."""
    shown = {
        field: payload[field] for field in _SHOWN if payload.get(field) is not None
    }
    if name is not None:
        shown["conversation"] = {"id": name}
    model = read.text_of(payload, "model")
    return {**shown, "model": model, "created_at": created}


def whole(reply: Reply, ask: Ask) -> dict[str, Any]:
    """A whole answer as the object `response`. One that is not stored has an id that leads nowhere."""
    key = uuid.UUID(reply.message_id).hex if reply.message_id else uuid.uuid4().hex
    message = items.reply_payload(reply)
    output = items.output_items(key, reply.reasoning, message, _status(reply))
    usage = usage_of(reply, prompt_tokens_of(ask))
    return finished(
        key, ask.echo or {}, reply.model, reply.finish_reason, output, usage
    )


def stored(turn: StoredTurn) -> dict[str, Any]:
    """A stored answer as the object `response`, however it ended, or while it is made."""
    answer = turn.answer
    key = uuid.UUID(answer.id).hex
    echo = {"created_at": int(answer.created), **(answer.echo or {})}
    if answer.status == "open":
        return in_progress(key, echo, answer.model)
    message = items.assistant_payload(answer)
    reason = answer.finish_reason or "stop"
    if answer.status == "broken":
        output = (
            items.output_items(key, "", message, "incomplete") if answer.text else []
        )
        error = {"code": "server_error", "message": _FAILED.format(reason)}
        return response(key, echo, answer.model, "failed", output, error=error)
    status = "incomplete" if reason in INCOMPLETE else "completed"
    output = items.output_items(key, answer.reasoning or "", message, status)
    counted = Reply(answer.text, "", "", usage=answer.usage)
    usage = usage_of(counted, 0) if answer.usage else None
    return finished(key, echo, answer.model, reason, output, usage)


def in_progress(key: str, echo: Mapping[str, Any], model: str | None) -> dict[str, Any]:
    """A response of which nothing has come yet."""
    return response(key, echo, model, "in_progress", [])


def finished(
    key: str,
    echo: Mapping[str, Any],
    model: str | None,
    reason: str,
    output: list[dict[str, Any]],
    usage: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """A response that ended in good order. `reason`: why it finished. `usage`: as chat completions have it."""
    why = INCOMPLETE.get(reason)
    whole = response(key, echo, model, "incomplete" if why else "completed", output)
    whole["incomplete_details"] = {"reason": why} if why else None
    whole["usage"] = _usage(usage) if usage else None
    return whole


def failed(
    key: str, echo: Mapping[str, Any], model: str | None, error: RelayError
) -> dict[str, Any]:
    """A response that did not end in good order."""
    code = "rate_limit_exceeded" if error.status == 429 else error.code
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
    return {
        **_SHOWN,
        **echo,
        "id": f"resp_{key}",
        "object": "response",
        "status": status,
        "model": model or echo.get("model") or "",
        "output": output,
        "error": error,
        "incomplete_details": None,
        "usage": None,
    }


def _status(reply: Reply) -> str:
    return "incomplete" if reply.finish_reason in INCOMPLETE else "completed"


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
    """A page of what a stored answer was asked. `order`: asc or desc. `after`: the id of the last known item."""
    listed = items.input_items(turn)
    if order == "desc":
        listed.reverse()
    ids = [item["id"] for item in listed]
    start = ids.index(after) + 1 if after in ids else 0
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
