"""What is stored of a turn while it runs and when it ends: here, of one that lives upstream, or nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from relay.domain import Conversation, KeyRecord, Reply, Started
from relay.errors import RelayError, StoreFailed
from relay.replay import completed_record, failed_record
from relay.store import OpenedTurn, Store, TurnRequest
from relay.upkeep import LEASE_SECONDS, Leases

log = logging.getLogger(__name__)


class Keeper(Protocol):
    """Records how one turn went. Each method makes one write to the store at most, and may block for it.

    `accepted` is called once at most, then `completed` or `failed` once. `returns_ids`: the
    conversation can be continued, so its ids are for the caller. `needs_text`: it stores the answer.
    """

    request: TurnRequest
    returns_ids: bool

    @property
    def needs_text(self) -> bool: ...

    def accepted(self, started: Started) -> None:
        """The upstream accepted the question."""

    def completed(self, reply: Reply) -> None:
        """The answer is whole. Raises StoreFailed where it had to be stored here and was not."""

    def failed(
        self, text: str, model: str | None, error: RelayError, sent: bool
    ) -> bool:
        """The turn failed; `text` is what came of the answer. Whether the question stays stored.

        `sent`: the upstream may have the question. Where it does not, nothing is kept, and an
        idempotency key is free again.
        """


class _StoreKeeper:
    def __init__(self, store: Store, leases: Leases, request: TurnRequest) -> None:
        self._store = store
        self._leases = leases
        self.request = request

    def accepted(self, started: Started) -> None:
        pass

    def _record_of(self, reply: Reply) -> KeyRecord | None:
        """What is kept of an answer for its key, where it has one."""
        has_key = self.request.idempotency_key is not None
        return completed_record(reply) if has_key else None


class LocalKeeper(_StoreKeeper):
    """Stores a conversation that lives here: its question and its open answer are in the store already."""

    returns_ids = True
    needs_text = True

    def completed(self, reply: Reply) -> None:
        self._store.complete_turn(self.request, reply, self._record_of(reply))
        self._leases.drop(self.request.holder)

    def failed(
        self, text: str, model: str | None, error: RelayError, sent: bool
    ) -> bool:
        try:
            if not sent and not text:
                self._store.discard_turn(self.request)
                return False
            record = failed_record(error, self.request.conversation_id)
            self._store.break_turn(self.request, text, model, error.code, record)
            return True
        finally:
            self._leases.drop(self.request.holder)


class DeferredKeeper(LocalKeeper):
    """Stores a question with its acceptance: before it, nobody has checked the token that it came with."""

    def __init__(
        self, store: Store, leases: Leases, request: TurnRequest, opened: OpenedTurn
    ) -> None:
        super().__init__(store, leases, request)
        self._opened = opened
        self._is_stored = False

    def accepted(self, started: Started) -> None:
        self._store_question()

    def _store_question(self) -> None:
        """Raises StoreFailed."""
        if not self._is_stored:
            self._store.accept_turn(self.request, self._opened, LEASE_SECONDS)
            self._is_stored = True

    def completed(self, reply: Reply) -> None:
        self._store_question()
        super().completed(reply)

    def failed(
        self, text: str, model: str | None, error: RelayError, sent: bool
    ) -> bool:
        if self._is_stored:
            return super().failed(text, model, error, sent)
        has_leases = not self.request.is_new
        try:
            if has_leases or self.request.idempotency_key is not None:
                record = failed_record(error) if sent or text else None
                self._store.release(self.request, record)
        finally:
            self._leases.drop(self.request.holder)
        return False


class EphemeralKeeper(_StoreKeeper):
    """Stores nothing of a conversation; at most how an ask with an idempotency key ended."""

    returns_ids = False

    @property
    def needs_text(self) -> bool:
        return self.request.idempotency_key is not None

    def completed(self, reply: Reply) -> None:
        self._release(self._record_of(reply))

    def failed(
        self, text: str, model: str | None, error: RelayError, sent: bool
    ) -> bool:
        self._release(failed_record(error) if sent or text else None)
        return True

    def _release(
        self, record: KeyRecord | None, row: Conversation | None = None
    ) -> None:
        """Free the leases, where the turn has any."""
        has_key = self.request.idempotency_key is not None
        has_leases = has_key or self.request.name is not None
        if row is None and not has_leases and self.request.is_new:
            return
        self._try(lambda: self._store.release(self.request, record, row))
        self._leases.drop(self.request.holder)

    def _try(self, write: Callable[[], None]) -> bool:
        """Write what is not the answer itself; a failure is no reason to withhold the answer."""
        try:
            write()
            return True
        except StoreFailed as error:
            log.warning("The record of an answer could not be written: %s", error)
            return False


class RemoteKeeper(EphemeralKeeper):
    """Stores the index row of a conversation that lives at its upstream."""

    returns_ids = True

    def __init__(
        self, store: Store, leases: Leases, request: TurnRequest, opened: OpenedTurn
    ) -> None:
        super().__init__(store, leases, request)
        self._opened = opened
        self._started: Started | None = None
        self._row: Conversation | None = None

    def accepted(self, started: Started) -> None:
        self._started = started
        if not started.conversation_id:
            return
        row = Conversation(
            id=started.conversation_id,
            owner=self.request.owner,
            upstream=self._opened.upstream,
            account=started.account,
            title=self.request.title,
            newest=None,
            created=0,
            updated=0,
            remote=True,
            name=self.request.name,
        )
        # one that has a row may have been deleted meanwhile: it must not come back
        if self._opened.indexed or self._try(lambda: self._store.index(row)):
            self._row = row

    def completed(self, reply: Reply) -> None:
        if self._row is None and self._started is not None:
            self.accepted(self._started)
        row = None
        if self._row is not None:
            row = replace(self._row, newest=reply.message_id)
        self._release(self._record_of(reply), row)


class ReplayKeeper:
    """Stores nothing of an answer that is replayed: it was stored when it was given."""

    needs_text = False

    def __init__(self, request: TurnRequest, returns_ids: bool) -> None:
        self.request = request
        self.returns_ids = returns_ids

    def accepted(self, started: Started) -> None:
        pass

    def completed(self, reply: Reply) -> None:
        pass

    def failed(
        self, text: str, model: str | None, error: RelayError, sent: bool
    ) -> bool:
        return True
