"""The two databases themselves: failures, older versions, and what only one of them has."""

from __future__ import annotations

import gc
import sqlite3
import threading
import time
import types
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import create_engine, inspect, make_url, text
from sqlalchemy.exc import DataError, OperationalError

from relay.database import BUSY_SECONDS, _Write, check_private, open_database
from relay.database_errors import refused_start
from relay.domain import Reply
from relay.errors import NoConversation, StoreFailed
from relay.schema import NEWEST_VERSION
from relay.server import in_place
from relay.store import OpenedTurn, Store, TurnRequest
from relay.tables.messages import MESSAGE_SIZE
from tests.postgresql import PostgreSQL
from tests.turns import answered, following, new_turn, texts
from tests.waiting import wait_for

ON_BOTH = True
ALSO_POOLED = True


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(f"sqlite:///{tmp_path}/data/test.db", in_place)
    yield store
    store.close()


def test_deleted_text_leaves_the_file(store: Store, tmp_path: Path) -> None:
    first = answered(store, new_turn("a-word-that-nobody-else-says"))
    store.delete("owner", first.conversation_id)
    files = b"".join(path.read_bytes() for path in (tmp_path / "data").iterdir())
    assert b"a-word-that-nobody-else-says" not in files


def test_a_reader_elsewhere_delays_nobody_and_deleted_text_leaves_after_it(
    store: Store, tmp_path: Path
) -> None:
    first = answered(store, new_turn("a-word-that-nobody-else-says"))
    second = answered(store, new_turn("x"))
    reader = sqlite3.connect(tmp_path / "data" / "test.db")
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM messages").fetchall()
    started = time.monotonic()
    store.delete("owner", first.conversation_id)
    answered(store, following(second))
    assert time.monotonic() - started < 4, "a lock would be waited for twice as long"
    reader.close()
    answered(store, following(second))
    files = b"".join(path.read_bytes() for path in (tmp_path / "data").iterdir())
    assert b"a-word-that-nobody-else-says" not in files


def test_a_log_that_cannot_be_emptied_fails_no_write(store: Store) -> None:
    """As on a disk that is full: what was committed was committed, and locks are waited for as before."""
    first = answered(store, new_turn("one"))
    writer = store._database._writer
    connection = writer._engine.raw_connection()
    connection.driver_connection.set_authorizer(
        lambda action, name, *_: (
            sqlite3.SQLITE_DENY if name == "wal_checkpoint" else sqlite3.SQLITE_OK
        )
    )
    store.delete("owner", first.conversation_id)
    second = answered(store, new_turn("two"))
    assert writer._log_is_due
    # Python 3.10 takes no None here
    connection.driver_connection.set_authorizer(lambda *_: sqlite3.SQLITE_OK)
    assert texts(store.open_turn(following(second, "three"), 15)) == ["two", "Hello"]
    assert not writer._log_is_due
    cursor = connection.cursor()
    assert cursor.execute("PRAGMA busy_timeout").fetchone() == (BUSY_SECONDS * 1000,)
    cursor.close()
    connection.close()


def test_its_files_are_its_owners_alone(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    store = Store(f"sqlite:///{tmp_path}/open/test.db", in_place)
    answered(store, new_turn("x"))
    modes = {
        path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "open").iterdir()
    }
    store.close()
    assert len(modes) == 3 and set(modes.values()) == {0o600}


def test_a_database_that_others_may_read_refuses_the_start(tmp_path: Path) -> None:
    path = tmp_path / "test.db"
    for mode in (0o644, 0o640, 0o604, 0o620):
        path.touch()
        path.chmod(mode)
        with pytest.raises(StoreFailed, match=f"chmod 600 {path}"):
            Store(f"sqlite:///{path}", in_place)
    path.chmod(0o600)
    Store(f"sqlite:///{path}", in_place).close()


def test_a_folder_that_others_may_read_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    check_private(folder)  # it will be made for its owner alone
    for mode in (0o755, 0o750, 0o701):
        folder.mkdir(exist_ok=True)
        folder.chmod(mode)
        with pytest.raises(StoreFailed, match=f"chmod 700 {folder}"):
            check_private(folder)
    folder.chmod(0o700)
    check_private(folder)


