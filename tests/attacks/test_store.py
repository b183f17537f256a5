"""What strangers write into the database, how much of it one ask reads, who waits, and whose a conversation is."""

from __future__ import annotations

import gc
import random
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from flask import Flask
from sqlalchemy import create_engine, text

from relay import chat as chat_module
from relay.chat import Chat, Routing, Waiting
from relay.conversations import Conversations
from relay.delivery import Silent
from relay.domain import Ask, Caller, Conversation, Message
from relay.errors import (
    Busy,
    CallerLeft,
    NoConversation,
    OutcomeUnknown,
    TokenRejected,
    TooLarge,
    UpstreamCut,
)
from relay.server import in_place
from relay.store import LARGEST_CONVERSATION, Store
from relay.tables import history
from relay.tables.messages import MESSAGE_SIZE
from relay.turn import Turn
from relay.upkeep import MOST_WAITERS, Leases
from relay.window import fit
from tests.chatgpt_backend import Backend
from tests.openai_backend import OpenAIBackend
from tests.processes import Service
from tests.replies import body_of
from tests.scripted import Scripted
from tests.tokens import jwt
from tests.turns import answered, following, new_turn
from tests.waiting import wait_for

ON_BOTH = True
pytestmark = pytest.mark.attack

SECRET = "a-word-that-nobody-else-says"
TABLES = ("conversations", "messages", "requests", "leases")
STRANGER = Caller("token-x", may_spend=False, token="sk-invalid", unverified=True)
OWNER = Caller("owner", may_spend=True)


@pytest.fixture
def url(tmp_path: Path, database: str) -> str:
    return database or f"sqlite:///{tmp_path}/data/test.db"


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    store = Store(url, in_place)
    yield store
    store.close()


@pytest.fixture
def rows(url: str) -> Iterator[Callable[[str], list[dict[str, Any]]]]:
    """All rows of a table."""
    engine = create_engine(url)

    def select(table: str) -> list[dict[str, Any]]:
        with engine.connect() as connection:
            found = connection.execute(text(f"SELECT * FROM {table}")).mappings()
            return [dict(row) for row in found]

    yield select
    engine.dispose()


def chat_of(store: Store, *upstreams: Scripted, budget: int = 0) -> Chat:
    by_name = {upstream.name: upstream for upstream in upstreams}
    routing = Routing(lambda: upstreams[0].name)
    return Chat(by_name, routing, store, Leases(store.renew), budget)


def opened(chat: Chat, ask: Ask) -> Turn:
    turn = chat.open(ask, Silent())
    assert isinstance(turn, Turn)
    return turn


def whole(chat: Chat, ask: Ask) -> Turn:
    turn = opened(chat, ask)
    feed(turn)
    return turn


def feed(turn: Turn) -> None:
    for piece in (b"S|", b"Hel|lo|", b"F|"):
        turn.feed(piece)
        turn.accepted()
    turn.end()


