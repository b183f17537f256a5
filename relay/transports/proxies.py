"""Connections through proxies: HTTP and HTTPS by CONNECT, SOCKS5; one after the other, until one leads there.

python-socks speaks the protocols. The sockets, the deadline and the bound of what a proxy may answer are our own: it
may drip, send garbage or be silent. Names are always looked up at the proxy. No proxy of the environment is used.
"""

from __future__ import annotations

import logging
import re
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import field
from urllib.parse import unquote, urlsplit

from python_socks import ProxyType
from python_socks._abc import SyncResolver, SyncSocketStream
from python_socks._connectors.factory_sync import create_connector
from python_socks._protocols.errors import ReplyError

from relay.deadline import Deadline
from relay.errors import Unreachable
from relay.transports.dialing import Dialer, DirectDialer
from relay.transports.pump import bridge
from relay.transports.sockets import receive, shake_hands
from relay.values import frozen

log = logging.getLogger(__name__)

DEFAULT_PORTS = {"http": 80, "https": 443, "socks5": 1080}
LONGEST_ANSWER = 16 * 1024
REST_SECONDS = 60.0  # that a proxy which failed is tried last
LONGEST_CREDENTIAL = 255  # bytes, in SOCKS5 (RFC 1929)
_AUTHENTICATION = b"\x01"  # first byte of SOCKS5's user and password (RFC 1929)
_NO_METHOD = b"\x05\xff"  # SOCKS5's answer where none of ours will do (RFC 1928, 3)

WRONG_PASSWORD = "refused its user and password; correct them in PROXY_URL"
NO_PASSWORD = "asks for a user and a password; add them in PROXY_URL"
REFUSED = "refuses connections to the upstream; allow them there, or use another proxy"
NOT_REACHED = "could not reach the upstream; try again later, or use another proxy"
GARBAGE = (
    "answered as no proxy of its kind does; correct its scheme and port in PROXY_URL"
)
CLOSED = "closed the connection without an answer"
UNAUTHORIZED = (401, 407)  # tinyproxy answers a wrong password by 401
SOCKS_REFUSALS = (2, 7, 8)  # not allowed, no such command, no such kind of address


@frozen
class Proxy:
    """An outgoing proxy. As text it is its scheme, host and port, and no secret.

    `scheme`: http, https or socks5.
    """

    scheme: str
    host: str
    port: int
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)

    @classmethod
    def parse(cls, url: str) -> Proxy:
        """Raises ValueError with a reason that quotes nothing: the URL may hold a password."""
        try:
            parts = urlsplit(url)
            scheme = parts.scheme.removesuffix("5h").removesuffix("5")
            scheme = "socks5" if scheme == "socks" else parts.scheme
            port = parts.port or DEFAULT_PORTS[scheme]
        except (ValueError, KeyError):
            raise ValueError("the host or port of a proxy cannot be read") from None
        if not parts.hostname or not re.fullmatch(r"[!-~]+", parts.hostname):
            raise ValueError("the host of a proxy cannot be read")
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        _check_credentials(scheme, user, password)
        return cls(scheme, parts.hostname, port, user, password)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


def _check_credentials(scheme: str, user: str, password: str) -> None:
    """Raises ValueError for what the protocol cannot carry."""
    if scheme != "socks5":
        if ":" in user or not f"{user}{password}".isprintable():
            raise ValueError("the user or password of a proxy cannot be sent")
        try:
            f"{user}{password}".encode("latin-1")
        except UnicodeEncodeError:
            message = "the user or password of a proxy cannot be sent in Latin-1"
            raise ValueError(message) from None
        return
    if bool(user) != bool(password):
        raise ValueError("a SOCKS5 proxy takes a user and a password, or neither")
    if not f"{user}{password}".isascii():
        raise ValueError("the user and password of a SOCKS5 proxy must be in ASCII")
    if max(len(user), len(password)) > LONGEST_CREDENTIAL:
        raise ValueError("the user or password of a SOCKS5 proxy is too long")


