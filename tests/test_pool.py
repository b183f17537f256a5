"""The pool of accounts: its pages, who may manage it, and what several processes share."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import requests
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from relay.account_watch import LOOK_SECONDS, next_refresh
from relay.accounts import Account, SignIn
from relay.token_store import StoredToken, TokenStore
from tests.browser import Browser
from tests.chatgpt_backend import Backend
from tests.conftest import running
from tests.oauth_server import EXPIRED, OAuthServer
from tests.processes import Service
from tests.replies import body_of
from tests.tokens import jwt
from tests.waiting import wait_for

ON_BOTH = True
Build = Callable[..., Flask]
Start = Callable[..., Service]
OWNER = {"Authorization": "Bearer the-client-key-0"}
TEAM = "8f0c2b5e-0000-4000-8000-000000000001"
CLAIM = "https://api.openai.com/auth"
Refusal = tuple[int, dict[str, str], bytes]
TOKEN_EXPIRED: Refusal = (401, {}, json.dumps(EXPIRED).encode())
DEACTIVATED: Refusal = (
    403,
    {},
    b'{"detail": {"message": "This account has been deactivated.", "code": "account_deactivated"}}',
)


def limited(seconds: int, code: str = "rate_limit_exceeded") -> Refusal:
    detail = {"message": "You have hit the limit.", "code": code, "clears_in": seconds}
    return 429, {}, json.dumps({"detail": detail}).encode()


def token_of(person: str, workspace: str = "w-1") -> str:
    return jwt(**{CLAIM: {"chatgpt_account_id": workspace, "user_id": person}})


@pytest.fixture
def oauth() -> Iterator[OAuthServer]:
    yield from running(OAuthServer())


@pytest.fixture
def client(build: Build, backend: Backend, oauth: OAuthServer) -> FlaskClient:
    return opened(build, backend, oauth)


def opened(
    build: Build, backend: Backend, oauth: OAuthServer, **settings: Any
) -> FlaskClient:
    """A client of a service that has no account yet."""
    known = {
        "authorization": ("the-client-key-0",),
        "chatgpt_base_url": (backend.url,),
        "conversation_only": True,
        "oauth_token_url": oauth.url,
    }
    return build(**{**known, **settings}).test_client()


def post(
    client: FlaskClient, path: str, text: str = "", **options: Any
) -> TestResponse:
    """A request of the owner's, for chat2api's JSON."""
    options = {"headers": OWNER, "data": {"text": text}, **options}
    return client.post(f"/tokens/{path}", buffered=True, **options)


def ask(
    client: FlaskClient, headers: dict[str, str] | None = None, **fields: str
) -> TestResponse:
    data = {"prompt": "hello", **fields}
    return client.post(
        "/send_message", data=data, headers=headers or OWNER, buffered=True
    )


def listed(client: FlaskClient) -> Any:
    return body_of(client.get("/tokens?format=json", headers=OWNER, buffered=True))


def test_tokens_are_added_counted_named_and_cleared_as_chat2api_does(
    client: FlaskClient, backend: Backend, oauth: OAuthServer
) -> None:
    access, refresh = token_of("alice"), oauth.sign_in("bob")
    assert (
        body_of(client.get("/readyz", headers=OWNER))["default_upstream"] == "offline"
    )
    text = f"# mine\n\n{access}\r\n  {refresh} , {TEAM}  \n{access}\n"
    answer = post(client, "upload", text)
    assert body_of(answer) == {"status": "success", "tokens_count": 2}
    assert (
        body_of(client.get("/readyz", headers=OWNER))["default_upstream"]
        == "chatgpt-web"
    )
    assert ask(client).status_code == 200 and ask(client).status_code == 200
    sent = {asked.headers["authorization"]: asked.headers for asked in backend.turns}
    assert sent.pop(f"Bearer {access}").get("chatgpt-account-id") is None
    [renewed] = sent.values()
    assert renewed["chatgpt-account-id"] == TEAM and oauth.asked == [refresh]
    shown = listed(client)
    assert shown["tokens_count"] == 2
    assert {each["kind"] for each in shown["accounts"]} == {"access", "refresh"}
    assert Account.of(access).name in {each["name"] for each in shown["accounts"]}
    assert body_of(post(client, "clear")) == {"status": "success", "tokens_count": 0}
    assert listed(client) == {"tokens_count": 0, "accounts": []}
    assert len(backend.turns) == 2 and body_of(ask(client))["text"]
    assert len(backend.turns) == 2, "the offline responder answers again"


def test_a_token_that_is_refused_is_named_and_never_shown(
    client: FlaskClient, backend: Backend, oauth: OAuthServer
) -> None:
    good, bad, slow = token_of("good"), token_of("bad"), token_of("slow")
    backend.mode.refuse_tokens = {bad: DEACTIVATED, slow: limited(900)}
    post(client, "upload", f"{bad}\n{slow}\n{good}")
    for _ in range(3):
        assert ask(client).status_code == 200
    assert body_of(post(client, "error")) == {
        "status": "success",
        "error_tokens": [Account.of(bad).name],
    }
    shown = client.get("/tokens?format=json", headers=OWNER, buffered=True)
    page = client.get("/tokens", headers=OWNER, buffered=True)
    rests = {each["name"]: each["resting"] for each in body_of(shown)["accounts"]}
    [rest] = rests[Account.of(slow).name]
    assert rest["reason"] == "rate_limited" and rest["until"] > "2020"
    [rest] = rests[Account.of(bad).name]
    assert rest["reason"] == "token_rejected" and rests[Account.of(good).name] == []
    assert "2 of 3 tokens can be used" in page.text and rest["until"] in page.text
    for text in (shown.text, page.text):
        assert not any(secret in text for secret in (good, bad, slow))
    newer = token_of("bad") + "-newer"
    post(client, "upload", newer)
    assert listed(client)["tokens_count"] == 3, "it took the place of the refused one"
    assert body_of(post(client, "error"))["error_tokens"] == []


def test_a_bad_line_is_named_by_its_number_and_nothing_is_added(
    client: FlaskClient,
) -> None:
    good, secret = token_of("alice"), "sk-a-secret-of-somewhere-else"
    wrong = f"{good}\n\n{secret}\n{good},not an id\ncw-{'x' * 43}\n"
    answer = post(client, "upload", wrong)
    assert answer.status_code == 400 and "line 3, 4, 5." in answer.text
    assert secret not in answer.text and listed(client)["tokens_count"] == 0
    assert post(client, "upload", "# nothing\n").status_code == 400
    many = "\n".join(token_of(f"person-{number}") for number in range(1001))
    answer = post(client, "upload", many)
    assert answer.status_code == 400 and "1000" in answer.text
    assert listed(client)["tokens_count"] == 0


@pytest.mark.parametrize("path", ["", "/upload", "/clear", "/error"])
def test_the_owner_alone_manages_the_pool(
    build: Build, backend: Backend, oauth: OAuthServer, path: str
) -> None:
    keys = ("owner:the-client-key-0", "guest:the-client-key-1")
    shared = opened(build, backend, oauth, authorization=keys)
    open_to_all = opened(
        build, backend, oauth, authorization=("none",), data_dir="open"
    )
    method = "POST" if path else "GET"
    answers = {
        name: at.open(f"/tokens{path}", method=method, data={"text": token_of("a")}, headers=headers, buffered=True)
        for name, at, headers in (
            ("owner", shared, OWNER),
            ("basic", shared, {"Authorization": "Basic OnRoZS1jbGllbnQta2V5LTA="}),
            ("guest", shared, {"Authorization": "Bearer the-client-key-1"}),
            ("token", shared, {"Authorization": f"Bearer {token_of('a')}"}),
            ("nobody", shared, {}),
            ("open", open_to_all, {}),
            ("page", shared, {"Authorization": "Basic OnRoZS1jbGllbnQta2V5LTA=", "Origin": "https://evil.example"}),
            ("site", shared, {**OWNER, "Sec-Fetch-Site": "cross-site"}),
        )
    }  # fmt: skip
    statuses = {name: answer.status_code for name, answer in answers.items()}
    refused = dict.fromkeys(("guest", "token", "open", "page", "site"), 403)
    assert statuses == {"owner": 200, "basic": 200, "nobody": 401, **refused}
    challenge = answers["nobody"].headers["WWW-Authenticate"]
    assert challenge == 'Basic realm="chatgpt-webapi"'
    elsewhere = shared.get("/conversations", buffered=True)
    assert elsewhere.headers["WWW-Authenticate"].startswith("Bearer")


def test_the_pages_stand_below_the_prefix(
    build: Build, backend: Backend, oauth: OAuthServer
) -> None:
    client = opened(build, backend, oauth, api_prefix="/secret")
    page = client.get("/secret/tokens", headers=OWNER, buffered=True)
    assert 'action="/secret/tokens/upload"' in page.text
    assert client.get("/tokens", headers=OWNER).status_code == 404
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "script" not in policy
    answer = client.post(
        "/secret/tokens/upload",
        data=token_of("alice"),
        content_type="text/plain",
        headers=OWNER,
    )
    assert body_of(answer)["tokens_count"] == 1


def test_workspaces_of_the_server_and_of_callers(
    build: Build, backend: Backend, oauth: OAuthServer
) -> None:
    ours, theirs, refresh = token_of("ours"), token_of("theirs"), oauth.sign_in()
    client = opened(build, backend, oauth, access_token=(f"{ours}:{TEAM}",))
    own = {"Authorization": f"Bearer {theirs}"}
    header = {"Chatgpt-Account-Id": TEAM}
    answers = [
        ask(client),
        ask(client, {**OWNER, "Chatgpt-Account-Id": "another-one"}),
        ask(client, {"Authorization": f"Bearer {theirs},{TEAM}"}),
        ask(client, {**own, **header}),
        ask(client, own, **header),
        ask(client, {"Authorization": f"Bearer {refresh},{TEAM}"}),
        client.post(
            "/v1/chat/completions",
            json={"messages": [{"role": "user", "content": "hello"}], **header},
            headers=own,
            buffered=True,
        ),
    ]
    assert [answer.status_code for answer in answers] == [200] * 7
    sent = [
        (asked.headers["authorization"][7:], asked.headers["chatgpt-account-id"])
        for asked in backend.turns
    ]
    renewed = next(iter(oauth.granted))
    assert sent == [(ours, TEAM)] * 2 + [(theirs, TEAM)] * 3 + [
        (renewed, TEAM),
        (theirs, TEAM),
    ]
    assert ask(client, own).status_code == 200
    assert "chatgpt-account-id" not in backend.turns[-1].headers
    wrong = ask(client, {**own, "Chatgpt-Account-Id": "no id: a text"})
    assert wrong.status_code == 500 and "Chatgpt-Account-Id" in wrong.text


@pytest.mark.parametrize("enabled", [True, False])
def test_a_limit_of_a_model_leaves_the_accounts_other_models(
    build: Build, backend: Backend, oauth: OAuthServer, enabled: bool
) -> None:
    token = token_of("alice")
    client = opened(build, backend, oauth, access_token=(token,), enable_limit=enabled)
    backend.mode.refusals = [limited(600, "model_cap_exceeded")]
    assert "limit" in ask(client, model="gpt-4").text
    assert (ask(client, model="gpt-4").status_code == 200) is not enabled
    assert ask(client, model="gpt-4o-mini").status_code == 200
    resting = body_of(client.get("/readyz", headers=OWNER))["resting"]
    models = [each["model"] for each in resting.get("chatgpt-web", ())]
    assert models == (["gpt-4"] if enabled else [])
    backend.mode.refusals = [limited(600)]
    assert "limit" in ask(client, model="gpt-4o-mini").text
    assert (ask(client, model="gpt-5").status_code == 200) is not enabled


def test_the_schedule_is_each_fourth_night() -> None:
    first = next_refresh(datetime(2026, 11, 22, 12))
    assert (first.hour, first.minute) == (3, 0) and 0 < (
        first - datetime(2026, 11, 22, 12)
    ).days + 1 <= 4
    assert (next_refresh(first) - first).days == 4


def test_a_scheduled_refresh_renews_what_nobody_asks(
    build: Build, backend: Backend, oauth: OAuthServer
) -> None:
    given = oauth.sign_in("idle")
    settings = {"access_token": (given,), "scheduled_refresh": True}
    client = opened(build, backend, oauth, **settings)
    wait_for(lambda: oauth.asked == [given])
    service = client.application.extensions["service"]
    wait_for(lambda: len(oauth.granted) == 1)
    [account] = service.upstreams["chatgpt-web"]._backend.pool.accounts
    service.tokens.refresh(account.sign_in, False)
    assert len(oauth.asked) == 1, "it is valid"
    service.tokens.refresh(account.sign_in, True)
    assert len(oauth.granted) == 2 and oauth.asked[1] != given
    assert service.tokens.take_night() and not service.tokens.take_night()


class Recorder(dict[str, Refusal]):
    """What the backend refuses, by token, with the moments of each request and each refusal."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[float, str]] = []
        self.refused: list[tuple[float, str]] = []
        self.lock = threading.Lock()

    def __contains__(self, token: object) -> bool:
        found = super().__contains__(token)
        with self.lock:
            record = (time.monotonic(), str(token))
            self.asked.append(record)
            if found:
                self.refused.append(record)
        return found


