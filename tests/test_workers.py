"""Several processes under one: both answer, a lost one begins anew, a stop ends all, and none is left alone."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import requests

from tests.processes import Service, children_of
from tests.waiting import wait_for

Serve = Callable[..., Service]


def workers_of(service: Service) -> set[int]:
    return set(children_of(service.process.pid))


def ask(service: Service, prompt: str, **fields: str) -> dict[str, str]:
    """Ask on a connection of its own."""
    answer = requests.post(
        f"{service.url}/send_message", {"prompt": prompt, **fields}, timeout=30
    )
    assert answer.status_code == 200, answer.text
    found: dict[str, str] = answer.json()
    return found


def busy(pid: int) -> int:
    """Ticks of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def test_all_workers_answer_and_share_conversations(serve: Serve) -> None:
    service = serve(WORKERS="2")
    wait_for(lambda: len(workers_of(service)) == 2, 20)
    before = {pid: busy(pid) for pid in workers_of(service)}

    def talk(number: int) -> None:
        reply = ask(service, f"hello {number}")
        for turn in (2, 3):
            reply = ask(
                service, f"go on {turn}", conversation_id=reply["conversation_id"]
            )
            assert f"Turn {turn}." in reply["text"]

    with ThreadPoolExecutor(8) as callers:
        list(callers.map(talk, range(60)))
    assert all(busy(pid) > before[pid] for pid in before)
    log = service.logged()
    assert log.count("Listening on http://") == 1 and "Traceback" not in log
    parent = Path(f"/proc/{service.process.pid}/status").read_text()
    assert int(parent.split("VmRSS:")[1].split()[0]) < 25 * 1024


def test_a_lost_worker_begins_anew(serve: Serve) -> None:
    service = serve(WORKERS="2")
    wait_for(lambda: len(workers_of(service)) == 2, 20)
    lost = min(workers_of(service))
    os.kill(lost, signal.SIGKILL)
    wait_for(lambda: len(workers_of(service) - {lost}) == 2, 30)
    assert "another one begins" in service.logged()
    for number in range(20):
        ask(service, f"hello {number}")


def test_a_stop_lets_running_answers_end_and_leaves_nobody(serve: Serve) -> None:
    service = serve(WORKERS="2")
    wait_for(lambda: len(workers_of(service)) == 2, 20)
    workers = workers_of(service)
    with ThreadPoolExecutor(6) as callers:
        running = [
            callers.submit(ask, service, f"hello offline:delay=4 {number}")
            for number in range(6)
        ]
        time.sleep(2)
        service.terminate()
        assert all("hello" in each.result()["text"] for each in running)
    assert service.process.wait(30) == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def test_workers_without_their_supervisor_end(serve: Serve) -> None:
    service = serve(WORKERS="2")
    wait_for(lambda: len(workers_of(service)) == 2, 20)
    workers = workers_of(service)
    service.process.kill()
    service.process.wait(5)
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), 30)


def test_what_no_worker_can_use_ends_the_start(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "shared.db"
    file.write_bytes(b"no database" * 1000)
    file.chmod(0o600)
    try:
        serve(WORKERS="2", DATABASE_URL=f"sqlite:///{file}")
    except RuntimeError as error:
        assert str(error).count("cannot start") in (1, 2)
        assert "another one begins" not in str(error)
    else:
        raise AssertionError("it started")
