"""POST /chat as openai-api-server's document shows it: before every upstream, with its failures, and in a real browser."""

from __future__ import annotations

import http.server
import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from relay.chat import Chat, Routing
from relay.delivery import Clocks, DirectDelivery
from relay.dialects import ndjson
from relay.domain import Ask, Caller
from relay.errors import RateLimited
from relay.store import Store
from relay.upkeep import Leases
from tests.chatgpt_backend import Backend
from tests.conftest import running
from tests.openai_backend import Mode, OpenAIBackend
from tests.pictures import image_part, png
from tests.processes import Service, free_port, need
from tests.scripted import Scripted, Wait

Build = Callable[..., Flask]
Start = Callable[..., Service]
HI = {"messages": [{"role": "user", "content": "hi"}]}
DONE = {"done": True, "error": False, "content": "[DONE]"}


def lines(body: bytes) -> list[dict[str, Any]]:
    assert not body.endswith(b"\n"), "the last line has no end"
    frames = [json.loads(line) for line in body.decode().split("\n") if line.strip()]
    assert frames[-1] == DONE
    assert all(list(line) == ["done", "error", "content"] for line in frames)
    return frames


def chat(client: FlaskClient, **request: Any) -> TestResponse:
    return client.post("/chat", buffered=True, **request)


def text_of(body: bytes) -> str:
    return "".join(line["content"] for line in lines(body)[:-1] if not line["error"])


def test_before_the_offline_upstream(client: FlaskClient) -> None:
    answer = chat(client, json=HI)
    assert answer.status_code == 200
    assert answer.content_type == "application/x-ndjson; charset=utf-8"
    assert "You said: hi" in text_of(answer.data)
    assert "X-Conversation-Id" not in answer.headers
    assert client.get("/conversations").json == []


def test_a_dialogue_goes_upstream_as_it_is(build: Build, api: OpenAIBackend) -> None:
    client = build(
        openai_base_url=api.url,
        openai_api_key=("sk-invented-1",),
        authorization=("the-client-key-0",),
    ).test_client()
    dialogue = [
        *HI["messages"],
        {"role": "assistant", "content": "ho"},
        {"role": "user", "content": "你好"},
    ]
    answer = chat(
        client,
        json={"messages": dialogue, "temperature": 0.5},
        headers={"Authorization": "the-client-key-0"},
    )
    assert text_of(answer.data) == "Turn 2. You said: 你好 — 你好 🙂."
    assert api.completions[0].body["messages"] == dialogue
    assert api.completions[0].body["temperature"] == 0.5
    parts = [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
        {"type": "text", "text": "what?"},
    ]
    chat(
        client,
        json={"messages": [{"role": "user", "content": parts}]},
        headers={"Authorization": "the-client-key-0"},
    )
    assert api.completions[1].body["messages"][0]["content"] == parts


def test_before_chatgpt(build: Build, backend: Backend) -> None:
    """A temporary chat with the whole dialogue; a call that names a conversation continues it."""
    client = build(
        reverse_proxy=backend.url,
        access_token=("t",),
        authorization=("the-client-key-0",),
    ).test_client()
    key = {"Authorization": "the-client-key-0"}
    dialogue = [
        {"role": "system", "content": "s"},
        *HI["messages"],
        {"role": "assistant", "content": "ho"},
        {"role": "user", "content": "so?"},
    ]
    answer = chat(client, json={"messages": dialogue}, headers=key)
    assert "You said: so?" in text_of(answer.data)
    assert "X-Conversation-Id" not in answer.headers
    sent = backend.turns[0].body
    assert sent["history_and_training_disabled"] is True
    assert "conversation_id" not in sent
    roles = [message["author"]["role"] for message in sent["messages"]]
    assert roles == ["system", "user", "assistant", "user"]
    conversation_id = client.post("/ask", data={"msg": "one"}, headers=key).json[
        "data"
    ]["conversation_id"]
    reply = chat(client, json={**HI, "conversation_id": conversation_id}, headers=key)
    assert "Turn 2." in text_of(reply.data)
    assert backend.turns[-1].body["history_and_training_disabled"] is False
    sound = {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}
    refused = chat(client, json=sound, headers=key)
    assert refused.status_code == 400
    assert "no sound" in lines(refused.data)[0]["content"]
    image = {"messages": [{"role": "user", "content": [image_part(png())]}]}
    seen = chat(client, json=image, headers=key)
    assert "[sees image.png]" in text_of(seen.data)


