"""The lists of conversations and of models as the web API has them. Pure. Source: protocol notes, section 10."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from relay.dialects import fields as read
from relay.dialects import tree
from relay.domain import Conversation, Model

MOST = 100  # conversations of a page
USUAL = 20


def limit_of(value: str | None) -> int:
    """How many conversations a page has. Raises BadRequest for more than ChatGPT gives."""
    return USUAL if value is None else read.count_of(value, "limit", most=MOST)


def conversations(
    items: Sequence[Conversation | dict[str, Any]],
    offset: int,
    limit: int,
    *,
    is_incomplete: bool,
) -> dict[str, Any]:
    """A page. `items`: what is there from `offset` on, one more than `limit` where there is more.

    `total` counts no further than that: it says whether another page follows.
    """
    return {
        "items": [tree.item(item) for item in items[:limit]],
        "total": offset + len(items),
        "limit": limit,
        "offset": offset,
        "has_missing_conversations": is_incomplete,
    }


def models(listed: Sequence[Model]) -> dict[str, Any]:
    """The object that GET models answers; all models are one category, whose default is the first."""
    default = listed[0].id if listed else ""
    category = {
        "category": "models",
        "human_category_name": "Models",
        "subscription_level": "free",
        "default_model": default,
    }
    return {
        "models": [_model(model) for model in listed],
        "categories": [category] if listed else [],
        "default_model_slug": default,
    }


def _model(model: Model) -> dict[str, Any]:
    return {
        "slug": model.id,
        "title": model.title,
        "description": "",
        "tags": [],
        "capabilities": {},
        "product_features": {},
    }
