"""What each key used: counted once for each ask, added up over processes, and shown to whom it concerns."""

from __future__ import annotations

import csv
import io
import json
import socket
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from flask import Flask
from flask.testing import FlaskClient

from relay.dialects import report
from relay.dialects.openai.usage import PassedAnswer, tokens_asked
from relay.domain import Tokens, UsageQuery, UsageRow
from relay.errors import BadRequest, StoreFailed
from relay.usage import MOST_MODELS, OTHER, Models, UsageCounter, UsageStore
from tests.chatgpt_backend import Backend
from tests.command_line import run
from tests.openai_backend import USAGE, OpenAIBackend
from tests.processes import Service
from tests.raw_upstream import RawUpstream, chunked, response, whole
from tests.replies import Reader
from tests.tokens import jwt
from tests.waiting import wait_for

ON_BOTH = True
Build = Callable[..., Flask]
Serve = Callable[..., Service]
KEYS = ("alice:alices-client-key", "bob:bobs-client-key-1", "owner:the-owners-key-1")
ALICE = {"Authorization": "Bearer alices-client-key"}
BOB = {"Authorization": "Bearer bobs-client-key-1"}
OWNER = {"Authorization": "Bearer the-owners-key-1"}
CHAT = "/v1/chat/completions"
WORD = b'data: {"model":"tiny-1-2026","choices":[{"index":0,"delta":{"content":"hello \\"all"}}]}\n\n'
LAST = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
STATED = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}}\n\n'
DONE = b"data: [DONE]\n\n"


def chat(prompt: str = "hi", **more: Any) -> dict[str, Any]:
    return {
        "model": "tiny-1",
        "messages": [{"role": "user", "content": prompt}],
        **more,
    }


def rows(client: FlaskClient, query: str = "", **headers: str) -> list[dict[str, Any]]:
    answer = client.get(f"/usage{query}", headers=headers)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json["usage"]
    return found


def total(client: FlaskClient, **headers: str) -> dict[str, Any]:
    """The counts of all that the caller sees, in one row; {} where there are none."""
    found = rows(client, "?by=key", **headers)
    return found[0] if found else {}


def counts(row: dict[str, Any]) -> tuple[int, int, int]:
    return row["asks"], row["errors"], row["cancelled"]


@pytest.fixture
def upstream() -> Iterator[RawUpstream]:
    upstream = RawUpstream()
    yield upstream
    upstream.close()


@pytest.fixture
def client(build: Build) -> FlaskClient:
    return closing(build(authorization=KEYS))


def over_api(build: Build, url: str, **more: Any) -> FlaskClient:
    values: dict[str, Any] = {
        "openai_base_url": url,
        "openai_api_key": ("sk-invented-1",),
        "openai_model": "tiny-1",
        "authorization": ("owner:the-owners-key-1",),
        **more,
    }
    return closing(build(**values))


def closing(app: Flask) -> FlaskClient:
    """A client that closes what it is answered, as servers do."""
    app.test_client_class = Reader
    return app.test_client()


@pytest.fixture
def passing(build: Build, upstream: RawUpstream) -> FlaskClient:
    return over_api(build, upstream.url)


@pytest.mark.parametrize("route", ["/send_message", "/ask"])
def test_an_ask_is_counted_and_its_header_says_the_same(
    client: FlaskClient, route: str
) -> None:
    answer = client.post(route, data={"prompt": "hello"}, headers=ALICE)
    (row,) = rows(client, "?by=key,upstream,model", **ALICE)
    assert (row["key"], row["upstream"]) == ("alice", "offline")
    assert counts(row) == (1, 0, 0) and row["prompt_tokens"] > 0
    both = row["prompt_tokens"] + row["completion_tokens"]
    assert row["total_tokens"] == row["estimated_tokens"] == both
    assert answer.headers["X-Usage"] == (
        f"prompt_tokens={row['prompt_tokens']}, "
        f"completion_tokens={row['completion_tokens']}, total_tokens={both}, estimated"
    )


