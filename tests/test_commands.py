"""The command line: help, refusals, `serve`, `keys`, `check`, and a Python that cannot run it."""

from __future__ import annotations

import ast
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from relay import __version__
from relay.commands import find_problem
from relay.server import in_place
from relay.store import Store
from tests.chatgpt_backend import Backend
from tests.command_line import run
from tests.openai_backend import OpenAIBackend
from tests.processes import ROOT, Service, free_port
from tests.tokens import jwt
from tests.waiting import wait_for

Serve = Callable[..., Service]
KEYS = "alice:alices-client-key,bob:bobs-client-key-1"
#: what runs before a wrong Python, or one without the packages, is refused
READ_BEFORE_THE_CHECK = (
    "chatgpt_webapi.py",
    "wsgi.py",
    "relay/__init__.py",
    "relay/commands/__init__.py",
    "relay/containers.py",
)


def test_help_and_version(tmp_path: Path) -> None:
    shown = run(tmp_path, "--help")
    assert shown.returncode == 0
    for word in ("serve", "backup", "restore", "keys", "check", "login", "logout"):
        assert word in shown.stdout
    for word in ("--host", "--port"):
        assert word in shown.stdout
    for command in ("serve", "backup", "restore", "keys", "check", "login", "logout"):
        assert run(tmp_path, command, "--help").returncode == 0
    version = run(tmp_path, "--version")
    assert version.stdout == f"chatgpt-webapi {__version__}\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        ["--prot=8081"],
        ["--por", "8081"],
        ["8081"],
        ["start"],
        ["serve", "now"],
        ["--port", "http"],
        ["--port", "70000"],
        ["--port", "8081", "check"],
        ["backup"],
        ["backup", "a", "b"],
        ["keys", "give", "alice"],
        ["keys", "list"],
        ["login", "--browser", "--token"],
        ["login", "someone"],
        ["logout", "a", "b"],
    ],
    ids=" ".join,
)
def test_what_is_unknown_is_refused(tmp_path: Path, arguments: list[str]) -> None:
    refused = run(tmp_path, *arguments)
    assert refused.returncode == 2 and "error: " in refused.stderr
    assert "Traceback" not in refused.stderr and not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [[], ["serve"]], ids=["default", "serve"])
def test_serve_listens_where_the_command_line_says(
    tmp_path: Path, command: list[str]
) -> None:
    port = free_port()
    (tmp_path / ".env").write_text(
        f"PORT=1\nHOST=192.0.2.1\nDATA_DIR={tmp_path}/data\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "chatgpt_webapi.py"), *command]
        + ["--host", "127.0.0.1", "--port", str(port)],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        url = f"http://127.0.0.1:{port}/healthz"
        wait_for(lambda: answers(url), 20)
    finally:
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=10)
    assert process.returncode == 0, log


def answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=2).ok
    except requests.ConnectionError:
        time.sleep(0.1)
        return False


@pytest.mark.parametrize("name", READ_BEFORE_THE_CHECK)
def test_an_old_python_can_read_what_refuses_it(name: str) -> None:
    ast.parse((ROOT / name).read_text(), feature_version=(3, 7))


def test_an_old_python_is_refused_in_one_sentence() -> None:
    sentence = find_problem((3, 9, 18))
    assert "needs Python 3.10 or newer" in sentence and "is 3.9.18." in sentence
    assert find_problem((3, 10, 0)) == ""


@pytest.mark.parametrize("script", ["chatgpt_webapi.py", "wsgi.py"])
def test_outside_the_virtual_environment_one_sentence_says_what_to_do(
    tmp_path: Path, script: str
) -> None:
    for name in READ_BEFORE_THE_CHECK:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    command = [sys.executable, "-S", str(tmp_path / script)]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1
    assert "gevent" in refused.stderr and "requirements.txt" in refused.stderr
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    refused = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1
    assert refused.stderr.endswith(f": {python} {tmp_path}/chatgpt_webapi.py\n")


def noted(folder: Path, *owners: str) -> None:
    """A database where these owners asked just now, and `anonymous` has a conversation."""
    (folder / "data").mkdir(mode=0o700)
    store = Store(f"sqlite:///{folder}/data/conversations.db", in_place)
    for owner in owners:
        store.note_ask(owner)
    store.close()


