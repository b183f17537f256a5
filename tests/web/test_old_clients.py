"""Programs of 2023 that ask ChatGPT's web API: their calls, and the way in which each reads the answer.

One service for all: a client's key leads to the offline responder, and an access token of its own to ChatGPT. The
programs that are installed for the tests themselves are in test_gateway_clients.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests

from tests.chatgpt_backend import Backend, Mode
from tests.processes import Service, curl
from tests.tokens import jwt

Fields = dict[str, Any]
TOKENS = {"offline": "the-client-key-0", "chatgpt": jwt(sub="a-person")}
MODEL = "text-davinci-002-render-sha"


@pytest.fixture(scope="module")
def chatgpt() -> Iterator[Backend]:
    backend = Backend()
    yield backend
    backend.shutdown()
    backend.server_close()


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, chatgpt: Backend
) -> Iterator[Service]:
    settings = {
        "CHATGPT_BASE_URL": chatgpt.url,
        "AUTHORIZATION": TOKENS["offline"],
        "ACCOUNT_CONCURRENCY": "1",
    }
    service = Service(tmp_path_factory.mktemp("service"), "pywsgi", settings)
    yield service
    service.stop()


class Client:
    """HTTP as a program does it, with its token at one base URL."""

    def __init__(self, base: str, token: str) -> None:
        self.base = base
        self.headers = {"Authorization": f"Bearer {token}"}

    def send(self, method: str, path: str, **options: Any) -> requests.Response:
        return requests.request(
            method, f"{self.base}{path}", headers=self.headers, timeout=20, **options
        )

    def json(self, method: str, path: str, **options: Any) -> Any:
        response = self.send(method, path, **options)
        assert response.status_code == 200, response.text
        return response.json()

    def stream(self, path: str, body: Fields) -> requests.Response:
        """An answer whose pieces are read as they come."""
        response = self.send("POST", path, json=body, stream=True)
        assert response.status_code == 200, response.text
        assert response.headers["Content-Type"].startswith("text/event-stream")
        return response


Open = Callable[[str], Client]


@pytest.fixture(params=["offline", "chatgpt"])
def client(
    request: pytest.FixtureRequest, service: Service, chatgpt: Backend
) -> Callable[[str], Client]:
    """Gives a client at a base URL, as `client("/api/")`, before one upstream."""
    chatgpt.mode = Mode(ascii_only=True)  # as the real one prints it
    return lambda path: Client(service.url + path, TOKENS[request.param])


def message(text: str, **author: Any) -> Fields:
    content = {"content_type": "text", "parts": [text]}
    return {"id": str(uuid.uuid4()), **author, "content": content}


def new_id() -> str:
    return str(uuid.uuid4())


# of ChatGPT's conversation


def read_npm(response: requests.Response) -> Fields:
    """As ChatGPTUnofficialProxyAPI: events one by one, the whole text in each, until [DONE]."""
    result: Fields = {}
    for event in response.content.decode().split("\n\n"):
        data = "".join(
            line[5:].strip() for line in event.split("\n") if line[:5] == "data:"
        )
        if data == "[DONE]":
            return result
        if not data.startswith("{"):
            continue
        parsed = json.loads(data)
        said = parsed.get("message") or {}
        if said.get("author", {}).get("role", "assistant") != "assistant":
            continue
        if text := said.get("content", {}).get("parts", [None])[0]:
            place = {"conversationId": parsed["conversation_id"], "id": said["id"]}
            result = {"text": text, **place}
    raise AssertionError("it would wait for [DONE]")


@pytest.mark.parametrize(
    "path",
    ["/chatgpt/backend-api/conversation", "/chatgpt/conversation", "/conversation"],
)
def test_chanzhaoyus_chatgpt_web(client: Open, path: str) -> None:
    """Its message has a top-level role, its first parent is random; Kerwin1202's is the same."""
    web = client("")

    def ask(text: str, **place: Any) -> Fields:
        body = {
            "action": "next",
            "messages": [message(text, role="user")],
            "model": MODEL,
            "parent_message_id": new_id(),
        }
        return read_npm(web.stream(path, body | place))

    first = ask("hello")
    assert "hello" in first["text"]
    place = {
        "conversation_id": first["conversationId"],
        "parent_message_id": first["id"],
    }
    second = ask("two", **place)
    assert "two" in second["text"] and second["id"] != first["id"]
    assert second["conversationId"] == first["conversationId"]


