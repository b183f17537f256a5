"""Conversations by a name of the caller's own: the first ask with it begins one, and no ids are needed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
from flask import Flask
from flask.testing import FlaskClient

from relay.store import Store
from relay.tables.conversations import name_lease
from tests.chatgpt_backend import Backend, Mode
from tests.processes import Service
from tests.replies import body_of
from tests.tokens import jwt
from tests.turns import answered, following, new_turn
from tests.waiting import wait_for

ON_BOTH = True

Build = Callable[..., Flask]
Start = Callable[..., Service]
ALICE = {"Authorization": "Bearer the-key-of-alice"}
BOB = {"Authorization": "Bearer the-key-of-bob"}
KEYS = ("alice:the-key-of-alice", "bob:the-key-of-bob")


@pytest.fixture
def client(build: Build) -> FlaskClient:
    return build(authorization=KEYS).test_client()


def ask(
    client: FlaskClient, prompt: str, name: str, headers: Any = ALICE, **fields: Any
) -> dict[str, Any]:
    data = {"msg": prompt, "conversation": name, **fields}
    answer = client.post("/ask", data=data, headers=headers)
    assert answer.status_code == 200, answer.text
    reply: dict[str, Any] = body_of(answer)["data"]
    return reply


def listed(client: FlaskClient, headers: Any = ALICE, query: str = "") -> Any:
    return body_of(client.get(f"/conversations{query}", headers=headers))


def test_the_first_ask_begins_it_and_later_ones_go_on(client: FlaskClient) -> None:
    first = ask(client, "one", "room 7")
    second = ask(client, "two", "room 7")
    assert first["conversation_id"] == second["conversation_id"]
    assert "Turn 2." in second["message"]
    assert "Before that you said: one" in second["message"]
    assert ask(client, "x", "room 8")["conversation_id"] != first["conversation_id"]
    by_id = {"msg": "three", "conversation_id": first["conversation_id"]}
    third = body_of(client.post("/ask", data=by_id, headers=ALICE))
    assert "Turn 3." in third["data"]["message"]
    assert "Turn 4." in ask(client, "four", "room 7")["message"]


@pytest.mark.parametrize("name", ["x", "名前/7", "a b", "-100123", "../etc", "n" * 128])
def test_it_is_listed_read_renamed_and_deleted_by_it(
    client: FlaskClient, name: str
) -> None:
    first = ask(client, "one", name)
    assert [item["name"] for item in listed(client)] == [name]
    path = f"/conversation/{requests.utils.quote(name, safe='')}"
    found = body_of(client.get(path, headers=ALICE))
    assert found["conversation_id"] == first["conversation_id"]
    assert found["name"] == name
    title = client.post(f"{path}/title", data={"title": "T"}, headers=ALICE)
    assert body_of(title)["code"] == 0 and listed(client)[0]["title"] == "T"
    assert client.get(path, headers=BOB).status_code == 404
    assert client.post(f"{path}/delete", headers=BOB).status_code == 404
    assert body_of(client.post(f"{path}/delete", headers=ALICE))["code"] == 0
    assert listed(client) == []
    again = ask(client, "anew", name)
    assert "Turn 1." in again["message"]
    assert again["conversation_id"] != first["conversation_id"]


def test_a_name_is_its_owners(client: FlaskClient) -> None:
    first = ask(client, "one", "room")
    other = ask(client, "two", "room", BOB)
    assert "Turn 1." in other["message"]
    assert other["conversation_id"] != first["conversation_id"]
    assert len(listed(client, ALICE)) == len(listed(client, BOB)) == 1
    taken = ask(client, "three", first["conversation_id"], BOB)
    assert "Turn 1." in taken["message"], "an id of another owner's is a name too"
    path = f"/conversation/{first['conversation_id']}"
    read = [body_of(client.get(path, headers=headers)) for headers in (ALICE, BOB)]
    ids = [found["conversation_id"] for found in read]
    assert ids == [first["conversation_id"], taken["conversation_id"]]


def test_an_id_in_the_place_of_a_name_is_that_conversation(client: FlaskClient) -> None:
    first = ask(client, "one", "room")
    assert "Turn 2." in ask(client, "two", first["conversation_id"])["message"]


def test_it_is_searched_by_its_name(client: FlaskClient) -> None:
    ask(client, "one", "Kitchen")
    ask(client, "two", "Garden")
    names = [item["name"] for item in listed(client, query="?q=kitch")]
    assert names == ["Kitchen"]


@pytest.mark.parametrize(
    "name", ["", "  ", "undefined", "null", "a\nb", "n" * 129, "a\0"], ids=repr
)
def test_what_is_no_name_is_refused(client: FlaskClient, name: str) -> None:
    data = {"msg": "hi", "conversation": name}
    answer = client.post("/ask", data=data, headers=ALICE)
    assert answer.status_code == 400 and "conversation" in answer.json["msg"]
    assert listed(client) == []


def test_a_name_and_an_id_do_not_go_together(client: FlaskClient) -> None:
    data = {"msg": "hi", "conversation": "room", "conversation_id": "6d91e084"}
    assert client.post("/ask", data=data, headers=ALICE).status_code == 400
    parent = {"msg": "hi", "conversation": "room", "parent_id": "6d91e084"}
    answer = client.post("/ask", data=parent, headers=ALICE)
    assert answer.status_code == 400 and listed(client) == []


def test_a_branch_begins_at_a_parent_of_the_named_conversation(
    client: FlaskClient,
) -> None:
    first = ask(client, "one", "room")
    ask(client, "two", "room")
    branch = ask(client, "three", "room", parent_id=first["parent_id"])
    assert "Turn 2." in branch["message"]
    assert "Before that you said: one" in branch["message"]


def test_every_own_route_takes_it(client: FlaskClient) -> None:
    sent = {"prompt": "one", "conversation": "room"}
    client.post("/send_message", data=sent, headers=ALICE)
    json = {"prompt": "two", "conversation": "room"}
    text = client.post("/send_message", json=json, headers=ALICE)
    assert "Turn 2." in body_of(text)["text"]
    query = "/ask?conversation=room&format=text"
    plain = client.post(query, data="three", content_type="text/plain", headers=ALICE)
    assert "Turn 3." in plain.text
    dialogue = [
        {"role": "user", "content": "not sent"},
        {"role": "assistant", "content": "nor this"},
        {"role": "user", "content": "four"},
    ]
    chat = client.post(
        "/chat", json={"messages": dialogue, "conversation": "room"}, headers=ALICE
    )
    assert "Turn 4." in chat.text and "not sent" not in chat.text
    stream = client.post(
        "/ask",
        data={"msg": "five", "conversation": "room", "stream": "true"},
        headers=ALICE,
    )
    assert "Turn 5." in stream.text and len(listed(client)) == 1


def test_a_dialogue_begins_a_named_conversation(client: FlaskClient) -> None:
    dialogue = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ]
    json = {"messages": dialogue, "conversation": "room"}
    assert "Turn 2." in client.post("/chat", json=json, headers=ALICE).text
    assert "Turn 3." in ask(client, "four", "room")["message"]


def test_a_first_ask_that_was_refused_leaves_the_name_free(client: FlaskClient) -> None:
    data = {"msg": "hi offline:status=400", "conversation": "room"}
    assert client.post("/ask", data=data, headers=ALICE).status_code == 400
    assert listed(client) == []
    assert "Turn 1." in ask(client, "one", "room")["message"]


def test_it_goes_on_after_a_broken_answer(client: FlaskClient) -> None:
    data = {"msg": "hi offline:cut", "conversation": "room"}
    assert client.post("/ask", data=data, headers=ALICE).status_code == 502
    ask(client, "one", "room")
    answer = ask(client, "two", "room")["message"]
    assert "Before that you said: one" in answer and len(listed(client)) == 1


def test_many_first_asks_at_once_begin_one_conversation(build: Build) -> None:
    app = build(authorization=KEYS)

    def one(number: int) -> str:
        prompt = f"number {number} offline:pace=0.01"
        found = ask(app.test_client(), prompt, "room")
        return str(found["conversation_id"])

    with ThreadPoolExecutor(8) as pool:
        ids = set(pool.map(one, range(8)))
    assert len(ids) == 1
    assert "Turn 9." in ask(app.test_client(), "last", "room")["message"]


@pytest.mark.parametrize("server", ["pywsgi"])
def test_first_asks_of_two_processes_begin_one_conversation(
    serve: Start, server: str, database: str, tmp_path: Any
) -> None:
    url = database or f"sqlite:///{tmp_path / 'shared' / 'both.db'}"
    services = [serve(server, DATABASE_URL=url) for _ in range(2)]

    def one(number: int) -> str:
        data = {"msg": f"{number} offline:pace=0.02", "conversation": "room"}
        answer = requests.post(f"{services[number % 2].url}/ask", data=data, timeout=30)
        return str(answer.json()["data"]["conversation_id"])

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(one, range(6)))) == 1


def test_a_key_is_another_ask_under_another_name(client: FlaskClient) -> None:
    first = ask(client, "one", "room", request_id="k1")
    assert ask(client, "one", "room", request_id="k1") == first
    data = {"msg": "one", "conversation": "other", "request_id": "k1"}
    reused = client.post("/ask", data=data, headers=ALICE)
    assert reused.json["error"] == "key_reused"


def chatgpt(build: Build, backend: Backend, **settings: Any) -> Flask:
    return build(
        reverse_proxy=backend.url,
        access_token=("token-1",),
        authorization=KEYS,
        **settings,
    )


def test_a_conversation_at_chatgpt_has_a_name_too(
    build: Build, backend: Backend
) -> None:
    client = chatgpt(build, backend).test_client()
    first = ask(client, "one", "room")
    second = ask(client, "two", "room")
    assert second["conversation_id"] == first["conversation_id"]
    assert backend.turns[-1].body["conversation_id"] == first["conversation_id"]
    assert backend.turns[-1].body["parent_message_id"] == first["parent_id"]
    assert [item["name"] for item in listed(client)] == ["room"]
    found = body_of(client.get("/conversation/room", headers=ALICE))
    assert found["current_node"] == second["parent_id"]
    assert body_of(client.post("/conversation/room/delete", headers=ALICE))["code"] == 0
    third = ask(client, "three", "room")
    assert third["conversation_id"] != first["conversation_id"]


def test_first_asks_at_chatgpt_at_once_begin_one_conversation(
    build: Build, backend: Backend
) -> None:
    backend.mode = Mode(pace=0.02)
    app = chatgpt(build, backend)
    with ThreadPoolExecutor(5) as pool:
        ids = set(
            pool.map(
                lambda number: ask(app.test_client(), f"n {number}", "room")[
                    "conversation_id"
                ],
                range(5),
            )
        )
    assert len(ids) == 1 and len(backend.turns) == 5


def test_a_caller_with_a_token_of_its_own_has_names(
    build: Build, backend: Backend
) -> None:
    client = build(reverse_proxy=backend.url, authorization=KEYS).test_client()
    own = {"Authorization": f"Bearer {jwt(sub='u2')}"}
    first = ask(client, "one", "room", own)
    assert (
        ask(client, "two", "room", own)["conversation_id"] == first["conversation_id"]
    )


def test_nothing_is_left_of_a_name_that_is_held(
    store: Store,
) -> None:
    first = answered(store, new_turn(name="room"))
    answered(store, following(first, name="room"))
    refused = new_turn(name="other")
    assert store.open_turn(refused, 15)
    assert store.open_turn(new_turn(name="other"), 15) is None, "it is being begun"
    store.discard_turn(refused)
    assert store.open_turn(new_turn(name="room"), 15) is None, "it was begun meanwhile"
    for name in ("room", "other"):
        assert store.lease(name_lease("owner", name), "another holder", 15)


def test_a_name_is_waited_for_while_its_first_ask_runs(serve: Start) -> None:
    service = serve("pywsgi")
    with ThreadPoolExecutor(1) as pool:
        slow = {"msg": "hi offline:pace=0.3", "conversation": "room"}
        first = pool.submit(requests.post, f"{service.url}/ask", slow, timeout=30)
        wait_for(lambda: requests.get(f"{service.url}/conversations", timeout=5).json())
        late = {"msg": "x", "conversation": "room", "timeout": "200"}
        busy = requests.post(f"{service.url}/ask", data=late, timeout=5)
        assert (busy.status_code, busy.json()["error"]) == (409, "conversation_busy")
        assert first.result().status_code == 200
