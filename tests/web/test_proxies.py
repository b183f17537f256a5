"""Where a caller is: which X-Forwarded-For counts, and how much of it."""

from __future__ import annotations

import pytest

from relay.web.proxies import TrustedProxies

LOOPBACK = ("127.0.0.1", "::1")
INNER = (*LOOPBACK, "10.0.0.0/8")
ADDRESSES = [
    # trusted, peer, header, the caller's address
    (LOOPBACK, "127.0.0.1", "", "127.0.0.1"),
    (LOOPBACK, "192.0.2.1", "198.51.100.7", "192.0.2.1"),
    (LOOPBACK, "127.0.0.1", "198.51.100.7", "198.51.100.7"),
    (LOOPBACK, "::1", "2001:DB8:0::7", "2001:db8::7"),
    (LOOPBACK, "::ffff:127.0.0.1", "::ffff:198.51.100.7", "198.51.100.7"),
    (LOOPBACK, "", "198.51.100.7", "198.51.100.7"),
    (LOOPBACK, "", "", ""),
    # what is left of the proxy's own entry may be invented
    (LOOPBACK, "127.0.0.1", "203.0.113.1, 198.51.100.7", "198.51.100.7"),
    (LOOPBACK, "127.0.0.1", "127.0.0.1,198.51.100.7", "198.51.100.7"),
    (LOOPBACK, "127.0.0.1", "evil, 198.51.100.7", "198.51.100.7"),
    (LOOPBACK, "127.0.0.1", "198.51.100.7, 127.0.0.1", "198.51.100.7"),
    (LOOPBACK, "127.0.0.1", "127.0.0.1", "127.0.0.1"),
    (INNER, "10.1.2.3", "203.0.113.1, 198.51.100.7, 10.9.9.9", "198.51.100.7"),
    (INNER, "10.1.2.3", "10.0.0.5, 10.9.9.9", "10.0.0.5"),
    (LOOPBACK, "10.1.2.3", "198.51.100.7", "10.1.2.3"),
    # "*" trusts who connects, and nobody whom the header names
    (("*",), "192.0.2.1", "203.0.113.1, 198.51.100.7", "198.51.100.7"),
    (("*", "198.51.100.7"), "192.0.2.1", "203.0.113.1, 198.51.100.7", "203.0.113.1"),
    # what is no address counts for nothing
    (LOOPBACK, "127.0.0.1", "unknown", "127.0.0.1"),
    (LOOPBACK, "127.0.0.1", "198.51.100.7, x y", "127.0.0.1"),
    (LOOPBACK, "127.0.0.1", "198.51.100.7,", "127.0.0.1"),
    (LOOPBACK, "127.0.0.1", "fe80::1%\x1b[2J", "127.0.0.1"),
    (LOOPBACK, "127.0.0.1", "1" * 10_000, "127.0.0.1"),
    (LOOPBACK, "no address", "198.51.100.7", "no address"),
]


@pytest.mark.parametrize(("trusted", "peer", "header", "address"), ADDRESSES)
def test_the_callers_address(
    trusted: tuple[str, ...], peer: str, header: str, address: str
) -> None:
    assert TrustedProxies(trusted).caller_address(peer, header) == address