def read_rev(response: requests.Response) -> list[Fields]:
    """As revChatGPT's V1: lines whose bytes are shown as Python shows them, so that only ASCII is read."""
    replies: list[Fields] = []
    for raw in response.iter_lines():
        line = str(raw)[2:-1]
        if line.lower() == "internal server error":
            raise AssertionError(line)
        if not line:
            continue
        line = line.removeprefix("data: ")
        if line == "[DONE]":
            return replies
        line = line.replace('\\"', '"').replace("\\'", "'").replace("\\\\", "\\")
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            continue
        said = event.get("message") or {}
        if said.get("author", {}).get("role") == "assistant":
            place = {"conversation_id": event["conversation_id"], "id": said["id"]}
            replies.append({"text": said["content"]["parts"][0], **place})
    raise AssertionError("the answer has no end")


def ask_rev(web: Client, text: str, place: Fields | None = None) -> Fields:
    body = {
        "action": "next",
        "messages": [message(text, role="user", author={"role": "user"})],
        "conversation_id": None,
        "parent_message_id": new_id(),
        "model": MODEL,
        "history_and_training_disabled": False,
    }
    return read_rev(web.stream("conversation", body | (place or {})))[-1]


def test_lss233s_mirai_bot(client: Open) -> None:
    """It keeps earlier ids for its rollback, names conversations by their people, and hides them at the end."""
    web = client("/chatgpt/backend-api/")
    first = ask_rev(web, "one")
    named = first["conversation_id"]
    place = {"conversation_id": named, "parent_message_id": first["id"]}
    assert "two" in ask_rev(web, "two", place)["text"]
    rolled_back = ask_rev(web, "another two", place)
    assert rolled_back["conversation_id"] == named
    tree = web.json("GET", f"conversation/{named}")
    assert len(tree["mapping"][first["id"]]["children"]) == 2
    renaming = {"data": json.dumps({"title": "friend-1"})}
    web.json("PATCH", f"conversation/{named}", **renaming)
    assert web.json("GET", f"conversation/{named}")["title"] == "friend-1"
    hiding = {"data": json.dumps({"is_visible": False})}
    web.json("PATCH", f"conversation/{named}", **hiding)
    assert web.send("GET", f"conversation/{named}").status_code == 404
    login = web.send("POST", "login", json={"username": "a@b.example", "password": "x"})
    assert login.status_code >= 400 and login.json()


def test_lss233s_mirai_bot_waits_for_one_message_at_a_time(
    service: Service, chatgpt: Backend
) -> None:
    token = TOKENS["chatgpt"]
    chatgpt.mode = Mode(one_at_a_time=True)
    chatgpt.running.add(token)
    web = Client(f"{service.url}/chatgpt/backend-api/", token)
    body = {"action": "next", "messages": [message("one", role="user")], "model": MODEL}
    refused = web.send("POST", "conversation", json={**body, "parent_message_id": ""})
    chatgpt.running.clear()
    assert refused.status_code == 429
    assert "Only one message at a time" in refused.json()["detail"]["message"]


def test_chatgpt_web_share(client: Open) -> None:
    """It synchronizes its own list with the account's, by title, and asks for the models."""
    web = client("/chatgpt/backend-api/")
    reply = ask_rev(web, "hello — 你好")
    assert "hello — 你好" in reply["text"]
    named = reply["conversation_id"]
    listed = web.json("GET", "conversations?offset=0&limit=100")
    assert named in [item["id"] for item in listed["items"]]
    assert {"id", "title", "create_time"} <= set(listed["items"][0])
    history = web.json("GET", f"conversation/{named}")
    assert history["current_node"] == reply["id"]
    node = history["mapping"][reply["id"]]
    assert node["message"]["author"]["role"] == "assistant" and node["parent"]
    generating = {"message_id": reply["id"], "model": MODEL}
    titled = web.json("POST", f"conversation/gen_title/{named}", json=generating)
    assert titled["title"]
    slugs = [model["slug"] for model in web.json("GET", "models")["models"]]
    assert slugs and all(isinstance(slug, str) for slug in slugs)


def read_feishu(response: requests.Response) -> Fields:
    """As ChatService.java: a data line is cut at its first brace, any other line that is not empty is an error."""
    newest: Fields = {}
    for line in response.iter_lines(decode_unicode=True):
        if not line:
            continue
        if not line.startswith("data:"):
            raise AssertionError(json.loads(line)["detail"])
        brace = line.find("{")
        if brace < 0:
            continue
        event = json.loads(line[brace:])
        if (event.get("message") or {}).get("author", {}).get("role") == "assistant":
            newest = event
    return newest


