"""Who rests, kept in the store's database for all processes that share it; and what else changed there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from sqlalchemy import Connection

from relay import schema
from relay.accounts import Scope
from relay.store import Store
from relay.tables import rests, revisions
from relay.values import frozen


@frozen
class StoredRest:
    """A row; see `relay.tables.rests`."""

    account: str
    model: str
    token: str
    code: str
    since: float
    until: float

    @property
    def scope(self) -> Scope:
        return Scope(self.account, self.model, self.token)


class RestStore:
    """Every method may block, and raises StoreFailed where the database cannot be used."""

    def __init__(self, store: Store) -> None:
        self._database = store.database
        insert = self._database.insert
        self._put_statement = rests.build_put_rest(insert(schema.rests))
        counting = revisions.build_count_change(insert(schema.revisions))
        self._count_statement = counting

    def now(self) -> float:
        """Seconds since 1970, by the database's clock. Does not block."""
        return self._database.clock()

    def revisions(self) -> dict[str, int]:
        """How often the server's own accounts, and who rests, were changed."""
        return self._database.read(revisions.select_revisions)

    def read(self) -> Sequence[StoredRest]:
        """Whoever rests now."""
        now = self.now()
        rows = self._database.read(
            lambda connection: rests.select_rests(connection, now)
        )
        return [StoredRest(**row._mapping) for row in rows]

    def write(self, changes: Mapping[Scope, StoredRest | None]) -> None:
        """Write rests that are new or changed, and delete those that are over."""
        now = self.now()

        def work(connection: Connection) -> None:
            rests.delete_ended(connection, now)
            for scope, rest in changes.items():
                if rest is None:
                    rests.delete_rest(connection, *scope)
                else:
                    connection.execute(self._put_statement, asdict(rest))
            revisions.count_change(connection, self._count_statement, "rests")

        self._database.write(work)
