"""Which models an upstream offers, asked over HTTP with one account after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from relay.accounts import Account
from relay.domain import Model
from relay.errors import RelayError, UpstreamFailed, UpstreamGone
from relay.upstreams.http import WholeResponse
from relay.upstreams.wording import parse_json

Models: TypeAlias = tuple[Model, ...]


def list_with(
    accounts: Sequence[Account], list_models: Callable[[Account], Models]
) -> Models:
    """What the first account lists; another one is asked where it may help. Raises RelayError: the last refusal."""
    refusal: RelayError = UpstreamGone("No account is configured for this.")
    for account in accounts:
        try:
            return list_models(account)
        except RelayError as error:
            if not error.another_account_may_help:
                raise
            refusal = error
    raise refusal


def list_of_all(
    accounts: Sequence[Account], list_models: Callable[[Account], Models]
) -> Models:
    """What the accounts list together, each model once. Raises the first refusal where none lists any."""
    found: dict[str, Model] = {}
    refusal: RelayError | None = None
    for account in accounts:
        try:
            for model in list_models(account):
                found.setdefault(model.id, model)
        except RelayError as error:
            if not error.another_account_may_help:
                raise
            refusal = refusal or error
    if refusal is not None and not found:
        raise refusal
    return tuple(found.values())


def parse_models(
    response: WholeResponse, upstream: str, items: str, id_field: str, title_field: str
) -> Models:
    """The models of a response with status 200. `items`: the field that has the list.

    A model without a title has its id as such. Raises UpstreamFailed for what is no list.
    """
    payload = parse_json(response.body)
    listed = payload.get(items) if isinstance(payload, dict) else None
    if not isinstance(listed, list):
        raise UpstreamFailed("The upstream did not list its models.")
    names = [_names(item, id_field, title_field) for item in listed]
    return tuple(Model(name, title, upstream) for name, title in names if name)


def _names(item: Any, id_field: str, title_field: str) -> tuple[str, str]:
    """A model's id and title; both empty for what is no model."""
    name = item.get(id_field) if isinstance(item, dict) else None
    if not isinstance(name, str) or not name.isprintable():
        return "", ""
    title = item.get(title_field)
    if not isinstance(title, str) or not title:
        title = name
    return name, title
