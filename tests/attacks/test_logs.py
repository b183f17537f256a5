"""The log: one line is one event, whoever writes it, and nobody can forge one or move a terminal's cursor."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from relay import logs
from tests.attacks.test_servers import ImpatientService
from tests.processes import ROOT, SERVERS, Service, need
from tests.waiting import wait_for

pytestmark = pytest.mark.attack

ODD = {
    "line-feed": "\n",
    "carriage-return": "\r",
    "escape": "\x1b",
    "nul": "\0",
    "delete": "\x7f",
    "next-line": "\x85",
    "c1-control-sequence": "\x9b",
    "line-separator": "\u2028",
    "paragraph-separator": "\u2029",
    "right-to-left": "\u202e",
    "private-use-beyond-16-bits": "\U000f0000",
    "lone-surrogate": "\udc80",
}
FORGED = "2026-01-01 INFO request id=forged"


def record(message: str, failure: Exception | None = None, **fields: Any) -> Any:
    exc_info = (type(failure), failure, None) if failure else None
    made = logging.LogRecord(
        "x", logging.INFO, "x.py", 1, "%s", (message,), exc_info=exc_info
    )
    made.fields = fields
    return made


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_what_cannot_be_printed_is_quoted(form: str, odd: str) -> None:
    text = f"a{odd}{FORGED}"
    line = logs.formatter(form).format(record(text, path=text))
    assert line.isprintable() and len(line.splitlines()) == 1
    assert line.encode()
    if form == "json":
        entry = json.loads(line)
        assert (entry["message"], entry["path"]) == (text, text)


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_the_lines_of_a_traceback_look_like_no_event(odd: str) -> None:
    failure = ValueError(f"a{odd}{FORGED}")
    first, *others = logs.TextLines().format(record("failed", failure)).splitlines()
    assert others and all(line.startswith("  ") for line in others)
    assert all(line.isprintable() for line in (first, *others))
    assert logs.JsonLines().format(record("failed", failure)).isprintable()


@pytest.mark.parametrize("value", [2**80, object(), "\udc80", b"x", None, {1: 2}])
def test_every_value_can_be_logged(value: object) -> None:
    for form in ("text", "json"):
        assert logs.formatter(form).format(record("x", value=value)).isprintable()


@pytest.fixture
def impatient(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    started: list[Service] = []

    def start(server: str, **environ: str) -> Service:
        need("pgrep")
        started.append(ImpatientService(tmp_path, server, environ))
        return started[-1]

    yield start
    for service in started:
        service.stop()


@pytest.mark.parametrize("server", SERVERS)
def test_nothing_bypasses_the_json_log(
    impatient: Callable[..., Service], server: str
) -> None:
    """Start, stop, gunicorn's own lines, warnings, and exceptions of views, threads and greenlets."""
    service = impatient(server)
    failed = requests.get(f"{service.url}/fail?secret-query", timeout=5)
    assert failed.status_code == 500 and "division" not in failed.text
    wait_for(lambda: service.logged().count("ZeroDivisionError: ") >= 3)
    service.terminate()
    assert service.process.wait(10) == 0
    entries = [json.loads(line) for line in service.logged().splitlines()]
    assert all({"time", "level", "message"} <= entry.keys() for entry in entries)
    messages = " ".join(entry["message"] for entry in entries)
    assert "a warning" in messages and "/fail" in messages
    assert "gunicorn" in messages or server == "pywsgi"
    assert "secret" not in service.logged()


@pytest.mark.parametrize("server", SERVERS)
def test_a_start_that_fails_says_so_in_json(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = {
        "pywsgi": [sys.executable, "wsgi.py"],
        "gunicorn": [sys.executable, "-m", "gunicorn", "-c", "deploy/gunicorn.conf.py"],
    }
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("DATABASE_URL", "sqlite:////proc/self/no.db")
    monkeypatch.setenv("LOG_FORMAT", "json")
    monkeypatch.setenv("PORT", "0")
    command = commands[server] + ["wsgi:app"] * (server == "gunicorn")
    ended = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=25
    )
    entries = [json.loads(line) for line in ended.stderr.splitlines()]
    assert any("cannot start" in entry["message"] for entry in entries)
