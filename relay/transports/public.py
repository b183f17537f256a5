"""Addresses that anyone may reach: what keeps a caller's link, or an upstream's, from leading into a private network.

A host is resolved once, and the connection goes to what was found: a name that means something else a moment later
leads nowhere else. One address that is not public refuses the whole host.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

from relay.transports.dialing import Address, Resolve, resolve

#: whose last 32 bits are a v4 address: RFC 6052, and RFC 4291's compatible ones
EMBEDDING = (IPv6Network("64:ff9b::/96"), IPv6Network("::/96"))


def is_public(address: str) -> bool:
    """Whether an address is one of the Internet's; also what a v6 address has of a v4 one must be."""
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    inner = _inner(found) if isinstance(found, IPv6Address) else None
    if inner is not None:
        return is_public(str(inner))
    if isinstance(found, IPv6Address) and found.is_site_local:
        return False
    return found.is_global and not found.is_multicast


def _inner(address: IPv6Address) -> IPv4Address | None:
    """The v4 address that a v6 one leads to."""
    if any(address in network for network in EMBEDDING):
        return IPv4Address(int(address) & 0xFFFFFFFF)
    teredo = address.teredo
    return address.ipv4_mapped or address.sixtofour or (teredo and teredo[1])


def resolve_public(host: str, port: int, resolve: Resolve = resolve) -> list[Address]:
    """The addresses of a host; none where one of them is not public. Raises OSError or UnicodeError."""
    found = resolve(host, port)
    if not all(is_public(str(address[-1][0])) for address in found):
        return []
    return found
