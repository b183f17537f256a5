"""The log: one line per event, as text or JSON. Nothing in it may hold a key, a token, a prompt or a reply."""

from __future__ import annotations

import logging
from typing import Any

import orjson


class TextLines(logging.Formatter):
    """`time LEVEL message key=value ...`; what a caller sent is quoted, so that it can forge no line."""

    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, Any] = getattr(record, "told", {})
        line = f"{self.formatTime(record)} {record.levelname} {_one_line(record.getMessage())}"
        line += "".join(f" {name}={_quoted(value)}" for name, value in told.items())
        return line + (
            f"\n{self.formatException(record.exc_info)}" if record.exc_info else ""
        )


class JsonLines(logging.Formatter):
    """One JSON object per event."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": self.formatTime(record),
            "level": record.levelname,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(entry | getattr(record, "told", {})).decode()


def _one_line(message: str) -> str:
    return "".join(
        character if character.isprintable() else repr(character)[1:-1]
        for character in message
    )


def _quoted(value: object) -> str:
    plain = str(value)
    return (
        plain
        if plain.isascii() and plain.isprintable() and " " not in plain
        else orjson.dumps(plain).decode()
    )


def configure(level: str, form: str) -> None:
    """Send the whole process's log to standard error, from `level` on."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
