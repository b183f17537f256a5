"""`backup` and `restore`, beside a running service and without one; and what a plain copy of the database has."""

from __future__ import annotations

import shutil
import sqlite3
import stat
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import requests

from relay.database import LARGEST_LOG
from relay.server import in_place
from relay.store import Store
from tests.command_line import run
from tests.postgresql import PostgreSQL
from tests.processes import Service

Serve = Callable[..., Service]


def ask(service: Service, prompt: str, **fields: str) -> dict[str, str]:
    reply = requests.post(
        f"{service.url}/send_message", data={"prompt": prompt, **fields}, timeout=10
    )
    assert reply.ok, reply.text
    found: dict[str, str] = reply.json()
    return found


def prompts(path: Path) -> list[str]:
    """The questions in a database's file."""
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT text FROM messages WHERE role = 'user'")
        return [text for (text,) in rows]


def one_conversation(path: Path, prompt: str) -> None:
    """A database with one conversation, as a service leaves it behind."""
    store = Store(f"sqlite:///{path}", in_place)
    store.close()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "INSERT INTO conversations (id, owner, upstream, remote, title, created, "
            "updated, size) VALUES ('c-1', 'anonymous', 'offline', 0, 't', 1, 1, 1)"
        )
        connection.execute(
            "INSERT INTO messages (id, conversation_id, role, text, status, created) "
            "VALUES ('m-1', 'c-1', 'user', ?, 'whole', 1)",
            (prompt,),
        )


def test_a_backup_of_a_running_service_is_restored_after_its_stop(
    serve: Serve, tmp_path: Path
) -> None:
    service = serve()
    first = ask(service, "kept in the backup")
    done = run(tmp_path, "backup", "saved.db")
    assert (done.returncode, done.stdout) == (0, "saved.db has 1 conversation.\n")
    assert stat.S_IMODE((tmp_path / "saved.db").stat().st_mode) == 0o600
    assert prompts(tmp_path / "saved.db") == ["kept in the backup"]
    ask(service, "asked later")
    refused = run(tmp_path, "restore", "saved.db")
    assert refused.returncode == 1 and "in use: stop the service" in refused.stderr
    assert len(requests.get(f"{service.url}/conversations", timeout=5).json()) == 2

    service.terminate()
    assert service.process.wait(10) == 0
    restored = run(tmp_path, "restore", "saved.db")
    assert restored.returncode == 0, restored.stderr
    [former] = (tmp_path / "data").glob("conversations.db.before-restore-*")
    assert str(former) in restored.stdout and "1 conversation" in restored.stdout
    assert "asked later" in prompts(former)
    assert {path.name for path in tmp_path.glob("data/*")} == {
        "conversations.db",
        former.name,
    }
    service.start()
    again = ask(service, "and now?", conversation_id=first["conversation_id"])
    assert "Before that you said: kept in the backup" in again["text"]
    assert len(requests.get(f"{service.url}/conversations", timeout=5).json()) == 1


def test_a_service_under_gunicorn_keeps_its_database_too(
    serve: Serve, tmp_path: Path
) -> None:
    service = serve("gunicorn")
    ask(service, "hello")
    assert run(tmp_path, "backup", "saved.db").returncode == 0
    refused = run(tmp_path, "restore", "saved.db")
    assert refused.returncode == 1 and "in use" in refused.stderr


def test_what_a_killed_service_left_is_backed_up_and_set_aside_whole(
    serve: Serve, tmp_path: Path
) -> None:
    service = serve()
    ask(service, "in the log alone")
    service.kill()
    log = tmp_path / "data" / "conversations.db-wal"
    assert log.stat().st_size
    one_conversation(tmp_path / "older.db", "older")
    restored = run(tmp_path, "restore", "older.db")
    assert restored.returncode == 0, restored.stderr
    former = Path(restored.stdout.split("kept in ")[1].strip().removesuffix("."))
    assert "in the log alone" in prompts(former)
    assert prompts(tmp_path / "data" / "conversations.db") == ["older"]


