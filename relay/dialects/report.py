"""What was used: which of it a request asks for, and how it is printed: JSON, CSV, a header. Pure."""

from __future__ import annotations

import csv as tables
import io
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from relay.domain import Tokens, UsageQuery, UsageRow
from relay.errors import BadRequest

CSV_TYPE = "text/csv"
PLACES = ("key", "day", "upstream", "model")
COUNTS = ("asks", "errors", "cancelled", "prompt_tokens", "completion_tokens")
DEFAULT_BY = "key,day,model"
DEFAULT_DAYS = 30
FIELDS = ("by", "from", "to", "format")
#: what a spreadsheet takes for the beginning of a formula
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def query(fields: Mapping[str, str], today: str) -> UsageQuery:
    """What a query string asks for. `today`: the day, as in 2026-12-31. Raises BadRequest."""
    for name in fields:
        if name not in FIELDS:
            raise BadRequest(
                f"There is no field {name} here: send by, from, to or format.",
                quoted=name,
            )
    last = _day(fields, "to", today)
    month = date.fromisoformat(last).toordinal() - DEFAULT_DAYS + 1
    first = _day(fields, "from", date.fromordinal(max(1, month)).isoformat())
    if first > last:
        raise BadRequest(f"from ({first}) is later than to ({last}).")
    return UsageQuery(_by(fields), first, last)


def _by(fields: Mapping[str, str]) -> tuple[str, ...]:
    names = tuple(name.strip() for name in (fields.get("by") or DEFAULT_BY).split(","))
    if len(set(names)) < len(names) or not set(names).issubset(PLACES):
        raise BadRequest(
            "by names what is told apart, each once: some of key, day, upstream and "
            "model, with commas between them."
        )
    return names


def _day(fields: Mapping[str, str], name: str, otherwise: str) -> str:
    value = fields.get(name) or otherwise
    try:
        day = date.fromisoformat(value)
    except ValueError:
        day = None
    if day is None or day.isoformat() != value:
        raise BadRequest(f"{name} must be a day (UTC), as in 2026-12-31.")
    return value


def _columns(query: UsageQuery) -> tuple[str, ...]:
    return (*query.by, *COUNTS, "total_tokens", "estimated_tokens")


def _values(query: UsageQuery, row: UsageRow) -> list[Any]:
    total = row.prompt_tokens + row.completion_tokens
    named = [getattr(row, name) for name in (*query.by, *COUNTS)]
    return [*named, total, row.estimated_tokens]


def json(query: UsageQuery, rows: Sequence[UsageRow]) -> dict[str, Any]:
    """The rows as objects, with the days that they are of."""
    columns = _columns(query)
    return {
        "from": query.first,
        "to": query.last,
        "usage": [dict(zip(columns, _values(query, row), strict=True)) for row in rows],
    }


def csv(query: UsageQuery, rows: Sequence[UsageRow]) -> bytes:
    """The same as RFC 4180 has it, with a header line; no cell is a formula."""
    text = io.StringIO()
    writer = tables.writer(text, lineterminator="\r\n")
    writer.writerow(_columns(query))
    writer.writerows([_guarded(cell) for cell in _values(query, row)] for row in rows)
    return text.getvalue().encode()


def _guarded(cell: Any) -> Any:
    """A text that a spreadsheet would compute, as text."""
    is_formula = isinstance(cell, str) and cell.startswith(FORMULA)
    return f"'{cell}" if is_formula else cell


def header(tokens: Tokens) -> str:
    """What one answer used, as a dictionary of RFC 9651: `estimated` stands there where the upstream stated nothing."""
    counts = (
        f"prompt_tokens={tokens.prompt}, completion_tokens={tokens.completion}, "
        f"total_tokens={tokens.prompt + tokens.completion}"
    )
    return f"{counts}, estimated" if tokens.estimated else counts
