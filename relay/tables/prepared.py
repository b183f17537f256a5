"""Statements that every ask needs: compiled once for each database, and executed by its driver alone.

SQLAlchemy's own way costs about five times as much: it looks the compiled statement up by its structure, asks who
listens, and makes a result, whether or not there are rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from typing import Any, NamedTuple, TypeAlias

from sqlalchemy import ClauseElement, Connection
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.exc import DBAPIError

Parameters: TypeAlias = Mapping[str, Any]


class Prepared:
    """A statement without defaults and types that Python would have to fill in or convert.

    Raises SQLAlchemy's errors, as `Connection.execute` does.
    """

    def __init__(self, statement: ClauseElement) -> None:
        self._statement = statement
        self._compiled: dict[tuple[str, tuple[str, ...]], _Compiled] = {}

    def run(self, connection: Connection, parameters: Parameters) -> int:
        """Execute it; how many rows it changed."""
        changed: int = self._use(connection, [parameters], _changed)
        return changed

    def run_many(self, connection: Connection, rows: Sequence[Parameters]) -> None:
        """Execute it for each row, at least one, which all have the same names."""
        self._use(connection, rows, _changed)

    def rows(
        self, connection: Connection, parameters: Parameters
    ) -> list[tuple[Any, ...]]:
        """Execute it; the rows that it gives."""
        found: list[tuple[Any, ...]] = self._use(connection, [parameters], _fetched)
        return found

    def _use(
        self,
        connection: Connection,
        rows: Sequence[Parameters],
        result: Callable[[Any], Any],
    ) -> Any:
        compiled = self._compiled_for(connection.dialect, rows[0])
        driver = connection.connection
        try:
            with closing(driver.cursor()) as cursor:
                if len(rows) == 1:
                    cursor.execute(compiled.text, compiled.bind(rows[0]))
                else:  # which takes one round trip to PostgreSQL
                    cursor.executemany(compiled.text, list(map(compiled.bind, rows)))
                return result(cursor)
        except compiled.driver_error as error:
            broken: Any = error
            if connection.dialect.is_disconnect(broken, driver, None):
                connection.invalidate(error)
            raise _wrapped(error, compiled) from error

    def _compiled_for(self, dialect: Dialect, parameters: Parameters) -> _Compiled:
        key = dialect.name, tuple(parameters)
        compiled = self._compiled.get(key)
        if compiled is None:
            compiled = self._compiled[key] = self._compile(dialect, parameters)
        return compiled

    def _compile(self, dialect: Dialect, names: Iterable[str]) -> _Compiled:
        made: Any = self._statement.compile(
            dialect=dialect, column_keys=list(names), for_executemany=True
        )
        fixed = dict(made.params)
        driver_error = dialect.loaded_dbapi.Error
        order = tuple(made.positiontup) if made.positional else None
        return _Compiled(str(made), fixed, order, driver_error)


class _Compiled(NamedTuple):
    """`fixed`: parameters that the statement has itself. `order`: of the names, where the driver takes no names."""

    text: str
    fixed: dict[str, Any]
    order: tuple[str, ...] | None
    driver_error: type[Exception]

    def bind(self, parameters: Parameters) -> Any:
        values = {**self.fixed, **parameters}
        if self.order is None:
            return values
        return [values[name] for name in self.order]


def _changed(cursor: Any) -> int:
    return int(cursor.rowcount)


def _fetched(cursor: Any) -> list[tuple[Any, ...]]:
    return list(cursor.fetchall())


def _wrapped(error: Exception, compiled: _Compiled) -> BaseException:
    """A driver's error as SQLAlchemy's, which quotes no parameters."""
    return DBAPIError.instance(
        compiled.text, None, error, compiled.driver_error, hide_parameters=True
    )
