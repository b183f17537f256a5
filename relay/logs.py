"""The log: one line per event, as text or JSON. Nothing in it may hold a key, a token, a prompt or a reply."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from functools import lru_cache
from types import TracebackType
from typing import Any

import orjson

log = logging.getLogger("chatgpt_webapi")


def write_line(
    logger: logging.Logger, level: int, message: str, fields: dict[str, Any]
) -> None:
    """Log a message and its fields, at a third of the cost of `Logger.log`. Whoever calls asked `isEnabledFor`."""
    logger.handle(FieldsRecord(logger.name, level, message, fields))


class FieldsRecord(logging.LogRecord):
    """A record without the place in the source, which LogRecord looks for, and which no line here has."""

    def __init__(
        self, name: str, level: int, message: str, fields: dict[str, Any]
    ) -> None:
        now = time.time()
        self.__dict__ = _NOTHING | {
            "name": name,
            "levelno": level,
            "levelname": logging.getLevelName(level),
            "msg": message,
            "created": now,
            "msecs": now % 1 * 1000,
            "fields": fields,
        }


_NOTHING = vars(logging.makeLogRecord({}))  # a record's attributes, empty


class Lines(logging.Formatter):
    """A line for each event, with its time."""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return f"{_second(int(record.created))},{int(record.msecs):03d}"


@lru_cache(maxsize=1)
def _second(seconds: int) -> str:
    """A second of the local time; most lines have that of the one before."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


class LineHandler(logging.StreamHandler[Any]):
    """Each line is one write, so it needs no lock; and standard error is written at each line's end."""

    def createLock(self) -> None:
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        is_wanted = bool(self.filter(record))
        if is_wanted:
            self.emit(record)
        return is_wanted

    def flush(self) -> None:
        pass


class TextLines(Lines):
    """`time LEVEL message key=value ...`; what a caller sent is quoted, so that it can forge no line."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = getattr(record, "fields", {})
        message = _one_line(record.getMessage())
        line = f"{self.formatTime(record)} {record.levelname} {message}"
        line += _pairs(fields)
        if record.exc_info:
            traceback = self.formatException(record.exc_info)
            line += "".join(f"\n  {_one_line(part)}" for part in traceback.split("\n"))
        return line


class JsonLines(Lines):
    """One JSON object per event."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": self.formatTime(record),
            "level": record.levelname,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return _json(entry | getattr(record, "fields", {}))


def _one_line(message: str) -> str:
    if message.isprintable():
        return message
    return "".join(
        character if character.isprintable() else repr(character)[1:-1]
        for character in message
    )


def _pairs(fields: dict[str, Any]) -> str:
    text = "".join([f" {name}={value}" for name, value in fields.items()])
    if text.isascii() and text.isprintable() and text.count(" ") == len(fields):
        return text
    return "".join(f" {name}={_quoted(value)}" for name, value in fields.items())


def _quoted(value: object) -> str:
    text = str(value)
    if text.isascii() and text.isprintable() and " " not in text:
        return text
    return _json(text)


def _json(value: object) -> str:
    """JSON in printable characters alone: C1 controls, DEL and other line ends are legal in it, but not in a log."""
    try:
        text = orjson.dumps(value).decode()
    except TypeError:  # lone surrogates, integers beyond 64 bits, objects
        return json.dumps(value, default=str)
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else json.dumps(character)[1:-1]
        for character in text
    )


def formatter(form: str) -> logging.Formatter:
    """The formatter of a LOG_FORMAT, "text" or "json"."""
    return JsonLines() if form == "json" else TextLines()


def configure(level: str, form: str) -> None:
    """Send the whole process's log to standard error, from `level` on; warnings and uncaught exceptions too."""
    handler = LineHandler()
    handler.setFormatter(formatter(form))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    # no line says where in the source or by which thread it was written: the switches that the manual has for that
    logging._srcfile = None
    logging.logThreads = logging.logMultiprocessing = False
    sys.excepthook = log_uncaught
    threading.excepthook = _log_uncaught_in_thread


def log_uncaught(
    kind: type[BaseException],
    error: BaseException | None,
    traceback: TracebackType | None,
) -> None:
    """Log an exception that nobody caught; what only ends a process or a thread is none."""
    if not issubclass(kind, (KeyboardInterrupt, SystemExit)):
        log.critical("Uncaught exception: %s", kind.__name__, exc_info=error)


def _log_uncaught_in_thread(failure: threading.ExceptHookArgs) -> None:
    log_uncaught(failure.exc_type, failure.exc_value, failure.exc_traceback)
