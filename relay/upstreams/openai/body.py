"""Requests as OpenAI-compatible APIs take them: the address, the headers, the body. Pure.

Source: OpenAI's chat/completions reference, and what vLLM, Ollama, llama.cpp, LiteLLM and OpenRouter make of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from relay.domain import Message, Question
from relay.errors import BadRequest

DEFAULT_BASE = "https://api.openai.com/v1"
USER_AGENT = "chatgpt-webapi"
#: no parameter of a caller's replaces these, or tells a gateway where to go and with whose key
OURS = (
    *(
        "model",
        "messages",
        "stream",
        "api_base",
        "base_url",
        "api_key",
        "api_version",
        "custom_llm_provider",
    ),
    *("extra_headers", "extra_body", "headers", "user_config"),
)


@dataclass(frozen=True)
class Extras:
    """What the operator adds to every request; a body field that is null there is left out."""

    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: Mapping[str, Any] = field(default_factory=dict)


def base(address: str) -> str:
    """What paths are appended to: an origin gets /v1, a path stays as it is, a full address is cut before its route."""
    below = address.rstrip("/")
    if below.endswith("/chat/completions"):
        return below.removesuffix("/chat/completions")
    return below if below.count("/") > 2 else f"{below}/v1"


def headers(
    token: str, extras: Extras, request_id: str, *, own: bool
) -> dict[str, str]:
    """The headers of a request. `own`: the token is the caller's, so nothing that is the operator's goes with it."""
    if any(ord(character) < 33 or ord(character) > 126 for character in token):
        raise BadRequest("The API key holds characters that no key has.")
    told = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity"}
    if token:
        told["Authorization"] = f"Bearer {token}"
    if request_id:
        told["X-Request-Id"] = request_id
    names = {name.lower(): name for name in told}
    for name, value in () if own else extras.headers.items():
        told[names.get(name.lower(), name)] = value
    return told


def completion(question: Question, model: str, extras: Extras) -> bytes:
    """The body that asks a question. It is always streamed, so that silence is noticed."""
    options = {
        name: value for name, value in question.options.items() if name not in OURS
    }
    if options.get("n") not in (None, 1):
        raise BadRequest("The field n must be 1: one question has one answer here.")
    body = {
        "model": model,
        "messages": [_message(message) for message in question.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        **options,
        **extras.body,
    }
    try:
        return orjson.dumps(
            {name: value for name, value in body.items() if value is not None}
        )
    except orjson.JSONEncodeError:
        raise BadRequest("The question holds what cannot be written as JSON.") from None


def _message(message: Message) -> Mapping[str, Any]:
    return message.given or {"role": message.role, "content": message.text}
