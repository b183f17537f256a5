"""What was said, kept in a database: conversations, their messages as trees, asks that happen once, and leases.

All SQL of the project is here and in `schema`. A lease is a row with a holder and an expiry; it frees itself when its
holder dies. Whoever locks several rows does so in one order, so that no two wait for each other: conversation, its
lease, messages, a key's lease, its row.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import orjson
from sqlalchemy import (
    Connection,
    Row,
    Select,
    Text,
    bindparam,
    case,
    delete,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)

from relay.database import open_database
from relay.domain import ROOT, Conversation, Message, Node, Reply, Status
from relay.errors import BadRequest, NoConversation, RelayError
from relay.schema import bring_up_to_date, conversations, leases, messages, requests
from relay.serving import Run

REPLAY_SECONDS = 24 * 3600.0  # for so long an ask with a key is answered again
SYSTEM_ROLES = ("system", "developer")
BATCH = 100  # conversations deleted at once when their time is over

State: TypeAlias = Literal[
    "mine", "running", "other", "done", "refused", "unknown", "gone"
]

# Statements are built once: building one costs several times as much as running it.
FIND = select(conversations).where(conversations.c.id == bindparam("of"))
OPEN = (
    FIND.with_for_update()
)  # two turns that open at once see each other's end; SQLite has no need of it
MINE = select(conversations).where(
    conversations.c.id == bindparam("of"), conversations.c.owner == bindparam("by")
)
LIST = (
    select(conversations)
    .where(conversations.c.owner == bindparam("by"))
    .order_by(conversations.c.updated.desc(), conversations.c.id)
    .offset(bindparam("skip"))
    .limit(bindparam("most"))
)
_WORDS = func.lower(
    bindparam("words")
)  # by the database, as the texts are: not all of them know all letters
_SAID = exists().where(
    messages.c.conversation_id == conversations.c.id,
    func.lower(messages.c.text).like(_WORDS, escape="\\"),
)
SEARCH = LIST.where(
    or_(func.lower(conversations.c.title).like(_WORDS, escape="\\"), _SAID)
)
ALL_OF = (
    select(messages)
    .where(messages.c.conversation_id == bindparam("of"))
    .order_by(messages.c.number)
)
ROLE = select(messages.c.role).where(
    messages.c.conversation_id == bindparam("of"), messages.c.id == bindparam("id")
)
SYSTEM = (
    select(messages.c.id, messages.c.parent)
    .where(
        messages.c.conversation_id == bindparam("of"), messages.c.role.in_(SYSTEM_ROLES)
    )
    .order_by(messages.c.number)
)
FREE = delete(leases).where(
    leases.c.name == bindparam("of"), leases.c.holder == bindparam("by")
)
HELD = select(leases.c.holder).where(
    leases.c.name == bindparam("of"), leases.c.expires > bindparam("now")
)
ANSWER = update(messages).where(
    messages.c.id == bindparam("of"), messages.c.status == "open"
)
TOUCH = update(conversations).where(conversations.c.id == bindparam("of"))
_HOLDS = exists().where(
    leases.c.name == bindparam("lease"), leases.c.holder == bindparam("by")
)
GO_ON = TOUCH.values(
    updated=bindparam("now"),
    newest=case(
        (_HOLDS, bindparam("answer", type_=Text)), else_=conversations.c.newest
    ),
)
_THIS_KEY = requests.c.owner == bindparam("whose"), requests.c.key == bindparam("named")
KEYED = select(requests).where(*_THIS_KEY)
_OURS = update(requests).where(*_THIS_KEY, requests.c.holder == bindparam("by"))
DISPATCH = _OURS.where(requests.c.state == "open")
# a process that could not renew its lease was taken for dead, and comes with its answer after all
SETTLE = _OURS.where(requests.c.state.in_(("open", "dispatched", "unknown")))
UNCLAIM = delete(requests).where(*_THIS_KEY, requests.c.holder == bindparam("by"))


def _way_up() -> Select[Any]:
    """From one message to the root; depth grows upwards."""
    columns = (
        messages.c.id,
        messages.c.parent,
        messages.c.role,
        messages.c.text,
        messages.c.status,
    )
    up = (
        select(*columns, literal(0).label("depth"))
        .where(messages.c.id == bindparam("of"))
        .cte(recursive=True)
    )
    up = up.union_all(
        select(*columns, up.c.depth + 1).where(messages.c.id == up.c.parent)
    )
    return select(up).order_by(up.c.depth)


WAY_UP = _way_up()


@dataclass(frozen=True)
class Claim:
    """An ask that is to happen once, by its owner and key. The fingerprint tells another ask under the same key."""

    owner: str
    key: str
    fingerprint: str


@dataclass(frozen=True)
class Claimed:
    """How an ask with a key stands: ours to ask, running elsewhere, another ask's key, or settled, with its outcome."""

    state: State
    outcome: dict[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Opening:
    """One turn about to begin. `new`: of a new conversation; otherwise `parent` None means the newest answer.

    With `adopt`, a conversation that has no index row may go on too, at `upstream`, which keeps it. `before` is what a
    new one begins with. With a `claim`, the turn's end settles that too.
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
    before: tuple[Message, ...] = field(default=(), repr=False)
    claim: Claim | None = None

    @property
    def holder(self) -> str:
        return self.answer_id


@dataclass(frozen=True)
class Begun:
    """A turn that holds its conversation: where that lives, and the messages from its root to the prompt.

    Of a `remote` one, the only message is the prompt; `parent` and `account` say where it belongs, as far as is known,
    and `listed` that the index has a row of it.
    """

    upstream: str
    messages: tuple[Message, ...] = field(repr=False)
    remote: bool = False
    parent: str | None = None
    account: str | None = None
    listed: bool = False


class Store:
    """Conversations and leases. `native` makes a runner of its own thread; `clock` gives seconds since 1970."""

    def __init__(
        self,
        url: str,
        native: Callable[[], Run],
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._database = open_database(url, native)
        self._read, self._write = self._database.read, self._database.write
        self._clock = clock or self._database.clock
        taking = self._database.insert(leases).values(
            {c: bindparam(c) for c in ("name", "holder", "expires")}
        )
        self._taking = taking.on_conflict_do_update(
            index_elements=["name"],
            set_={c: taking.excluded[c] for c in ("holder", "expires")},
            where=leases.c.expires <= bindparam("now"),
        ).returning(leases.c.name)
        try:
            self._database.prepare(bring_up_to_date)
        except RelayError:
            self.close()
            raise

    def close(self) -> None:
        self._database.close()

    def check(self) -> None:
        """Raise StoreFailed unless the database can be read and written to."""
        self._read(lambda connection: connection.execute(select(literal(1))).all())
        self._write(
            lambda connection: connection.execute(
                delete(leases).where(leases.c.name == "")
            )
        )

    def lease(self, name: str, holder: str, seconds: float) -> bool:
        """Hold what is named for `seconds`; False while another holder does."""
        return self._write(
            lambda connection: self._take(
                connection, name, holder, self._clock(), seconds
            )
        )

    def free(self, name: str, holder: str) -> None:
        """Hold it no more."""
        self._write(
            lambda connection: connection.execute(FREE, {"of": name, "by": holder})
        )

    def claim(self, claim: Claim, holder: str, seconds: float) -> Claimed:
        """Take an ask with a key upon us, or learn how it stands. What a killed process had sent off is unknown."""
        name = _key_lease(claim)
        of = {"whose": claim.owner, "named": claim.key}

        def work(connection: Connection) -> Claimed:
            now = self._clock()
            taken = self._take(connection, name, holder, now, seconds)
            row = connection.execute(KEYED, of).first()
            settled = row is not None and row.state not in ("open", "dispatched")
            if row is not None and settled and row.updated + REPLAY_SECONDS <= now:
                connection.execute(delete(requests).where(*_THIS_KEY), of)
                row = None
            if row is not None and taken and row.state == "open":
                row = None  # of a process that died before it sent anything
            if row is not None and row.fingerprint != claim.fingerprint:
                found = Claimed("other")
            elif row is not None and settled:
                found = Claimed(row.state, orjson.loads(row.outcome or "{}"))
            elif not taken:
                return Claimed("running")
            elif row is not None and row.state == "dispatched":
                lost = {"state": "unknown", "updated": now}
                connection.execute(update(requests).where(*_THIS_KEY).values(lost), of)
                found = Claimed("unknown")
            else:
                connection.execute(delete(requests).where(*_THIS_KEY), of)
                fresh = {
                    "owner": claim.owner,
                    "key": claim.key,
                    "fingerprint": claim.fingerprint,
                    "holder": holder,
                }
                connection.execute(
                    insert(requests), fresh | {"state": "open", "updated": now}
                )
                return Claimed("mine")
            connection.execute(FREE, {"of": name, "by": holder})
            return found

        return self._write(work)

    def dispatch(self, claim: Claim, holder: str) -> bool:
        """Keep that the ask is about to be sent: from now on nobody sends it again. False if it is no longer ours."""
        row = {"whose": claim.owner, "named": claim.key, "by": holder}
        sent = {"state": "dispatched", "updated": self._clock()}
        return self._write(
            lambda connection: connection.execute(DISPATCH, row | sent).rowcount == 1
        )

    def begin(self, opening: Opening, seconds: float) -> Begun | None:
        """Take the conversation's lease, keep the question and an open answer, and give the way from the root to it.

        None while another turn holds the lease. Raises NoConversation where the owner has no such conversation or it
        has no such parent.
        """

        def work(connection: Connection) -> Begun | None:
            now = self._clock()
            known = None if opening.new else _known(connection, opening)
            if not self._take(
                connection,
                _lease(opening.conversation_id),
                opening.holder,
                now,
                seconds,
            ):
                return None
            upstream = known.upstream if known else opening.upstream
            if known.remote if known else not opening.new:
                parent = opening.parent or (known.newest if known else None)
                account = known.account if known else None
                return Begun(
                    upstream,
                    (Message("user", opening.prompt),),
                    True,
                    parent,
                    account,
                    known is not None,
                )
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

    def finish(
        self,
        opening: Opening,
        reply: Reply,
        status: Status,
        outcome: Claimed | None = None,
    ) -> None:
        """Keep the answer as it ended, and free the leases. Only a whole answer becomes the conversation's newest.

        It does not where the lease was lost: the conversation went on without it.
        """

        def work(connection: Connection) -> None:
            now = self._clock()
            kept = {
                "text": _storable(reply.text),
                "status": status,
                "model": _storable(reply.model or "") or None,
                "finish_reason": _storable(reply.finish_reason),
                "reasoning": _storable(reply.reasoning) or None,
                "usage": orjson.dumps(reply.usage).decode() if reply.usage else None,
            }
            of = {"of": opening.conversation_id}
            if status == "whole":
                held = {
                    "lease": _lease(opening.conversation_id),
                    "by": opening.holder,
                    "answer": opening.answer_id,
                }
                connection.execute(GO_ON, of | held | {"now": now})
            else:
                connection.execute(TOUCH, of | {"updated": now})
            _free(connection, opening)
            there = (
                connection.execute(ANSWER, {"of": opening.answer_id} | kept).rowcount
                == 1
            )
            _settle(connection, opening, outcome if there else Claimed("gone"), now)

        self._write(work)

    def forget(self, opening: Opening) -> None:
        """Undo a turn that no upstream took, and free the leases: the question was never asked."""

        def work(connection: Connection) -> None:
            if opening.new:
                _delete_conversation(connection, opening.conversation_id)
            else:
                connection.execute(OPEN, {"of": opening.conversation_id})
                ids = (opening.question_id, opening.answer_id)
                connection.execute(delete(messages).where(messages.c.id.in_(ids)))
            _free(connection, opening)
            _settle(connection, opening, None, self._clock())

        self._write(work)

    def release(
        self,
        opening: Opening,
        outcome: Claimed | None = None,
        row: Conversation | None = None,
    ) -> None:
        """Free the leases of a turn of which nothing else is kept here than its conversation's index row.

        A row that was deleted meanwhile stays so, and nothing of the answer is kept for its key either.
        """

        def work(connection: Connection) -> None:
            there = row is None or _renoted(connection, row, self._clock())
            _free(connection, opening)
            _settle(
                connection,
                opening,
                outcome if there else Claimed("gone"),
                self._clock(),
            )

        self._write(work)

    def note(self, row: Conversation) -> None:
        """Put a conversation that lives elsewhere into the index, or bring its row up to date."""

        def work(connection: Connection) -> None:
            if not _renoted(connection, row, self._clock()):
                kept = {
                    name: getattr(row, name)
                    for name in (
                        "id",
                        "owner",
                        "upstream",
                        "account",
                        "title",
                        "newest",
                    )
                }
                times = {
                    "remote": True,
                    "created": self._clock(),
                    "updated": self._clock(),
                }
                connection.execute(insert(conversations), kept | times)

        self._write(work)

    def find(self, conversation_id: str) -> Conversation | None:
        """A conversation's index row, whoever owns it."""
        row = self._read(
            lambda connection: connection.execute(FIND, {"of": conversation_id}).first()
        )
        return _conversation(row) if row is not None else None

    def renew(self, holders: Collection[str], seconds: float) -> None:
        """Hold on to the leases of `holders` for `seconds` from now."""
        ours = (
            select(leases.c.name)
            .where(leases.c.holder.in_(holders))
            .order_by(leases.c.name)
        )

        def work(connection: Connection) -> None:
            # a row that is locked is being freed, or looked at: the next time is soon enough
            names = (
                connection.execute(ours.with_for_update(skip_locked=True))
                .scalars()
                .all()
            )
            until = {"expires": self._clock() + seconds}
            connection.execute(
                update(leases).where(leases.c.name.in_(names)).values(until)
            )

        self._write(work)

    def list(
        self, owner: str, offset: int, limit: int, search: str = ""
    ) -> list[Conversation]:
        """The owner's conversations without their messages, newest first; with `search`, those in which it was said."""
        page: dict[str, Any] = {"by": owner, "skip": offset, "most": limit}
        if search:
            page["words"] = _pattern(search)
        wanted = SEARCH if search else LIST
        return [
            _conversation(row)
            for row in self._read(
                lambda connection: connection.execute(wanted, page).all()
            )
        ]

    def get(self, owner: str, conversation_id: str) -> Conversation:
        """One conversation with all its messages, in the order in which they were said."""

        def work(connection: Connection) -> tuple[Row[Any], list[Row[Any]], str | None]:
            row = _owned(connection, owner, conversation_id)
            nodes = connection.execute(ALL_OF, {"of": conversation_id}).all()
            running = connection.execute(
                HELD, {"of": _lease(conversation_id), "now": self._clock()}
            ).scalar()
            return row, list(nodes), running

        row, nodes, running = self._read(work)
        return _conversation(row, tuple(_node(node, running) for node in nodes))

    def rename(self, owner: str, conversation_id: str, title: str) -> None:
        def work(connection: Connection) -> None:
            _owned(connection, owner, conversation_id)
            connection.execute(TOUCH, {"of": conversation_id, "title": title})

        self._write(work)

    def delete(self, owner: str, conversation_id: str) -> None:
        """A conversation, its words and what of them is kept for asks with a key are gone."""

        def work(connection: Connection) -> None:
            _owned(connection, owner, conversation_id)
            _delete_conversation(connection, conversation_id)

        self._write(work)
        self._database.erase()

    def expire(self, seconds: float) -> int:
        """Delete the conversations in which nothing was said for `seconds`; how many there were."""
        gone, found = 0, True
        while found:
            found = bool(
                done := self._write(
                    lambda connection: _expire(connection, self._clock(), seconds)
                )
            )
            gone += done
        if gone:
            self._database.erase()
        return gone

    def tidy(self) -> None:
        """Delete settled asks whose time is over, and the leases of processes that died long ago."""

        def work(connection: Connection) -> int:
            connection.execute(delete(leases).where(leases.c.expires <= old))
            return connection.execute(
                delete(requests).where(requests.c.updated <= old)
            ).rowcount

        old = self._clock() - REPLAY_SECONDS
        if self._write(work):
            self._database.erase()

    def _take(
        self, connection: Connection, name: str, holder: str, now: float, seconds: float
    ) -> bool:
        row = {"name": name, "holder": holder, "expires": now + seconds, "now": now}
        return connection.execute(self._taking, row).first() is not None


def _lease(conversation_id: str) -> str:
    return f"conversation/{conversation_id}"


def _key_lease(claim: Claim) -> str:
    return f"request/{claim.owner}/{claim.key}"


def _free(connection: Connection, opening: Opening) -> None:
    connection.execute(
        FREE, {"of": _lease(opening.conversation_id), "by": opening.holder}
    )


def _settle(
    connection: Connection, opening: Opening, outcome: Claimed | None, now: float
) -> None:
    """Keep how an ask with a key ended; without an outcome its key is free again."""
    if (claim := opening.claim) is None:
        return
    connection.execute(FREE, {"of": _key_lease(claim), "by": opening.holder})
    of = {"whose": claim.owner, "named": claim.key, "by": opening.holder}
    if outcome is None:
        connection.execute(UNCLAIM, of)
    else:
        told = _storable(orjson.dumps(outcome.outcome).decode())
        where = {"conversation_id": outcome.outcome.get("conversation_id")}
        connection.execute(
            SETTLE,
            of | where | {"state": outcome.state, "outcome": told, "updated": now},
        )


def _renoted(connection: Connection, row: Conversation, now: float) -> bool:
    """Bring an index row up to date, unless it is another owner's; False where there is none."""
    known = connection.execute(OPEN, {"of": row.id}).first()
    if known is not None and known.owner == row.owner:
        kept = {
            "updated": now,
            "newest": row.newest or known.newest,
            "account": row.account,
        }
        connection.execute(TOUCH, {"of": row.id} | kept)
    return known is not None


def _storable(text: str) -> str:
    return text.replace("\0", "\ufffd")  # PostgreSQL's text holds none


def _pattern(search: str) -> str:
    """What LIKE finds these words by, wherever they stand."""
    words = search
    for special in ("\\", "%", "_"):
        words = words.replace(special, f"\\{special}")
    return f"%{words}%"


def _expire(connection: Connection, now: float, seconds: float) -> int:
    held = exists().where(
        leases.c.name == "conversation/" + conversations.c.id, leases.c.expires > now
    )
    old = (
        select(conversations.c.id)
        .where(conversations.c.updated < now - seconds, ~held)
        .limit(BATCH)
    )
    found = connection.execute(old.with_for_update(skip_locked=True)).scalars().all()
    gone = 0
    for conversation_id in found:  # locked now, so what was begun meanwhile shows
        if (
            connection.execute(
                HELD, {"of": _lease(conversation_id), "now": now}
            ).first()
            is None
        ):
            _delete_conversation(connection, conversation_id)
            gone += 1
    return gone


def _owned(connection: Connection, owner: str, conversation_id: str) -> Row[Any]:
    row = connection.execute(MINE, {"of": conversation_id, "by": owner}).first()
    if row is None:
        raise NoConversation()
    return row


def _known(connection: Connection, opening: Opening) -> Row[Any] | None:
    """The index row of a conversation that goes on; None for one that may be adopted."""
    row = connection.execute(OPEN, {"of": opening.conversation_id}).first()
    if row is None and opening.adopt:
        return None
    if row is None or row.owner != opening.owner:
        raise NoConversation()
    return row


def _known_parent(
    connection: Connection, opening: Opening, newest: str | None
) -> str | None:
    """The message that the question follows: the one named, else the newest whole answer, else the beginning."""
    parent = opening.parent or newest or ROOT
    if parent == ROOT:
        last: str | None = None
        for row in connection.execute(SYSTEM, {"of": opening.conversation_id}):
            last = row.id if row.parent == last else last
        return last
    if opening.parent is None:
        return newest
    role = connection.execute(
        ROLE, {"of": opening.conversation_id, "id": parent}
    ).scalar()
    if role is None:
        raise NoConversation(
            "This conversation has no message with that parent id. Leave it out to go on from the newest answer."
        )
    if role == "user":
        raise BadRequest(
            "The parent id names a question. Send the id of an answer, as an earlier reply gave it."
        )
    return parent


def _new_conversation(
    connection: Connection, opening: Opening, now: float
) -> str | None:
    """Keep a new conversation and what it begins with; the last of that is what its first question follows."""
    parent: str | None = None
    rows: list[tuple[str, str | None, str, str, str]] = []
    for message in opening.before:
        rows.append((str(uuid.uuid4()), parent, message.role, message.text, "whole"))
        parent = rows[-1][0]
    told = any(message.role not in SYSTEM_ROLES for message in opening.before)
    row = {
        "id": opening.conversation_id,
        "owner": opening.owner,
        "upstream": opening.upstream,
        "title": opening.title,
    }
    times = {
        "remote": False,
        "newest": parent if told else None,
        "created": now,
        "updated": now,
    }
    connection.execute(insert(conversations), row | times)
    if rows:
        _insert_messages(connection, opening.conversation_id, rows, now)
    return parent


def _insert_messages(
    connection: Connection,
    conversation_id: str,
    rows: list[tuple[str, str | None, str, str, str]],
    now: float,
) -> None:
    names = ("id", "parent", "role", "text", "status")
    same = {"conversation_id": conversation_id, "created": now}
    connection.execute(
        insert(messages), [dict(zip(names, row, strict=True)) | same for row in rows]
    )


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
    connection.execute(
        delete(conversations).where(conversations.c.id == conversation_id)
    )
    connection.execute(delete(leases).where(leases.c.name == _lease(conversation_id)))
    connection.execute(
        delete(messages).where(messages.c.conversation_id == conversation_id)
    )
    gone = (
        update(requests)
        .where(requests.c.conversation_id == conversation_id)
        .values(state="gone", outcome=None)
    )
    connection.execute(gone)


def _conversation(row: Row[Any], nodes: tuple[Node, ...] = ()) -> Conversation:
    where = row.upstream, row.account
    return Conversation(
        row.id,
        row.owner,
        *where,
        row.title,
        row.newest,
        row.created,
        row.updated,
        bool(row.remote),
        nodes,
    )


def _node(row: Row[Any], running: str | None) -> Node:
    # An answer that is open though nobody works on it was left by a process that was killed.
    status: Status = (
        "broken" if row.status == "open" and row.id != running else row.status
    )
    return Node(
        row.id,
        row.parent,
        row.role,
        row.text,
        status,
        row.created,
        row.model,
        row.finish_reason,
        row.reasoning,
    )
