"""Requests as ChatGPT's web backend takes them: the address, the headers, the body. Pure.

Source: protocol notes, conversation request and base-URL conventions. The body is one that proxies of 2023 and
backends of 2025 both take; what else one wants comes from CONVERSATION_PATH, CHATGPT_HEADERS and CHATGPT_BODY.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from typing import Any
from urllib.parse import quote

from relay.accounts import Account, can_be_sent
from relay.domain import Question
from relay.errors import BadRequest
from relay.ids import new_id
from relay.upstreams.addresses import parse_address
from relay.upstreams.chatgpt_web.models import ModelChoice
from relay.upstreams.wording import write_json
from relay.values import frozen

USER_AGENT = "chatgpt-webapi"
_ROLES = {"developer": "system"}
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
#: what of the operator's extra headers may go with a caller's own token: none that could name or open an account
_HARMLESS = ("user-agent", "accept-language", "oai-language", "origin", "referer")


@frozen
class Place:
    """Where a backend is: `base` is what its paths are appended to, `path` that of a new turn."""

    base: str
    path: str = "conversation"

    @property
    def turn(self) -> str:
        return f"{self.base}/{self.path}"

    @property
    def anonymous(self) -> Place | None:
        """Where ChatGPT is asked without an account, beside `backend-api`; None where it is not known."""
        prefix, _, last = self.base.rpartition("/")
        if last == "backend-anon":
            return self
        if last != "backend-api":
            return None
        return replace(self, base=f"{prefix}/backend-anon")

    def of(self, conversation_id: str) -> str:
        """The address of one conversation. Ids are opaque, but not every character may stand in a path."""
        return f"{self.base}/conversation/{conversation_path(conversation_id)}"


def conversation_path(conversation_id: str) -> str:
    if not _ID.fullmatch(conversation_id):
        raise BadRequest(
            "That is no conversation id. Send it as an earlier reply gave it."
        )
    return quote(conversation_id, safe="")


def place(address: str, path: str = "conversation") -> Place:
    """What an address means: an origin, a prefix (`.../api/`), or a full conversation URL. Raises ValueError."""
    url = parse_address(address.strip())
    prefix = url.path.rstrip("/")
    for ending in ("/f/conversation", "/conversation"):
        if not prefix.endswith(ending):
            continue
        prefix = prefix.removesuffix(ending)
        if path == "conversation":
            path = ending[1:]
        break
    origin = f"{url.scheme}://{url.netloc}"
    return Place(origin + (prefix or "/backend-api"), path.strip("/"))


@frozen
class Extras:
    """What the operator adds to every request. `user_agents`: each account has one of them, or our own name."""

    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: Mapping[str, Any] = field(default_factory=dict)
    user_agents: tuple[str, ...] = ()

    def user_agent(self, account: str) -> str:
        """That of the account of this name, the same for ever."""
        if not self.user_agents:
            return USER_AGENT
        digest = hashlib.sha256(account.encode("utf-8", "surrogateescape")).digest()
        return self.user_agents[
            int.from_bytes(digest[:8], "big") % len(self.user_agents)
        ]


@frozen
class Content:
    """What a message says, as the backend has it."""

    content: Mapping[str, Any]
    metadata: Mapping[str, Any]


def text_content(text: str) -> Content:
    return Content({"content_type": "text", "parts": [text]}, {})


def headers(
    account: Account,
    extras: Extras,
    request_id: str,
    *,
    own: bool,
    stream: bool = False,
) -> dict[str, str]:
    """The headers of a request. `own`: the token is the caller's, so nothing that is the operator's goes with it.

    Raises BadRequest for a token that no header can carry.
    """
    headers = {
        "User-Agent": extras.user_agent(account.name),
        "Accept": "text/event-stream" if stream else "application/json",
        "Accept-Encoding": "identity",
        **_account_headers(account),
    }
    if request_id:
        headers["X-Request-Id"] = request_id
    if not extras.headers:
        return headers
    names = {name.lower(): name for name in headers}
    for name, value in extras.headers.items():
        if not own or name.lower() in _HARMLESS:
            headers[names.get(name.lower(), name)] = value
    return headers


def _account_headers(account: Account) -> dict[str, str]:
    """What says whose a request is; nothing for who has no account."""
    if not can_be_sent(account.token):
        raise BadRequest("The access token holds characters that no token has.")
    headers = {}
    if account.token:
        headers["Authorization"] = f"Bearer {account.token}"
    if account.workspace:
        headers["Chatgpt-Account-Id"] = account.workspace
    return headers


def question_body(
    question: Question,
    choice: ModelChoice,
    parent_id: str | None,
    extras: Extras,
    contents: Sequence[Content] = (),
) -> bytes:
    """The body that asks a question. `parent_id`: the message that it follows; None begins a conversation.

    `choice`: what the question's model means. `contents`: what each of its messages says; without them, their texts.
    """
    contents = contents or [text_content(each.text) for each in question.messages]
    *context, prompt = contents
    messages = [
        _message(new_id(), _ROLES.get(message.role, message.role), content)
        for message, content in zip(question.messages, context, strict=False)
    ]
    messages.append(_message(question.question_id, "user", prompt))
    body = {
        "action": "next",
        "messages": messages,
        "parent_message_id": parent_id or new_id(),
        **_common_fields(question, choice),
    }
    if question.conversation_id:
        body["conversation_id"] = question.conversation_id
    return write_json(body | dict(extras.body))


def continuation_body(
    question: Question,
    choice: ModelChoice,
    conversation_id: str,
    parent_id: str,
    extras: Extras,
) -> bytes:
    """The body that asks for the rest of an answer that stopped for its length; `parent_id` is that answer."""
    body = {
        "action": "continue",
        "conversation_id": conversation_id,
        "parent_message_id": parent_id,
        **_common_fields(question, choice),
    }
    return write_json(body | dict(extras.body))


def _common_fields(question: Question, choice: ModelChoice) -> dict[str, Any]:
    fields = {
        "model": choice.slug,
        "timezone_offset_min": 0,
        "history_and_training_disabled": not question.keep,
        "supported_encodings": ["v1"],
    }
    if choice.gpt:
        mode = {"kind": "gizmo_interaction", "gizmo_id": choice.gpt}
        fields["conversation_mode"] = mode
    return fields


def _message(message_id: str, role: str, content: Content) -> dict[str, Any]:
    return {
        "id": message_id,
        "author": {"role": role},
        "content": content.content,
        "metadata": content.metadata,
    }
