"""A property that is found once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class cached(Generic[T]):
    """Of an object that one thread has at a time. Python's own takes a lock, until 3.12."""

    def __init__(self, find: Callable[[Any], T]) -> None:
        self._find = find
        self._name = find.__name__
        self.__doc__ = find.__doc__

    def __get__(self, instance: Any, owner: object = None) -> T:
        found = self._find(instance)
        setattr(
            instance, self._name, found
        )  # its `__dict__`, once asked for, would be made an object
        return found
