"""Conversations listed, read, renamed and deleted, wherever their text lives: here, or at an upstream."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from relay.domain import Caller, Conversation
from relay.errors import BadRequest, NoConversation, UpstreamError, UpstreamGone
from relay.store import Store

log = logging.getLogger(__name__)


class History(Protocol):
    """Conversations that an upstream keeps. Raises only RelayError."""

    @property
    def has_accounts(self) -> bool: ...

    def knows(self, token: str) -> bool: ...

    def list(self, caller: Caller, most: int) -> list[dict[str, Any]]: ...

    def read(
        self, caller: Caller, conversation_id: str, account: str | None
    ) -> dict[str, Any]: ...

    def change(
        self,
        caller: Caller,
        conversation_id: str,
        account: str | None,
        what: dict[str, Any],
    ) -> None: ...

    def entitle(
        self, caller: Caller, conversation_id: str, account: str | None
    ) -> str: ...


@dataclass(frozen=True)
class Listed:
    """A page of conversations: rows of the index and upstreams' own items. `missing`: why it is not all of them."""

    found: list[Conversation | dict[str, Any]] = field(repr=False)
    missing: UpstreamError | None = None


class Conversations:
    """`sole_owner`: there is one client key at most, so what lies at the accounts is that owner's."""

    def __init__(
        self, store: Store, histories: Mapping[str, History], sole_owner: bool
    ) -> None:
        self._store = store
        self._histories = histories
        self._sole_owner = sole_owner

    def list(self, caller: Caller, offset: int, limit: int, search: str = "") -> Listed:
        """Newest first. What an upstream does not show is still found through the index.

        With `search`, those where it stands in the title, or in what was said, as far as that is kept here.
        """
        most = offset + limit
        if search:
            if (
                caller.claimed
            ):  # the account that the token names is its own only if it is let in
                for history in self._reachable(caller):
                    history.list(caller, 1)
            return Listed([*self._store.list(caller.owner, offset, limit, search)])
        rows = self._store.list(caller.owner, 0, most)
        found: dict[str, Conversation | dict[str, Any]] = {row.id: row for row in rows}
        missing = None
        for history in self._reachable(caller):
            try:
                found.update((item["id"], item) for item in history.list(caller, most))
            except UpstreamError as error:
                if caller.token:
                    raise
                log.warning(
                    "Conversations at the upstream could not be listed: %s", error.code
                )
                missing = error
        return Listed(
            sorted(found.values(), key=_updated, reverse=True)[offset:most], missing
        )

    def read(
        self, caller: Caller, conversation_id: str
    ) -> Conversation | dict[str, Any]:
        row, history = self._locate(caller, conversation_id)
        if history is None:
            return self._store.get(caller.owner, conversation_id)
        return history.read(caller, conversation_id, row.account if row else None)

    def rename(self, caller: Caller, conversation_id: str, title: str) -> None:
        row, history = self._locate(caller, conversation_id)
        if history is not None:
            history.change(
                caller, conversation_id, row.account if row else None, {"title": title}
            )
        if row is not None:
            self._store.rename(caller.owner, conversation_id, title)

    def entitle(self, caller: Caller, conversation_id: str) -> str:
        """Let the upstream find a title, and give it."""
        row, history = self._locate(caller, conversation_id)
        if history is None:
            raise BadRequest(
                "Conversations that are kept here get no title by themselves: send one in the field title."
            )
        title = history.entitle(caller, conversation_id, row.account if row else None)
        if row is not None:
            self._store.rename(caller.owner, conversation_id, title)
        return title

    def delete(self, caller: Caller, conversation_id: str) -> None:
        row, history = self._locate(caller, conversation_id)
        try:
            if history is not None:
                history.change(
                    caller,
                    conversation_id,
                    row.account if row else None,
                    {"is_visible": False},
                )
        except NoConversation:
            if row is not None:  # it was deleted there before
                self._store.delete(caller.owner, conversation_id)
            raise
        if row is not None:
            self._store.delete(caller.owner, conversation_id)

    def _locate(
        self, caller: Caller, conversation_id: str
    ) -> tuple[Conversation | None, History | None]:
        """The index row, and the history that has the text; None for one that is kept here."""
        if "\0" in conversation_id:  # no database is asked for such a thing
            raise NoConversation()
        row = self._store.find(conversation_id)
        if row is not None and row.owner != caller.owner:
            raise NoConversation()
        if row is not None and row.remote:
            if row.upstream not in self._histories:
                raise UpstreamGone(
                    f"This conversation lives at the upstream {row.upstream}, which is not open any more."
                )
            return row, self._histories[row.upstream]
        if row is not None:
            return row, None
        if reachable := self._reachable(caller):
            return None, reachable[0]
        raise NoConversation()

    def _reachable(self, caller: Caller) -> Sequence[History]:
        """The histories of which conversations without an index row, too, are this caller's to see."""
        histories = self._histories.values()
        if caller.token:
            return [history for history in histories if history.knows(caller.token)]
        ours = self._sole_owner and caller.may_spend
        return [history for history in histories if ours and history.has_accounts]


def _updated(found: Conversation | dict[str, Any]) -> float:
    """When a conversation was last spoken in; upstreams say it as ISO 8601 or as seconds, or not at all."""
    if isinstance(found, Conversation):
        return found.updated
    value = found.get("update_time") or found.get("create_time")
    if isinstance(value, (int, float)):
        return float(value)
    try:
        return datetime.fromisoformat(str(value).replace("Z", "+00:00")).timestamp()
    except ValueError:
        return 0.0