def test_the_upstreams_own_count_is_taken(build: Build, api: OpenAIBackend) -> None:
    client = over_api(build, api.url)
    answer = client.post("/ask", data={"msg": "hello"}, headers=OWNER)
    stated = "prompt_tokens=9, completion_tokens=5, total_tokens=14"
    assert answer.headers["X-Usage"] == stated
    (row,) = rows(client, "?by=model", **OWNER)
    assert row["model"] == "tiny-1-2026" and row["estimated_tokens"] == 0
    assert (row["prompt_tokens"], row["completion_tokens"]) == (9, 5)


def test_absurd_counts_are_not_believed(build: Build, upstream: RawUpstream) -> None:
    for count in (-1, 10**30, 1.5):
        assert Tokens.stated(count, 1) is None and Tokens.stated(1, count) is None
    absurd = {"prompt_tokens": 10**18, "completion_tokens": 1}
    choice = {"index": 0, "delta": {"content": "x"}, "finish_reason": "stop"}
    event = json.dumps({"choices": [choice], "usage": absurd}).encode()
    upstream.answers = [chunked([b"data: %b\n\n" % event, DONE])]
    client = over_api(build, upstream.url)
    client.post("/ask", data={"msg": "hello"}, headers=OWNER)
    row = total(client, **OWNER)
    assert counts(row) == (1, 0, 0) and 0 < row["estimated_tokens"] < 100


@pytest.mark.parametrize("route", [CHAT, "/v1/responses"])
def test_the_header_of_openais_routes_says_what_the_body_says(
    client: FlaskClient, route: str
) -> None:
    answer = client.post(route, json={**chat(), "input": "hi"}, headers=ALICE)
    stated = list(answer.json["usage"].values())
    used = [
        int(part.split("=")[1]) for part in answer.headers["X-Usage"].split(", ")[:3]
    ]
    assert set(used) <= {count for count in stated if isinstance(count, int)}
    assert total(client, **ALICE)["total_tokens"] == used[2]


@pytest.mark.parametrize("route", ["/ask", CHAT, "/v1/responses", "/chat"])
def test_a_stream_counts_and_has_no_header(client: FlaskClient, route: str) -> None:
    fields = {"model": "x", "stream": True}
    if route == "/ask":
        fields["msg"] = "hello"
    elif route == "/v1/responses":
        fields["input"] = "hello"
    else:
        fields["messages"] = [{"role": "user", "content": "hello"}]
    answer = client.post(route, json=fields, headers=ALICE)
    assert answer.status_code == 200 and answer.data
    assert "X-Usage" not in answer.headers
    assert counts(total(client, **ALICE)) == (1, 0, 0)


def test_errors_count_with_what_they_used(client: FlaskClient) -> None:
    refused = client.post("/ask", data={"msg": "offline:limit=3"}, headers=ALICE)
    assert refused.status_code == 429 and "X-Usage" not in refused.headers
    row = total(client, **ALICE)
    assert counts(row) == (1, 1, 0) and row["total_tokens"] == 0
    cut = client.post("/ask", data={"msg": "offline:cut hello"}, headers=ALICE)
    assert cut.status_code == 502
    row = total(client, **ALICE)
    assert counts(row) == (2, 2, 0)
    assert row["prompt_tokens"] > 0 and row["completion_tokens"] > 0


def test_what_is_never_asked_is_not_counted(client: FlaskClient) -> None:
    parent = {"msg": "hello", "parent_id": str(uuid.uuid4())}
    gone = {"msg": "hello", "conversation_id": str(uuid.uuid4())}
    for fields in ({}, parent, gone):
        assert client.post("/ask", data=fields, headers=ALICE).status_code >= 400
    asked = client.post("/ask", data={"msg": "hello"}, headers=ALICE).json["data"]
    conversation = f"/conversation/{asked['conversation_id']}"
    client.get("/conversations", headers=ALICE)
    client.post(f"{conversation}/title", headers=ALICE)
    client.get("/v1/models", headers=ALICE)
    client.head("/usage", headers=ALICE)
    assert counts(total(client, **ALICE)) == (1, 0, 0)


def test_a_replayed_answer_is_no_new_ask(client: FlaskClient) -> None:
    headers = {**ALICE, "Idempotency-Key": "the-key"}
    first, second = (
        client.post("/ask", data={"msg": "hello"}, headers=headers) for _ in range(2)
    )
    assert first.json["data"]["message"] == second.json["data"]["message"]
    assert second.headers["Idempotent-Replayed"] == "true"
    assert "X-Usage" in first.headers and "X-Usage" not in second.headers
    assert counts(total(client, **ALICE)) == (1, 0, 0)


