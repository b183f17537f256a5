"""An account's next access token: the one that another process got meanwhile, or one from the token server.

A refresh token may be used once. So one process at a time exchanges it, under a lease; the row says beforehand that an
exchange began, and has the new refresh token before the access token is used. Where a process is killed in between,
the row still says that an exchange began: the same refresh token is tried once more, for it may not have been used.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timezone
from time import sleep

from relay.accounts import Account, SignIn, Source, expiry
from relay.deadline import Deadline
from relay.errors import NotRenewed, StoreFailed, TokenRejected
from relay.ids import new_id
from relay.signin.refresh import REUSED, Outcome, Renewed
from relay.token_store import StoredToken, TokenStore
from relay.upkeep import LEASE_SECONDS, Leases

log = logging.getLogger(__name__)

EARLY_SECONDS = 300.0  # before its end that an access token is renewed
UNSTATED_SECONDS = 3300.0  # that an access token is used which does not say its end
SHORTEST_LIFE = (
    60.0  # of a new one, whatever it says: this machine's clock may be wrong
)
LEASE_WAIT_SECONDS = 90.0
POLL_SECONDS = 0.25  # between two looks at a row that another process renews
REUSE_LOOKS = 8  # at the row of a token that another process was first to use
NOTE_SECONDS = 86400.0  # between two notes that a row is used

SIGN_IN_AGAIN: dict[Source, str] = {
    "caller": "Sign in again, and send the new refresh token.",
    "login": "Sign in again: python3 chatgpt_webapi.py login",
    "pool": "Sign in again, and add the new token at /tokens.",
    "setting": (
        "Sign in again: python3 chatgpt_webapi.py login, or put a new token into ACCESS_TOKEN."
    ),
}

#: see `relay.signin.refresh.TokenServer.exchange`
Exchange = Callable[[str], Outcome]


class Renewer:
    """Used by one thread for each refresh token at a time. Every method may block."""

    def __init__(self, exchange: Exchange, store: TokenStore, leases: Leases) -> None:
        self._exchange_token = exchange
        self._store = store
        self._leases = leases
        self._unwritten: dict[str, StoredToken] = {}
        self._reported: dict[str, float] = {}

    def renew(self, sign_in: SignIn, known: str, rejected: str) -> StoredToken:
        """A row with an access token that is not to be renewed soon.

        `known`: the one that this process has; `rejected`: one that the upstream does not accept any
        more; each may be "". Raises TokenRejected for a dead refresh token, NotRenewed and StoreFailed
        for what may be tried again.
        """
        if sign_in.id in self._unwritten:
            return self._write(self._unwritten[sign_in.id])
        row = self._find(sign_in)
        if row is None and sign_in.source == "caller":
            return self._exchange_first(sign_in)
        if row is None or not self._is_fresh(row, known, rejected):
            return self._renew_leased(sign_in, known, rejected)
        if self._store.now() > row.updated + NOTE_SECONDS:
            self._store.change(row.id)
        return row

    def _find(self, sign_in: SignIn) -> StoredToken | None:
        """The row, if there is one. Raises TokenRejected for a dead token, and for one that was there alone."""
        row = self._store.find(sign_in.id)
        if row is None and not sign_in.given:
            again = SIGN_IN_AGAIN[sign_in.source]
            raise TokenRejected(f"The account has signed out. {again}")
        if row is not None and row.dead is not None:
            raise rejection(row)
        return row

    def _is_fresh(self, row: StoredToken, known: str, rejected: str) -> bool:
        token = row.access_token
        if not token or token == rejected or row.expires is None:
            return False
        # a short-lived one that another process has just got is the best there is
        early = EARLY_SECONDS if token == known else 0.0
        return self._store.now() < row.expires - early

    def _renew_leased(self, sign_in: SignIn, known: str, rejected: str) -> StoredToken:
        """Renew it, unless another process does so first."""
        holder = new_id()
        waiting = Deadline.after(LEASE_WAIT_SECONDS)
        while not self._store.lease(sign_in.id, holder, LEASE_SECONDS):
            if waiting.passed:
                raise NotRenewed(
                    "The account's access token is being renewed by another process, for too long. Try again soon."
                )
            sleep(POLL_SECONDS)
            row = self._find(sign_in)
            if row is not None and self._is_fresh(row, known, rejected):
                return row
        self._leases.hold(holder)
        try:
            row = self._find(sign_in)
            if row is not None and self._is_fresh(row, known, rejected):
                return row
            return self._exchange(sign_in, row or _new_row(sign_in))
        finally:
            self._leases.drop(holder)
            with suppress(StoreFailed):  # it ends by itself
                self._store.free(sign_in.id, holder)

    def _exchange(self, sign_in: SignIn, row: StoredToken) -> StoredToken:
        """Exchange the row's refresh token, and write what came of it. The caller has the lease."""
        self._report_unknown(row)
        began = self._store.begin(row)
        try:
            outcome = self._exchange_token(row.refresh_token)
        except NotRenewed as error:
            if error.may_be_used_up:
                self._reported[row.id] = began  # it is known here, and told now
            else:
                self._store.change(row.id, began=row.began)
            raise
        if isinstance(outcome, Renewed):
            return self._keep(sign_in, row, outcome)
        if outcome.code == REUSED:
            newer = self._find(sign_in)
            if newer is not None and newer.refresh_token != row.refresh_token:
                last = row.access_token or ""
                is_fresh = self._is_fresh(newer, last, last)
                return newer if is_fresh else self._exchange(sign_in, newer)
        self._store.change(row.id, dead=outcome.code, began=row.began)
        raise rejection(replace(row, dead=outcome.code))

    def _exchange_first(self, sign_in: SignIn) -> StoredToken:
        """Exchange a caller's refresh token that was not accepted yet: until it is, nothing is written for it."""
        row = _new_row(sign_in)
        outcome = self._exchange_token(sign_in.given)
        if isinstance(outcome, Renewed):
            return self._keep(sign_in, row, outcome)
        for _ in range(REUSE_LOOKS if outcome.code == REUSED else 0):
            if self._find(sign_in) is not None:  # another process was first
                return self._renew_leased(sign_in, "", "")
            sleep(POLL_SECONDS)
        raise rejection(replace(row, dead=outcome.code))

    def _keep(self, sign_in: SignIn, row: StoredToken, renewed: Renewed) -> StoredToken:
        now = self._store.now()
        token = renewed.access_token
        end = expiry(token) or now + (renewed.lifetime or UNSTATED_SECONDS)
        return self._write(
            replace(
                row,
                source=row.source if row.source != "caller" else sign_in.source,
                account=Account.of_sign_in(sign_in).with_token(token).name,
                refresh_token=renewed.refresh_token or row.refresh_token,
                access_token=token,
                expires=max(end, now + SHORTEST_LIFE),
                began=None,
            )
        )

    def _write(self, row: StoredToken) -> StoredToken:
        """Write a renewed row. One that cannot be written is tried again by the next `renew`."""
        self._unwritten[row.id] = row
        self._store.put(row)
        del self._unwritten[row.id]
        self._reported.pop(row.id, None)
        return row

    def _report_unknown(self, row: StoredToken) -> None:
        """Log once that nobody knows how an exchange ended."""
        if row.began is None or self._reported.get(row.id) == row.began:
            return
        self._reported[row.id] = row.began
        log.warning(
            "An exchange of the refresh token of %s began at %s, and its outcome was never stored: the service was "
            "stopped, or the answer was lost. The same refresh token is tried once more.",
            row.account,
            _time(row.began),
        )


def rejection(row: StoredToken) -> TokenRejected:
    """The failure of asks with a dead refresh token."""
    again = SIGN_IN_AGAIN[row.source]
    if row.dead == REUSED and row.began is not None:
        return TokenRejected(
            f"The account's refresh token is used up: an exchange of it began at {_time(row.began)}, and its answer "
            f"was never stored, so the refresh token that replaced it is lost. {again}"
        )
    return TokenRejected(
        f"The account's refresh token is not valid any more ({row.dead}). {again}"
    )


def _new_row(sign_in: SignIn) -> StoredToken:
    return StoredToken(sign_in.id, sign_in.source, sign_in.name, sign_in.given)


def _time(at: float) -> str:
    return f"{datetime.fromtimestamp(at, timezone.utc):%Y-%m-%d %H:%M:%S} UTC"