def test_one_failing_write_spares_the_others_of_its_commit(store: Store) -> None:
    """While one write is being made, others gather; they are then committed together."""
    first = answered(store, new_turn())
    inside = threading.Event()
    go_on = threading.Event()

    def slow(_connection: object) -> None:
        inside.set()
        go_on.wait(10)

    results: dict[str, object] = {}

    def attempt(name: str, request: TurnRequest) -> None:
        try:
            results[name] = store.open_turn(request, 15)
        except NoConversation as error:
            results[name] = error

    requests = {
        "good": following(first),
        "bad": following(first, conversation_id="none"),
        "other": new_turn(),
    }
    blocker = threading.Thread(target=store._write, args=(slow,))
    blocker.start()
    inside.wait(10)
    threads = [threading.Thread(target=attempt, args=pair) for pair in requests.items()]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(store._database._writer._waiting) == 3)
    go_on.set()
    for thread in [blocker, *threads]:
        thread.join(10)
    assert isinstance(results["good"], OpenedTurn) and isinstance(
        results["other"], OpenedTurn
    )
    assert isinstance(results["bad"], NoConversation)


def test_a_failing_write_of_a_commit_leaves_nothing_to_the_garbage_collector(
    store: Store,
) -> None:
    def fail(_connection: object) -> None:
        raise NoConversation()

    writes = [_Write(lambda connection: None), _Write(fail)]
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        store._database._writer._commit(writes)
        error = writes[1].error
        assert writes[0].error is None and isinstance(error, NoConversation)
        error.drop_frames()  # as whoever answers with it does
        del writes, error
        gc.collect()
        kinds = {type(found) for found in gc.garbage}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
    assert not kinds & {NoConversation, types.FrameType}


def test_a_database_that_fails_raises_store_failed(
    store: Store, tmp_path: Path
) -> None:
    store.check()
    other = sqlite3.connect(tmp_path / "data" / "test.db")
    other.execute("DROP TABLE leases")
    other.commit()
    other.close()
    with pytest.raises(StoreFailed):
        store.open_turn(new_turn(), 15)
    with pytest.raises(StoreFailed):
        store.check()


def test_a_file_that_is_no_database_raises_store_failed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "test.db").touch(mode=0o600)
    (tmp_path / "test.db").write_bytes(
        b"not a database, but long enough to be looked at" * 100
    )
    with pytest.raises(StoreFailed):
        Store(f"sqlite:///{tmp_path}/test.db", in_place)
    assert "file is not a database" in caplog.text


#: the tables of version 1, with a conversation of one turn
VERSION_1 = """
CREATE TABLE conversations (id TEXT NOT NULL, owner TEXT NOT NULL, upstream TEXT NOT NULL, account TEXT,
  remote BOOLEAN NOT NULL, title TEXT NOT NULL, newest TEXT, created FLOAT NOT NULL, updated FLOAT NOT NULL, PRIMARY KEY (id));
CREATE INDEX conversations_of_owner ON conversations (owner, updated);
CREATE TABLE messages (number {serial} NOT NULL, id TEXT NOT NULL, conversation_id TEXT NOT NULL, parent TEXT, role TEXT NOT NULL,
  text TEXT NOT NULL, status TEXT NOT NULL, model TEXT, finish_reason TEXT, created FLOAT NOT NULL, PRIMARY KEY (number), UNIQUE (id));
CREATE INDEX ix_messages_conversation_id ON messages (conversation_id);
CREATE TABLE leases (name TEXT NOT NULL, holder TEXT NOT NULL, expires FLOAT NOT NULL, PRIMARY KEY (name));
INSERT INTO conversations VALUES ('c1', 'owner', 'offline', NULL, {false}, 'Old', 'a1', 1, 2);
INSERT INTO messages (id, conversation_id, parent, role, text, status, created) VALUES ('q1', 'c1', NULL, 'user', 'old question', 'whole', 1);
INSERT INTO messages (id, conversation_id, parent, role, text, status, created) VALUES ('a1', 'c1', 'q1', 'assistant', 'old answer', 'whole', 2)
"""


def address(database: str, tmp_path: Path) -> str:
    return database or f"sqlite:///{tmp_path}/test.db"