def test_another_account_after_a_refusal_is_the_same_ask(
    build: Build, api: OpenAIBackend
) -> None:
    api.mode.keys = ("sk-invented-2",)
    client = over_api(build, api.url, openai_api_key=("sk-invented-1", "sk-invented-2"))
    for _ in range(2):  # one of the two begins with the key that is refused
        reply = client.post("/ask", data={"msg": "hello"}, headers=OWNER)
        assert reply.status_code == 200
    assert len(api.asked) == 3
    assert counts(total(client, **OWNER)) == (2, 0, 0)


def test_a_key_sees_its_own_and_the_owner_sees_all(client: FlaskClient) -> None:
    for headers, times in ((ALICE, 2), (BOB, 1)):
        for _ in range(times):
            client.post("/ask", data={"msg": "hello"}, headers=headers)
    assert [row["key"] for row in rows(client, "?by=key", **ALICE)] == ["alice"]
    assert [row["key"] for row in rows(client, "?by=key", **BOB)] == ["bob"]
    seen = {row["key"]: row["asks"] for row in rows(client, "?by=key", **OWNER)}
    assert seen == {"alice": 2, "bob": 1}
    (day,) = rows(client, "?by=day", **OWNER)
    assert day["asks"] == 3
    assert client.get("/usage").status_code == 401


def test_the_only_key_sees_all_whatever_its_name(build: Build) -> None:
    without_keys = build().test_client()
    without_keys.post("/ask", data={"msg": "hello"})
    assert total(without_keys)["key"] == "anonymous"
    without_keys.application.extensions["service"].close()
    alone = build(authorization=("alice:alices-client-key",)).test_client()
    alone.post("/ask", data={"msg": "hello"}, headers=ALICE)
    seen = [row["key"] for row in rows(alone, "?by=key", **ALICE)]
    assert seen == ["alice", "anonymous"]


def test_without_keys_everybody_sees_what_anonymous_asked_alone(build: Build) -> None:
    with_keys = build(authorization=KEYS).test_client()
    with_keys.post("/ask", data={"msg": "hello"}, headers=ALICE)
    with_keys.application.extensions["service"].close()
    opened = build(authorization=("none",)).test_client()
    assert rows(opened) == []
    opened.post("/ask", data={"msg": "hello"})
    assert [row["key"] for row in rows(opened)] == ["anonymous"]


def test_a_callers_own_token_sees_its_own_and_a_forged_one_nothing(
    build: Build, backend: Backend
) -> None:
    client = closing(
        build(
            reverse_proxy=backend.url,
            access_token=("token-of-the-server",),
            authorization=KEYS,
        )
    )
    token = jwt(sub="a-stranger")
    own = {"Authorization": f"Bearer {token}"}
    assert client.post("/ask", data={"msg": "hello"}, headers=own).status_code == 200
    assert counts(total(client, **own)) == (1, 0, 0)
    forged = {"Authorization": f"Bearer {jwt(sub='a-stranger', more=1)}"}
    assert rows(client, **forged) == []
    (row,) = rows(client, "?by=key", **OWNER)
    assert row["key"].startswith("token-") and token not in row["key"]


def test_a_token_that_no_upstream_took_is_not_counted(
    build: Build, backend: Backend
) -> None:
    client = closing(
        build(
            reverse_proxy=backend.url,
            access_token=("token-of-the-server",),
            authorization=KEYS,
        )
    )
    token = jwt(sub="a-stranger")
    backend.mode.refuse_tokens[token] = (401, {}, {"detail": "no"})
    own = {"Authorization": f"Bearer {token}"}
    assert client.post("/ask", data={"msg": "hello"}, headers=own).status_code == 401
    turn = {"action": "next", "messages": [], "model": "x"}
    passed = client.post("/backend-api/conversation", json=turn, headers=own)
    assert passed.status_code == 401
    assert rows(client, **OWNER) == []