def servers(
    serve: Start, database: str, backend: Backend, oauth: OAuthServer
) -> list[Service]:
    """Two processes with one database, and no account."""
    settings = {
        "AUTHORIZATION": "the-client-key-0",
        "CHATGPT_BASE_URL": backend.url,
        "CONVERSATION_ONLY": "true",
        "OAUTH_TOKEN_URL": oauth.url,
        **({"DATABASE_URL": database} if database else {}),
    }
    return [serve(**settings) for _ in range(2)]


def accounts_at(service: Service) -> int:
    shown = requests.get(f"{service.url}/tokens?format=json", headers=OWNER, timeout=10)
    return len(shown.json()["accounts"])


def upload(service: Service, *tokens: str) -> None:
    text = "\n".join(tokens)
    answer = requests.post(
        f"{service.url}/tokens/upload", {"text": text}, headers=OWNER, timeout=10
    )
    assert answer.json()["status"] == "success"


def default_upstream(service: Service) -> str:
    shown = requests.get(f"{service.url}/readyz", headers=OWNER, timeout=10)
    return str(shown.json()["default_upstream"])


def test_five_hundred_asks_of_two_processes_while_accounts_fail(
    serve: Start, database: str, backend: Backend, oauth: OAuthServer
) -> None:
    backend.mode.delay = 0.05
    recorder = Recorder()
    backend.mode.refuse_tokens = recorder
    whole, expired, capped, closed = map(
        token_of, ("whole", "expired", "capped", "closed")
    )
    refresh = oauth.sign_in("renewed")
    first, second = servers(serve, database, backend, oauth)
    upload(first, whole, expired, capped, closed, refresh)
    wait_for(lambda: default_upstream(second) == "chatgpt-web")
    failing: dict[int, Callable[[], None]] = {
        100: lambda: recorder.update({expired: TOKEN_EXPIRED}),
        150: lambda: recorder.update({next(iter(oauth.granted)): TOKEN_EXPIRED}),
        200: lambda: recorder.update({capped: limited(3600)}),
        250: lambda: recorder.update({closed: DEACTIVATED}),
    }

    def ask_once(number: int) -> tuple[int, str]:
        failing.get(number, lambda: None)()
        url = (first, second)[number % 2].url
        answer = requests.post(
            f"{url}/ask", {"msg": f"question {number}"}, headers=OWNER, timeout=60
        )
        return answer.status_code, answer.text

    with ThreadPoolExecutor(40) as executor:
        answers = list(executor.map(ask_once, range(500)))
    assert {status for status, _ in answers} == {200}
    assert all(
        f"question {number} " in text for number, (_, text) in enumerate(answers)
    )
    questions = Counter(
        asked.body["messages"][0]["content"]["parts"][0] for asked in backend.turns
    )
    answered = Counter(
        node["message"]["content"]["parts"][0]
        for tree in backend.trees.values()
        for node in tree["mapping"].values()
        if node["message"] and node["message"]["author"]["role"] == "user"
    )
    assert len(answered) == 500 and set(answered.values()) == {1}, "none is asked twice"
    assert len(questions) == 500 and max(questions.values()) <= 4
    names = {whole: "whole", expired: "expired", capped: "capped", closed: "closed"}
    shares = Counter(names.get(token, "renewed") for token in backend.owners.values())
    print("answered by each account:", dict(shares))
    assert set(shares) == {"whole", "expired", "capped", "closed", "renewed"}
    assert min(shares["whole"], shares["renewed"]) > 100, "they share what is left"
    assert len(oauth.asked) <= 3, "one exchange at first, and one when it had expired"
    for token in (expired, capped, closed):
        refusals = [at for at, refused in recorder.refused if refused == token]
        late = [
            at - refusals[0] for at in refusals if at - refusals[0] > LOOK_SECONDS + 2
        ]
        print(names[token], "refused", len(refusals), "asks")
        assert not late and len(refusals) <= 40


