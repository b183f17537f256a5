"""The index rows of conversations whose requests pass to ChatGPT as they are: added, advanced and removed.

See `relay.passage.Observer`: what cannot be written is logged, and withholds nothing.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import replace

from relay.accounts import Account
from relay.domain import Conversation, Started
from relay.errors import NoConversation, RelayError, StoreFailed
from relay.store import Store
from relay.upstreams import Decoder

log = logging.getLogger(__name__)


class TurnObserver:
    """Indexes the conversation of a turn that passes. `row`: it, as far as it is known before; its id may be ""."""

    def __init__(self, store: Store, row: Conversation, decoder: Decoder) -> None:
        self._store = store
        self._row = row
        self._decoder = decoder
        self._reads = True

    def accepted(self, account: Account) -> None:
        self._row = replace(self._row, account=account.name)

    def feed(self, piece: bytes) -> None:
        if not self._reads:
            return
        try:
            for event in self._decoder.feed(piece):
                if isinstance(event, Started) and event.conversation_id:
                    self._row = replace(self._row, id=event.conversation_id)
                    self._write()
        except RelayError:  # the caller is told by the stream itself
            self._reads = False

    def end(self) -> None:
        newest = self._decoder.message_id
        if self._row.id and newest:
            self._row = replace(self._row, newest=newest)
            self._write()

    def _write(self) -> None:
        try:
            self._store.index(self._row)
        except StoreFailed as error:
            log.warning("A conversation could not be indexed: %s", error)


class ChangeObserver:
    """Renames or deletes an index row with its conversation. `title`: the new one; None deletes it."""

    def __init__(self, store: Store, row: Conversation, title: str | None) -> None:
        self._store = store
        self._row = row
        self._title = title

    def accepted(self, account: Account) -> None:
        with suppress(NoConversation, StoreFailed):
            if self._title is None:
                self._store.delete(self._row.owner, self._row.id)
            else:
                self._store.rename(self._row.owner, self._row.id, self._title)

    def feed(self, piece: bytes) -> None:
        pass

    def end(self) -> None:
        pass


class ClearingObserver:
    """Deletes all index rows of an owner's conversations at the account whose conversations were deleted."""

    def __init__(self, store: Store, owner: str, upstream: str) -> None:
        self._store = store
        self._owner = owner
        self._upstream = upstream

    def accepted(self, account: Account) -> None:
        with suppress(StoreFailed):
            self._store.delete_at_account(self._owner, self._upstream, account.name)

    def feed(self, piece: bytes) -> None:
        pass

    def end(self) -> None:
        pass
