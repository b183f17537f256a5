"""A disk without room: errors say so, the service is not ready, and what is deleted makes room."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from relay.database_errors import DISK_FULL
from relay.errors import StoreFailed
from relay.server import in_place
from relay.store import Store
from tests.processes import Service
from tests.turns import answered, new_turn

DISK_SIZE = 3 * 1024 * 1024


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of DISK_SIZE; skipped where none can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_SIZE},mode=700", "tmpfs"]
    try:
        mounted = subprocess.run([*mount, str(folder)], capture_output=True)
    except FileNotFoundError:
        pytest.skip("mount is not installed here")
    if mounted.returncode:
        pytest.skip("nothing can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Take all the room that is left; the path of the file that has it."""
    path = folder / "ballast"
    with path.open("wb", buffering=0) as ballast:
        try:
            while ballast.write(bytes(4096)):
                pass
        except OSError:
            pass
    assert os.statvfs(folder).f_bavail == 0
    return path


def ask(service: Service, words: str) -> requests.Response:
    return requests.post(f"{service.url}/ask", data={"msg": words}, timeout=20)


def ask_until_full(service: Service) -> requests.Response:
    """The first failure of many asks."""
    for _ in range(400):
        answer = ask(service, "a question that needs room " * 200)
        if not answer.ok:
            return answer
    raise AssertionError("the disk was never full")


def test_a_full_disk_is_said_and_a_delete_makes_room(
    serve: Callable[..., Service], small_disk: Path
) -> None:
    service = serve(DATA_DIR=str(small_disk / "data"))
    ids = [
        ask(service, f"{number} " + "words " * 2000).json()["data"]["conversation_id"]
        for number in range(8)
    ]
    assert requests.get(f"{service.url}/readyz", timeout=20).ok
    ballast = fill(small_disk)
    failed = ask_until_full(service)
    assert failed.status_code == 503
    assert (failed.json()["error"], failed.json()["msg"]) == ("store_failed", DISK_FULL)
    unready = requests.get(f"{service.url}/readyz", timeout=20)
    assert (unready.status_code, unready.json()["msg"]) == (503, DISK_FULL)
    assert requests.get(f"{service.url}/conversation/{ids[0]}", timeout=20).ok
    # it needs room in the log, which may have none left: then it says so
    deleted = [
        requests.post(f"{service.url}/conversation/{name}/delete", timeout=20)
        for name in ids
    ]
    for answer in deleted:
        assert answer.ok or answer.json()["msg"] == DISK_FULL
    ballast.unlink()
    assert requests.get(f"{service.url}/readyz", timeout=20).ok
    assert ask(service, "again").ok


def test_what_needs_no_larger_file_takes_the_room_of_the_log(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(f"sqlite:///{small_disk}/data/test.db", in_place)
    first = answered(store, new_turn("a-word-that-nobody-else-says " * 2000))
    store._database.erase()  # writes the log back
    for number in range(50):  # now it has the same few pages many times
        store.rename("owner", first.conversation_id, f"title {number}")
    fill(small_disk)
    for number in range(50):
        store.rename("owner", first.conversation_id, f"title {number}")
    store.delete("owner", first.conversation_id)
    assert "disk is full" in caplog.text, "it was, and there was no room but the log's"
    files = b"".join(path.read_bytes() for path in (small_disk / "data").iterdir())
    assert b"a-word-that-nobody-else-says" not in files
    store.close()


def test_a_database_that_may_not_grow_says_so(store: Store) -> None:
    first = answered(store, new_turn("x" * 100_000))
    connection = store._database._writer._engine.raw_connection()
    cursor = connection.cursor()
    ((pages,),) = cursor.execute("PRAGMA page_count").fetchall()
    cursor.execute(f"PRAGMA max_page_count={pages}").close()
    with pytest.raises(StoreFailed, match="disk is full"):
        answered(store, new_turn("x" * 100_000))
    store.delete("owner", first.conversation_id)
    answered(store, new_turn("x" * 50_000))
