"""What was said, kept in a database: conversations, their messages as trees, and leases.

All SQL of the project is here. A lease is a row with a holder and an expiry; it frees itself when its holder dies.

SQLite: reading and writing have one connection each, used by one native thread each, so that neither the event loop nor
a reader ever waits for the disk or for another process's write lock. WAL lets them work side by side; with
synchronous=NORMAL a kill loses nothing and a power cut at most the last commits (sqlite.org/wal.html).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, Generic, TypeAlias, TypeVar

from sqlalchemy import (
    Boolean,
    Column,
    Connection,
    Engine,
    Float,
    Index,
    Integer,
    MetaData,
    Row,
    Select,
    Table,
    Text,
    bindparam,
    create_engine,
    delete,
    event,
    insert,
    literal,
    make_url,
    select,
    update,
)
from sqlalchemy.dialects.sqlite import insert as upsert
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import StaticPool

from relay.domain import ROOT, Conversation, Message, Node, Status
from relay.errors import BadRequest, NoConversation, RelayError, StoreFailed

T = TypeVar("T")
Work: TypeAlias = Callable[[Connection], T]
Run: TypeAlias = Callable[[Callable[[], Any]], Any]

BUSY_SECONDS = 20  # how long a write waits for another process's write lock
LARGEST_COMMIT = 100

metadata = MetaData()
conversations = Table(
    "conversations",
    metadata,
    Column("id", Text, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("upstream", Text, nullable=False),
    Column("account", Text),
    Column("remote", Boolean, nullable=False),
    Column("title", Text, nullable=False),
    Column("newest", Text),
    Column("created", Float, nullable=False),
    Column("updated", Float, nullable=False),
    Index("conversations_of_owner", "owner", "updated"),
)
messages = Table(
    "messages",
    metadata,
    Column("number", Integer, primary_key=True),  # the order in which they were said
    Column("id", Text, nullable=False, unique=True),
    Column("conversation_id", Text, nullable=False, index=True),
    Column("parent", Text),
    Column("role", Text, nullable=False),
    Column("text", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("model", Text),
    Column("finish_reason", Text),
    Column("created", Float, nullable=False),
)
leases = Table(
    "leases",
    metadata,
    Column("name", Text, primary_key=True),
    Column("holder", Text, nullable=False),
    Column("expires", Float, nullable=False),
)

# Statements are built once: building one costs several times as much as running it.
FIND = select(conversations).where(conversations.c.id == bindparam("of"))
MINE = select(conversations).where(conversations.c.id == bindparam("of"), conversations.c.owner == bindparam("by"))
LIST = (
    select(conversations)
    .where(conversations.c.owner == bindparam("by"))
    .order_by(conversations.c.updated.desc(), conversations.c.id)
    .offset(bindparam("skip"))
    .limit(bindparam("most"))
)
ALL_OF = select(messages).where(messages.c.conversation_id == bindparam("of")).order_by(messages.c.number)
ROLE = select(messages.c.role).where(messages.c.conversation_id == bindparam("of"), messages.c.id == bindparam("id"))
SYSTEM = select(messages.c.id).where(messages.c.conversation_id == bindparam("of"), messages.c.role == "system")
TAKE = upsert(leases).values(name=bindparam("name"), holder=bindparam("holder"), expires=bindparam("expires"))
TAKE = TAKE.on_conflict_do_update(
    ["name"], set_={c: TAKE.excluded[c] for c in ("holder", "expires")}, where=leases.c.expires <= bindparam("now")
)
FREE = delete(leases).where(leases.c.name == bindparam("of"), leases.c.holder == bindparam("by"))
HELD = select(leases.c.name).where(leases.c.name == bindparam("of"), leases.c.expires > bindparam("now"))
ANSWER = update(messages).where(messages.c.id == bindparam("of"))
TOUCH = update(conversations).where(conversations.c.id == bindparam("of"))


def _way_up() -> Select[Any]:
    """From one message to the root; depth grows upwards."""
    columns = (messages.c.id, messages.c.parent, messages.c.role, messages.c.text, messages.c.status)
    up = select(*columns, literal(0).label("depth")).where(messages.c.id == bindparam("of")).cte(recursive=True)
    up = up.union_all(select(*columns, up.c.depth + 1).where(messages.c.id == up.c.parent))
    return select(up).order_by(up.c.depth)


WAY_UP = _way_up()


@dataclass(frozen=True)
class Opening:
    """One turn about to begin. `new`: of a new conversation; otherwise `parent` None means the newest answer.

    With `adopt`, a conversation that has no index row may go on too, at `upstream`, which keeps it.
    """

    conversation_id: str
    owner: str
    upstream: str
    question_id: str
    answer_id: str
    prompt: str = field(repr=False)
    title: str = field(repr=False)
    new: bool = True
    parent: str | None = None
    adopt: bool = False
    system: str | None = field(default=None, repr=False)
    system_id: str = ""

    @property
    def holder(self) -> str:
        return self.answer_id


@dataclass(frozen=True)
class Begun:
    """A turn that holds its conversation: where that lives, and the messages from its root to the prompt.

    Of a `remote` one, the only message is the prompt; `parent` and `account` say where it belongs, as far as is known.
    """

    upstream: str
    messages: tuple[Message, ...] = field(repr=False)
    remote: bool = False
    parent: str | None = None
    account: str | None = None


@contextmanager
def told_as_ours() -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        raise StoreFailed() from error


@dataclass(eq=False)
class _Write(Generic[T]):
    work: Work[T]
    done: bool = False
    result: T | None = None
    error: BaseException | None = None


class _Writer:
    """Commits in groups: whoever comes to the turn commits all that is waiting, its own and the others'."""

    def __init__(self, engine: Engine, run: Run) -> None:
        self._engine = engine
        self._run = run
        self._waiting: deque[_Write[Any]] = deque()
        self._turn = Lock()

    def __call__(self, work: Work[T]) -> T:
        write = _Write(work)
        self._waiting.append(write)
        with self._turn:
            if not write.done:
                group = [self._waiting.popleft() for _ in range(min(len(self._waiting), LARGEST_COMMIT))]
                self._run(lambda: self._commit(group))
            if not write.done:  # more were waiting than one commit takes
                self._waiting.remove(write)
                self._run(lambda: self._commit([write]))
        if write.error is not None:
            raise write.error
        return write.result  # type: ignore[return-value]

    def checkpoint(self) -> None:
        """Write the log back into the file and empty it, so that what was deleted is in neither."""
        with self._turn:
            self._run(self._empty_log)

    def _empty_log(self) -> None:
        with told_as_ours():
            connection = self._engine.raw_connection()
            try:
                connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").close()
            finally:
                connection.close()

    def _commit(self, group: list[_Write[Any]]) -> None:
        failure: BaseException = StoreFailed()
        committed = False
        try:
            with told_as_ours(), self._engine.begin() as connection:
                if len(group) == 1:  # no savepoint is needed: the whole transaction is its own
                    group[0].result = group[0].work(connection)
                else:
                    for write in group:
                        _attempt(connection, write)
            committed = True
        except RelayError as error:
            failure = error
        finally:
            for write in group:
                write.done = True
                if not committed:
                    write.error = write.error or failure


