"""The command `login`: a person signs in to ChatGPT, and what that gives is kept for the service."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable
from contextlib import closing
from typing import Literal, TypeAlias

from relay.accounts import Account, is_jwt
from relay.commands.sign_ins import (
    naming,
    open_issuer,
    open_sign_ins,
    opened_transport,
    revoke,
)
from relay.commands.terminal import Terminal
from relay.errors import BadRequest, StoreFailed, TokenRejected
from relay.settings import Settings
from relay.signin import browser, device
from relay.signin.issuer import AuthorizationCode, Issuer, Tokens
from relay.signin.keeping import KeptSignIn, SignIns
from relay.signin.refresh import Dead, TokenServer
from relay.startup import describe_database
from relay.values import frozen

Way: TypeAlias = Literal["device", "browser", "token"]

MOST_PASTES = 3
PASTE = "Paste it here: "
MINUTE = 60.0
NO_TERMINAL = (
    "a person has to sign in, and there is no terminal: use ssh -t or docker exec -it. "
    "A script gives a refresh token to login --token, on standard input."
)
WARNING = (
    "Never type a code, or open a sign-in, that somebody sent you: they would get your "
    "account."
)
DEVICE_HINT = (
    "First switch on device code sign-in in ChatGPT: Settings > Security > device code\n"
    "authorization for Codex. In a workspace (Business, Enterprise, Edu) an admin does\n"
    "that. Without it the page refuses the code, and only after you have signed in."
)
BROWSER_HINT = (
    "Sign in there. At its end the browser cannot open a page of http://localhost:1455:\n"
    "that is as it should be. Copy the whole address from the address bar."
)
TAKEN_BY_ITSELF = (
    "A service that runs takes it by itself, within seconds; one that asks for no client\n"
    "key yet, at its next start."
)
SPENT = (
    "The token that you gave is spent, and the one that replaces it is kept: another\n"
    "program that still has it must sign in again."
)


@frozen
class Login:
    """One run of the command."""

    issuer: Issuer
    token_server: TokenServer
    terminal: Terminal
    clock: device.Clock

    def by_code(self) -> Tokens:
        """Sign in by a device code."""
        say = self.terminal.say
        say(DEVICE_HINT)
        say()
        code = device.request_code(self.issuer)
        say(WARNING)
        say()
        say(f"1. Open {device.page(self.issuer)} in any browser, and sign in.")
        say(f"2. Type this code within {_minutes(code.lifetime)}: {code.user_code}")
        say()
        report = Progress(say)
        return self.issuer.redeem(
            device.wait_for_authorization(self.issuer, code, self.clock, report)
        )

    def by_browser(self) -> Tokens:
        """Sign in by a redirect that is pasted here."""
        request = browser.AuthorizationRequest.begin(os.urandom)
        say = self.terminal.say
        say(WARNING)
        say()
        say(f"Open this address in any browser:\n\n{self._address(request)}\n")
        say(BROWSER_HINT)
        say()
        return self.issuer.redeem(self._read_pasted(request))

    def _address(self, request: browser.AuthorizationRequest) -> str:
        return browser.authorize_url(self.issuer.base, request)

    def _read_pasted(self, request: browser.AuthorizationRequest) -> AuthorizationCode:
        for _ in range(MOST_PASTES - 1):
            pasted = self.terminal.ask(PASTE)
            try:
                return browser.read_redirect(pasted, request)
            except BadRequest as error:
                self.terminal.say(error.message)
        return browser.read_redirect(self.terminal.ask(PASTE), request)

    def by_token(self) -> Tokens:
        """Exchange a refresh token that somebody has. Raises TokenRejected for one that is dead."""
        given = self.terminal.ask_secret("Refresh token (it is not shown): ")
        check_refresh_token(given)
        outcome = self.token_server.exchange(given)
        if isinstance(outcome, Dead):
            raise TokenRejected(
                f"the refresh token is not valid any more ({outcome.code}). Sign in again: "
                "login, without --token."
            )
        if outcome.refresh_token is not None and outcome.refresh_token != given:
            self.terminal.say(SPENT)
        return Tokens(outcome.access_token, outcome.refresh_token or given)


class Progress:
    """Says how long a code still lives, once a minute, and each new problem."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._said_at = float("inf")
        self._problem = ""

    def __call__(self, left: float, problem: str) -> None:
        if problem and problem != self._problem:
            self._say(f"{problem} It is asked again.")
        self._problem = problem
        if left <= self._said_at - MINUTE:
            self._said_at = left
            self._say(
                f"Waiting for you there: {_minutes(left)} left. Ctrl-C ends this."
            )


def login(settings: Settings, way: Way) -> int:
    """Sign in and keep the refresh token; the exit status. Raises RelayError or SettingsError."""
    terminal = Terminal(sys.stdin, sys.stdout)
    if way != "token" and not terminal.is_interactive:
        raise BadRequest(NO_TERMINAL)
    # what cannot be kept is better not asked for
    sign_ins = open_sign_ins(settings)
    with closing(sign_ins), opened_transport(settings) as transport:
        issuer = open_issuer(settings, transport)
        token_server = TokenServer(transport, issuer.token_url, issuer.seconds)
        clock = device.Clock(time.monotonic, time.sleep)
        run = Login(issuer, token_server, terminal, clock)
        ways = {
            "device": run.by_code,
            "browser": run.by_browser,
            "token": run.by_token,
        }
        with naming(issuer):
            tokens = ways[way]()
        keep(sign_ins, issuer, terminal, tokens)
        where = describe_database(settings)
        terminal.say(f"The refresh token is kept in {where}, for its owner alone.")
    return 0


def keep(
    sign_ins: SignIns, issuer: Issuer, terminal: Terminal, tokens: Tokens
) -> KeptSignIn:
    """Keep a sign-in, in the place of the account's former one, which is revoked."""
    account = Account.of(tokens.access_token).name
    former = [each for each in sign_ins.list() if each.account == account]
    try:
        kept = sign_ins.keep(tokens, former[0].id if former else None)
    except StoreFailed:
        terminal.say("The sign-in cannot be kept, so it is ended.")
        revoke(issuer, terminal, tokens.refresh_token)
        raise
    terminal.say(f"Signed in as {kept.person.label}, here {kept.account}.")
    for each in former[1:]:
        sign_ins.remove(each)
    replaced = [each for each in former if each.refresh_token != tokens.refresh_token]
    for each in replaced:
        terminal.say("It takes the place of a former sign-in of that account.")
        revoke(issuer, terminal, each.refresh_token)
    terminal.say(TAKEN_BY_ITSELF)
    return kept


def check_refresh_token(token: str) -> None:
    """Raises BadRequest for what is none."""
    if not token:
        raise BadRequest("there was no token to read on standard input.")
    if is_jwt(token) or token.startswith("at-"):
        raise BadRequest(
            "that is an access token, which cannot be renewed: put it into ACCESS_TOKEN "
            "for as long as it is valid. login --token takes a refresh token."
        )
    if not re.fullmatch(r"[!-~]{8,4096}", token):
        raise BadRequest(
            "that is no refresh token: it must be one word of ASCII letters and signs."
        )


def _minutes(seconds: float) -> str:
    count = max(1, round(seconds / MINUTE))
    return "{} minute{}".format(count, "s" * (count != 1))
