"""What only the web server can know or do, handed in by whoever serves. The defaults are for plain threads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import Lock, Thread
from typing import Any, TypeAlias

from relay.values import frozen

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


def in_thread(work: Callable[[], None]) -> None:
    """Runs work in a thread of its own."""
    Thread(target=work, daemon=True).start()


@frozen
class Server:
    """`native`: makes a runner with a native thread of its own, so that blocking work stops nobody else.

    `start_thread`: runs work in a new native thread, for calls that block as long as an answer takes:
    it raises RuntimeError where there can be no more, and the work uses no lock, socket or log of Python's.

    `watch(environ, left, seconds)`: calls `left` from another thread when the caller of a request
    is gone, closes its connection after `seconds`, and returns a function that ends the watch.
    `broken_input`: the exceptions that reading a broken request body raises.
    `wait_readable(connection, seconds)`: waits until there is something to read, and says whether
    there is; None: a read waits by itself.
    """

    native: Callable[[], Run] = in_place
    start_thread: Callable[[Callable[[], None]], None] = in_thread
    watch: Watch = no_watch
    broken_input: tuple[type[Exception], ...] = (OSError,)
    wait_readable: WaitReadable | None = None
