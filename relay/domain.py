"""The values that all other modules share. They know nothing beyond themselves."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from typing import Any, Literal, NamedTuple, TypeAlias

from relay.values import frozen

Status = Literal["whole", "open", "broken", "deleted"]
FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]
KeyState = Literal["mine", "running", "other", "done", "refused", "unknown", "gone"]

SYSTEM_ROLES = ("system", "developer")
TOOL_ROLES = ("tool", "function")  # of messages with a tool's result
TITLE_LENGTH = 60  # characters
MOST_TOKENS = 10**9  # of one ask; who states more is not believed
UNTITLED = "New chat"  # ChatGPT's title of a conversation that has none yet
ROOT = "client-created-root"  # ChatGPT's own name for the parent of a conversation's first message


@frozen
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


@frozen
class Message:
    """One message of a conversation.

    `role`: system, user or assistant; whole dialogues have developer, tool and function too.
    `payloads`: the message as OpenAI's API has it, where text alone cannot carry it (images, tools);
    several where several were sent as one, as the results of tools are.
    """

    role: str
    text: str
    payloads: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)

    @property
    def as_sent(self) -> tuple[Mapping[str, Any], ...]:
        """The message as OpenAI's API has it, also one that is plain text."""
        return self.payloads or ({"role": self.role, "content": self.text},)


def joined(messages: Sequence[Message]) -> Message:
    """Messages that are sent as one; its role is that of the last."""
    if len(messages) == 1:
        return messages[0]
    text = "\n\n".join(message.text for message in messages if message.text)
    payloads = [payload for message in messages for payload in message.as_sent]
    return Message(messages[-1].role, text, tuple(payloads))


class Held:
    """Who waits for it may hold it weakly."""

    __slots__ = ("__weakref__",)


@frozen
class Ask(Held):
    """What a caller wants, parsed: a prompt, and where it belongs.

    `conversation_name`: the caller's own name for a conversation, in place of its id; the first ask
    with it begins one. `timeout`: seconds. `preamble`: the messages that a new conversation begins with;
    with `keep_here` they go with the question into one that goes on. `path`: messages that are stored
    here already, before those of an ask that is not stored.
    `instructions`: a system message for this answer alone. `payloads`: see `Message`. `options`:
    parameters for the model. `keep`: whether the conversation is stored; `keep_here`: in our store,
    wherever the upstream would store it. `echo`: what of the request is stored with the answer, for
    the dialect to show again. `idempotency_key`: with one, the ask happens once, however often it is
    sent to its `route`. `ignored`: fields of the caller's that have no effect. `check`: raises
    RelayError for an answer that ended in good order and that the dialect cannot print as one.
    """

    prompt: str = field(repr=False)
    caller: Caller
    conversation_id: str | None = None
    conversation_name: str | None = None
    parent_id: str | None = None
    preamble: tuple[Message, ...] = field(default=(), repr=False)
    path: tuple[Message, ...] = field(default=(), repr=False)
    model: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    reverse_proxy: str | None = None
    timeout: float | None = None
    payloads: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    instructions: str = field(default="", repr=False)
    keep: bool = True
    keep_here: bool = False
    echo: Mapping[str, Any] | None = field(default=None, repr=False)
    idempotency_key: str | None = None
    route: str = ""
    ignored: tuple[str, ...] = ()
    check: Callable[[Reply], None] = field(default=lambda reply: None, repr=False)

    @property
    def question(self) -> Message:
        if not self.payloads:
            return Message("user", self.prompt)
        roles = {payload.get("role") for payload in self.payloads}
        role = "tool" if roles.intersection(TOOL_ROLES) else "user"
        return Message(role, self.prompt, self.payloads)


class Arrival(NamedTuple):
    """The request that an ask came with. `base_url` gives where its caller reaches this service."""

    request_id: str = ""
    base_url: Callable[[], str] = str


NO_ARRIVAL = Arrival()


@frozen
class Question:
    """What an upstream is sent, before it is encoded.

    `messages`: all of them from the root to the prompt. For an upstream that stores conversations
    itself: only the new ones; then the ids are the upstream's own, and `account` is the one that
    has the conversation. `token`: a credential of the caller's own, to be used instead of ours.
    `may_spend`: whether what else is the operator's may be spent for it.
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
    may_spend: bool = True
    keep: bool = True
    request_id: str = ""


@frozen
class Started:
    """The upstream accepted the question. An upstream that stores conversations gives its own id.

    `answer_id`: under which the answer will be stored here; "" where it will not. `question_id`:
    under which the question is stored, here or there. The turn adds both.
    """

    model: str | None = None
    conversation_id: str | None = None
    account: str | None = None
    answer_id: str = ""
    question_id: str = ""


@frozen
class Restarted:
    """The text so far is void (it was no answer, or was edited upstream): it begins again."""


@frozen
class Delta:
    """A piece of the answer: only what is new, never the text so far."""

    text: str


@frozen
class RemoteFile:
    """A file that an upstream has. `pointer`: its own name for it; `message_id`: of the message that shows it."""

    pointer: str
    message_id: str = ""


@frozen
class FileLink:
    """Here the answer's text has the address of a file. It becomes a Delta before it reaches a turn."""

    file: RemoteFile


@frozen
class Reasoning:
    """A piece of the model's reasoning, which is no part of the answer."""

    text: str


