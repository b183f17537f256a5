"""Whether the cost of something grows as it should, on a machine that other programs use too."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def processor_seconds(run: Callable[[], Any]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def assert_grows_at_most(
    factor: float, seconds: Callable[[int], float], few: int, many: int
) -> None:
    """The least time for `many` is at most `factor` times the least for `few`.

    Noise only ever adds time, so both are measured again, in turn, until that is so or ten rounds have passed.
    """
    least = {few: float("inf"), many: float("inf")}
    for _ in range(10):
        for number in least:
            least[number] = min(least[number], seconds(number))
        if least[many] <= factor * least[few]:
            return
    raise AssertionError(
        f"{least[many]:.3f} s for {many}, {least[few]:.3f} s for {few}"
    )