def test_what_one_process_learns_the_other_knows_within_seconds(
    serve: Start, database: str, backend: Backend, oauth: OAuthServer
) -> None:
    recorder = Recorder()
    backend.mode.refuse_tokens = recorder
    slow, good = token_of("slow"), token_of("good")
    recorder[slow] = limited(3600)
    first, second = servers(serve, database, backend, oauth)
    upload(second, slow)
    wait_for(lambda: default_upstream(first) == "chatgpt-web")

    def ask_at(service: Service) -> requests.Response:
        return requests.post(
            f"{service.url}/ask", {"msg": "hello"}, headers=OWNER, timeout=30
        )

    assert ask_at(first).status_code == 429
    name = Account.of(slow).name
    wait_for(
        lambda: (
            name in requests.get(f"{second.url}/readyz", headers=OWNER, timeout=10).text
        )
    )
    refusal = ask_at(second)
    assert refusal.status_code == 429 and int(refusal.headers["Retry-After"]) > 3000
    assert len(recorder.refused) == 1, "it rests in both"
    upload(first, good)
    wait_for(lambda: ask_at(second).status_code == 200)
    second.kill()
    second.start()
    assert [ask_at(second).status_code for _ in range(3)] == [200] * 3
    assert len(recorder.refused) == 1, "it rests over a restart"
    requests.post(f"{second.url}/tokens/clear", headers=OWNER, timeout=10)
    wait_for(lambda: default_upstream(first) == "offline")
    assert accounts_at(first) == 0
    assert slow not in first.logged() + second.logged()


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_person_adds_and_removes_accounts_in_a_browser(
    serve: Start, database: str, backend: Backend, oauth: OAuthServer, tmp_path: Path
) -> None:
    service, _ = servers(serve, database, backend, oauth)
    browser = Browser(tmp_path)
    try:
        host = service.url.removeprefix("http://")
        browser.open(f"http://owner:the-client-key-0@{host}/tokens")
        assert "0 of 0 tokens can be used." in browser.text
        token = token_of("alice")
        fill = f"document.getElementById('text').value = {token!r};"
        browser.evaluate(f"{fill} document.forms[0].querySelector('button').click()")
        wait_for(lambda: "1 of 1 tokens can be used." in browser.text)
        assert Account.of(token).name in browser.text and token not in browser.text
        style = "getComputedStyle(document.querySelector('table')).borderCollapse"
        assert browser.evaluate(style) == "collapse", "the policy lets the style in"
        browser.evaluate(
            "document.forms[0].text.value = 'no token'; document.forms[0].submit()"
        )
        wait_for(lambda: "line 1." in browser.text)
        browser.open(f"{service.url}/tokens")
        browser.evaluate("document.forms[1].querySelector('button').click()")
        wait_for(lambda: "0 of 0 tokens can be used." in browser.text)
    finally:
        browser.close()


