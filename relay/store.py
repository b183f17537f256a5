"""Conversations, their messages, idempotency keys and leases, kept in a database.

All SQL of the project is in `relay/tables/`, a module for each table, and in `schema`. Each method
of `Store` that writes is one transaction; `expire` is one for each batch.

A transaction that locks several rows does so in one order, so that no two wait for each other:
conversation, its lease, messages, a key's lease, its row.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import field, replace
from typing import Any

from sqlalchemy import Connection, Row, literal, select

from relay import schema
from relay.database import open_database
from relay.domain import (
    SYSTEM_ROLES,
    UNTITLED,
    Conversation,
    IdempotencyKey,
    KeyRecord,
    Message,
    Node,
    Reply,
    StoredTurn,
    title_of,
)
from relay.errors import NoConversation, RelayError, TooLarge
from relay.ids import new_id
from relay.server import Run
from relay.tables import (
    conversations,
    history,
    idempotency,
    leases,
    messages,
    owners,
)
from relay.values import frozen

NOTE_SECONDS = 60.0  # between two notes that an owner asked
MOST_NOTED = 10_000  # owners that are remembered to have been noted
NOTHING = Message("user", "")
LARGEST_CONVERSATION = 64 * 2**20  # as `messages.size_of` counts it: 64 MB of text


@frozen
class TurnRequest:
    """A turn to be opened.

    `is_new`: of a new conversation, which begins with `preamble`; otherwise `parent_id` None means
    the newest answer. `adopt`: a conversation without an index row may go on too, at `upstream`,
    which stores it. With an `idempotency_key`, the turn's end is recorded for it as well. `budget`:
    tokens of history and question that are loaded; 0: all. `deferred`: the question is stored only by
    `Store.accept_turn`. `echo`: see `Ask`. `name`: the owner's name for the conversation, where it is asked by that: a
    new one gets it, and the turn holds a lease of it.
    """

    conversation_id: str
    owner: str
    upstream: str
    question_id: str
    answer_id: str
    question: Message = field(repr=False)
    title: str = field(repr=False)
    is_new: bool = True
    parent_id: str | None = None
    adopt: bool = False
    preamble: tuple[Message, ...] = field(default=(), repr=False)
    idempotency_key: IdempotencyKey | None = None
    budget: int = 0
    deferred: bool = False
    name: str | None = None
    echo: Mapping[str, Any] | None = field(default=None, repr=False)

    @property
    def holder(self) -> str:
        """The holder of the turn's leases."""
        return self.answer_id

    @property
    def size(self) -> int:
        """What the question counts in its conversation's size, with what is stored for the answer to show."""
        return messages.size_of(self.question) + messages.size_of_echo(self.echo)

    @property
    def lease_names(self) -> tuple[str, ...]:
        """The leases that the turn takes: its conversation's, its key's if it has one."""
        if self.idempotency_key is None:
            return self.conversation_leases
        return (*self.conversation_leases, idempotency.key_lease(self.idempotency_key))

    @property
    def conversation_leases(self) -> tuple[str, ...]:
        """The conversation's lease, and that of the name by which it is asked."""
        conversation = conversations.conversation_lease(self.conversation_id)
        if self.name is None:
            return (conversation,)
        return conversation, conversations.name_lease(self.owner, self.name)


@frozen
class OpenedTurn:
    """A turn that holds its conversation's lease; a new one whose question is deferred needs none yet.

    `history`: the messages from the root up to the prompt, without it; `dropped`: how many of them
    do not fit the budget. Of a `remote` conversation, whose text lives at the upstream, it is empty;
    `parent_id` and `account` say where the question belongs, as far as is known, and `indexed`
    whether the index has a row of it. Of a deferred question, `parent_id` is the message that it
    follows. `is_leased`: the turn holds the conversation's leases.
    """

    upstream: str
    history: tuple[Message, ...] = field(repr=False)
    dropped: int = 0
    remote: bool = False
    parent_id: str | None = None
    account: str | None = None
    indexed: bool = False
    is_leased: bool = True


