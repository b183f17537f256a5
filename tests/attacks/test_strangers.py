"""Strangers over the whole URL map, and what README says of who pays."""

from __future__ import annotations

import random
import re
import string
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from relay.accounts import Account, AccountPool
from relay.errors import StoreFailed
from relay.settings import SettingsError
from relay.transports import Call, Exchange
from relay.transports.direct import DirectTransport
from relay.upstreams.openai import OpenAI
from relay.upstreams.openai.body import DEFAULT_BASE
from relay.upstreams.openai.procedure import API
from tests.chatgpt_backend import Backend
from tests.openai_backend import Mode, OpenAIBackend
from tests.processes import ROOT
from tests.scripted import Scripted
from tests.tokens import jwt

pytestmark = pytest.mark.attack

Build = Callable[..., Flask]
README = (ROOT / "README.md").read_text()
KEY = "a-client-key-of-the-owner"
OURS = "sk-invented-1"


class Elsewhere:
    """A transport that takes what is sent to OpenAI to a server of the tests' own."""

    def __init__(self, origin: str) -> None:
        self._direct = DirectTransport()
        self._origin = origin

    def send(self, call: Call) -> Exchange:
        url = call.url.replace("https://api.openai.com", self._origin)
        return self._direct.send(replace(call, url=url))

    def close(self) -> None:
        self._direct.close()


@pytest.fixture
def openai_itself(api: OpenAIBackend) -> Iterator[OpenAI]:
    pool = AccountPool((Account.of(OURS),))
    transport = Elsewhere(api.origin)
    yield OpenAI(API(transport, DEFAULT_BASE, pool, model="tiny-1", has_keys=True))
    transport.close()


OWN_TOKEN = jwt(sub="somebody")
SHOWN = {
    "nothing": "",
    "a client key": KEY,
    "a mistyped key": f"{KEY}x",
    "`eyJ...`": OWN_TOKEN,
    "`at-...`": "at-invented-of-a-workspace",
    "`sk-...`": "sk-invented-of-a-caller",
    "`sk-ant-...`": "sk-ant-invented-of-a-caller",
    "any other text": "opaque-text-of-a-caller",
}


def rows() -> list[tuple[str, str, str]]:
    """The table of README: settings, what is shown, who pays."""
    section = README.split("## Who may ask")[1].split("\n## ")[0]
    table = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \|$", section, re.MULTILINE)
    return [
        (settings, shown, payer)
        for settings, all_shown, payer in table
        for shown in all_shown.split(", ")
        if settings not in ("settings", "---")
    ]


def client_for(
    settings: str,
    build: Build,
    api: OpenAIBackend,
    backend: Backend,
    openai_itself: OpenAI,
) -> FlaskClient:
    """A service with the settings that a row of the table names."""
    given: dict[str, Any] = {
        "authorization": (f"owner:{KEY}",),
        "openai_model": "tiny-1",
    }
    if "ALLOW_CALLER_TOKENS=any" in settings:
        given["allow_caller_tokens"] = "any"
    if "ALLOW_CALLER_TOKENS=false" in settings:
        given["allow_caller_tokens"] = False
    if "api.openai.com" in settings:
        return build(openai_itself, **given).test_client()
    if "OPENAI_BASE_URL" in settings:
        given |= {
            "openai_base_url": api.url,
            "openai_api_key": (OURS,),
            "chatgpt_base_url": (backend.url,),
        }
    else:
        given |= {"access_token": ("the-owners-token",), "reverse_proxy": backend.url}
    return build(**given).test_client()


#: the headers that show a credential, and how
HEADERS_OF_CREDENTIALS = {"Authorization": "Bearer {}", "x-api-key": "{}"}


@pytest.mark.parametrize("header", HEADERS_OF_CREDENTIALS)
@pytest.mark.parametrize(("settings", "shown", "payer"), rows())
def test_the_readmes_table_of_who_pays_is_what_happens(
    build: Build,
    api: OpenAIBackend,
    backend: Backend,
    openai_itself: OpenAI,
    settings: str,
    shown: str,
    payer: str,
    header: str,
) -> None:
    credential = SHOWN[shown]
    api.mode = Mode(keys=(OURS, *SHOWN.values()))
    client = client_for(settings, build, api, backend, openai_itself)
    value = HEADERS_OF_CREDENTIALS[header].format(credential)
    headers = {header: value} if credential else {}
    answer = client.post("/ask", data={"msg": "hello"}, headers=headers)
    asked = [*api.completions, *backend.turns]
    tokens = [call.headers["authorization"].removeprefix("Bearer ") for call in asked]
    match payer:
        case "the owner":
            assert answer.status_code == 200 and tokens in (
                [OURS],
                ["the-owners-token"],
            )
        case "the caller":
            assert answer.status_code == 200 and tokens == [credential]
        case "the caller, at ChatGPT":
            assert answer.status_code == 200 and tokens == [credential]
            assert backend.turns and not api.asked
        case "nobody: 401":
            assert answer.status_code == 401 and not api.asked and not backend.asked
        case _:
            pytest.fail(f"the table says {payer}")


