"""The requests of one sign-in: one cookie jar, one deadline, and no origin but those that it was given."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from threading import Timer
from typing import Any
from urllib.parse import parse_qsl, urljoin, urlsplit

import requests
import urllib3

from relay.deadline import Deadline
from relay.errors import (
    Challenged,
    RateLimited,
    RelayError,
    SignInChanged,
    Unreachable,
    UpstreamFailed,
    UpstreamTimeout,
)
from relay.signin.connections import SocketAdapter, Sockets, trusted
from relay.signin.forms import is_browser_check
from relay.signin.grants import TOO_SLOW
from relay.upstreams.wording import parse_json, retry_after

log = logging.getLogger(__name__)

USER_AGENT = "chatgpt-webapi"
MOST_BYTES = 1024 * 1024  # of one page
MOST_REDIRECTS = 10
_PIECE = 16 * 1024
UNREACHABLE = "The sign-in pages cannot be reached. Try again; if it stays, look at the network and at PROXY_URL."
BROKE_OFF = "The sign-in pages broke off in the middle of an answer. Try again."
CHALLENGED = (
    "The sign-in pages demand a captcha or a browser check, and none is solved here. Sign in with a browser, and "
    "send the access token that https://chatgpt.com/api/auth/session shows then."
)
LIMITED = "The sign-in pages take no more sign-ins for now. Wait before the next try."
FAILED = "The sign-in pages answered that they failed. Try again."
TOO_LARGE = "larger than any page of a sign-in"
FOREIGN = "it leads to another origin"


class Way:
    """How pages are reached. `proxies`: tried one after the other, until one can be reached."""

    def __init__(
        self,
        connect_seconds: float,
        read_seconds: float,
        total_seconds: float,
        proxies: tuple[str, ...] = (),
    ) -> None:
        self.connect_seconds = connect_seconds
        self.read_seconds = read_seconds
        self.total_seconds = total_seconds
        self.proxies = tuple(map(resolving_remotely, proxies))

    @cached_property
    def tls(self) -> ssl.SSLContext:
        """Made once it is needed: certificates take megabytes."""
        return trusted()

    def without_proxies(self) -> Way:
        return Way(self.connect_seconds, self.read_seconds, self.total_seconds)


def resolving_remotely(proxy: str) -> str:
    """A SOCKS proxy finds the names itself, also where it is written socks5://, as in other programs."""
    scheme, _, rest = proxy.partition("://")
    scheme = "socks5h" if scheme.lower() == "socks5" else scheme.lower()
    return f"{scheme}://{rest}"


