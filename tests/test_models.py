"""GET /models: what the upstream of a caller's new conversations offers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import Flask

from tests.chatgpt_backend import Backend
from tests.openai_backend import OpenAIBackend
from tests.tokens import jwt

Build = Callable[..., Flask]
KEY = {"Authorization": "Bearer the-client-key-0"}


def get(app: Flask, path: str = "/models", **headers: str) -> Any:
    return app.test_client().get(path, headers={**KEY, **headers}, buffered=True)


def test_the_offline_responder_is_no_model_and_says_so(build: Build) -> None:
    [model] = build().test_client().get("/models").json
    assert model == {
        "id": "offline",
        "title": "The offline responder, which is no model",
        "upstream": "offline",
    }


def test_an_openai_compatible_api_lists_its_models(
    build: Build, api: OpenAIBackend
) -> None:
    app = build(
        openai_base_url=api.url,
        openai_api_key=("sk-invented-1",),
        openai_headers={"X-Team": "blue"},
        authorization=("the-client-key-0",),
    )
    assert get(app).json == [
        {"id": "tiny-1", "title": "tiny-1", "upstream": "openai"},
        {"id": "tiny-2", "title": "tiny-2", "upstream": "openai"},
    ]
    assert get(app, "/models?format=text").text.split() == ["tiny-1", "tiny-2"]
    text = get(app, Accept="text/plain")
    assert text.text == "tiny-1\ntiny-2\n" and text.mimetype == "text/plain"
    [first, *_] = api.asked
    assert (first.method, first.path) == ("GET", "/v1/models")
    assert first.headers["authorization"] == "Bearer sk-invented-1"
    assert first.headers["x-team"] == "blue"


def test_chatgpt_lists_its_models_with_their_titles(
    build: Build, backend: Backend
) -> None:
    app = build(
        reverse_proxy=backend.url,
        access_token=("token-1",),
        authorization=("the-client-key-0",),
    )
    assert get(app).json == [
        {"id": "gpt-4", "title": "GPT-4", "upstream": "chatgpt-web"},
        {"id": "gpt-5-mini", "title": "GPT-5 mini", "upstream": "chatgpt-web"},
    ]
    assert backend.asked[0].path == "/backend-api/models"


def test_a_callers_own_token_lists_the_models_of_its_account(
    build: Build, backend: Backend, api: OpenAIBackend
) -> None:
    app = build(
        chatgpt_base_url=(backend.url,),
        openai_base_url=api.url,
        openai_api_key=("sk-invented-1",),
        chatgpt_headers={"Cookie": "operator=1"},
    )
    own = jwt(sub="their-own")
    listed = get(app, Authorization=f"Bearer {own}").json
    assert {model["upstream"] for model in listed} == {"chatgpt-web"}
    [asked] = backend.asked
    assert asked.headers["authorization"] == f"Bearer {own}"
    assert "cookie" not in asked.headers and not api.asked


def test_another_key_lists_them_where_one_is_rejected(
    build: Build, api: OpenAIBackend
) -> None:
    app = build(
        openai_base_url=api.url,
        openai_api_key=("sk-expired-1", "sk-invented-1"),
        authorization=("the-client-key-0",),
    )
    for _ in range(2):  # whichever key's turn it is
        assert len(get(app).json) == 2


def test_a_failure_has_its_status_and_a_list_needs_a_key(
    build: Build, api: OpenAIBackend, backend: Backend
) -> None:
    app = build(
        openai_base_url=api.url,
        openai_api_key=("sk-expired-1",),
        authorization=("the-client-key-0",),
    )
    rejected = get(app)
    assert (rejected.status_code, rejected.json["error"]) == (401, "token_rejected")
    assert app.test_client().get("/models").status_code == 401
    asked = len(api.asked)
    assert app.test_client().head("/models", headers=KEY).status_code == 200
    assert len(api.asked) == asked
    backend.mode.only_asking = True
    forwarding = build(
        reverse_proxy=backend.url,
        access_token=("token-1",),
        authorization=("the-client-key-0",),
    )
    assert get(forwarding).status_code in (404, 502)


def test_what_is_no_list_of_models_is_an_error(
    build: Build, api: OpenAIBackend
) -> None:
    api.mode.models = ()
    app = build(
        openai_base_url=api.url,
        openai_api_key=("sk-invented-1",),
        authorization=("the-client-key-0",),
    )
    assert get(app).json == []
    odd = build(
        openai_base_url=f"{api.origin}/elsewhere",
        openai_api_key=("sk-invented-1",),
        authorization=("the-client-key-0",),
    )
    assert get(odd).status_code in (404, 502)
