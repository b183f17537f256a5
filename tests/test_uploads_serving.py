"""Files as callers send them: curl's own forms and the official SDK, over each upstream, and many at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import requests

from tests.chatgpt_backend import Backend
from tests.openai_backend import OpenAIBackend
from tests.pictures import PDF, data_url, file_part, image_part, png
from tests.processes import Service, curl

Serve = Callable[..., Service]
KEY = "the-client-key-0"
SHOWN = ("-H", f"Authorization: Bearer {KEY}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with files, whose names say nothing of what is in them."""
    (tmp_path / "x.jpg").write_bytes(png(9, 8))
    (tmp_path / "notes.pdf").write_bytes(PDF)
    (tmp_path / "list.csv").write_text("a,b\n1,2\n")
    (tmp_path / "large.png").write_bytes(png(filling=20_000_000))
    (tmp_path / "bomb.png").write_bytes(png(60_000, 60_000))
    (tmp_path / "lie.png").write_bytes(PDF)
    return tmp_path


def over_chatgpt(serve: Serve, backend: Backend, **settings: str) -> Service:
    known = {"REVERSE_PROXY": backend.url, "ACCESS_TOKEN": "token-1"}
    return serve("pywsgi", AUTHORIZATION=KEY, **known, **settings)


def over_openai(serve: Serve, api: OpenAIBackend) -> Service:
    known = {"OPENAI_BASE_URL": api.url, "OPENAI_API_KEY": "sk-invented-1"}
    return serve("pywsgi", AUTHORIZATION=KEY, **known)


def asked(service: Service, folder: Path, *fields: str, route: str = "ask") -> Any:
    forms = [word for field in fields for word in ("-F", field)]
    url = f"{service.url}/{route}"
    return json.loads(curl(*SHOWN, *forms, url, cwd=folder).stdout)


FIELDS = ("prompt=what is this", "image=@x.jpg", "file=@notes.pdf", "file=@list.csv")


def test_curls_files_over_chatgpt(serve: Serve, backend: Backend, folder: Path) -> None:
    service = over_chatgpt(serve, backend)
    for route in ("ask", "send_message"):
        answer = asked(service, folder, *FIELDS, route=route)
        text = answer["text"] if "text" in answer else answer["data"]["message"]
        assert "what is this\n\nlist.csv:\n```\na,b\n1,2\n```" in text
        assert "[sees x.jpg, notes.pdf]" in text
    kept = [known["content"] for known in backend.files.values()]
    assert kept == [png(9, 8), PDF] * 2
    kinds = [known["mime_type"] for known in backend.files.values()]
    assert kinds[:2] == ["image/png", "application/pdf"], "by their content"


def test_curls_files_over_openai_are_kept_and_exported_by_name(
    serve: Serve, api: OpenAIBackend, folder: Path
) -> None:
    service = over_openai(serve, api)
    answer = asked(service, folder, *FIELDS, "conversation=trees")
    assert answer["code"] == 0, answer
    [message] = api.completions[0].body["messages"]
    text, image, file = message["content"]
    assert text["text"].startswith("what is this\n\nlist.csv:")
    assert image == image_part(png(9, 8)), "nothing that the API does not know"
    assert file == file_part(PDF)
    more = asked(service, folder, "prompt=and now", "conversation=trees")
    assert "Turn 2" in more["data"]["message"]
    assert api.completions[1].body["messages"][0] == message, "sent again as it was"
    place = f"{service.url}/conversation/{answer['data']['conversation_id']}"
    exported = curl(*SHOWN, f"{place}?format=markdown").stdout
    assert "[image x.jpg]" in exported and "[file notes.pdf]" in exported
    assert "base64" not in exported


def test_the_offline_upstream_says_which_one_takes_files(
    serve: Serve, api: OpenAIBackend, folder: Path
) -> None:
    settings = {"OPENAI_BASE_URL": api.url, "OPENAI_API_KEY": "sk-invented-1"}
    service = serve("pywsgi", AUTHORIZATION=KEY, UPSTREAM="offline", **settings)
    answer = asked(service, folder, "prompt=what is this", "image=@x.jpg")
    assert answer["error"] == "bad_request", answer
    assert "Images and files go to: openai or chatgpt-web" in answer["msg"]
    text = asked(service, folder, "prompt=what is this", "file=@list.csv")
    assert "list.csv" in text["data"]["message"], "a text file is text"
    body = {"messages": [{"role": "user", "content": [image_part(png())]}]}
    headers = {"Authorization": f"Bearer {KEY}"}
    refused = requests.post(
        f"{service.url}/v1/chat/completions", json=body, headers=headers, timeout=20
    )
    assert refused.status_code == 400 and "images" in refused.text