def test_a_call_is_kept_if_it_asks_for_it(client: FlaskClient) -> None:
    dialogue = [
        {"role": "system", "content": "s"},
        *HI["messages"],
        {"role": "assistant", "content": "ho"},
        {"role": "user", "content": "two"},
    ]
    first = chat(client, json={"messages": dialogue, "history_disabled": False})
    conversation_id = first.headers["X-Conversation-Id"]
    assert "Turn 2." in text_of(first.data)
    second = chat(client, json={**HI, "conversation_id": conversation_id})
    assert "Turn 3." in text_of(second.data)
    assert "Before that you said: two" in text_of(second.data)
    assert len(client.get(f"/conversation/{conversation_id}").json["mapping"]) == 8


def test_parameter_names_that_no_header_can_hold_do_no_harm(
    client: FlaskClient,
) -> None:
    conversation_id = chat(client, json={**HI, "history_disabled": False}).headers[
        "X-Conversation-Id"
    ]
    parameters = {"a\nb": 1, "ключ": 2, "x\0y": 3, "y" * 300: 4, "top_k": 5}
    answer = chat(client, json={**HI, "conversation_id": conversation_id, **parameters})
    assert answer.status_code == 200
    assert answer.headers["X-Ignored-Parameters"] == "top_k"
    assert "Turn 3." in text_of(
        chat(
            client, json={**HI, "conversation_id": conversation_id, "timeout": 2000}
        ).data
    )


def test_the_last_message_is_a_users(client: FlaskClient) -> None:
    for role in ("assistant", "system"):
        answer = chat(
            client, json={"messages": [*HI["messages"], {"role": role, "content": "x"}]}
        )
        assert answer.status_code == 400 and "role must be user" in answer.text


def test_all_system_messages_of_a_dialogue_stay(
    build: Build, api: OpenAIBackend
) -> None:
    client = build(
        openai_base_url=api.url,
        openai_api_key=("sk-invented-1",),
        authorization=("the-client-key-0",),
    ).test_client()
    key = {"Authorization": "the-client-key-0"}
    system = [{"role": "system", "content": "A"}, {"role": "developer", "content": "B"}]
    api.mode = Mode(cut_after=4)
    first = chat(
        client,
        json={"messages": [*system, *HI["messages"]], "history_disabled": False},
        headers=key,
    )
    payload = {**HI, "conversation_id": first.headers["X-Conversation-Id"]}
    api.mode = Mode()
    for more in ({}, {"parent_message_id": "client-created-root"}):
        chat(client, json={**payload, **more}, headers=key)
        known = [{**message, "role": "system"} for message in system]
        assert api.completions[-1].body["messages"] == [*known, *HI["messages"]]


def test_a_failure_before_the_first_event_has_its_true_status(build: Build) -> None:
    client = build(Scripted(RateLimited("Slow down.", retry_after=7))).test_client()
    answer = chat(client, json=HI)
    assert answer.status_code == 429 and answer.headers["Retry-After"] == "7"
    assert (
        answer.content_type == "application/x-ndjson; charset=utf-8"
        and answer.headers["X-Error-Code"] == "rate_limited"
    )
    assert lines(answer.data) == [
        {"done": False, "error": True, "content": "Slow down."},
        DONE,
    ]


def test_a_failure_after_it_is_a_line_and_then_the_done_line(build: Build) -> None:
    answer = chat(build(Scripted(b"S|", b"Hel|")).test_client(), json=HI)
    frames = lines(answer.data)
    assert answer.status_code == 200
    assert frames[0]["content"] == "Hel"
    assert frames[1]["error"]
    assert len(frames) == 3


@pytest.mark.parametrize(
    ("request_options", "status"),
    [
        ({"json": {}}, 400),
        ({"data": b"{", "content_type": "application/json"}, 400),
        ({"json": HI, "headers": {"Authorization": "wrong"}}, 401),
        ({"json": HI}, 401),
        (
            {
                "json": HI,
                "headers": {
                    "Sec-Fetch-Site": "cross-site",
                    "Origin": "https://evil.example",
                },
            },
            403,
        ),
        (
            {
                "data": b"x" * 200,
                "content_type": "text/plain",
                "headers": {"Authorization": "the-client-key-0"},
            },
            413,
        ),
    ],
)
def test_every_failure_has_the_lines(
    build: Build, request_options: dict[str, Any], status: int
) -> None:
    client = build(authorization=("the-client-key-0",), max_body=100).test_client()
    key = {} if status in (401, 403) else {"Authorization": "the-client-key-0"}
    headers = {**key, **request_options.get("headers", {})}
    answer = chat(client, **{**request_options, "headers": headers})
    frames = lines(answer.data)
    assert answer.status_code == status
    assert len(frames) == 2
    assert frames[0]["error"]
    assert frames[0]["content"]
    answer_to_get = client.get("/chat", headers={"Authorization": "the-client-key-0"})
    assert answer_to_get.status_code == 405 and lines(answer_to_get.data)