def test_a_passage_counts_what_its_body_states(
    passing: FlaskClient, upstream: RawUpstream
) -> None:
    stated = {"input_tokens": 4, "output_tokens": 2, "input_tokens_details": {"x": 1}}
    text = 'said "usage": {no}' * 500
    answers = [
        {"model": "m-1", "choices": [{"message": {"content": text}}], "usage": USAGE},
        {"model": "m-2", "output": [], "usage": stated, "metadata": {"usage": "none"}},
        {
            "model": "m-3",
            "data": [[0.5] * 2000],
            "usage": {"prompt_tokens": 6, "total_tokens": 6},
        },
    ]
    upstream.answers = [whole(json.dumps(answer).encode()) for answer in answers]
    for path in ("chat/completions", "completions", "embeddings"):
        answer = passing.post(f"/v1/{path}", json=chat(), headers=OWNER)
        assert answer.status_code == 200 and "X-Usage" not in answer.headers
    found = [
        (
            row["model"],
            row["prompt_tokens"],
            row["completion_tokens"],
            row["estimated_tokens"],
        )
        for row in rows(passing, "?by=model", **OWNER)
    ]
    assert found == [("m-1", 9, 5, 0), ("m-2", 4, 2, 0), ("m-3", 6, 0, 0)]


@pytest.mark.parametrize("states", [True, False], ids=["stated", "estimated"])
def test_a_streamed_passage_counts_its_usage_or_its_words(
    passing: FlaskClient, upstream: RawUpstream, states: bool
) -> None:
    events = [WORD] * 100 + [LAST] + [STATED] * states + [DONE]
    upstream.answers = [chunked(events)]
    answer = passing.post(CHAT, json=chat(stream=True), headers=OWNER)
    assert answer.data == b"".join(events)
    (row,) = rows(passing, "?by=model", **OWNER)
    assert row["model"] == "tiny-1-2026" and counts(row) == (1, 0, 0)
    used = (row["prompt_tokens"], row["completion_tokens"], row["estimated_tokens"])
    # 100 times 11 characters of ASCII as they stand in the JSON, four a token
    assert used == ((7, 3, 0) if states else (5, 275, 280))


def test_passages_that_fail_count_with_what_they_used(
    passing: FlaskClient, upstream: RawUpstream
) -> None:
    upstream.answers = [
        [response(400, b'{"error": {"message": "no"}}', "application/json")]
    ]
    assert passing.post(CHAT, json=chat(), headers=OWNER).status_code == 400
    row = total(passing, **OWNER)
    assert counts(row) == (1, 1, 0) and row["total_tokens"] == 0
    upstream.answers = [chunked([WORD, WORD])]
    assert b'"error"' in passing.post(CHAT, json=chat(stream=True), headers=OWNER).data
    row = total(passing, **OWNER)
    assert counts(row) == (2, 2, 0) and row["completion_tokens"] == 6
    told = b'data: {"error": {"message": "it broke"}}\n\n'
    upstream.answers = [chunked([WORD, told])]
    passing.post(CHAT, json=chat(stream=True), headers=OWNER)
    assert counts(total(passing, **OWNER)) == (3, 3, 0)


def test_what_reads_or_lists_is_no_ask(
    passing: FlaskClient, upstream: RawUpstream
) -> None:
    upstream.answers = [whole(b'{"data": []}')]
    passing.get("/v1/files", headers=OWNER)
    passing.post("/v1/files", data=b"x", headers=OWNER)
    passing.post("/v1/fine_tuning/jobs", json={"model": "m"}, headers=OWNER)
    assert len(upstream.received) == 3 and rows(passing, **OWNER) == []


@pytest.mark.parametrize("forgotten", [False, True], ids=["kept", "forgotten"])
def test_a_turn_that_passes_to_chatgpt_is_estimated(
    build: Build, backend: Backend, forgotten: bool
) -> None:
    client = closing(
        build(
            reverse_proxy=backend.url,
            access_token=("token-of-the-server",),
            authorization=("owner:the-owners-key-1",),
        )
    )
    message = {
        "id": str(uuid.uuid4()),
        "author": {"role": "user"},
        "content": {"content_type": "text", "parts": ["hello"]},
    }
    turn = {
        "action": "next",
        "messages": [message],
        "model": "text-davinci-002-render-sha",
        "parent_message_id": str(uuid.uuid4()),
        "history_and_training_disabled": forgotten,
    }
    answer = client.post("/backend-api/conversation", json=turn, headers=OWNER)
    assert b"[DONE]" in answer.data
    (row,) = rows(client, "?by=upstream,model", **OWNER)
    assert row["upstream"] == "chatgpt-web" and row["model"] == "gpt-test"
    assert counts(row) == (1, 0, 0) and row["prompt_tokens"] == 2
    assert row["completion_tokens"] > 0
    assert row["estimated_tokens"] == row["total_tokens"]


