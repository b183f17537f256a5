"""What every request meets: its id, browser rules, the key, the error handler, the access log, the prefix."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from flask import Blueprint
from werkzeug.exceptions import HTTPException
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from relay import downloads
from relay.access import WrongKeys
from relay.errors import (
    BadRequest,
    Forbidden,
    InternalError,
    MethodNotAllowed,
    NotFound,
    RelayError,
    TooLarge,
    Unauthorized,
)
from relay.logs import write_line
from relay.service import Service
from relay.values import frozen
from relay.web.app import App
from relay.web.browsers import BrowserRules, comes_from_page
from relay.web.incoming import CUT_SHORT, TOO_LARGE, Incoming
from relay.web.proxies import TrustedProxies
from relay.web.response import HeadAlone, Response

log = logging.getLogger("chatgpt_webapi")

NO_WEBSOCKETS = (
    "WebSockets do not pass through this service: ask over HTTP, where answers come as "
    "event streams."
)
OUTSIDE = "/outside/of/the/prefix"
HEALTH = "/healthz"


@frozen
class Dialect:
    """A dialect's routes, and what the edge must know of them.

    `first_segments`: of its paths; "" is every path that is no other dialect's. `error`: its
    response to a failure; it must not raise. `public`: endpoints that need no key, and that every
    page may load. `keyless`: endpoints that need none, because they spend a password of the
    caller's own; the rules for browsers hold. `answers_head`: endpoints whose view a HEAD may run,
    because it asks no upstream. `token_in_body`: a POST may have its credential in a field, so the
    view authenticates. `recognizes`: whether the route has a use for a caller's own credential that
    no upstream recognizes. `challenge`: how a browser is told to ask for a key.
    """

    routes: Blueprint
    first_segments: tuple[str, ...]
    error: Callable[[RelayError, Incoming], Response]
    public: frozenset[str] = frozenset()
    keyless: frozenset[str] = frozenset()
    answers_head: frozenset[str] = frozenset()
    token_in_body: bool = False
    challenge: str = "Bearer"
    recognizes: Callable[[str, Incoming], bool] = lambda token, incoming: False


def install(app: App, service: Service, dialects: Iterable[Dialect]) -> None:
    """Put the edge around the app, and the dialects' routes into it."""
    edge = Edge(app, service, tuple(dialects))
    app.edge = edge
    app.url_map.merge_slashes = app.url_map.redirect_defaults = False
    for dialect in edge.dialects:
        app.register_blueprint(dialect.routes)
    if service.settings.api_prefix:
        app.wsgi_app = mount(app.wsgi_app, service.settings.api_prefix)  # type: ignore[method-assign]


def mount(app: Any, prefix: str) -> Any:
    """All routes below the prefix; outside it there is only /healthz."""

    def outside(environ: dict[str, Any], start_response: Any) -> Any:
        if environ["PATH_INFO"] != HEALTH:
            environ["PATH_INFO"] = OUTSIDE
        return app(environ, start_response)

    return DispatcherMiddleware(outside, {prefix: app})


class Edge:
    """The edge of one service. It reads headers; bodies are the views'."""

    def __init__(
        self, app: App, service: Service, dialects: tuple[Dialect, ...]
    ) -> None:
        self.dialects = dialects
        self._app = app
        self._service = service
        self._browsers = BrowserRules(
            service.settings.cors_origins, service.access.needs_key
        )
        self._keyless_browsers = BrowserRules(service.settings.cors_origins, False)
        self._wrong_keys = WrongKeys()
        self._proxies = TrustedProxies(service.settings.forwarded_allow_ips)
        self._by_segment = {
            segment: dialect
            for dialect in dialects
            for segment in dialect.first_segments
        }

    def answer(self, incoming: Incoming) -> Response:
        """The response to a request, whatever happens; its line in the log is written once it is sent."""
        self._hand_in(incoming)
        try:
            response = self._admit(incoming) or self._app.dispatch(incoming)
        except Exception as error:
            response = self._failed(incoming, error)
        self._complete(incoming, response)
        return response

    def _complete(self, incoming: Incoming, response: Response) -> None:
        """Give a response what every one has."""
        headers = response.headers
        headers["X-Request-Id"] = incoming.id
        headers["X-Content-Type-Options"] = "nosniff"
        if "Cache-Control" not in headers and not passes(response, "cache-control"):
            headers["Cache-Control"] = "no-store"
        headers |= self._browsers.cors(incoming.fields.get("Origin", ""))
        response.when_closed += incoming.when_sent
        incoming.when_sent = []  # what holds a large body would hold itself
        response.when_closed.append(AccessLine(incoming, response.status).write)

    def _hand_in(self, incoming: Incoming) -> None:
        """Give the request what its view reads beside it."""
        incoming.service = self._service
        incoming.proxies = self._proxies
        segment = incoming.path.split("/", 2)[1]
        incoming.dialect = self._by_segment.get(segment, self._by_segment[""])
        self._app.match(incoming)

    def _admit(self, incoming: Incoming) -> Response | None:
        """Nobody gets past here who may not ask, but to the public endpoints."""
        dialect = incoming.dialect
        if incoming.endpoint in dialect.public:
            return None
        is_keyless = incoming.endpoint in dialect.keyless
        headers = incoming.fields
        if not self._service.access.needs_key:
            check_host(incoming.host, self._service.settings.allowed_hosts)
        if comes_from_page(headers):
            browsers = self._keyless_browsers if is_keyless else self._browsers
            browsers.check(headers, incoming.host)
        is_preflight = "Access-Control-Request-Method" in headers
        if incoming.method == "OPTIONS" and is_preflight:
            return Response(status=204, headers=self._browsers.preflight(headers))
        if not is_keyless:
            self._authenticate(incoming)
        if headers.get("Upgrade", "").strip().lower() == "websocket":
            raise BadRequest(NO_WEBSOCKETS)
        if asks_nobody(incoming):
            return HeadAlone(content_type="application/json")
        return None

    def _authenticate(self, incoming: Incoming) -> None:
        """Find out who asks, or leave that to the view, which reads the body. Raises RelayError."""
        if not incoming.is_proven:
            self._wrong_keys.check(incoming.caller_address)
        if not self._view_authenticates(incoming):
            incoming.authenticate()
        elif not incoming.is_proven:
            self._service.access.check(incoming.credential)

    def _view_authenticates(self, incoming: Incoming) -> bool:
        has_view = incoming.rule is not None
        may_have_field = incoming.method == "POST" and incoming.dialect.token_in_body
        return has_view and may_have_field

    def _failed(self, incoming: Incoming, error: Exception) -> Response:
        """Every failure, in the shape that its path promises."""
        if not isinstance(error, (RelayError, HTTPException)):
            asked = f"{incoming.method} {logged_path(incoming.path)}"
            log.error(
                "Request %s failed unexpectedly: %s", incoming.id, asked, exc_info=error
            )
        failure = to_relay_error(error)
        response = incoming.dialect.error(failure, incoming)
        failure.drop_frames()
        incoming.failure = failure
        if isinstance(failure, Unauthorized) and failure.wrong_key:
            self._wrong_keys.add(incoming.caller_address)
        response.headers.update(error_headers(failure, incoming.dialect.challenge))
        turn = incoming.delivery.turn if incoming.delivery else None
        if turn is not None and turn.conversation_id:  # it has the question
            response.headers["X-Conversation-Id"] = turn.conversation_id
        if isinstance(error, HTTPException):
            allow = dict(error.get_headers()).get("Allow")
            if allow:
                response.headers["Allow"] = allow
        return response


