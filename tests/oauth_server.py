"""A token server of the tests' own: strict about the form, gives each refresh token once, and fails in every known way."""

from __future__ import annotations

import json
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

from tests.tokens import jwt

FORM = {
    "grant_type": "refresh_token",
    "client_id": "app_EMoamEEZ73f0CkXaXp7hrann",
    "scope": "openid profile email offline_access",
}
EXPIRED = {
    "detail": {
        "message": "Your authentication token has expired. Please try signing in again.",
        "type": "invalid_request_error",
        "param": None,
        "code": "token_expired",
    }
}


def error(code: str) -> bytes:
    """A refusal as the real one words it."""
    fields = {"message": f"No: {code}.", "type": "invalid_request_error", "code": code}
    return json.dumps({"error": {**fields, "param": None}}).encode()


@dataclass
class Behaviour:
    """`refusals`: one each, before any exchange. `before`, `after`: called when a token is not yet, or was, replaced."""

    refusals: list[tuple[int, dict[str, str], bytes]] = field(default_factory=list)
    garbage: list[bytes] = field(default_factory=list)  # each in place of an answer
    cuts: int = 0  # so many answers are cut within their head, after the exchange
    delay: float = 0.0
    silent: threading.Event | None = None  # until it is set, nothing is answered
    rotates: bool = True
    lifetime: float = 36000.0
    opaque: bool = False  # access tokens that say nothing
    before: Callable[[], None] = lambda: None
    after: Callable[[], None] = lambda: None


class OAuthServer(ThreadingHTTPServer):
    """`current`: refresh tokens that may be used, with the person they are of. `granted`: access tokens."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/oauth/token"
        self.behaviour = Behaviour()
        self.current: dict[str, str] = {}
        self.granted: dict[str, str] = {}
        self.asked: list[str] = []  # refresh tokens, in their order
        self.lock = threading.Lock()
        threading.Thread(
            target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # askers that are killed are what the tests are about

    def sign_in(self, person: str = "someone") -> str:
        """A new refresh token."""
        token = f"rt_{uuid.uuid4().hex}{uuid.uuid4().hex}"
        self.current[token] = person
        return token

    def access_token(self, person: str, lifetime: float) -> str:
        expires = int(time.time() + lifetime)
        auth = {"chatgpt_account_id": f"workspace-{person}", "user_id": person}
        claims = {"https://api.openai.com/auth": auth, "exp": expires}
        token = f"opaque-{uuid.uuid4().hex}" if self.behaviour.opaque else ""
        token = token or jwt(**claims, jti=uuid.uuid4().hex)
        self.granted[token] = person
        return token


class Handler(BaseHTTPRequestHandler):
    server: OAuthServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_POST(self) -> None:
        behaviour = self.server.behaviour
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        kind = self.headers.get("Content-Type")
        form = {name: values[0] for name, values in parse_qs(body).items()}
        token = form.pop("refresh_token", "")
        if kind != "application/x-www-form-urlencoded" or form != FORM:
            return self.respond(400, {}, error("invalid_request"))
        with self.server.lock:
            self.server.asked.append(token)
        if behaviour.refusals:
            return self.respond(*behaviour.refusals.pop(0))
        if behaviour.silent is not None:
            behaviour.silent.wait(60)
        time.sleep(behaviour.delay)
        behaviour.before()
        with self.server.lock:
            person = self.server.current.get(token)
            if person is None:
                return self.respond(401, {}, error("refresh_token_reused"))
            answer = self.grant(token, person)
        behaviour.after()
        if behaviour.cuts:
            behaviour.cuts -= 1
            self.connection.shutdown(socket.SHUT_RDWR)
            return None
        if behaviour.garbage:
            return self.respond(200, {}, behaviour.garbage.pop(0))
        return self.respond(200, {}, json.dumps(answer).encode())

    def grant(self, token: str, person: str) -> dict[str, Any]:
        behaviour = self.server.behaviour
        answer: dict[str, Any] = {
            "access_token": self.server.access_token(person, behaviour.lifetime),
            "token_type": "Bearer",
            "expires_in": behaviour.lifetime,
            "id_token": jwt(sub=person),
        }
        if behaviour.rotates:
            del self.server.current[token]
            answer["refresh_token"] = self.server.sign_in(person)
        return answer

    def respond(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        self.send_header(
            "Content-Type", headers.pop("Content-Type", "application/json")
        )
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
