"""Accounts with a refresh token, through the whole service: renewed once for all, never lost, and clear when it is dead."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from relay.accounts import Account, SignIn, Source
from relay.commands.check import check
from relay.errors import InternalError, NotRenewed, StoreFailed, TooManyAttempts
from relay.server import in_place
from relay.signin.tokens import MOST_OF_CALLERS, SignedInTokens
from relay.store import Store
from relay.token_store import UNUSED_SECONDS, StoredToken, TokenStore
from relay.upkeep import Upkeep
from tests.chatgpt_backend import Backend
from tests.conftest import running
from tests.oauth_server import EXPIRED, OAuthServer, error
from tests.processes import Service, outcomes
from tests.replies import body_of
from tests.waiting import wait_for

Build = Callable[..., Flask]
Start = Callable[..., Service]
KEY = {"Authorization": "Bearer the-client-key-0"}


class OnlyGranted(dict[str, Any]):
    """What the backend refuses: every access token that the token server has not granted, or that was revoked."""

    def __init__(self, oauth: OAuthServer) -> None:
        super().__init__()
        self._oauth = oauth
        self.revoked: set[str] = set()

    def __contains__(self, token: object) -> bool:
        return token not in self._oauth.granted or token in self.revoked

    def __getitem__(self, token: str) -> Any:
        return 401, {}, json.dumps(EXPIRED).encode()


@pytest.fixture
def oauth() -> Iterator[OAuthServer]:
    yield from running(OAuthServer())


@pytest.fixture
def backend(oauth: OAuthServer) -> Iterator[Backend]:
    """ChatGPT's backend, which takes what the token server grants."""
    backend = Backend()
    backend.mode.refuse_tokens = OnlyGranted(oauth)
    backend.account_of = lambda token: oauth.granted[token]
    yield from running(backend)


@pytest.fixture
def service(
    build: Build, backend: Backend, oauth: OAuthServer
) -> Callable[..., FlaskClient]:
    """Makes clients of a service, as `service("rt_...")`: its accounts have these tokens."""

    def make(*tokens: str, **settings: Any) -> FlaskClient:
        defaults = {
            "reverse_proxy": backend.url,
            "access_token": tokens,
            "oauth_token_url": oauth.url,
            "authorization": ("the-client-key-0",),
        }
        return build(**{**defaults, **settings}).test_client()

    return make


def ask(
    client: FlaskClient, headers: dict[str, str] | None = None, **fields: Any
) -> TestResponse:
    data = {"msg": "hello", **fields}
    return client.post("/ask", data=data, headers=headers or KEY, buffered=True)


def converse(
    client: FlaskClient, headers: dict[str, str] | None = None, **fields: Any
) -> TestResponse:
    """An ask whose answer names its conversation."""
    data = {"prompt": "hello", **fields}
    return client.post(
        "/send_message", data=data, headers=headers or KEY, buffered=True
    )


def store_of(client: FlaskClient) -> TokenStore:
    return TokenStore(client.application.extensions["service"].store)


def row_of(client: FlaskClient, refresh_token: str) -> StoredToken:
    row = store_of(client).find(SignIn.of(refresh_token, "setting").id)
    assert row is not None
    return row


def expired_row(
    oauth: OAuthServer, first: str, source: Source = "setting"
) -> StoredToken:
    """The row of an account whose access token has expired."""
    past = time.time() - 60
    token = oauth.access_token(oauth.current[first], -60)
    account = Account.of(token).name
    sign_in = SignIn.of(first, source)
    return StoredToken(sign_in.id, source, account, first, token, past)


def test_an_ask_gets_its_access_token_first_and_later_ones_have_it(
    service: Callable[..., FlaskClient], backend: Backend, oauth: OAuthServer
) -> None:
    first = oauth.sign_in()
    client = service(first)
    assert "You said: hello" in body_of(converse(client))["text"]
    assert ask(client).status_code == 200 and oauth.asked == [first]
    row = row_of(client, first)
    assert row.refresh_token in oauth.current and row.refresh_token != first
    assert row.began is None and row.source == "setting"
    [token] = oauth.granted
    assert {asked.headers["authorization"] for asked in backend.turns} == {
        f"Bearer {token}"
    }


def test_the_next_refresh_token_is_written_before_the_access_token_is_used(
    service: Callable[..., FlaskClient], backend: Backend, oauth: OAuthServer
) -> None:
    first = oauth.sign_in()
    client = service(first)
    written: list[bool] = []

    def look(token: str) -> str:
        row = row_of(client, first)
        written.append(row.access_token == token and row.refresh_token in oauth.current)
        return "someone"

    backend.account_of = look
    assert ask(client).status_code == 200 and written == [True]


