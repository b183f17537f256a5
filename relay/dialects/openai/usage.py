"""The counts of tokens that go with an answer. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from relay.domain import Ask, Message, Reply
from relay.window import estimate_text, estimate_tokens


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
    counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    if not all(type(count) is int for count in counts):
        return _estimated(reply, prompt_tokens)
    if type(usage.get("total_tokens")) is not int:
        usage["total_tokens"] = usage["prompt_tokens"] + usage["completion_tokens"]
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
    calls = "".join(call.name + call.arguments for call in reply.tool_calls)
    reasoning_tokens = estimate_text(reply.reasoning)
    answer_tokens = estimate_text(reply.text + reply.refusal + calls)
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
