"""What keeping a turn costs on either database: begin and finish, alone and by twenty threads, beside each other.

    .venv/bin/python benchmarks/keeping.py [turns]

PostgreSQL is started for it, without fsync, if it is installed. Ratios mean something, seconds do not.
"""

from __future__ import annotations

import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from relay.domain import Reply
from relay.serving import in_place
from relay.store import Opening, Store
from tests.postgresql import PostgreSQL, programs


def turn(store: Store, conversation_id: str = "") -> str:
    name = conversation_id or str(uuid.uuid4())
    ids = name, "owner", "openai", str(uuid.uuid4()), str(uuid.uuid4())
    opening = Opening(
        *ids, "a question of some words", "A title", new=not conversation_id
    )
    assert store.begin(opening, 15)
    store.finish(
        opening, Reply("an answer of some words", name, opening.answer_id), "whole"
    )
    return name


def conversations(store: Store, count: int) -> None:
    """Conversations of five turns."""
    for _ in range(count):
        name = turn(store)
        for _ in range(4):
            turn(store, name)


def timed(work: Callable[[], None]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def measured(
    store: Store, turns: int
) -> tuple[tuple[float, float], tuple[float, float]]:
    conversations(store, 5)

    def together() -> None:
        threads = [
            threading.Thread(target=conversations, args=(store, turns // 100))
            for _ in range(20)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return timed(lambda: conversations(store, turns // 5)), timed(together)


def main() -> None:
    turns = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    folder = Path(tempfile.mkdtemp())
    store = Store(f"sqlite:///{folder}/benchmark.db", in_place)
    results = {"sqlite": measured(store, turns)}
    store.close()
    if (found := programs()) is not None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        server = PostgreSQL(found, port)
        try:
            store = Store(server.database(), in_place)
            results["postgresql"] = measured(store, turns)
            store.close()
        finally:
            server.remove()
    base = results["sqlite"]
    for name, (alone, many) in results.items():
        for how, (wall, cpu), of in (
            ("alone", alone, base[0]),
            ("20 threads", many, base[1]),
        ):
            us = 1e6 / turns
            print(f"{name:11} {how:11} {wall * us:7.0f} us a turn ({wall / of[0]:.2f} x SQLite), of our CPU {cpu * us:7.0f} us ({cpu / of[1]:.2f} x)")  # fmt: skip


if __name__ == "__main__":
    main()