def test_feishu_chatgpt(client: Open) -> None:
    """A ping, a comment or an event's name would be an error to it."""
    web = client("/chatgpt/backend-api/")
    ids: Fields = {"conversation_id": "", "parent_message_id": ""}
    texts = []
    for text in ("one", "two"):
        body = {"action": "next", "messages": [message(text)], "model": MODEL, **ids}
        body["messages"][0]["author"] = {"role": "user"}
        event = read_feishu(web.stream("conversation", body))
        texts.append(event["message"]["content"]["parts"][0])
        ids["conversation_id"] = event["conversation_id"]
        ids["parent_message_id"] = event["message"]["id"]
    assert "one" in texts[0] and "two" in texts[1]
    items = web.json("GET", "conversations?offset=0&limit=20")["items"]
    assert ids["conversation_id"] in [item["id"] for item in items]
    path = f"conversation/gen_title/{ids['conversation_id']}"
    titled = web.json("POST", path, json={"message_id": ids["parent_message_id"]})
    assert titled["title"]
    plan = web.json("GET", "models?history_and_training_disabled=false")
    assert plan["models"] and plan["categories"]
    assert client("").send("POST", "/chatgpt/login", data={}).status_code >= 400


@pytest.mark.parametrize("prefix", ["", "/chatgpt"])
def test_pandora_with_its_api_prefix(client: Open, prefix: str) -> None:
    """Pandora's own server, whose CHATGPT_API_PREFIX is this service: it appends /api/ and the backend's path."""
    web = client(f"{prefix}/api/")
    body = {
        "action": "next",
        "messages": [message("hello", role="user", author={"role": "user"})],
        "model": MODEL,
        "parent_message_id": new_id(),
    }
    newest: Fields = {}
    for raw in web.stream("conversation", body).iter_lines():
        line = raw.decode()
        if line.startswith("data: {"):
            newest = json.loads(line[6:])
        elif line.startswith("data: [DONE]"):
            break
    else:
        raise AssertionError("the answer has no end")
    named = newest["conversation_id"]
    listed = web.json("GET", "conversations?offset=0&limit=20")
    assert named in [item["id"] for item in listed["items"]]
    tree = web.json("GET", f"conversation/{named}")
    titling = {"model": MODEL, "message_id": tree["current_node"]}
    assert web.json("POST", f"conversation/gen_title/{named}", json=titling)["title"]
    assert web.json("PATCH", f"conversation/{named}", json={"title": "a"})["success"]
    assert web.json("GET", "models")["models"]
    session = web.json("GET", "auth/session")
    assert f"Bearer {session['accessToken']}" == web.headers["Authorization"]
    hiding = {"json": {"is_visible": False}}
    assert web.json("PATCH", f"conversation/{named}", **hiding)["success"]
    assert web.send("GET", f"conversation/{named}").status_code == 404


def test_the_curl_by_which_people_see_that_it_runs(service: Service) -> None:
    ran = curl(f"{service.url}/chatgpt/backend-api/conversation", "-X", "POST")
    assert json.loads(ran.stdout) == {"errorMessage": "Missing accessToken."}


# of /imitate


def chunks(response: requests.Response) -> Iterator[Fields]:
    """As openai 0.x reads a stream: lines that begin with `data: `, until [DONE]."""
    for line in response.iter_lines():
        if line.strip() == b"data: [DONE]":
            return
        if line.startswith(b"data: "):
            yield json.loads(line.removeprefix(b"data: "))
    raise AssertionError("the answer has no end")


def test_chatgpt_next_web(client: Open) -> None:
    """Its BASE_URL ends in /imitate; it sends whatever its settings page has."""
    body = {
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "hello"},
        ],
        "stream": True,
        "model": "gpt-3.5-turbo",
        "temperature": 0.5,
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "top_p": 1,
    }
    answer = client("/imitate").stream("/v1/chat/completions", body)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks(answer)]
    assert "hello" in "".join(delta.get("content") or "" for delta in deltas)


