"""What the names of models mean: aliases, the defaults of 2023, and names that nothing has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from flask import Flask

from relay.domain import Caller, Model
from relay.errors import ModelNotFound, TokenRejected
from relay.models import FRESH_SECONDS, LIST_SECONDS, ModelCatalog
from relay.settings import Settings, SettingsError
from relay.upstreams.openai import OpenAI
from tests.chatgpt_backend import Backend
from tests.openai_backend import OpenAIBackend
from tests.scripted import Scripted
from tests.turns import Clock

Build = Callable[..., Flask]
OWNER = Caller("owner", may_spend=True)
WITH_TOKEN = replace(OWNER, token="sk-invented-of-a-caller")
KEY = {"Authorization": "Bearer the-client-key-0"}


class Listing(Scripted):
    """An upstream whose list a test changes; `failure` instead of it. `listed`: how often it was asked for."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.names = names
        self.failure: Exception | None = None
        self.listed = 0

    def models(self, caller: Caller) -> tuple[Model, ...]:
        self.listed += 1
        if self.failure is not None:
            raise self.failure
        return tuple(Model(name, name, self.name) for name in self.names)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def ids(models: Any) -> list[str]:
    return [model.id for model in models]


def test_a_list_is_kept_for_an_hour_for_the_servers_own_accounts(clock: Clock) -> None:
    upstream = Listing("qwen3")
    catalog = ModelCatalog(clock=clock)
    assert ids(catalog.list(upstream, OWNER)) == ["qwen3"]
    upstream.names = ("qwen3", "gemma")
    clock.now += LIST_SECONDS - 1
    assert ids(catalog.list(upstream, OWNER)) == ["qwen3"] and upstream.listed == 1
    clock.now += 1
    assert ids(catalog.list(upstream, OWNER)) == ["qwen3", "gemma"]


def test_the_list_of_a_callers_own_token_is_never_kept(clock: Clock) -> None:
    upstream = Listing("theirs")
    catalog = ModelCatalog(clock=clock)
    for number in (1, 2):
        assert ids(catalog.list(upstream, WITH_TOKEN)) == ["theirs"]
        assert upstream.listed == number
    upstream.names = ("ours",)
    assert ids(catalog.list(upstream, OWNER)) == ["ours"]
    upstream.names = ("theirs",)
    assert ids(catalog.list(upstream, WITH_TOKEN)) == ["theirs"]
    assert ids(catalog.list(upstream, OWNER)) == ["ours"]


def test_each_upstream_has_a_list_of_its_own() -> None:
    one, other = Listing("one"), Listing("other")
    other.name = "other"
    catalog = ModelCatalog()
    assert ids(catalog.list(one, OWNER)) == ["one"]
    assert ids(catalog.list(other, OWNER)) == ["other"]


def test_a_failure_is_not_kept(clock: Clock) -> None:
    upstream = Listing("qwen3")
    upstream.failure = TokenRejected("No.")
    catalog = ModelCatalog(clock=clock)
    for _ in range(2):
        with pytest.raises(TokenRejected):
            catalog.list(upstream, OWNER)
    upstream.failure = None
    assert ids(catalog.list(upstream, OWNER)) == ["qwen3"]


@pytest.mark.parametrize("checks", [True, False])
@pytest.mark.parametrize(
    "name",
    [
        "gpt-3.5-turbo",
        "gpt-3.5-turbo-0613",
        "GPT-3.5-Turbo-16k",
        "text-davinci-002-render-sha",
        "text-davinci-003",
        "auto",
    ],
)
def test_a_default_of_2023_means_none_where_nothing_has_it(
    name: str, checks: bool
) -> None:
    catalog = ModelCatalog(checks=checks)
    assert catalog.name_for(Listing("qwen3"), OWNER, name) is None
    assert catalog.name_for(Listing("qwen3", name), OWNER, name) is None, "kept"
    has_it = Listing("qwen3", name)
    has_it.name = "another"
    assert catalog.name_for(has_it, OWNER, name) == name


@pytest.mark.parametrize("name", ["gpt-4", "gpt-3.5", "davinci", "x-gpt-3.5-turbo"])
def test_other_names_go_as_they_are_and_nothing_is_listed_for_them(name: str) -> None:
    upstream = Listing("qwen3")
    assert ModelCatalog().name_for(upstream, OWNER, name) == name
    assert ModelCatalog().name_for(upstream, OWNER, None) is None
    assert ModelCatalog().name_for(upstream, OWNER, "") is None
    assert upstream.listed == 0


