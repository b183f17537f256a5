"""Seed 1's document, tried whole: a token by e-mail and password, then questions with it; and what is left of both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import requests

from tests.chatgpt_backend import Backend
from tests.processes import Service, curl
from tests.signin_pages import EMAIL, PASSWORD, SignInPages

Start = Callable[..., Service]


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_token_then_questions_with_it(
    serve: Start, pages: SignInPages, backend: Backend, tmp_path: Path
) -> None:
    """Both steps with the document's own calls; nothing of the password or the token stays anywhere."""
    service = serve(
        **pages.settings,
        REVERSE_PROXY=f"{backend.url}/backend-api/conversation",
        AUTHORIZATION="the-client-key-0",
        LOG_LEVEL="debug",
    )
    form = ["--data-urlencode", f"email={EMAIL}"]
    form += ["--data-urlencode", f"password={PASSWORD}", "-d", "proxy="]
    answer = curl(*form, f"{service.url}/get_access_token").stdout
    [token] = pages.tokens
    expires = "2099-01-31T10:00:00.000Z"
    first = requests.models.complexjson.loads(answer)
    assert first.keys() == {"access_token", "expires"}
    assert first["access_token"] == token and first["expires"] < expires
    ask = {"access_token": token, "prompt": "你好", "timeout": "60000"}
    url = f"{service.url}/send_message"
    reply = requests.post(url, data=ask, timeout=10).json()
    assert reply.keys() == {"text", "conversation_id", "parent_message_id"}
    more = {**ask, **{name: reply[name] for name in reply.keys() - {"text"}}}
    again = requests.post(url, data=more, timeout=10).json()
    assert "Turn 2." in again["text"]
    bearer = {"Authorization": f"Bearer {token}"}
    listed = requests.get(f"{service.url}/conversations", headers=bearer, timeout=10)
    assert listed.ok and listed.json()
    assert backend.turns[0].headers["authorization"] == f"Bearer {token}"
    wrong = {"email": EMAIL, "password": PASSWORD + "-wrong"}
    refused = requests.post(f"{service.url}/get_access_token", data=wrong, timeout=10)
    assert refused.status_code == 500 and list(refused.json()) == ["message"]
    assert "password is wrong" in refused.json()["message"]
    service.stop()
    files = files_below(tmp_path)
    assert service.log in files and len(files) > 1
    for path in files:
        kept = path.read_bytes()
        for secret in (PASSWORD, "p%25ss", "rd%26x", "rd&x=1", token, EMAIL, "code="):
            assert secret.encode() not in kept, path
    assert PASSWORD not in refused.text


def test_every_failure_is_500_and_a_message(serve: Start, pages: SignInPages) -> None:
    service = serve(**pages.settings)
    url = f"{service.url}/get_access_token"
    for body in ({}, {"email": EMAIL}, {"email": EMAIL, "password": "wrong"}):
        answer = requests.post(url, data=body, timeout=10)
        assert answer.status_code == 500
        assert list(answer.json()) == ["message"] and answer.json()["message"]
    broken = requests.post(url, data="{", timeout=10)
    assert broken.status_code == 500 and list(broken.json()) == ["message"]
