"""Where a caller is: the peer's address, or what a trusted proxy says of it. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address

ANY = "*"
LONGEST_ADDRESS = 45  # characters, of an IPv6 address that has an IPv4 one in it


class TrustedProxies:
    """The proxies whose X-Forwarded-For counts. `entries`: addresses, networks, or "*" for whoever connects."""

    def __init__(self, entries: Iterable[str]) -> None:
        known = set(entries)
        self._trusts_every_peer = ANY in known
        self._networks = [ip_network(entry) for entry in known - {ANY}]

    def caller_address(self, peer: str, forwarded: str) -> str:
        """The caller's address; "" where only a peer without one is known, as on a UNIX socket.

        `forwarded`: the header X-Forwarded-For. From a trusted peer, or one without an address, its
        rightmost address counts that is no trusted proxy's: what is left of it, a caller may have
        written. A header that holds anything else than addresses counts for nothing.
        """
        if not forwarded or not self._trusts_peer(peer):
            return peer
        address = None
        for entry in reversed(forwarded.split(",")):
            address = _parse(entry.strip())
            if address is None:
                return peer
            if not self._trusts(address):
                break
        return str(address)

    def scheme(self, peer: str, forwarded: str, own: str) -> str:
        """The scheme by which the caller asked: `forwarded`, the header X-Forwarded-Proto, of a trusted peer."""
        is_known = forwarded in ("http", "https")
        return forwarded if is_known and self._trusts_peer(peer) else own

    def _trusts_peer(self, peer: str) -> bool:
        if self._trusts_every_peer or not peer:
            return True
        address = _parse(peer)
        return address is not None and self._trusts(address)

    def _trusts(self, address: Address) -> bool:
        return any(address in network for network in self._networks)


@lru_cache(maxsize=1000)
def _parse(text: str) -> Address | None:
    """An address; None for what is none. One of IPv4 that is written as IPv6 is of IPv4."""
    if len(text) > LONGEST_ADDRESS or "%" in text:  # after % anything may stand
        return None
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