def test_a_script_with_openai_0_x(client: Open) -> None:
    body = {
        "model": "gpt-3.5-turbo",
        "messages": [{"role": "user", "content": "hello"}],
        "stream": True,
    }
    text = ""
    for chunk in chunks(client("/imitate/v1").stream("/chat/completions", body)):
        text += chunk["choices"][0]["delta"].get("content", "")
    assert "hello" in text


def test_a_front_with_a_pool_of_tokens(client: Open) -> None:
    """It passes its callers' bodies on as they are, and their answers back, whole or streamed."""
    front = client("/imitate")
    body = {"model": "gpt-4", "messages": [{"role": "user", "content": "hello"}]}
    answer = front.send("POST", "/v1/chat/completions", data=json.dumps(body))
    assert "hello" in answer.json()["choices"][0]["message"]["content"]


# of Pandora's talk


def talk(text: str, **more: Any) -> Fields:
    return {
        "prompt": text,
        "model": MODEL,
        "message_id": new_id(),
        "parent_message_id": new_id(),
        **more,
    }


def test_the_go_bot(client: Open) -> None:
    """It decodes one object into its structures, and goes on where that ended."""
    web = client("/api/conversation/")
    place = {"conversation_id": ""}
    for text in ("one", "two"):
        answer = web.json("POST", "talk", json=talk(text, stream=False, **place))
        parts = answer["message"]["content"]["parts"]
        assert text in "".join(parts) and answer["error"] is None
        identifier = answer["message"]["id"]
        place = {
            "conversation_id": answer["conversation_id"],
            "parent_message_id": identifier,
        }
    assert len(client("/api/").json("GET", "models")["models"]) > 0


def test_scripts_that_ask_once_and_delete(client: Open) -> None:
    """The stock report and the chat script: the first part of the answer, and the conversation is gone."""
    web = client("/api/")
    body = talk("hello", stream=False, timezone_offset_min=-480)
    answer = web.json("POST", "conversation/talk", json=body)
    assert "hello" in answer["message"]["content"]["parts"][0]
    named = answer["conversation_id"]
    place = {
        "conversation_id": named,
        "parent_message_id": answer["message"]["id"],
    }
    more = talk("two", stream=False, **place)
    second = web.json("POST", "conversation/talk", json=more)
    repeated = web.json("POST", "conversation/regenerate", json=more)
    assert repeated["message"]["id"] != second["message"]["id"]
    assert repeated["conversation_id"] == named
    assert web.json("DELETE", f"conversation/{named}")["success"]


def test_the_wechaty_translator(client: Open) -> None:
    """It says nothing of streaming, so that it gets a stream; it splits that on blank lines."""
    web = client("/api/")
    response = web.send("POST", "conversation/talk", json=talk("hello"))
    assert response.status_code == 200
    *pieces, done = response.content.decode().strip().split("\n\n")
    assert done == "data: [DONE]"
    events = [json.loads(piece.replace("data: ", "", 1)) for piece in pieces if piece]
    newest = events[-1]
    assert "hello" in newest["message"]["content"]["parts"][0]
    assert newest["conversation_id"] and newest["message"]["id"]


def test_the_adapter_of_a_web_app(client: Open) -> None:
    """It streams to a page, and asks for a title after the first answer."""
    web = client("/api/")
    texts = []
    answer = web.stream("conversation/talk", talk("hello", stream=True))
    for line in answer.iter_lines(decode_unicode=True):
        if line.startswith("data: {"):
            newest = json.loads(line.removeprefix("data: "))
            texts.append("".join(newest["message"]["content"]["parts"]))
    assert all(
        later.startswith(text) for text, later in zip(texts, texts[1:], strict=False)
    )
    named = newest["conversation_id"]
    titling = {"model": MODEL, "message_id": newest["message"]["id"]}
    assert web.json("POST", f"conversation/gen_title/{named}", json=titling)["title"]
    more = {"conversation_id": named, "parent_message_id": newest["message"]["id"]}
    going_on = web.json(
        "POST", "conversation/goon", json=talk("", stream=False, **more)
    )
    assert going_on["conversation_id"] == named


def test_the_docker_wrappers_curl(client: Open) -> None:
    web = client("/api/conversation/talk")
    body = json.dumps(talk("hello", stream=False))
    bearer = f"Authorization: {web.headers['Authorization']}"
    ran = curl(
        web.base, "-H", "Content-Type: application/json", "-H", bearer, "-d", body
    )
    assert "hello" in json.loads(ran.stdout)["message"]["content"]["parts"][0]
