"""OpenAI's Responses API as its callers meet it: stored here, gone on with, read, deleted, and never whole after a cut."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest
from flask import Flask
from flask.testing import FlaskClient
from openai.types.responses import Response, ResponseItemList
from sqlalchemy import create_engine, text
from werkzeug.test import TestResponse

from relay.domain import Reply
from relay.errors import NoConversation
from relay.store import Store
from tests.chatgpt_backend import Backend
from tests.processes import Service
from tests.raw_upstream import RawUpstream, chunked, whole
from tests.replies import body_of
from tests.tokens import jwt
from tests.turns import new_turn

ON_BOTH = True

Build = Callable[..., Flask]
Start = Callable[..., Service]
ALICE = {"Authorization": "Bearer the-key-of-alice"}
BOB = {"Authorization": "Bearer the-key-of-bob"}
KEYS = ("alice:the-key-of-alice", "bob:the-key-of-bob")
PATH = "/v1/responses"
TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object"}}
USAGE = {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}


def sse(payload: Any) -> bytes:
    return b"data: " + json.dumps(payload).encode() + b"\n\n"


def answer(*deltas: dict[str, Any], finish: str = "stop") -> list[bytes]:
    """A streamed chat completion, in packets."""
    packets = [
        sse({"id": "x", "model": "tiny-1", "choices": [{"index": 0, "delta": delta}]})
        for delta in deltas
    ]
    end = {"index": 0, "delta": {}, "finish_reason": finish}
    packets.append(sse({"id": "x", "choices": [end], "usage": USAGE}))
    return [*packets, b"data: [DONE]\n\n"]


def says(words: str) -> list[bytes]:
    return chunked(answer({"content": words}))


def calls(*names: str) -> list[bytes]:
    """An answer that calls tools, their pieces in turn."""
    firsts = [
        {"index": at, "id": f"c{at}", "function": {"name": name, "arguments": "{"}}
        for at, name in enumerate(names)
    ]
    rest = [{"index": at, "function": {"arguments": "}"}} for at, _ in enumerate(names)]
    deltas = [{"tool_calls": [piece]} for piece in (*firsts, *rest)]
    return chunked(answer({"reasoning_content": "hm"}, *deltas, finish="tool_calls"))


@pytest.fixture
def upstream() -> Iterator[RawUpstream]:
    upstream = RawUpstream()
    upstream.answers = [says("ho")]
    yield upstream
    upstream.close()


@pytest.fixture
def app(build: Build, upstream: RawUpstream) -> Flask:
    return make_app(build, upstream)


def make_app(build: Build, upstream: RawUpstream, **more: Any) -> Flask:
    values: dict[str, Any] = {
        "openai_base_url": upstream.url,
        "openai_api_key": ("sk-invented-1",),
        "openai_model": "tiny-1",
        "authorization": KEYS,
    }
    return build(**{**values, **more})


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def post(
    client: FlaskClient, headers: dict[str, str] = ALICE, **fields: Any
) -> TestResponse:
    payload = {"input": "hello", **fields}
    return client.post(PATH, json=payload, headers=headers, buffered=True)


def create(
    client: FlaskClient, headers: dict[str, str] = ALICE, **fields: Any
) -> dict[str, Any]:
    """A response, as the SDK takes it."""
    payload: dict[str, Any] = body_of(post(client, headers, **fields))
    Response.model_validate_json(json.dumps(payload), strict=True)
    return payload


def read(client: FlaskClient, response_id: str, headers: Any = ALICE) -> TestResponse:
    return client.get(f"{PATH}/{response_id}", headers=headers, buffered=True)


def delete(client: FlaskClient, response_id: str, headers: Any = ALICE) -> TestResponse:
    return client.delete(f"{PATH}/{response_id}", headers=headers, buffered=True)


def sent(upstream: RawUpstream) -> list[dict[str, Any]]:
    """The messages of the last request upstream."""
    messages: list[dict[str, Any]] = json.loads(upstream.received[-1].body)["messages"]
    return messages


def code_of(response: TestResponse) -> tuple[int, str]:
    return response.status_code, response.json["error"]["code"]  # type: ignore[index]


def listed(client: FlaskClient, headers: Any = ALICE) -> Any:
    return body_of(client.get("/conversations", headers=headers))


def items_of(client: FlaskClient, response_id: str, query: str = "") -> dict[str, Any]:
    path = f"{PATH}/{response_id}/input_items?{query}"
    page: dict[str, Any] = body_of(client.get(path, headers=ALICE))
    ResponseItemList.model_validate_json(json.dumps(page), strict=True)
    return page


# Kept, and gone on with


def test_a_response_is_read_as_it_was_given(
    client: FlaskClient, upstream: RawUpstream
) -> None:
    upstream.answers = [calls("weather", "time")]
    fields = {"tools": [TOOL], "metadata": {"a": "b"}, "instructions": "Be kind."}
    first = create(client, **fields)
    assert [item["type"] for item in first["output"]] == [
        *("reasoning", "function_call", "function_call")
    ]
    assert first["usage"]["input_tokens"] == 9
    assert body_of(read(client, first["id"])) == first
    events = events_of(post(client, stream=True, **fields))
    last = events[-1]["response"]
    assert body_of(read(client, last["id"])) == last
    assert {event["response"]["id"] for event in events if "response" in event} == {
        last["id"]
    }
    done = [event["item"] for event in events if event["type"].endswith("item.done")]
    assert done == last["output"]
    upstream.answers = [says("ho")]
    estimated = create(client)
    assert body_of(read(client, estimated["id"])) == estimated


def events_of(response: TestResponse) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    blocks = response.text.split("\n\n")[:-1]
    return [json.loads(block.split("data: ")[1]) for block in blocks]


def test_it_goes_on_and_branches(client: FlaskClient, upstream: RawUpstream) -> None:
    upstream.answers = [says("one"), says("two"), says("three")]
    first = create(client, input="a", instructions="Be kind.")
    second = create(client, input="b", previous_response_id=first["id"])
    assert second["previous_response_id"] == first["id"]
    assert [message["content"] for message in sent(upstream)] == ["a", "one", "b"]
    create(client, input="c", previous_response_id=first["id"], instructions="New.")
    assert [message["content"] for message in sent(upstream)] == [
        *("New.", "a", "one", "c")
    ]
    create(client, input="d", previous_response_id=second["id"])
    assert [message["content"] for message in sent(upstream)] == [
        *("a", "one", "b", "two", "d")
    ]
    [conversation] = listed(client)
    assert conversation["title"] == "a"


def test_branches_of_one_response_are_asked_at_once(
    app: Flask, upstream: RawUpstream
) -> None:
    first = create(app.test_client(), input="a")["id"]

    def one(number: int) -> str:
        branch = create(
            app.test_client(), input=f"b{number}", previous_response_id=first
        )
        again = create(
            app.test_client(), input=f"c{number}", previous_response_id=branch["id"]
        )
        return str(again["id"])

    with ThreadPoolExecutor(5) as pool:
        assert len(set(pool.map(one, range(5)))) == 5
    dialogues = [
        [message["content"] for message in json.loads(received.body)["messages"]]
        for received in upstream.received
    ]
    for number in range(5):
        assert ["a", "ho", f"b{number}", "ho", f"c{number}"] in dialogues


def test_results_of_tools_go_on_exactly(
    client: FlaskClient, upstream: RawUpstream
) -> None:
    upstream.answers = [calls("weather", "time"), says("sunny")]
    first = create(client, input="how is it?", tools=[TOOL])
    outputs = [
        {"type": "function_call_output", "call_id": f"c{at}", "output": f"o{at}"}
        for at in range(2)
    ]
    second = create(client, input=outputs, previous_response_id=first["id"])
    call = {"type": "function", "function": {"arguments": "{}"}}
    assert sent(upstream) == [
        {"role": "user", "content": "how is it?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {**call, "id": f"c{at}", "function": {"name": name, "arguments": "{}"}}
                for at, name in enumerate(("weather", "time"))
            ],
        },
        {"role": "tool", "tool_call_id": "c0", "content": "o0"},
        {"role": "tool", "tool_call_id": "c1", "content": "o1"},
    ]
    page = items_of(client, second["id"], "order=asc")
    assert [item["output"] for item in page["data"]] == ["o0", "o1"]


def test_what_is_not_to_be_stored_is_not(
    client: FlaskClient, upstream: RawUpstream, database: str, tmp_path: Path
) -> None:
    upstream.answers = [says("answered-once")]
    apart = create(client, input="asked-once", store=False)
    assert apart["store"] is False
    assert code_of(read(client, apart["id"])) == (404, "response_not_found")
    assert listed(client) == []
    refused = post(client, previous_response_id=apart["id"])
    assert code_of(refused) == (400, "previous_response_not_found")
    assert refused.json["error"]["param"] == "previous_response_id"  # type: ignore[index]
    events = events_of(post(client, input="asked-once", store=False, stream=True))
    assert events[-1]["type"] == "response.completed"
    found = stored_text(database, tmp_path)
    assert "asked-once" not in found and "answered-once" not in found
    upstream.answers = [says("kept")]
    first = create(client, input="a")
    create(client, input="b", store=False, previous_response_id=first["id"])
    assert [message["content"] for message in sent(upstream)] == ["a", "kept", "b"]
    create(client, input="c", previous_response_id=first["id"])
    assert [message["content"] for message in sent(upstream)] == ["a", "kept", "c"]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("stored", [True, False])
def test_a_long_dialogue_is_cut_to_the_budget(
    build: Build, upstream: RawUpstream, stored: bool
) -> None:
    client = make_app(build, upstream, history_budget=200).test_client()
    first = create(client, input="a" * 400)
    second = create(client, input="b" * 400, previous_response_id=first["id"])
    fields = {"input": "c", "previous_response_id": second["id"], "store": stored}
    third = post(client, **fields)
    assert third.headers["X-History-Dropped"] == "2"
    assert [message["content"] for message in sent(upstream)] == ["b" * 400, "ho", "c"]


def stored_text(database: str, folder: Path) -> str:
    """All that the database holds; of SQLite the bytes of its files too."""
    url = database or f"sqlite:///{next((folder / 'data').glob('*.db'))}"
    tables = ("conversations", "messages", "requests", "leases", "owners")
    engine = create_engine(url)
    with engine.connect() as connection:
        rows = [connection.execute(text(f"SELECT * FROM {t}")).all() for t in tables]
    engine.dispose()
    files = [] if database else [*(folder / "data").glob("*.db*")]
    return str(rows) + "".join(file.read_bytes().decode("latin-1") for file in files)


def test_several_items_go_on_and_are_listed(
    client: FlaskClient, upstream: RawUpstream
) -> None:
    history = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "b"}]},
        {"role": "user", "content": "c"},
    ]
    first = create(client, input=history)
    page = items_of(client, first["id"], "order=asc")
    assert [item["role"] for item in page["data"]] == [
        *("developer", "user", "assistant", "user")
    ]
    newest = items_of(client, first["id"], "limit=3")
    assert newest["has_more"] and newest["data"] == page["data"][:0:-1]
    rest = items_of(client, first["id"], f"limit=3&after={newest['last_id']}")
    assert rest["data"] == page["data"][:1] and not rest["has_more"]
    more = [{"role": "system", "content": "s"}, {"role": "user", "content": "d"}]
    second = create(client, input=more, previous_response_id=first["id"])
    third = create(client, input="e", previous_response_id=second["id"])
    assert [message["content"] for message in sent(upstream)] == [
        *("be brief", "a", "b", "c", "ho", "s", "d", "ho", "e")
    ]
    listed_items = items_of(client, second["id"], "order=asc")["data"]
    assert [item["role"] for item in listed_items] == ["system", "user"]
    assert len(items_of(client, third["id"])["data"]) == 1
    for query in ("order=up", "limit=x", "after=msg_0"):
        path = f"{PATH}/{first['id']}/input_items?{query}"
        assert client.get(path, headers=ALICE).status_code == 400


def test_over_an_upstream_of_text_alone_several_items_go_on(build: Build) -> None:
    client = build(authorization=KEYS).test_client()
    first = create(client, input="one")
    more = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "two"},
        {"role": "user", "content": "three"},
    ]
    second = create(client, input=more, previous_response_id=first["id"])
    assert "three" in second["output"][0]["content"][0]["text"]
    third = create(client, input="four", previous_response_id=second["id"])
    assert "Before that you said: three" in third["output"][0]["content"][0]["text"]
    create(client, input=more, previous_response_id=first["id"], store=False)
    cut = create(client, max_output_tokens=1)
    assert cut["status"] == "incomplete"
    assert cut["incomplete_details"] == {"reason": "max_output_tokens"}
    assert body_of(read(client, cut["id"])) == cut


def test_an_item_is_found_by_its_id(client: FlaskClient, upstream: RawUpstream) -> None:
    upstream.answers = [says("one"), calls("weather"), says("end")]
    first = create(client, input="a")
    second = create(client, input="b", tools=[TOOL])
    ids = [item["id"] for item in (*first["output"], *second["output"])]
    references = [{"type": "item_reference", "id": name} for name in ids]
    output = {"type": "function_call_output", "call_id": "c0", "output": "sunny"}
    user = {"role": "user", "content": "a"}
    create(client, input=[user, references[0], user, *references[1:], output])
    assert [message["role"] for message in sent(upstream)] == [
        *("user", "assistant", "user", "assistant", "tool")
    ]
    assert sent(upstream)[1]["content"] == "one"
    fields = [user, references[0], user]
    assert post(client, BOB, input=fields).status_code == 400
    body_of(delete(client, first["id"]))
    assert code_of(post(client, input=fields)) == (400, "bad_request")


def test_a_named_conversation_takes_all_items(
    client: FlaskClient, upstream: RawUpstream
) -> None:
    first = create(client, input="a", conversation="room 7")
    assert first["conversation"] == {"id": "room 7"}
    more = [{"role": "system", "content": "s"}, {"role": "user", "content": "b"}]
    fields = {"input": more, "conversation": {"id": "room 7"}}
    answered = post(client, {**ALICE, "Idempotency-Key": "k1"}, **fields)
    second = body_of(answered)
    assert "X-Ignored-Parameters" not in answered.headers
    assert [message["content"] for message in sent(upstream)] == [*("a", "ho", "s", "b")]  # fmt: skip
    asks = len(upstream.received)
    again = create(client, {**ALICE, "Idempotency-Key": "k1"}, **fields)
    assert (again["id"], len(upstream.received)) == (second["id"], asks)
    data = {"msg": "c", "conversation": "room 7"}
    body_of(client.post("/ask", data=data, headers=ALICE))
    assert [message["content"] for message in sent(upstream)][-1] == "c"
    assert len(sent(upstream)) == 6
    assert [item["name"] for item in listed(client)] == ["room 7"]
    both = {"conversation": "room 7", "previous_response_id": first["id"]}
    assert post(client, **both).status_code == 400
    create(client, BOB, input="x", conversation="room 7")
    assert len(sent(upstream)) == 1


def test_a_repeated_request_is_answered_once(
    client: FlaskClient, upstream: RawUpstream
) -> None:
    upstream.answers = [calls("weather"), says("other")]
    keyed = {**ALICE, "Idempotency-Key": "k1"}
    first = create(client, keyed, tools=[TOOL])
    again = post(client, keyed, tools=[TOOL])
    assert again.headers["Idempotent-Replayed"] == "true"
    assert body_of(again)["id"] == first["id"]
    assert body_of(again)["output"] == first["output"]
    events = events_of(post(client, keyed, tools=[TOOL], stream=True))
    assert events[-1]["response"]["output"] == first["output"]
    assert events[0]["response"]["id"] == first["id"]
    assert len(upstream.received) == 1
    assert code_of(post(client, keyed, input="else")) == (409, "key_reused")
    create(client, {**BOB, "Idempotency-Key": "k1"})
    body_of(delete(client, first["id"]))
    assert post(client, keyed, tools=[TOOL]).status_code == 404


# Deleted


def test_a_deleted_response_leaves_nothing_and_later_ones_go_on(
    client: FlaskClient, upstream: RawUpstream, database: str, tmp_path: Path
) -> None:
    upstream.answers = [says("answer-one"), says("answer-two"), says("answer-three")]
    history = [
        {"role": "system", "content": "system-one"},
        {"role": "user", "content": "earlier-one"},
        {"role": "assistant", "content": "said-one"},
        {"role": "user", "content": "question-one"},
    ]
    keyed = {**ALICE, "Idempotency-Key": "k1"}
    fields = {"instructions": "told-one", "metadata": {"a": "meta-one"}}
    first = create(client, keyed, input=history, **fields)
    second = create(client, input="two", previous_response_id=first["id"])
    assert body_of(delete(client, first["id"])) == {
        "id": first["id"],
        "object": "response",
        "deleted": True,
    }
    assert "-one" not in stored_text(database, tmp_path)
    assert code_of(read(client, first["id"])) == (404, "response_not_found")
    assert code_of(delete(client, first["id"])) == (404, "response_not_found")
    assert post(client, previous_response_id=first["id"]).status_code == 400
    third = create(client, input="three", previous_response_id=second["id"])
    assert [message["content"] for message in sent(upstream)] == [
        *("two", "answer-two", "three")
    ]
    [conversation] = listed(client)
    tree = body_of(client.get(f"/conversation/{conversation['id']}", headers=ALICE))
    assert "one" not in json.dumps(tree)
    body_of(delete(client, third["id"]))
    body_of(read(client, second["id"]))
    body_of(delete(client, second["id"]))
    assert listed(client) == []
    path = f"/conversation/{conversation['id']}"
    assert client.get(path, headers=ALICE).status_code == 404
    found = stored_text(database, tmp_path)
    assert "answer-" not in found


def test_what_goes_on_from_a_deleted_response_has_all_others(
    client: FlaskClient, upstream: RawUpstream
) -> None:
    last = create(client, input="q1")["id"]
    names = [last]
    for words in ("q2", "q3", "q4"):
        last = create(client, input=words, previous_response_id=last)["id"]
        names.append(last)
    body_of(delete(client, names[1]))
    body_of(delete(client, names[2]))
    for stored in (True, False):
        create(client, input="q5", previous_response_id=last, store=stored)
        assert [message["content"] for message in sent(upstream)] == [
            *("q1", "ho", "q4", "ho", "q5")
        ]


def test_with_its_conversation_a_response_is_deleted(client: FlaskClient) -> None:
    first = create(client)
    [conversation] = listed(client)
    path = f"/conversation/{conversation['id']}/delete"
    body_of(client.post(path, headers=ALICE))
    assert read(client, first["id"]).status_code == 404


def test_a_failed_response_is_read_as_failed(
    client: FlaskClient, upstream: RawUpstream
) -> None:
    upstream.answers = [chunked(answer({"content": "half"})[:1])]
    events = events_of(post(client, stream=True))
    name = events[0]["response"]["id"]
    failed = body_of(read(client, name))
    assert failed["status"] == "failed"
    assert failed["output"][0]["status"] == "incomplete"
    assert post(client, previous_response_id=name).status_code == 400
    upstream.answers = [whole(b'{"error":{"message":"no"}}')]
    assert post(client).status_code >= 400


# Whose it is, and where else it is seen


def test_another_owners_response_is_not_there(client: FlaskClient) -> None:
    first = create(client)
    path = f"{PATH}/{first['id']}"
    for refused in (
        read(client, first["id"], BOB),
        delete(client, first["id"], BOB),
        client.get(f"{path}/input_items", headers=BOB),
        client.post(f"{path}/cancel", headers=BOB),
    ):
        assert code_of(refused) == (404, "response_not_found")
    refused = post(client, BOB, previous_response_id=first["id"])
    assert code_of(refused) == (400, "previous_response_not_found")
    assert client.get(path).status_code == 401
    assert client.post(f"{path}/cancel", headers=ALICE).status_code == 400
    assert client.get(f"{path}?stream=true", headers=ALICE).status_code == 400
    for name in ("resp_0", f"resp_{'0' * 32}", "nothing", f"resp_{first['id']}", "%00"):
        assert read(client, name).status_code == 404
    body_of(read(client, first["id"]))


def test_it_is_seen_as_a_conversation_with_calls_and_images_named(
    client: FlaskClient, upstream: RawUpstream
) -> None:
    upstream.answers = [calls("weather"), says("sunny")]
    content = [
        {"type": "input_text", "text": "what is it?"},
        {"type": "input_image", "image_url": "data:image/png;base64,AAAA"},
        {"type": "input_file", "filename": "a.pdf", "file_data": "data:x"},
    ]
    first = create(client, input=[{"role": "user", "content": content}], tools=[TOOL])
    output = {"type": "function_call_output", "call_id": "c0", "output": "warm"}
    create(client, input=[output], previous_response_id=first["id"])
    [conversation] = listed(client)
    assert conversation["title"] == "what is it?"
    path = f"/conversation/{conversation['id']}"
    tree = json.dumps(body_of(client.get(path, headers=ALICE)))
    exported = client.get(f"{path}?format=markdown", headers=ALICE).text
    for seen in (tree, exported):
        for words in ("[image]", "[file a.pdf]", "[calls weather({})]", "warm"):
            assert words in seen
    assert "base64" not in tree
    found = client.get("/conversations?q=sunny", headers=ALICE)
    assert len(body_of(found)) == 1


def test_odd_messages_of_kept_completions_are_read_everywhere(
    client: FlaskClient, upstream: RawUpstream
) -> None:
    odd = [
        {"role": "assistant", "content": "a", "tool_calls": [5, {"function": "f"}]},
        {"role": "assistant", "content": "b", "tool_calls": 7},
        {
            "role": "user",
            "content": [{"type": "file", "file": 5}, {"type": "image_url"}],
        },
    ]
    fields = {"messages": odd, "history_disabled": False}
    kept = client.post("/v1/chat/completions", json=fields, headers=ALICE)
    message_id = body_of(kept)["message_id"]
    name = f"resp_{message_id.replace('-', '')}"
    assert len(items_of_any(client, name)) == 4
    assert body_of(read(client, name))["status"] == "completed"
    [conversation] = listed(client)
    path = f"/conversation/{conversation['id']}"
    body_of(client.get(path, headers=ALICE))
    for form in ("markdown", "jsonl"):
        assert client.get(f"{path}?format={form}", headers=ALICE).status_code == 200
    create(client, input="go on", previous_response_id=name)
    tree = body_of(client.get(path, headers=ALICE))["mapping"]
    said = [each for each, node in tree.items() if node["message"] and node["message"]["content"]["parts"][0] in "ab"]  # fmt: skip
    for sent_before in said:
        name = f"resp_{sent_before.replace('-', '')}"
        assert read(client, name).status_code == 404, "nobody asked for it here"


def items_of_any(client: FlaskClient, response_id: str) -> list[Any]:
    path = f"{PATH}/{response_id}/input_items"
    data: list[Any] = body_of(client.get(path, headers=ALICE))["data"]
    return data


# Over ChatGPT's web backend


def test_over_chatgpt_nothing_is_stored_there(build: Build, backend: Backend) -> None:
    settings = {"reverse_proxy": backend.url, "access_token": ("token-1",)}
    client = build(authorization=KEYS, **settings).test_client()
    first = create(client, input="one")
    second = create(client, input="two", previous_response_id=first["id"])
    assert body_of(read(client, second["id"])) == second
    for asked in backend.turns:
        assert asked.body["history_and_training_disabled"] is True
        assert "conversation_id" not in asked.body
    texts = [each["content"]["parts"][0] for each in backend.turns[1].body["messages"]]
    assert texts[0] == "one" and texts[-1] == "two"
    streamed = post(client, input="three", stream=True)
    last = events_of(streamed)[-1]["response"]
    assert body_of(read(client, last["id"])) == last
    keyed = {**ALICE, "Idempotency-Key": "k1"}
    once = create(client, keyed, input="four")
    assert create(client, keyed, input="four")["id"] == once["id"]
    body_of(delete(client, once["id"]))
    assert post(client, keyed, input="four").status_code == 404
    there = {"msg": "x", "conversation": "at chatgpt"}
    body_of(client.post("/ask", data=there, headers=ALICE))
    refused = post(client, conversation="at chatgpt")
    assert refused.status_code == 400 and "stored at the upstream" in refused.text
    name = streamed.headers["X-Conversation-Id"]
    body_of(client.get(f"/conversation/{name}", headers=ALICE))


def test_callers_with_tokens_of_their_own_have_their_own_responses(
    build: Build, backend: Backend
) -> None:
    client = build(reverse_proxy=backend.url).test_client()
    one = {"Authorization": f"Bearer {jwt(sub='one', n=1)}"}
    same_claims = {"Authorization": f"Bearer {jwt(sub='one', n=2)}"}
    first = create(client, one, input="a")
    body_of(read(client, first["id"], one))
    second = create(client, one, input="b", previous_response_id=first["id"])
    assert read(client, first["id"], same_claims).status_code == 404
    refused = post(client, same_claims, previous_response_id=first["id"])
    assert refused.status_code == 400
    named = create(client, one, input="c", conversation="room")
    again = create(client, one, input="d", conversation="room")
    assert len({first["id"], second["id"], named["id"], again["id"]}) == 4
    texts = [each["content"]["parts"][0] for each in backend.turns[-1].body["messages"]]
    assert texts[0] == "c"
    body_of(delete(client, first["id"], one))
    body_of(read(client, second["id"], one))


# Where the upstream has the API itself


@pytest.mark.parametrize(
    ("value", "passes"), [("auto", False), ("false", False), ("true", True)]
)
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_the_setting_says_whether_it_passes(
    build: Build, upstream: RawUpstream, value: str, passes: bool
) -> None:
    app = make_app(
        build,
        upstream,
        openai_responses=value,
        model_aliases={"gpt-4": "tiny-2"},
    )
    client = app.test_client()
    raw = b'{ "input":"x","tools":[{"type":"web_search"}],"model":"gpt-4"}'
    if passes:
        upstream.answers = [whole(b'{"id": "resp_1"}')]
        passed = client.post(
            PATH, data=raw, content_type="application/json", headers=ALICE
        )
        assert passed.json == {"id": "resp_1"}
        received = upstream.received[-1]
        assert received.line == "POST /v1/responses HTTP/1.1"
        assert received.body == raw.replace(b'"gpt-4"', b'"tiny-2"')
        read(client, "resp_1")
        delete(client, "resp_1")
        client.get(f"{PATH}/resp_1/input_items?limit=2", headers=ALICE, buffered=True)
        assert [each.line for each in upstream.received[-3:]] == [
            "GET /v1/responses/resp_1 HTTP/1.1",
            "DELETE /v1/responses/resp_1 HTTP/1.1",
            "GET /v1/responses/resp_1/input_items?limit=2 HTTP/1.1",
        ]
        return
    create(client, model="gpt-4")
    received = upstream.received[-1]
    assert received.line == "POST /v1/chat/completions HTTP/1.1"
    assert json.loads(received.body)["model"] == "tiny-2"
    refused = client.post(
        PATH, data=raw, content_type="application/json", headers=ALICE
    )
    assert code_of(refused) == (400, "unsupported_parameter")
    assert refused.json["error"]["param"] == "tools[0]"  # type: ignore[index]


# Cut


def raised_by_the_sdk(body: bytes) -> list[str]:
    """The types of the events that the SDK gives of a stream, which must end in its error."""

    def respond(request: httpx.Request) -> httpx.Response:
        kind = {"Content-Type": "text/event-stream"}
        return httpx.Response(200, headers=kind, content=body)

    http = openai.DefaultHttpxClient(transport=httpx.MockTransport(respond))
    sdk = openai.OpenAI(base_url="http://127.0.0.1/v1", api_key="k", http_client=http)
    seen: list[str] = []
    with sdk, pytest.raises(openai.APIError):
        for event in sdk.responses.create(model="m", input="x", stream=True):
            seen.append(event.type)
    return seen


PASSED = [
    b"event: response.created\n" + sse({"type": "response.created", "sequence_number": 0, "response": {"id": "r"}}),
    sse({"type": "response.output_text.delta", "delta": 'x "type":"response.completed"'}),
    sse({"type": "response.completed", "sequence_number": 2, "response": {"id": "r"}}),
]  # fmt: skip


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("ended", [True, False], ids=["ended", "broken off"])
def test_a_passed_stream_that_is_cut_never_looks_whole(
    build: Build, upstream: RawUpstream, ended: bool
) -> None:
    client = make_app(build, upstream, openai_responses="true").test_client()
    stream = b"".join(PASSED)
    for at in range(len(stream) - 2):
        packets = chunked([stream[:at]])
        upstream.answers = [packets if ended else packets[:-1]]
        cut = post(client, stream=True)
        assert '{"type": "response.completed"' not in cut.text
        if cut.status_code == 200:
            assert "response.completed" not in raised_by_the_sdk(cut.data)
        else:
            assert cut.status_code == 502


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("ended", [True, False], ids=["ended", "broken off"])
def test_a_translated_stream_that_is_cut_never_looks_whole(
    build: Build, upstream: RawUpstream, ended: bool
) -> None:
    client = make_app(build, upstream).test_client()
    piece = {"index": 0, "id": "c0", "function": {"name": "f", "arguments": "{}"}}
    deltas = ({"content": "hé"}, {"tool_calls": [piece]})
    *stream, last, _ = answer(*deltas, finish="tool_calls")
    joined = b"".join(stream)
    for at in range(len(joined + last) - 2):
        packets = chunked([(joined + last)[:at]])
        upstream.answers = [packets if ended else packets[:-1]]
        cut = post(client, stream=True, store=at % 2 == 0)
        assert "response.completed" not in cut.text
        if cut.status_code == 200:
            seen = raised_by_the_sdk(cut.data)
            assert seen[-1] == "response.failed"
        else:
            assert cut.status_code == 502
        if at % 50 == 0:
            assert post(client, store=False).status_code == 502


def test_the_sdk_against_the_service(serve: Start, upstream: RawUpstream) -> None:
    service = serve(
        "pywsgi",
        OPENAI_BASE_URL=upstream.url,
        OPENAI_API_KEY="sk-invented-1",
        OPENAI_MODEL="tiny-1",
        AUTHORIZATION="the-client-key-0",
    )
    upstream.answers = [says("one"), says("two"), calls("weather"), says("end")]
    with openai.OpenAI(
        base_url=f"{service.url}/v1", api_key="the-client-key-0", max_retries=0
    ) as sdk:
        first = sdk.responses.create(model="tiny-1", input="a")
        assert first.output_text == "one"
        with sdk.responses.stream(
            model="tiny-1", input="b", previous_response_id=first.id
        ) as stream:
            kinds = [event.type for event in stream]
            second = stream.get_final_response()
        assert second.output_text == "two" and kinds[-1] == "response.completed"
        assert sdk.responses.retrieve(second.id).output_text == "two"
        items = list(sdk.responses.input_items.list(first.id, limit=1))
        assert [item.type for item in items] == ["message"]
        third = sdk.responses.create(model="tiny-1", input="c", tools=[TOOL])  # type: ignore[list-item]
        assert third.output[-1].type == "function_call"
        sdk.responses.delete(second.id)
        with pytest.raises(openai.NotFoundError):
            sdk.responses.retrieve(second.id)
        with pytest.raises(openai.BadRequestError) as refused:
            sdk.responses.create(model="tiny-1", input="x", tools=[{"type": "web_search"}])  # fmt: skip
        assert refused.value.param == "tools[0]"
        upstream.answers = [chunked(answer({"content": "half"})[:1])]
        with pytest.raises(openai.APIError, match="not whole"):
            for _ in sdk.responses.create(model="tiny-1", input="x", stream=True):
                pass
        with pytest.raises(openai.InternalServerError):
            sdk.responses.create(model="tiny-1", input="x")


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    "fields",
    [
        {"include": 5},
        {"tool_choice": {"type": "allowed_tools", "tools": [5]}, "tools": [TOOL]},
        {"input": [{"type": "item_reference", "id": ["x"]}]},
        {"input": [{"type": "item_reference", "id": "msg_" + "0" * 32}]},
        {"previous_response_id": "\0"},
        {"conversation": {}},
        {"metadata": {"a": {"b": 1}}},
    ],
)
def test_odd_requests_are_refused(client: FlaskClient, fields: dict[str, Any]) -> None:
    refused = post(client, **fields)
    assert refused.status_code == 400
    assert refused.json["error"]["type"] == "invalid_request_error"  # type: ignore[index]


def test_a_response_that_is_deleted_while_it_is_made_stays_so(store: Store) -> None:
    request = new_turn()
    assert store.open_turn(request, 60) is not None
    owner, answer_id = request.owner, request.answer_id
    store.delete_turn(owner, answer_id)
    store.complete_turn(request, Reply("late", "", ""))
    with pytest.raises(NoConversation):
        store.turn(owner, answer_id)