def test_a_conversation_goes_on_after_a_restart_with_the_stored_token(
    service: Callable[..., FlaskClient], backend: Backend, oauth: OAuthServer
) -> None:
    first, other = oauth.sign_in("one"), oauth.sign_in("two")
    opened = body_of(converse(service(first)))
    restarted = service(other, first)
    for _ in range(3):
        answer = body_of(converse(restarted, conversation_id=opened["conversation_id"]))
        assert answer["conversation_id"] == opened["conversation_id"]
    assert oauth.asked == [first], "the account's name was known from the row"


def test_a_conversation_finds_its_account_by_a_token_that_was_never_used_here(
    service: Callable[..., FlaskClient], backend: Backend, oauth: OAuthServer
) -> None:
    opened = body_of(converse(service(oauth.sign_in("one"))))
    place = {"conversation_id": opened["conversation_id"]}
    again = service(oauth.sign_in("two"), oauth.sign_in("one"))
    assert (
        body_of(converse(again, **place))["conversation_id"] == place["conversation_id"]
    )
    assert ask(again, **place).status_code == 200
    gone = ask(service(oauth.sign_in("two"), oauth.sign_in("three")), **place)
    assert gone.status_code == 409 and "not configured" in gone.text


@pytest.mark.parametrize("change", [False, True])
def test_a_conversation_is_looked_up_at_its_account_before_that_was_ever_used_here(
    service: Callable[..., FlaskClient],
    backend: Backend,
    oauth: OAuthServer,
    change: bool,
) -> None:
    opened = body_of(converse(service(oauth.sign_in("one"))))
    again = service(oauth.sign_in("two"), oauth.sign_in("one"))
    path = f"/conversation/{opened['conversation_id']}"
    if change:
        answer = again.post(f"{path}/title", data={"title": "x"}, headers=KEY)
    else:
        answer = again.get(path, headers=KEY, buffered=True)
    assert answer.status_code == 200, answer.text
    others = service(oauth.sign_in("two"), oauth.sign_in("three"))
    gone = others.get(path, headers=KEY, buffered=True)
    assert gone.status_code == 409 and "not configured" in gone.text


def test_a_refused_access_token_is_renewed_once_in_the_same_ask(
    service: Callable[..., FlaskClient], backend: Backend, oauth: OAuthServer
) -> None:
    refused = backend.mode.refuse_tokens
    assert isinstance(refused, OnlyGranted)
    client = service(oauth.sign_in())
    place = {"conversation_id": body_of(converse(client))["conversation_id"]}
    refused.revoked = set(oauth.granted)
    assert ask(client, **place).status_code == 200 and len(oauth.asked) == 2
    refused.revoked = set(oauth.granted)
    answer = ask(client, **place)
    assert answer.status_code == 401 and len(oauth.asked) == 2, (
        "no second exchange within a minute"
    )


def test_a_new_access_token_that_is_refused_too_is_not_renewed_again(
    service: Callable[..., FlaskClient], backend: Backend, oauth: OAuthServer
) -> None:
    client = service(oauth.sign_in())
    assert ask(client).status_code == 200
    backend.mode.refusals = [(401, {}, json.dumps(EXPIRED).encode())] * 3
    assert ask(client).status_code == 401 and len(oauth.asked) == 2
    assert len(backend.mode.refusals) == 1


def test_an_account_that_was_closed_is_not_renewed(
    service: Callable[..., FlaskClient], backend: Backend, oauth: OAuthServer
) -> None:
    client = service(oauth.sign_in())
    backend.mode.refusals = [(401, {}, error("account_deactivated"))]
    assert ask(client).status_code == 401 and len(oauth.asked) == 1


def test_a_token_that_another_process_has_renewed_is_taken_from_the_database(
    service: Callable[..., FlaskClient], backend: Backend, oauth: OAuthServer
) -> None:
    refused = backend.mode.refuse_tokens
    assert isinstance(refused, OnlyGranted)
    first = oauth.sign_in()
    one, other = service(first), service(first)
    assert ask(one).status_code == 200 and ask(other).status_code == 200
    assert len(oauth.asked) == 1
    refused.revoked = set(oauth.granted)
    assert ask(one).status_code == 200 and ask(other).status_code == 200
    assert len(oauth.asked) == 2


