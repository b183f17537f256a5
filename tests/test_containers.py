"""The first process of a container, as Docker's image starts it: the kernel spares that one signals it does not ask for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Timer

import pytest
import requests

from tests.processes import ROOT, Service, children_of, free_port, need
from tests.waiting import wait_for

ALONE = ["unshare", "--pid", "--fork"]  # a process of its own numbers


class Contained:
    """The service as the first process of its own numbers."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        self.log = folder / "log"
        environ = {
            "PATH": os.environ["PATH"],
            "DATA_DIR": str(folder / "data"),
            "HOST": "0.0.0.0",  # as the image has it
            "PORT": str(port),
            "AUTHORIZATION": "the-client-key-0",
            **settings,
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*ALONE, sys.executable, "chatgpt_webapi.py"],
                cwd=ROOT,
                env=environ,
                stdout=log,
                stderr=log,
            )
        wait_for(lambda: children_of(self.process.pid), 5)
        [self.pid] = children_of(self.process.pid)

    def wait_ready(self) -> None:
        wait_for(lambda: "Listening on" in self.log.read_text(), 30)

    def ask(self, prompt: str) -> requests.Response:
        return requests.post(
            f"{self.url}/ask",
            {"msg": prompt},
            headers={"Authorization": "Bearer the-client-key-0"},
            timeout=30,
        )


@pytest.fixture
def contain(tmp_path: Path) -> Iterator[Callable[..., Contained]]:
    need("unshare")
    if subprocess.run([*ALONE, "true"], capture_output=True).returncode:
        pytest.skip("only root may give a process numbers of its own")
    started: list[Contained] = []

    def start(**settings: str) -> Contained:
        started.append(Contained(tmp_path, **settings))
        return started[-1]

    yield start
    for known in started:
        for pid in children_of(known.process.pid):
            os.kill(pid, signal.SIGKILL)
        known.process.wait(10)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_it_serves_and_ends_by_a_signal(
    contain: Callable[..., Contained], workers: str
) -> None:
    contained = contain(WORKERS=workers)
    contained.wait_ready()
    assert "You said: hi" in contained.ask("hi").json()["data"]["message"]
    os.kill(contained.pid, signal.SIGTERM)
    assert contained.process.wait(20) == 0
    log = contained.log.read_text()
    assert "Stopped." in log and "Traceback" not in log
    assert "without TLS" not in log, "who reaches it is said outside"


def test_outside_of_a_container_all_addresses_without_tls_are_warned_of(
    serve: Callable[..., Service],
) -> None:
    service = serve(HOST="0.0.0.0", AUTHORIZATION="the-client-key-0")
    assert service.logged().count("0.0.0.0 without TLS") == 1


@pytest.mark.parametrize("workers", ["1", "2"])
def test_it_ends_by_a_signal_while_it_starts(
    contain: Callable[..., Contained], workers: str
) -> None:
    for after in (
        0.3,
        0.6,
        0.9,
        1.2,
    ):  # while it imports, becomes a supervisor, has workers begin
        contained = contain(WORKERS=workers)
        time.sleep(after)
        os.kill(contained.pid, signal.SIGTERM)
        assert contained.process.wait(10) in (0, 128 + signal.SIGTERM)
        assert "Traceback" not in contained.log.read_text()


def test_a_second_signal_cuts_what_runs(contain: Callable[..., Contained]) -> None:
    contained = contain()
    contained.wait_ready()
    stops = [Timer(after, os.kill, (contained.pid, signal.SIGTERM)) for after in (1, 2)]
    for stop in stops:
        stop.start()
    with pytest.raises(requests.RequestException):
        contained.ask("hi offline:delay=25")
    assert contained.process.wait(10) == 128 + signal.SIGTERM
