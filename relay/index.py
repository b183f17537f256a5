"""The index rows of conversations whose requests pass to ChatGPT as they are: added, advanced and removed.

See `relay.passage.Observer`: what cannot be written is logged, and withholds nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from relay.accounts import Account
from relay.domain import (
    Conversation,
    Delta,
    Event,
    Findings,
    Finished,
    Reasoning,
    Refusal,
    Started,
    Tokens,
)
from relay.errors import NoConversation, RelayError, StoreFailed
from relay.store import Store
from relay.upstreams import Decoder
from relay.window import TextCount

log = logging.getLogger(__name__)


class TurnObserver:
    """Reads along with a turn that passes, and indexes its conversation. See `relay.usage.AnswerReader` too.

    `row`: the conversation's, as far as it is known before; its id may be "". None: the turn is forgotten.
    A classic event has the whole text so far, so it is decoded only where the next one does not have it all.
    """

    def __init__(
        self, store: Store, row: Conversation | None, decoder: Decoder
    ) -> None:
        self._model: str | None = None
        self._store = store
        self._row = row
        self._decoder = decoder
        self._text = TextCount()
        self._failed = False
        self._is_indexed = row is None
        self._last = b""  # what came last, not decoded yet
        self._text_end = -1  # in that

    @property
    def may_block(self) -> bool:
        """The conversation is written when the answer names it."""
        return not self._is_indexed

    def findings(self, asked: Callable[[], int]) -> Findings:
        """The tokens are an estimate: ChatGPT's web API states none."""
        self._decode_last()
        tokens = Tokens(asked(), self._text.tokens, estimated=True)
        return Findings(self._model, tokens, self._failed)

    def accepted(self, account: Account) -> None:
        if self._row is not None:
            self._row = replace(self._row, account=account.name)

    def feed(self, piece: bytes) -> None:
        if not self._is_said_again(piece):
            self._decode_last()
        self._last = piece
        self._text_end = _end_of_text(piece)
        if self._text_end < 0 or not self._is_indexed:
            self._decode_last()

    def _is_said_again(self, piece: bytes) -> bool:
        """Whether the piece is the last one with more at the end of its text."""
        last, end = self._last, self._text_end
        return piece.startswith(last[:end]) and piece.endswith(last[end:])

    def _decode_last(self) -> None:
        last, self._last = self._last, b""
        if last and not self._failed:
            self._decode(last)

    def _decode(self, piece: bytes) -> None:
        try:
            for event in self._decoder.feed(piece):
                self._take(event)
        except RelayError:  # the caller is told by the stream itself
            self._failed = True

    def _take(self, event: Event) -> None:
        match event:
            case Started():
                self._model = event.model or self._model
                self._begin(event.conversation_id)
            case Delta(text) | Reasoning(text) | Refusal(text):
                self._text.append(text)
            case Finished():
                self._model = event.model or self._model

    def _begin(self, conversation_id: str | None) -> None:
        if self._row is not None and conversation_id:
            self._row = replace(self._row, id=conversation_id)
            self._write(self._row)
            self._is_indexed = True

    def end(self) -> None:
        self._decode_last()
        newest = self._decoder.message_id
        if self._row is not None and self._row.id and newest:
            self._write(replace(self._row, newest=newest))

    def _write(self, row: Conversation) -> None:
        try:
            self._store.index(row)
        except StoreFailed as error:
            log.warning("A conversation could not be indexed: %s", error)


def _end_of_text(piece: bytes) -> int:
    """Where the text of a classic event seems to end; -1 for what seems to be none."""
    parts = piece.find(b'"parts"')
    return piece.find(b'"]', parts) if parts >= 0 else -1


class ChangeObserver:
    """Renames or deletes an index row with its conversation. `title`: the new one; None deletes it."""

    may_block = False

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

    may_block = False

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
