"""Several gateways to the same ChatGPT: one that is not reached, its key, the user agents of accounts."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from relay.deadline import Deadline
from relay.errors import Unreachable
from relay.transports import Call, Exchange
from relay.upstreams.chatgpt_web.body import Extras
from relay.upstreams.chatgpt_web.gateways import (
    FailoverTransport,
    GatewayCall,
    GatewayMemory,
)
from relay.upstreams.chatgpt_web.recent import MOST_NAMES, Recent
from tests.chatgpt_backend import Backend, Mode
from tests.conftest import running
from tests.replies import body_of
from tests.sentinel import Sentinel
from tests.tokens import jwt

KEY = {"Authorization": "Bearer the-client-key-0"}
OWN = jwt(sub="their-own")
Start = Callable[..., FlaskClient]


@pytest.fixture
def second(backend: Backend) -> Iterator[Backend]:
    """Another gateway of the same ChatGPT: what the one keeps, the other has."""
    server = Backend()
    server.trees, server.owners = backend.trees, backend.owners
    yield from running(server)


@pytest.fixture
def start(build: Callable[..., Flask], backend: Backend, second: Backend) -> Start:
    def make(**settings: Any) -> FlaskClient:
        defaults = {
            "chatgpt_base_url": (backend.url, second.url),
            "access_token": (jwt(sub="owner"),),
            "authorization": ("the-client-key-0",),
        }
        return build(**{**defaults, **settings}).test_client()

    return make


def dead() -> str:
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def ask(client: FlaskClient, **fields: Any) -> Any:
    payload = {"msg": "hello", **fields}
    response = client.post("/ask", data=payload, headers=KEY, buffered=True)
    return body_of(response)["data"]


def test_gateways_are_asked_in_turn_and_share_conversations(
    start: Start, backend: Backend, second: Backend
) -> None:
    client = start(conversation_only=True)
    first = ask(client)
    ids = {"conversation_id": first["conversation_id"], "parent_id": first["parent_id"]}
    assert "Turn 2." in ask(client, **ids)["message"]
    assert len(backend.turns) == len(second.turns) == 1


@pytest.mark.parametrize("token", [None, OWN], ids=["the server's", "their own"])
def test_a_dead_gateway_is_left_within_the_ask_and_then_tried_last(
    start: Start, backend: Backend, token: str | None
) -> None:
    backend.sentinel = Sentinel(demand="proof")
    backend.mode = Mode(length_stops=1)
    client = start(chatgpt_base_url=(dead(), backend.url))
    own = {"access_token": token} if token else {}
    for _ in range(4):
        assert "Turn 1." in ask(client, **own)["message"]
    assert len(backend.turns) == 5 == len(backend.preflights)


def test_everything_else_leaves_a_dead_gateway_too(
    start: Start, backend: Backend
) -> None:
    path = "/backend-api/conversations?limit=10"
    for turn in range(2):
        kept = start(chatgpt_base_url=(dead(), backend.url))
        for _ in range(turn):  # so that either is the first
            kept.get("/healthz")
        passed = kept.get(path, headers=KEY, buffered=True)
        assert passed.status_code == 200 and passed.json["items"] == []
        assert kept.get("/conversations", headers=KEY).json == []
        assert kept.get("/v1/models", headers=KEY, buffered=True).status_code == 200


def test_where_no_gateway_is_reached_nothing_was_asked(
    start: Start, backend: Backend, second: Backend
) -> None:
    client = start(chatgpt_base_url=(dead(), dead()))
    payload = {"msg": "hello", "idempotency_key": "k-1"}
    for _ in range(2):
        response = client.post("/ask", data=payload, headers=KEY, buffered=True)
        assert response.status_code == 502
        assert response.json["error"] == "upstream_unreachable"


def test_a_gateway_that_answers_an_error_is_not_left(
    start: Start, backend: Backend, second: Backend
) -> None:
    failure = (500, {"Content-Type": "application/json"}, b'{"detail": "oops"}')
    backend.mode = second.mode = Mode(refusals=[failure])
    client = start(conversation_only=True)
    response = client.post("/ask", data={"msg": "x"}, headers=KEY, buffered=True)
    assert response.status_code == 500
    assert len(backend.turns) + len(second.turns) == 1


def test_the_gateways_key_goes_with_the_servers_tokens_alone(
    start: Start, backend: Backend, second: Backend
) -> None:
    named = Backend()
    client = start(auth_key="secret-gateway-key", reverse_proxy_allow=(named.url,))
    ask(client)
    ask(client)
    client.get("/backend-api/me", headers=KEY, buffered=True)
    served = [*backend.asked, *second.asked]
    assert {asked.headers["authkey"] for asked in served} == {"secret-gateway-key"}
    backend.asked.clear()
    second.asked.clear()
    ask(client, access_token=OWN)
    ask(client, reverse_proxy=named.url)
    theirs = {"Authorization": f"Bearer {OWN}"}
    client.get("/backend-api/me", headers=theirs, buffered=True)
    strangers = [*backend.asked, *second.asked, *named.asked]
    assert len(strangers) >= 3 and named.turns
    assert not any("authkey" in asked.headers for asked in strangers)
    named.shutdown()
    named.server_close()


def test_each_account_keeps_its_user_agent(
    start: Start, backend: Backend, second: Backend
) -> None:
    agents = tuple(f"Agent/{number}" for number in range(5))
    tokens = tuple(jwt(sub=f"person-{number}") for number in range(6))
    backend.sentinel = second.sentinel = Sentinel(demand="proof")
    client = start(user_agents=agents, access_token=tokens)
    for _ in range(12):
        ask(client)
    used: dict[str, set[str]] = {}
    for asked in [*backend.asked, *second.asked]:
        account = asked.headers["authorization"]
        used.setdefault(account, set()).add(asked.headers["user-agent"])
    assert len(used) == 6
    assert all(len(names) == 1 and names <= set(agents) for names in used.values())
    assert len(set.union(*used.values())) > 1


def test_without_user_agents_we_say_who_we_are() -> None:
    assert Extras().user_agent("account-1") == "chatgpt-webapi"


class Unconnected:
    """A transport whose exchanges cannot connect, but to `reached`."""

    def __init__(self, reached: str = "") -> None:
        self.reached = reached
        self.sent: list[str] = []
        self.interrupted = 0

    def send(self, call: Call) -> Exchange:
        self.sent.append(call.url)
        return Attempt(self)  # type: ignore[return-value]

    def close(self) -> None:
        pass


class Attempt:
    def __init__(self, transport: Unconnected) -> None:
        self._transport = transport

    def head(self, seconds: float) -> None:
        raise Unreachable("nobody there")

    def interrupt(self) -> None:
        self._transport.interrupted += 1

    def close(self) -> None:
        pass


def gateway_call(*bases: str, body: Any = b"") -> GatewayCall:
    first, *others = [
        GatewayCall("POST", f"{base}/x", {}, body, base=base) for base in bases
    ]
    return GatewayCall("POST", first.url, {}, body, base=first.base, others=(*others,))


def test_an_interrupt_ends_the_search_for_a_gateway() -> None:
    transport = Unconnected()
    failover = FailoverTransport(transport, GatewayMemory())
    exchange = failover.send(gateway_call("http://a", "http://b"))
    exchange.interrupt()
    with pytest.raises(Unreachable):
        exchange.head(1)
    assert transport.sent == ["http://a/x"]


def test_a_body_that_is_read_once_goes_one_way() -> None:
    transport = Unconnected()
    memory = GatewayMemory()
    call = gateway_call("http://a", "http://b", body=iter([b"once"]))
    with pytest.raises(Unreachable):
        FailoverTransport(transport, memory).send(call).head(1)
    assert transport.sent == ["http://a/x"]
    FailoverTransport(transport, memory).send(call)
    assert transport.sent[-1] == "http://b/x", "a was not reached just now"


def test_what_was_noted_is_bounded_and_ends() -> None:
    recent = Recent(60)
    for number in range(MOST_NAMES + 5):
        recent.note(str(number))
    assert not recent.has("4") and recent.has("5") and recent.has(str(MOST_NAMES + 4))
    recent.forget("5")
    assert not recent.has("5")
    brief = Recent(0)
    brief.note("a")
    assert Deadline.after(0).passed and not brief.has("a")
