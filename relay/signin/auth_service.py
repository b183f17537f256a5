"""Signing in by a service of the operator's own, AUTH_URL: a form POST of `username` and `password`. Blocks.

It answers with JSON: `accessToken` or `access_token`, and `expires`. go-chatgpt-api's /chatgpt/login and the one here
are such services.
"""

from __future__ import annotations

from relay.errors import SignInChanged, WrongCredentials
from relay.signin.auth_pages import refusal_by
from relay.signin.grants import Credentials, Grant, expiry_of
from relay.signin.pages import Page, Pages, Way, expect, text_in
from relay.signin.platform import read_login
from relay.upstreams.wording import error_text
from relay.values import frozen

STEP = "AUTH_URL"
NO_TOKEN = "The service at AUTH_URL answered without an access token. Look at its log."


@frozen
class AuthService:
    """`url`: it alone is sent the password, and no redirect is followed. `way`: without the proxies to OpenAI."""

    way: Way
    url: str

    def sign_in(self, credentials: Credentials) -> Grant:
        """Raises RelayError."""
        fields = {"username": credentials.email, "password": credentials.password}
        with Pages(self.way, (self.url,)).opened() as pages:
            page = pages.post(self.url, STEP, data=fields)
        if page.status in (400, 401, 403, 422):
            words = " ".join([*error_text(page.json()), _code_of(page)])
            raise refusal_by(words) or WrongCredentials()
        expect(page, STEP, 200)
        answer = page.json()
        token = text_in(answer, "accessToken") or text_in(answer, "access_token")
        if not token:
            raise SignInChanged(NO_TOKEN)
        return Grant(token, expiry_of(token, answer.get("expires")))


def _code_of(page: Page) -> str:
    """How a service as this one is says which error it is."""
    return page.headers.get("x-error-code", "").replace("challenged", "captcha")


@frozen
class DashboardLogin:
    """The dashboard's JSON for the access token that such a service gives."""

    service: AuthService
    way: Way
    platform: str

    def sign_in(self, credentials: Credentials) -> Grant:
        """Raises RelayError."""
        grant = self.service.sign_in(credentials)
        with Pages(self.way, (self.platform,)).opened() as pages:
            login = read_login(pages, self.platform, grant.access_token)
        return Grant(grant.access_token, grant.expires, login)