def _attempt(connection: Connection, write: _Write[Any]) -> None:
    """One write of a group, undone alone if it fails."""
    try:
        with told_as_ours(), connection.begin_nested():
            write.result = write.work(connection)
    except RelayError as error:
        write.error = error


class Store:
    """Conversations and leases. `native` makes a runner of its own thread; each is used for one connection alone."""

    def __init__(self, url: str, native: Callable[[], Run], clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._run_read = native()
        self._writing = _sqlite(url, "BEGIN IMMEDIATE")
        self._reading = _sqlite(url, "BEGIN")
        self._write = _Writer(self._writing, native())
        self._write(metadata.create_all)

    def close(self) -> None:
        self._reading.dispose()
        self._writing.dispose()

    def _read(self, work: Work[T]) -> T:
        def run() -> T:
            with told_as_ours(), self._reading.begin() as connection:
                return work(connection)

        result: T = self._run_read(run)
        return result

    def check(self) -> None:
        """Raise StoreFailed unless the database can be read and written to."""
        self._read(lambda connection: connection.execute(select(literal(1))).all())
        self._write(lambda connection: connection.execute(delete(leases).where(leases.c.name == "")))

    def begin(self, opening: Opening, seconds: float) -> Begun | None:
        """Take the conversation's lease, keep the question and an open answer, and give the way from the root to it.

        None while another turn holds the lease. Raises NoConversation where the owner has no such conversation or it
        has no such parent.
        """

        def work(connection: Connection) -> Begun | None:
            now = self._clock()
            known = None if opening.new else _known(connection, opening)
            if not _take(connection, opening, now, seconds):
                return None
            upstream = known.upstream if known else opening.upstream
            if known.remote if known else not opening.new:
                parent = opening.parent or (known.newest if known else None)
                account = known.account if known else None
                return Begun(upstream, (Message("user", opening.prompt),), True, parent, account)
            if known is None:
                parent = _new_conversation(connection, opening, now)
            else:
                parent = _known_parent(connection, opening, known.newest)
            path = _path(connection, parent)
            rows = [
                (opening.question_id, parent, "user", opening.prompt, "whole"),
                (opening.answer_id, opening.question_id, "assistant", "", "open"),
            ]
            _insert_messages(connection, opening.conversation_id, rows, now)
            return Begun(upstream, (*path, Message("user", opening.prompt)))

        return self._write(work)

    def finish(self, opening: Opening, text: str, status: Status, model: str | None, finish_reason: str) -> None:
        """Keep the answer as it ended, and free the lease. Only a whole answer becomes the conversation's newest."""

        def work(connection: Connection) -> None:
            now = self._clock()
            kept = {"text": text, "status": status, "model": model, "finish_reason": finish_reason}
            connection.execute(ANSWER, {"of": opening.answer_id} | kept)
            newest = {"newest": opening.answer_id} if status == "whole" else {}
            connection.execute(TOUCH, {"of": opening.conversation_id, "updated": now} | newest)
            _free(connection, opening)

        self._write(work)

    def forget(self, opening: Opening) -> None:
        """Undo a turn that no upstream took, and free the lease: the question was never asked."""

        def work(connection: Connection) -> None:
            if opening.new:
                _delete_conversation(connection, opening.conversation_id)
            else:
                ids = (opening.question_id, opening.answer_id)
                connection.execute(delete(messages).where(messages.c.id.in_(ids)))
            _free(connection, opening)

        self._write(work)

    def note(self, row: Conversation) -> None:
        """Put a conversation that lives elsewhere into the index, or bring its row up to date."""

        def work(connection: Connection) -> None:
            known = connection.execute(FIND, {"of": row.id}).first()
            if known is None:
                kept = {name: getattr(row, name) for name in ("id", "owner", "upstream", "account", "title", "newest")}
                times = {"remote": True, "created": self._clock(), "updated": self._clock()}
                connection.execute(insert(conversations), kept | times)
            elif known.owner == row.owner:
                kept = {"updated": self._clock(), "newest": row.newest or known.newest, "account": row.account}
                connection.execute(TOUCH, {"of": row.id} | kept)

        self._write(work)

    def release(self, opening: Opening) -> None:
        """Free the lease of a turn of which nothing else is kept here."""
        self._write(lambda connection: _free(connection, opening))

    def find(self, conversation_id: str) -> Conversation | None:
        """A conversation's index row, whoever owns it."""
        row = self._read(lambda connection: connection.execute(FIND, {"of": conversation_id}).first())
        return _conversation(row) if row is not None else None

    def renew(self, holders: Collection[str], seconds: float) -> None:
        """Hold on to the leases of `holders` for `seconds` from now."""
        held = update(leases).where(leases.c.holder.in_(holders)).values(expires=self._clock() + seconds)
        self._write(lambda connection: connection.execute(held))

    def list(self, owner: str, offset: int, limit: int) -> list[Conversation]:
        """The owner's conversations without their messages, newest first."""
        page = {"by": owner, "skip": offset, "most": limit}
        return [_conversation(row) for row in self._read(lambda connection: connection.execute(LIST, page).all())]

    def get(self, owner: str, conversation_id: str) -> Conversation:
        """One conversation with all its messages, in the order in which they were said."""

        def work(connection: Connection) -> tuple[Row[Any], list[Row[Any]], bool]:
            row = _owned(connection, owner, conversation_id)
            nodes = connection.execute(ALL_OF, {"of": conversation_id}).all()
            held = connection.execute(HELD, {"of": _lease(conversation_id), "now": self._clock()}).first()
            return row, list(nodes), held is not None

        row, nodes, running = self._read(work)
        return _conversation(row, tuple(_node(node, running) for node in nodes))

    def rename(self, owner: str, conversation_id: str, title: str) -> None:
        def work(connection: Connection) -> None:
            _owned(connection, owner, conversation_id)
            connection.execute(TOUCH, {"of": conversation_id, "title": title})

        self._write(work)

    def delete(self, owner: str, conversation_id: str) -> None:
        def work(connection: Connection) -> None:
            _owned(connection, owner, conversation_id)
            _delete_conversation(connection, conversation_id)

        self._write(work)
        self._write.checkpoint()


def _sqlite(url: str, begin: str) -> Engine:
    path = make_url(url).database or ""
    if path:
        Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # One connection that stays open; check_same_thread: the thread that opened it is not always the one that closes it.
    engine = create_engine(
        url, poolclass=StaticPool, connect_args={"check_same_thread": False, "timeout": BUSY_SECONDS}
    )

    @event.listens_for(engine, "connect")
    def connect(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # sqlite3 would begin transactions by itself, and too late
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "secure_delete=ON"):
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def begin_transaction(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


def _take(connection: Connection, opening: Opening, now: float, seconds: float) -> bool:
    row = {"name": _lease(opening.conversation_id), "holder": opening.holder, "expires": now + seconds, "now": now}
    return connection.execute(TAKE, row).rowcount == 1


def _lease(conversation_id: str) -> str:
    return f"conversation/{conversation_id}"


def _free(connection: Connection, opening: Opening) -> None:
    connection.execute(FREE, {"of": _lease(opening.conversation_id), "by": opening.holder})


def _owned(connection: Connection, owner: str, conversation_id: str) -> Row[Any]:
    row = connection.execute(MINE, {"of": conversation_id, "by": owner}).first()
    if row is None:
        raise NoConversation()
    return row


def _known(connection: Connection, opening: Opening) -> Row[Any] | None:
    """The index row of a conversation that goes on; None for one that may be adopted."""
    row = connection.execute(FIND, {"of": opening.conversation_id}).first()
    if row is None and opening.adopt:
        return None
    if row is None or row.owner != opening.owner:
        raise NoConversation()
    return row


def _known_parent(connection: Connection, opening: Opening, newest: str | None) -> str | None:
    """The message that the question follows: the one named, else the newest whole answer, else the beginning."""
    parent = opening.parent or newest or ROOT
    if parent == ROOT:
        return connection.execute(SYSTEM, {"of": opening.conversation_id}).scalar()
    if opening.parent is None:
        return newest
    role = connection.execute(ROLE, {"of": opening.conversation_id, "id": parent}).scalar()
    if role is None:
        raise NoConversation(
            "This conversation has no message with that parent id. Leave it out to go on from the newest answer."
        )
    if role == "user":
        raise BadRequest("The parent id names a question. Send the id of an answer, as an earlier reply gave it.")
    return parent


def _new_conversation(connection: Connection, opening: Opening, now: float) -> str | None:
    row = {"id": opening.conversation_id, "owner": opening.owner, "upstream": opening.upstream, "title": opening.title}
    connection.execute(insert(conversations), row | {"remote": False, "created": now, "updated": now})
    if opening.system is None:
        return None
    _insert_messages(
        connection, opening.conversation_id, [(opening.system_id, None, "system", opening.system, "whole")], now
    )
    return opening.system_id


def _insert_messages(
    connection: Connection, conversation_id: str, rows: list[tuple[str, str | None, str, str, str]], now: float
) -> None:
    names = ("id", "parent", "role", "text", "status")
    same = {"conversation_id": conversation_id, "created": now}
    connection.execute(insert(messages), [dict(zip(names, row, strict=True)) | same for row in rows])


def _path(connection: Connection, parent: str | None) -> list[Message]:
    """The messages from the root to `parent`, without broken answers and the questions that they left unanswered."""
    path: list[Message] = []
    left_out = ""
    for row in connection.execute(WAY_UP, {"of": parent}) if parent else ():
        if row.status != "whole":
            left_out = row.parent
        elif row.id != left_out:
            path.append(Message(row.role, row.text))
    return path[::-1]


def _delete_conversation(connection: Connection, conversation_id: str) -> None:
    connection.execute(delete(messages).where(messages.c.conversation_id == conversation_id))
    connection.execute(delete(conversations).where(conversations.c.id == conversation_id))


def _conversation(row: Row[Any], nodes: tuple[Node, ...] = ()) -> Conversation:
    where = row.upstream, row.account
    return Conversation(
        row.id, row.owner, *where, row.title, row.newest, row.created, row.updated, bool(row.remote), nodes
    )


def _node(row: Row[Any], running: bool) -> Node:
    # An answer that is open though nobody works on it was left by a process that was killed.
    status: Status = "broken" if row.status == "open" and not running else row.status
    return Node(row.id, row.parent, row.role, row.text, status, row.created, row.model, row.finish_reason)
