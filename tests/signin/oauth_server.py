"""An issuer of the tests' own: a server on a free port that signs invented people in, and refuses what the real one refuses.

It is strict about methods, types, fields and PKCE, gives every code and refresh token once, and has canned answers by
path: silence, a cut connection, a page, garbage. It records what it was sent, and each secret that it made.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from tests.tokens import jwt

CLIENT_ID = "app_EMoamEEZ73f0CkXaXp7hrann"
USER_CODE = "/api/accounts/deviceauth/usercode"
DEVICE_TOKEN = "/api/accounts/deviceauth/token"
TOKEN = "/oauth/token"
REVOKE = "/oauth/revoke"
FORM = "application/x-www-form-urlencoded"
JSON = "application/json"
SCOPE = {"openid", "profile", "email", "offline_access"}
PAGE = b"<!doctype html><title>Just a moment...</title><script>cf_chl_opt</script>"


@dataclass(frozen=True)
class Canned:
    """An answer that is given in the place of the right one. `cut`: bytes of the body, then the connection ends."""

    status: int = 200
    body: bytes = b""
    type: str = JSON
    silent: bool = False
    cut: int | None = None

    @classmethod
    def error(cls, status: int, code: str, message: str = "") -> Canned:
        """As the issuer's own errors are."""
        error = {"message": message, "code": code, "type": "invalid_request_error"}
        return cls(status, json.dumps({"error": error}).encode())

    @classmethod
    def oauth_error(cls, status: int, code: str, description: str = "") -> Canned:
        """As RFC 6749 has them."""
        fields = {"error": code, "error_description": description}
        return cls(status, json.dumps(fields).encode())


@dataclass(frozen=True)
class Asked:
    path: str
    headers: dict[str, str] = field(repr=False)
    fields: dict[str, Any] = field(repr=False)


@dataclass
class Person:
    """Who signs in."""

    email: str = "person@example.org"
    plan: str = "plus"
    account: str = "workspace-1"
    user: str = "user-1"


class OAuthServer(ThreadingHTTPServer):
    """Its `url` is a value of AUTH_BASE_URL; `token_url`, one of OAUTH_TOKEN_URL."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.token_url = f"{self.url}{TOKEN}"
        self.person = Person()
        self.approved = True  # whether somebody types each device code
        self.interval: Any = "1"
        self.token_life = 864000
        self.rotates = True
        self.canned: dict[str, list[Canned]] = defaultdict(list)  # one each, by path
        self.asked: list[Asked] = []
        self.secrets: list[str] = []
        self.devices: dict[str, str] = {}  # id -> the code that is typed
        self.grants: dict[str, tuple[str, str]] = {}  # code -> challenge, redirect
        self.refresh_tokens: dict[str, str] = {}  # token -> valid, spent or revoked
        self.closing = threading.Event()
        threading.Thread(
            target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()

    def close(self) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # askers that leave

    def secret(self, kind: str) -> str:
        made = f"{kind}-{secrets.token_hex(16)}"
        self.secrets.append(made)
        return made

    def to(self, path: str) -> list[Asked]:
        return [asked for asked in self.asked if asked.path == path]

    def new_refresh_token(self) -> str:
        token = self.secret("rt")
        self.refresh_tokens[token] = "valid"
        return token

    def tokens(self) -> dict[str, Any]:
        """What an exchange gives."""
        person = self.person
        auth = {
            "chatgpt_account_id": person.account,
            "chatgpt_user_id": person.user,
            "chatgpt_plan_type": person.plan,
        }
        claims = {
            "https://api.openai.com/auth": auth,
            "https://api.openai.com/profile": {"email": person.email},
            "jti": secrets.token_hex(8),
            "exp": int(time.time()) + self.token_life,
        }
        access_token = jwt(**claims)
        id_token = jwt(email=person.email, **claims)
        self.secrets += [access_token, id_token]
        return {
            "id_token": id_token,
            "access_token": access_token,
            "refresh_token": self.new_refresh_token(),
            "token_type": "Bearer",
            "expires_in": self.token_life,
        }

    def grant(self, challenge: str, redirect_uri: str) -> str:
        code = self.secret("ac")
        self.grants[code] = (challenge, redirect_uri)
        return code

    def authorize(self, address: str) -> str:
        """What a browser's address bar has after somebody signed in at `address`."""
        url = urlsplit(address)
        assert f"{url.scheme}://{url.netloc}" == self.url
        assert url.path == "/oauth/authorize"
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        assert query["response_type"] == "code" and query["client_id"] == CLIENT_ID
        assert query["redirect_uri"] == "http://localhost:1455/auth/callback"
        assert set(query["scope"].split()) == SCOPE
        assert query["code_challenge_method"] == "S256"
        assert len(query["code_challenge"]) == 43 and len(query["state"]) == 43
        assert query["id_token_add_organizations"] == "true"
        assert query["codex_cli_simplified_flow"] == "true"
        assert query["originator"] == "chatgpt-webapi"
        code = self.grant(query["code_challenge"], query["redirect_uri"])
        answer = urlencode({"code": code, "state": query["state"]})
        return f"{query['redirect_uri']}?{answer}"


def challenge_of(verifier: str) -> str:
    digest = hashlib.sha256(verifier.encode()).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


