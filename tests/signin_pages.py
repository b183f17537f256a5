"""Sign-in servers of the tests' own: ChatGPT's page, the pages that ask for the password, and a service for AUTH_URL.

Each refuses what the real one refuses: other methods, fields, cookies, an order of its own. ChatGPT's page is at
127.0.0.1 and the others at localhost, because cookies do not tell ports apart. Everything they say is invented.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, urlencode, urlsplit

from tests.tokens import jwt

FORM = "application/x-www-form-urlencoded"
EMAIL = "ann@example.org"
PASSWORD = "p%ss wörd&x=1+2"
CLOUDFLARE = b"<!DOCTYPE html><title>Just a moment...</title><script>window._cf_chl_opt={}</script>"
REDIRECT_URI = "https://platform.openai.com/auth/callback"
LOGIN = b'{"object":"login", "user":{"session":{"sensitive_id":"sess-invented-1"}}, "invites":[]}'
BROWSER = {
    "js-available": "false",
    "webauthn-available": "true",
    "is-brave": "false",
    "webauthn-platform-available": "true",
}


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


def page(fields: str = "", status: int = 200) -> Answer:
    """A page with a form, and much around it."""
    body = f"<!doctype html><p>Welcome, no captcha needed</p><form method=POST>{fields}</form>"
    return Answer(status, body.encode(), (("Content-Type", "text/html"),))


def payload(value: Any, status: int = 200) -> Answer:
    headers = (("Content-Type", "application/json"),)
    return Answer(status, json.dumps(value).encode(), headers)


def moved(url: str, *cookies: str) -> Answer:
    body = f"Found. Redirecting to {url}".encode()
    return Answer(302, body, (("Location", url), *(("Set-Cookie", c) for c in cookies)))


def with_cookies(answer: Answer, *cookies: str) -> Answer:
    more = tuple(("Set-Cookie", cookie) for cookie in cookies)
    return Answer(answer.status, answer.body, (*answer.headers, *more))


@dataclass
class Received:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    cookies: dict[str, str]
    body: bytes

    @property
    def form(self) -> dict[str, str]:
        found = parse_qs(
            self.body.decode(), keep_blank_values=True, strict_parsing=True
        )
        return {name: values[0] for name, values in found.items() if len(values) == 1}


@dataclass
class Mode:
    """How the pages behave. `at`: answers in the place of a path's own; `hold`: what a path waits for."""

    at: dict[str, Answer] = field(default_factory=dict)
    drip: str = ""  # the path whose page comes byte by byte, for ever
    drip_head: str = ""  # the same with the headers
    hold: dict[str, threading.Event] = field(default_factory=dict)
    after_password: str = ""  # where the password page leads instead
    identifier_in_place: bool = False  # the authorization URL shows a form, no redirect
    expires: str = "2099-01-31T10:00:00.000Z"
    lasts: float = 86400.0  # of the access tokens
    session: dict[str, Any] | None = None