def test_usage_is_found_wherever_an_answer_has_it() -> None:
    spread = PassedAnswer("chat/completions", streams=True)
    for at in range(0, len(STATED), 7):
        spread.feed(STATED[at : at + 7])
    assert spread.findings(lambda: 1).tokens == Tokens(7, 3)
    last = PassedAnswer("responses", streams=False)
    last.feed(b'{"usage": {"input_tokens": 1, "output_tokens": 2}, "n": ' + b"9" * 9000)
    last.feed(b', "usage": {"input_tokens": 3, "output_tokens": 4}, "user": null}')
    assert last.findings(lambda: 1).tokens == Tokens(3, 4)
    unstated = PassedAnswer("chat/completions", streams=False)
    unstated.feed(
        b'{"choices":[{"message":{"content":"%b"}}],"usage":null}' % (b"w" * 40)
    )
    assert unstated.findings(lambda: 5).tokens == Tokens(5, 10, estimated=True)
    large = PassedAnswer("chat/completions", streams=False)
    large.feed(b'{"choices":[{"message":{"content":"' + b"w" * 40_000)
    assert 10_000 < large.findings(lambda: 5).tokens.completion < 10_100


def test_the_estimate_of_a_request_is_linear() -> None:
    deep: Any = "x"
    for _ in range(100_000):
        deep = [deep]
    assert tokens_asked({"messages": deep}) == 0
    parts = [
        {"type": "text", "text": "word" * 4},
        {"type": "image_url", "image_url": {}},
    ]
    assert tokens_asked({"messages": [{"role": "user", "content": parts}]}) == 4 + 4
    assert tokens_asked({"prompt": [1, 2, 3]}) == 3


def test_csv_and_json_have_the_same_rows(client: FlaskClient) -> None:
    for headers in (ALICE, BOB):
        client.post("/ask", data={"msg": "hello"}, headers=headers)
    wanted = rows(client, **OWNER)
    by_field = client.get("/usage?format=csv", headers=OWNER)
    by_header = client.get("/usage", headers={**OWNER, "Accept": "text/csv"})
    assert by_field.data == by_header.data
    assert by_field.content_type == "text/csv; charset=utf-8"
    text = by_field.data.decode()
    assert text.count("\r\n") == text.count("\n") == 3
    read = list(csv.DictReader(io.StringIO(text, newline="")))
    assert read == [{name: str(value) for name, value in row.items()} for row in wanted]
    assert list(wanted[0])[:3] == ["key", "day", "model"]


@pytest.mark.parametrize("begins", ["=", "+", "-", "@"])
def test_no_cell_is_a_formula(begins: str) -> None:
    row = UsageRow(model=f'{begins}HYPERLINK("x","y")', asks=1)
    text = report.csv(
        UsageQuery(("model",), "2026-01-01", "2026-01-02"), [row]
    ).decode()
    (_, cells) = csv.reader(io.StringIO(text, newline=""))
    assert cells[0] == f"'{row.model}"


@pytest.mark.parametrize(
    "query",
    [
        "by=day,day",
        "by=owner",
        "by=,",
        "from=yesterday",
        "from=2026-1-1",
        "from=20260101",
        "to=2026-02-30",
        "from=2026-02-02&to=2026-02-01",
        "format=xml",
        "until=2026-02-01",
    ],
)
def test_what_cannot_be_asked_for_is_said(client: FlaskClient, query: str) -> None:
    answer = client.get(f"/usage?{query}", headers=ALICE)
    assert answer.status_code == 400 and answer.json["error"] == "bad_request"
    name = query.partition("=")[0]
    assert name in answer.json["msg"]


