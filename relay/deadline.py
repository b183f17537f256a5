"""A moment by which something must have happened."""

from __future__ import annotations

import time
from typing import NamedTuple


class Deadline(NamedTuple):
    """A moment on the monotonic clock; the earlier of two is their `min`."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        return tuple.__new__(cls, (time.monotonic() + seconds,))

    @property
    def left(self) -> float:
        """Seconds until then; 0 once it has passed."""
        return max(0.0, self.at - time.monotonic())

    @property
    def passed(self) -> bool:
        return time.monotonic() >= self.at
