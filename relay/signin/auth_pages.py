"""The pages that ask for an e-mail address and a password: Auth0's, as OpenAIAuth 3.0.0 walks them. Blocks.

Source: protocol notes, e-mail and password login, steps 3 to 7.
"""

from __future__ import annotations

from urllib.parse import urlencode

from relay.errors import (
    AccountLocked,
    Challenged,
    RelayError,
    SecondFactor,
    SignInChanged,
    WrongCredentials,
)
from relay.signin.forms import (
    Form,
    read_form,
    says_captcha,
    says_locked,
    says_second_factor,
)
from relay.signin.grants import Credentials
from relay.signin.pages import (
    CHALLENGED,
    Page,
    Pages,
    expect,
    failure_of,
    origin_of,
    path_of,
    query_of,
)
from relay.values import frozen

IDENTIFIER = "/u/login/identifier"
PASSWORD = "/u/login/password"
SECOND_FACTOR = ("/u/mfa", "/mfa")
BROWSER = {  # what the page's script would find out
    "js-available": "false",
    "webauthn-available": "true",
    "is-brave": "false",
    "webauthn-platform-available": "true",
}
NO_SUCH_ADDRESS = (
    "The sign-in pages do not take that e-mail address: correct it. Accounts of Google, Microsoft and Apple cannot "
    "sign in here: send an access token instead."
)
OTHER_PROVIDER = "another provider signs that account in"


@frozen
class AuthPages:
    """`base`: their origin. Nothing of the credentials goes anywhere else."""

    pages: Pages
    base: str

    def sign_in(self, url: str, credentials: Credentials) -> str:
        """From the authorization URL through both pages. Returns the URL with which the flow goes on."""
        if origin_of(url) != origin_of(self.base):
            raise SignInChanged(step="authorize, the sign-in is not at AUTH_BASE_URL")
        state = self._open(url)
        state = self._send_address(state, credentials)
        return self._send_password(state, credentials)

    def _open(self, url: str) -> str:
        """The state that the page for the address is asked with."""
        step = "authorize"
        page = self.pages.follow(self.pages.get(url, step), step)
        expect(page, step, 200)
        if path_of(page.url) != IDENTIFIER:
            state = read_form(page.body).fields.get("state") or query_of(page.url).get(
                "state", ""
            )
            page = self.pages.get(self._url(IDENTIFIER, _needed(state, step)), step)
            expect(page, step, 200)
        form = read_form(page.body)
        if form.wants_captcha:
            raise Challenged(CHALLENGED)
        state = form.fields.get("state") or query_of(page.url).get("state", "")
        return _needed(state, step)

    def _send_address(self, state: str, credentials: Credentials) -> str:
        step = "e-mail address"
        fields = {"state": state, "username": credentials.email, **BROWSER}
        page = self.pages.post(
            self._url(IDENTIFIER, state), step, data={**fields, "action": "default"}
        )
        form = read_form(page.body)
        if page.status in (400, 401):
            raise _refusal(form, WrongCredentials(NO_SUCH_ADDRESS))
        expect(page, step, 200, 302, 303)
        if page.status == 200:
            if form.wants_captcha:
                raise Challenged(CHALLENGED)
            if "password" not in form.fields:
                raise SignInChanged(step=step)
            return form.fields.get("state") or state
        if origin_of(page.location) != origin_of(self.base):
            raise SignInChanged(step=f"{step}, {OTHER_PROVIDER}")
        if path_of(page.location) != PASSWORD:
            raise SignInChanged(step=step)
        return query_of(page.location).get("state") or state

    def _send_password(self, state: str, credentials: Credentials) -> str:
        step = "password"
        fields = {
            "state": state,
            "username": credentials.email,
            "password": credentials.password,
            "action": "default",
        }
        page = self.pages.post(self._url(PASSWORD, state), step, data=fields)
        if page.status in (400, 401, 403):
            form = read_form(page.body)
            otherwise = failure_of(page, step) if page.status == 403 else None
            raise _refusal(form, otherwise or WrongCredentials())
        expect(page, step, 302, 303)
        check_way(page.location, step)
        return page.location

    def resume(self, url: str, end: str) -> str:
        """From there on to the first URL that begins with `end`."""
        step = "resume"
        if url.startswith(end):
            return url
        page = self.pages.get(url, step)
        page = self.pages.follow(page, step, lambda url: url.startswith(end))
        check_way(page.url, step)
        if not page.location:
            expect(page, step, 302)
        check_callback(page)
        return page.location

    def _url(self, path: str, state: str) -> str:
        return f"{self.base}{path}?{urlencode({'state': state})}"


def check_callback(page: Page) -> None:
    """Raise where the flow comes back with an error in the code's place."""
    query = query_of(page.location)
    if "error" not in query:
        return
    words = f"{query['error']} {query.get('error_description', '')}"
    raise refusal_by(words) or SignInChanged(step="callback, it says error")


def check_way(url: str, step: str) -> None:
    """Raise where the flow leads to another page that asks for something."""
    path = path_of(url)
    if path.startswith(SECOND_FACTOR):
        raise SecondFactor()
    if path.startswith("/u/"):
        raise SignInChanged(step=f"{step}, another page asks for something")


def refusal_by(words: str) -> RelayError | None:
    """The error that a code or a sentence means; None where it is none of those that are known."""
    if says_captcha(words):
        return Challenged(CHALLENGED)
    if says_second_factor(words):
        return SecondFactor()
    return AccountLocked() if says_locked(words) else None


def _refusal(form: Form, otherwise: RelayError) -> RelayError:
    if form.says_locked:
        return AccountLocked()
    if form.wants_captcha:
        return Challenged(CHALLENGED)
    return otherwise


def _needed(state: str, step: str) -> str:
    if not state:
        raise SignInChanged(step=f"{step}, it has no state")
    return state