def test_a_damaged_database_is_replaced_and_kept(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(mode=0o700)
    broken = tmp_path / "data" / "conversations.db"
    broken.write_bytes(b"no database at all" * 1000)
    one_conversation(tmp_path / "saved.db", "whole")
    backup = run(tmp_path, "backup", "more.db")
    assert backup.returncode == 1 and "not a database" in backup.stderr
    assert not list(tmp_path.glob("*more*"))
    restored = run(tmp_path, "restore", "saved.db")
    assert restored.returncode == 0, restored.stderr
    assert prompts(broken) == ["whole"]
    [former] = (tmp_path / "data").glob("*.before-restore-*")
    assert former.read_bytes().startswith(b"no database at all")


def test_a_restore_where_nothing_was_before(tmp_path: Path) -> None:
    one_conversation(tmp_path / "saved.db", "whole")
    restored = run(tmp_path, "restore", "saved.db")
    assert restored.returncode == 0 and "before" not in restored.stdout
    database = tmp_path / "data" / "conversations.db"
    assert stat.S_IMODE(database.stat().st_mode) == 0o600
    assert prompts(database) == ["whole"]


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(mode=0o700)
    one_conversation(tmp_path / "data" / "conversations.db", "whole")
    (tmp_path / "saved.db").write_text("something else")
    refused = run(tmp_path, "backup", "saved.db")
    assert refused.returncode == 1 and "exists already" in refused.stderr
    assert (tmp_path / "saved.db").read_text() == "something else"
    missing = run(tmp_path, "backup", "no/such/folder/saved.db")
    folder = tmp_path / "no" / "such" / "folder"
    sentence = f"backup: No file can be made in {folder}: No such file or directory.\n"
    assert missing.returncode == 1 and missing.stderr == sentence
    none = run(tmp_path, "backup", "b.db", DATA_DIR=str(tmp_path / "elsewhere"))
    assert none.returncode == 1 and "There is no database" in none.stderr


def wrong_tables(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE other (id TEXT)")


def newer_version(path: Path) -> None:
    one_conversation(path, "from the future")
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE schema_version SET version = 1000")


def damaged(path: Path) -> None:
    one_conversation(path, "x" * 100_000)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 8192] = bytes(8192)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        pytest.param(lambda path: path.write_text("text" * 500), "not a database"),
        pytest.param(wrong_tables, "no database of chatgpt-webapi"),
        pytest.param(newer_version, "newer version (1000)"),
        pytest.param(damaged, "damaged"),
        pytest.param(lambda path: None, "There is no file"),
    ],
    ids=["text", "wrong-tables", "newer", "damaged", "missing"],
)
def test_what_is_no_backup_changes_nothing(
    tmp_path: Path, make: Callable[[Path], None], reason: str
) -> None:
    (tmp_path / "data").mkdir(mode=0o700)
    database = tmp_path / "data" / "conversations.db"
    one_conversation(database, "whole")
    before = database.read_bytes()
    make(tmp_path / "file")
    refused = run(tmp_path, "restore", "file")
    assert refused.returncode == 1 and reason in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert database.read_bytes() == before
    assert [path.name for path in tmp_path.glob("data/*")] == ["conversations.db"]
    itself = run(tmp_path, "restore", str(database))
    assert itself.returncode == 1 and "itself" in itself.stderr


def test_postgresql_has_its_own_programs(
    postgresql: PostgreSQL, tmp_path: Path
) -> None:
    url = postgresql.database()
    Store(url, in_place).close()
    secret = url.replace("tests@", "tests:pass%2Fword@")
    for command, program in (("backup", "pg_dump"), ("restore", "pg_restore")):
        shown = run(tmp_path, command, "saved file", DATABASE_URL=secret)
        assert shown.returncode == 2 and shown.stdout.startswith(f"{program} ")
        assert "word" not in shown.stdout + shown.stderr
        assert not (tmp_path / "saved file").exists() or command == "restore"
        if shutil.which(program):
            subprocess.run(shown.stdout, shell=True, cwd=tmp_path, check=True)
            assert (tmp_path / "saved file").exists()


@pytest.mark.parametrize("server", ["pywsgi", "gunicorn"])
def test_after_a_stop_a_plain_copy_has_everything(
    serve: Serve, tmp_path: Path, server: str
) -> None:
    service = serve(server)
    ask(service, "hello")
    # another program has it open, so SQLite itself would leave the log as it is
    with closing(sqlite3.connect(tmp_path / "data" / "conversations.db")) as other:
        other.execute("SELECT count(*) FROM conversations").fetchall()
        service.terminate()
        assert service.process.wait(10) == 0
        shutil.copy(tmp_path / "data" / "conversations.db", tmp_path / "copy.db")
    assert prompts(tmp_path / "copy.db") == ["hello"]


def test_the_log_stays_small_and_the_file_has_what_is_older(
    serve: Serve, tmp_path: Path
) -> None:
    service = serve()
    log = tmp_path / "data" / "conversations.db-wal"
    for number in range(30):
        ask(service, f"number {number} " + "x" * 500_000)
    assert log.stat().st_size <= 2 * LARGEST_LOG
    shutil.copy(tmp_path / "data" / "conversations.db", tmp_path / "copy.db")
    kept = prompts(tmp_path / "copy.db")
    assert len(kept) >= 15 and kept[0].startswith("number 0 ")
