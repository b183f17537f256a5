"""Signing in to the platform's page: its dashboard's own JSON, as go-chatgpt-api's clients read it. Blocks.

Source: protocol notes, platform login. Each sign-in has a cookie jar of its own, so there is no session to end first.
"""

from __future__ import annotations

import secrets
from urllib.parse import urlencode

from relay.errors import SignInChanged
from relay.signin.auth_pages import AuthPages
from relay.signin.grants import Credentials, Grant, expiry_of
from relay.signin.pages import Pages, Way, expect, expect_text, query_of
from relay.values import frozen

CLIENT_ID = "DRivsnm2Mu42T3KOpqdtwB3NYviHYzwD"
REDIRECT_URI = "https://platform.openai.com/auth/callback"
SCOPE = "openid profile email offline_access"
AUDIENCE = "https://api.openai.com/v1"
LOGIN = "/dashboard/onboarding/login"


@frozen
class PlatformFlow:
    """`platform`: where /dashboard is; `auth`: the origin of the pages that ask for the password."""

    way: Way
    platform: str
    auth: str

    def sign_in(self, credentials: Credentials) -> Grant:
        """Raises RelayError."""
        with Pages(self.way, (self.platform, self.auth)).opened() as pages:
            state = secrets.token_urlsafe(24)
            auth = AuthPages(pages, self.auth)
            url = auth.sign_in(self._authorization_url(state), credentials)
            callback = query_of(auth.resume(url, f"{REDIRECT_URI}?"))
            if callback.get("state", state) != state or not callback.get("code"):
                raise SignInChanged(step="callback")
            token = self._exchange(pages, callback["code"])
            return Grant(
                token, expiry_of(token), read_login(pages, self.platform, token)
            )

    def _authorization_url(self, state: str) -> str:
        query = {
            "client_id": CLIENT_ID,
            "audience": AUDIENCE,
            "redirect_uri": REDIRECT_URI,
            "scope": SCOPE,
            "response_type": "code",
            "state": state,
        }
        return f"{self.auth}/authorize?{urlencode(query)}"

    def _exchange(self, pages: Pages, code: str) -> str:
        """The access token for the code."""
        step = "token"
        fields = {
            "client_id": CLIENT_ID,
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": REDIRECT_URI,
        }
        page = pages.post(f"{self.auth}/oauth/token", step, json=fields)
        expect(page, step, 200)
        return expect_text(page.json(), "access_token", step)


def read_login(pages: Pages, platform: str, token: str) -> bytes:
    """The dashboard's JSON for an access token, as it came."""
    step = "dashboard"
    headers = {"Authorization": f"Bearer {token}"}
    page = pages.post(f"{platform}{LOGIN}", step, json={}, headers=headers)
    expect(page, step, 200)
    if not page.json():
        raise SignInChanged(step=f"{step}, it is no JSON")
    return page.body