class ProxyDialer:
    """Connects through the first proxy that leads there; one that failed is tried last for a while.

    `connect_seconds`: for reaching a proxy, and again for all that is said until it has connected.
    """

    def __init__(self, proxies: Sequence[Proxy], connect_seconds: float = 10.0) -> None:
        self._proxies = tuple(proxies)
        self._seconds = connect_seconds
        self._direct: Dialer = DirectDialer(connect_seconds, name="proxy")
        self._tls = ssl.create_default_context()
        self._rests: dict[Proxy, Deadline] = {}

    def dial(
        self, host: str, port: int, opened: Callable[[socket.socket], None]
    ) -> socket.socket:
        failures: list[Unreachable] = []
        for proxy in self._in_turn():
            try:
                connection = self._dial_through(proxy, host, port, opened)
            except Unreachable as failure:
                self._rests[proxy] = Deadline.after(REST_SECONDS)
                failures.append(failure)
            else:
                self._rests.pop(proxy, None)
                return connection
        if len(failures) == 1:
            raise failures[0]
        reason = failures[0].message
        raise Unreachable(
            f"None of {len(failures)} proxies leads to the upstream. The first: {reason}"
        )

    def _in_turn(self) -> list[Proxy]:
        """The proxies in their order, those that failed a while ago last."""
        rests = dict(self._rests)
        resting = {proxy for proxy, until in rests.items() if not until.passed}
        return sorted(self._proxies, key=lambda proxy: proxy in resting)

    def _dial_through(
        self,
        proxy: Proxy,
        host: str,
        port: int,
        opened: Callable[[socket.socket], None],
    ) -> socket.socket:
        connection = self._direct.dial(proxy.host, proxy.port, opened)
        timeout = connection.gettimeout()
        negotiation = Negotiation(connection, Deadline.after(self._seconds))
        ready = False
        try:
            if proxy.scheme == "https":
                connection = self._tls.wrap_socket(
                    connection,
                    server_hostname=proxy.host,
                    do_handshake_on_connect=False,
                )
                opened(connection)
                negotiation.secure(connection)
            reason = negotiation.connect(proxy, host, port)
            opened(connection)  # an interrupt is no failure of the proxy
            if reason:
                raise self._failure(proxy, reason)
            ready = True
        finally:
            if not ready:
                connection.close()
        if isinstance(connection, ssl.SSLSocket):
            return bridge(connection, timeout)
        connection.settimeout(timeout)
        return connection

    def _failure(self, proxy: Proxy, reason: str) -> Unreachable:
        log.warning("The proxy %s %s.", proxy, reason)
        return Unreachable(f"The proxy {reason}.")


class Negotiation(SyncSocketStream):
    """What is said to a proxy and what it answers, until a deadline that its bytes do not move."""

    def __init__(self, connection: socket.socket, deadline: Deadline) -> None:
        self._connection = connection
        self._deadline = deadline
        self._seconds = round(deadline.left)
        self._failure = ""  # of TLS
        self._buffer = b""
        self._last_sent = b""
        self._last_read = b""

    def secure(self, connection: ssl.SSLSocket) -> None:
        """Agree on TLS; `connect` tells of a failure."""
        self._connection = connection
        try:
            shake_hands(connection, self._deadline)
        except ssl.SSLCertVerificationError as error:
            reason = error.verify_message
            self._failure = f"has a certificate that cannot be trusted ({reason})"
        except OSError:
            self._failure = (
                "did not agree on TLS; correct its scheme and port in PROXY_URL"
            )

    def connect(self, proxy: Proxy, host: str, port: int) -> str:
        """Have the proxy connect to a host; why it did not, as the end of a sentence, or ""."""
        if self._failure:
            return self._failure
        connector = create_connector(
            ProxyType.SOCKS5 if proxy.scheme == "socks5" else ProxyType.HTTP,
            username=proxy.user or None,
            password=proxy.password if proxy.user else None,
            rdns=True,
            resolver=SyncResolver(),
        )
        try:
            connector.connect(self, host, port)
        except ReplyError as error:
            return self._reason(proxy, error.error_code)
        except TimeoutError:
            return f"did not answer within {self._seconds} s"
        except OSError:
            return CLOSED
        except ValueError:  # what it says of itself is no text, no address
            return GARBAGE
        # nothing is sent by an upstream that was sent nothing
        return GARBAGE if self._buffer else ""

    def _reason(self, proxy: Proxy, code: int | None) -> str:
        if proxy.scheme == "socks5":
            return self._socks_reason(proxy, code)
        if code in UNAUTHORIZED:
            return WRONG_PASSWORD if proxy.user else NO_PASSWORD
        if code is None or not 400 <= code <= 599:
            return GARBAGE
        return REFUSED if code < 500 else NOT_REACHED

    def _socks_reason(self, proxy: Proxy, code: int | None) -> str:
        """`code`: as in RFC 1928, 6; None before there is one."""
        if code is not None:
            return REFUSED if code in SOCKS_REFUSALS else NOT_REACHED
        if self._last_read == _NO_METHOD:
            return WRONG_PASSWORD if proxy.user else NO_PASSWORD
        signs_in = self._last_sent.startswith(_AUTHENTICATION)
        is_answer = self._last_read.startswith(_AUTHENTICATION)
        return WRONG_PASSWORD if signs_in and is_answer else GARBAGE

    # python-socks calls these
    def write(self, data: bytes) -> None:
        self._last_sent = data
        self._connection.settimeout(max(self._deadline.left, 0.001))
        self._connection.sendall(data)

    def read(self, max_bytes: int = LONGEST_ANSWER) -> bytes:
        """The head of an HTTP answer. Raises ReplyError for one that is too large."""
        while b"\r\n\r\n" not in self._buffer:
            if len(self._buffer) > LONGEST_ANSWER:
                raise ReplyError("a head without end")
            self._receive()
        head, end, self._buffer = self._buffer.partition(b"\r\n\r\n")
        return head + end

    def read_exactly(self, n: int) -> bytes:
        while len(self._buffer) < n:
            self._receive()
        self._last_read, self._buffer = self._buffer[:n], self._buffer[n:]
        return self._last_read

    def _receive(self) -> None:
        """Raises TimeoutError, or OSError where the connection ends."""
        piece = None
        if not self._deadline.passed:
            piece = receive(self._connection, self._deadline)
        if piece is None:
            raise TimeoutError
        if not piece:
            raise ConnectionResetError
        self._buffer += piece

    def close(self) -> None:
        """Whoever made the connection closes it."""
