"""Conversations listed, read, renamed and deleted, wherever their text lives: here, or at an upstream.

One that lives at an upstream has the upstream's title. The index learns it whenever the upstream shows it, so that a
list, a search and the conversation itself have the same one.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import field
from datetime import datetime
from typing import Any, TypeAlias

from relay.domain import UNTITLED, Caller, Conversation, Message, StoredTurn
from relay.downloads import Download
from relay.errors import (
    BadRequest,
    NoConversation,
    NoFile,
    StoreFailed,
    UpstreamError,
    UpstreamGone,
)
from relay.store import Store
from relay.upstreams import FoundFile, History
from relay.values import frozen

log = logging.getLogger(__name__)

LONGEST_TITLE = 200  # characters of an upstream's title that the index keeps
PAGE = 100  # rows of the index that are read at once

#: a row of the index, or an upstream's own object
Item: TypeAlias = "Conversation | dict[str, Any]"


@frozen
class Page:
    """A page of conversations. `missing`: why those of an upstream are not among them."""

    items: list[Item] = field(repr=False)
    missing: UpstreamError | None = None


@frozen
class Located:
    """Where a conversation is: its index row, and the history that has its text; None: it is stored here."""

    id: str
    row: Conversation | None
    history: History | None

    @property
    def account(self) -> str | None:
        return self.row.account if self.row else None


class Conversations:
    """Conversations are found by their ids, and by their owners' names for them.

    `sole_owner`: there is one client key at most, so what the server's accounts have is that owner's.
    """

    def __init__(
        self, store: Store, histories: Mapping[str, History], sole_owner: bool
    ) -> None:
        self._store = store
        self._histories = histories
        self._sole_owner = sole_owner

    def list(self, caller: Caller, offset: int, limit: int, search: str = "") -> Page:
        """Newest first. What an upstream does not show is still found through the index.

        With `search`: those that have it in the title, or in a text that is stored here. Raises
        RelayError where a caller's own account cannot be read.
        """
        if search:
            return self._search(caller, offset, limit, search)
        most = offset + limit
        rows = {row.id: row for row in self._store.list(caller.owner, 0, most)}
        items: dict[str, Item] = {**rows}
        missing = None
        for history in self._reachable(caller):
            try:
                for item in history.list(caller, most):
                    row = rows.get(item["id"])
                    items[item["id"]] = self._with_title(caller, row, item)
            except UpstreamError as error:
                if caller.token:
                    raise
                log.warning(
                    "Conversations at the upstream could not be listed: %s", error.code
                )
                missing = error
        newest_first = sorted(items.values(), key=_updated, reverse=True)
        return Page(newest_first[offset:most], missing)

    def _search(self, caller: Caller, offset: int, limit: int, search: str) -> Page:
        self._check_account(caller)
        return Page([*self._store.list(caller.owner, offset, limit, search)])

    def _check_account(self, caller: Caller) -> None:
        """Raise RelayError for an account that is not the caller's own: its upstream does not accept the token."""
        if caller.unverified:
            for history in self._reachable(caller):
                history.list(caller, 1)

    def row_of(self, caller: Caller, conversation_id: str) -> Conversation | None:
        """The index row of a conversation, for a request that passes to where it lives; None where there is none.

        Raises NoConversation for another owner's, and for one without a row that the caller may
        not see: an account of the server's may be that of several owners.
        """
        if "\0" in conversation_id:
            raise NoConversation()
        row = self._store.find(conversation_id)
        if row is None and not caller.token and not self._sole_owner:
            raise NoConversation()
        owners = (caller.owner, caller.former_owner)
        if row is not None and row.owner not in owners:
            raise NoConversation()
        return row

    def read(self, caller: Caller, conversation_id: str) -> Item:
        """One conversation with all its messages. Raises NoConversation."""
        found = self._locate(caller, conversation_id)
        if found.history is None:
            return self._store.get(caller.owner, found.id)
        item = found.history.read(caller, found.id, found.account)
        return self._with_title(caller, found.row, item)

    def _with_title(
        self, caller: Caller, row: Conversation | None, item: dict[str, Any]
    ) -> dict[str, Any]:
        """An upstream's object, with the row's title where it has none. The row learns the upstream's."""
        if row is None:
            return item
        title = _title_of(item)
        if not title:
            return {**item, "title": row.title}
        if title != row.title:
            # a row that was deleted meanwhile, or cannot be written, withholds nothing
            with suppress(NoConversation, StoreFailed):
                self._store.rename(caller.owner, row.id, title)
        return item

    def find_file(self, caller: Caller, download: Download) -> FoundFile:
        """Where the file of a link is; see `check_file`. Blocks; raises RelayError."""
        self.check_file(download)
        history = self._histories.get(download.upstream)
        if history is None:
            raise NoFile()
        there = download.conversation_id
        return history.find_file(caller, there, download.account, download.file)

    def check_file(self, download: Download) -> None:
        """Raise NoFile for the file of a conversation that was kept, and is its owner's no more."""
        if not download.row:
            return
        row = self._store.find(download.row)
        if row is None or row.owner != download.owner:
            raise NoFile()

    def place_of_files(self, caller: Caller, conversation_id: str) -> Download:
        """Where the files of a conversation at an upstream are, whose `read` gave it. Raises NoConversation."""
        found = self._locate(caller, conversation_id)
        upstreams = self._histories.items()
        names = [name for name, history in upstreams if history is found.history]
        own = bool(caller.token)
        row = found.row.id if found.row else ""
        owner = found.row.owner if found.row else caller.owner
        account = None if own else found.account
        return Download(owner, "".join(names), account, found.id, row, own)

    def rename(self, caller: Caller, conversation_id: str, title: str) -> None:
        found = self._locate(caller, conversation_id)
        if found.history is not None:
            changes = {"title": title}
            found.history.change(caller, found.id, found.account, changes)
        if found.row is not None:
            self._store.rename(caller.owner, found.id, title)

    def make_title(self, caller: Caller, conversation_id: str) -> str:
        """Let the upstream find a title, and set it. Raises BadRequest where the conversation is stored here."""
        found = self._locate(caller, conversation_id)
        if found.history is None:
            raise BadRequest(
                "Conversations that are stored here get no title by themselves: send "
                "one in the field title."
            )
        return self._find_title(caller, found, found.history)

    def find_title(self, caller: Caller, conversation_id: str) -> str:
        """The same; of a conversation that is stored here its own title, which its first prompt gave it."""
        found = self._locate(caller, conversation_id)
        if found.history is None:
            return found.row.title if found.row else UNTITLED
        return self._find_title(caller, found, found.history)

    def _find_title(self, caller: Caller, found: Located, history: History) -> str:
        title = history.make_title(caller, found.id, found.account)
        if found.row is not None:
            self._store.rename(caller.owner, found.id, title)
        return title

    def delete(self, caller: Caller, conversation_id: str) -> None:
        found = self._locate(caller, conversation_id)
        try:
            if found.history is not None:
                changes = {"is_visible": False}
                found.history.change(caller, found.id, found.account, changes)
        except NoConversation:
            # it was deleted there before; what a token merely claims proves nothing
            if found.row is not None and not caller.unverified:
                self._store.delete(caller.owner, found.id)
            raise
        if found.row is not None:
            self._store.delete(caller.owner, found.id)

    def turn(self, caller: Caller, answer_id: str) -> StoredTurn:
        """One answer that is stored here, with its question. Raises NoConversation."""
        return self._store.turn(caller.verified_owner, answer_id)

    def path(self, caller: Caller, answer_id: str) -> tuple[Message, ...]:
        """The messages up to an answer that is stored here. Raises NoConversation."""
        return self._store.path(caller.verified_owner, answer_id)

    def delete_turn(self, caller: Caller, answer_id: str) -> None:
        """Delete an answer that is stored here, and its question. Raises NoConversation."""
        self._store.delete_turn(caller.verified_owner, answer_id)

    def delete_all(self, caller: Caller) -> None:
        """Delete all that the index has of the caller's, at its upstreams too.

        Raises RelayError where one at an upstream cannot be deleted; those before it are.
        """
        self._check_account(caller)
        self._store.delete_stored_here(caller.owner)
        for conversation_id in self._ids(caller.owner):
            with suppress(NoConversation):
                self.delete(caller, conversation_id)

    def _ids(self, owner: str) -> Sequence[str]:
        """The ids of all conversations of an owner."""
        ids: dict[str, None] = {}
        while page := self._store.list(owner, len(ids), PAGE):
            ids.update((row.id, None) for row in page)
            if len(page) < PAGE:
                break
        return [*ids]

    def _locate(self, caller: Caller, conversation_id: str) -> Located:
        """Raises NoConversation for another owner's, UpstreamGone for one whose upstream is not open."""
        if "\0" in conversation_id:  # no database takes that
            raise NoConversation()
        row = self._find(caller, conversation_id)
        if row is None:
            reachable = self._reachable(caller)
            if not reachable:
                raise NoConversation()
            return Located(conversation_id, None, reachable[0])
        is_former = row.remote and row.owner == caller.former_owner
        if row.owner != caller.owner and not is_former:
            raise NoConversation()
        if not row.remote:
            return Located(row.id, row, None)
        if row.upstream not in self._histories:
            raise UpstreamGone(
                f"This conversation lives at the upstream {row.upstream}, which is not "
                "open any more."
            )
        history = self._histories[row.upstream]
        if is_former:
            self._take_over(caller, row, history)
        return Located(row.id, row, history)

    def _find(self, caller: Caller, name: str) -> Conversation | None:
        """The index row of an id, or of a name that the caller has given."""
        row = self._store.find(name)
        if row is not None and row.owner in (caller.owner, caller.former_owner):
            return row
        return self._store.find_named(caller.owner, name) or row

    def _take_over(self, caller: Caller, row: Conversation, history: History) -> None:
        """Make a conversation the caller's that an older version gave to the caller's whole workspace.

        Only its upstream can say whose it is: raises RelayError where that does not show it.
        """
        history.read(caller, row.id, row.account)
        self._store.take_over(row.id, row.owner, caller.owner)

    def _reachable(self, caller: Caller) -> Sequence[History]:
        """The histories whose conversations this caller may see without an index row, too."""
        histories = self._histories.values()
        if caller.token:
            return [h for h in histories if h.recognizes(caller.token)]
        if self._sole_owner and caller.may_spend:
            return [history for history in histories if history.has_accounts]
        return []


def _title_of(item: dict[str, Any]) -> str:
    """An upstream's title as the index has it: on one line, and short; "" where there is none."""
    title = item.get("title")
    if not isinstance(title, str):
        return ""
    line = " ".join(title[: 10 * LONGEST_TITLE].replace("\0", " ").split())
    return "" if line == UNTITLED else line[:LONGEST_TITLE]


def _updated(item: Item) -> float:
    """When a conversation was last used; upstreams give it as ISO 8601 or as seconds, or not at all."""
    if isinstance(item, Conversation):
        return item.updated
    value = item.get("update_time") or item.get("create_time")
    if isinstance(value, (int, float)):
        return float(value)
    try:
        return datetime.fromisoformat(str(value).replace("Z", "+00:00")).timestamp()
    except ValueError:
        return 0.0
