"""Models as OpenAI's API lists them."""

from __future__ import annotations

from relay.dialects.openai import models
from relay.domain import Model

QWEN = Model("qwen3:8b", "Qwen 3", "openai")


def test_a_list_of_models() -> None:
    assert models.listing([QWEN]) == {
        "object": "list",
        "data": [
            {"id": "qwen3:8b", "object": "model", "created": 0, "owned_by": "openai"}
        ],
    }
    assert models.listing(()) == {"object": "list", "data": []}


def test_one_model_is_as_in_the_list() -> None:
    assert models.entry(QWEN) == models.listing([QWEN])["data"][0]


def test_engines() -> None:
    assert models.engines([QWEN])["data"] == [
        {"id": "qwen3:8b", "object": "engine", "owner": "openai", "ready": True}
    ]
