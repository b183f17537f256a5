"""Links to the files of answers: who may read them, what they carry, and what a hostile storage achieves."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
import requests
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from relay.downloads import LINK_SECONDS, Download, Links, secret_of
from relay.errors import InternalError, LinkExpired, NoFile
from tests.chatgpt_backend import Backend, Blob, Mode
from tests.processes import Service, outcomes
from tests.tokens import jwt
from tests.upstreams.test_web_shown import CAT, LIST, PROMPT, REFERENCES

KEY = {"Authorization": "Bearer the-client-key-0"}
OTHER = {"Authorization": "Bearer the-other-key-0"}
OWN = jwt(sub="their-own")
PNG = b"\x89PNG\r\n\x1a\n" + b"pixels" * 100
LINK = re.compile(r"\((http://[^()\s]+/files/[^()\s]+)\)")


@pytest.fixture
def service(build: Callable[..., Any], backend: Backend) -> Callable[..., FlaskClient]:
    backend.mode = Mode(between=[PROMPT, CAT], says="A cat.")
    backend.blobs["file-Cat"] = Blob(PNG, name="cat.png")

    def make(**settings: Any) -> FlaskClient:
        defaults = {
            "reverse_proxy": backend.url,
            "access_token": ("token-1",),
            "authorization": ("ann:the-client-key-0", "bob:the-other-key-0"),
        }
        client: FlaskClient = build(**{**defaults, **settings}).test_client()
        return client

    return make


def ask(client: FlaskClient, **fields: Any) -> dict[str, Any]:
    headers = fields.pop("headers", KEY)
    answer = client.post("/ask", data={"msg": "a cat", **fields}, headers=headers)
    assert answer.status_code == 200, answer.text
    data: dict[str, Any] = answer.json["data"]
    return data


def link_in(text: str) -> str:
    found = LINK.search(text)
    assert found, text
    return urlsplit(found[1]).path


def get(client: FlaskClient, link: str, **headers: str) -> TestResponse:
    return client.get(link, headers=headers, buffered=True)


def test_an_image_is_a_link_that_needs_no_key(
    service: Callable[..., FlaskClient], backend: Backend
) -> None:
    client = service()
    data = ask(client)
    link = link_in(data["message"])
    assert data["message"] == f"![image](http://localhost{link})\n\nA cat."
    assert data["reasoning"] == '```json\n{"prompt": "cat"}\n```\n'
    answer = get(client, link)
    assert answer.status_code == 200 and answer.data == PNG
    headers = answer.headers
    assert headers["Content-Type"] == "image/png"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Disposition"] == "inline; filename=cat.png"
    assert "sandbox" in headers["Content-Security-Policy"]
    assert headers["Content-Length"] == str(len(PNG)) and "Set-Cookie" not in headers
    asked = backend.asked[-2:]
    assert asked[0].path == "/backend-api/files/file-Cat/download"
    assert asked[0].headers["authorization"] == "Bearer token-1"
    assert asked[1].path.startswith("/storage/")
    assert set(asked[1].headers) <= {"host", "accept", "accept-encoding"}


def test_the_same_text_streamed_whole_and_where_the_conversation_is_read(
    service: Callable[..., FlaskClient], backend: Backend
) -> None:
    metadata = {"content_references": REFERENCES}
    backend.mode.answer = {"metadata": metadata}
    backend.mode.says = "A \ue200cite\ue202a\ue201[cat](sandbox:/mnt/data/cat.txt)."
    client = service()
    data = ask(client)
    streamed = client.post(
        "/ask", data={"msg": "x", "stream": "true"}, headers=KEY, buffered=True
    )
    text = LINK.sub("(LINK)", data["message"])
    assert text == f"![image](LINK)\n\nA [cat](LINK).\n\n{LIST}"
    done = streamed.text.partition("event: done\ndata: ")[2]
    assert LINK.sub("(LINK)", done).count("(LINK)") == 2 and "- [First](" in done
    path = f"/conversation/{data['conversation_id']}"
    markdown = client.get(f"{path}?format=markdown", headers=KEY).text
    shown = LINK.sub("(LINK)", markdown)
    assert "## Tool\n\n![image](LINK)\n\n## Answer\n\nA [cat](LINK).\n\n" in shown
    assert shown.endswith(f"\n\n{LIST}\n") and '```json\n{"prompt": "cat"}' in shown
    lines = client.get(f"{path}?format=jsonl", headers=KEY).text
    assert "- [First](" in lines and lines.count("/files/") == 2
    tree = client.get(path, headers=KEY).json
    assert set(tree.pop("download_links")) == {
        "file-service://file-Cat",
        "sandbox:/mnt/data/cat.txt",
    }
    raw = client.get(f"/backend-api{path}", headers=KEY)
    assert raw.json["mapping"] == tree["mapping"] and "/files/" not in raw.text
    backend.blobs["/mnt/data/cat.txt"] = Blob(b"meow", "text/plain")
    for text in (data["message"], markdown):
        links = [urlsplit(link).path for link in LINK.findall(text)]
        bodies = [get(client, link).data for link in links]
        assert bodies == [PNG, b"meow"]
    answer = get(client, links[1])
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert answer.headers["Content-Disposition"] == "attachment; filename=cat.txt"


def test_a_link_of_a_conversation_that_is_deleted_or_anothers_leads_nowhere(
    service: Callable[..., FlaskClient], backend: Backend
) -> None:
    client = service()
    data = ask(client)
    link = link_in(data["message"])
    theirs = ask(client, headers=OTHER)
    assert get(client, link_in(theirs["message"])).status_code == 200
    client.post(f"/conversation/{data['conversation_id']}/delete", headers=KEY)
    asked = len(backend.asked)
    for answer in (get(client, link), client.head(link)):
        assert answer.status_code == 404
        assert answer.headers["X-Error-Code"] == "no_file"
    assert len(backend.asked) == asked, "nobody is asked"
    assert get(client, link_in(theirs["message"])).status_code == 200


def test_a_link_that_is_forged_is_refused(
    service: Callable[..., FlaskClient], backend: Backend
) -> None:
    client = service()
    link = link_in(ask(client)["message"])
    asked = len(backend.asked)
    content, _, signature = link.removeprefix("/files/").partition(".")
    other = Links(lambda: b"another").address(Download("ann", "chatgpt-web"), "")
    forged = [
        f"/files/{content}",
        f"/files/{content}.",
        f"/files/.{signature}",
        f"/files/{content[:-4]}AAAA.{signature}",
        f"/files/{content}.{signature[:-4]}AAAA",
        f"/files/{content}é.{signature}",
        f"/files/{'A' * 9000}.{signature}",
        "/files/...",
        other,
    ]
    for each in forged:
        assert get(client, each).status_code == 404, each
    assert client.post(link, headers=KEY).status_code == 405
    assert len(backend.asked) == asked


def test_a_link_expires() -> None:
    now = [1000.0]
    links = Links(lambda: b"secret", lambda: now[0])
    download = Download("ann", "chatgpt-web", "account-1", "C", "C", False, "p", "m")
    token = links.address(download, "https://x").removeprefix("https://x/files/")
    now[0] += LINK_SECONDS
    assert links.read(token) == download
    now[0] += 2
    with pytest.raises(LinkExpired):
        links.read(token)


def test_old_links_in_a_stored_text_are_renewed_for_their_owner_alone() -> None:
    now = [1000.0]
    links = Links(lambda: b"secret", lambda: now[0])
    mine, theirs = (
        links.address(Download(owner, "chatgpt-web", pointer="p"), "https://x")
        for owner in ("ann", "bob")
    )
    forged = f"https://x/files/{'A' * 60}.{'B' * 43}"
    now[0] += 10 * LINK_SECONDS
    text = f"![image]({mine}) {theirs} {forged} /files/ end"
    new = links.renewed(text, ["ann"])
    found = LINK.search(new.replace("https", "http"))
    assert found and links.read(found[1].rpartition("/")[2]).owner == "ann"
    assert new.endswith(f" {theirs} {forged} /files/ end") and mine not in new


def test_an_expired_link_says_what_to_do(
    service: Callable[..., FlaskClient], tmp_path: Path
) -> None:
    client = service(link_key="invented-link-key-1")
    old = Links(
        lambda: secret_of("invented-link-key-1", tmp_path),
        lambda: time.time() - LINK_SECONDS - 5,
    )
    answer = get(client, old.address(Download("ann", "chatgpt-web"), ""))
    assert answer.status_code == 410 and "Read the conversation" in answer.json["msg"]


def test_the_key_is_made_once_and_private(tmp_path: Path) -> None:
    first, second = (secret_of("", tmp_path) for _ in range(2))
    assert first == second and len(first) > 32
    path = tmp_path / "link_key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "client_key").exists()
    path.chmod(0o644)
    with pytest.raises(InternalError):
        secret_of("", tmp_path)
    assert secret_of("of-the-operator-1", tmp_path) == b"of-the-operator-1"


def test_a_head_asks_nobody(
    service: Callable[..., FlaskClient], backend: Backend
) -> None:
    client = service()
    link = link_in(ask(client)["message"])
    asked = len(backend.asked)
    answer = client.head(link)
    assert answer.status_code == 200 and not answer.data
    assert len(backend.asked) == asked


def test_a_part_of_a_file(service: Callable[..., FlaskClient]) -> None:
    client = service()
    link = link_in(ask(client)["message"])
    answer = get(client, link, Range="bytes=1-3")
    assert answer.status_code == 206 and answer.data == b"PNG"
    assert answer.headers["Content-Range"] == f"bytes 1-3/{len(PNG)}"


@pytest.mark.parametrize(
    "kind",
    ["text/html", "image/svg+xml", "text/event-stream", "image/png; x", "", "a/b"],
)
def test_what_no_browser_may_show_is_saved(
    service: Callable[..., FlaskClient], backend: Backend, kind: str
) -> None:
    client = service()
    link = link_in(ask(client)["message"])
    page = b"<script>alert(1)</script>"
    cookies = {"Set-Cookie": "a=b", "Content-Encoding": "br", "Refresh": "0;url=x"}
    backend.blobs["file-Cat"] = Blob(page, kind, headers=cookies)
    answer = get(client, link)
    assert answer.data == page
    headers = answer.headers
    is_image = kind.startswith("image/png")
    assert headers["Content-Type"] == (
        "image/png" if is_image else "application/octet-stream"
    )
    assert headers["Content-Disposition"] == ("inline" if is_image else "attachment")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Security-Policy"] == "default-src 'none'; sandbox"
    assert not {"Set-Cookie", "Refresh", "Content-Encoding"} & set(headers.keys())


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:1/x",
        "http://169.254.169.254/latest",
        "https://127.0.0.2:1/x",
        "https://[::1]:1/x",
        "https://10.0.0.1/x",
        "https://user:word@example.org/x",
        "https://[/x",
        "file:///etc/passwd",
        "ftp://example.org/x",
        "https://example.org/" + "a" * 9000,
        "https://exa mple.org/",
        "",
    ],
)
def test_an_address_that_is_not_followed(
    service: Callable[..., FlaskClient], backend: Backend, address: str
) -> None:
    client = service()
    link = link_in(ask(client)["message"])
    backend.blobs["file-Cat"].address = address or " "
    answer = get(client, link)
    assert answer.status_code == 502 and answer.headers["X-Error-Source"] == "upstream"
    assert "127" not in answer.text and "10.0" not in answer.text
    assert backend.asked[-1].path.endswith("/download"), "the storage was not asked"


@pytest.mark.parametrize("status", [301, 302, 307, 403, 404, 500])
def test_no_redirect_is_followed_and_no_error_passes(
    service: Callable[..., FlaskClient], backend: Backend, status: int
) -> None:
    client = service()
    link = link_in(ask(client)["message"])
    backend.blobs["file-Cat"] = Blob(
        b'{"secret": 1}',
        "application/json",
        status=status,
        headers={"Location": f"{backend.url}/storage/elsewhere?sig=invented"},
    )
    answer = get(client, link)
    assert answer.status_code == (404 if status == 404 else 502)
    assert "secret" not in answer.text and "elsewhere" not in answer.text
    assert backend.asked[-1].path == "/storage/file-Cat?sig=invented"


def test_a_file_of_unknown_length_is_bounded(
    service: Callable[..., FlaskClient], backend: Backend
) -> None:
    client = service(max_answer=100_000)
    link = link_in(ask(client)["message"])
    for protocol in ("HTTP/1.0", "HTTP/1.1"):
        old = {"SERVER_PROTOCOL": protocol}
        backend.blobs["file-Cat"] = Blob(PNG, states_length=False)
        assert client.get(link, environ_overrides=old, buffered=True).data == PNG
    backend.blobs["file-Cat"] = Blob(bytes(200_000), states_length=False)
    old = {"SERVER_PROTOCOL": "HTTP/1.0"}
    answer = client.get(link, environ_overrides=old, buffered=True)
    assert answer.status_code == 502 and "MAX_ANSWER" in answer.json["msg"]


def test_a_file_that_the_backend_has_no_more(
    service: Callable[..., FlaskClient], backend: Backend
) -> None:
    client = service()
    link = link_in(ask(client)["message"])
    backend.blobs.clear()
    assert get(client, link).status_code == 404
    assert "files/download/file-Cat?" in backend.asked[-1].path, "the newer path too"
    backend.mode.refuse_tokens["token-1"] = (401, {}, b'{"detail": "expired"}')
    answer = get(client, link)
    assert answer.status_code == 401 and answer.headers["X-Error-Source"] == "upstream"


def test_a_callers_own_file_needs_the_callers_token(
    service: Callable[..., FlaskClient], backend: Backend
) -> None:
    client = service()
    headers = {"Authorization": f"Bearer {OWN}"}
    data = ask(client, headers=headers)
    link = link_in(data["message"])
    assert OWN not in link
    for shown in ({}, KEY, {"Authorization": "Bearer not-a-token-1"}):
        assert client.get(link, headers=shown).status_code == 401
    assert client.get(link, headers=headers).data == PNG
    assert backend.asked[-2].headers["authorization"] == f"Bearer {OWN}"
    assert "authorization" not in backend.asked[-1].headers
    path = f"/conversation/{data['conversation_id']}?format=markdown"
    again = link_in(client.get(path, headers=headers).text)
    assert client.get(again).status_code == 401
    assert client.get(again, headers=headers).data == PNG


def test_an_image_alone_that_is_made_beside_the_stream(
    service: Callable[..., FlaskClient], backend: Backend
) -> None:
    dog = {
        **CAT,
        "end_turn": True,
        "content": {
            "content_type": "multimodal_text",
            "parts": [
                {
                    "content_type": "image_asset_pointer",
                    "asset_pointer": "sediment://file_dog",
                }
            ],
        },
    }
    backend.mode = Mode(between=[dog], image_alone=True, hand_off=True, polls=0)
    backend.blobs["file_dog"] = Blob(PNG)
    client = service()
    backend.mode = Mode(between=[dog], image_alone=True, hand_off=True, polls=0)
    data = ask(client)
    assert re.fullmatch(r"!\[image\]\(http://localhost/files/[^)]+\)", data["message"])
    assert get(client, link_in(data["message"])).data == PNG
    found = f"/backend-api/conversation/{data['conversation_id']}/attachment/file_dog/"
    assert backend.asked[-2].path.startswith(found)
    backend.mode = Mode()
    going_on = {name: data[name] for name in ("conversation_id", "parent_id")}
    assert "Turn 2." in ask(client, **going_on)["message"], "it goes on at the image"


def test_where_links_say_that_the_service_is(
    service: Callable[..., FlaskClient], backend: Backend
) -> None:
    def base(client: FlaskClient, **headers: str) -> str:
        text = ask(client, headers={**KEY, **headers})["message"]
        return text.partition("(")[2].partition("/files/")[0]

    plain = service()
    assert base(plain, Host="chat.example:81") == "http://chat.example:81"
    behind = {"Host": "chat.example", "X-Forwarded-Proto": "https"}
    assert base(plain, **behind) == "https://chat.example"
    assert base(plain, Host="x)y") == ""
    untrusted = service(forwarded_allow_ips=("10.1.1.1",))
    assert base(untrusted, **behind) == "http://chat.example"
    named = service(public_url="https://public.example/gpt/")
    assert base(named, **behind) == "https://public.example/gpt"


@pytest.fixture
def running(
    serve: Callable[..., Service], backend: Backend
) -> Iterator[Callable[..., Service]]:
    backend.mode = Mode(between=[CAT], says="A cat.")
    backend.blobs["file-Cat"] = Blob(PNG)

    def start(**environ: str) -> Service:
        return serve(
            "pywsgi",
            REVERSE_PROXY=backend.url,
            ACCESS_TOKEN="token-1",
            AUTHORIZATION="the-client-key-0",
            **environ,
        )

    yield start


def test_through_the_official_sdk(
    running: Callable[..., Service], backend: Backend
) -> None:
    service = running()
    with openai.OpenAI(
        base_url=f"{service.url}/v1", api_key="the-client-key-0", max_retries=0
    ) as client:
        asked: Any = {
            "model": "gpt-4",
            "messages": [{"role": "user", "content": "a cat"}],
        }
        whole = client.chat.completions.create(**asked)
        text = whole.choices[0].message.content or ""
        chunks = client.chat.completions.create(**asked, stream=True)
        pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
        stored = client.responses.create(model="gpt-4", input="a cat")
        again = client.responses.retrieve(stored.id)
    for found in (text, "".join(pieces), stored.output_text, again.output_text):
        assert LINK.sub("(LINK)", found) == "![image](LINK)\n\nA cat."
        link = LINK.search(found)
        assert link and link[1].startswith(f"{service.url}/files/")
        assert requests.get(link[1], timeout=10).content == PNG
    line = outcomes(service)[-1]
    assert line["path"] == "/files/..." and line["outcome"] == "whole"
    content = link[1].rpartition("/")[2]
    assert content not in service.logged()


def test_a_file_that_is_cut_never_looks_whole_and_a_huge_one_needs_no_memory(
    running: Callable[..., Service], backend: Backend
) -> None:
    service = running(MAX_ANSWER="1MB")
    headers = {"Authorization": "Bearer the-client-key-0"}
    answer = requests.post(
        f"{service.url}/ask", data={"msg": "x"}, headers=headers, timeout=10
    )
    link = service.url + link_in(answer.json()["data"]["message"])
    backend.blobs["file-Cat"] = Blob(PNG * 100, cut_after=5000)
    with pytest.raises(requests.RequestException):
        requests.get(link, timeout=10)
    line = outcomes(service)[-1]
    assert line["outcome"] == "upstream_cut"
    huge = bytes(100 * 2**20)
    backend.blobs["file-Cat"] = Blob(huge)
    with requests.get(link, timeout=60, stream=True) as download:
        size = sum(map(len, download.iter_content(2**20)))
    assert size == len(huge) and service.resident() < 100


def test_a_link_is_good_in_another_process_of_the_same_folder(
    running: Callable[..., Service], backend: Backend
) -> None:
    first, second = running(), running()
    headers = {"Authorization": "Bearer the-client-key-0"}
    answer = requests.post(
        f"{first.url}/ask", data={"msg": "x"}, headers=headers, timeout=10
    )
    link = link_in(answer.json()["data"]["message"])
    assert requests.get(second.url + link, timeout=10).content == PNG


def test_no_file_of_another_kind_is_asked_for() -> None:
    from relay.domain import RemoteFile
    from relay.upstreams.chatgpt_web.files import paths_of

    for pointer in ("http://127.0.0.1/", "", "sandbox:/x", "file:///etc/passwd"):
        with pytest.raises(NoFile):
            paths_of(RemoteFile(pointer), "")
    (path,) = paths_of(RemoteFile("sandbox:/mnt/a b&c.txt", "m&1"), "C")
    assert path == (
        "conversation/C/interpreter/download?message_id=m%261&"
        "sandbox_path=%2Fmnt%2Fa%20b%26c.txt"
    )
