"""What only the web server can know or do, handed in by whoever serves. The defaults are for plain threads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeAlias

Run: TypeAlias = Callable[[Callable[[], Any]], Any]


def in_place() -> Run:
    """Runs work where it is called, one at a time."""
    lock = Lock()

    def run(work: Callable[[], Any]) -> Any:
        with lock:
            return work()

    return run


def blind(
    environ: Mapping[str, Any], left: Callable[[], None], seconds: float
) -> Callable[[], None]:
    """Sees nothing: a caller that left is noticed when something is sent to it."""
    return lambda: None


@dataclass(frozen=True)
class Serving:
    """`native` makes a runner with one native thread of its own, so that blocking work stops nobody else.

    `watch(environ, left, seconds)` calls `left` when the caller of a request is gone, hangs up on it after `seconds`,
    and gives a function that ends the watch. `broken_input` is what reading a request's body raises where it is broken.
    """

    native: Callable[[], Run] = in_place
    watch: Callable[
        [Mapping[str, Any], Callable[[], None], float], Callable[[], None]
    ] = blind
    broken_input: tuple[type[Exception], ...] = (OSError,)
