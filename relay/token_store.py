"""The tokens of accounts, kept in the store's database, with the leases of the refresh tokens' exchanges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, field
from typing import Any

from sqlalchemy import Connection, Row

from relay import schema
from relay.accounts import Source
from relay.store import Store
from relay.tables import revisions, tokens
from relay.values import frozen

UNUSED_SECONDS = 60 * 86400.0  # after which a caller's own row is deleted


@frozen
class StoredToken:
    """A row; see `relay.tables.tokens`. `account`: its name, which shows no token."""

    id: str
    source: Source
    account: str
    refresh_token: str = field(repr=False)
    access_token: str | None = field(default=None, repr=False)
    expires: float | None = None
    began: float | None = None
    dead: str | None = None
    updated: float = 0.0
    workspace: str = ""


class TokenStore:
    """Every method may block, and raises StoreFailed where the database cannot be used."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._database = store.database
        insert = self._database.insert(schema.tokens)
        self._put_statement = tokens.build_put_token(insert)
        counting = self._database.insert(schema.revisions)
        self._count_statement = revisions.build_count_change(counting)

    def now(self) -> float:
        """Seconds since 1970, by the database's clock. Does not block."""
        return self._database.clock()

    def find(self, token_id: str) -> StoredToken | None:
        row = self._database.read(
            lambda connection: tokens.select_token(connection, token_id)
        )
        return None if row is None else _to_token(row)

    def of_source(self, source: Source) -> list[StoredToken]:
        """All tokens that came from there, the one that was used least recently first."""
        rows = self._database.read(
            lambda connection: tokens.select_of_source(connection, source)
        )
        return [_to_token(row) for row in rows]

    def put(self, token: StoredToken) -> None:
        """Add a row, or replace it; one of the pool that was removed meanwhile is not added again.

        What it had before is erased from the database's files soon.
        """
        parameters = {**asdict(token), "updated": self.now()}

        def work(connection: Connection) -> None:
            if self._may_write(connection, token):
                connection.execute(self._put_statement, parameters)

        self._database.write(work)
        self._database.erase_soon()

    def _may_write(self, connection: Connection, token: StoredToken) -> bool:
        if token.source != "pool":
            return True
        return tokens.select_token(connection, token.id) is not None

    def add(self, added: Sequence[StoredToken], removed: Sequence[str] = ()) -> None:
        """Add accounts of the server's own, or replace them, and remove those of these ids.

        Every process that shares the database learns of it.
        """
        now = self.now()
        rows = [{**asdict(token), "updated": now} for token in added]

        def work(connection: Connection) -> None:
            for token_id in removed:
                tokens.delete_token(connection, token_id)
            if rows:
                connection.execute(self._put_statement, rows)
            revisions.count_change(connection, self._count_statement, "accounts")

        self._database.write(work)
        self._database.erase_soon()

    def clear(self, source: Source) -> int:
        """Delete all rows of a source and erase them from the database's files; how many there were."""

        def work(connection: Connection) -> int:
            count = tokens.delete_of_source(connection, source)
            revisions.count_change(connection, self._count_statement, "accounts")
            return count

        count: int = self._database.write(work)
        self._database.erase()
        return count

    def begin(self, token: StoredToken) -> float:
        """Note that an exchange begins now, unless the outcome of an earlier one is not known either: when it began."""
        now = self.now()
        began = now if token.began is None else token.began

        def work(connection: Connection) -> None:
            if tokens.select_token(connection, token.id) is not None:
                tokens.update_token(connection, token.id, {"began": began})
            elif token.source != "pool":
                row = {**asdict(token), "began": began, "updated": now}
                connection.execute(self._put_statement, row)

        self._database.write(work)
        return began

    def change(self, token_id: str, **changes: Any) -> None:
        """Change columns of a row, and note that it was used. One that is not there stays so."""
        changes["updated"] = self.now()
        self._database.write(
            lambda connection: tokens.update_token(connection, token_id, changes)
        )

    def delete(self, token_id: str) -> bool:
        """Delete a row and erase it from the database's files; whether there was one."""

        def work(connection: Connection) -> bool:
            revisions.count_change(connection, self._count_statement, "accounts")
            return tokens.delete_token(connection, token_id)

        found: bool = self._database.write(work)
        self._database.erase()
        return found

    def tidy(self) -> None:
        """Delete the rows of callers that have not used them for long."""
        before = self.now() - UNUSED_SECONDS
        deleted = self._database.write(
            lambda connection: tokens.delete_unused(connection, "caller", before)
        )
        if deleted:
            self._database.erase()

    def lease(self, token_id: str, holder: str, seconds: float) -> bool:
        """Take the right to exchange the token, for so long; False while another has it."""
        return self._store.lease(_lease_name(token_id), holder, seconds)

    def free(self, token_id: str, holder: str) -> None:
        self._store.free(_lease_name(token_id), holder)


def _lease_name(token_id: str) -> str:
    return f"token/{token_id}"


def _to_token(row: Row[Any]) -> StoredToken:
    return StoredToken(**row._mapping)
