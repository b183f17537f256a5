"""The ChatGPT web API over our own store: a service process, before the offline upstream and an OpenAI-compatible server."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from relay.dialects.chatgpt.ask import GO_ON
from relay.dialects.chatgpt.delta import ENCODING
from relay.domain import ROOT
from relay.errors import UpstreamFailed
from relay.upstreams.chatgpt_web.classic import WebDecoder
from tests.chatgpt_backend import Backend
from tests.openai_backend import Mode, OpenAIBackend
from tests.printing import text_of
from tests.processes import Service
from tests.tokens import jwt
from tests.waiting import wait_for

PREFIXES = ("/backend-api", "/chatgpt/backend-api", "/api")
UNKNOWN = "3f7f0dfb-c07b-4622-85ea-76981868a053"  # a conversation that nobody has
KEY = "the-client-key-0"
OTHER_KEY = "another-key-000"
Fields = dict[str, Any]


class Client:
    """A client of the web API. `url`: with the prefix."""

    def __init__(self, service: Service, prefix: str = "/backend-api") -> None:
        self.service = service
        self.url = service.url + prefix
        self.key = KEY

    def send(self, method: str, path: str, **options: Any) -> requests.Response:
        headers = {"Authorization": f"Bearer {self.key}"}
        url = f"{self.url}/{path}"
        return requests.request(method, url, headers=headers, timeout=20, **options)

    def post(self, path: str, payload: Any, **options: Any) -> requests.Response:
        return self.send("POST", path, data=json.dumps(payload), **options)

    def ask(self, text: str, **fields: Any) -> requests.Response:
        return self.post("conversation", question(text, **fields))

    def asked(self, text: str, **fields: Any) -> Fields:
        """The last event of a turn."""
        return last_of(self.ask(text, **fields))

    def tree(self, conversation_id: str) -> Fields:
        response = self.send("GET", f"conversation/{conversation_id}")
        assert response.status_code == 200, response.text
        found: Fields = response.json()
        return found

    def listed(self, query: str = "") -> Fields:
        response = self.send("GET", f"conversations{query}")
        assert response.status_code == 200, response.text
        found: Fields = response.json()
        return found

    def own(self, path: str) -> Any:
        """What an own route shows."""
        headers = {"Authorization": f"Bearer {self.key}"}
        return requests.get(self.service.url + path, headers=headers, timeout=20).json()


def question(text: str, **fields: Any) -> Fields:
    content = {"content_type": "text", "parts": [text]}
    return {
        "action": "next",
        "messages": [
            {"id": str(uuid.uuid4()), "author": {"role": "user"}, "content": content}
        ],
        "parent_message_id": str(uuid.uuid4()),
        "model": "tiny-1",
    } | fields


def last_of(response: requests.Response) -> Fields:
    """The last event of a whole classic stream, which is ASCII and has nothing but data lines."""
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert response.content.isascii()
    lines = response.text.split("\n")
    assert [line for line in lines if line and not line.startswith("data: ")] == []
    assert lines[-3:] == ["data: [DONE]", "", ""]
    events: list[Fields] = [json.loads(line[6:]) for line in lines[:-4] if line]
    assert len({event["message"]["id"] for event in events}) == 1
    assert len({event["conversation_id"] for event in events}) == 1
    return events[-1]


def said(event: Fields) -> str:
    """The text of an event, or of a node."""
    text: str = event["message"]["content"]["parts"][0]
    return text


def after(event: Fields) -> Fields:
    """Where the next question goes."""
    return {
        "conversation_id": event["conversation_id"],
        "parent_message_id": event["message"]["id"],
    }


@pytest.fixture(scope="module")
def api() -> Iterator[OpenAIBackend]:
    server = OpenAIBackend()
    yield server
    server.shutdown()
    server.server_close()


def serving(folder: Path, **settings: str) -> Iterator[Service]:
    keys = {"AUTHORIZATION": f"owner:{KEY},other:{OTHER_KEY}"}
    service = Service(folder, "pywsgi", keys | settings)
    yield service
    service.stop()


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    yield from serving(tmp_path_factory.mktemp("offline"), UPSTREAM="offline")


@pytest.fixture(scope="module")
def openai(
    tmp_path_factory: pytest.TempPathFactory, api: OpenAIBackend
) -> Iterator[Service]:
    settings = {"OPENAI_BASE_URL": api.url, "OPENAI_API_KEY": "sk-invented-1"}
    folder = tmp_path_factory.mktemp("openai")
    yield from serving(folder, UPSTREAM="openai", **settings)


@pytest.fixture(params=["offline", "openai"])
def client(request: pytest.FixtureRequest) -> Client:
    return Client(request.getfixturevalue(request.param))


@pytest.fixture
def of_api(openai: Service, api: OpenAIBackend) -> Client:
    """A client before the OpenAI-compatible server, which behaves as usual."""
    api.mode = Mode()
    return Client(openai)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_conversation_from_its_first_question_to_its_end(
    client: Client, prefix: str
) -> None:
    client = Client(client.service, prefix)
    first = client.asked("Grüße 你好")
    assert "You said: Grüße 你好" in said(first)
    assert first["message"]["status"] == "finished_successfully"
    assert first["message"]["metadata"]["finish_details"] == {"type": "stop"}
    assert first["error"] is None
    second = client.asked("and more", **after(first))
    assert second["conversation_id"] == first["conversation_id"]
    assert "Turn 2." in said(second)
    identifier = first["conversation_id"]
    tree = client.tree(identifier)
    mapping = tree["mapping"]
    assert tree["current_node"] == second["message"]["id"]
    assert said(mapping[second["message"]["id"]]) == said(second)
    asked = mapping[second["message"]["metadata"]["parent_id"]]
    assert said(asked) == "and more"
    assert asked["parent"] == first["message"]["id"]
    title = client.post(f"conversation/gen_title/{identifier}", {"message_id": "x"})
    assert title.json() == {"title": "Grüße 你好"}
    renamed = client.send("PATCH", f"conversation/{identifier}", data='{"title": "Ü"}')
    assert renamed.json() == {"success": True}
    shown = client.listed()["items"][0]
    assert (shown["id"], shown["title"]) == (identifier, "Ü")
    assert client.own("/conversations")[0]["id"] == identifier
    assert client.own(f"/conversation/{identifier}") == client.tree(identifier)
    hidden = '{"is_visible": false}'
    gone = client.send("PATCH", f"conversation/{identifier}", data=hidden)
    assert gone.json() == {"success": True}
    assert client.send("GET", f"conversation/{identifier}").status_code == 404
    assert client.send("DELETE", f"conversation/{identifier}").status_code == 404


def test_the_answer_comes_as_edits_where_that_is_asked_for(client: Client) -> None:
    response = client.ask("Hé", supported_encodings=[ENCODING])
    assert response.content.startswith(b'event: delta_encoding\ndata: "v1"\n\n')
    decoder = WebDecoder()
    text = text_of([[*decoder.feed(response.content)]])
    assert "You said: Hé" in text
    tree = client.tree(str(decoder.conversation_id))
    assert tree["current_node"] == decoder.message_id
    assert said(tree["mapping"][decoder.message_id]) == text


def test_an_earlier_answer_can_be_followed_again(client: Client) -> None:
    first = client.asked("one")
    client.asked("two", **after(first))
    other = client.asked("instead of two", **after(first))
    assert "Turn 2." in said(other)
    tree = client.tree(first["conversation_id"])
    children = tree["mapping"][first["message"]["id"]]["children"]
    texts = [said(tree["mapping"][child]) for child in children]
    assert texts == ["two", "instead of two"]
    assert tree["current_node"] == other["message"]["id"]


@pytest.mark.parametrize("sends_question", [True, False])
def test_a_question_is_asked_again_as_another_branch(
    client: Client, sends_question: bool
) -> None:
    first = client.asked("one")
    second = client.asked("two", **after(first))
    fields = after(first) if sends_question else after(second) | {"messages": None}
    again = client.asked("two", action="variant", **fields)
    assert said(again) == said(second)
    assert again["message"]["metadata"]["message_type"] == "variant"
    assert again["message"]["id"] != second["message"]["id"]
    tree = client.tree(first["conversation_id"])
    assert len(tree["mapping"][first["message"]["id"]]["children"]) == 2


def test_the_first_question_is_asked_again_under_its_own_parent(
    client: Client,
) -> None:
    parent = str(uuid.uuid4())
    first = client.asked("one", parent_message_id=parent)
    place = {"conversation_id": first["conversation_id"], "parent_message_id": parent}
    again = client.asked("one", action="variant", **place)
    assert said(again) == said(first)
    tree = client.tree(first["conversation_id"])
    assert len(tree["mapping"][ROOT]["children"]) == 2


def test_an_answer_goes_on(of_api: Client, api: OpenAIBackend) -> None:
    api.mode.finish = "length"
    first = of_api.asked("a long story")
    assert first["message"]["metadata"]["finish_details"] == {"type": "max_tokens"}
    api.mode.finish = "stop"
    more = of_api.asked("", action="continue", messages=None, **after(first))
    assert more["message"]["metadata"]["message_type"] == "continue"
    sent = api.completions[-1].body["messages"]
    assert [message["content"] for message in sent] == [
        "a long story",
        said(first),
        GO_ON,
    ]


def test_the_messages_of_a_dialogue_are_sent_and_kept(
    of_api: Client, api: OpenAIBackend
) -> None:
    messages = [
        question("Be brief.")["messages"][0] | {"author": {"role": "critic"}},
        question("one")["messages"][0],
    ]
    answer = of_api.asked("", messages=messages)
    assert [message["role"] for message in api.completions[-1].body["messages"]] == ["system", "user"]  # fmt: skip
    assert len(of_api.tree(answer["conversation_id"])["mapping"]) == 4


def test_the_list_has_pages_and_is_the_callers_own(client: Client) -> None:
    hidden = json.dumps({"is_visible": False})
    assert client.send("PATCH", "conversations", data=hidden).json() == {
        "success": True
    }
    other = Client(client.service)
    other.key = OTHER_KEY
    theirs = other.asked("not mine")
    made = [client.asked(f"q{number}")["conversation_id"] for number in range(3)]
    page = client.listed("?offset=0&limit=2&order=updated")
    assert [item["id"] for item in page["items"]] == made[:0:-1]
    assert page["total"] == 3
    assert {name: page[name] for name in ("limit", "offset")} == {
        "limit": 2,
        "offset": 0,
    }
    rest = client.listed("?offset=2&limit=2")
    assert [item["id"] for item in rest["items"]] == made[:1]
    assert client.listed()["limit"] == 20
    path = f"conversation/{theirs['conversation_id']}"
    assert client.send("GET", path).status_code == 404
    assert client.send("PATCH", path, data=hidden).status_code == 404
    asked = client.ask("into theirs", **after(theirs))
    assert asked.status_code == 404
    client.send("PATCH", "conversations", data=hidden)
    assert client.listed()["items"] == client.own("/conversations") == []
    assert len(other.listed()["items"]) == 1, "another owner's stay"
    other.send("PATCH", "conversations", data=hidden)


def test_nothing_is_kept_of_what_is_not_to_be(client: Client) -> None:
    before = client.listed()["total"]
    first = client.asked("secret", history_and_training_disabled=True)
    assert uuid.UUID(first["conversation_id"]) and uuid.UUID(first["message"]["id"])
    assert client.listed()["total"] == before
    path = f"conversation/{first['conversation_id']}"
    assert client.send("GET", path).status_code == 404
    again = client.ask("more", history_and_training_disabled=True, **after(first))
    assert again.status_code == 404
    assert client.ask("more", **after(first)).status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "payload", "status"),
    [
        ("GET", "conversations?limit=101", None, 400),
        ("GET", "conversations?limit=many", None, 400),
        ("GET", "conversations?access_token=secret", None, 400),
        ("GET", f"conversation/{UNKNOWN}", None, 404),
        ("PATCH", f"conversation/{UNKNOWN}", {"title": "x"}, 404),
        ("PATCH", f"conversation/{UNKNOWN}", {"is_archived": True}, 400),
        ("POST", f"conversation/gen_title/{UNKNOWN}", {}, 404),
        ("PATCH", "conversations", {"is_visible": True}, 400),
        ("PATCH", "conversations", {}, 400),
        ("POST", "conversation", question("x", conversation_id="c-1"), 404),
        ("POST", "conversation", question(" "), 400),
        ("POST", "conversation", {"prompt": "x"}, 400),
        ("POST", "conversation", [], 400),
        ("POST", "conversation/regenerate", {"prompt": "x"}, 400),
        ("POST", "conversation/message_feedback", {"rating": 5}, 400),
    ],
)
def test_what_cannot_be_has_its_status(
    offline: Service, method: str, path: str, payload: Any, status: int
) -> None:
    response = Client(offline).send(method, path, data=json.dumps(payload))
    assert response.status_code == status, response.text
    assert response.json()["detail"]["message"]


def test_an_unknown_parent_of_a_known_conversation_is_not_found(
    client: Client,
) -> None:
    first = client.asked("one")
    place = after(first) | {"parent_message_id": str(uuid.uuid4())}
    assert client.ask("two", **place).status_code == 404
    assert len(client.tree(first["conversation_id"])["mapping"]) == 3


def test_without_a_key_nothing_is_answered(client: Client) -> None:
    client.key = "no-such-key-0000"
    for method, path in (("GET", "conversations"), ("POST", "conversation")):
        assert client.send(method, path, data="{}").status_code == 401


def test_a_second_question_waits_for_the_first_answer(offline: Service) -> None:
    client = Client(offline)
    first = client.asked("one")
    answers: list[Fields] = []

    def ask_slowly() -> None:
        slow = client.ask("two offline:pace=0.2", **after(first))
        answers.append(last_of(slow))

    asking = threading.Thread(target=ask_slowly)
    asking.start()

    def is_asked() -> bool:
        tree = client.tree(first["conversation_id"])
        texts = map(said, messages_of(tree))
        return any(text.startswith("two") for text in texts)

    wait_for(is_asked)
    place = {"conversation_id": first["conversation_id"], "parent_message_id": ""}
    second = client.asked("three", **place)
    asking.join(20)
    assert answers and "Turn 3." in said(second)
    tree = client.tree(first["conversation_id"])
    asked = tree["mapping"][second["message"]["metadata"]["parent_id"]]
    assert asked["parent"] == answers[0]["message"]["id"]


def messages_of(tree: Fields) -> list[Fields]:
    """The nodes of a tree that have a message, oldest first."""
    return [node for node in tree["mapping"].values() if node["message"]]


@pytest.mark.parametrize("encodings", [[], [ENCODING]])
def test_an_answer_that_was_cut_never_says_that_it_is_done(
    of_api: Client, offline: Service, api: OpenAIBackend, encodings: list[str]
) -> None:
    api.mode.cutting = "offline:cut"
    for client in (of_api, Client(offline)):
        first = client.asked("one")
        fields = after(first) | {"supported_encodings": encodings}
        response = client.ask("two offline:cut", **fields)
        assert response.status_code == 200 and b"[DONE]" not in response.content
        with pytest.raises(UpstreamFailed, match="failed within its answer"):
            [*WebDecoder().feed(response.content)]
        assert response.content.endswith(b"\n\ninternal server error\n\n")
        tree = client.tree(first["conversation_id"])
        assert tree["current_node"] == first["message"]["id"]
        statuses = [node["message"]["status"] for node in messages_of(tree)]
        assert statuses[-1] == "finished_partial_completion"
        again = client.asked("two", **after(first))
        assert "Turn 2." in said(again)


def test_a_refusal_before_the_first_event_has_its_status(
    offline: Service,
) -> None:
    client = Client(offline)
    refused = client.ask("offline:limit=7")
    assert refused.status_code == 429 and refused.headers["Retry-After"] == "7"
    assert client.ask("offline:status=503").status_code == 503


def test_an_ask_with_a_key_is_answered_once(client: Client) -> None:
    headers = {"Authorization": f"Bearer {KEY}", "Idempotency-Key": str(uuid.uuid4())}
    url = f"{client.url}/conversation"
    first, again = (
        requests.post(url, json=question("once"), headers=headers, timeout=20)
        for _ in range(2)
    )
    assert again.headers["Idempotent-Replayed"] == "true"
    assert last_of(again)["message"]["id"] == last_of(first)["message"]["id"]
    assert last_of(again)["conversation_id"] == last_of(first)["conversation_id"]


TALK = {"model": "tiny-1", "conversation_id": "", "timezone_offset_min": -480}


def talked(client: Client, path: str = "talk", **fields: Any) -> requests.Response:
    ids = {name: str(uuid.uuid4()) for name in ("message_id", "parent_message_id")}
    return client.post(f"conversation/{path}", TALK | ids | fields)


def test_talk_from_its_first_question_to_another_answer(client: Client) -> None:
    client = Client(client.service, "/api")
    parent = str(uuid.uuid4())
    first = last_of(talked(client, prompt="one", parent_message_id=parent))
    assert "You said: one" in said(first)
    answer = talked(client, prompt="two", stream=False, **after(first))
    assert answer.headers["Content-Type"] == "application/json"
    second = answer.json()
    assert "Turn 2." in said(second) and second["error"] is None
    assert second["message"]["status"] == "finished_successfully"
    place = after(first)
    again = last_of(talked(client, "regenerate", prompt="two", **place))
    assert said(again) == said(second)
    place["parent_message_id"] = parent
    other = last_of(talked(client, "regenerate", prompt="one", **place))
    assert said(other) == said(first)
    more = last_of(talked(client, "goon", **after(second)))
    assert "Turn 3." in said(more)
    tree = client.tree(first["conversation_id"])
    assert len(tree["mapping"]) == 1 + 2 * 5
    assert len(client.tree(first["conversation_id"])["mapping"][ROOT]["children"]) == 2


@pytest.fixture
def web(tmp_path: Path, backend: Backend) -> Iterator[Service]:
    """The service before ChatGPT."""
    settings = {"ACCESS_TOKEN": jwt(sub="me"), "CHATGPT_BASE_URL": backend.url}
    service = Service(tmp_path, "pywsgi", {"AUTHORIZATION": KEY} | settings)
    yield service
    service.stop()


def test_a_token_that_chatgpt_does_not_accept_deletes_nothing(
    web: Service, backend: Backend
) -> None:
    client, forger = Client(web, "/api"), Client(web, "/api")
    client.key = jwt(sub="a person")
    forger.key = client.key + "x"
    backend.mode.refuse_tokens[forger.key] = (401, {}, b'{"detail": "no"}')
    made = talked(client, prompt="one", stream=False).json()["conversation_id"]
    hidden = json.dumps({"is_visible": False})
    assert forger.send("PATCH", "conversations", data=hidden).status_code == 401
    assert [item["id"] for item in client.listed()["items"]] == [made]
    assert client.send("PATCH", "conversations", data=hidden).status_code == 200
    assert client.listed()["items"] == []


def test_talk_before_chatgpt_itself(web: Service, backend: Backend) -> None:
    client = Client(web, "/api")
    first = talked(client, prompt="one", stream=False).json()
    identifier = first["conversation_id"]
    tree = backend.trees[identifier]
    assert tree["current_node"] == first["message"]["id"]
    streamed = talked(client, prompt="two", **after(first))
    assert streamed.content.endswith(b"data: [DONE]\n\n")
    ends = streamed.text.split("\n\n")[-3]
    second = json.loads(ends.removeprefix("data: "))
    assert second["message"]["id"] == tree["current_node"]
    place = after(second)
    again = talked(client, "regenerate", prompt="", stream=False, **place).json()
    asked = tree["mapping"][tree["mapping"][again["message"]["id"]]["parent"]]
    assert asked["parent"] == first["message"]["id"]
    assert said(asked) == "two"
    more = talked(client, "goon", stream=False, **after(again)).json()
    parent = tree["mapping"][more["message"]["id"]]["parent"]
    assert said(tree["mapping"][parent]) == GO_ON
    named = {"message_id": more["message"]["id"]}
    title = client.post(f"conversation/gen_title/{identifier}", named)
    assert title.json()["title"]
    hidden = json.dumps({"is_visible": False})
    assert client.send("PATCH", "conversations", data=hidden).status_code == 200
    assert client.listed()["items"] == []


def test_feishu_chatgpts_calls(client: Client) -> None:
    """Its ids are empty at first; a line that begins with data: is read from its first brace, any other is an error."""
    client = Client(client.service, "/chatgpt/backend-api")
    empty = {"conversation_id": "", "parent_message_id": ""}
    lines = client.ask("one", **empty).text.split("\n")
    assert all(not line or line.startswith("data: ") for line in lines)
    first = json.loads([line for line in lines if "{" in line][-1].partition(" ")[2])
    second = client.asked("two", **after(first))
    assert "Turn 2." in said(second)
    item = client.listed("?offset=0&limit=20")["items"][0]
    assert item["id"] == first["conversation_id"]
    named = {"message_id": first["message"]["id"]}
    title = client.post(f"conversation/gen_title/{item['id']}", named).json()
    assert title == {"title": "one"}


def test_the_models_are_the_upstreams(client: Client, of_api: Client) -> None:
    slugs = [model["slug"] for model in of_api.send("GET", "models").json()["models"]]
    assert slugs == ["tiny-1", "tiny-2"]
    found = client.send("GET", "models?history_and_training_disabled=false").json()
    assert found["models"] and found["categories"]


def test_feedback_is_taken_and_kept_nowhere(offline: Service) -> None:
    opinion = {"message_id": "m", "conversation_id": "c", "rating": "thumbsUp"}
    response = Client(offline).post("conversation/message_feedback", opinion)
    assert response.json() == {**opinion, "content": None}
    assert response.headers["X-Ignored-Parameters"] == "rating"
