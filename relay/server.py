"""What only the web server can know or do, handed in by whoever serves. The defaults are for plain threads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeAlias

Run: TypeAlias = Callable[[Callable[[], Any]], Any]
WaitReadable: TypeAlias = Callable[[Any, float], bool]
Watch: TypeAlias = Callable[
    [Mapping[str, Any], Callable[[], None], float], Callable[[], None]
]


def in_place() -> Run:
    """Runs work in the calling thread, one at a time."""
    lock = Lock()

    def run(work: Callable[[], Any]) -> Any:
        with lock:
            return work()

    return run


def no_watch(
    environ: Mapping[str, Any], left: Callable[[], None], seconds: float
) -> Callable[[], None]:
    """Watches nothing: a caller that left is noticed when something is sent to it."""
    return lambda: None


@dataclass(frozen=True)
class Server:
    """`native`: makes a runner with a native thread of its own, so that blocking work stops nobody else.

    `watch(environ, left, seconds)`: calls `left` from another thread when the caller of a request
    is gone, closes its connection after `seconds`, and returns a function that ends the watch.
    `broken_input`: the exceptions that reading a broken request body raises.
    `wait_readable(connection, seconds)`: waits until there is something to read, and says whether
    there is; None: a read waits by itself.
    """

    native: Callable[[], Run] = in_place
    watch: Watch = no_watch
    broken_input: tuple[type[Exception], ...] = (OSError,)
    wait_readable: WaitReadable | None = None
