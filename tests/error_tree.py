"""All classes of the tree of errors."""

from __future__ import annotations

from relay.errors import RelayError

PRODUCT = ("relay.errors",)


def members(of: type[RelayError] = RelayError) -> list[type[RelayError]]:
    """Those of the product: tests make classes of their own."""
    children = (child for child in of.__subclasses__() if child.__module__ in PRODUCT)
    return [of, *(member for child in children for member in members(child))]
