"""The commands `login` and `logout`, as somebody at a terminal and as a script runs them."""

from __future__ import annotations

import io
import json
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from relay.commands.login import keep
from relay.commands.terminal import Terminal
from relay.errors import StoreFailed
from relay.signin.issuer import Issuer, Tokens
from relay.signin.keeping import KeptSignIn
from relay.transports.dialing import DirectDialer
from relay.transports.direct import DirectTransport
from tests.chatgpt_backend import Backend
from tests.command_line import run
from tests.postgresql import PostgreSQL
from tests.processes import Service
from tests.signin.oauth_server import (
    DEVICE_TOKEN,
    REVOKE,
    TOKEN,
    USER_CODE,
    Canned,
    OAuthServer,
    Person,
)
from tests.terminal import CTRL_C, Typist
from tests.tokens import jwt

Start = Callable[..., Typist]
DATABASE = {"conversations.db", "conversations.db-wal", "conversations.db-shm"}


@pytest.fixture
def start(tmp_path: Path, server: OAuthServer) -> Iterator[Start]:
    """Starts a command at a terminal."""
    started: list[Typist] = []

    def begin(*arguments: str, **environ: str) -> Typist:
        started.append(Typist(tmp_path, *arguments, **settings(server) | environ))
        return started[-1]

    yield begin
    for typist in started:
        typist.close()


def settings(server: OAuthServer) -> dict[str, str]:
    return {"AUTH_BASE_URL": server.url, "OAUTH_TOKEN_URL": server.token_url}


def give_token(folder: Path, server: OAuthServer) -> str:
    """Sign in by a refresh token; the account's name."""
    token = server.new_refresh_token()
    done = run(folder, "login", "--token", given=token, **settings(server))
    assert done.returncode == 0, done.stderr
    check_silence(server, done.stdout + done.stderr)
    words = done.stdout.split("here account-")[1].split()[0]
    return f"account-{words.rstrip('.')}"


def sign_out(
    folder: Path, server: OAuthServer, *name: str, **environ: str
) -> tuple[int, str]:
    """The exit status of `logout`, and all that it says."""
    done = run(folder, "logout", *name, **settings(server) | environ)
    shown = done.stdout + done.stderr
    check_silence(server, shown)
    assert "Traceback" not in shown
    return done.returncode, shown


def check_silence(server: OAuthServer, shown: str) -> None:
    assert not [secret for secret in server.secrets if secret in shown], shown


