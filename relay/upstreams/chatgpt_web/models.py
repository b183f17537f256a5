"""What callers' names of models mean at ChatGPT's web backend, and which account has which model."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection

from relay.accounts import Account
from relay.values import frozen

DEFAULT_MODEL = "auto"
LIST_SECONDS = 3600.0  # that an account's list is believed
MOST_LISTS = 1000
#: of a GPT: its id alone, or as chat2api has it
_GPT = re.compile(r"(?:gpt-4o?-gizmo-)?(g-(?:p-)?[A-Za-z0-9]{8,64})")
#: names of OpenAI's API with what the backend's own have not: a date, a size, a kind. Source: protocol notes, 13.4
_OF_THE_API = re.compile(
    r"(chatgpt-4o|gpt-4o-mini|gpt-4o|gpt-4|o1-preview|o1-mini|o1)"
    r"(?:-latest|-(?:turbo|32k|vision))*(?:-preview)?"
    r"(?:-[0-9]{4}(?:-[0-9]{2}-[0-9]{2})?)?(?:-(?:vision-)?preview)?"
)


@frozen
class ModelChoice:
    """`slug`: the backend's own name of a model. `gpt`: the id of the GPT that is asked; "" for none."""

    slug: str
    gpt: str = ""


def choose_model(name: str | None) -> ModelChoice:
    """What a caller's name means. The model of a GPT is its maker's choice; current names pass as they are."""
    if not name:
        return ModelChoice(DEFAULT_MODEL)
    if gpt := _GPT.fullmatch(name):
        return ModelChoice(DEFAULT_MODEL, gpt[1])
    if known := _OF_THE_API.fullmatch(name):
        return ModelChoice(known[1].removeprefix("chat"))
    return ModelChoice(name)


class ModelLists:
    """Which models each account listed last; shared by all threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lists: dict[str, tuple[float, frozenset[str]]] = {}

    def learn(self, account: str, slugs: Collection[str]) -> None:
        """The account of this name listed these."""
        if len(self._lists) >= MOST_LISTS:
            self._lists.clear()
        self._lists[account] = (self._clock() + LIST_SECONDS, frozenset(slugs))

    def in_order(self, accounts: tuple[Account, ...], slug: str) -> tuple[Account, ...]:
        """The accounts, those last that are known not to have the model."""
        return tuple(sorted(accounts, key=lambda each: self.lacks(each.name, slug)))

    def lacks(self, account: str, slug: str) -> bool:
        """Whether the account is known not to have the model."""
        until, slugs = self._lists.get(account, (0.0, frozenset()))
        is_known = bool(slugs) and slug != DEFAULT_MODEL and self._clock() < until
        return is_known and slug not in slugs
