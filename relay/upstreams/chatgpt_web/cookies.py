"""The cookies that ChatGPT's origin sets: kept in memory, and sent back to that origin with the same account alone.

A jar is of one account of the server's and one configured origin. So cookies are host-only, whatever domain they state:
a reverse proxy gets back those that it passed on. Callers' own tokens have no jar.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import field
from email.utils import parsedate_to_datetime
from threading import Lock
from urllib.parse import urlsplit

from relay.transports import Call, Exchange, Head, Transport
from relay.values import frozen

LONGEST_COOKIE = 4096  # bytes of a field that sets one, as in browsers
MOST_COOKIES = 50
LARGEST_JAR = 7 * 1024  # bytes; many servers refuse a header line of more than 8 KiB
_MAX_AGE = re.compile(r"-?[0-9]{1,12}")


@frozen
class Cookie:
    """`path`: below which it is sent. `until`: seconds since 1970."""

    name: str
    value: str = field(repr=False)
    path: str
    until: float

    @property
    def size(self) -> int:
        return len(self.name) + len(self.value) + len("=; ")

    def is_for(self, path: str) -> bool:
        """Whether it is sent to a path (RFC 6265, 5.1.4)."""
        below = self.path if self.path.endswith("/") else f"{self.path}/"
        return path == self.path or path.startswith(below)


def parse_cookie(field_value: str, path: str, now: float) -> Cookie | None:
    """What a Set-Cookie field of an answer to `path` sets; None for what is none, or could not be sent."""
    if len(field_value) > LONGEST_COOKIE:
        return None
    if not field_value.isascii() or not field_value.isprintable():
        return None
    pair, *rest = field_value.split(";")
    name, equals, value = (part.strip() for part in pair.partition("="))
    if not name or not equals:
        return None
    attributes = {}
    for each in rest:
        attribute, _, text = each.partition("=")
        attributes[attribute.strip().lower()] = text.strip()
    stated = attributes.get("path", "")
    own = stated if stated.startswith("/") else path.rpartition("/")[0] or "/"
    return Cookie(name, value, own, _until(attributes, now))


def _until(attributes: dict[str, str], now: float) -> float:
    age = attributes.get("max-age", "")
    if _MAX_AGE.fullmatch(age):
        return now + int(age)
    try:
        return parsedate_to_datetime(attributes.get("expires", "")).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError, OSError):
        return math.inf


class Jar:
    """The cookies of one origin and one account, the newest last; shared by all threads."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._cookies: dict[tuple[str, str], Cookie] = {}
        self._lock = Lock()

    def keep(self, url: str, fields: Sequence[str]) -> None:
        """Keep what the Set-Cookie fields of an answer set; beyond the bounds the oldest are forgotten."""
        if not fields:
            return
        path = urlsplit(url).path
        with self._lock:
            for each in fields:
                cookie = parse_cookie(each, path, self._clock())
                if cookie is not None:
                    self._cookies.pop((cookie.name, cookie.path), None)
                    self._cookies[cookie.name, cookie.path] = cookie
                    self._forget()

    def _forget(self) -> None:
        now = self._clock()
        for key in [key for key, each in self._cookies.items() if each.until <= now]:
            del self._cookies[key]
        size = sum(cookie.size for cookie in self._cookies.values())
        while size > LARGEST_JAR or len(self._cookies) > MOST_COOKIES:
            oldest = next(iter(self._cookies))
            size -= self._cookies.pop(oldest).size

    def cookies(self, url: str) -> list[Cookie]:
        """Those for a request, of the longest path first (RFC 6265, 5.4)."""
        if not self._cookies:
            return []
        path, now = urlsplit(url).path, self._clock()
        with self._lock:
            kept = list(self._cookies.values())
        found = [each for each in kept if each.until > now and each.is_for(path)]
        return sorted(found, key=lambda cookie: -len(cookie.path))


class Jars:
    """The jars of all accounts and origins."""

    def __init__(self) -> None:
        self._jars: dict[tuple[str, str], Jar] = {}

    def jar(self, account: str, origin: str) -> Jar:
        """The jar of the account of this name."""
        place = account, origin
        jar = self._jars.get(place)
        return self._jars.setdefault(place, Jar()) if jar is None else jar


def origin_of(url: str) -> str:
    """The origin of an address that `relay.upstreams.addresses` took."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def with_cookies(headers: dict[str, str], jar: Jar | None, url: str) -> dict[str, str]:
    """A request's headers with the jar's cookies beside the operator's; without any where there is no jar.

    Of one name, what the origin set is newer than what a setting says.
    """
    kept = jar.cookies(url) if jar is not None else []
    if not kept and "cookie" not in map(str.lower, headers):
        return headers
    stated = [name for name in headers if name.lower() == "cookie"]
    others = {name: headers[name] for name in headers if name not in stated}
    if jar is None:
        return others
    pairs = _older([headers[name] for name in stated], kept)
    pairs += [f"{cookie.name}={cookie.value}" for cookie in kept]
    return others | ({"Cookie": "; ".join(pairs)} if pairs else {})


def _older(stated: list[str], kept: list[Cookie]) -> list[str]:
    """The cookies of Cookie headers that none of those that are kept replaces."""
    newer = {cookie.name for cookie in kept}
    pairs = [pair.strip() for text in stated for pair in text.split(";")]
    return [
        pair for pair in pairs if pair and pair.partition("=")[0].strip() not in newer
    ]


@frozen
class CookieCall(Call):
    """A request. `jar`: where the cookies of its answer are kept; None for nowhere."""

    jar: Jar | None = field(default=None, repr=False)


class CookieTransport:
    """Another transport, which keeps the cookies of its answers. See `relay.transports.Transport`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def send(self, call: Call) -> Exchange:
        exchange = self._transport.send(call)
        if not isinstance(call, CookieCall) or call.jar is None:
            return exchange
        return CookieExchange(exchange, call.jar, call.url)

    def close(self) -> None:
        self._transport.close()


class CookieExchange:
    """See `relay.transports.Exchange`."""

    __slots__ = ("_exchange", "_kept_in", "read")

    def __init__(self, exchange: Exchange, jar: Jar, url: str) -> None:
        self._exchange = exchange
        self._kept_in: tuple[Jar, str] | None = jar, url  # until its head has come
        self.read = exchange.read

    def head(self, seconds: float) -> Head | None:
        head = self._exchange.head(seconds)
        if head is not None and self._kept_in is not None:
            jar, url = self._kept_in
            self._kept_in = None
            pairs = head.headers.pairs
            jar.keep(url, [value for name, value in pairs if name == "set-cookie"])
        return head

    @property
    def awaited(self) -> int | None:
        return self._exchange.awaited

    def interrupt(self) -> None:
        self._exchange.interrupt()

    def close(self) -> None:
        self._exchange.close()