def test_keys_are_listed_with_their_last_ask(serve: Serve, tmp_path: Path) -> None:
    noted(tmp_path, "alice")
    service = serve()  # no key is set yet
    requests.post(f"{service.url}/ask", data={"msg": "hello"}, timeout=5)
    listed = run(tmp_path, "keys", AUTHORIZATION=KEYS)
    assert listed.returncode == 0, listed.stderr
    rows = {
        line.split()[0]: line.split()[1:] for line in listed.stdout.splitlines() if line
    }
    assert re.fullmatch(r"20\d\d-\d\d-\d\d \d\d:\d\d UTC", " ".join(rows["alice"][:3]))
    assert rows["alice"][3] == "0" and rows["bob"] == ["never", "0"]
    assert rows["anonymous"][-4:] == ["1", "no", "client", "key"]
    assert "keys give anonymous NAME" in listed.stdout
    assert "client-key" not in listed.stdout


def test_keys_of_a_service_that_never_ran_make_nothing(tmp_path: Path) -> None:
    listed = run(tmp_path, "keys")
    assert listed.returncode == 0 and "no client keys yet" in listed.stdout
    assert not list(tmp_path.iterdir())


def test_conversations_are_given_to_another_while_the_service_runs(
    serve: Serve, tmp_path: Path
) -> None:
    first = serve()
    requests.post(f"{first.url}/ask", data={"msg": "hello"}, timeout=5)
    first.stop()
    service = serve(AUTHORIZATION=KEYS)
    wait_for(
        lambda: "1 conversation of anonymous cannot be reached" in service.logged()
    )
    given = run(tmp_path, "keys", "give", "anonymous", "alice", AUTHORIZATION=KEYS)
    assert given.returncode == 0, given.stderr
    assert given.stdout == "alice has 1 conversation of anonymous now.\n"
    listed = requests.get(
        f"{service.url}/conversations", auth=("", "alices-client-key"), timeout=5
    )
    assert [item["title"] for item in listed.json()] == ["hello"]
    again = run(tmp_path, "keys", "give", "anonymous", "alice", AUTHORIZATION=KEYS)
    assert again.returncode == 1 and "has no conversations" in again.stderr
    wrong = run(tmp_path, "keys", "give", "alice", "a b", AUTHORIZATION=KEYS)
    assert wrong.returncode == 1 and "cannot name a client key" in wrong.stderr


def test_a_new_key_and_how_it_joins_the_ones_there_are(
    serve: Serve, api: OpenAIBackend, tmp_path: Path
) -> None:
    service = serve(OPENAI_BASE_URL=api.url, OPENAI_API_KEY="sk-invented-1")
    service.stop()
    made = run(tmp_path, "keys", "make", "bob")
    assert re.fullmatch(r"cw-[A-Za-z0-9_-]{43}\n", made.stdout)
    key = made.stdout.strip()
    [line] = [line for line in made.stderr.splitlines() if "AUTHORIZATION=" in line]
    shown = subprocess.run(
        f"{line.strip()}; printf %s \"$AUTHORIZATION\"",
        shell=True, cwd=tmp_path, capture_output=True, text=True,
    ).stdout  # fmt: skip
    first = (tmp_path / "data" / "client_key").read_text().strip()
    assert shown == f"owner:{first},bob:{key}"
    both = serve(
        OPENAI_BASE_URL=api.url, OPENAI_API_KEY="sk-invented-1", AUTHORIZATION=shown
    )
    for password in (first, key):
        url = f"{both.url}/conversations"
        assert requests.get(url, auth=("", password), timeout=5).status_code == 200


@pytest.mark.parametrize(
    ("authorization", "hint"),
    [
        ("", "Set AUTHORIZATION=bob:cw-"),
        ("none", "Set AUTHORIZATION=bob:cw-"),
        ("alice:alices-client-key", "Add it to AUTHORIZATION after a comma: bob:cw-"),
        ("alices-client-key", "write owner: before it"),
    ],
)
def test_how_a_new_key_is_added(tmp_path: Path, authorization: str, hint: str) -> None:
    made = run(tmp_path, "keys", "make", "bob", AUTHORIZATION=authorization)
    assert made.returncode == 0 and hint in made.stderr
    nobody = run(tmp_path, "keys", "make", AUTHORIZATION=authorization)
    assert "NAME:cw-" in nobody.stderr


def test_a_key_needs_a_name_of_its_own(tmp_path: Path) -> None:
    twice = run(tmp_path, "keys", "make", "bob", AUTHORIZATION=KEYS)
    assert twice.returncode == 1 and "already" in twice.stderr
    for name in ("anonymous", "a:b", "a,b"):
        wrong = run(tmp_path, "keys", "make", name)
        assert wrong.returncode == 1 and "cannot name" in wrong.stderr
        assert wrong.stdout == ""


def lines(text: str) -> list[tuple[str, str]]:
    """The lines of `check`: level and text."""
    return [tuple(line.split(": ", 1)) for line in text.splitlines()]  # type: ignore[misc]


