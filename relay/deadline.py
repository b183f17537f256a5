"""A moment by which something must have happened."""

from __future__ import annotations

import time


class Deadline(float):
    """A moment on the monotonic clock, in seconds; the earlier of two is their `min`."""

    __slots__ = ()

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        return cls(time.monotonic() + seconds)

    @property
    def left(self) -> float:
        """Seconds until then; 0 once it has passed."""
        seconds = self - time.monotonic()
        return seconds if seconds > 0.0 else 0.0

    @property
    def passed(self) -> bool:
        return time.monotonic() >= self


NOW = Deadline(0.0)  # has passed
