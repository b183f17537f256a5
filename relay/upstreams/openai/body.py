"""Requests as OpenAI-compatible APIs take them: the address, the headers, the body. Pure.

Source: OpenAI's chat/completions reference, and what vLLM, Ollama, llama.cpp, LiteLLM and OpenRouter make of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import orjson

from relay.accounts import can_be_sent
from relay.attachments import without_names
from relay.domain import Question
from relay.errors import BadRequest
from relay.upstreams.wording import write_json
from relay.values import frozen

DEFAULT_BASE = "https://api.openai.com/v1"
OPENAI_HOST = "api.openai.com"
USER_AGENT = "chatgpt-webapi"
#: no parameter of a caller's replaces these, or tells a gateway where to go and with whose key
PROTECTED_FIELDS = (
    "model",
    "messages",
    "stream",
    "api_base",
    "base_url",
    "api_key",
    "api_version",
    "custom_llm_provider",
    "extra_headers",
    "extra_body",
    "headers",
    "user_config",
)


@frozen
class Extras:
    """What the operator adds to every request; a body field that is null there is left out."""

    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: Mapping[str, Any] = field(default_factory=dict)


def base(address: str) -> str:
    """What paths are appended to: an origin gets /v1, a path stays as it is, a full address is cut before its route."""
    prefix = address.rstrip("/")
    if prefix.endswith("/chat/completions"):
        return prefix.removesuffix("/chat/completions")
    return prefix if prefix.count("/") > 2 else f"{prefix}/v1"


@lru_cache(maxsize=10)
def is_openai(base: str) -> bool:
    """Whether this is OpenAI itself, which checks every key and takes the role `developer`; others may not."""
    return urlsplit(base).hostname == OPENAI_HOST


def headers(
    token: str, extras: Extras, request_id: str, *, own: bool
) -> dict[str, str]:
    """The headers of a request. `own`: the token is the caller's, so nothing that is the operator's goes with it.

    Raises BadRequest for a token that no header can carry.
    """
    if not can_be_sent(token):
        raise BadRequest("The API key holds characters that no key has.")
    headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    if request_id:
        headers["X-Request-Id"] = request_id
    if own or not extras.headers:
        return headers
    names = {name.lower(): name for name in headers}
    for name, value in extras.headers.items():
        headers[names.get(name.lower(), name)] = value
    return headers


def completion_body(
    question: Question, model: str, extras: Extras, *, developer_role: bool
) -> bytes:
    """The body that asks a question. It is always streamed, so that silence is noticed.

    `developer_role`: whether messages of the role `developer` are sent as such; else as `system`.
    Raises BadRequest for options and messages that cannot be sent.
    """
    options = {
        name: value
        for name, value in question.options.items()
        if name not in PROTECTED_FIELDS
    }
    if options.get("n") not in (None, 1):
        raise BadRequest("The field n must be 1: one question has one answer here.")
    messages = [
        without_names(payload)
        for message in question.messages
        for payload in message.as_sent
    ]
    if not developer_role:
        messages = [_as_system(message) for message in messages]
    body = {
        "model": model,
        "messages": messages,
        "stream": True,
        "stream_options": {"include_usage": True},
        **options,
        **extras.body,
    }
    try:
        return write_json(
            {name: value for name, value in body.items() if value is not None}
        )
    except orjson.JSONEncodeError:
        raise BadRequest("The question holds what cannot be written as JSON.") from None


def _as_system(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """A message of a developer's as one of the system; others as they are."""
    if message.get("role") != "developer":
        return message
    return {**message, "role": "system"}