def origin_of(url: str) -> str:
    """Scheme, host and port of an http or https URL; "" for anything else."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return ""
    default = {"http": 80, "https": 443}.get(parts.scheme)
    if default is None or not parts.hostname or parts.username is not None:
        return ""
    return f"{parts.scheme}://{parts.hostname}:{default if port is None else port}"


def path_of(url: str) -> str:
    return urlsplit(url).path


def query_of(url: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(url).query[:8192], keep_blank_values=True))


@dataclass(frozen=True)
class Page:
    """An answer. `headers`: names in lower case; `location`: where it leads, as a whole URL, or ""."""

    url: str = field(repr=False)
    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)

    @cached_property
    def location(self) -> str:
        target = self.headers.get("location", "")
        if not 300 <= self.status <= 399 or not target:
            return ""
        try:
            return urljoin(self.url, target)
        except ValueError:
            return "unreadable:"

    def json(self) -> dict[str, Any]:
        """The JSON object that it is; empty where it is none."""
        found = parse_json(self.body)
        return found if isinstance(found, dict) else {}


class Pages:
    """Raises RelayError for what cannot be asked, UpstreamTimeout at the deadline whatever keeps coming."""

    def __init__(self, way: Way, origins: tuple[str, ...]) -> None:
        self._way = way
        self._origins = tuple(map(origin_of, origins))
        self._deadline = Deadline.after(way.total_seconds)
        self._sockets = Sockets()
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.headers.update(
            {"User-Agent": USER_AGENT, "Accept-Encoding": "identity"}
        )
        self._proxies = list(way.proxies)
        asked = (*self._origins, *way.proxies)
        tls = way.tls if any(each.startswith("https:") for each in asked) else None
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, SocketAdapter(self._sockets, tls))

    @contextmanager
    def opened(self) -> Iterator[Pages]:
        """While the sign-in lasts: at its deadline all connections end, and after it they are closed."""
        timer = Timer(self._deadline.left, self._sockets.shut_down)
        timer.daemon = True
        timer.start()
        try:
            yield self
        finally:
            timer.cancel()
            self._session.close()
            self._sockets.close()

    def get(self, url: str, step: str, **options: Any) -> Page:
        return self._ask("GET", url, step, options)

    def post(self, url: str, step: str, **options: Any) -> Page:
        """`options`: `data` for a form, `json`, `headers`, as requests has them."""
        return self._ask("POST", url, step, options)

    def follow(
        self, page: Page, step: str, is_end: Callable[[str], bool] = lambda url: False
    ) -> Page:
        """The page where redirects lead, or the last before one whose location `is_end`."""
        for _ in range(MOST_REDIRECTS):
            if not page.location or is_end(page.location):
                return page
            page = self.get(page.location, step)
        raise SignInChanged(step=step)

    def _ask(self, method: str, url: str, step: str, options: dict[str, Any]) -> Page:
        if origin_of(url) not in self._origins or origin_of(url) == "":
            raise SignInChanged(step=f"{step}, {FOREIGN}")
        while True:
            try:
                return self._ask_once(method, url, step, options)
            except Unreachable:
                # nothing was sent, so another proxy may be tried; from the first answer on it stays the same
                if len(self._proxies) < 2 or self._deadline.passed:
                    raise
                log.warning(
                    "A proxy of PROXY_URL cannot be reached: the next is tried."
                )
                del self._proxies[0]

    def _ask_once(
        self, method: str, url: str, step: str, options: dict[str, Any]
    ) -> Page:
        way = self._way
        left = max(0.01, self._deadline.left)
        if self._deadline.passed:
            raise UpstreamTimeout(TOO_SLOW)
        proxy = self._proxies[0] if self._proxies else ""
        try:
            with self._session.request(
                method,
                url,
                **options,
                timeout=(min(way.connect_seconds, left), min(way.read_seconds, left)),
                proxies={"http": proxy, "https": proxy} if proxy else {},
                allow_redirects=False,
                stream=True,
            ) as response:
                self._proxies = self._proxies[:1]
                body = _body_of(response, step)
                headers = {
                    name.lower(): text for name, text in response.headers.items()
                }
                answer = Page(url, response.status_code, headers, body)
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise self._failure_of(error) from None
        if self._sockets.is_shut:  # what was cut there may look whole
            raise UpstreamTimeout(TOO_SLOW)
        return answer

    def _failure_of(self, error: Exception) -> RelayError:
        if self._sockets.is_shut or self._deadline.passed:
            return UpstreamTimeout(TOO_SLOW)
        reason = getattr(error.args[0], "reason", None) if error.args else None
        is_unreachable = isinstance(
            error,
            (requests.ConnectTimeout, requests.exceptions.ProxyError),
        ) or isinstance(reason, urllib3.exceptions.NewConnectionError)
        if is_unreachable:
            return Unreachable(UNREACHABLE)
        if isinstance(error, requests.exceptions.SSLError):
            log.warning("The certificate of a sign-in page cannot be verified.")
            return Unreachable(f"{UNREACHABLE} (No TLS connection came about.)")
        if isinstance(error, (requests.Timeout, urllib3.exceptions.TimeoutError)):
            return UpstreamTimeout(TOO_SLOW)
        return UpstreamFailed(BROKE_OFF)


def _body_of(response: requests.Response, step: str) -> bytes:
    body = bytearray()
    for piece in response.iter_content(_PIECE):
        body += piece
        if len(body) > MOST_BYTES:
            raise SignInChanged(step=f"{step}, {TOO_LARGE}")
    return bytes(body)


def text_in(payload: Mapping[str, Any], name: str) -> str:
    """A text of a JSON object that a header can carry; "" where there is none."""
    text = payload.get(name)
    if not isinstance(text, str) or not text.isascii() or not text.isprintable():
        return ""
    return text


def failure_of(page: Page, step: str) -> RelayError:
    """The error for a page that is not the expected one."""
    if page.status == 429:
        return RateLimited(LIMITED, retry_after=retry_after(page.headers))
    if is_browser_check(page.headers, page.body):
        return Challenged(CHALLENGED)
    if page.status >= 500:
        return UpstreamFailed(f"{FAILED} (Status {page.status} at the step: {step}.)")
    return SignInChanged(step=f"{step}, status {page.status}")


def expect(page: Page, step: str, *statuses: int) -> None:
    """Raise the error for a page of another status, or for one that wants a browser to solve something."""
    if page.status not in statuses or page.headers.get("cf-mitigated"):
        raise failure_of(page, step)


def expect_text(payload: Mapping[str, Any], name: str, step: str) -> str:
    """The text that `text_in` finds. Raises SignInChanged where there is none."""
    text = text_in(payload, name)
    if not text:
        raise SignInChanged(step=f"{step}, it has no {name}")
    return text