def count_writes(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one for each write."""
    store.note_ask("owner")  # once a minute
    writes: list[int] = []
    write = store._write

    def counted(work: Any) -> Any:
        writes.append(1)
        return write(work)

    monkeypatch.setattr(store, "_write", counted)
    return writes


# A token that nobody has checked


@pytest.mark.parametrize("key", [None, f"key-{SECRET}"])
def test_nothing_is_written_for_a_token_that_nobody_has_checked(
    store: Store, rows: Callable[..., Any], key: str | None
) -> None:
    upstream = Scripted(accepts_caller_tokens=True)
    chat = chat_of(store, upstream)
    preamble = (Message("system", SECRET),)
    turn = opened(
        chat, Ask(SECRET, STRANGER, preamble=preamble, idempotency_key=key, route="ask")
    )
    assert rows("conversations") == rows("messages") == []
    assert SECRET not in str([rows(table) for table in TABLES])
    assert upstream.asked[0].messages == (*preamble, Message("user", SECRET))
    turn.fail(TokenRejected("no"))
    assert turn.conversation_id == ""
    assert [rows(table) for table in TABLES] == [[], [], [], []]


def test_an_accepted_question_is_written_at_once(
    store: Store, rows: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = count_writes(store, monkeypatch)
    chat = chat_of(store, Scripted(accepts_caller_tokens=True))
    preamble = (Message("system", "Be kind."),)
    turn = opened(chat, Ask("one", STRANGER, preamble=preamble))
    assert len(writes) == 0
    turn.feed(b"S|Hel|")
    turn.accepted()
    turn.accepted()
    assert len(writes) == 1
    kept = store.get("token-x", turn.conversation_id)
    assert [(node.role, node.text, node.status) for node in kept.nodes] == [
        ("system", "Be kind.", "whole"),
        ("user", "one", "whole"),
        ("assistant", "", "open"),
    ]
    again = Ask("two", STRANGER, conversation_id=turn.conversation_id)
    assert chat.open(again, Silent()) is Waiting.CONVERSATION, "it is busy"
    before = len(writes)
    turn.feed(b"lo|F|")
    turn.end()
    assert len(writes) == before + 1
    kept = store.get("token-x", turn.conversation_id)
    assert kept.nodes[-1].text == "Hello" and kept.newest == kept.nodes[-1].id
    assert len(rows("leases")) == 0


def test_a_key_holders_turn_is_two_writes(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = count_writes(store, monkeypatch)
    chat = chat_of(store, Scripted())
    first = opened(chat, Ask("one", OWNER))
    assert len(store.get("owner", first.conversation_id).nodes) == 2
    feed(first)
    whole(chat, Ask("two", OWNER, conversation_id=first.conversation_id))
    assert len(writes) == 4


def test_an_existing_conversation_gets_the_question_when_it_is_accepted(
    store: Store, rows: Callable[..., Any]
) -> None:
    upstream = Scripted(accepts_caller_tokens=True)
    chat = chat_of(store, upstream)
    first = whole(chat, Ask("one", STRANGER))
    before = rows("conversations"), rows("messages")
    ask = Ask(SECRET, STRANGER, conversation_id=first.conversation_id)
    refused = opened(chat, ask)
    assert (rows("conversations"), rows("messages")) == before
    assert len(rows("leases")) == 1
    assert (
        chat.open(Ask("x", STRANGER, first.conversation_id), Silent())
        is Waiting.CONVERSATION
    )
    refused.fail(TokenRejected("no"))
    assert (rows("conversations"), rows("messages")) == before
    assert rows("leases") == []
    whole(chat, ask)
    assert [message.text for message in upstream.asked[-1].messages] == [
        "one",
        "Hello",
        SECRET,
    ]
    nodes = store.get("token-x", first.conversation_id).nodes
    assert [node.text for node in nodes] == ["one", "Hello", SECRET, "Hello"]
    assert [node.parent for node in nodes] == [None, *(node.id for node in nodes[:3])]


def test_what_was_sent_and_never_accepted_leaves_hashes_alone(
    store: Store, rows: Callable[..., Any]
) -> None:
    chat = chat_of(store, Scripted(accepts_caller_tokens=True))
    ask = Ask(SECRET, STRANGER, idempotency_key=SECRET, route="ask")
    turn = opened(chat, ask)
    turn.fail(UpstreamCut())
    assert rows("conversations") == rows("messages") == rows("leases") == []
    [row] = rows("requests")
    assert row["state"] == "unknown" and SECRET not in str(row)
    with pytest.raises(OutcomeUnknown):
        chat.open(ask, Silent())
    left = opened(chat, Ask(SECRET, STRANGER))
    left.fail(CallerLeft())
    assert rows("conversations") == [] and left.conversation_id == ""


def test_a_conversation_that_is_deleted_before_the_acceptance_stays_so(
    store: Store, rows: Callable[..., Any]
) -> None:
    chat = chat_of(store, Scripted(accepts_caller_tokens=True))
    first = whole(chat, Ask("one", STRANGER))
    turn = opened(chat, Ask(SECRET, STRANGER, conversation_id=first.conversation_id))
    store.delete("token-x", first.conversation_id)
    feed(turn)
    assert [rows(table) for table in TABLES] == [[], [], [], []]


@pytest.mark.parametrize("server", ["pywsgi", "gunicorn"])
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_strangers_leave_nothing_on_the_disk(
    serve: Callable[..., Service],
    api: OpenAIBackend,
    tmp_path: Path,
    server: str,
    database: str,
) -> None:
    service = serve(
        server,
        OPENAI_BASE_URL=api.url,
        OPENAI_API_KEY="sk-invented-1",
        OPENAI_MODEL="tiny-1",
        AUTHORIZATION="the-clients-own-key",
        ALLOW_CALLER_TOKENS="any",
    )
    body = (SECRET + " ").encode() * 300_000  # 8.7 MB

    def ask(number: int) -> int:
        headers = {
            "Authorization": f"Bearer sk-invalid-{number}",
            "Content-Type": "text/plain",
        }
        if number % 2:
            headers["Idempotency-Key"] = f"k{number}"
        answer = requests.post(
            f"{service.url}/ask", data=body, headers=headers, timeout=60
        )
        return answer.status_code

    with ThreadPoolExecutor(2) as pool:
        assert set(pool.map(ask, range(6))) == {401}
    # a keyed ask may outlive its caller for a moment
    folder = tmp_path / "data"
    wait_for(lambda: sum(path.stat().st_size for path in folder.iterdir()) < 500_000)
    files = b"".join(path.read_bytes() for path in folder.iterdir())
    assert SECRET.encode() not in files
    assert "Traceback" not in service.logged()


# A refused question of a key-holder


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_refused_question_leaves_the_files_soon_and_once_for_many(
    store: Store, tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints: list[int] = []
    writer = store._database._writer  # type: ignore[attr-defined]
    empty_log = writer._empty_log

    def counted() -> None:
        checkpoints.append(1)
        empty_log()

    monkeypatch.setattr(writer, "_empty_log", counted)
    monkeypatch.setattr("relay.database.ERASE_SECONDS", 0.5)

    def files() -> bytes:
        return b"".join(path.read_bytes() for path in (tmp_path / "data").iterdir())

    first = answered(store, new_turn("one"))
    for number in range(40):
        request = following(first, f"{SECRET} {number}" * 100)
        if number % 2:
            request = new_turn(f"{SECRET} {number}" * 100)
        assert store.open_turn(request, 15)
        store.discard_turn(request)
    assert SECRET.encode() in files() and len(checkpoints) <= 2
    wait_for(lambda: SECRET.encode() not in files())
    assert 1 <= len(checkpoints) <= 3


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_stop_erases_what_is_due_and_a_start_what_a_kill_left(
    url: str, tmp_path: Path, database: str
) -> None:
    def files() -> bytes:
        return b"".join(path.read_bytes() for path in (tmp_path / "data").iterdir())

    reader = Store(url, in_place)  # while it is open, SQLite itself keeps the log
    store = Store(url, in_place)
    refused = new_turn(SECRET)
    assert store.open_turn(refused, 15)
    store.discard_turn(refused)
    assert SECRET.encode() in files()
    store.close()
    assert SECRET.encode() not in files()
    killed = Store(url, in_place)
    assert killed.open_turn(refused, 15)
    writer = killed._database._writer  # type: ignore[attr-defined]
    writer.checkpoint_soon = lambda: None
    killed.discard_turn(refused)
    assert SECRET.encode() in files()
    Store(url, in_place).close()
    assert SECRET.encode() not in files()
    killed.close()
    reader.close()


# A large conversation


def dialogue(store: Store, rng: random.Random) -> tuple[str, list[Message]]:
    """A conversation with texts of all lengths, some broken answers and some system messages; its usable messages."""
    letters = ["x", "é", "你", "🙂"]

    def words() -> str:
        return rng.choice(letters) * rng.choice([0, 1, 3, 40, 300, 2000])

    preamble: list[Message] = []
    for _ in range(rng.choice([0, 0, 1, 4])):
        role = rng.choice(["system", "developer", "user", "assistant"])
        preamble.append(Message(role, words()))
    request = new_turn(words(), preamble=tuple(preamble))
    usable = list(preamble)
    first = request
    for _ in range(rng.randrange(1, 8)):
        answer = None if rng.random() < 0.2 else words()
        answered(store, request, answer)
        if answer is not None:
            usable += [request.question, Message("assistant", answer)]
        request = following(first, words())
    return first.conversation_id, usable


@pytest.mark.parametrize("page", [1, 3, 100])
def test_what_is_loaded_is_what_goes_upstream(
    store: Store, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    monkeypatch.setattr(history, "PAGE", page)
    monkeypatch.setattr(history, "SHORT", 50)
    monkeypatch.setattr(history, "SELECT_PAGE", history._select_page())
    rng = random.Random(page)
    for _ in range(25):
        conversation_id, usable = dialogue(store, rng)
        for budget in (0, 1, 5, *(rng.randrange(10, 4000) for _ in range(6))):
            prompt = "p" * rng.choice([0, 5, 400])
            going_on = new_turn(
                prompt, conversation_id=conversation_id, is_new=False, budget=budget
            )
            found = store.open_turn(going_on, 15)
            store.discard_turn(going_on)
            assert found is not None
            question = Message("user", prompt)
            expected = fit((*usable, question), budget)
            assert found.history == expected.messages[:-1]
            assert found.dropped == expected.dropped
            loaded = fit((*found.history, question), budget)
            assert loaded.messages == expected.messages and loaded.dropped == 0


def fill(store: Store, megabytes: int, upstream: str) -> str:
    """A conversation of so many megabytes in eight answers, and a short one."""
    turns = 8
    first = request = new_turn("one", system="Be kind.", upstream=upstream)
    for _ in range(turns):
        answered(store, request, "x" * (megabytes * 2**20 // turns))
        request = following(first, "more")
    answered(store, request, "the newest answer")
    return first.conversation_id


def test_a_tiny_ask_reads_no_more_than_it_sends(store: Store) -> None:
    upstream = Scripted()
    chat = chat_of(store, upstream, budget=1000)
    ask = Ask("tiny", OWNER, conversation_id=fill(store, 32, "scripted"))
    gc.collect()
    tracemalloc.start()
    turn = chat.open(ask, Silent())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(turn, Turn) and turn.remarks.dropped == 16
    turn.fail(CallerLeft())
    texts = [message.text for message in upstream.asked[-1].messages]
    assert texts == ["Be kind.", "more", "the newest answer", "tiny"]
    assert peak < 2 * 2**20


def test_a_conversation_has_a_largest_size(
    store: Store, monkeypatch: pytest.MonkeyPatch, rows: Callable[..., Any]
) -> None:
    assert LARGEST_CONVERSATION == 64 * 2**20
    monkeypatch.setattr("relay.store.LARGEST_CONVERSATION", 2**20)
    chat = chat_of(store, Scripted())
    first = whole(chat, Ask("x" * 600_000, OWNER, preamble=(Message("user", "é"),)))
    again = Ask("y" * 600_000, OWNER, conversation_id=first.conversation_id)
    branch = Ask(
        "y" * 600_000,
        OWNER,
        conversation_id=first.conversation_id,
        parent_id="client-created-root",
    )
    for ask in (again, branch):
        with pytest.raises(TooLarge, match="begin a new one") as refused:
            chat.open(ask, Silent())
        assert refused.value.status == 413
    [row] = rows("conversations")
    assert row["size"] == 600_000 + len("é".encode()) + len("Hello") + 3 * MESSAGE_SIZE
    assert len(rows("messages")) == 3 and rows("leases") == []
    whole(chat, Ask("y", OWNER, conversation_id=first.conversation_id))
    many = (Message("user", ""),) * 2000
    for ask in (Ask("z", OWNER, preamble=many), Ask("é" * 600_000, OWNER)):
        with pytest.raises(TooLarge):
            chat.open(ask, Silent())
    stranger = Ask("é" * 600_000, STRANGER)
    with pytest.raises(TooLarge):
        chat_of(store, Scripted(accepts_caller_tokens=True)).open(stranger, Silent())
    assert len(rows("conversations")) == 1


def test_broken_answers_count_too(store: Store, rows: Callable[..., Any]) -> None:
    first = answered(store, new_turn("one"), None)
    [row] = rows("conversations")
    assert row["size"] == len("one") + len("Hal") + 2 * MESSAGE_SIZE
    answered(store, following(first, "two"), "due")
    [row] = rows("conversations")
    assert row["size"] == len("oneHaltwodue") + 4 * MESSAGE_SIZE


@pytest.mark.parametrize("server", ["pywsgi", "gunicorn"])
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_tiny_ask_of_a_large_conversation_leaves_the_service_small(
    serve: Callable[..., Service],
    api: OpenAIBackend,
    tmp_path: Path,
    server: str,
    database: str,
) -> None:
    url = f"sqlite:///{tmp_path}/data/conversations.db"
    store = Store(url, in_place)
    conversation_id = fill(store, 60, "openai")
    store.close()
    service = serve(
        server,
        OPENAI_BASE_URL=api.url,
        OPENAI_API_KEY="sk-invented-1",
        OPENAI_MODEL="tiny-1",
        AUTHORIZATION="owner:the-clients-own-key",
    )
    before = service.resident()
    longest = [0.0]
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            began = time.monotonic()
            requests.get(f"{service.url}/healthz", timeout=30)
            longest[0] = max(longest[0], time.monotonic() - began)

    looking = threading.Thread(target=look)
    looking.start()
    for _ in range(3):
        answer = requests.post(
            f"{service.url}/ask",
            data={"msg": "tiny", "conversation_id": conversation_id},
            headers={"Authorization": "Bearer the-clients-own-key"},
            timeout=60,
        )
        assert answer.status_code == 200, answer.text
        assert answer.headers["X-History-Dropped"] == "16"
    stop.set()
    looking.join()
    assert service.resident() < min(250, before + 40) and longest[0] < 0.5


# Those who wait


def test_a_waiter_is_prepared_once_and_woken(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    prints: list[Ask] = []
    fingerprint = chat_module._fingerprint

    def counted(ask: Ask) -> str:
        prints.append(ask)
        return fingerprint(ask)

    monkeypatch.setattr(chat_module, "_fingerprint", counted)
    chat = chat_of(store, Scripted())
    first = whole(chat, Ask("one", OWNER))
    running = opened(chat, Ask("two", OWNER, conversation_id=first.conversation_id))
    writes = count_writes(store, monkeypatch)
    waiting = Ask(
        "three",
        OWNER,
        conversation_id=first.conversation_id,
        idempotency_key="k",
        route="ask",
    )
    freed = [0.0]

    def release() -> None:
        time.sleep(1)
        running.fail(CallerLeft())
        freed[0] = time.monotonic()

    releasing = threading.Thread(target=release)
    releasing.start()
    turn: Turn | Waiting = Waiting.CONVERSATION
    while isinstance(turn, Waiting):
        turn = chat.open(waiting, Silent())
    found = time.monotonic()
    releasing.join()
    assert found - freed[0] < 2, "it is woken, and not found at the next poll"
    assert len(prints) == 1
    # the first look is three writes, and so is the last one; one ends the turn that was waited for
    assert len(writes) <= 8
    turn.fail(CallerLeft())
    assert chat._waiters._waiting == {}


def test_the_same_ask_with_a_key_is_woken_too(store: Store) -> None:
    chat = chat_of(store, Scripted())
    ask = Ask("one", OWNER, idempotency_key="k", route="ask")
    again = Ask("one", OWNER, idempotency_key="k", route="ask")
    running = opened(chat, ask)
    assert chat.open(again, Silent()) is Waiting.SAME_ASK
    timer = threading.Timer(0.3, feed, [running])
    timer.start()
    replayed: Turn | Waiting = Waiting.SAME_ASK
    until = time.monotonic() + 5
    while isinstance(replayed, Waiting) and time.monotonic() < until:
        replayed = chat.open(again, Silent())
    assert isinstance(replayed, Turn) and replayed.remarks.replayed
    timer.join()


def test_few_wait_for_one_conversation(store: Store) -> None:
    chat = chat_of(store, Scripted())
    first = whole(chat, Ask("one", OWNER))
    other = whole(chat, Ask("one", OWNER))
    name = first.conversation_id
    running = opened(chat, Ask("two", OWNER, conversation_id=name))
    busy = opened(chat, Ask("two", OWNER, conversation_id=other.conversation_id))
    waiting = [
        Ask(str(number), OWNER, conversation_id=name) for number in range(MOST_WAITERS)
    ]
    for ask in waiting:
        assert chat.open(ask, Silent()) is Waiting.CONVERSATION
    for key in (None, "k"):
        late = Ask("late", OWNER, conversation_id=name, idempotency_key=key)
        began = time.monotonic()
        with pytest.raises(Busy):
            chat.open(late, Silent())
        assert time.monotonic() - began < 0.2
    elsewhere = Ask("three", OWNER, conversation_id=other.conversation_id)
    assert chat.open(elsewhere, Silent()) is Waiting.CONVERSATION, (
        "the bound is a conversation's"
    )
    del waiting[-1], ask
    gc.collect()
    late = Ask("late", OWNER, conversation_id=name)
    assert chat.open(late, Silent()) is Waiting.CONVERSATION, "one gave up"
    running.fail(CallerLeft())
    turn = opened(chat, late)
    still_there = chat._waiters.find(waiting[0])
    assert still_there is not None
    turn.fail(CallerLeft())
    busy.fail(CallerLeft())


def test_waiters_that_give_up_are_not_counted(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.upkeep.GONE_SECONDS", 0.05)
    chat = chat_of(store, Scripted())
    first = whole(chat, Ask("one", OWNER))
    running = opened(chat, Ask("two", OWNER, conversation_id=first.conversation_id))
    asks = [
        Ask(str(number), OWNER, conversation_id=first.conversation_id)
        for number in range(MOST_WAITERS + 5)
    ]
    for ask in asks:
        time.sleep(0.01)
        assert chat.open(ask, Silent()) is Waiting.CONVERSATION
    running.fail(CallerLeft())


def test_another_process_is_polled_for(store: Store, url: str) -> None:
    chat = chat_of(store, Scripted())
    first = whole(chat, Ask("one", OWNER))
    other_store = Store(url, in_place)
    other = chat_of(other_store, Scripted())
    running = opened(other, Ask("two", OWNER, conversation_id=first.conversation_id))
    ask = Ask("three", OWNER, conversation_id=first.conversation_id)
    for _ in range(3):
        assert chat.open(ask, Silent()) is Waiting.CONVERSATION
    running.fail(CallerLeft())
    opened(chat, ask).fail(CallerLeft())
    other_store.close()


# Members of one workspace


class Shelf:
    """An upstream's history that shows each conversation to some tokens."""

    has_accounts = False

    def __init__(self, shown: dict[str, tuple[str, ...]]) -> None:
        self.shown = shown
        self.changed: list[str] = []

    def recognizes(self, token: str) -> bool:
        return True

    def list(self, caller: Caller, most: int) -> list[dict[str, Any]]:
        return []

    def read(self, caller: Caller, name: str, account: str | None) -> dict[str, Any]:
        if caller.token not in self.shown.get(name, ()):
            raise NoConversation()
        return {"title": "theirs", "mapping": {}, "current_node": "n1"}

    def change(
        self, caller: Caller, name: str, account: str | None, changes: dict[str, Any]
    ) -> None:
        self.read(caller, name, account)
        self.changed.append(name)

    def make_title(self, caller: Caller, name: str, account: str | None) -> str:
        self.read(caller, name, account)
        return "found"


def member(name: str) -> Caller:
    return Caller(f"account-{name}", False, name, True, "account-workspace")


ALICE = member("alice")
BOB = member("bob")


def shelf_of(store: Store) -> Shelf:
    """A conversation of alice's, from when the whole workspace was one owner."""
    row = Conversation(
        "c1", "account-workspace", "web", "account-workspace", SECRET, "n1", 0, 0, True
    )
    store.index(row)
    return Shelf({"c1": ("alice",)})


ATTEMPTS: dict[str, Callable[[Conversations, Caller], Any]] = {
    "read": lambda conversations, caller: conversations.read(caller, "c1"),
    "rename": lambda conversations, caller: conversations.rename(caller, "c1", "x"),
    "title": lambda conversations, caller: conversations.make_title(caller, "c1"),
    "delete": lambda conversations, caller: conversations.delete(caller, "c1"),
}


@pytest.mark.parametrize("attempt", ATTEMPTS.values(), ids=ATTEMPTS)
def test_a_conversation_of_before_goes_to_whom_its_upstream_shows_it(
    store: Store, attempt: Callable[[Conversations, Caller], Any]
) -> None:
    shelf = shelf_of(store)
    conversations = Conversations(store, {"web": shelf}, sole_owner=False)
    before = store.find("c1")
    with pytest.raises(NoConversation):
        attempt(conversations, BOB)
    assert conversations.list(BOB, 0, 10).items == []
    assert conversations.list(BOB, 0, 10, SECRET[:6]).items == []
    assert store.find("c1") == before and shelf.changed == []
    assert conversations.list(ALICE, 0, 10, SECRET[:6]).items == []
    attempt(conversations, ALICE)
    row = store.find("c1")
    assert row is None or row.owner == ALICE.owner
    with pytest.raises(NoConversation):
        attempt(conversations, BOB)
    assert store.find("c1") == row


def test_it_goes_on_for_whom_its_upstream_shows_it(store: Store) -> None:
    upstream = Scripted(name="web", accepts_caller_tokens=True)
    upstream.stores_conversations = True
    upstream.history = shelf_of(store)  # type: ignore[assignment]
    chat = chat_of(store, upstream)
    with pytest.raises(NoConversation):
        chat.open(Ask("more", BOB, conversation_id="c1"), Silent())
    assert upstream.asked == []
    turn = opened(chat, Ask("more", ALICE, conversation_id="c1"))
    turn.fail(CallerLeft())
    assert (upstream.asked[0].conversation_id, upstream.asked[0].parent_id) == (
        "c1",
        "n1",
    )
    row = store.find("c1")
    assert row is not None and row.owner == ALICE.owner


def test_a_404_upstream_deletes_no_row_for_what_a_token_claims(store: Store) -> None:
    row = Conversation("c2", ALICE.owner, "web", None, "t", "n1", 0, 0, True)
    store.index(row)
    shelf = Shelf({})
    conversations = Conversations(store, {"web": shelf}, sole_owner=True)
    with pytest.raises(NoConversation):
        conversations.delete(ALICE, "c2")
    assert store.find("c2") is not None
    proven = Caller(ALICE.owner, True)
    with pytest.raises(NoConversation):
        conversations.delete(proven, "c2")
    assert store.find("c2") is None


def test_a_local_conversation_of_before_is_nobodys(store: Store) -> None:
    """No upstream can say whose it is."""
    old = answered(store, new_turn(SECRET, owner="account-workspace"))
    conversations = Conversations(store, {}, sole_owner=False)
    chat = chat_of(store, Scripted(accepts_caller_tokens=True))
    with pytest.raises(NoConversation):
        conversations.read(ALICE, old.conversation_id)
    with pytest.raises(NoConversation):
        chat.open(Ask("x", ALICE, conversation_id=old.conversation_id), Silent())
    assert conversations.list(ALICE, 0, 10, SECRET).items == []


def test_two_people_of_one_workspace(
    build: Callable[..., Flask], backend: Backend
) -> None:
    app = build(reverse_proxy=backend.url, authorization=("a-long-key-of-ours",))
    claims = {"chatgpt_account_id": "workspace", "user_id": ""}
    tokens = {
        name: jwt(**{"https://api.openai.com/auth": {**claims, "user_id": name}})
        for name in ("alice", "bob")
    }
    headers = {
        name: {"Authorization": f"Bearer {token}"} for name, token in tokens.items()
    }
    web = app.test_client()
    first = body_of(web.post("/ask", data={"msg": SECRET}, headers=headers["alice"]))
    name = first["data"]["conversation_id"]
    path = f"/conversation/{name}"
    fields = {"msg": "more", "conversation_id": name}
    store = app.extensions["service"].store
    before = store.find(name)
    for kept_by_an_older_version in (False, True):
        if kept_by_an_older_version:
            row = store.find(name)
            assert row is not None
            access = app.extensions["service"].access
            caller = access.caller(headers["bob"]["Authorization"], None)
            assert caller.former_owner
            store.take_over(name, row.owner, caller.former_owner)
            before = store.find(name)
        assert body_of(web.get("/conversations?q=word", headers=headers["bob"])) == []
        listed = body_of(web.get("/conversations", headers=headers["bob"]))
        assert SECRET not in str(listed)
        for answer in (
            web.get(path, headers=headers["bob"]),
            web.post(f"{path}/title", data={"title": "x"}, headers=headers["bob"]),
            web.post(f"{path}/delete", headers=headers["bob"]),
            web.post("/ask", data=fields, headers=headers["bob"]),
        ):
            assert answer.status_code == 404, answer.text
        assert store.find(name) == before
        assert body_of(web.post("/ask", data=fields, headers=headers["alice"]))
        before = store.find(name)
    assert len(body_of(web.get("/conversations?q=word", headers=headers["alice"]))) == 1
    assert body_of(web.post(f"{path}/delete", headers=headers["alice"]))["code"] == 0
    assert store.find(name) is None
