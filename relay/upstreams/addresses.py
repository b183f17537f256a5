"""Addresses of upstreams, checked before anything is sent there. Pure."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, urlsplit

from relay.settings import SettingsError


def parse_address(address: str) -> SplitResult:
    """An http or https address in its parts. Raises ValueError with a reason."""
    if not re.fullmatch(r"[!-~]+", address):
        raise ValueError("it must be written in ASCII, without spaces")
    try:
        url = urlsplit(address)
        is_usable = url.scheme in ("http", "https") and url.hostname and url.port != 0
    except ValueError:
        raise ValueError("its host or port cannot be read") from None
    if not is_usable or url.username or url.query or url.fragment:
        raise ValueError(
            "it must be an http or https address without user, query and fragment"
        )
    return url


def check_setting(name: str, address: str) -> None:
    """Raises SettingsError for a setting that is no address."""
    try:
        parse_address(address)
    except ValueError as error:
        raise SettingsError(f"{name} cannot be read: {error}.") from None