def test_check_beside_a_running_service(
    serve: Serve, api: OpenAIBackend, tmp_path: Path
) -> None:
    settings = {
        "OPENAI_BASE_URL": api.url,
        "OPENAI_API_KEY": "sk-invented-1",
        "OPENAI_MODEL": "tiny-1",
    }
    service = serve(**settings)
    checked = run(tmp_path, "check", **settings)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    found = lines(checked.stdout)
    assert {level for level, _ in found} == {"ok"}
    text = checked.stdout
    assert "client_key" in text and "can be read and written" in text
    assert f"openai at {api.url} lists 2 models" in text
    key = (tmp_path / "data" / "client_key").read_text().strip()
    assert key not in text and "sk-invented" not in text
    answer = requests.get(f"{service.url}/readyz", auth=("", key), timeout=5)
    assert answer.json()["status"] == "ready"
    other = run(tmp_path, "check", **settings, OPENAI_MODLE="huge-1")
    assert (
        "warning",
        "settings: OPENAI_MODLE in the environment is no setting: is OPENAI_MODEL meant?",
    ) in lines(other.stdout)
    missing = run(tmp_path, "check", **{**settings, "OPENAI_MODEL": "huge-1"})
    assert missing.returncode == 0
    assert "huge-1 (OPENAI_MODEL) is none of them" in missing.stdout


def test_check_makes_nothing(tmp_path: Path) -> None:
    checked = run(tmp_path, "check")
    assert checked.returncode == 0
    assert "is made at the first start" in checked.stdout
    assert (
        "warning: upstream: the offline responder, which is no model" in checked.stdout
    )
    assert not list(tmp_path.iterdir())


def test_check_reads_the_expiry_of_each_token(backend: Backend, tmp_path: Path) -> None:
    now = int(time.time())
    tokens = [jwt(sub=str(days), exp=now + days * 86400) for days in (30, 1, -1)]
    checked = run(
        tmp_path,
        "check",
        REVERSE_PROXY=backend.url,
        ACCESS_TOKEN=",".join([*tokens, "opaque-token-4"]),
    )
    assert checked.returncode == 1
    found = [line for line in lines(checked.stdout) if "ACCESS_TOKEN" in line[1]]
    assert [level for level, _ in found] == ["ok", "warning", "error", "ok"]
    for number, (_, text) in enumerate(found, 1):
        assert text.startswith(f"ACCESS_TOKEN number {number}")
    assert "it expired at 20" in found[2][1] and "does not say" in found[3][1]
    assert "lists 2 models" in checked.stdout
    assert not any(token in checked.stdout for token in (*tokens, "opaque"))


def test_check_names_what_fails(tmp_path: Path, api: OpenAIBackend) -> None:
    address = f"http://127.0.0.1:{free_port()}/v1"
    gone = run(tmp_path, "check", OPENAI_BASE_URL=address)
    assert gone.returncode == 1
    assert f"error: upstream: openai at {address}: " in gone.stdout
    rejected = run(
        tmp_path, "check", OPENAI_BASE_URL=api.url, OPENAI_API_KEY="sk-expired-1"
    )
    assert rejected.returncode == 1 and "sk-expired" not in rejected.stdout
    unread = run(tmp_path, "check", PORT="http")
    assert (unread.returncode, unread.stdout.count("\n")) == (1, 1)
    assert unread.stdout.startswith("error: settings: PORT cannot be read")
    noted(tmp_path)
    (tmp_path / "data" / "conversations.db").write_bytes(b"no database" * 1000)
    broken = run(tmp_path, "check", UPSTREAM="offline")
    assert broken.returncode == 1 and "error: database: " in broken.stdout
    (tmp_path / "data").chmod(0o755)
    public = run(tmp_path, "check", UPSTREAM="offline")
    assert "chmod 700" in public.stdout and public.returncode == 1
    for result in (gone, rejected, unread, broken, public):
        assert "Traceback" not in result.stderr
    assert json.dumps(gone.stdout).isascii()


def test_check_on_postgresql(tmp_path: Path, postgresql: object) -> None:
    url = postgresql.database()  # type: ignore[attr-defined]
    checked = run(tmp_path, "check", DATABASE_URL=url, UPSTREAM="offline")
    assert checked.returncode == 0 and "is empty" in checked.stdout
    store = Store(url, in_place)
    store.note_ask("alice")
    checked = run(tmp_path, "check", DATABASE_URL=url, UPSTREAM="offline")
    assert checked.returncode == 0 and "can be read and written" in checked.stdout
    listed = run(tmp_path, "keys", DATABASE_URL=url, AUTHORIZATION=KEYS)
    assert listed.returncode == 0 and "UTC" in listed.stdout
    store.close()
