"""The values that everything else speaks of. No behaviour beyond what a value knows of itself."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Role: TypeAlias = str  # system, user, assistant; callers who send whole dialogues know developer, tool and function too
Status = Literal["whole", "open", "broken"]

ROOT = "client-created-root"  # the parent of a conversation's first message, by the name that ChatGPT's pages give it


@dataclass(frozen=True)
class Caller:
    """Who asks. `owner` is whose conversations these are; `token` is a credential of the caller's own, to be spent.

    `claimed`: the owner is only what the token says of itself, which is not certain until an upstream takes it.
    """

    owner: str
    may_spend: bool
    token: str | None = field(default=None, repr=False)
    claimed: bool = False

    @property
    def proven(self) -> str:
        """An owner that is certain: the token itself where its account is not."""
        if not self.claimed or self.token is None:
            return self.owner
        return f"token-{hashlib.sha256(self.token.encode('utf-8', 'surrogateescape')).hexdigest()}"


@dataclass(frozen=True)
class Message:
    """One message on the way from the root of a conversation to its newest one.

    `given` is the message as a caller wrote it for OpenAI's API, where text cannot say all of it (images, tool calls).
    """

    role: Role
    text: str
    given: Mapping[str, Any] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Ask:
    """What a caller wants: a prompt, and where in which conversation it belongs. `timeout` is in seconds.

    `before` is what a new conversation begins with: a system prompt, or all that the caller says was said so far.
    `options` are parameters for the model. What is not to be kept leaves no trace here once it is answered. With a
    `key`, the ask happens once, however often it is sent to its `route`.
    """

    prompt: str = field(repr=False)
    caller: Caller
    conversation_id: str | None = None
    parent_id: str | None = None
    before: tuple[Message, ...] = field(default=(), repr=False)
    model: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    reverse_proxy: str | None = None
    timeout: float | None = None
    given: Mapping[str, Any] | None = field(default=None, repr=False)
    keep: bool = True
    key: str | None = None
    route: str = ""

    @property
    def question(self) -> Message:
        return Message("user", self.prompt, self.given)


@dataclass(frozen=True)
class Question:
    """What an upstream is asked: all messages from the root to the prompt, which is the last of them.

    For an upstream that keeps conversations itself, only what is new stands in `messages`; the ids (its own) say where
    it belongs, and `account` at whose account. `token` is a credential of the caller's own, spent instead of ours.
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
    """The upstream took the question, and says what it can of where: ids are its own, where it keeps conversations."""

    model: str | None = None
    conversation_id: str | None = None
    account: str | None = None


@dataclass(frozen=True)
class Restarted:
    """What came so far was not the answer, or was edited upstream: its text begins anew."""


@dataclass(frozen=True)
class Delta:
    """A piece of the answer: only what is new, never the text so far."""

    text: str


@dataclass(frozen=True)
class Reasoning:
    """A piece of what the model thought before it answered: no part of the answer."""

    text: str


@dataclass(frozen=True)
class Refusal:
    """A piece of the model's refusal: it stands where an answer would."""

    text: str


@dataclass(frozen=True)
class Finished:
    """The answer is whole. `reason` is the field's own finish reason; `message_id` the upstream's id of the answer.

    `model` is the one that answered, where that is known only now; `usage` is what the upstream counted, as it says it.
    """

    reason: str = "stop"
    message_id: str | None = None
    model: str | None = None
    usage: Mapping[str, Any] | None = None


Event: TypeAlias = "Started | Restarted | Delta | Reasoning | Refusal | Finished"


@dataclass(frozen=True)
class Remarks:
    """What is told beside an answer: how many messages of a long conversation were not sent upstream, which parameters
    meant nothing there, and whether the answer is one that was given before."""

    dropped: int = 0
    ignored: tuple[str, ...] = ()
    replayed: bool = False


@dataclass(frozen=True)
class Reply:
    """A whole answer, with the two ids by which the conversation goes on; both are empty where nothing was kept."""

    text: str = field(repr=False)
    conversation_id: str
    message_id: str
    model: str | None = None
    finish_reason: str = "stop"
    reasoning: str = field(default="", repr=False)
    usage: Mapping[str, Any] | None = None
    remarks: Remarks = Remarks()


@dataclass(frozen=True)
class Node:
    """A kept message in its tree. `parent` is None for the root's children; times are seconds since 1970."""

    id: str
    parent: str | None
    role: Role
    text: str = field(repr=False)
    status: Status
    created: float
    model: str | None = None
    finish_reason: str | None = None
    reasoning: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Conversation:
    """A row of the index, and its tree where that was asked for. `newest` is the last whole answer.

    `remote`: its text lives at the upstream, under the same id, at `account`.
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
    nodes: tuple[Node, ...] = field(default=(), repr=False)