def passes(response: Response, name: str) -> bool:
    """Whether a response has such a field of an upstream's. `name`: in lower case, as theirs are."""
    return any(known == name for known, _ in response.passed)


def asks_nobody(incoming: Incoming) -> bool:
    """Whether a request is a HEAD of a view that would ask an upstream."""
    is_head = incoming.method == "HEAD" and incoming.rule is not None
    return is_head and incoming.endpoint not in incoming.dialect.answers_head


def error_headers(failure: RelayError, challenge: str = "Bearer") -> dict[str, str]:
    """What goes with every failure, whatever its shape. `challenge`: see `Dialect`."""
    headers = {"X-Error-Source": failure.source, "X-Error-Code": failure.code}
    if failure.retry_after is not None:
        headers["Retry-After"] = str(failure.retry_after)
    if failure.status == 401 and failure.source == "caller":
        headers["WWW-Authenticate"] = f'{challenge} realm="chatgpt-webapi"'
    return headers


def check_host(host: str, allowed: tuple[str, ...]) -> None:
    """Raise Forbidden for a host name that is not this machine's own: a page may have rebound it."""
    name = urlsplit(f"//{host}").hostname or ""
    if name == "localhost" or name in allowed:
        return
    try:
        ip_address(name)
    except ValueError:
        raise Forbidden(
            "Without a client key this service answers to addresses and localhost "
            "alone. Set AUTHORIZATION, or ALLOWED_HOSTS to this host's name."
        ) from None


class AccessLine:
    """A request's line in the log: `who` is the owner, `from` the address; `why` says of a failure what may be said.

    While a stream is open this is all that is held of its request.
    """

    __slots__ = (
        "_address",
        "_delivery",
        "_failure",
        "_id",
        "_method",
        "_owner",
        "_path",
        "_started",
        "_status",
    )

    def __init__(self, incoming: Incoming, status: int) -> None:
        self._id = incoming.id
        self._owner = incoming.owner
        self._address = incoming.caller_address
        self._method = incoming.method
        self._path = incoming.path
        self._status = status
        self._delivery = incoming.delivery
        self._failure = incoming.failure
        self._started = incoming.started

    def write(self) -> None:
        """Write it, once the response was sent or broke off."""
        level = logging.DEBUG if self._path == HEALTH else logging.INFO
        if not log.isEnabledFor(level):
            return
        failure = self._failure
        outcome = failure.code if failure else "-"
        reason = failure.reason if failure else ""
        if self._delivery is not None:
            outcome = self._delivery.outcome
            reason = self._delivery.reason or reason
        fields = {
            "id": self._id,
            "who": self._owner or "-",
            "from": self._address or "-",
            "method": self._method,
            "path": logged_path(self._path),
            "status": self._status,
            "outcome": outcome,
            "ms": round((time.monotonic() - self._started) * 1000),
        }
        if reason:
            fields["why"] = reason
        write_line(log, level, "request", fields)


def logged_path(path: str) -> str:
    """A request's path as the log has it: without a link, which is the right to read a file."""
    return f"{downloads.PATH}..." if path.startswith(downloads.PATH) else path


def _other_methods(error: Exception) -> str:
    """A sentence with the methods that a route takes; "" where they are not known."""
    methods = sorted({*(getattr(error, "valid_methods", None) or ())} - {"OPTIONS"})
    if not methods:
        return ""
    return f"This route does not take that method, but {' and '.join(methods)}."


def to_relay_error(error: Exception) -> RelayError:
    """Flask's and werkzeug's own failures as ours."""
    if isinstance(error, RelayError):
        return error
    code = error.code if isinstance(error, HTTPException) else None
    match code:
        case 404:
            return NotFound()
        case 405:
            return MethodNotAllowed(_other_methods(error))
        case 413:
            return TooLarge(TOO_LARGE)
        case int() if code < 500:
            return BadRequest(CUT_SHORT)
    return InternalError()