def test_accounts_of_login_are_taken_and_left_without_a_restart(
    build: Build, backend: Backend, oauth: OAuthServer
) -> None:
    client = opened(build, backend, oauth)
    service = client.application.extensions["service"]
    tokens = TokenStore(service.store)
    given = oauth.sign_in("signed-in")
    row_id = SignIn.of(given, "login").id
    tokens.add([StoredToken(row_id, "login", "token-1", given)])
    service.watch.look()
    assert ask(client).status_code == 200 and oauth.asked == [given]
    assert listed(client)["accounts"] == [], "the pool's alone"
    tokens.delete(row_id)
    service.watch.look()
    assert ask(client).status_code == 200 and len(backend.turns) == 1


def test_a_service_without_a_key_opens_no_account_to_everybody(
    build: Build, backend: Backend, oauth: OAuthServer
) -> None:
    client = opened(build, backend, oauth, authorization=())
    service = client.application.extensions["service"]
    tokens = TokenStore(service.store)
    given = oauth.sign_in("signed-in")
    tokens.add([StoredToken(SignIn.of(given, "login").id, "login", "token-1", given)])
    service.watch.look()
    assert ask(client, {"Accept": "*/*"}).status_code == 200 and not backend.turns
    again = opened(build, backend, oauth, authorization=())
    assert ask(again, {"Accept": "*/*"}).status_code == 500
    assert again.get("/conversations").status_code == 401


def test_an_account_that_is_removed_while_its_token_is_renewed_stays_away(
    client: FlaskClient, backend: Backend, oauth: OAuthServer
) -> None:
    post(client, "upload", oauth.sign_in("leaving"))
    oauth.behaviour.before = lambda: post(client, "clear") and None
    assert ask(client).status_code == 200, "it was asked before it was removed"
    service = client.application.extensions["service"]
    assert TokenStore(service.store).of_source("pool") == []
    assert listed(client)["accounts"] == []
