"""The current access tokens of accounts with a refresh token, in the memory of this process.

One renewal at a time for each refresh token, in a thread of its own: whoever asks waits as long as it likes, and the
renewal goes on for the others.
"""

from __future__ import annotations

import copy
import logging
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from threading import Event as Flag
from threading import Lock, Thread
from typing import Protocol

from relay.accounts import Account, SignIn, join_token
from relay.deadline import Deadline
from relay.errors import (
    InternalError,
    NotRenewed,
    RelayError,
    TokenRejected,
    TooManyAttempts,
)
from relay.ids import new_id
from relay.signin.renewal import EARLY_SECONDS, NOTE_SECONDS, rejection
from relay.token_store import StoredToken, TokenStore

log = logging.getLogger(__name__)

SIGNED_IN = "The account of login"
POOLED = "An account of the pool"
MOST_OF_CALLERS = 1000  # refresh tokens that are remembered
MOST_RENEWALS = 32  # of callers' refresh tokens, at once
FIRST_PAUSE = 2.0  # after a failure; twice as long after each further one
LONGEST_PAUSE = 60.0
DEAD_PAUSE = 10.0  # between two looks at the row of one that is dead
DEAD_PAUSE_OF_CALLERS = 3600.0  # theirs may have no row, so it would be sent again
SCHEDULE = "schedule"  # the name of the lease
SCHEDULE_SECONDS = 3600.0
REFRESH_SECONDS = 60.0  # that a scheduled refresh is waited for
REJECTION_SECONDS = 60.0  # between two renewals that a refused access token asks for


class Renews(Protocol):
    """See `relay.signin.renewal.Renewer`."""

    def renew(self, sign_in: SignIn, known: str, rejected: str) -> StoredToken: ...


@dataclass(eq=False)
class _State:
    """What is known of one refresh token. `due`, `expires`: of its access token, in seconds since 1970."""

    sign_in: SignIn
    token: str = field(default="", repr=False)
    due: float = 0.0
    expires: float = 0.0
    error: RelayError | None = None
    failures: int = 0
    next_try: Deadline = Deadline(0.0)
    rejected: str = field(default="", repr=False)
    next_rejection: Deadline = Deadline(0.0)
    renewal: Flag | None = None  # is set when the one that is under way has ended

    @property
    def account(self) -> str:
        """The account's name, as far as it is known."""
        account = Account.of_sign_in(self.sign_in)
        return account.with_token(self.token).name if self.token else account.name


