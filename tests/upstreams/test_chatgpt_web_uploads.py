"""Files on their way to ChatGPT: the steps of an upload, what fails them, and what the message has in the end."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Callable
from io import BytesIO
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from relay.accounts import Account, AccountPool
from relay.attachments import attached, from_bytes
from relay.domain import Message, Question
from relay.errors import UploadFailed
from relay.transports import Head, Headers
from relay.transports.direct import DirectTransport
from relay.upstreams.chatgpt_web import backend as web_backend
from relay.upstreams.chatgpt_web.body import place
from relay.upstreams.chatgpt_web.classic import WebDecoder
from relay.upstreams.chatgpt_web.models import choose_model
from relay.upstreams.chatgpt_web.procedure import WebProcedure
from relay.upstreams.chatgpt_web.storage import Storage, StorageCall
from relay.upstreams.http import Step, WholeResponse
from tests.chatgpt_backend import Asked, Backend, Mode
from tests.pictures import PDF, ZIP, data_url, file_part, image_part, png
from tests.replies import body_of
from tests.tokens import jwt
from tests.upstreams.test_web_failures import CHALLENGE, EXPIRED

Build = Callable[..., Flask]
STORAGE = Storage(("https://chat.example/backend-api",))
KEY = {"Authorization": "Bearer the-client-key-0"}
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def client(build: Build, backend: Backend) -> FlaskClient:
    return make(build, backend)


def make(build: Build, backend: Backend, **settings: Any) -> FlaskClient:
    defaults = {
        "reverse_proxy": backend.url,
        "access_token": ("token-1",),
        "authorization": ("the-client-key-0",),
    }
    return build(**{**defaults, **settings}).test_client()


def ask(
    client: FlaskClient, *files: tuple[str, bytes, str], **fields: Any
) -> TestResponse:
    """A form with files, each (field, content, name)."""
    data: dict[str, Any] = {"msg": "what is it", **fields}
    for field, content, name in files:
        data.setdefault(field, []).append((BytesIO(content), name))
    return client.post("/ask", data=data, headers=KEY, buffered=True)


def completion(client: FlaskClient, *messages: Any, **fields: Any) -> TestResponse:
    body = {"model": "auto", "messages": messages, **fields}
    return client.post("/v1/chat/completions", json=body, headers=KEY, buffered=True)


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


TEXT = {"type": "text", "text": "what is it"}
IMAGE = ("image", png(640, 480), "a tree.png")


def paths(backend: Backend) -> list[str]:
    """What was asked, without what differs from run to run."""
    kept = []
    for asked in backend.asked:
        steps = asked.path.removeprefix("/backend-api/").lstrip("/").split("/")
        named = ["ID" if "file" in step and step != "files" else step for step in steps]
        kept.append(f"{asked.method} {'/'.join(named)}")
    return kept


def content_of(asked: Asked) -> Any:
    return asked.body["messages"][-1]["content"]


def test_an_image_is_announced_put_and_pointed_to(
    client: FlaskClient, backend: Backend
) -> None:
    reply = body_of(ask(client, IMAGE))["data"]
    assert "what is it [sees a tree.png]" in reply["message"]
    steps = ["POST files", "PUT storage/ID", "POST files/ID/uploaded"]
    assert paths(backend) == [*steps, "POST conversation"]
    announced, stored, uploaded, turn = backend.asked
    assert announced.body == {
        "file_name": "a tree.png",
        "file_size": len(IMAGE[1]),
        "use_case": "multimodal",
        "timezone_offset_min": 0,
        "mime_type": "image/png",
        "reset_rate_limits": False,
        "width": 640,
        "height": 480,
    }
    assert "authorization" not in stored.headers and "cookie" not in stored.headers
    assert uploaded.headers["authorization"] == "Bearer token-1" and not uploaded.body
    [name] = backend.files
    assert backend.files[name]["content"] == IMAGE[1]
    assert content_of(turn) == {
        "content_type": "multimodal_text",
        "parts": [
            {
                "content_type": "image_asset_pointer",
                "asset_pointer": f"file-service://{name}",
                "size_bytes": len(IMAGE[1]),
                "width": 640,
                "height": 480,
            },
            "what is it",
        ],
    }


def test_documents_are_attached_and_waited_for(
    client: FlaskClient, backend: Backend
) -> None:
    backend.mode = Mode(looks=1)
    files = (("file", PDF, "notes.pdf"), ("files[]", ZIP, "b.zip"), IMAGE)
    reply = body_of(ask(client, *files))["data"]
    assert "[sees notes.pdf, b.zip, a tree.png]" in reply["message"]
    cases = [known["use_case"] for known in backend.files.values()]
    assert cases == ["my_files", "ace_upload", "multimodal"]
    assert paths(backend).count("GET files/ID") == 2, "until it is read"
    kinds = [part for part in content_of(backend.turns[0])["parts"]]
    assert len(kinds) == 2, "documents stand in the metadata alone"


def test_newer_ids_have_another_scheme(client: FlaskClient, backend: Backend) -> None:
    backend.file_ids = "file_{}"
    body_of(ask(client, IMAGE))
    pointer = content_of(backend.turns[0])["parts"][0]["asset_pointer"]
    assert pointer.startswith("sediment://file_")


def test_text_files_go_as_text_and_large_ones_as_files(
    client: FlaskClient, backend: Backend
) -> None:
    reply = body_of(ask(client, ("file", b"one\ntwo", "a.txt")))["data"]
    assert "what is it\n\na.txt:\n```\none\ntwo\n```" in reply["message"]
    assert paths(backend) == ["POST conversation"]
    body_of(ask(client, ("file", b"x" * 300_000, "large.txt")))
    [known] = backend.files.values()
    assert (known["use_case"], known["mime_type"]) == ("my_files", "text/plain")


def test_it_goes_on_with_files_in_a_conversation(
    client: FlaskClient, backend: Backend
) -> None:
    first = body_of(ask(client, IMAGE))["data"]
    place = {name: first[name] for name in ("conversation_id", "parent_id")}
    again = body_of(ask(client, ("file", PDF, "b.pdf"), **place))["data"]
    assert "Turn 2. You said: what is it [sees b.pdf]" in again["message"]
    assert len(backend.files) == 2, "what is there already is not sent again"


STEPS = ["announce", "put", "uploaded"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("status", [500, 502, 408, 302])
def test_an_upload_that_fails_fails_the_ask_before_it_is_sent(
    client: FlaskClient, backend: Backend, step: str, status: int
) -> None:
    headers = {"Location": f"{backend.url}/inside", "Content-Type": "text/html"}
    backend.mode.failing_uploads[step] = (status, headers, b"<html>oh</html>")
    answer = ask(client, IMAGE, request_id="once-1")
    assert answer.status_code == 502, answer.json
    assert answer.json["error"] == "upload_failed", answer.json
    assert "nothing was asked" in answer.json["msg"]
    assert backend.turns == [] and not any("inside" in a.path for a in backend.asked)
    backend.mode = Mode()
    again = ask(client, IMAGE, request_id="once-1")
    assert again.status_code == 200, "the key may be used again: it was never sent"


@pytest.mark.parametrize("step", STEPS)
def test_a_cut_upload_fails_the_ask_too(
    client: FlaskClient, backend: Backend, step: str
) -> None:
    backend.mode.cut_uploads = step
    answer = ask(client, IMAGE)
    assert (answer.status_code, answer.json["error"]) == (502, "upload_failed")
    assert backend.turns == []


@pytest.mark.parametrize("step", [*STEPS, "look"])
def test_a_slow_upload_ends_by_the_clock(
    build: Build, backend: Backend, step: str
) -> None:
    backend.mode.slow_uploads[step] = 20
    client = make(build, backend, first_byte_timeout=0.6)
    started = time.monotonic()
    answer = ask(client, ("file", PDF, "a.pdf"))
    assert answer.status_code == 504 and time.monotonic() - started < 5
    assert backend.turns == []


def test_the_backends_refusal_of_a_file_is_passed_on(
    client: FlaskClient, backend: Backend
) -> None:
    refusal = {"detail": {"message": "File type not supported", "code": "file_type"}}
    backend.mode.failing_uploads["announce"] = (400, JSON, json.dumps(refusal).encode())
    answer = ask(client, IMAGE)
    assert answer.status_code == 400 and "File type not supported" in answer.json["msg"]
    said = {"status": "error", "error_message": "quota"}
    backend.mode.failing_uploads = {"announce": (200, JSON, json.dumps(said).encode())}
    assert ask(client, IMAGE).status_code == 502
    assert backend.turns == []


def test_a_document_that_cannot_be_read_fails_the_ask(
    client: FlaskClient, backend: Backend
) -> None:
    status = b'{"retrieval_index_status": "failed"}'
    backend.mode.failing_uploads["look"] = (200, JSON, status)
    answer = ask(client, ("file", PDF, "a.pdf"))
    assert "cannot read the document" in answer.json["msg"] and not backend.turns
    backend.mode.failing_uploads["look"] = (404, JSON, b'{"detail": "Not Found"}')
    body_of(ask(client, ("file", PDF, "a.pdf")))


@pytest.mark.parametrize(
    "refusal",
    [
        (401, JSON, json.dumps(EXPIRED).encode()),
        (403, {"Content-Type": "text/html"}, CHALLENGE),
        (429, {**JSON, "Retry-After": "900"}, b'{"detail": "Too many uploads"}'),
    ],
)
def test_another_account_uploads_them_where_one_is_refused(
    build: Build, backend: Backend, refusal: Any
) -> None:
    backend.mode.refuse_tokens["token-1"] = refusal
    client = make(build, backend, access_token=("token-1", "token-2"))
    for _ in range(2):
        body_of(ask(client, IMAGE))
    assert {known["token"] for known in backend.files.values()} == {"token-2"}
    upstream = client.application.extensions["service"].upstreams["chatgpt-web"]
    reasons = {resting.reason for resting in upstream.resting()}
    assert "rate_limited" not in reasons, "a limit of uploads is none of asks"


def test_a_callers_own_token_uploads_at_its_account(
    build: Build, backend: Backend
) -> None:
    own = jwt(sub="their-own")
    client = make(build, backend, chatgpt_headers={"Cookie": "a=b"})
    body = {"model": "auto", "messages": [user(TEXT, image_part(png()))]}
    answer = client.post(
        "/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {own}"}
    )
    assert answer.status_code == 200, answer.text
    assert {known["token"] for known in backend.files.values()} == {own}
    assert not any("cookie" in asked.headers for asked in backend.asked)


@pytest.mark.attack
@pytest.mark.parametrize(
    "address",
    [
        "http://files.example/put",
        "https://127.0.0.1/put",
        "https://127.0.0.1:1/put",
        "https://10.0.0.1/put",
        "https://[::ffff:10.0.0.1]/put",
        "https://0.0.0.0/put",
        "https://169.254.169.254/latest",
        "https://user@files.example/put",
        "https://:secret@files.example/put",
        "https://files.example/put#x",
        "https://files.example/p ut",
        "ftp://files.example/put",
        "//files.example/put",
        "",
        "https://files.example/" + "a" * 9000,
    ],
)
def test_nothing_is_put_where_the_backend_may_not_send_it(address: str) -> None:
    with pytest.raises(UploadFailed, match="nothing is sent to"):
        STORAGE.put(from_bytes("a", png(), "It"), address)


@pytest.mark.attack
def test_a_private_host_that_the_backend_names_is_not_connected_to(
    client: FlaskClient, backend: Backend
) -> None:
    for address in ("https://localhost:1/put", f"http://localhost:{backend.url[-5:]}/"):
        backend.mode.storage = address
        answer = ask(client, IMAGE)
        assert (answer.status_code, answer.json["error"]) == (502, "upload_failed")
    assert "PUT" not in {asked.method for asked in backend.asked}
    assert backend.turns == []


def test_what_goes_to_storage() -> None:
    file = from_bytes("a.png", png(), "It")
    far = STORAGE.put(file, "https://files.example/put?sig=a%2Fb")
    own = STORAGE.put(file, "https://chat.example:444/put")
    assert isinstance(far, StorageCall) and not isinstance(own, StorageCall)
    assert far.url == "https://files.example/put?sig=a%2Fb" and far.length == file.size
    assert dict(far.headers) == {
        "Content-Type": "image/png",
        "x-ms-blob-type": "BlockBlob",
        "x-ms-version": "2020-04-08",
    }
    assert b"".join(far.body) == png()
    assert Account.of("token-1").token not in str(far.headers)


def test_images_over_chat_completions(client: FlaskClient, backend: Backend) -> None:
    answer = completion(client, user(TEXT, image_part(png(9, 8)), file_part(PDF)))
    text = answer.json["choices"][0]["message"]["content"]
    assert "what is it [sees image.png, notes.pdf]" in text
    answer = completion(client, user(image_part(png())))
    assert answer.status_code == 200, "an image alone asks something, too"
    assert len(content_of(backend.turns[1])["parts"]) == 1


def test_images_of_earlier_messages_go_up_as_well(
    client: FlaskClient, backend: Backend
) -> None:
    dialogue = [
        user(TEXT, image_part(png(9, 8))),
        {"role": "assistant", "content": "A tree."},
        user({"type": "text", "text": "and now?"}),
    ]
    assert completion(client, *dialogue).status_code == 200
    first, _, last = backend.turns[0].body["messages"]
    assert first["content"]["content_type"] == "multimodal_text"
    assert last["content"] == {"content_type": "text", "parts": ["and now?"]}


def test_of_many_the_newest_go_up_and_words_stand_for_the_others(
    client: FlaskClient, backend: Backend
) -> None:
    many = [image_part(png())] * 6
    dialogue = [user(TEXT, *many), user(TEXT, *many)]
    assert completion(client, *dialogue).status_code == 200
    first, last = [m["content"]["parts"] for m in backend.turns[0].body["messages"]]
    assert len(last) == 7 and len(first) == 5 and "[an earlier file" in first[-1]
    answer = completion(client, user(TEXT, *many, *many))
    assert answer.status_code == 400 and "more than 10 files" in answer.text
    assert len(backend.turns) == 1


def test_images_over_responses_that_are_stored_here_go_up_again(
    client: FlaskClient, backend: Backend
) -> None:
    parts = [
        {"type": "input_text", "text": "what is it"},
        {"type": "input_image", "image_url": data_url(png(9, 8)), "detail": "auto"},
        {"type": "input_file", "filename": "a.pdf", "file_data": data_url(PDF)},
    ]
    body: dict[str, Any] = {"model": "auto", "input": [user(*parts)]}
    first = client.post("/v1/responses", json=body, headers=KEY).json
    assert "[sees image.png, a.pdf]" in first["output"][0]["content"][0]["text"]
    more = {"input": "and now?", "previous_response_id": first["id"]}
    again = client.post("/v1/responses", json=more, headers=KEY).json
    assert again["status"] == "completed", again
    contents = [m["content"] for m in backend.turns[1].body["messages"]]
    assert contents[0]["content_type"] == "multimodal_text"
    listed = client.get(f"/v1/responses/{first['id']}/input_items", headers=KEY).json
    kinds = [part["type"] for part in listed["data"][0]["content"]]
    assert kinds == ["input_text", "input_image", "input_file"]


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (image_part(PDF), "no image by its content"),
        (image_part(png(30_000, 30_000)), "30000 x 30000 pixels"),
        ({"type": "image_url", "image_url": {"url": "https://a.example/x"}}, "link"),
        (
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,A"}},
            "base64",
        ),
        ({"type": "image_url"}, "is empty"),
        ({"type": "file", "file": {"file_id": "file-1"}}, "no file_data"),
        ({"type": "input_audio", "input_audio": {}}, "tools and sound"),
    ],
)
def test_what_cannot_go_up_is_refused_before_anything_is_sent(
    client: FlaskClient, backend: Backend, part: Any, words: str
) -> None:
    answer = completion(client, user(TEXT, image_part(png()), part))
    assert answer.status_code in (400, 403, 413) and words in answer.text, answer.text
    assert not {asked.method for asked in backend.asked} & {"POST", "PUT"}


def test_tools_and_images_of_others_are_refused_as_before(
    client: FlaskClient, backend: Backend
) -> None:
    system = {"role": "system", "content": [image_part(png())]}
    tool = {"role": "tool", "tool_call_id": "a", "content": "7"}
    for message in (system, tool):
        assert completion(client, message, user(TEXT)).status_code == 400
    assert backend.asked == []


def test_a_slow_storage_is_waited_for_no_longer_than_the_caller_waits() -> None:
    account = Account("a", "token-1")
    web = web_backend.Backend(
        DirectTransport(), (place("https://chat.example"),), AccountPool((account,))
    )
    file = attached("x", [from_bytes("a.png", png(), "It")])
    question = Question((file,), question_id="q", timeout=1e-9)
    steps = WebProcedure(web, question, WebDecoder(), choose_model(None)).steps(account)
    announced = next(steps)
    assert isinstance(announced, Step)
    answer = b'{"file_id": "file-1", "upload_url": "https://files.example/put"}'
    head = Head(200, Headers(()))
    put = steps.send(WholeResponse(head, answer, announced.call))
    assert isinstance(put, Step) and not isinstance(put.call.body, bytes)
    with pytest.raises(UploadFailed, match="did not take the file"):
        list(put.call.body)


def test_a_stream_that_has_begun_holds_no_body_that_asked_for_it() -> None:
    account = Account("a", "token-1")
    places = (place("https://chat.example"),)
    web = web_backend.Backend(DirectTransport(), places, AccountPool((account,)))
    size = 1_000_000
    question = Question((Message("user", "x" * size),), question_id="q")
    tracemalloc.start()
    try:
        procedure = WebProcedure(web, question, WebDecoder(), choose_model(None))
        steps = procedure.steps(account)
        asked = next(steps)
        assert isinstance(asked, Step) and asked.follower is procedure
        assert tracemalloc.get_traced_memory()[0] > size
        asked.follower.begin()
        del asked
        assert tracemalloc.get_traced_memory()[0] < size / 10
    finally:
        tracemalloc.stop()
