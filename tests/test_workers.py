"""Several processes under one: both answer, a lost one begins anew, a stop ends all, and none is left alone."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import requests

from tests.notifications import Notifications
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


def test_during_a_stop_who_comes_is_refused_at_once(serve: Serve) -> None:
    service = serve(WORKERS="2")
    wait_for(lambda: len(workers_of(service)) == 2, 20)
    with ThreadPoolExecutor(1) as callers:
        running = callers.submit(ask, service, "hello offline:delay=6")
        time.sleep(1)
        service.terminate()
        wait_for(lambda: refuses(service.port), 3)
        assert "hello" in running.result()["text"]


def refuses(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_a_worker_that_ends_says_nothing_of_the_service(serve: Serve) -> None:
    notifications = Notifications()
    service = serve(WORKERS="2", NOTIFY_SOCKET=notifications.address)
    try:
        wait_for(lambda: len(workers_of(service)) == 2, 20)
        lost = min(workers_of(service))
        os.kill(lost, signal.SIGTERM)
        wait_for(lambda: len(workers_of(service) - {lost}) == 2, 30)
        ready = [notifications.next(20) for _ in range(3)]
        assert ready == [["READY=1"]] * 3
        service.terminate()
        assert notifications.next(5) == ["STOPPING=1"]
        assert service.process.wait(20) == 0
        assert notifications.next(0.2) == []
    finally:
        notifications.close()
    lines = [json.loads(line) for line in service.logged().splitlines()]
    [begun] = [each for each in lines if "another one begins" in each["message"]]
    assert begun["level"] == "WARNING"
    assert sum("Listening on" in each["message"] for each in lines) == 1


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