def test_it_is_renewed_early_and_a_failure_of_that_harms_nobody(
    service: Callable[..., FlaskClient], oauth: OAuthServer
) -> None:
    oauth.behaviour.lifetime = 250.0
    first = oauth.sign_in()
    client = service(first)
    assert ask(client).status_code == 200
    row = row_of(client, first)
    restarted = service(first)
    oauth.behaviour.refusals = [(503, {}, b"")]
    assert ask(restarted).status_code == 200
    wait_for(lambda: len(oauth.asked) == 2)
    assert ask(restarted).status_code == 200 and len(oauth.asked) == 2, "it backs off"
    assert row_of(client, first).access_token == row.access_token


@pytest.mark.parametrize("code", ["refresh_token_expired", "invalid_grant"])
def test_a_dead_refresh_token_fails_fast_and_says_what_to_do(
    service: Callable[..., FlaskClient],
    oauth: OAuthServer,
    code: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    oauth.behaviour.refusals = [(400, {}, error(code))]
    first = oauth.sign_in()
    client = service(first)
    for each in (client, client, service(first)):
        answer = ask(each)
        assert answer.status_code == 401
        assert code in answer.text and "chatgpt_webapi.py login" in answer.text
        [resting] = body_of(each.get("/readyz", headers=KEY, buffered=True))["resting"][
            "chatgpt-web"
        ]
        name = SignIn.of(first, "setting").name
        assert resting == {
            "account": name,
            "model": "",
            "until": "",
            "reason": "token_rejected",
        }
    assert oauth.asked == [first], "nobody asked again, not even after a restart"
    assert (
        first not in caplog.text and "ACCESS_TOKEN number 1 was rejected" in caplog.text
    )


def test_another_account_answers_in_place_of_one_that_cannot_be_renewed(
    service: Callable[..., FlaskClient], backend: Backend, oauth: OAuthServer
) -> None:
    oauth.behaviour.refusals = [(503, {}, b""), (401, {}, error("invalid_grant"))]
    tokens = [oauth.sign_in(name) for name in ("one", "two", "three")]
    client = service(*tokens)
    assert ask(client).status_code == 200
    assert oauth.asked == tokens and len(backend.turns) == 1


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"{}"], ids=["empty", "page", "object"]
)
def test_an_answer_of_200_without_a_token_is_a_failure_for_now(
    service: Callable[..., FlaskClient], oauth: OAuthServer, body: bytes
) -> None:
    oauth.behaviour.garbage = [body]
    answer = ask(service(oauth.sign_in()))
    assert answer.status_code == 502 and "could not be renewed" in answer.text
    assert int(answer.headers["Retry-After"]) >= 1