def test_what_is_too_large_or_lies_is_refused_before_anything_is_uploaded(
    serve: Serve, backend: Backend, folder: Path
) -> None:
    service = over_chatgpt(serve, backend, MAX_BODY="64MB")
    for name, code, words in (
        ("large.png", "too_large", "larger than a file may be (16 MB)"),
        ("bomb.png", "too_large", "60000 x 60000 pixels"),
        ("lie.png", "bad_request", "no image by its content (application/pdf)"),
    ):
        answer = asked(service, folder, "prompt=what", f"image=@{name}")
        assert answer["error"] == code and words in answer["msg"], answer
    many = [f"file=@notes.pdf;filename={at}.pdf" for at in range(11)]
    answer = asked(service, folder, "prompt=what", *many)
    assert "more than 10 files" in answer["msg"]
    url = data_url(png(filling=20_000_000))
    body = {"messages": [{"role": "user", "content": [image_part(b"")]}]}
    body["messages"][0]["content"][0]["image_url"]["url"] = url  # type: ignore[index]
    headers = {"Authorization": f"Bearer {KEY}"}
    refused = requests.post(
        f"{service.url}/v1/chat/completions", json=body, headers=headers, timeout=20
    )
    assert refused.status_code == 413 and "16 MB" in refused.text
    assert not {asked.method for asked in backend.asked} & {"POST", "PUT"}


def test_a_file_as_the_prompt_is_the_prompt(
    serve: Serve, backend: Backend, folder: Path
) -> None:
    service = over_chatgpt(serve, backend)
    answer = asked(service, folder, "prompt=@list.csv", "image=@/dev/null;filename=")
    assert "You said: a,b\n1,2\n" in answer["data"]["message"]
    assert backend.files == {}


def test_the_official_sdk_over_chatgpt(serve: Serve, backend: Backend) -> None:
    service = over_chatgpt(serve, backend)
    client = openai.OpenAI(
        base_url=f"{service.url}/v1", api_key=KEY, max_retries=0, timeout=20
    )
    parts: Any = [
        {"type": "text", "text": "what is it"},
        image_part(png(9, 8)),
        file_part(PDF),
    ]
    stream = client.chat.completions.create(
        model="gpt-4", messages=[{"role": "user", "content": parts}], stream=True
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert "what is it [sees image.png, notes.pdf]" in text
    given: Any = [
        {"type": "input_text", "text": "and this"},
        {"type": "input_image", "image_url": data_url(png(9, 8)), "detail": "auto"},
    ]
    response = client.responses.create(
        model="gpt-4", input=[{"role": "user", "content": given}]
    )
    assert "and this [sees image.png]" in response.output_text
    linked: Any = [{"type": "image_url", "image_url": {"url": "https://a.example/x"}}]
    with pytest.raises(openai.PermissionDeniedError, match="UPLOAD_BY_URL"):
        client.chat.completions.create(
            model="gpt-4", messages=[{"role": "user", "content": linked}]
        )


@pytest.mark.parametrize("route", ["ask", "v1/chat/completions"])
def test_forty_uploads_at_once_take_memory_for_their_bodies_alone(
    serve: Serve, backend: Backend, route: str
) -> None:
    service = over_chatgpt(serve, backend)
    headers = {"Authorization": f"Bearer {KEY}"}
    size = 3_000_000
    picture = png(9, 8, filling=size)

    def one(number: int) -> tuple[int, bool]:
        if route == "ask":
            answer = requests.post(
                f"{service.url}/ask",
                data={"prompt": f"number {number}."},
                files={"image": ("x.png", picture)},
                headers=headers,
                timeout=100,
            )
        else:
            parts = [{"type": "text", "text": f"number {number}."}, image_part(picture)]
            body = {"messages": [{"role": "user", "content": parts}]}
            url = f"{service.url}/{route}"
            answer = requests.post(url, json=body, headers=headers, timeout=100)
        is_its_own = f"number {number}. [sees" in answer.json().__str__()
        return answer.status_code, is_its_own or answer.status_code == 503

    before = service.resident()
    peaks = []
    with ThreadPoolExecutor(40) as pool:
        for status, is_its_own in pool.map(one, range(80)):
            assert is_its_own and status in (200, 503)
            peaks.append(service.resident())
    answers = [one(number) for number in range(3)]
    assert [status for status, _ in answers] == [200] * 3
    bodies = 40 * size // 1024**2
    assert max(peaks) - before < 1.5 * bodies, (before, peaks)
