"""The examples: as commands, before a service that answers, that is slow, that is flaky and that is not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from tests.openai_backend import Mode, OpenAIBackend, error
from tests.processes import ROOT, Service, free_port, need
from tests.waiting import wait_for

EXAMPLES = ROOT / "examples"
KEY = "the-client-key-of-the-owner"

Start = Callable[..., Service]


@pytest.fixture
def service(serve: Start, api: OpenAIBackend) -> Service:
    need("curl")
    need("openssl")
    return serve(
        "pywsgi",
        OPENAI_BASE_URL=api.url,
        OPENAI_API_KEY="sk-invented-1",
        AUTHORIZATION=KEY,
    )


@pytest.fixture
def environ(service: Service, tmp_path: Path) -> dict[str, str]:
    key_file = tmp_path / "key"
    key_file.write_text(f"{KEY}\n")
    own = {"CHATGPT_URL": service.url, "CHATGPT_KEY_FILE": str(key_file)}
    return {**os.environ, **own}


def run(
    environ: dict[str, str], *command: str, text: str = ""
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(EXAMPLES / command[0]), *command[1:]],
        env=environ,
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_question_is_answered(environ: dict[str, str], api: OpenAIBackend) -> None:
    answer = run(environ, "ask.sh", "100% & a+b?")
    assert answer.returncode == 0 and answer.stderr == ""
    assert "100% & a+b?" in answer.stdout and answer.stdout.endswith("\n")
    piped = run(environ, "ask.sh", text="many\nlines\n")
    assert api.completions[-1].body["messages"][-1]["content"] == "many\nlines\n"
    assert piped.returncode == 0 and len(api.completions) == 2


def test_a_conversation_goes_on(environ: dict[str, str], api: OpenAIBackend) -> None:
    for question in ("one", "two"):
        assert run(environ, "ask.sh", "-c", "my diary", question).returncode == 0
    messages = api.completions[-1].body["messages"]
    assert [message["content"] for message in messages][::2] == ["one", "two"]


def test_a_busy_server_is_asked_again(
    environ: dict[str, str], api: OpenAIBackend
) -> None:
    busy = json.dumps(error("loading")).encode()
    api.mode = Mode(refusals=[(503, {}, busy)] * 2)
    answer = run(environ, "ask.sh", "hello")
    assert answer.returncode == 0 and "hello" in answer.stdout
    assert "loading" not in answer.stdout and len(api.completions) == 3


def test_a_failure_is_no_answer(environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "key").write_text("a-wrong-client-key")
    refused = run(environ, "ask.sh", "hello")
    assert refused.returncode == 1 and refused.stdout == ""
    assert "client key" in refused.stderr
    gone = {**environ, "CHATGPT_URL": f"http://127.0.0.1:{free_port()}"}
    nobody = run(gone, "ask.sh", "hello")
    assert nobody.returncode == 1 and nobody.stdout == ""
    assert "Failed to connect" in nobody.stderr


def test_summaries_are_whole_or_not_there(
    environ: dict[str, str], api: OpenAIBackend, tmp_path: Path
) -> None:
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for file in files:
        file.write_text(f"The text of {file.name}.")
    done = run(environ, "summarise.sh", *map(str, files))
    assert done.returncode == 0, done.stderr
    for file in files:
        summary = file.with_name(f"{file.name}.summary").read_text()
        assert f"The text of {file.name}." in summary
    run(environ, "summarise.sh", *map(str, files))
    assert len(api.completions) == 2, "none is made again"
    late = time.time() + 5
    os.utime(files[0], (late, late))
    api.mode = Mode(refusals=[(400, {}, json.dumps(error("no")).encode())] * 9)
    before = files[0].with_name("a.txt.summary").read_text()
    failed = run(environ, "summarise.sh", *map(str, files))
    assert failed.returncode == 1 and f"{files[0]}: no summary" in failed.stderr
    assert files[0].with_name("a.txt.summary").read_text() == before
    names = sorted(path.name for path in tmp_path.glob("*.summary*"))
    assert names == ["a.txt.summary", "b.txt.summary"]


@pytest.fixture
def bot(environ: dict[str, str]) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, str(EXAMPLES / "bot.py"), str(port)]
    process = subprocess.Popen(command, env=environ, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}/message"

    def is_listening() -> bool:
        try:
            return requests.get(url, timeout=5).status_code == 501
        except requests.ConnectionError:
            return False

    wait_for(is_listening, 20)
    yield url
    process.terminate()
    process.wait(10)


def deliver(bot: str, message: dict[str, str]) -> requests.Response:
    return requests.post(bot, json=message, timeout=60)


def test_a_bot_answers_by_the_second_delivery(bot: str, api: OpenAIBackend) -> None:
    api.mode = Mode(delay=6.0)
    message = {"id": "m1", "user": "u1", "text": "what is the weather"}
    answers = [deliver(bot, message) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [503, 200]
    assert "what is the weather" in answers[1].text and len(api.completions) == 1


def test_a_bot_knows_its_users_apart(bot: str, api: OpenAIBackend) -> None:
    for user in ("u1", "u2", "u1"):
        number = len(api.completions)
        message = {"id": f"m{number}", "user": user, "text": f"{user} {number}"}
        assert deliver(bot, message).status_code == 200
    texts = [message["content"] for message in api.completions[-1].body["messages"]]
    assert texts[::2] == ["u1 0", "u1 2"]
    api.mode = Mode(refusals=[(400, {}, json.dumps(error("not that")).encode())])
    failed = deliver(bot, {"id": "m9", "user": "u1", "text": "x"})
    assert failed.text.startswith("Sorry") and "not that" in failed.text


def test_the_examples_are_commands() -> None:
    for path in EXAMPLES.iterdir():
        if path.is_file():
            assert os.access(path, os.X_OK), path.name
            assert path.read_text().startswith("#!/usr/bin/env ")