def test_days_are_those_of_the_question(client: FlaskClient) -> None:
    service = client.application.extensions["service"]
    for day in ("2026-01-30", "2026-01-31", "2026-02-01"):
        service.usage.add(UsageRow(day, "alice", "offline", "m", asks=1))
    found = rows(client, "?by=day&from=2026-01-31&to=2026-02-01", **ALICE)
    assert [row["day"] for row in found] == ["2026-01-31", "2026-02-01"]
    answer = client.get("/usage?to=2026-01-30", headers=ALICE).json
    assert (answer["from"], answer["to"]) == ("2026-01-01", "2026-01-30")
    assert len(answer["usage"]) == 1
    assert rows(client, "?from=&to=&by=", **ALICE) == rows(client, **ALICE)


def test_names_of_models_are_bounded() -> None:
    models = Models()
    names = {models.name_for("alice", "d", f"m-{n}") for n in range(MOST_MODELS + 50)}
    assert len(names) == MOST_MODELS + 1 and OTHER in names
    assert models.name_for("alice", "d", "m-1") == "m-1"
    assert models.name_for("bob", "d", "x") == "x"
    assert models.name_for("alice", "e", "x") == "x", "another day begins anew"
    for bad in ("x" * 129, "a\nb", "\0", "\ud800"):
        assert models.name_for("bob", "d", bad) == OTHER


def test_an_invented_model_reaches_the_database_as_another(
    build: Build, api: OpenAIBackend
) -> None:
    client = over_api(build, api.url)
    for name in ("x" * 5000, "nul\0"):
        body = {**chat(), "model": name}
        assert client.post(CHAT, json=body, headers=OWNER).status_code == 404
    (row,) = rows(client, "?by=model", **OWNER)
    assert row["model"] == OTHER and counts(row) == (2, 2, 0)