def test_the_table_has_every_kind_of_credential() -> None:
    assert {shown for _, shown, _ in rows()} == set(SHOWN)


PUBLIC = (b"chatgpt-webapi ", b'{"status":"ok"')
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE"]
TYPES = [
    "application/x-www-form-urlencoded",
    "application/json",
    "text/plain",
    "multipart/form-data; boundary=B",
    "",
    "image/png",
    "a/b; charset=\x7f",
]
VALUES = [
    "",
    "x",
    "hello",
    "1",
    "-1",
    "true",
    "null",
    "undefined",
    "\0",
    "你好",
    "%00",
    "../..",
    "{}",
    "[]",
    "9" * 40,
]
FIELDS = ["prompt", "msg", "messages", "conversation_id", "conversationId", "parent_id", "access_token", "format", "stream", "timeout", "reverse_proxy", "request_id", "model", "title", "q", "limit", "offset", "key"]  # fmt: skip
CREDENTIALS = ["", "Bearer ", "Bearer x", "Basic ", "Basic Og==", "Basic \xff", "Digest x", "Bearer sk-ant-x", "cw-wrong", "Bearer cw-wrong", f"Bearer {KEY[:-1]}", f"{KEY} {KEY}", "Bearer None", "\xff" * 20]  # fmt: skip
HEADERS = ["Origin", "Host", "Cookie", "X-Forwarded-For", "Accept", "Idempotency-Key", "X-Request-Id", "Sec-Fetch-Site", "Access-Control-Request-Method", "Transfer-Encoding", "X-HTTP-Method-Override"]  # fmt: skip


def odd_request(chance: random.Random, paths: list[str]) -> dict[str, Any]:
    """A request as a stranger might make it: the routes, and what is near to them."""
    path = chance.choice(paths).replace(
        "<conversation_id>", chance.choice(["x", "..", "%00", "a" * 300])
    )
    if chance.random() < 0.3:
        at = chance.randrange(len(path) + 1)
        path = (
            path[:at]
            + chance.choice(["/", "//", "%2f", "..", ";", "\\", "%", "é", "?"])
            + path[at:]
        )
    fields = {
        chance.choice(FIELDS): chance.choice(VALUES) for _ in range(chance.randrange(5))
    }
    body = "&".join(f"{name}={value}" for name, value in fields.items()).encode()
    if chance.random() < 0.2:
        body = "".join(chance.choices(string.printable, k=30)).encode()
    headers = (
        {"Authorization": chance.choice(CREDENTIALS)} if chance.random() < 0.8 else {}
    )
    if chance.random() < 0.3:
        headers["X-Api-Key"] = chance.choice(CREDENTIALS)
    for _ in range(chance.randrange(3)):
        headers[chance.choice(HEADERS)] = chance.choice(
            ["", "x", "null", "http://evil.example", "127.0.0.1", "POST", "*/*"]
        )
    query = (
        {chance.choice(FIELDS): chance.choice(VALUES)} if chance.random() < 0.3 else {}
    )
    return {
        "path": "/" + path.lstrip("/"),
        "method": chance.choice(METHODS),
        "data": body,
        "content_type": chance.choice(TYPES),
        "headers": headers,
        "query_string": query or None if "?" not in path else None,
    }  # fmt: skip


def test_twenty_thousand_requests_of_strangers_spend_nothing(
    build: Build, api: OpenAIBackend, backend: Backend
) -> None:
    upstream = Scripted(needs_client_key=True)
    app = build(upstream, authorization=(f"owner:{KEY}",))
    real = build(
        openai_base_url=api.url,
        openai_api_key=(OURS,),
        access_token=("the-owners-token",),
        reverse_proxy=backend.url,
        authorization=(f"owner:{KEY}",),
    )
    chance = random.Random(10)
    clients = [app.test_client(), real.test_client()]
    paths = sorted({rule.rule for rule in app.url_map.iter_rules()})
    for number in range(20_000):
        request = odd_request(chance, paths)
        # of an address of its own: one that is not listened to any more would try nothing
        address = f"198.51.{number // 256}.{number % 256}"
        request["headers"].setdefault("X-Forwarded-For", address)
        answer = clients[number % 2].open(**request)
        code = answer.headers.get("X-Error-Code", "")
        assert code != "internal_error", request
        if answer.status_code == 200:
            assert answer.data.startswith(PUBLIC) or not answer.data, request
        answer.close()
    assert upstream.asked == [] and api.asked == [] and backend.asked == []


TEAM = "workspace-1"


def person(name: str) -> dict[str, str]:
    auth = {"chatgpt_account_id": TEAM, "user_id": name}
    token = jwt(**{"https://api.openai.com/auth": auth})
    return {"Authorization": f"Bearer {token}"}


