"""New ids."""

from __future__ import annotations

import os


def random_digits() -> str:
    """32 random digits, hexadecimal."""
    return os.urandom(16).hex()


def new_id() -> str:
    """A random UUID (RFC 9562, version 4). `uuid.uuid4` takes three times as long, and every ask has some."""
    return _written(random_digits())


def new_ids() -> tuple[str, str, str]:
    """Three of them. What takes long is to ask the system for randomness, however much of it."""
    digits = os.urandom(48).hex()
    return _written(digits[:32]), _written(digits[32:64]), _written(digits[64:])


def _written(digits: str) -> str:
    """32 random digits as a UUID."""
    return (
        f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"
    )
