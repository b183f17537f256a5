"""What the documents of the first two seeds ask for, just as they write it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import requests

from tests.chatgpt_backend import Backend
from tests.processes import Service, curl
from tests.tokens import jwt

Start = Callable[..., Service]

OWN = jwt(sub="their-own")


def test_chatgpt_api_its_second_step(serve: Start, backend: Backend) -> None:
    """A form with the caller's own token; no key, no JSON; the three keys; 500 and a message for what fails."""
    service = serve(REVERSE_PROXY=f"{backend.url}/backend-api/conversation")
    url = f"{service.url}/send_message"
    fields = {
        "access_token": OWN,
        "prompt": "你好",
        "prompt_prefix": "return the result in Chinese",
        "timeout": "60000",
    }
    first = requests.post(url, data=fields, timeout=10).json()
    assert set(first) == {"text", "conversation_id", "parent_message_id"}
    assert "return the result in Chinese\n你好" in first["text"]
    more = {
        "conversation_id": first["conversation_id"],
        "parent_message_id": first["parent_message_id"],
    }
    options = {
        "reverse_proxy": f"{backend.url}/backend-api/conversation",
        "model": "gpt-4",
        "proxy": "",
    }
    second = requests.post(url, data={**fields, **more, **options}, timeout=10).json()
    assert (
        second["conversation_id"] == first["conversation_id"]
        and "Turn 2." in second["text"]
    )
    assert (
        backend.turns[1].body["model"] == "gpt-4"
        and backend.turns[1].headers["authorization"] == f"Bearer {OWN}"
    )
    empty = {
        "conversation_id": "",
        "parent_message_id": "",
        "prompt_suffix": "",
        "timeout": "0",
    }
    assert (
        "Turn 1."
        in requests.post(url, data={**fields, **empty}, timeout=10).json()["text"]
    )
    for incomplete in (
        {"access_token": OWN},
        {"prompt": "x"},
        {**fields, "parent_message_id": "x"},
        {**fields, **more, "conversation_id": "x"},
    ):
        answer = requests.post(url, data=incomplete, timeout=10)
        assert (
            answer.status_code == 500
            and list(answer.json()) == ["message"]
            and answer.json()["message"]
        )


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "application/x-www-form-urlencoded",
        "text/plain;charset=UTF-8",
    ],
)
def test_chatgpt_webapi_its_usage(
    serve: Start, backend: Backend, content_type: str
) -> None:
    """Its compose file's variable, JSON under any type, code and data, delete with {}, history."""
    service = serve(
        access_token="the-owners",
        CHATGPT_BASE_URL=f"{backend.url}/backend-api/",
        AUTHORIZATION="none",
    )

    def ask(**fields: Any) -> dict[str, Any]:
        headers = ["-H", f"Content-Type: {content_type}"]
        answer = curl(
            "-X",
            "POST",
            *headers,
            "-d",
            json.dumps(fields, ensure_ascii=False),
            f"{service.url}/ask",
        )
        payload: dict[str, Any] = json.loads(answer.stdout)
        return payload

    first = ask(msg="你的名字")
    assert first["code"] == 0 and {"message", "parent_id", "conversation_id"} <= set(
        first["data"]
    )
    ids = {name: first["data"][name] for name in ("parent_id", "conversation_id")}
    second = ask(**ids, msg="你的名字")
    assert (
        "Turn 2." in second["data"]["message"]
        and second["data"]["conversation_id"] == ids["conversation_id"]
    )
    one = f"{service.url}/conversation/{ids['conversation_id']}"
    history = json.loads(curl(one).stdout)
    assert (
        history["current_node"] == second["data"]["parent_id"]
        and len(history["mapping"]) == 5
    )
    assert [
        item["id"] for item in json.loads(curl(f"{service.url}/conversations").stdout)
    ] == [ids["conversation_id"]]
    titled = json.loads(curl("-d", '{"title": "新的"}', f"{one}/title").stdout)
    deleted = json.loads(curl("-d", "{}", f"{one}/delete").stdout)
    assert titled["code"] == deleted["code"] == 0 and backend.trees == {}
    assert json.loads(curl("-d", "{}", f"{service.url}/ask").stdout)["code"] == 1
