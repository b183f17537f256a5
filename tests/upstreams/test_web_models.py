"""Names of models before ChatGPT: those of OpenAI's API, GPTs, and accounts that lack a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask

from relay.upstreams.chatgpt_web.models import (
    LIST_SECONDS,
    ModelChoice,
    ModelLists,
    choose_model,
)
from tests.chatgpt_backend import Backend
from tests.tokens import jwt
from tests.turns import Clock

Build = Callable[..., Flask]
KEY = {"Authorization": "Bearer the-client-key-0"}
PLUS, FREE = jwt(sub="plus"), jwt(sub="free")


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        (None, "auto"),
        ("", "auto"),
        ("gpt-4", "gpt-4"),
        ("gpt-4-0613", "gpt-4"),
        ("gpt-4-32k-0613", "gpt-4"),
        ("gpt-4-turbo", "gpt-4"),
        ("gpt-4-turbo-preview", "gpt-4"),
        ("gpt-4-turbo-2024-04-09", "gpt-4"),
        ("gpt-4-0125-preview", "gpt-4"),
        ("gpt-4-vision-preview", "gpt-4"),
        ("gpt-4-1106-vision-preview", "gpt-4"),
        ("gpt-4o-2024-05-13", "gpt-4o"),
        ("chatgpt-4o-latest", "gpt-4o"),
        ("gpt-4o-mini-2024-07-18", "gpt-4o-mini"),
        ("o1-preview-2024-09-12", "o1-preview"),
        ("gpt-4-1", "gpt-4-1"),
        ("gpt-4-1-mini", "gpt-4-1-mini"),
        ("gpt-4o-canmore", "gpt-4o-canmore"),
        ("gpt-4-mobile", "gpt-4-mobile"),
        ("gpt-5-5-thinking", "gpt-5-5-thinking"),
        ("o3", "o3"),
        ("text-davinci-002-render-sha", "text-davinci-002-render-sha"),
    ],
)
def test_a_name_means_a_slug(name: str | None, slug: str) -> None:
    assert choose_model(name) == ModelChoice(slug)


@pytest.mark.parametrize(
    "name", ["gpt-4-gizmo-g-AbC123xyz", "gpt-4o-gizmo-g-AbC123xyz", "g-AbC123xyz"]
)
def test_a_gpt_is_named_by_its_id(name: str) -> None:
    assert choose_model(name) == ModelChoice("auto", "g-AbC123xyz")


@pytest.mark.parametrize(
    "name", ["g-", "gpt-4-gizmo-", "gpt-4-gizmo-g-../../x", "g-a b"]
)
def test_what_is_no_gpts_id_is_the_upstreams_to_refuse(name: str) -> None:
    assert choose_model(name) == ModelChoice(name)


def test_a_list_is_believed_for_an_hour() -> None:
    clock = Clock()
    lists = ModelLists(clock)
    assert not lists.lacks("a", "gpt-5")
    lists.learn("a", ["gpt-4"])
    assert lists.lacks("a", "gpt-5") and not lists.lacks("a", "gpt-4")
    assert not lists.lacks("a", "auto") and not lists.lacks("b", "gpt-5")
    clock.now += LIST_SECONDS
    assert not lists.lacks("a", "gpt-5")


def ask(app: Flask, **fields: str) -> Any:
    return app.test_client().post("/ask", data={"msg": "hello", **fields}, headers=KEY)


def app_for(build: Build, backend: Backend, **settings: Any) -> Flask:
    backend.slugs = {FREE: ["gpt-4"], PLUS: ["gpt-4", "gpt-5-5-pro"]}
    return build(
        chatgpt_base_url=(backend.url,),
        access_token=(FREE, PLUS),
        authorization=("the-client-key-0",),
        **settings,
    )


def test_a_gpt_is_asked_on_every_route(build: Build, backend: Backend) -> None:
    app = app_for(build, backend, check_model=True)
    assert ask(app, model="gpt-4-gizmo-g-AbC123xyz").status_code == 200
    chat = {
        "model": "g-AbC123xyz",
        "messages": [{"role": "user", "content": "hello"}],
    }
    sent = app.test_client().post("/v1/chat/completions", json=chat, headers=KEY)
    assert sent.status_code == 200, sent.text
    for turn in backend.turns:
        assert turn.body["model"] == "auto"
        mode = {"kind": "gizmo_interaction", "gizmo_id": "g-AbC123xyz"}
        assert turn.body["conversation_mode"] == mode


def test_the_accounts_models_are_listed_together(
    build: Build, backend: Backend
) -> None:
    app = app_for(build, backend)
    listed = app.test_client().get("/v1/models", headers=KEY).json
    assert [model["id"] for model in listed["data"]] == ["gpt-4", "gpt-5-5-pro"]
    own = {"Authorization": f"Bearer {FREE}"}
    listed = app.test_client().get("/v1/models", headers=own).json
    assert [model["id"] for model in listed["data"]] == ["gpt-4"]


def test_an_account_that_has_the_model_is_asked_first(
    build: Build, backend: Backend
) -> None:
    app = app_for(build, backend, check_model=True)
    for _ in range(4):
        assert ask(app, model="gpt-5-5-pro").status_code == 200
    tokens = {turn.headers["authorization"] for turn in backend.turns}
    assert tokens == {f"Bearer {PLUS}"}
    assert ask(app, model="gpt-4-0613").status_code == 200


def test_a_model_that_no_account_has_is_not_found(
    build: Build, backend: Backend
) -> None:
    app = app_for(build, backend, check_model=True)
    refused = ask(app, model="gpt-5-5-ultra")
    assert refused.status_code == 404
    assert refused.headers["X-Error-Code"] == "model_not_found"
    assert "gpt-5-5-pro" in refused.json["msg"] and not backend.turns


def test_a_callers_own_account_that_lacks_the_model_is_told_so(
    build: Build, backend: Backend
) -> None:
    app = app_for(build, backend, check_model=True)
    refused = app.test_client().post(
        "/ask",
        data={"msg": "hello", "model": "gpt-5-5-pro"},
        headers={"Authorization": f"Bearer {FREE}"},
    )
    assert refused.status_code == 404
    assert refused.headers["X-Error-Code"] == "model_not_found"


def test_one_account_that_cannot_be_asked_hides_no_models(
    build: Build, backend: Backend
) -> None:
    app = app_for(build, backend)
    backend.mode.refuse_tokens = {FREE: (401, {}, b'{"detail": "Unauthorized"}')}
    listed = app.test_client().get("/v1/models", headers=KEY).json
    assert [model["id"] for model in listed["data"]] == ["gpt-4", "gpt-5-5-pro"]
