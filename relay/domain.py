"""The values that all other modules share. They know nothing beyond themselves."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Status = Literal["whole", "open", "broken"]
FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]
KeyState = Literal["mine", "running", "other", "done", "refused", "unknown", "gone"]

SYSTEM_ROLES = ("system", "developer")
ROOT = "client-created-root"  # ChatGPT's own name for the parent of a conversation's first message


@dataclass(frozen=True)
class Caller:
    """Who asks.

    `owner`: whose conversations these are. `may_spend`: whether the server's own credentials may be
    spent. `token`: a credential of the caller's own. `unverified`: the owner is read from a token
    that no upstream has accepted yet. `former_owner`: the name that an older version gave to this
    owner and others of the same workspace; what is stored under it belongs to one of them.
    """

    owner: str
    may_spend: bool
    token: str | None = field(default=None, repr=False)
    unverified: bool = False
    former_owner: str | None = None

    @property
    def verified_owner(self) -> str:
        """An owner that nobody else can claim: the hash of the token while its account is unverified."""
        if not self.unverified or self.token is None:
            return self.owner
        token = self.token.encode("utf-8", "surrogateescape")
        return f"token-{hashlib.sha256(token).hexdigest()}"


@dataclass(frozen=True)
class Message:
    """One message of a conversation.

    `role`: system, user or assistant; whole dialogues have developer, tool and function too.
    `payload`: the message as OpenAI's API has it, where text alone cannot carry it (images, tools).
    """

    role: str
    text: str
    payload: Mapping[str, Any] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Ask:
    """What a caller wants, parsed: a prompt, and where it belongs.

    `conversation_name`: the caller's own name for a conversation, in place of its id; the first ask
    with it begins one. `timeout`: seconds. `preamble`: the messages that a new conversation begins with. `options`:
    parameters for the model. `keep`: whether the conversation is stored. `idempotency_key`: with
    one, the ask happens once, however often it is sent to its `route`. `ignored`: fields of the
    caller's that have no effect. `check`: raises RelayError for an answer that ended in good order
    and that the dialect cannot print as one.
    """

    prompt: str = field(repr=False)
    caller: Caller
    conversation_id: str | None = None
    conversation_name: str | None = None
    parent_id: str | None = None
    preamble: tuple[Message, ...] = field(default=(), repr=False)
    model: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    reverse_proxy: str | None = None
    timeout: float | None = None
    payload: Mapping[str, Any] | None = field(default=None, repr=False)
    keep: bool = True
    idempotency_key: str | None = None
    route: str = ""
    ignored: tuple[str, ...] = ()
    check: Callable[[Reply], None] = field(default=lambda reply: None, repr=False)

    @property
    def question(self) -> Message:
        return Message("user", self.prompt, self.payload)


@dataclass(frozen=True)
class Question:
    """What an upstream is sent, before it is encoded.

    `messages`: all of them from the root to the prompt. For an upstream that stores conversations
    itself: only the new ones; then the ids are the upstream's own, and `account` is the one that
    has the conversation. `token`: a credential of the caller's own, to be used instead of ours.
    """

    messages: tuple[Message, ...] = field(repr=False)
    question_id: str = ""
    conversation_id: str | None = None
    parent_id: str | None = None
    account: str | None = None
    model: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    reverse_proxy: str | None = None
    timeout: float | None = None
    token: str | None = field(default=None, repr=False)
    keep: bool = True
    request_id: str = ""


@dataclass(frozen=True)
class Started:
    """The upstream accepted the question. An upstream that stores conversations gives its own id."""

    model: str | None = None
    conversation_id: str | None = None
    account: str | None = None


@dataclass(frozen=True)
class Restarted:
    """The text so far is void (it was no answer, or was edited upstream): it begins again."""


@dataclass(frozen=True)
class Delta:
    """A piece of the answer: only what is new, never the text so far."""

    text: str


@dataclass(frozen=True)
class Reasoning:
    """A piece of the model's reasoning, which is no part of the answer."""

    text: str


@dataclass(frozen=True)
class Refusal:
    """A piece of the model's refusal, which stands in the place of an answer."""

    text: str


@dataclass(frozen=True)
class ToolCall:
    """A piece of a call that the model asks for.

    The first piece of each `index` has the id and the name; `arguments` of all its pieces join to JSON.
    """

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True)
class Finished:
    """The answer is complete.

    `message_id`: the upstream's id of it. `model`: the one that answered, where it is known only
    now. `usage`: token counts as the upstream gives them.
    """

    reason: FinishReason = "stop"
    message_id: str | None = None
    model: str | None = None
    usage: Mapping[str, Any] | None = None


Event: TypeAlias = (
    "Started | Restarted | Delta | Reasoning | Refusal | ToolCall | Finished"
)


@dataclass(frozen=True)
class Remarks:
    """What a caller is told beside an answer.

    `dropped`: messages of a long conversation that were not sent. `ignored`: parameters that had no
    effect. `replayed`: the answer is that of an earlier request with the same idempotency key.
    """

    dropped: int = 0
    ignored: tuple[str, ...] = ()
    replayed: bool = False


@dataclass(frozen=True)
class Reply:
    """A whole answer. Both ids are empty where the conversation is not stored."""

    text: str = field(repr=False)
    conversation_id: str
    message_id: str
    model: str | None = None
    finish_reason: FinishReason = "stop"
    reasoning: str = field(default="", repr=False)
    refusal: str = field(default="", repr=False)
    tool_calls: tuple[ToolCall, ...] = field(default=(), repr=False)
    usage: Mapping[str, Any] | None = None
    remarks: Remarks = Remarks()


@dataclass(frozen=True)
class IdempotencyKey:
    """A key and its owner. `fingerprint` differs for another ask under the same key."""

    owner: str
    key: str
    fingerprint: str


@dataclass(frozen=True)
class Model:
    """A model that an upstream offers. `id`: what the field `model` of an ask takes."""

    id: str
    title: str
    upstream: str


@dataclass(frozen=True)
class KeyRecord:
    """What is known of an ask with an idempotency key.

    `mine`: this process is to ask it; `running`: another request does; `other`: the key belongs to
    another ask; the rest have ended, and `outcome` says how.
    """

    state: KeyState
    outcome: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Node:
    """A stored message in its tree. `parent`: None for the root's children. Times: seconds since 1970."""

    id: str
    parent: str | None
    role: str
    text: str = field(repr=False)
    status: Status
    created: float
    model: str | None = None
    finish_reason: str | None = None
    reasoning: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Conversation:
    """A row of the index, and its tree where that was asked for.

    `newest`: the id of the last whole answer. `name`: its owner's own, if any. `remote`: its text
    lives at the upstream, under the same id, at `account`.
    """

    id: str
    owner: str
    upstream: str
    account: str | None
    title: str
    newest: str | None
    created: float
    updated: float
    remote: bool = False
    name: str | None = None
    nodes: tuple[Node, ...] = field(default=(), repr=False)
