"""A property that is found once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class cached(Generic[T]):
    """Of an object that one thread has at a time. Python's own takes a lock, until 3.12."""

    def __init__(self, find: Callable[[Any], T]) -> None:
        self._find = find
        self.__doc__ = find.__doc__

    def __get__(self, instance: Any, owner: object = None) -> T:
        found = instance.__dict__[self._find.__name__] = self._find(instance)
        return found
