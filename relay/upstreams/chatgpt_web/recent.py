"""What was noted a short while ago: places that were not reached, callers of whom a browser was demanded."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock

from relay.deadline import Deadline

MOST_NAMES = 1000


class Recent:
    """Names that were noted within the last `seconds`, the newest MOST_NAMES of them; shared by all threads."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._names: OrderedDict[str, Deadline] = OrderedDict()
        self._lock = Lock()

    def note(self, name: str) -> None:
        with self._lock:
            self._names.pop(name, None)
            self._names[name] = Deadline.after(self._seconds)
            if len(self._names) > MOST_NAMES:
                self._names.popitem(last=False)

    def forget(self, name: str) -> None:
        with self._lock:
            self._names.pop(name, None)

    def left(self, name: str) -> float:
        """Seconds for which the name still counts as noted; 0 for one that does not."""
        deadline = self._names.get(name)
        return deadline.left if deadline is not None else 0.0

    def has(self, name: str) -> bool:
        return self.left(name) > 0