def test_no_list_is_asked_for_with_a_callers_token_unless_names_are_checked() -> None:
    upstream = Listing("qwen3")
    named = ModelCatalog().name_for(upstream, WITH_TOKEN, "gpt-3.5-turbo")
    assert named == "gpt-3.5-turbo" and upstream.listed == 0
    checking = ModelCatalog(checks=True)
    assert checking.name_for(upstream, WITH_TOKEN, "gpt-3.5-turbo") is None
    assert upstream.listed == 1


def test_a_name_goes_as_it_is_where_the_list_is_not_known(clock: Clock) -> None:
    upstream = Listing("qwen3")
    upstream.failure = TokenRejected("No.")
    catalog = ModelCatalog(checks=True, clock=clock)
    for name in ("gpt-3.5-turbo", "gpt-5", "gpt-6"):
        assert catalog.name_for(upstream, OWNER, name) == name
    assert upstream.listed == 1, "a failed look-up is not repeated by every ask"
    clock.now += FRESH_SECONDS
    upstream.failure = None
    assert catalog.name_for(upstream, OWNER, "gpt-3.5-turbo") is None
    nothing = Listing()
    nothing.name = "another"
    assert catalog.name_for(nothing, OWNER, "gpt-5") == "gpt-5"


def test_a_name_that_is_not_listed_is_refused_with_the_nearest(clock: Clock) -> None:
    upstream = Listing("qwen3:8b", "Qwen3:32b", "gemma3:latest", "models/flash")
    catalog = ModelCatalog(checks=True, clock=clock)
    with pytest.raises(ModelNotFound) as refused:
        catalog.name_for(upstream, OWNER, "qwen3")
    assert "no model qwen3" in refused.value.message
    assert "Nearest: qwen3:8b, Qwen3:32b" in refused.value.message
    assert "qwen3 " not in refused.value.reason, "a caller's words are not logged"
    with pytest.raises(ModelNotFound) as refused:
        catalog.name_for(upstream, OWNER, "你" * 100_000)
    assert "Nearest" not in refused.value.message and len(refused.value.message) < 300
    for name in ("qwen3:8b", "gemma3", "gemma3:latest", "flash"):
        assert catalog.name_for(upstream, OWNER, name) == name


def test_a_new_model_is_found_within_a_minute(clock: Clock) -> None:
    upstream = Listing("qwen3")
    catalog = ModelCatalog(checks=True, clock=clock)
    catalog.list(upstream, OWNER)
    upstream.names = ("qwen3", "gemma3")
    for _ in range(3):
        with pytest.raises(ModelNotFound):
            catalog.name_for(upstream, OWNER, "gemma3")
    assert upstream.listed == 1
    clock.now += FRESH_SECONDS
    assert catalog.name_for(upstream, OWNER, "gemma3") == "gemma3"
    assert catalog.find(upstream, OWNER, "gemma3").id == "gemma3"
    assert upstream.listed == 2


def test_a_model_is_found_by_its_name_or_alias() -> None:
    catalog = ModelCatalog({"gpt-4": "qwen3:8b"})
    upstream = Listing("qwen3:8b")
    assert catalog.find(upstream, OWNER, "gpt-4").id == "qwen3:8b"
    with pytest.raises(ModelNotFound, match="Nearest: qwen3:8b"):
        catalog.find(upstream, OWNER, "qwen3:4b")
    upstream.failure = TokenRejected("No.")
    with pytest.raises(TokenRejected):
        ModelCatalog().find(upstream, OWNER, "qwen3:8b")


@pytest.mark.parametrize(
    ("value", "aliases"),
    [
        (
            "gpt-3.5-turbo=qwen3,gpt-4=qwen3:32b",
            {"gpt-3.5-turbo": "qwen3", "gpt-4": "qwen3:32b"},
        ),
        (" a = b/c ,", {"a": "b/c"}),
    ],
)
def test_aliases_are_read(value: str, aliases: dict[str, str]) -> None:
    assert Settings.from_env({"MODEL_ALIASES": value}).model_aliases == aliases


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("gpt-4", "NAME=NAME"),
        ("=b", "NAME=NAME"),
        ("a=", "NAME=NAME"),
        ("a=b=c", "NAME=NAME"),
        ("a b=c", "NAME=NAME"),
        ("a=b,a=c", "twice"),
        ("a=b,b=c", "alias itself"),
        ("a=a", "alias itself"),
        (",", "no value"),
    ],
)
def test_aliases_that_cannot_be_read_refuse_the_start(value: str, hint: str) -> None:
    with pytest.raises(SettingsError, match=f"^MODEL_ALIASES cannot be read: .*{hint}"):
        Settings.from_env({"MODEL_ALIASES": value})


# through the service


