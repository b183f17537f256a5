"""The models of each upstream, and what the names mean by which callers ask for them."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches

from relay.domain import Caller, Model
from relay.errors import ModelNotFound, RelayError
from relay.upstreams import Upstream
from relay.values import frozen

log = logging.getLogger(__name__)

LIST_SECONDS = 3600.0  # a list is used for so long
FRESH_SECONDS = 60.0  # a name that stands in no list is looked for again after so long
MOST_NEAREST = 3
NEAR = 0.4  # of difflib's ratio
LONGEST_COMPARED = 100  # characters of a name; difflib's time grows with their square
MOST_COMPARED = 2000
#: names that clients send unasked: what was everybody's default in 2023, and ChatGPT's own word for its default
_DEFAULTS = re.compile(r"(?i:auto|(gpt-3\.5-turbo|text-davinci-00[23])(-[a-z0-9-]+)?)")


@frozen
class _Listing:
    """A list, or no models where it could not be had; and when that was, in monotonic seconds."""

    models: Sequence[Model]
    at: float


class ModelCatalog:
    """Knows the models of each upstream as far as they were asked for; shared by all threads.

    `aliases`: other names of models. `checks`: a name that an upstream does not list is refused,
    where its list is known. Lists are kept for the server's own accounts alone.
    """

    def __init__(
        self,
        aliases: Mapping[str, str] | None = None,
        checks: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._aliases = dict(aliases or {})
        self._checks = checks
        self._clock = clock
        self._listings: dict[str, _Listing] = {}
        self._failures: dict[str, float] = {}

    def resolve(self, name: str) -> str:
        """The model's own name, for a name that may be an alias."""
        return self._aliases.get(name, name)

    def list(
        self, upstream: Upstream, caller: Caller, seconds: float = LIST_SECONDS
    ) -> Sequence[Model]:
        """The models that the upstream offers to the caller, by a list that is at most `seconds` old.

        Blocks; raises RelayError.
        """
        if caller.token is not None:
            return upstream.models(caller)
        known = self._listings.get(upstream.name)
        now = self._clock()
        if known is not None and now < known.at + seconds:
            return known.models
        models = upstream.models(caller)
        self._listings[upstream.name] = _Listing(models, now)
        return models

    def find(self, upstream: Upstream, caller: Caller, name: str) -> Model:
        """The model of a name, which may be an alias. Blocks; raises ModelNotFound, or RelayError without a list."""
        name = self.resolve(name)
        models: Sequence[Model] = ()
        for seconds in _ages(caller):
            models = self.list(upstream, caller, seconds)
            found = _find(name, models)
            if found is not None:
                return found
        raise _not_found(upstream, models, name)

    def name_for(
        self, upstream: Upstream, caller: Caller, name: str | None
    ) -> str | None:
        """The name by which the upstream is asked, for the one that a caller gave; None: none was.

        Blocks where it needs the list of models; a failure to get it changes nothing: the name goes
        as it is. Raises ModelNotFound.
        """
        if not name:
            return None
        name = self.resolve(name)
        if _DEFAULTS.fullmatch(name):
            is_foreign = self._is_foreign_default(upstream, caller, name)
            return None if is_foreign else name
        if self._checks:
            self._check(upstream, caller, name)
        return name

    def _is_foreign_default(
        self, upstream: Upstream, caller: Caller, name: str
    ) -> bool:
        """Whether a name that clients send unasked is none of this upstream's models."""
        if caller.token is not None and not self._checks:
            return (
                False  # its list is not kept, so every ask would need one more request
            )
        models = self._known(upstream, caller, LIST_SECONDS)
        return bool(models) and _find(name, models) is None

    def _check(self, upstream: Upstream, caller: Caller, name: str) -> None:
        models: Sequence[Model] = ()
        listed = upstream.listed_model(name)
        for seconds in _ages(caller):
            models = self._known(upstream, caller, seconds)
            if not models or not listed or _find(listed, models) is not None:
                return
        raise _not_found(upstream, models, name)

    def _known(
        self, upstream: Upstream, caller: Caller, seconds: float
    ) -> Sequence[Model]:
        """The same as `list`; no models where that fails, or has failed within the last minute."""
        failed = self._failures.get(upstream.name)
        if failed is not None and self._clock() < failed + FRESH_SECONDS:
            return ()
        try:
            return self.list(upstream, caller, seconds)
        except RelayError as error:
            log.info("The models of %s are not known: %s", upstream.name, error.reason)
            if caller.token is None:
                self._failures[upstream.name] = self._clock()
            return ()


def _ages(caller: Caller) -> tuple[float, ...]:
    """How old a list may be in which a name is looked for, and then a second one."""
    if caller.token is not None:
        return (LIST_SECONDS,)  # it is asked for each time, so it is new
    return LIST_SECONDS, FRESH_SECONDS


def _find(name: str, models: Sequence[Model]) -> Model | None:
    """The model of a name; servers take their names without a usual tag or prefix too."""
    names = {name, f"{name}:latest", f"models/{name}"}
    return next((model for model in models if model.id in names), None)


def _not_found(upstream: Upstream, models: Sequence[Model], name: str) -> ModelNotFound:
    shown = name[:LONGEST_COMPARED]
    ids = {
        model.id.lower(): model.id
        for model in models[:MOST_COMPARED]
        if len(model.id) <= LONGEST_COMPARED
    }
    nearest = [
        ids[key] for key in get_close_matches(shown.lower(), ids, MOST_NEAREST, NEAR)
    ]
    hint = f"Nearest: {', '.join(nearest)}. " if nearest else ""
    return ModelNotFound(
        f"The upstream {upstream.name} has no model {shown}. {hint}GET /models lists "
        "them all.",
        quoted=shown,
    )
