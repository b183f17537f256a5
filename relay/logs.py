"""The log: one line per event, as text or JSON. Nothing in it may hold a key, a token, a prompt or a reply."""

from __future__ import annotations

import logging
from typing import Any

import orjson


class TextLines(logging.Formatter):
    """`time LEVEL message key=value ...`; what a caller sent is quoted, so that it can forge no line."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = getattr(record, "fields", {})
        message = _one_line(record.getMessage())
        line = f"{self.formatTime(record)} {record.levelname} {message}"
        line += "".join(f" {name}={_quoted(value)}" for name, value in fields.items())
        if record.exc_info:
            line += f"\n{self.formatException(record.exc_info)}"
        return line


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
        return orjson.dumps(entry | getattr(record, "fields", {})).decode()


def _one_line(message: str) -> str:
    return "".join(
        character if character.isprintable() else repr(character)[1:-1]
        for character in message
    )


def _quoted(value: object) -> str:
    text = str(value)
    if text.isascii() and text.isprintable() and " " not in text:
        return text
    return orjson.dumps(text).decode()


def configure(level: str, form: str) -> None:
    """Send the whole process's log to standard error, from `level` on."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