@frozen
class Refusal:
    """A piece of the model's refusal, which stands in the place of an answer."""

    text: str


@frozen
class ToolCall:
    """A piece of a call that the model asks for.

    The first piece of each `index` has the id and the name; `arguments` of all its pieces join to JSON.
    """

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""

    @property
    def as_sent(self) -> dict[str, Any]:
        """The call as OpenAI's API has it in a message."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


def joined_call(pieces: Sequence[ToolCall]) -> ToolCall:
    """The whole call that pieces of one index make."""
    first = pieces[0]
    arguments = "".join(piece.arguments for piece in pieces)
    return ToolCall(first.index, first.id, first.name, arguments)


@frozen
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
    "Started | Restarted | Delta | FileLink | Reasoning | Refusal | ToolCall | Finished"
)


@frozen
class Remarks:
    """What a caller is told beside an answer.

    `dropped`: messages of a long conversation that were not sent. `ignored`: parameters that had no
    effect. `replayed`: the answer is that of an earlier request with the same idempotency key.
    """

    dropped: int = 0
    ignored: tuple[str, ...] = ()
    replayed: bool = False


@frozen
class Tokens:
    """What an ask used. `estimated`: the upstream stated no counts."""

    prompt: int = 0
    completion: int = 0
    estimated: bool = False

    @classmethod
    def stated(cls, prompt: object, completion: object) -> Tokens | None:
        """What an upstream states; None where that is no count of tokens."""
        if type(prompt) is not int or type(completion) is not int:
            return None
        is_count = 0 <= prompt <= MOST_TOKENS and 0 <= completion <= MOST_TOKENS
        return cls(prompt, completion) if is_count else None


class AnswerSize(NamedTuple):
    """The estimated tokens of an answer: of its reasoning, and of all else."""

    reasoning: int
    answer: int


class Findings(NamedTuple):
    """What an answer says of itself, as far as it came.

    `model`: the one that answered, where that is known. `has_failed`: the answer itself tells of a failure.
    """

    model: str | None
    tokens: Tokens
    has_failed: bool


@frozen
class Reply:
    """A whole answer. Both ids are empty where the conversation is not stored.

    `usage`: see `Finished`. `tokens`: what this request used; None where it is an earlier one's answer.
    `size`: what its texts cost; None: it has them all, so that they can be counted.
    """

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
    tokens: Tokens | None = None
    size: AnswerSize | None = None

    @property
    def as_sent(self) -> dict[str, Any]:
        """The answer as OpenAI's API has it in a dialogue: what it does not say is left out."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text or None}
        if self.refusal:
            message["refusal"] = self.refusal
        if self.tool_calls:
            message["tool_calls"] = [call.as_sent for call in self.tool_calls]
        return message


@frozen
class IdempotencyKey:
    """A key and its owner. `fingerprint` differs for another ask under the same key."""

    owner: str
    key: str
    fingerprint: str


@frozen
class Model:
    """A model that an upstream offers. `id`: what the field `model` of an ask takes."""

    id: str
    title: str
    upstream: str


@frozen
class KeyRecord:
    """What is known of an ask with an idempotency key.

    `mine`: this process is to ask it; `running`: another request does; `other`: the key belongs to
    another ask; the rest have ended, and `outcome` says how.
    """

    state: KeyState
    outcome: Mapping[str, Any] = field(default_factory=dict, repr=False)


@frozen
class Node:
    """A stored message in its tree. `parent`: None for the root's children. Times: seconds since 1970.

    `payloads`: see `Message`. `usage` and `echo`: of an answer, see `Finished` and `Ask`. Of a
    deleted message only its place in the tree is left.
    """

    id: str
    parent: str | None
    role: str
    text: str = field(repr=False)
    status: Status
    created: float
    model: str | None = None
    finish_reason: str | None = None
    reasoning: str | None = field(default=None, repr=False)
    payloads: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    usage: Mapping[str, Any] | None = None
    echo: Mapping[str, Any] | None = field(default=None, repr=False)


@frozen
class StoredTurn:
    """A stored answer, and the question that it answers.

    `preamble`: the messages that the first question of a conversation was sent with.
    """

    conversation_id: str
    question: Node
    answer: Node
    preamble: tuple[Node, ...] = field(default=(), repr=False)


@frozen
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


@frozen
class UsageQuery:
    """Which usage is asked for. `by`: of UsageRow's first four fields, those that are told apart.

    `first` and `last`: days, as in 2026-12-31, UTC, both included.
    """

    by: tuple[str, ...]
    first: str
    last: str


class UsageRow(NamedTuple):
    """What was used of an upstream's model by the holder of a key, on a day. "" in a field: not told apart.

    `asks`: all of them, `errors` and `cancelled` among them. `estimated_tokens`: how many of the tokens of either
    kind are an estimate.
    """

    day: str = ""
    key: str = ""
    upstream: str = ""
    model: str = ""
    asks: int = 0
    errors: int = 0
    cancelled: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    estimated_tokens: int = 0


def title_of(prompt: str) -> str:
    """The prompt's first words, on one line."""
    line = " ".join(prompt[: 10 * TITLE_LENGTH].split()) or UNTITLED
    if len(line) <= TITLE_LENGTH:
        return line
    return line[: TITLE_LENGTH - 1].rstrip() + "…"