def test_silence_has_an_empty_line(store: Store) -> None:
    upstream = Scripted(b"S|", Wait(0.3), b"Hi|F|")
    relay = Chat(
        {"scripted": upstream}, Routing(lambda: "scripted"), store, Leases(store.renew)
    )
    printer = ndjson.Lines()
    request = Ask("Hi", Caller("owner", True), keep=False)
    delivery = DirectDelivery(
        lambda: relay.open(request, printer), printer, Clocks(keep_alive=0.1)
    )
    pieces = list(delivery.stream())
    delivery.close()
    assert pieces.count(b"\n") >= 2 and text_of(b"".join(pieces)) == "Hi"


ORIGIN = "http://page.example"


def test_cors_is_on_answers_errors_and_preflights(build: Build) -> None:
    client = build(
        authorization=("the-client-key-0",), cors_origins=(ORIGIN,)
    ).test_client()
    page = {"Origin": ORIGIN, "Sec-Fetch-Site": "cross-site"}
    asks = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    preflight = client.options("/chat", headers={**page, **asks})
    assert preflight.status_code == 204
    allowed = preflight.headers["Access-Control-Allow-Headers"].lower()
    assert (
        "authorization" in allowed
        and "content-type" in allowed
        and "POST" in preflight.headers["Access-Control-Allow-Methods"]
    )
    for headers, status in (
        ({"Authorization": "the-client-key-0"}, 200),
        ({}, 401),
        ({"Authorization": "wrong"}, 401),
    ):
        answer = chat(client, json=HI, headers={**page, **headers})
        assert (
            answer.status_code == status
            and answer.headers["Access-Control-Allow-Origin"] == ORIGIN
        )
        assert answer.headers["Access-Control-Allow-Credentials"] == "true"
    assert (
        "Access-Control-Allow-Origin"
        not in chat(
            client, json=HI, headers={**page, "Origin": "http://x.example"}
        ).headers
    )


#: the document's own two functions, its address and the way to the key alone filled in
PAGE = """<!doctype html><meta charset="utf-8"><title>chat</title><body><script>
let messages = [];
async function chat(content) {
  const user_message = { role: "user", content: content };
  const assistant_message = { role: "assistant", content: "" };
  messages.push(user_message);
  await streamChat(messages, ({ done, error, content }) => {
    if (done) { document.title = "done"; }
    else if (error) { console.error(content); assistant_message.content = content; }
    else { assistant_message.content = assistant_message.content + content; }
    document.querySelector("body").innerText = assistant_message.content;
  });
  messages.push(assistant_message);
}
async function streamChat(messages, callback) {
  const res = await fetch("%(url)s/chat", {
    headers: { "Content-Type": "application/json", %(key)s },
    method: "POST", mode: "cors", credentials: "include",
    body: JSON.stringify({ messages: messages }),
  });
  const decoder = new TextDecoder();
  const reader = res.body?.getReader();
  if (reader) {
    let done = false;
    while (!done) {
      const chunk = await reader.read();
      done = chunk.done;
      if (!done) {
        const data = decoder.decode(chunk.value);
        for (const line of data.split("\\n").filter((line) => line.trim() !== "")) { callback(JSON.parse(line.trim())); }
      }
    }
  }
}
(async () => {
  try { await chat("你好 chatgpt"); await chat("又 %(word)s"); } catch (failure) { document.body.innerText = "failed: " + failure; }
  const seen = { text: document.body.innerText, title: document.title, messages: messages };
  await fetch("/seen", { method: "POST", body: JSON.stringify(seen) });
})();
</script></body>"""


