"""Ways to a model: what each of them must be able to do.

`Chat` opens a turn with `Upstream.ask`; a `Delivery` reads its `Stream` and pushes the bytes into
the turn, which has the `Decoder`. Where an upstream stores conversations itself, `History` reads
and changes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import field
from typing import Any, Protocol

from relay.accounts import AccessTokens, Account, Attempts, Resting, RestNotes
from relay.domain import Caller, Event, Model, Question, RemoteFile
from relay.errors import UpstreamError
from relay.server import Run, in_place
from relay.transports import Call, Headers, Transport
from relay.upstreams.http import WholeResponse
from relay.values import frozen


@frozen
class Resources:
    """What upstreams are built with, beside the settings.

    `run`: runs slices of a computation where they stop nobody else. `tokens`: the access tokens of
    accounts with a refresh token; without it none is taken. `stored`: the accounts that the database
    has now. `notes`: is told who rests.
    """

    transport: Transport
    run: Run = field(default_factory=in_place)
    tokens: AccessTokens | None = None
    stored: Callable[[], Sequence[Account]] = tuple
    notes: RestNotes | None = None


class Stream(Protocol):
    """Bytes on their way from an upstream.

    Owned by the thread that reads; only `interrupt` may be called from others. Raises only
    RelayError. `dispatched`: the question itself was sent; until then a model may be looked up,
    or an account waited for. `awaited`: the descriptor that is readable as soon as `read` has more
    to give, and needs nothing else for that; None where there is none such.
    """

    @property
    def dispatched(self) -> bool: ...

    @property
    def awaited(self) -> int | None: ...

    def read(self, seconds: float) -> bytes | None:
        """What has arrived, at the latest after `seconds`; b"" at the end, None if nothing came.

        The first call sends. May block for `seconds`, and beyond them only while it connects.
        """

    def interrupt(self) -> None:
        """Make a read that is waiting return or raise at once, and every later one too."""

    def close(self) -> None:
        """Let the connection go. The last call; may come twice, at any time."""


class Decoder(Protocol):
    """An upstream's bytes as events: Started, any number of pieces, Finished. Pure: no I/O, no clock.

    `started`: the upstream said that it accepted the question. `complete`: the answer's text is
    complete, only the stream's trailer is missing. `message_id`: the upstream's own id of the
    answer that comes, where it has one and has named it.
    """

    @property
    def started(self) -> bool: ...

    @property
    def complete(self) -> bool: ...

    @property
    def message_id(self) -> str | None: ...

    def feed(self, piece: bytes) -> Iterator[Event]:
        """The events that this piece completes, lazily: those before an error come before it is raised.

        Called for each piece in its order. Raises UpstreamError for a failure that the stream
        tells of, and for what cannot be read.
        """

    def end(self) -> Iterable[Event]:
        """The bytes are over: what was still held back. Raises UpstreamCut where the answer is not whole."""


@frozen
class FoundFile:
    """A file at an address that an upstream gave. `name`: what it is called; "" where nothing says so."""

    call: Call = field(repr=False)
    transport: Transport
    name: str = ""


class History(Protocol):
    """Conversations that an upstream stores. Blocks while it asks; raises only RelayError."""

    @property
    def has_accounts(self) -> bool:
        """Whether the server has accounts of its own there."""

    def recognizes(self, token: str) -> bool: ...

    def list(self, caller: Caller, most: int) -> list[dict[str, Any]]:
        """The newest conversations of all accounts in reach, up to `most` of each."""

    def read(
        self, caller: Caller, conversation_id: str, account: str | None
    ) -> dict[str, Any]:
        """One conversation as ChatGPT's API has it. Raises NoConversation."""

    def change(
        self,
        caller: Caller,
        conversation_id: str,
        account: str | None,
        changes: dict[str, Any],
    ) -> None:
        """Rename (`title`) or delete (`is_visible`: false). Raises NoConversation."""

    def make_title(
        self, caller: Caller, conversation_id: str, account: str | None
    ) -> str:
        """Let the upstream find a title; the title. Raises NoConversation."""

    def find_file(
        self,
        caller: Caller,
        conversation_id: str,
        account: str | None,
        file: RemoteFile,
    ) -> FoundFile:
        """Where a file of a conversation is just now. Raises NoFile."""


@frozen
class Forwarded:
    """A request that goes to an upstream's API as it is.

    `path`: below the API's base, with its query. `headers`: the caller's. `body`: as in `Call`.
    `model`: what limits are per. `token`: the caller's own credential, to be used instead of ours.
    `account`: the one of ours that has what is asked for, where that is known.
    """

    method: str
    path: str
    headers: Headers = field(repr=False)
    body: bytes | Iterable[bytes] = field(default=b"", repr=False)
    length: int | None = None
    model: str = ""
    token: str | None = field(default=None, repr=False)
    request_id: str = ""
    account: str | None = None

    @property
    def is_repeatable(self) -> bool:
        """Whether it can be sent once more, with another account."""
        return isinstance(self.body, bytes)


class Forwarder(Protocol):
    """An upstream's API as it is. Pure, but for what its accounts remember."""

    transport: Transport

    def attempts(self, request: Forwarded) -> Attempts:
        """The accounts that may be used."""

    def call(self, request: Forwarded, account: Account) -> Call:
        """The request with an account's credential, and without what is between us and the caller alone.

        Raises BadRequest for what cannot be sent.
        """

    def failure(self, response: WholeResponse, request: Forwarded) -> UpstreamError:
        """The failure that a response means."""

    def passes(self, name: str) -> bool:
        """Whether a header of an answer (its name in lower case) goes to the caller, as far as any may."""


class Gateway(Forwarder, Protocol):
    """ChatGPT's own API as it is."""

    @property
    def accounts(self) -> int:
        """How many accounts the server has of its own."""

    def decoder(self, conversation_id: str | None, known: frozenset[str]) -> Decoder:
        """Reads along with the stream of a turn that passes. `known`: ids of messages that are no answer."""


class Upstream(Protocol):
    """A way to a model; shared by all threads.

    `needs_client_key`: it spends what is the server's. `accepts_caller_tokens`: a caller's own
    credential replaces all of that, and is checked there. `stores_conversations`: under ids of its
    own; then `history` has them. `accepts_options`: parameters for the model, and messages that are
    more than text, have a meaning there. `accepts_files`: images and files of the user's have one, also
    where no options have. `has_responses`: `forwarder` has OpenAI's Responses API
    beside chat completions.
    """

    name: str
    accepts_caller_tokens: bool
    stores_conversations: bool
    accepts_options: bool
    accepts_files: bool
    has_responses: bool

    @property
    def needs_client_key(self) -> bool: ...

    @property
    def history(self) -> History | None: ...

    @property
    def forwarder(self) -> Forwarder | None:
        """Its API, where that is OpenAI's: requests can pass through."""

    @property
    def gateway(self) -> Gateway | None:
        """Its API, where that is ChatGPT's own: requests can pass through."""

    def recognizes(self, token: str) -> bool:
        """Whether a caller's credential has the form of those that this upstream checks."""

    def listed_model(self, name: str) -> str:
        """The name in its list of models that a caller's name means; "" for what stands in no list."""

    def resting(self) -> Sequence[Resting]:
        """The accounts that are not asked for now."""

    def models(self, caller: Caller) -> Sequence[Model]:
        """The models that it offers to this caller, in its own order. Blocks; raises only RelayError."""

    def ask(self, question: Question) -> tuple[Stream, Decoder]:
        """A stream that has sent nothing yet, and the decoder for it. Never blocks.

        Raises RelayError where the question cannot be asked here.
        """