def test_a_lost_answer_is_tried_once_more_and_then_told_exactly(
    service: Callable[..., FlaskClient],
    oauth: OAuthServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    oauth.behaviour.cuts = 1
    first = oauth.sign_in()
    client = service(first)
    assert ask(client).status_code == 502
    assert row_of(client, first).began is not None
    restarted = service(first)
    with caplog.at_level(logging.WARNING):
        answers = [ask(restarted) for _ in range(2)]
    assert caplog.text.count("outcome was never stored") == 1
    for answer in answers:
        assert answer.status_code == 401 and "is used up" in answer.text
        assert "login" in answer.text
    assert oauth.asked == [first, first]


def test_a_database_that_fails_after_the_exchange_loses_nothing(
    service: Callable[..., FlaskClient],
    oauth: OAuthServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = oauth.sign_in()
    client = service(first)

    def fail(store: TokenStore, token: StoredToken) -> None:
        raise StoreFailed()

    with monkeypatch.context() as failing:
        failing.setattr(TokenStore, "put", fail)
        assert ask(client).status_code == 503
        assert row_of(client, first).refresh_token == first
    client.application.extensions["service"].tokens._states.clear()  # no pause
    assert ask(client).status_code == 200 and oauth.asked == [first]
    assert row_of(client, first).refresh_token in oauth.current


def test_callers_may_show_a_refresh_token_wherever_an_access_token_is_taken(
    service: Callable[..., FlaskClient], backend: Backend, oauth: OAuthServer
) -> None:
    mine = oauth.sign_in("caller")
    client = service()
    bearer = {"Authorization": f"Bearer {mine}"}
    opened = body_of(converse(client, bearer))
    place = {"conversation_id": opened["conversation_id"]}
    by_field = client.post(
        "/send_message",
        data={"prompt": "more", "access_token": mine, **place},
        buffered=True,
    )
    assert body_of(by_field)["conversation_id"] == place["conversation_id"]
    bare = ask(client, {"Authorization": mine}, **place)
    assert bare.status_code == 200
    assert oauth.asked == [mine]
    other = {"Authorization": f"Bearer {oauth.sign_in('another')}"}
    assert ask(client, other, **place).status_code == 404
    assert row_of(client, mine).source == "caller"


def test_history_models_titles_and_passages_with_a_refresh_token(
    service: Callable[..., FlaskClient], backend: Backend, oauth: OAuthServer
) -> None:
    refused = backend.mode.refuse_tokens
    assert isinstance(refused, OnlyGranted)
    client = service(oauth.sign_in("server"))
    bearer = {"Authorization": f"Bearer {oauth.sign_in('caller')}"}
    for headers in (KEY, bearer):
        name = body_of(converse(client, headers))["conversation_id"]
        path = f"/conversation/{name}"
        client.application.extensions["service"].tokens._states.clear()
        refused.revoked = set(oauth.granted)
        listed = client.get("/conversations", headers=headers, buffered=True)
        assert listed.status_code == 200 and name in listed.text
        assert client.get(path, headers=headers, buffered=True).status_code == 200
        models = client.get("/models", headers=headers, buffered=True)
        assert "gpt-5-mini" in models.text
        passed = client.get(
            f"/backend-api/conversation/{name}", headers=headers, buffered=True
        )
        assert passed.status_code == 200, passed.text
        refused.revoked = set(oauth.granted)
        client.application.extensions["service"].tokens._states.clear()
        passed = client.get(
            f"/backend-api/conversation/{name}", headers=headers, buffered=True
        )
        assert passed.status_code == 200, passed.text


def test_nothing_is_written_for_a_token_that_the_exchange_has_not_accepted(
    service: Callable[..., FlaskClient], oauth: OAuthServer
) -> None:
    client = service()
    running = client.application.extensions["service"]
    running.upkeep.stop()  # it writes, too
    running.watch.stop()
    database = running.store.database
    writes: list[Any] = []
    write = database.write
    database.write = lambda work: (writes.append(work), write(work))[1]
    bearer = {"Authorization": "Bearer rt_invented-by-a-stranger"}
    for _ in range(2):
        answer = ask(client, bearer)
        assert answer.status_code == 401
        assert "send the new refresh token" in answer.text
    assert len(oauth.asked) == 1 and not writes


def test_two_processes_that_meet_a_callers_new_token_at_once(
    service: Callable[..., FlaskClient], oauth: OAuthServer
) -> None:
    """Neither has a lease before the token was accepted: the one that comes second finds the first one's row."""
    mine = oauth.sign_in("caller")
    clients = [service(), service()]
    both = threading.Barrier(2, timeout=10)
    oauth.behaviour.before = lambda: both.wait() and None
    with ThreadPoolExecutor(2) as threads:
        bearer = {"Authorization": f"Bearer {mine}"}
        answers = list(threads.map(lambda client: ask(client, bearer), clients))
    assert [answer.status_code for answer in answers] == [200, 200]


def test_a_client_key_of_that_length_is_a_key_first(
    service: Callable[..., FlaskClient], oauth: OAuthServer
) -> None:
    key = "k" * 45
    client = service(oauth.sign_in(), authorization=(key,))
    assert ask(client, {"Authorization": f"Bearer {key}"}).status_code == 200
    assert key not in oauth.asked


def test_an_access_token_that_names_nobody_keeps_its_accounts_name(
    service: Callable[..., FlaskClient], oauth: OAuthServer
) -> None:
    oauth.behaviour.opaque = True
    first, other = oauth.sign_in(), oauth.sign_in("another")
    opened = body_of(converse(service(first)))
    again = ask(service(other, first), conversation_id=opened["conversation_id"])
    assert again.status_code == 200


def test_accounts_that_signed_in_by_the_command_are_the_servers_own(
    service: Callable[..., FlaskClient],
    backend: Backend,
    oauth: OAuthServer,
    store: Store,
    tmp_path: Path,
) -> None:
    first = oauth.sign_in("signed-in")
    TokenStore(store).put(expired_row(oauth, first, "login"))
    client = service(
        database_url=f"sqlite:///{tmp_path}/test.db", reverse_proxy="",
        chatgpt_base_url=(backend.url,),
    )  # fmt: skip
    assert ask(client).status_code == 200 and oauth.asked == [first]
    assert client.post("/ask", data={"msg": "hello"}).status_code == 401


def test_an_account_that_signed_out_meanwhile_asks_nobody(
    service: Callable[..., FlaskClient],
    oauth: OAuthServer,
    store: Store,
    tmp_path: Path,
) -> None:
    row = expired_row(oauth, oauth.sign_in(), "login")
    TokenStore(store).put(row)
    client = service(database_url=f"sqlite:///{tmp_path}/test.db")
    assert TokenStore(store).delete(row.id)
    answer = ask(client)
    assert answer.status_code == 401 and "signed out" in answer.text
    assert not oauth.asked


def test_the_check_of_a_setup_uses_no_refresh_token_up(
    backend: Backend,
    oauth: OAuthServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    given = environ(backend, oauth, ACCESS_TOKEN=oauth.sign_in())
    for name, value in {**given, "DATA_DIR": str(tmp_path / "data")}.items():
        monkeypatch.setenv(name, value)
    assert check() == 0
    printed = capsys.readouterr().out
    assert "ok: ACCESS_TOKEN number 1: a refresh token" in printed
    assert "is not asked here" in printed and given["ACCESS_TOKEN"] not in printed
    assert not oauth.asked and not backend.asked


def test_unused_rows_of_callers_are_deleted_and_no_others(
    store: Store, monkeypatch: pytest.MonkeyPatch, oauth: OAuthServer
) -> None:
    tokens = TokenStore(store)
    sources: tuple[Source, ...] = ("caller", "login", "setting")
    rows = [expired_row(oauth, oauth.sign_in(), source) for source in sources]
    for row in rows:
        tokens.put(row)
    upkeep = Upkeep(store, 0, [tokens.tidy])
    upkeep.once()
    assert all(tokens.find(row.id) for row in rows)
    now = tokens.now()
    monkeypatch.setattr(TokenStore, "now", lambda self: now + UNUSED_SECONDS + 1)
    upkeep.once()
    assert [tokens.find(row.id) is not None for row in rows] == [False, True, True]
    assert tokens.delete(rows[1].id) and not tokens.delete(rows[1].id)


class Refusing:
    """A renewer that gets nothing."""

    def renew(self, sign_in: SignIn, known: str, rejected: str) -> StoredToken:
        raise NotRenewed("Not now.")


def test_many_strangers_tokens_are_not_remembered(store: Store) -> None:
    tokens = SignedInTokens(Refusing(), TokenStore(store))
    for number in range(MOST_OF_CALLERS + 50):
        with pytest.raises(NotRenewed):
            tokens.get(SignIn.of(f"rt_{number}", "caller"), 5)
    assert len(tokens._states) <= MOST_OF_CALLERS + 1
    assert all(state.renewal is None for state in tokens._states.values())


def test_strangers_tokens_that_hang_are_bounded(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.signin.tokens.MOST_RENEWALS", 2)
    let_go = threading.Event()

    class Silent:
        def renew(self, sign_in: SignIn, known: str, rejected: str) -> StoredToken:
            let_go.wait(20)
            raise NotRenewed("Not now.")

    tokens = SignedInTokens(Silent(), TokenStore(store))
    for number in range(2):
        assert tokens.get(SignIn.of(f"rt_{number}", "caller"), 0) is None
    with pytest.raises(TooManyAttempts):
        tokens.get(SignIn.of("rt_3", "caller"), 0)
    assert tokens.get(SignIn.of("rt_ours", "setting"), 0) is None
    let_go.set()
    tokens.close(10)


class Failing:
    """A renewer with an error in it."""

    def renew(self, sign_in: SignIn, known: str, rejected: str) -> StoredToken:
        raise ZeroDivisionError


def test_an_unforeseen_error_is_told_to_who_waits(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged = threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda details: logged.set())
    tokens = SignedInTokens(Failing(), TokenStore(store))
    with pytest.raises(InternalError):
        tokens.get(SignIn.of("rt_one", "setting"), 5)
    assert logged.wait(5)


def test_no_token_is_shown(oauth: OAuthServer) -> None:
    first = oauth.sign_in()
    row = expired_row(oauth, first)
    sign_in = SignIn.of(first, "setting")
    texts = [repr(row), repr(sign_in), repr(Account.of_sign_in(sign_in))]
    assert not [
        text for text in texts if first in text or str(row.access_token) in text
    ]


def environ(backend: Backend, oauth: OAuthServer, **more: str) -> dict[str, str]:
    return {
        "REVERSE_PROXY": backend.url,
        "OAUTH_TOKEN_URL": oauth.url,
        "AUTHORIZATION": "the-client-key-0",
        **more,
    }


def post(service: Service, **options: Any) -> requests.Response:
    return requests.post(
        f"{service.url}/ask",
        data={"msg": "hello"},
        headers=KEY,
        timeout=60,
        **options,
    )


def seed(database: str, tmp_path: Path, row: StoredToken) -> str:
    """Put a row into the database of the services; its URL."""
    (tmp_path / "data").mkdir(mode=0o700, exist_ok=True)
    url = database or f"sqlite:///{tmp_path}/data/shared.db"
    store = Store(url, in_place)
    TokenStore(store).put(row)
    store.close()
    return url


def stored(url: str, first: str) -> StoredToken:
    store = Store(url, in_place)
    row = TokenStore(store).find(SignIn.of(first, "setting").id)
    store.close()
    assert row is not None
    return row


@pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)
def test_twenty_asks_in_two_processes_take_one_exchange(
    serve: Start, backend: Backend, oauth: OAuthServer, database: str, tmp_path: Path
) -> None:
    first = oauth.sign_in()
    url = seed(database, tmp_path, expired_row(oauth, first))
    given = environ(backend, oauth, DATABASE_URL=url, ACCESS_TOKEN=first)
    services = [serve("pywsgi", **given), serve("pywsgi", **given)]
    oauth.behaviour.delay = 1.0
    with ThreadPoolExecutor(20) as threads:
        answers = list(threads.map(post, services * 10))
    assert [answer.status_code for answer in answers] == [200] * 20
    assert oauth.asked == [first] and len(backend.turns) == 20
    for each in services:
        assert first not in each.logged()
        assert not [token for token in oauth.granted if token in each.logged()]


@pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)
@pytest.mark.parametrize("is_used", [False, True], ids=["not-used", "used"])
def test_a_kill_between_exchange_and_write_is_told_and_healed_where_it_can_be(
    serve: Start,
    backend: Backend,
    oauth: OAuthServer,
    database: str,
    tmp_path: Path,
    is_used: bool,
) -> None:
    first = oauth.sign_in()
    url = seed(database, tmp_path, expired_row(oauth, first))
    given = environ(backend, oauth, DATABASE_URL=url, ACCESS_TOKEN=first)
    service = serve("pywsgi", **given)
    killed = threading.Event()

    def kill() -> None:
        if not killed.is_set():
            service.kill()
            killed.set()
            if not is_used:
                raise ConnectionResetError

    if is_used:
        oauth.behaviour.after = kill
    else:
        oauth.behaviour.before = kill
    with pytest.raises(requests.RequestException):
        post(service)
    assert killed.wait(10) and stored(url, first).began is not None
    service.start()
    answer = post(service)
    log = [json.loads(line) for line in service.logged().splitlines() if "{" in line]
    told = [line for line in log if "outcome was never stored" in str(line)]
    assert len(told) == 1 and stored(url, first).account in str(told)
    assert oauth.asked == [first, first], "it is tried once more"
    if is_used:
        assert answer.status_code == 401 and "is used up" in answer.text
        assert post(service).status_code == 401 and len(oauth.asked) == 2
    else:
        assert answer.status_code == 200
        assert stored(url, first).refresh_token in oauth.current


@pytest.mark.parametrize("route", ["/ask", "/backend-api/me"])
def test_who_leaves_during_an_exchange_is_gone_within_a_second_and_it_goes_on(
    serve: Start, backend: Backend, oauth: OAuthServer, route: str
) -> None:
    oauth.behaviour.silent = threading.Event()
    first = oauth.sign_in()
    service = serve("pywsgi", **environ(backend, oauth, ACCESS_TOKEN=first))
    method = "POST" if route == "/ask" else "GET"
    data = {"msg": "hello"} if method == "POST" else None
    with pytest.raises(requests.Timeout):
        requests.request(
            method, f"{service.url}{route}", data=data, headers=KEY, timeout=(5, 1)
        )
    left = time.monotonic()
    [outcome] = wait_for(lambda: outcomes(service), 3)
    assert outcome["outcome"] == "caller_left" and time.monotonic() - left < 1.5
    assert oauth.asked == [first] and not backend.turns
    oauth.behaviour.silent.set()
    assert post(service).status_code == 200 and oauth.asked == [first]
