"""Signing in to ChatGPT's page, as a browser does. Blocks.

Source: protocol notes, e-mail and password login: nine steps, one cookie jar over all of them.
"""

from __future__ import annotations

from urllib.parse import urljoin

from relay.errors import RateLimited, SignInChanged
from relay.signin.auth_pages import AuthPages
from relay.signin.grants import Credentials, Grant, expiry_of
from relay.signin.pages import (
    LIMITED,
    Pages,
    Way,
    expect,
    expect_text,
    path_of,
    query_of,
)
from relay.values import frozen

PROVIDER = "auth0"
CALLBACK = f"/api/auth/callback/{PROVIDER}"
ERROR = "/api/auth/error"


@frozen
class ChatGPTFlow:
    """`chatgpt`: where /api/auth is; `auth`: the origin of the pages that ask for the password."""

    way: Way
    chatgpt: str
    auth: str

    def sign_in(self, credentials: Credentials) -> Grant:
        """Raises RelayError."""
        with Pages(self.way, (self.chatgpt, self.auth)).opened() as pages:
            url = self._begin(pages)
            auth = AuthPages(pages, self.auth)
            url = auth.sign_in(url, credentials)
            callback = auth.resume(url, f"{self.chatgpt}{CALLBACK}")
            return self._end(pages, callback)

    def _begin(self, pages: Pages) -> str:
        """The URL with which the pages begin."""
        step = "csrf"
        page = pages.get(f"{self.chatgpt}/api/auth/csrf", step)
        expect(page, step, 200)
        token = expect_text(page.json(), "csrfToken", step)
        step = "signin"
        page = pages.post(
            f"{self.chatgpt}/api/auth/signin/{PROVIDER}?prompt=login",
            step,
            data={"callbackUrl": "/", "csrfToken": token, "json": "true"},
        )
        expect(page, step, 200)
        url = expect_text(page.json(), "url", step)
        try:
            url = urljoin(page.url, url)
            is_error = path_of(url).endswith(ERROR) or "error" in query_of(url)
        except ValueError:
            raise SignInChanged(step=step) from None
        if is_error:  # so it says that there were too many
            raise RateLimited(LIMITED)
        return url

    def _end(self, pages: Pages, callback: str) -> Grant:
        """The session that the callback begins."""
        step = "callback"
        page = pages.get(callback, step)
        expect(page, step, 200, 302, 303, 307)
        if page.location and ERROR in page.location:
            raise SignInChanged(step=step)
        step = "session"
        page = pages.get(f"{self.chatgpt}/api/auth/session", step)
        expect(page, step, 200)
        session = page.json()
        token = expect_text(session, "accessToken", step)
        return Grant(token, expiry_of(token, session.get("expires")))