class Handler(BaseHTTPRequestHandler):
    server: OAuthServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        kind = self.headers["Content-Type"]
        fields = self.read_fields(kind, body)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.asked.append(Asked(self.path, headers, fields))
        if canned := self.server.canned[self.path]:
            self.give_canned(canned.pop(0))
            return
        is_exchange = fields.get("grant_type") == "refresh_token"
        if "authorization" in headers or not self.is_honest(headers, is_exchange):
            self.refuse(400, "bad_headers")
            return
        answers = {
            USER_CODE: self.give_user_code,
            DEVICE_TOKEN: self.give_grant,
            TOKEN: self.give_tokens,
            REVOKE: self.revoke,
        }
        answers[self.path](kind, fields)

    def is_honest(self, headers: dict[str, str], is_exchange: bool) -> bool:
        named = headers.get("originator", "chatgpt-webapi" if is_exchange else "")
        return named == headers.get("user-agent") == "chatgpt-webapi"

    def read_fields(self, kind: str, body: bytes) -> dict[str, Any]:
        if kind == JSON:
            fields = json.loads(body)
            assert isinstance(fields, dict)
            return fields
        found = parse_qs(body.decode(), strict_parsing=True)
        return {name: values[0] for name, values in found.items()}

    def give_user_code(self, kind: str, fields: dict[str, Any]) -> None:
        if kind != JSON or fields != {"client_id": CLIENT_ID}:
            self.refuse(400, "invalid_request")
            return
        device = self.server.secret("deviceauth")
        user_code = f"{secrets.token_hex(2)}-{secrets.token_hex(2)}".upper()
        self.server.devices[device] = user_code
        self.give(
            {
                "device_auth_id": device,
                "user_code": user_code,
                "interval": self.server.interval,
            }
        )

    def give_grant(self, kind: str, fields: dict[str, Any]) -> None:
        if kind != JSON or set(fields) != {"device_auth_id", "user_code"}:
            self.refuse(400, "invalid_request")
            return
        device = fields["device_auth_id"]
        is_known = self.server.devices.get(device) == fields["user_code"]
        if not is_known or not self.server.approved:
            self.refuse(403, "deviceauth_authorization_unknown")
            return
        del self.server.devices[device]
        verifier = self.server.secret("verifier-of-a-device")
        challenge = challenge_of(verifier)
        callback = f"{self.server.url}/deviceauth/callback"
        self.give(
            {
                "authorization_code": self.server.grant(challenge, callback),
                "code_challenge": challenge,
                "code_verifier": verifier,
            }
        )

    def give_tokens(self, kind: str, fields: dict[str, Any]) -> None:
        if fields.get("client_id") != CLIENT_ID:
            self.refuse(401, "invalid_client")
        elif fields.get("grant_type") == "refresh_token":
            self.exchange(kind, fields)
        elif kind != FORM or set(fields) != {
            *("grant_type", "code", "redirect_uri", "client_id", "code_verifier")
        }:
            self.refuse(400, "invalid_request")
        else:
            self.redeem(fields)

    def redeem(self, fields: dict[str, Any]) -> None:
        grant = self.server.grants.pop(fields["code"], None)
        verifier = fields["code_verifier"]
        is_verifier = 43 <= len(verifier) <= 128
        if grant != (challenge_of(verifier), fields["redirect_uri"]) or not is_verifier:
            self.refuse(400, "invalid_grant")
            return
        self.give(self.server.tokens())

    def exchange(self, kind: str, fields: dict[str, Any]) -> None:
        token = fields.get("refresh_token", "")
        state = self.server.refresh_tokens.get(token)
        if kind not in (JSON, FORM) or state is None:
            self.refuse(401, "refresh_token_invalidated")
        elif state == "spent":
            self.refuse(401, "refresh_token_reused")
        elif state == "revoked":
            self.refuse(401, "refresh_token_invalidated")
        else:
            tokens = self.server.tokens()
            if self.server.rotates:
                self.server.refresh_tokens[token] = "spent"
            else:
                del tokens["refresh_token"]
            self.give(tokens)

    def revoke(self, kind: str, fields: dict[str, Any]) -> None:
        hint = {"token_type_hint": "refresh_token", "client_id": CLIENT_ID}
        token = fields.get("token", "")
        if kind != JSON or fields != {"token": token, **hint}:
            self.refuse(400, "invalid_request")
            return
        self.server.refresh_tokens[token] = "revoked"
        self.give({})

    def refuse(self, status: int, code: str) -> None:
        # as servers do that quote what they were sent
        message = f"Refused: {json.dumps(self.server.asked[-1].fields)}"
        self.give_canned(Canned.error(status, code, message))

    def give(self, payload: dict[str, Any]) -> None:
        self.give_canned(Canned(200, json.dumps(payload).encode()))

    def give_canned(self, canned: Canned) -> None:
        self.close_connection = canned.silent or canned.cut is not None
        if canned.silent:
            self.server.closing.wait(60)
            return
        self.send_response(canned.status)
        self.send_header("Content-Type", canned.type)
        self.send_header("Content-Length", str(len(canned.body)))
        self.end_headers()
        self.wfile.write(canned.body[: canned.cut])