class SignedInTokens:
    """See `relay.accounts.AccessTokens`.

    `signed_in`: the accounts of the command `login`; `pooled`: those that were added while the service ran.
    """

    def __init__(self, renewer: Renews, store: TokenStore) -> None:
        self._renewer = renewer
        self._store = store
        self.signed_in: tuple[SignIn, ...] = ()
        self.pooled: tuple[Account, ...] = ()
        self._states: OrderedDict[str, _State] = OrderedDict()
        self._lock = Lock()

    def load(self) -> None:
        """Learn what the database has of the server's own accounts. Called before anything else. Raises StoreFailed."""
        for row in self._store.of_source("setting"):
            self._learn(row)
        self.reload()

    def reload(self) -> None:
        """Learn which accounts signed in by the command `login`, and which are in the pool. Raises StoreFailed."""
        signed_in = self._store.of_source("login")
        pooled = self._store.of_source("pool")
        for row in (*signed_in, *pooled):
            if row.refresh_token:
                self._learn(row)
        self.signed_in = tuple(SignIn(row.id, "login") for row in signed_in)
        self.pooled = tuple(map(account_of, sorted(pooled, key=lambda row: row.id)))

    def _learn(self, row: StoredToken) -> None:
        """Take what a row says, unless this process has used its account already."""
        with self._lock:
            known = self._states.get(row.id)
            if known is None or known.sign_in.source == "caller":
                self._take_row(_State(SignIn(row.id, row.source)), row)

    def _take_row(self, state: _State, row: StoredToken) -> None:
        self._states[row.id] = state
        if row.access_token:
            self._take(state, row)
            state.due = min(state.due, state.expires - EARLY_SECONDS)
        if row.dead is not None:
            state.error = rejection(row)

    @property
    def stored(self) -> tuple[Account, ...]:
        """The server's accounts that the database has."""
        signed_in = (Account.of_sign_in(each, SIGNED_IN) for each in self.signed_in)
        return (*signed_in, *self.pooled)

    def get(self, sign_in: SignIn, seconds: float) -> str | None:
        deadline = Deadline.after(seconds)
        while True:
            with self._lock:
                state = self._state(sign_in)
                now = self._store.now()
                if now >= state.due and state.renewal is None:
                    self._renew_now(state, now)
                if now < state.expires:
                    return state.token
                renewal = state.renewal
            assert renewal is not None
            if not renewal.wait(deadline.left):
                return None

    def known(self, sign_in: SignIn) -> str:
        state = self._states.get(sign_in.id)
        return state.token if state else ""

    def is_dead(self, sign_in: SignIn) -> bool:
        state = self._states.get(sign_in.id)
        if state is None or not isinstance(state.error, TokenRejected):
            return False
        return self._store.now() >= state.expires

    def reject(self, sign_in: SignIn, token: str) -> bool:
        with self._lock:
            state = self._state(sign_in)
            if state.token != token:
                return True  # there is a newer one already
            if not state.next_rejection.passed:
                return False
            state.next_rejection = Deadline.after(REJECTION_SECONDS)
            state.rejected = token
            state.due = state.expires = 0.0
            return True

    def take_night(self) -> bool:
        """Whether this process is the one, of all that share the database, that refreshes this night. May block."""
        return self._store.lease(SCHEDULE, new_id(), SCHEDULE_SECONDS)

    def refresh(self, sign_in: SignIn, forced: bool) -> None:
        """Get an access token: a new one (`forced`), or one where none is valid. May block. Raises RelayError."""
        with self._lock:
            state = self._state(sign_in)
            if forced and state.renewal is None:
                state.due = 0.0
                state.rejected = state.token
        self.get(sign_in, REFRESH_SECONDS)
        renewal = state.renewal
        if renewal is not None:
            renewal.wait(REFRESH_SECONDS)

    def close(self, seconds: float) -> None:
        """Wait until the renewals that are under way have ended, for `seconds` at most."""
        deadline = Deadline.after(seconds)
        for state in list(self._states.values()):
            if state.renewal is not None:
                state.renewal.wait(deadline.left)

    def _state(self, sign_in: SignIn) -> _State:
        state = self._states.get(sign_in.id)
        if state is None:
            state = self._states[sign_in.id] = _State(sign_in)
            self._forget_some()
        self._states.move_to_end(sign_in.id)
        return state

    def _forget_some(self) -> None:
        """Forget the callers' refresh token that was used least recently, where there are many."""
        of_callers = [s for s in self._states.values() if s.sign_in.source == "caller"]
        if len(of_callers) > MOST_OF_CALLERS:
            for state in of_callers:
                if state.renewal is None:
                    del self._states[state.sign_in.id]
                    return

    def _renew_now(self, state: _State, now: float) -> None:
        """Begin a renewal. Raises the last failure where it is too early for another, and no token is valid."""
        failure = self._check_may_renew(state)
        if failure is not None:
            if now >= state.expires:
                raise failure
            return
        state.renewal = Flag()
        Thread(target=self._renew, args=(state,), name="renewal", daemon=True).start()

    def _check_may_renew(self, state: _State) -> RelayError | None:
        """Why no renewal may begin now; None where one may."""
        if state.error is not None and not state.next_try.passed:
            return _again(state.error, state.next_try)
        under_way = sum(s.renewal is not None for s in self._states.values())
        if state.sign_in.source == "caller" and under_way >= MOST_RENEWALS:
            return TooManyAttempts(
                "Too many refresh tokens are being exchanged just now. Send this again soon.",
                retry_after=5,
            )
        return None

    def _renew(self, state: _State) -> None:
        row: StoredToken | None = None
        failure: RelayError = InternalError()
        try:
            row = self._renewer.renew(state.sign_in, state.token, state.rejected)
        except RelayError as error:
            error.drop_frames()
            failure = error
        finally:
            with self._lock:
                if row is not None:
                    self._take(state, row)
                else:
                    self._note_failure(state, failure)
                renewal = state.renewal
                state.renewal = None
            assert renewal is not None
            renewal.set()

    def _take(self, state: _State, row: StoredToken) -> None:
        now = self._store.now()
        state.token = row.access_token or ""
        state.expires = row.expires or 0.0
        # one that lives shortly is renewed after half of its time
        early = min(EARLY_SECONDS, max(0.0, state.expires - now) / 2)
        state.due = min(state.expires - early, now + NOTE_SECONDS)
        state.rejected = ""
        state.error = None
        state.failures = 0
        state.next_try = Deadline.after(0)

    def _note_failure(self, state: _State, error: RelayError) -> None:
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2**state.failures)
        if isinstance(error, TokenRejected):
            is_callers = state.sign_in.source == "caller"
            pause = DEAD_PAUSE_OF_CALLERS if is_callers else DEAD_PAUSE
        elif error.retry_after:
            pause = min(LONGEST_PAUSE, max(pause, error.retry_after))
        if not isinstance(error, TokenRejected):
            log.warning("%s: %s", state.account, error.reason)
        state.failures = min(state.failures + 1, 10)
        state.error = error
        state.next_try = Deadline.after(pause)


def account_of(row: StoredToken) -> Account:
    """The account of the pool that a row is."""
    if not row.refresh_token:
        token = join_token(row.access_token or "", row.workspace)
        return replace(Account.of(token), label=POOLED)
    sign_in = SignIn(row.id, "pool")
    return Account.of_sign_in(sign_in, POOLED, row.workspace)


def _again(error: RelayError, next_try: Deadline) -> RelayError:
    """A known failure as one of its own, for another ask."""
    again = copy.copy(error)
    if isinstance(again, NotRenewed):
        again.retry_after = max(1, round(next_try.left))
    again.drop_frames()
    return again