class Store:
    """The database. Every method may block, and raises StoreFailed where the database cannot be used.

    `native` makes a runner with a thread of its own; `clock` gives seconds since 1970 (default: the
    database's own clock). `database`: for the tables that are no part of a turn.
    """

    def __init__(
        self,
        url: str,
        native: Callable[[], Run],
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.database = self._database = open_database(url, native)
        self._read = self._database.read
        self._write = self._database.write
        self._clock = clock or self._database.clock
        owners_insert = self._database.insert(schema.owners)
        self._note_ask_statement = owners.build_note_ask(owners_insert)
        self._noted: dict[str, float] = {}
        try:
            self._database.prepare(schema.bring_up_to_date)
        except RelayError:
            self.close()
            raise

    def close(self) -> None:
        """Close the connections. The store cannot be used afterwards."""
        self._database.close()

    def check(self) -> None:
        """Raise StoreFailed unless the database can be read, and a row be added to it."""
        self._read(lambda connection: connection.execute(select(literal(1))).all())
        name = f"check:{new_id()}"  # several processes check at the same time
        self.lease(name, name, 0)
        self.free(name, name)

    def lease(self, name: str, holder: str, seconds: float) -> bool:
        """Take a lease for `seconds`; False while another holder has it."""
        return self._write(
            lambda connection: leases.take_lease(
                connection, name, holder, self._clock(), seconds
            )
        )

    def free(self, name: str, holder: str) -> None:
        """Delete the holder's lease."""
        self._write(lambda connection: leases.delete_lease(connection, name, holder))

    def renew(self, holders: Collection[str], seconds: float) -> None:
        """Keep the leases of `holders` for `seconds` from now."""
        self._write(
            lambda connection: leases.renew_leases(
                connection, holders, self._clock, seconds
            )
        )

    def claim(self, key: IdempotencyKey, holder: str, seconds: float) -> KeyRecord:
        """Take an ask with a key and its lease (`mine`), or learn how the ask stands."""
        lease_name = idempotency.key_lease(key)

        def work(connection: Connection) -> KeyRecord:
            now = self._clock()
            taken = leases.take_lease(connection, lease_name, holder, now, seconds)
            record = idempotency.claim_key(connection, key, holder, now, taken)
            if taken and record.state != "mine":
                leases.delete_lease(connection, lease_name, holder)
            return record

        return self._write(work)

    def dispatch(self, key: IdempotencyKey, holder: str) -> bool:
        """Record that the ask is about to be sent: from now on nobody sends it again.

        False if the key is no longer the holder's.
        """
        now = self._clock()
        return self._write(
            lambda connection: idempotency.mark_dispatched(connection, key, holder, now)
        )

    def open_turn(self, request: TurnRequest, seconds: float) -> OpenedTurn | None:
        """Take the conversation's lease, keep the question and an open answer, and load the history.

        Of a remote conversation only the lease is taken, and so it is for a deferred question; for
        one that begins a conversation nothing is written. None while another turn holds the lease.
        Raises NoConversation where the owner has no such conversation or it has no such parent,
        BadRequest where the parent is a question, and TooLarge for a conversation that may not grow.
        """
        if request.is_new:
            _check_size(request, _size_before(request))
            if request.deferred:
                return OpenedTurn(request.upstream, request.preamble)

        def work(connection: Connection) -> OpenedTurn | None:
            now = self._clock()
            row = None
            if not request.is_new:
                row = _lock_existing(connection, request)
            if self._take_leases(connection, request, now, seconds):
                return _open_turn(connection, request, row, now)
            return None

        return self._write(work)

    def hold_name(self, request: TurnRequest, seconds: float) -> bool:
        """Take the leases of a named conversation that begins at its upstream; False while another turn has them."""
        return self._write(
            lambda connection: self._take_leases(
                connection, request, self._clock(), seconds
            )
        )

    def accept_turn(
        self, request: TurnRequest, opened: OpenedTurn, seconds: float
    ) -> None:
        """Keep a deferred question and an open answer, with the conversation and its lease if it is new.

        Of a conversation that was deleted meanwhile nothing is kept.
        """

        def work(connection: Connection) -> None:
            now = self._clock()
            parent = opened.parent_id
            if request.is_new:
                self._take_leases(connection, request, now, seconds)
                parent = _insert_conversation(connection, request, now)
            elif not conversations.lock_conversation(
                connection, request.conversation_id
            ):
                return
            _insert_turn(connection, request, parent, now)

        self._write(work)

    def complete_turn(
        self, request: TurnRequest, reply: Reply, record: KeyRecord | None = None
    ) -> None:
        """Keep a whole answer and delete the leases; `record` is kept for the idempotency key.

        The answer becomes the conversation's newest, unless the turn has lost its lease: then the
        conversation went on without it.
        """

        def work(connection: Connection) -> None:
            now = self._clock()
            conversations.advance_newest(
                connection,
                request.conversation_id,
                request.answer_id,
                now,
                request.size + messages.size_of_answer(reply),
            )
            _delete_conversation_leases(connection, request)
            is_kept = messages.complete_answer(connection, request.answer_id, reply)
            kept_record = record if is_kept else KeyRecord("gone")
            _end_key(connection, request, kept_record, now)

        self._write(work)

    def break_turn(
        self,
        request: TurnRequest,
        text: str,
        model: str | None,
        error_code: str,
        record: KeyRecord | None = None,
    ) -> None:
        """Keep a broken answer, as far as it came, and delete the leases; nothing will follow it.

        `record` is kept for the idempotency key.
        """

        def work(connection: Connection) -> None:
            now = self._clock()
            answer_size = messages.size_of(Message("assistant", text))
            added_size = request.size + answer_size
            conversations.add_size(connection, request.conversation_id, now, added_size)
            _delete_conversation_leases(connection, request)
            is_kept = messages.break_answer(
                connection, request.answer_id, text, model, error_code
            )
            kept_record = record if is_kept else KeyRecord("gone")
            _end_key(connection, request, kept_record, now)

        self._write(work)

    def discard_turn(self, request: TurnRequest) -> None:
        """Undo a turn that no upstream accepted, and delete the leases: its key is free again.

        Its text leaves the database's files soon, not at once.
        """

        def work(connection: Connection) -> None:
            if request.is_new:
                _delete_conversation(connection, request.conversation_id)
            else:
                conversations.lock_conversation(connection, request.conversation_id)
                messages.delete_turn(connection, request.question_id, request.answer_id)
            _delete_conversation_leases(connection, request)
            _end_key(connection, request, None, self._clock())

        self._write(work)
        self._database.erase_soon()

    def release(
        self,
        request: TurnRequest,
        record: KeyRecord | None = None,
        row: Conversation | None = None,
    ) -> None:
        """Delete the leases of a turn whose text is not kept here; `row` updates the index.

        `record` is kept for the idempotency key; without one the key is free again. A row that was
        deleted meanwhile stays so, and then nothing of the answer is kept for the key either.
        """

        def work(connection: Connection) -> None:
            now = self._clock()
            kept_record = record
            if row is not None and not conversations.update_remote(
                connection, row, now
            ):
                kept_record = KeyRecord("gone")
            _delete_conversation_leases(connection, request)
            _end_key(connection, request, kept_record, now)

        self._write(work)

    def index(self, row: Conversation) -> None:
        """Add the index row of a remote conversation, or update it. Another owner's stays as it is."""

        def work(connection: Connection) -> None:
            now = self._clock()
            if not conversations.update_remote(connection, row, now):
                added = replace(row, remote=True, created=now, updated=now)
                _insert_row(connection, added)

        self._write(work)

    def take_over(self, conversation_id: str, former_owner: str, owner: str) -> None:
        """Make a conversation of `former_owner` the `owner`'s. Any other stays as it is."""
        self._write(
            lambda connection: conversations.take_over(
                connection, conversation_id, former_owner, owner
            )
        )

    def find(self, conversation_id: str) -> Conversation | None:
        """A conversation's index row, whoever owns it."""
        row = self._read(
            lambda connection: conversations.select_conversation(
                connection, conversation_id
            )
        )
        if row is None:
            return None
        return conversations.to_conversation(row)

    def find_named(self, owner: str, name: str) -> Conversation | None:
        """The index row of an owner's conversation, by the owner's name for it or else by its id."""
        row = self._read(
            lambda connection: conversations.select_named(connection, owner, name)
        )
        if row is None:
            return None
        return conversations.to_conversation(row)

    def list(
        self, owner: str, offset: int, limit: int, search: str = ""
    ) -> list[Conversation]:
        """A page of the owner's conversations, newest first and without their messages.

        With `search`, only those whose title or messages contain it.
        """
        rows = self._read(
            lambda connection: conversations.select_page(
                connection, owner, offset, limit, search
            )
        )
        return [conversations.to_conversation(row) for row in rows]

    def get(self, owner: str, conversation_id: str) -> Conversation:
        """One conversation with all its messages, oldest first. Raises NoConversation."""
        lease_name = conversations.conversation_lease(conversation_id)

        def work(connection: Connection) -> tuple[Row[Any], list[Row[Any]], str | None]:
            row = conversations.select_owned(connection, owner, conversation_id)
            rows = messages.select_messages(connection, conversation_id)
            now = self._clock()
            holder = leases.select_lease_holder(connection, lease_name, now)
            return row, rows, holder

        row, rows, holder = self._read(work)
        nodes = tuple(messages.to_node(message, holder) for message in rows)
        return conversations.to_conversation(row, nodes)

    def turn(self, owner: str, answer_id: str) -> StoredTurn:
        """One answer of the owner's, with its question. Raises NoConversation."""
        return self._read(
            lambda connection: _select_turn(connection, owner, answer_id, self._clock())
        )

    def path(self, owner: str, answer_id: str) -> tuple[Message, ...]:
        """The messages from the root to an answer of the owner's. Raises NoConversation."""

        def work(connection: Connection) -> tuple[Message, ...]:
            _select_turn(connection, owner, answer_id, self._clock())
            return history.load_history(connection, answer_id, NOTHING, 0).messages

        return self._read(work)

    def delete_turn(self, owner: str, answer_id: str) -> None:
        """Delete an answer and what it was asked; with the last of them the conversation. Raises NoConversation."""

        def work(connection: Connection) -> None:
            turn = _select_turn(connection, owner, answer_id, self._clock())
            conversation_id = turn.conversation_id
            row = conversations.lock_conversation(connection, conversation_id)
            if row is not None and row.title == title_of(turn.question.text):
                conversations.update_conversation(
                    connection, conversation_id, {"title": UNTITLED}
                )
            if turn.preamble:
                messages.erase_before(connection, conversation_id, turn.question.id)
            messages.erase_turn(connection, turn.question.id, answer_id)
            idempotency.clear_answer(connection, conversation_id, answer_id)
            if not messages.has_answer(connection, conversation_id):
                _delete_conversation(connection, conversation_id)

        self._write(work)
        self._database.erase()

    def rename(self, owner: str, conversation_id: str, title: str) -> None:
        """Change a conversation's title. Raises NoConversation."""

        def work(connection: Connection) -> None:
            conversations.select_owned(connection, owner, conversation_id)
            conversations.update_conversation(
                connection, conversation_id, {"title": title}
            )

        self._write(work)

    def delete(self, owner: str, conversation_id: str) -> None:
        """Delete a conversation, its messages and what is kept of them for idempotency keys.

        Raises NoConversation.
        """

        def work(connection: Connection) -> None:
            conversations.select_owned(connection, owner, conversation_id)
            _delete_conversation(connection, conversation_id)

        self._write(work)
        self._database.erase()

    def delete_stored_here(self, owner: str) -> int:
        """Delete all conversations of an owner whose text is stored here; how many there were."""

        return self._delete_batches(
            lambda connection: _delete_all(
                connection, conversations.lock_stored_here(connection, owner)
            )
        )

    def delete_at_account(self, owner: str, upstream: str, account: str) -> int:
        """Delete the index rows of all conversations of an owner at an upstream's account; how many there were."""
        return self._delete_batches(
            lambda connection: _delete_all(
                connection,
                conversations.lock_at_account(connection, owner, upstream, account),
            )
        )

    def expire(self, seconds: float) -> int:
        """Delete the conversations that have not changed for `seconds`; how many there were."""

        return self._delete_batches(
            lambda connection: _expire_batch(connection, self._clock(), seconds)
        )

    def _delete_batches(self, work: Callable[[Connection], int]) -> int:
        """Delete batch after batch, each a transaction, until there is none; how many conversations there were."""
        deleted = 0
        while batch := self._write(work):
            deleted += batch
        if deleted:
            self._database.erase()
        return deleted

    def tidy(self) -> None:
        """Delete the keys whose time is over, and the leases of processes that died long ago."""
        before = self._clock() - idempotency.REPLAY_SECONDS

        def work(connection: Connection) -> int:
            leases.delete_old_leases(connection, before)
            return idempotency.delete_old_keys(connection, before)

        if self._write(work):
            self._database.erase()

    def note_ask(self, owner: str) -> None:
        """Note that the owner asked just now. Within NOTE_SECONDS of the last note it does nothing."""
        now = self._clock()
        if now - self._noted.get(owner, 0.0) < NOTE_SECONDS:
            return
        if len(self._noted) >= MOST_NOTED:
            self._noted.clear()
        self._noted[owner] = now
        parameters = {"owner": owner, "last_asked": now}
        self._write(
            lambda connection: connection.execute(self._note_ask_statement, parameters)
        )

    def last_asks(self) -> dict[str, float]:
        """When each owner last asked, to the minute, in seconds since 1970."""
        return self._read(owners.select_last_asks)

    def owners_with_counts(self) -> dict[str, int]:
        """The number of conversations of each owner that has any, by name."""
        return self._read(owners.count_conversations)

    def give(self, former_owner: str, owner: str) -> tuple[int, int]:
        """Make all conversations of `former_owner` the `owner`'s: how many there were, and how many lost their names.

        One whose name the new owner uses already loses it.
        """
        return self._write(
            lambda connection: owners.give_conversations(
                connection, former_owner, owner
            )
        )

    def _take_leases(
        self, connection: Connection, request: TurnRequest, now: float, seconds: float
    ) -> bool:
        """Take the conversation's leases for a turn, all or none.

        None are taken either where a new conversation's name has been given to another since.
        """
        for name in request.conversation_leases:
            if not leases.take_lease(connection, name, request.holder, now, seconds):
                _delete_conversation_leases(connection, request)
                return False
        if request.is_new and _is_taken(connection, request.owner, request.name):
            _delete_conversation_leases(connection, request)
            return False
        return True


def _select_turn(
    connection: Connection, owner: str, answer_id: str, now: float
) -> StoredTurn:
    """An answer that the owner asked for here and that is not deleted, with its question. Raises NoConversation."""
    answer = messages.select_message(connection, answer_id)
    if answer is None or not messages.is_answer(answer):
        raise NoConversation()
    question = messages.select_message(connection, answer.parent or "")
    if question is None:
        raise NoConversation()
    conversation_id = answer.conversation_id
    conversations.select_owned(connection, owner, conversation_id)
    lease_name = conversations.conversation_lease(conversation_id)
    holder = leases.select_lease_holder(connection, lease_name, now)
    preamble = messages.select_preamble(connection, question)
    return StoredTurn(
        conversation_id,
        messages.to_node(question, holder),
        messages.to_node(answer, holder),
        tuple(messages.to_node(row, holder) for row in preamble),
    )


def _lock_existing(connection: Connection, request: TurnRequest) -> Row[Any] | None:
    """The index row of a conversation that goes on; None for one that may be adopted."""
    row = conversations.lock_conversation(connection, request.conversation_id)
    if row is None and request.adopt:
        return None
    if row is None or row.owner != request.owner:
        raise NoConversation()
    return row


def _open_turn(
    connection: Connection, request: TurnRequest, row: Row[Any] | None, now: float
) -> OpenedTurn:
    """The turn, now that it has its lease. `row`: the conversation's, if it has one."""
    if row is None and not request.is_new:
        return OpenedTurn(
            request.upstream, (), remote=True, parent_id=request.parent_id or None
        )
    if row is not None and row.remote:
        return OpenedTurn(
            row.upstream,
            (),
            remote=True,
            parent_id=request.parent_id or row.newest,
            account=row.account,
            indexed=True,
        )
    if row is None:
        parent = _insert_conversation(connection, request, now)
        _insert_turn(connection, request, parent, now)
        return OpenedTurn(request.upstream, request.preamble)
    _check_size(request, row.size)
    parent = messages.find_parent(
        connection, request.conversation_id, request.parent_id, row.newest
    )
    path = history.load_history(connection, parent, request.question, request.budget)
    if request.deferred:
        return OpenedTurn(row.upstream, path.messages, path.dropped, parent_id=parent)
    _insert_turn(connection, request, parent, now)
    return OpenedTurn(row.upstream, path.messages, path.dropped)


def _size_before(request: TurnRequest) -> int:
    """What a new conversation has before its question."""
    return messages.size_of(*request.preamble)


def _check_size(request: TurnRequest, size: int) -> None:
    """Raise TooLarge where a conversation of this size cannot take the question. Its answer may exceed the limit."""
    if size + request.size <= LARGEST_CONVERSATION:
        return
    limit = f"{LARGEST_CONVERSATION // 2**20} MB"
    if request.is_new:
        raise TooLarge(f"A conversation may have {limit} of text. Begin with less.")
    raise TooLarge(
        f"With this question the conversation would have more than {limit} of text. "
        "Leave conversation_id out to begin a new one."
    )


def _insert_turn(
    connection: Connection, request: TurnRequest, parent: str | None, now: float
) -> None:
    """Add a question and its open answer."""
    asked = request.question
    question = Node(
        request.question_id,
        parent,
        asked.role,
        asked.text,
        "whole",
        now,
        payloads=asked.payloads,
    )
    answer = Node(
        request.answer_id,
        question.id,
        "assistant",
        "",
        "open",
        now,
        echo=request.echo,
    )
    messages.insert_messages(connection, request.conversation_id, (question, answer))


def _insert_conversation(
    connection: Connection, request: TurnRequest, now: float
) -> str | None:
    """Add a new conversation with its preamble; the id of the message that its question follows."""
    nodes: list[Node] = []
    parent: str | None = None
    for message in request.preamble:
        node_id = new_id()
        nodes.append(
            Node(
                node_id,
                parent,
                message.role,
                message.text,
                "whole",
                now,
                payloads=message.payloads,
            )
        )
        parent = node_id
    newest = None
    if any(node.role not in SYSTEM_ROLES for node in nodes):
        newest = parent
    conversation = Conversation(
        id=request.conversation_id,
        owner=request.owner,
        upstream=request.upstream,
        account=None,
        title=request.title,
        newest=newest,
        created=now,
        updated=now,
        name=request.name,
    )
    _insert_row(connection, conversation, _size_before(request))
    if nodes:
        messages.insert_messages(connection, request.conversation_id, nodes)
    return parent


def _insert_row(
    connection: Connection, conversation: Conversation, size: int = 0
) -> None:
    """Add an index row; without its name where another has got that meanwhile, as only unverified callers see it."""
    if _is_taken(connection, conversation.owner, conversation.name):
        conversation = replace(conversation, name=None)
    conversations.insert_conversation(connection, conversation, size)


def _is_taken(connection: Connection, owner: str, name: str | None) -> bool:
    """Whether a conversation of the owner's has this name."""
    if name is None:
        return False
    return conversations.select_named(connection, owner, name) is not None


def _delete_conversation_leases(connection: Connection, request: TurnRequest) -> None:
    for name in request.conversation_leases:
        leases.delete_lease(connection, name, request.holder)


def _end_key(
    connection: Connection, request: TurnRequest, record: KeyRecord | None, now: float
) -> None:
    """End the ask of the request's idempotency key, if it has one, and delete the key's lease."""
    key = request.idempotency_key
    if key is None:
        return
    leases.delete_lease(connection, idempotency.key_lease(key), request.holder)
    idempotency.record_outcome(connection, key, request.holder, record, now)


def _delete_conversation(connection: Connection, conversation_id: str) -> None:
    conversations.delete_row(connection, conversation_id)
    leases.delete_any_lease(
        connection, conversations.conversation_lease(conversation_id)
    )
    messages.delete_messages(connection, conversation_id)
    idempotency.clear_outcomes(connection, conversation_id)


def _delete_all(connection: Connection, conversation_ids: list[str]) -> int:
    for conversation_id in conversation_ids:
        _delete_conversation(connection, conversation_id)
    return len(conversation_ids)


def _expire_batch(connection: Connection, now: float, seconds: float) -> int:
    deleted = 0
    for conversation_id in conversations.lock_expired(connection, now - seconds, now):
        # only now is the row locked: a turn that opened meanwhile has its lease
        lease_name = conversations.conversation_lease(conversation_id)
        if leases.select_lease_holder(connection, lease_name, now) is None:
            _delete_conversation(connection, conversation_id)
            deleted += 1
    return deleted