def shape(url: str) -> dict[str, object]:
    """Every table with its columns and indexes, as the database describes them."""
    engine = create_engine(url)
    try:
        inspector = inspect(engine)
        return {
            table: (
                sorted(
                    (column["name"], str(column["type"]), column["nullable"])
                    for column in inspector.get_columns(table)
                ),
                sorted(
                    (str(index["name"]), index["column_names"])
                    for index in inspector.get_indexes(table)
                ),
                sorted(inspector.get_pk_constraint(table)["constrained_columns"]),
            )
            for table in inspector.get_table_names()
        }
    finally:
        engine.dispose()


def run(url: str, statements: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        for statement in statements.split(";"):
            connection.execute(text(statement))
    engine.dispose()


def sizes(url: str) -> list[int]:
    """What the index says of each conversation's size."""
    engine = create_engine(url)
    with engine.connect() as connection:
        found = connection.execute(text("SELECT size FROM conversations")).scalars()
        result = list(found)
    engine.dispose()
    return result


def test_an_older_versions_database_is_migrated_and_its_conversations_go_on(
    database: str, tmp_path: Path
) -> None:
    url = address(database, tmp_path)
    postgres = url.startswith("postgresql")
    if not postgres:
        (tmp_path / "test.db").touch(mode=0o600)
    run(
        url,
        VERSION_1.format(
            serial="SERIAL" if postgres else "INTEGER",
            false="FALSE" if postgres else "0",
        ),
    )
    for _ in range(2):  # the second start finds nothing to do
        store = Store(url, in_place)
        try:
            old = new_turn("more", conversation_id="c1", is_new=False)
            assert texts(store.open_turn(old, 15)) == ["old question", "old answer"]
            store.discard_turn(old)
        finally:
            store.close()
    assert sizes(url) == [len("old question") + len("old answer") + 2 * MESSAGE_SIZE]
    fresh = f"sqlite:///{tmp_path}/fresh.db"
    if postgres:
        fresh = url.rpartition("/")[0] + "/fresh_" + url.rpartition("_")[2]
        engine = create_engine(url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {fresh.rpartition('/')[2]}"))
        engine.dispose()
    Store(fresh, in_place).close()
    assert shape(url) == shape(fresh)


def test_a_newer_versions_database_refuses_the_start(
    database: str, tmp_path: Path
) -> None:
    url = address(database, tmp_path)
    Store(url, in_place).close()
    run(url, f"UPDATE schema_version SET version = {NEWEST_VERSION + 1}")
    with pytest.raises(StoreFailed, match="newer version"):
        Store(url, in_place)


def test_many_that_start_at_once_make_the_tables_once(
    database: str, tmp_path: Path
) -> None:
    url = address(database, tmp_path)
    stores: list[Store] = []
    threads = [
        threading.Thread(target=lambda: stores.append(Store(url, in_place)))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(stores) == 6
    first = answered(stores[0], new_turn("one"))
    assert texts(stores[5].open_turn(following(first, "two"), 15)) == ["one", "Hello"]
    for store in stores:
        store.close()


def test_text_that_a_database_cannot_hold_is_kept_as_far_as_it_can(
    database: str, tmp_path: Path
) -> None:
    store = Store(address(database, tmp_path), in_place)
    first = answered(store, new_turn("one"), "before\0after \U0001f600 \u2028")
    assert (
        store.get("owner", first.conversation_id).nodes[-1].text
        == "before\ufffdafter \U0001f600 \u2028"
    )
    second = following(first)
    assert store.open_turn(second, 15)
    reply = Reply("x", second.conversation_id, second.answer_id, "m\0", "s\0p")
    store.complete_turn(second, reply)
    node = store.get("owner", first.conversation_id).nodes[-1]
    assert (node.model, node.finish_reason) == ("m\ufffd", "s\ufffdp")
    third = following(first)
    assert store.open_turn(third, 15)
    store.break_turn(third, "t\0", "m\0", "upstream_cut")
    node = store.get("owner", first.conversation_id).nodes[-1]
    assert (node.text, node.model) == ("t\ufffd", "m\ufffd")
    store.close()


def test_a_postgresql_that_is_gone_raises_store_failed_and_one_that_restarts_is_used_again(
    postgresql: PostgreSQL,
) -> None:
    store = Store(postgresql.database(), in_place)
    first = answered(store, new_turn("one"))
    postgresql.stop()
    with pytest.raises(StoreFailed):
        store.check()
    postgresql.start()
    assert texts(store.open_turn(following(first, "two"), 15)) == ["one", "Hello"]
    store.close()


def shown_setting(url: str, name: str) -> list[str]:
    """What a setting is within 3 transactions at once, after many with the same statement."""
    database = open_database(url, in_place)
    ask = text(f"SELECT current_setting('{name}'), pg_sleep(0.01)")

    def look(_: object = None) -> str:
        found = database.read(lambda connection: connection.execute(ask).scalar_one())
        return str(found)

    try:
        for _ in range(10):  # psycopg would prepare it at the sixth
            look()
        with ThreadPoolExecutor(3) as threads:
            return list(threads.map(look, range(30)))
    finally:
        database.close()


@pytest.mark.parametrize("database", ["postgresql", "pgbouncer"], indirect=True)
def test_no_statement_and_no_transaction_waits_for_ever(
    database: str, postgresql: PostgreSQL
) -> None:
    """Also by way of a pooler, which has a connection of others for each transaction, and leaves nothing there."""
    name = str(make_url(database).database)
    for setting in ("statement_timeout", "idle_in_transaction_session_timeout"):
        assert set(shown_setting(database, setting)) == {f"{BUSY_SECONDS}s"}
        assert postgresql.execute(f"SHOW {setting}", name) == [("0",)]


def test_postgresqls_own_words_refuse_the_start(postgresql: PostgreSQL) -> None:
    """A right, a database, a role or a password that is missing: what it says, and what to do."""
    role = f"role_{uuid.uuid4().hex}"
    postgresql.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'p-secret-1'")
    url = make_url(postgresql.database()).set(username=role, password="p-secret-2")
    name = str(url.database)
    postgresql.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC", name)
    no_database = url.set(database=f"{name}_no")
    no_role = url.set(username=f"{role}_no")
    hint = f"createdb -O {role} {name}"
    for address, words, what_to_do in (
        (url, "permission denied for schema public", hint),
        (no_database, f'database "{name}_no" does not exist', f"{hint}_no"),
        (no_role, f'role "{role}_no" does not exist', f"createuser -P {role}_no"),
    ):
        with pytest.raises(StoreFailed) as refused:
            Store(address.render_as_string(hide_password=False), in_place)
        message = refused.value.message
        assert words in message and what_to_do in message
        assert "p-secret" not in message and "\n" not in message


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ('FATAL:  password authentication failed for user "u"', "password in DATABASE_URL"),
        ("fe_sendauth: no password supplied", "password in DATABASE_URL"),
        ("could not reach p-secret: Connection refused", "could not reach ...: Connection refused."),
    ],
)  # fmt: skip
def test_words_of_a_connection_that_failed(words: str, hint: str) -> None:
    failure = StoreFailed()
    cause = psycopg.OperationalError(f"{words}\nmore")
    failure.__cause__ = OperationalError("", None, cause)
    refused = refused_start(failure, "postgresql+psycopg://u:p-secret@h/n")
    assert isinstance(refused, StoreFailed) and hint in refused.message
    assert "p-secret" not in refused.message and "more" not in refused.message


def test_words_that_may_quote_a_conversation_are_not_repeated() -> None:
    failure = StoreFailed()
    failure.__cause__ = DataError("", None, psycopg.DataError('invalid: "a prompt"'))
    assert refused_start(failure, "postgresql+psycopg://u@h/n") is failure
    other = StoreFailed("An older version cannot use this database.")
    assert refused_start(other, "postgresql+psycopg://u@h/n") is other


def test_leases_go_by_the_servers_clock(
    postgresql: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine whose clock is wrong takes no lease too early."""
    url = postgresql.database()
    right_clock = open_database(url, in_place)
    monkeypatch.setattr("relay.database.time.time", lambda: 1000.0)
    wrong_clock = open_database(url, in_place)
    for database in (right_clock, wrong_clock):
        database.read(lambda connection: connection.execute(text("SELECT 1")).all())
    assert wrong_clock.clock() > 1_700_000_000
    for database in (right_clock, wrong_clock):
        database.close()