def files_with(folder: Path, secrets: list[str]) -> set[str]:
    """The names of the files that have one of the secrets, anywhere below a folder."""
    contents = {
        path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    return {
        name
        for name, content in contents.items()
        if any(secret.encode() in content for secret in secrets)
    }


def valid(server: OAuthServer) -> list[str]:
    return [token for token, state in server.refresh_tokens.items() if state == "valid"]


def test_a_device_code_signs_in(
    tmp_path: Path, server: OAuthServer, start: Start
) -> None:
    server.canned[DEVICE_TOKEN] = [Canned(403)]
    typist = start("login")
    typist.expect("Settings > Security")
    typist.expect("Never type a code")
    typist.expect(f"Open {server.url}/codex/device ")
    code = typist.expect(r"within 15 minutes: ([0-9A-F]{4}-[0-9A-F]{4})\n")
    assert code[1] in server.devices.values()
    typist.expect("Waiting for you there: 15 minutes left")
    typist.expect(r"Signed in as person@example.org \(plan: plus\), here account-\w+")
    assert typist.end() == 0
    assert f"is kept in {tmp_path}/data/conversations.db" in typist.shown
    check_silence(server, typist.shown)
    found = files_with(tmp_path, valid(server))
    assert found and found <= DATABASE
    assert files_with(tmp_path, server.secrets) <= DATABASE
    for path in (tmp_path / "data").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700


def test_only_the_two_tokens_of_a_sign_in_are_kept(
    tmp_path: Path, server: OAuthServer, start: Start
) -> None:
    assert start("login").end() == 0
    kinds = ("deviceauth-", "verifier-", "ac-")
    spent = [secret for secret in server.secrets if secret.startswith(kinds)]
    assert len(spent) == 3 and files_with(tmp_path, spent) == set()


@pytest.mark.parametrize(
    ("path", "answer", "sentence"),
    [
        (USER_CODE, Canned(404), "login --browser"),
        (USER_CODE, Canned(silent=True), "did not answer within 0.5 s"),
        (DEVICE_TOKEN, Canned.error(403, "access_denied"), "Somebody refused"),
        (TOKEN, Canned(200, b'{"access_token":', cut=4), "middle of the answer"),
        (TOKEN, Canned.oauth_error(400, "invalid_grant"), "invalid_grant"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_sign_in_that_fails_keeps_nothing(
    tmp_path: Path,
    server: OAuthServer,
    start: Start,
    path: str,
    answer: Canned,
    sentence: str,
) -> None:
    server.canned[path] = [answer]
    typist = start("login", FIRST_BYTE_TIMEOUT="0.5")
    assert typist.end() == 1
    assert "\nlogin: " in typist.shown and sentence in typist.shown
    assert "Traceback" not in typist.shown
    check_silence(server, typist.shown)
    assert files_with(tmp_path, server.secrets) == set()
    assert sign_out(tmp_path, server)[0] == 1


def test_an_issuer_that_is_not_there_is_named(
    server: OAuthServer, start: Start
) -> None:
    server.close()
    typist = start("login")
    assert typist.end() == 1
    assert f"login: {server.url}: The upstream cannot be reached" in typist.shown


def test_ctrl_c_ends_the_waiting(
    tmp_path: Path, server: OAuthServer, start: Start
) -> None:
    server.approved = False
    typist = start("login")
    typist.expect("Waiting for you there")
    typist.type(CTRL_C)
    assert typist.end() == 130
    assert typist.shown.endswith("login: interrupted\n")
    assert "Traceback" not in typist.shown
    assert files_with(tmp_path, server.secrets) == set()


def test_ctrl_c_ends_the_hidden_prompt_and_shows_typing_again(start: Start) -> None:
    typist = start("login", "--token")
    typist.expect("not shown")
    typist.type(CTRL_C)
    assert typist.end() == 130 and "Traceback" not in typist.shown


@pytest.mark.parametrize("way", [(), ("--browser",)], ids=["device", "browser"])
def test_without_a_terminal_one_sentence_says_what_to_do(
    tmp_path: Path, server: OAuthServer, way: tuple[str, ...]
) -> None:
    refused = run(tmp_path, "login", *way, **settings(server))
    assert refused.returncode == 1 and refused.stdout == ""
    assert refused.stderr.count("\n") == 1 and "login --token" in refused.stderr
    assert not server.asked and not (tmp_path / "data").exists()


def test_a_data_folder_that_others_may_read_refuses_before_anything_is_asked(
    tmp_path: Path, server: OAuthServer, start: Start
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data").chmod(0o755)
    typist = start("login")
    assert typist.end() == 1 and "chmod 700" in typist.shown
    assert not server.asked


def test_a_browser_elsewhere_signs_in(
    tmp_path: Path, server: OAuthServer, start: Start
) -> None:
    typist = start("login", "--browser")
    address = typist.expect(r"(http://127\S+/oauth/authorize\?\S+)\n")[1]
    typist.expect("Paste it here: ")
    typist.type("http://localhost:1455/auth/callback\n")
    typist.expect("whole address bar")
    typist.type(f"{server.authorize(address)}\n")
    typist.expect("Signed in as person@example.org")
    assert typist.end() == 0
    tokens = [secret for secret in server.secrets if not secret.startswith("ac-")]
    assert not [token for token in tokens if token in typist.shown]
    found = files_with(tmp_path, valid(server))
    assert found and found <= DATABASE
    code = [secret for secret in server.secrets if secret.startswith("ac-")]
    assert files_with(tmp_path, code) == set()


@pytest.mark.parametrize(
    ("pastes", "sentence"),
    [
        (["x"] * 3, "whole address bar"),
        (["?error=access_denied&state={state}"], "refused on the page"),
        (["?code=invented-code&state={state}"], "invalid_grant"),
        (["\x04"], "nothing more to read"),
    ],
    ids=["nonsense", "denied", "wrong code", "end of input"],
)
def test_a_redirect_that_signs_nobody_in(
    tmp_path: Path,
    server: OAuthServer,
    start: Start,
    pastes: list[str],
    sentence: str,
) -> None:
    typist = start("login", "--browser")
    state = typist.expect(r"&state=([\w-]{43})")[1]
    for paste in pastes:
        typist.expect("Paste it here: ")
        typist.type(paste.format(state=state) + "\n" * (paste != "\x04"))
    assert typist.end() == 1
    last = typist.shown.rsplit("login: ", 1)[1]
    assert sentence in last and "Traceback" not in typist.shown
    assert not valid(server)


def test_a_token_that_is_typed_is_not_shown(
    tmp_path: Path, server: OAuthServer, start: Start
) -> None:
    token = server.new_refresh_token()
    typist = start("login", "--token")
    typist.expect("not shown")
    typist.type(f"{token}\n")
    typist.expect("is spent")
    typist.expect("Signed in as person@example.org")
    assert typist.end() == 0
    check_silence(server, typist.shown)
    assert files_with(tmp_path, [token]) == set()
    found = files_with(tmp_path, valid(server))
    assert found and found <= DATABASE


def test_a_token_of_an_issuer_that_does_not_replace_it(
    tmp_path: Path, server: OAuthServer
) -> None:
    server.rotates = False
    token = server.new_refresh_token()
    for _ in range(2):
        given = f"  {token}\n"
        done = run(tmp_path, "login", "--token", given=given, **settings(server))
        assert done.returncode == 0 and "is spent" not in done.stdout
        assert "former" not in done.stdout
    assert files_with(tmp_path, [token])
    assert not server.to(REVOKE)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("", "no token to read"),
        (jwt(sub="someone"), "ACCESS_TOKEN"),
        ("at-invented-access-token", "ACCESS_TOKEN"),
        ("two words", "one word"),
        ("rt_ü23456789", "one word"),
    ],
    ids=lambda value: value[:30],
)
def test_what_is_no_refresh_token_is_sent_nowhere(
    tmp_path: Path, server: OAuthServer, given: str, sentence: str
) -> None:
    refused = run(tmp_path, "login", "--token", given=given, **settings(server))
    assert refused.returncode == 1 and sentence in refused.stderr
    assert not server.asked and refused.stderr.count("\n") == 1
    assert not given.strip() or given.strip() not in refused.stderr


@pytest.mark.parametrize("state", ["spent", "revoked", "unknown"])
def test_a_dead_refresh_token(tmp_path: Path, server: OAuthServer, state: str) -> None:
    token = server.secret("rt")
    if state != "unknown":
        server.refresh_tokens[token] = state
    refused = run(tmp_path, "login", "--token", given=token, **settings(server))
    assert refused.returncode == 1 and "Sign in again" in refused.stderr
    assert "refresh_token_" in refused.stderr
    check_silence(server, refused.stdout + refused.stderr)
    assert files_with(tmp_path, [token]) == set()


def test_a_token_server_that_fails_is_named(
    tmp_path: Path, server: OAuthServer
) -> None:
    server.canned[TOKEN] = [Canned(503)]
    token = server.new_refresh_token()
    failed = run(tmp_path, "login", "--token", given=token, **settings(server))
    assert failed.returncode == 1 and failed.stderr.startswith(f"login: {server.url}: ")
    assert "Try again" in failed.stderr and token not in failed.stderr


class FullSignIns:
    """Keeps nothing: the disk is full."""

    def keep(self, tokens: Tokens, id: str | None = None) -> KeptSignIn:
        raise StoreFailed()

    def list(self) -> list[KeptSignIn]:
        return []

    def remove(self, sign_in: KeptSignIn) -> str:
        return sign_in.refresh_token

    def close(self) -> None:
        pass


def test_a_sign_in_that_cannot_be_kept_is_revoked(server: OAuthServer) -> None:
    made = server.tokens()
    tokens = Tokens(made["access_token"], made["refresh_token"])
    transport = DirectTransport(DirectDialer(2))
    shown = io.StringIO()
    with pytest.raises(StoreFailed):
        issuer = Issuer(transport, server.url, server.token_url)
        keep(FullSignIns(), issuer, Terminal(io.StringIO(), shown), tokens)
    transport.close()
    assert server.refresh_tokens == {tokens.refresh_token: "revoked"}
    check_silence(server, shown.getvalue())


def test_signing_in_again_revokes_the_former_sign_in(
    tmp_path: Path, server: OAuthServer
) -> None:
    give_token(tmp_path, server)
    former = valid(server)
    give_token(tmp_path, server)
    assert [server.refresh_tokens[token] for token in former] == ["revoked"]
    assert files_with(tmp_path, former) == set() and len(valid(server)) == 1
    server.person = Person("other@example.org", "team", "workspace-2")
    give_token(tmp_path, server)
    assert len(valid(server)) == 2 and len(server.to(REVOKE)) == 1


def test_logout_removes_and_revokes(tmp_path: Path, server: OAuthServer) -> None:
    account = give_token(tmp_path, server)
    kept = valid(server)
    status, shown = sign_out(tmp_path, server)
    assert status == 0 and "has revoked" in shown
    assert f"Signed out person@example.org (plan: plus), here {account}" in shown
    assert f"{tmp_path}/data/conversations.db" in shown
    assert [server.refresh_tokens[token] for token in kept] == ["revoked"]
    assert files_with(tmp_path, server.secrets) == set()
    status, shown = sign_out(tmp_path, server)
    assert status == 1 and "no sign-in is kept" in shown


@pytest.mark.parametrize(
    "answer",
    [
        Canned(500),
        Canned(silent=True),
    ],
    ids=["500", "silent"],
)
def test_what_the_issuer_does_not_revoke_is_removed_all_the_same(
    tmp_path: Path, server: OAuthServer, answer: Canned
) -> None:
    give_token(tmp_path, server)
    server.canned[REVOKE] = [answer]
    status, shown = sign_out(tmp_path, server, FIRST_BYTE_TIMEOUT="0.5")
    assert status == 0
    assert "did not revoke" in shown and "Log out of all devices" in shown
    assert files_with(tmp_path, server.secrets) == set()


def test_one_of_several_is_named(tmp_path: Path, server: OAuthServer) -> None:
    first = give_token(tmp_path, server)
    server.person = Person("Other@example.org", "team", "workspace-2", "user-2")
    second = give_token(tmp_path, server)
    assert first != second
    status, shown = sign_out(tmp_path, server)
    assert status == 1 and "logout NAME" in shown
    for words in (first, second, "person@example.org", "Other@example.org"):
        assert words in shown
    status, shown = sign_out(tmp_path, server, "nobody@example.org")
    assert status == 1 and first in shown and len(valid(server)) == 2
    status, shown = sign_out(tmp_path, server, "other@EXAMPLE.org")
    assert status == 0 and "Other@example.org" in shown
    status, shown = sign_out(tmp_path, server, first)
    assert status == 0 and "person@example.org" in shown
    assert not valid(server)


def test_logout_where_nothing_is_yet(tmp_path: Path, server: OAuthServer) -> None:
    status, shown = sign_out(tmp_path, server)
    assert status == 1 and "no sign-in is kept" in shown
    assert not server.asked and not (tmp_path / "data").exists()


def test_an_e_mail_address_commands_no_terminal(
    tmp_path: Path, server: OAuthServer
) -> None:
    server.person.email = "evil\x1b[2J@example.org"
    give_token(tmp_path, server)
    status, shown = sign_out(tmp_path, server)
    assert status == 0 and "\x1b" not in shown
    assert "without an e-mail address (plan: plus)" in shown


def test_a_database_elsewhere_is_named_without_its_password(
    tmp_path: Path, server: OAuthServer, postgresql: PostgreSQL
) -> None:
    url = postgresql.database()
    environ = settings(server) | {"DATABASE_URL": url}
    token = server.new_refresh_token()
    done = run(tmp_path, "login", "--token", given=token, **environ)
    assert done.returncode == 0 and "is kept in postgresql" in done.stdout
    status, shown = sign_out(tmp_path, server, DATABASE_URL=url)
    assert status == 0 and "has revoked" in shown


def test_a_setting_that_is_no_address_is_refused(
    tmp_path: Path, server: OAuthServer
) -> None:
    environ = settings(server) | {"AUTH_BASE_URL": "http://127.0.0.1:99999"}
    refused = run(tmp_path, "login", "--token", given="rt_invented-1", **environ)
    assert refused.returncode == 1 and "AUTH_BASE_URL" in refused.stderr


def test_a_service_asks_with_what_login_keeps(
    tmp_path: Path, server: OAuthServer, backend: Backend, serve: Callable[..., Service]
) -> None:
    give_token(tmp_path, server)
    environ = settings(server) | {
        "CHATGPT_BASE_URL": backend.url,
        "AUTHORIZATION": "owner:owners-client-key",
    }
    service = serve("pywsgi", **environ)
    first = ask(service, backend)
    assert first in server.secrets
    expired = {"detail": {"message": "expired", "code": "token_expired"}}
    backend.mode.refuse_tokens[first] = (401, {}, json.dumps(expired).encode())
    give_token(tmp_path, server)
    exchanges = len(server.to(TOKEN))
    second = ask(service, backend)
    assert second in server.secrets and second != first
    assert len(server.to(TOKEN)) == exchanges
    assert sign_out(tmp_path, server)[0] == 0
    assert files_with(tmp_path / "data", server.secrets) == set()
    check_silence(server, service.logged())


def ask(service: Service, backend: Backend) -> str:
    """Ask a question; the access token that it was answered with."""
    answer = requests.post(
        f"{service.url}/ask",
        data={"msg": "Hello"},
        auth=("", "owners-client-key"),
        timeout=30,
    )
    assert answer.ok, answer.text
    return backend.turns[-1].headers["authorization"].removeprefix("Bearer ")
