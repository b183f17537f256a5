"""What a stored turn costs on either database: opened and completed, alone and by twenty threads.

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

from relay.domain import Message, Reply
from relay.server import in_place
from relay.store import Store, TurnRequest
from tests.postgresql import PostgreSQL, programs


def turn(store: Store, conversation_id: str | None = None) -> str:
    request = TurnRequest(
        conversation_id=conversation_id or str(uuid.uuid4()),
        owner="owner",
        upstream="openai",
        question_id=str(uuid.uuid4()),
        answer_id=str(uuid.uuid4()),
        question=Message("user", "a question of some words"),
        title="A title",
        is_new=conversation_id is None,
    )
    assert store.open_turn(request, 15)
    reply = Reply("an answer of some words", request.conversation_id, request.answer_id)
    store.complete_turn(request, reply)
    return request.conversation_id


def conversations(store: Store, count: int) -> None:
    """Conversations of five turns."""
    for _ in range(count):
        conversation_id = turn(store)
        for _ in range(4):
            turn(store, conversation_id)


def timed(work: Callable[[], None]) -> tuple[float, float]:
    """Seconds of wall clock and of CPU."""
    wall = time.perf_counter()
    cpu = time.process_time()
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
    if (folder_of_programs := programs()) is not None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        server = PostgreSQL(folder_of_programs, port)
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