def test_an_alias_counts_on_every_route(build: Build) -> None:
    upstream = Scripted()
    client = build(upstream, model_aliases={"gpt-4": "qwen3"}).test_client()
    client.post("/ask", data={"msg": "x", "model": "gpt-4"})
    client.post("/send_message", data={"prompt": "x", "model": "gpt-4"})
    message = {"role": "user", "content": "x"}
    client.post("/chat", json={"messages": [message], "model": "gpt-4"}).get_data()
    client.post("/ask", data={"msg": "x", "model": "gpt-5"})
    client.post("/ask", data={"msg": "x"})
    models = [question.model for question in upstream.asked]
    assert models == ["qwen3", "qwen3", "qwen3", "gpt-5", None]


def test_an_alias_is_no_other_ask_to_an_idempotency_key(build: Build) -> None:
    fields = {"msg": "x", "model": "gpt-4", "request_id": "a-key"}
    plain = build().test_client().post("/ask", data=fields)
    aliased = build(model_aliases={"gpt-4": "qwen3"}).test_client()
    again = aliased.post("/ask", data=fields)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.json == plain.json


def client_of(build: Build, api: OpenAIBackend, **settings: Any) -> Any:
    given = {
        "openai_base_url": api.url,
        "openai_api_key": ("sk-invented-1",),
        "authorization": ("the-client-key-0",),
        **settings,
    }
    return build(**given).test_client()


def asked_models(api: OpenAIBackend) -> list[str]:
    return [asked.body["model"] for asked in api.completions]


def test_a_client_of_2023_gets_the_model_that_there_is(
    build: Build, api: OpenAIBackend
) -> None:
    client = client_of(build, api)
    for _ in range(2):
        answer = client.post(
            "/ask", data={"msg": "x", "model": "gpt-3.5-turbo"}, headers=KEY
        )
        assert answer.status_code == 200
    assert asked_models(api) == ["tiny-1", "tiny-1"]
    set_model = client_of(build, api, openai_model="tiny-2")
    set_model.post("/ask", data={"msg": "x", "model": "gpt-3.5-turbo"}, headers=KEY)
    assert asked_models(api)[-1] == "tiny-2"


def test_a_checked_name_is_refused_and_nothing_is_asked_or_kept(
    build: Build, api: OpenAIBackend
) -> None:
    client = client_of(build, api, check_model=True)
    refused = client.post("/ask", data={"msg": "x", "model": "tiny-3"}, headers=KEY)
    assert (refused.status_code, refused.json["error"]) == (404, "model_not_found")
    assert "Nearest: tiny-" in refused.json["msg"] and not api.completions
    assert client.get("/conversations", headers=KEY).json == []
    taken = client.post("/ask", data={"msg": "x", "model": "tiny-2"}, headers=KEY)
    assert taken.status_code == 200 and asked_models(api) == ["tiny-2"]


def test_chatgpt_is_asked_for_its_default_by_a_name_of_2023(
    build: Build, backend: Backend
) -> None:
    client = build(
        reverse_proxy=backend.url,
        access_token=("token-1",),
        authorization=("the-client-key-0",),
    ).test_client()
    for model in ("text-davinci-002-render-sha", "gpt-4", "auto", "gpt-9"):
        client.post("/ask", data={"msg": "x", "model": model}, headers=KEY)
    assert [turn.body["model"] for turn in backend.turns] == [
        "auto",
        "gpt-4",
        "auto",
        "gpt-9",
    ]


def test_the_service_offers_all_of_it(build: Build, api: OpenAIBackend) -> None:
    app = build(
        openai_base_url=api.url,
        openai_api_key=("sk-invented-1",),
        authorization=("the-client-key-0",),
        model_aliases={"gpt-4": "tiny-2"},
        check_model=True,
    )
    service = app.extensions["service"]
    assert isinstance(service.upstreams["openai"], OpenAI)
    assert service.model_for("gpt-4") == "tiny-2"
    assert service.model_for("other") == "other" and service.model_for("") == ""
    assert ids(service.listed_models(OWNER)) == ["tiny-1", "tiny-2"]
    name_for = partial(service.catalog.name_for, service.upstreams["openai"], OWNER)
    assert name_for("gpt-4") == "tiny-2"
    assert name_for("gpt-3.5-turbo") is None
    assert name_for(None) is None
    assert service.find_model(OWNER, "gpt-4").id == "tiny-2"
    with pytest.raises(ModelNotFound):
        name_for("tiny-3")
    assert len(api.asked) == 1
    assert ids(service.models(OWNER)) == ["tiny-1", "tiny-2"]
    assert len(api.asked) == 2, "GET /models shows what there is now"