class Site(ThreadingHTTPServer):
    """A server whose `answer` is told what was received. It records that, and where it broke the protocol."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, host: str, answer: Callable[[Received], Answer]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://{host}:{self.server_address[1]}"
        self.received: list[Received] = []
        self.answer = answer
        self.mode = Mode()
        threading.Thread(
            target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # askers that leave are what the tests are about

    def asked(self, path: str) -> list[Received]:
        return [each for each in self.received if each.path == path]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Site

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        length = int(self.headers.get("Content-Length", 0))
        cookies = SimpleCookie(self.headers.get("Cookie", ""))
        received = Received(
            self.command,
            parts.path,
            {name: values[0] for name, values in parse_qs(parts.query).items()},
            {name.lower(): value for name, value in self.headers.items()},
            {name: morsel.value for name, morsel in cookies.items()},
            self.rfile.read(length),
        )
        self.server.received.append(received)
        mode = self.server.mode
        if parts.path in mode.hold:
            mode.hold[parts.path].wait(30)
        if parts.path in (mode.drip, mode.drip_head):
            return self._drip(parts.path == mode.drip_head)
        answer = mode.at.get(parts.path) or self.server.answer(received)
        self.send_response(answer.status)
        for name, value in answer.headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    def _drip(self, in_head: bool) -> None:
        self.close_connection = True
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        if not in_head:
            self.wfile.write(b"Content-Type: text/html\r\n\r\n")
        else:
            self.wfile.write(b"X-Long: ")
        until = time.monotonic() + 60
        while time.monotonic() < until:
            self.wfile.write(b"x")
            time.sleep(0.05)

    do_GET = _answer
    do_POST = _answer


class SignInPages:
    """ChatGPT's page, the pages for the password, and the platform's dashboard, and one account that they know."""

    def __init__(self) -> None:
        self.chatgpt = Site("127.0.0.1", self._chatgpt)
        self.auth = Site("localhost", self._auth)
        self.platform = Site("127.0.0.1", self._platform)
        self.mode = Mode()
        for site in self.sites:
            site.mode = self.mode
        self.email, self.password = EMAIL, PASSWORD
        self.tokens: list[str] = []
        self.states: dict[str, str] = {}  # state -> what was done last with it
        self.returns: dict[str, str] = {}  # state -> where the flow goes back to
        self.codes: set[str] = set()
        self.signed_in: set[str] = set()
        self.lock = threading.Lock()

    @property
    def sites(self) -> tuple[Site, ...]:
        return self.chatgpt, self.auth, self.platform

    @property
    def settings(self) -> dict[str, str]:
        return {
            "CHATGPT_BASE_URL": self.chatgpt.url,
            "AUTH_BASE_URL": self.auth.url,
            "PLATFORM_BASE_URL": self.platform.url,
        }

    def stop(self) -> None:
        for held in self.mode.hold.values():
            held.set()
        for site in self.sites:
            site.shutdown()
            site.server_close()

    @property
    def sign_ins(self) -> int:
        """How often a password was sent."""
        return len(self.auth.asked("/u/login/password"))

    @property
    def all_received(self) -> list[Received]:
        return [received for site in self.sites for received in site.received]

    def new_token(self) -> str:
        with self.lock:
            token = jwt(
                sub="ann", exp=int(time.time() + self.mode.lasts), n=len(self.tokens)
            )
            self.tokens.append(token)
            return token

    def _chatgpt(self, got: Received) -> Answer:
        if got.headers["user-agent"] != "chatgpt-webapi":
            return Answer(400)
        match got.method, got.path:
            case "GET", "/api/auth/csrf":
                answer = payload({"csrfToken": "csrf-1"})
                return with_cookies(answer, "csrf=csrf-1; Path=/; HttpOnly")
            case "POST", "/api/auth/signin/auth0":
                return self._signin(got)
            case "GET", "/api/auth/callback/auth0":
                return self._callback(got)
            case "GET", "/api/auth/session":
                return self._session(got)
        return Answer(404)

    def _signin(self, got: Received) -> Answer:
        wanted = {"callbackUrl": "/", "csrfToken": "csrf-1", "json": "true"}
        is_form = got.headers["content-type"] == FORM
        if got.query != {"prompt": "login"} or not is_form or got.form != wanted:
            return Answer(400)
        if got.cookies != {"csrf": "csrf-1"}:
            return Answer(403)
        back = f"{self.chatgpt.url}/api/auth/callback/auth0"
        query = urlencode({"client_id": "web", "redirect_uri": back, "state": "s-next"})
        answer = payload({"url": f"{self.auth.url}/authorize?{query}"})
        return with_cookies(answer, "next-state=s-next; Path=/")

    def _callback(self, got: Received) -> Answer:
        code = got.query.get("code", "")
        is_known = got.query.get("state") == got.cookies.get("next-state") == "s-next"
        if code not in self.codes or not is_known:
            return moved("/api/auth/error?error=OAuthCallback")
        self.codes.remove(code)
        session = secrets.token_hex(8)
        self.signed_in.add(session)
        return moved("/", f"session-token={session}; Path=/; HttpOnly")

    def _session(self, got: Received) -> Answer:
        if got.cookies.get("session-token") not in self.signed_in:
            return payload({})
        if self.mode.session is not None:
            return payload(self.mode.session)
        return payload(
            {
                "user": {"email": self.email},
                "expires": self.mode.expires,
                "accessToken": self.new_token(),
                "authProvider": "auth0",
            }
        )

    def _auth(self, got: Received) -> Answer:
        if got.headers["user-agent"] != "chatgpt-webapi":
            return Answer(400)
        match got.method, got.path:
            case "GET", "/authorize":
                return self._authorize(got)
            case (("GET" | "POST"), "/u/login/identifier"):
                return self._identifier(got)
            case "POST", "/u/login/password":
                return self._password(got)
            case "GET", "/authorize/resume":
                return self._resume(got)
            case "POST", "/oauth/token":
                return self._exchange(got)
        return Answer(404)

    def _authorize(self, got: Received) -> Answer:
        state = f"{secrets.token_hex(8)}&/"
        back = got.query["redirect_uri"]
        if back == REDIRECT_URI and got.query.get("response_type") != "code":
            return Answer(400)
        given = urlencode({"state": got.query["state"]})
        self.states[state] = "authorized"
        self.returns[state] = f"{back}?{given}"
        cookie = f"auth0={quote(state, safe='')}; Path=/; HttpOnly"
        if self.mode.identifier_in_place:
            escaped = state.replace("&", "&amp;")
            form = page(f'<input type="hidden" name="state" value="{escaped}" />')
            return with_cookies(form, cookie)
        return moved(f"/u/login/identifier?{urlencode({'state': state})}", cookie)

    def _goes_on(self, got: Received, *after: str) -> str:
        """The request's state, where its cookie fits and the step before it was done; else ""."""
        state = got.query.get("state", "")
        has_cookie = got.cookies.get("auth0") == quote(state, safe="")
        return state if has_cookie and self.states.get(state) in after else ""

    def _identifier(self, got: Received) -> Answer:
        state = self._goes_on(got, "authorized", "shown")
        if not state:
            return Answer(403, b"no state")
        if got.method == "GET":
            self.states[state] = "shown"
            return page('<input name="username"><button name=action value=default>')
        wanted = {"state": state, "username": self.email, **BROWSER}
        is_form = got.headers["content-type"] == FORM
        if self.states[state] != "shown" or not is_form:
            return Answer(403)
        if got.form.keys() != {*wanted, "action"}:
            return Answer(403, b"fields")
        if got.form != {**wanted, "action": "default"}:
            return page('<span data-error-code="invalid-email-format">', 400)
        self.states[state] = "named"
        return moved(f"/u/login/password?{urlencode({'state': state})}")

    def _password(self, got: Received) -> Answer:
        state = self._goes_on(got, "named")
        if not state or got.headers["content-type"] != FORM:
            return Answer(403, b"no state")
        if got.form.keys() != {"state", "username", "password", "action"}:
            return Answer(403, b"fields")
        given = got.form["username"], got.form["password"]
        if given != (self.email, self.password):
            return page('<span data-error-code="wrong-credentials">', 400)
        self.states[state] = "signed in"
        if self.mode.after_password:
            return moved(self.mode.after_password)
        return moved(f"/authorize/resume?{urlencode({'state': state})}")

    def _resume(self, got: Received) -> Answer:
        state = self._goes_on(got, "signed in")
        if not state:
            return Answer(403, b"no state")
        code = secrets.token_hex(8)
        self.codes.add(code)
        return moved(f"{self.returns[state]}&code={code}")

    def _exchange(self, got: Received) -> Answer:
        fields = json.loads(got.body)
        wanted = {"client_id", "grant_type", "code", "redirect_uri"}
        is_known = fields.keys() == wanted and fields["code"] in self.codes
        if not is_known or fields["redirect_uri"] != REDIRECT_URI:
            return payload({"error": "invalid_grant"}, 403)
        return payload({"access_token": self.new_token(), "expires_in": 86400})

    def _platform(self, got: Received) -> Answer:
        bearer = got.headers.get("authorization", "").removeprefix("Bearer ")
        is_login = (got.method, got.path) == ("POST", "/dashboard/onboarding/login")
        if not is_login or bearer not in self.tokens or got.body != b"{}":
            return Answer(401)
        return Answer(200, LOGIN, (("Content-Type", "application/json"),))


class AuthService(Site):
    """A service for AUTH_URL: a form of username and password in, JSON out."""

    def __init__(self) -> None:
        super().__init__("127.0.0.1", self._sign_in)
        self.token = jwt(sub="ann", exp=int(time.time()) + 86400)
        self.says: Answer = payload({"access_token": self.token})

    def _sign_in(self, got: Received) -> Answer:
        is_form = got.headers["content-type"] == FORM and got.method == "POST"
        if not is_form or got.form.keys() != {"username", "password"}:
            return Answer(404)
        if got.form != {"username": EMAIL, "password": PASSWORD}:
            return payload({"detail": "Wrong."}, 401)
        return self.says
