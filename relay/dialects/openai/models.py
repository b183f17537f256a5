"""Models as OpenAI's API lists them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from relay.domain import Model

CREATED = 0  # seconds since 1970; not known here, and clients want a whole number


def listing(models: Sequence[Model]) -> dict[str, Any]:
    """The object that GET /v1/models answers."""
    return {"object": "list", "data": [entry(model) for model in models]}


def entry(model: Model) -> dict[str, Any]:
    """One model, as in the list and as GET /v1/models/{id} answers it."""
    return {
        "id": model.id,
        "object": "model",
        "created": CREATED,
        "owned_by": model.upstream,
    }


def engines(models: Sequence[Model]) -> dict[str, Any]:
    """The object that GET /v1/engines answers: what the API listed before it had models."""
    return {"object": "list", "data": [_engine(model) for model in models]}


def _engine(model: Model) -> dict[str, Any]:
    return {
        "id": model.id,
        "object": "engine",
        "owner": model.upstream,
        "ready": True,
    }