def test_nothing_is_lost_while_the_database_fails(
    build: Build, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    service = build(authorization=KEYS).extensions["service"]
    counter = service.usage
    row = UsageRow("2026-01-31", "alice", "offline", "m", asks=1)

    def fails(*arguments: object) -> None:
        raise StoreFailed()

    with monkeypatch.context() as patch:
        patch.setattr(counter.store, "add", fails)
        counter.add(row)
        counter.write()
        counter.add(row)
        counter.write()
    assert "Usage could not be written" in caplog.text
    counter.write()
    query = UsageQuery(("key",), "2026-01-31", "2026-01-31")
    assert [found.asks for found in counter.store.read(query, None)] == [2]


def test_what_waits_is_bounded(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.usage.MOST_WAITING", 2)
    counter = UsageCounter(build().extensions["service"].usage.store, 3600)
    for day in ("2026-01-01", "2026-01-02", "2026-01-03", "2026-01-01"):
        counter.add(UsageRow(day, "alice", "offline", "m", asks=1))
    counter.close()
    query = UsageQuery(("day",), "2026-01-01", "2026-01-31")
    found = {row.day: row.asks for row in counter.store.read(query, None)}
    assert found == {"2026-01-01": 2, "2026-01-02": 1}


def test_old_rows_are_deleted_by_upkeep(build: Build) -> None:
    service = build().extensions["service"]
    for day in ("2020-01-01", service.usage.store.today()):
        service.usage.add(UsageRow(day, "alice", "offline", "m", asks=1))
    service.usage.write()
    service.upkeep.once()
    query = UsageQuery(("day",), "2000-01-01", "2100-01-01")
    days = [row.day for row in service.usage.store.read(query, None)]
    assert days == [service.usage.store.today()]


def test_an_answer_has_an_end(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.usage.MOST_ROWS", 2)
    store: UsageStore = build().extensions["service"].usage.store
    store.add([UsageRow(f"2026-01-0{n}", "a", "o", "m", 1) for n in (1, 2, 3)])
    assert len(store.read(UsageQuery(("day",), "2026-01-01", "2026-01-02"), None)) == 2
    with pytest.raises(BadRequest, match="fewer days"):
        store.read(UsageQuery(("day",), "2026-01-01", "2026-01-03"), None)


def test_usage_is_given_to_another_with_the_conversations(
    tmp_path: Path, build: Build, database: str
) -> None:
    service = build().extensions["service"]
    store: UsageStore = service.usage.store
    both = [
        UsageRow("2026-01-01", owner, "o", "m", 1, prompt_tokens=tokens)
        for owner, tokens in (("anonymous", 1), ("alice", 2))
    ]
    store.add([*both, UsageRow("2026-01-02", "anonymous", "o", "m", 1)])
    settings = {"DATA_DIR": str(tmp_path / "data"), "DATABASE_URL": database}
    given = run(tmp_path, "keys", "give", "anonymous", "alice", **settings)
    assert given.returncode == 0, given.stderr
    assert given.stdout == "alice has the usage of anonymous now.\n"
    query = UsageQuery(("key", "day"), "2026-01-01", "2026-01-31")
    found = [
        (row.key, row.day, row.asks, row.prompt_tokens)
        for row in store.read(query, None)
    ]
    assert found == [("alice", "2026-01-01", 2, 3), ("alice", "2026-01-02", 1, 0)]
    again = run(tmp_path, "keys", "give", "anonymous", "alice", **settings)
    assert again.returncode == 1


def settings_of(database: str) -> dict[str, str]:
    settings = {"AUTHORIZATION": ",".join(KEYS)}
    return settings | ({"DATABASE_URL": database} if database else {})


def ask(service: Service, headers: dict[str, str], prompt: str = "hello") -> int:
    url = f"{service.url}/ask"
    answer = requests.post(url, {"msg": prompt}, headers=headers, timeout=30)
    return answer.status_code


def sums(service: Service) -> dict[str, tuple[int, int, int]]:
    answer = requests.get(f"{service.url}/usage?by=key", headers=OWNER, timeout=10)
    return {row["key"]: counts(row) for row in answer.json()["usage"]}


def test_two_processes_add_up_and_a_stop_loses_nothing(
    serve: Serve, database: str
) -> None:
    settings = settings_of(database)
    services = [serve("pywsgi", **settings) for _ in range(2)]
    jobs = [
        (service, headers)
        for service in services
        for headers in (ALICE, BOB)
        for _ in range(20)
    ]
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda job: ask(*job), jobs)) == {200}
    for service in services:
        service.terminate()
        assert service.process.wait(20) == 0
    services[0].start()
    assert sums(services[0]) == {"alice": (40, 0, 0), "bob": (40, 0, 0)}


def test_a_worker_of_gunicorn_loses_nothing_either(serve: Serve, database: str) -> None:
    service = serve("gunicorn", **settings_of(database))
    for _ in range(5):
        assert ask(service, ALICE) == 200
    service.terminate()
    assert service.process.wait(20) == 0
    service.start()
    assert sums(service) == {"alice": (5, 0, 0)}


def test_what_one_process_counts_another_soon_shows(
    serve: Serve, database: str
) -> None:
    settings = settings_of(database)
    asked, other = (serve("pywsgi", **settings) for _ in range(2))
    assert ask(asked, ALICE) == 200
    wait_for(lambda: sums(other) == {"alice": (1, 0, 0)}, 10)


def leave_in_the_middle(service: Service, path: str, body: bytes, kind: str) -> None:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {ALICE['Authorization']}\r\n"
        f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", service.port), 10) as caller:
        caller.sendall(head.encode() + body)
        got = b""
        while b"data: " not in got:
            got += caller.recv(65536)


def test_who_leaves_in_the_middle_has_cancelled(serve: Serve, database: str) -> None:
    service = serve("pywsgi", **settings_of(database))
    body = b"stream=true&msg=hello+offline:pace%3D0.2+offline:long%3D9000"
    form = "application/x-www-form-urlencoded"
    leave_in_the_middle(service, "/ask", body, form)
    wait_for(lambda: sums(service) == {"alice": (1, 0, 1)})
    url = f"{service.url}/usage?by=key"
    (row,) = requests.get(url, headers=ALICE, timeout=10).json()["usage"]
    assert row["prompt_tokens"] > 0 and row["completion_tokens"] > 0


def test_who_leaves_a_passage_has_cancelled(
    serve: Serve, api: OpenAIBackend, database: str
) -> None:
    api.mode.pace = 0.2
    api.mode.text = "word " * 400
    service = serve(
        "pywsgi",
        OPENAI_BASE_URL=api.url,
        OPENAI_API_KEY="sk-invented-1",
        **settings_of(database),
    )
    body = json.dumps(chat(stream=True)).encode()
    leave_in_the_middle(service, CHAT, body, "application/json")
    wait_for(lambda: sums(service) == {"alice": (1, 0, 1)})