class Page(http.server.ThreadingHTTPServer):
    """One page on a port of its own, which is another origin; its script reports what the page shows in the end."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), PageHandler)
        self.address = f"http://127.0.0.1:{self.server_address[1]}"
        self.text = ""
        self.seen: dict[str, Any] = {}
        self.reported = threading.Event()
        threading.Thread(
            target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()

    def browsed(self, text: str, folder: Path) -> dict[str, Any]:
        """What the page shows in a browser once its script is done."""
        self.text = text
        command = [
            need("chromium"),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
        ]
        command += [
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
        ]
        command += [
            "--disable-dev-shm-usage",
            "--remote-debugging-port=0",
            f"--user-data-dir={folder}/profile",
        ]
        with subprocess.Popen(
            [*command, self.address], stderr=subprocess.DEVNULL
        ) as browser:
            try:
                assert self.reported.wait(60), "the page did not come to its end"
            finally:
                browser.terminate()
        return self.seen


class PageHandler(http.server.BaseHTTPRequestHandler):
    server: Page

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        body = self.server.text.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.server.seen = json.loads(
            self.rfile.read(int(self.headers["Content-Length"]))
        )
        self.send_response(204)
        self.end_headers()
        self.server.reported.set()


@pytest.fixture
def page() -> Iterator[Page]:
    yield from running(Page())


@pytest.mark.parametrize(
    "key", ["", '"Authorization": "the-client-key-0"'], ids=["as written", "with a key"]
)
@pytest.mark.parametrize("listed", [True, False], ids=["listed", "not listed"])
def test_the_documents_own_code_in_a_browser_from_another_origin(
    serve: Start, page: Page, tmp_path: Path, key: str, listed: bool
) -> None:
    settings = {"AUTHORIZATION_KEY": "the-client-key-0"} if key else {}
    service = serve(
        CORS_ORIGINS=page.address if listed else "http://other.example", **settings
    )
    seen = page.browsed(PAGE % {"url": service.url, "key": key, "word": "🙂"}, tmp_path)
    if listed:
        assert (
            "Turn 2." in seen["text"]
            and "You said: 又 🙂" in seen["text"]
            and seen["title"] == "done"
        )
        assert [message["role"] for message in seen["messages"]] == [
            "user",
            "assistant",
        ] * 2
        assert "You said: 你好 chatgpt" in seen["messages"][1]["content"]
    else:
        assert seen["text"].startswith("failed: TypeError")


def test_the_documents_own_code_sees_failures(
    serve: Start, page: Page, tmp_path: Path
) -> None:
    service = serve(CORS_ORIGINS=page.address)
    seen = page.browsed(
        PAGE % {"url": service.url, "key": "", "word": "offline:limit=9"}, tmp_path
    )
    assert "too many requests" in seen["text"] and seen["title"] == "done"


def test_it_streams_through_nginx_as_debian_ships_it(
    serve: Start, nginx: Callable[[str], None]
) -> None:
    service, port = serve(), free_port()
    nginx(
        f"server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass {service.url}; }} }}"
    )
    payload = {"messages": [{"role": "user", "content": "hi offline:pace=0.3"}]}
    began, arrived = time.monotonic(), list[float]()
    with requests.post(
        f"http://127.0.0.1:{port}/chat", json=payload, stream=True, timeout=20
    ) as answer:
        body = b""
        for piece in answer.iter_content(None):
            arrived.append(time.monotonic() - began)
            body += piece
    assert (
        "You said: hi" in text_of(body)
        and len(arrived) > 3
        and arrived[-1] - arrived[0] > 0.5
    )
    cut = requests.post(
        f"http://127.0.0.1:{port}/chat",
        json={"messages": [{"role": "user", "content": "x offline:cut"}]},
        timeout=20,
    )
    assert lines(cut.content)[-2]["error"]


def test_every_mode_of_the_upstream_ends_with_the_done_line(
    build: Build, api: OpenAIBackend
) -> None:
    client = build(
        openai_base_url=api.url,
        openai_api_key=("sk-invented-1",),
        openai_model="tiny-1",
        authorization=("the-client-key-0",),
    ).test_client()
    for mode in (
        Mode(cut_after=4),
        Mode(finish=None),
        Mode(raw=b"garbage"),
        Mode(refusal="no"),
        Mode(crlf=True, pieces_of=2),
        Mode(),
    ):
        api.mode = mode
        frames = lines(
            chat(client, json=HI, headers={"Authorization": "the-client-key-0"}).data
        )
        assert frames[-2]["error"] == (not (mode.crlf or mode == Mode()))
