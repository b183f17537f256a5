"""Each way in which a sign-in fails is an error of its own, and no credential goes where it does not belong."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from relay.errors import (
    AccountLocked,
    Challenged,
    RateLimited,
    RelayError,
    SecondFactor,
    SignInChanged,
    Unreachable,
    UpstreamFailed,
    UpstreamTimeout,
    WrongCredentials,
)
from relay.settings import Settings, SettingsError
from relay.signin.grants import Credentials
from relay.signin.logins import Logins, open_logins
from tests.conftest import running
from tests.processes import free_port
from tests.signin_pages import (
    CLOUDFLARE,
    EMAIL,
    PASSWORD,
    Answer,
    SignInPages,
    moved,
    page,
    payload,
)

CREDENTIALS = Credentials(EMAIL, PASSWORD)
ADDRESS = "192.0.2.1"


@pytest.fixture
def foreign() -> Iterator[ThreadingHTTPServer]:
    """A host that nobody configured; whoever connects is remembered."""

    class Remembered(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.seen.append(self.path)  # type: ignore[attr-defined]

        do_POST = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Remembered)
    server.seen = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield from running(server)


def open_for(pages: SignInPages, **settings: object) -> Logins:
    given = {
        "chatgpt_base_url": (pages.chatgpt.url,),
        "auth_base_url": pages.auth.url,
        "platform_base_url": pages.platform.url,
        **settings,
    }
    return open_logins(Settings(**given))  # type: ignore[arg-type]


def failure(
    pages: SignInPages, credentials: Credentials = CREDENTIALS, **settings: object
) -> RelayError:
    with pytest.raises(RelayError) as caught:
        open_for(pages, **settings).to_chatgpt(credentials, ADDRESS)
    return caught.value


IDENTIFIER = "/u/login/identifier"
PASSWORD_PAGE = "/u/login/password"
LIMIT = Answer(429, b"slow down", (("Retry-After", "77"),))
CHALLENGE = Answer(403, CLOUDFLARE, (("cf-mitigated", "challenge"),))
#: which page answers something else, and the error that this means
CASES = {
    "csrf-limited": ("/api/auth/csrf", LIMIT, RateLimited),
    "csrf-challenge": ("/api/auth/csrf", CHALLENGE, Challenged),
    "csrf-challenge-200": (
        "/api/auth/csrf",
        replace(CHALLENGE, status=200),
        Challenged,
    ),
    "csrf-blocked": ("/api/auth/csrf", Answer(403, b"error code: 1020"), Challenged),
    "csrf-no-json": ("/api/auth/csrf", page("hello"), SignInChanged),
    "csrf-no-token": ("/api/auth/csrf", payload({"csrfToken": 7}), SignInChanged),
    "csrf-fails": ("/api/auth/csrf", Answer(502, b"bad gateway"), UpstreamFailed),
    "csrf-gone": ("/api/auth/csrf", Answer(404), SignInChanged),
    "signin-limited": (
        "/api/auth/signin/auth0",
        payload({"url": "https://chat.openai.com/api/auth/error?error=OAuthSignin"}),
        RateLimited,
    ),
    "signin-odd-url": (
        "/api/auth/signin/auth0",
        payload({"url": "http://[odd"}),
        SignInChanged,
    ),
    "authorize-challenge": ("/authorize", CHALLENGE, Challenged),
    "authorize-no-state": ("/authorize", page("<input name=other>"), SignInChanged),
    "authorize-loop": ("/authorize", moved("/authorize"), SignInChanged),
    "identifier-captcha": (
        IDENTIFIER,
        page('<input name="state" value="x"><input name="captcha">'),
        Challenged,
    ),
    "identifier-turnstile": (
        IDENTIFIER,
        page('<div data-captcha-provider="x"></div><input name="state" value="x">'),
        Challenged,
    ),
    "password-captcha": (
        PASSWORD_PAGE,
        page('<input name="captcha"><span data-error-code="invalid-captcha">', 400),
        Challenged,
    ),
    "password-locked": (
        PASSWORD_PAGE,
        page('<span data-error-code="user-blocked">', 400),
        AccountLocked,
    ),
    "password-locked-in-words": (
        PASSWORD_PAGE,
        page("<p>Your account has been blocked after many attempts.</p>", 400),
        AccountLocked,
    ),
    "password-refused-403": (PASSWORD_PAGE, page("no", 403), SignInChanged),
    "password-limited": (PASSWORD_PAGE, LIMIT, RateLimited),
    "password-ok-without-a-way": (PASSWORD_PAGE, page("hello"), SignInChanged),
    "another-page": (PASSWORD_PAGE, moved("/u/consent?state=x"), SignInChanged),
    "second-factor": (
        PASSWORD_PAGE,
        moved("/u/mfa-otp-challenge?state=x"),
        SecondFactor,
    ),
    "second-factor-later": (
        "/authorize/resume",
        moved("/u/mfa-sms-challenge?state=x"),
        SecondFactor,
    ),
    "callback-refused": (
        "/api/auth/callback/auth0",
        moved("/api/auth/error?error=Callback"),
        SignInChanged,
    ),
    "session-empty": ("/api/auth/session", payload({}), SignInChanged),
    "session-odd": (
        "/api/auth/session",
        payload({"accessToken": "a\nb"}),
        SignInChanged,
    ),
    "session-no-object": ("/api/auth/session", payload([1]), SignInChanged),
    "session-limited": ("/api/auth/session", LIMIT, RateLimited),
    "huge": ("/authorize", page("x" * 2_000_000), SignInChanged),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_each_failure_is_an_error_of_its_own(
    pages: SignInPages, case: tuple[str, Answer, type[RelayError]]
) -> None:
    path, answer, kind = case
    pages.mode.at[path] = answer
    error = failure(pages)
    assert type(error) is kind
    assert PASSWORD not in error.message and EMAIL not in error.message
    if kind is RateLimited and answer is LIMIT:
        assert error.retry_after == 77
    if kind is SignInChanged:
        assert "AUTH_URL" in error.message and "access token" in error.message


def test_a_wrong_password_and_a_wrong_address_are_told(pages: SignInPages) -> None:
    wrong = failure(pages, Credentials(EMAIL, "wrong"))
    unknown = failure(pages, Credentials("bob@example.org", PASSWORD))
    assert type(wrong) is type(unknown) is WrongCredentials
    assert wrong.status == 401 and wrong.message != unknown.message
    assert "Google" in unknown.message


def test_an_error_that_comes_back_in_the_codes_place(pages: SignInPages) -> None:
    back = f"{pages.chatgpt.url}/api/auth/callback/auth0?error=access_denied"
    for words, kind in (
        ("user+is+blocked", AccountLocked),
        ("mfa_required", SecondFactor),
        ("odd", SignInChanged),
    ):
        answer = moved(f"{back}&error_description={words}")
        pages.mode.at["/authorize/resume"] = answer
        assert type(failure(pages)) is kind


def test_a_form_in_the_redirects_place_gives_the_state(pages: SignInPages) -> None:
    pages.mode.identifier_in_place = True
    grant = open_for(pages).to_chatgpt(CREDENTIALS, ADDRESS)
    assert grant.access_token == pages.tokens[0]


@pytest.mark.parametrize(
    "path", ["/authorize", IDENTIFIER, PASSWORD_PAGE, "/authorize/resume"]
)
@pytest.mark.parametrize("status", [302, 307, 308])
def test_no_redirect_leads_to_another_host(
    pages: SignInPages, foreign: ThreadingHTTPServer, path: str, status: int
) -> None:
    url = f"http://127.0.0.1:{foreign.server_address[1]}/u/login/password?state=x"
    pages.mode.at[path] = replace(moved(url), status=status)
    assert type(failure(pages)) is SignInChanged
    assert foreign.seen == []  # type: ignore[attr-defined]


def test_a_sign_in_url_of_another_host_is_asked_nothing(
    pages: SignInPages, foreign: ThreadingHTTPServer
) -> None:
    port = foreign.server_address[1]
    own = pages.auth.url.removeprefix("http://")
    for url in (
        f"http://127.0.0.1:{port}/authorize",
        f"https://{own}/authorize",
        f"http://{own}@127.0.0.1:{port}/authorize",
        f"//127.0.0.1:{port}/authorize",
        f"{pages.chatgpt.url}/authorize",
        "javascript:alert(1)",
    ):
        pages.mode.at["/api/auth/signin/auth0"] = payload({"url": url})
        assert type(failure(pages)) is SignInChanged
    assert foreign.seen == []  # type: ignore[attr-defined]
    assert not pages.auth.received


def test_the_password_is_sent_to_one_place_once(pages: SignInPages) -> None:
    open_for(pages).to_chatgpt(CREDENTIALS, ADDRESS)
    sent = [each for each in pages.all_received if b"password=" in each.body]
    assert [each.path for each in sent] == [PASSWORD_PAGE]
    assert sent[0].form["password"] == PASSWORD
    assert all("pass" not in str(each.query) for each in pages.all_received)


@pytest.mark.parametrize("in_head", [False, True])
def test_a_page_that_drips_does_not_stretch_the_deadline(
    pages: SignInPages, in_head: bool
) -> None:
    if in_head:
        pages.mode.drip_head = PASSWORD_PAGE
    else:
        pages.mode.drip = PASSWORD_PAGE
    began = time.monotonic()
    assert type(failure(pages, total_timeout=1.0)) is UpstreamTimeout
    assert time.monotonic() - began < 5


def test_a_page_that_says_nothing_is_slow(pages: SignInPages) -> None:
    pages.mode.hold["/authorize"] = threading.Event()
    assert type(failure(pages, read_timeout=0.3)) is UpstreamTimeout


def test_pages_that_cannot_be_reached(pages: SignInPages) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    assert type(failure(pages, chatgpt_base_url=(nobody,))) is Unreachable


def test_pages_that_speak_no_http(pages: SignInPages) -> None:
    url = pages.chatgpt.url.replace("http:", "https:")
    assert isinstance(failure(pages, chatgpt_base_url=(url,)), UpstreamFailed)


def test_a_failed_sign_in_is_shared_and_not_kept(pages: SignInPages) -> None:
    pages.mode.at["/api/auth/session"] = Answer(503, b"later")
    pages.mode.hold["/authorize"] = held = threading.Event()
    signing = open_for(pages)
    errors: list[RelayError] = []

    def ask() -> None:
        try:
            signing.to_chatgpt(CREDENTIALS, ADDRESS)
        except RelayError as error:
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    held.set()
    for thread in threads:
        thread.join(10)
    assert {type(error) for error in errors} == {UpstreamFailed} and len(errors) == 6
    assert pages.sign_ins < 6
    del pages.mode.at["/api/auth/session"]
    assert signing.to_chatgpt(CREDENTIALS, ADDRESS).access_token


def test_a_platform_login_that_fails(pages: SignInPages) -> None:
    for path, answer, kind in (
        ("/oauth/token", payload({"error": "invalid_grant"}, 403), SignInChanged),
        ("/oauth/token", payload({"token": "x"}), SignInChanged),
        ("/dashboard/onboarding/login", Answer(401), SignInChanged),
        ("/dashboard/onboarding/login", Answer(200, b"hello"), SignInChanged),
        ("/dashboard/onboarding/login", CHALLENGE, Challenged),
    ):
        pages.mode.at = {path: answer}
        with pytest.raises(kind):
            open_for(pages).to_platform(CREDENTIALS, ADDRESS)


@pytest.mark.parametrize(
    "name, value",
    [
        ("auth_base_url", "https://auth.example/path"),
        ("auth_base_url", "https://x:99999"),
        ("auth_url", "https://x:99999"),
    ],
)
def test_an_address_that_cannot_be_used_refuses_the_start(
    name: str, value: str
) -> None:
    with pytest.raises(SettingsError, match=name.upper()):
        open_logins(Settings(**{name: value}))  # type: ignore[arg-type]


def test_the_gateways_own_base_is_found(pages: SignInPages) -> None:
    for end in ("/", "/backend-api", "/backend-api/"):
        grant = open_for(pages, chatgpt_base_url=(pages.chatgpt.url + end,))
        assert grant.to_chatgpt(CREDENTIALS, ADDRESS).access_token


def test_no_library_writes_urls_to_the_log(
    pages: SignInPages, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    open_for(pages).to_chatgpt(CREDENTIALS, ADDRESS)
    assert "state=" not in caplog.text and "code=" not in caplog.text
