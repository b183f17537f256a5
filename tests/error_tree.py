"""All classes of the tree of errors."""

from __future__ import annotations

from relay.errors import RelayError


def members(of: type[RelayError] = RelayError) -> list[type[RelayError]]:
    return [of, *(member for child in of.__subclasses__() for member in members(child))]