def test_two_people_of_one_workspace_do_not_see_each_other(
    build: Build, backend: Backend
) -> None:
    client = build(
        reverse_proxy=backend.url, authorization=(f"owner:{KEY}",)
    ).test_client()
    alice, bob = person("alice"), person("bob")
    made = client.post("/ask", data={"msg": "alices secret"}, headers=alice).json[
        "data"
    ]
    name = made["conversation_id"]
    assert client.get("/conversations", headers=bob).json == []
    assert client.get("/conversations?q=secret", headers=bob).json == []
    for method, path in (("GET", ""), ("POST", "/delete"), ("POST", "/title")):
        answer = client.open(
            f"/conversation/{name}{path}",
            method=method,
            headers=bob,
            data={"title": "x"} if path == "/title" else None,
        )
        assert answer.status_code == 404, path
    on = client.post("/ask", data={"msg": "x", "conversation_id": name}, headers=bob)
    assert on.status_code == 404
    [row] = client.get("/conversations", headers=alice).json
    assert row["id"] == name


def test_a_page_that_rebinds_its_name_reads_nothing(build: Build) -> None:
    keyless = build().test_client()
    for host, status in (
        ("evil.example", 403),
        ("evil.example:8080", 403),
        ("localhost.evil.example", 403),
        ("localhost", 200),
        ("localhost:8080", 200),
        ("127.0.0.1:8080", 200),
        ("[::1]:8080", 200),
        ("192.0.2.7", 200),
    ):
        answer = keyless.get("/conversations", headers={"Host": host})
        assert answer.status_code == status, host
    listed = build(allowed_hosts=("chat.example.org",)).test_client()
    assert (
        listed.get("/conversations", headers={"Host": "Chat.example.org"}).status_code
        == 200
    )
    refused = keyless.post("/ask", data={"msg": "x"}, headers={"Host": "evil.example"})
    assert refused.status_code == 403 and "ALLOWED_HOSTS" in refused.json["msg"]
    needs_key = build(
        Scripted(needs_client_key=True), authorization=(f"owner:{KEY}",)
    ).test_client()
    key = {"Host": "chat.example.org", "Authorization": KEY}
    assert needs_key.get("/conversations", headers=key).status_code == 200


@pytest.mark.parametrize("key", ["None", "changeme", "short", "password", "1234567"])
def test_a_key_that_strangers_guess_refuses_the_start(build: Build, key: str) -> None:
    with pytest.raises(SettingsError, match="AUTHORIZATION") as refused:
        build(authorization=(f"owner:{key}",))
    assert key == "short" or key not in str(refused.value)


def test_a_folder_that_others_may_read_refuses_the_start(
    build: Build, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir(mode=0o755)
    (tmp_path / "data").chmod(0o755)
    with pytest.raises(StoreFailed, match="chmod 700"):
        build()
    (tmp_path / "data").chmod(0o700)
    assert build().test_client().get("/healthz").status_code == 200


def test_a_short_key_is_warned_of_at_the_start(
    build: Build, caplog: pytest.LogCaptureFixture
) -> None:
    build(authorization=("owner:tw3lve-chars",))
    assert "fewer than 16" in caplog.text and "tw3lve" not in caplog.text


def test_a_key_that_only_a_shell_would_make_is_refused(build: Build) -> None:
    """As it may stand in a file of settings, where it is the key itself, which anybody may read in the documents."""
    with pytest.raises(SettingsError, match="shell"):
        build(authorization=("owner:$(cat /var/lib/chatgpt-webapi/client_key)",))


def test_wrong_keys_are_throttled_by_address_and_hurt_nobody_else(build: Build) -> None:
    client = build(Scripted(), authorization=(f"owner:{KEY}",)).test_client()
    wrong = {
        "Authorization": "Bearer wrong-key-of-a-stranger",
        "X-Forwarded-For": "192.0.2.7",
    }
    without = {"X-Forwarded-For": "192.0.2.7"}
    for _ in range(30):
        assert client.get("/conversations", headers=without).status_code == 401
    statuses = [
        client.get("/conversations", headers=wrong).status_code for _ in range(25)
    ]
    assert statuses == [401] * 20 + [429] * 5
    last = client.get("/conversations", headers=wrong)
    assert (
        last.json["error"] == "too_many_attempts"
        and int(last.headers["Retry-After"]) <= 60
    )
    right = {"Authorization": f"Bearer {KEY}", "X-Forwarded-For": "192.0.2.7"}
    assert client.get("/conversations", headers=right).status_code == 200
    other = {**wrong, "X-Forwarded-For": "192.0.2.7, 192.0.2.8"}
    assert client.get("/conversations", headers=other).status_code == 401
    form = client.post(
        "/ask",
        data={"msg": "x", "access_token": KEY},
        headers={"X-Forwarded-For": "192.0.2.9"},
    )
    assert form.status_code == 200
