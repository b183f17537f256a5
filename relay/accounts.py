"""Accounts at an upstream: which one is asked next, and which ones rest until when.

The one loop over accounts is `Attempts`. A limit with a stated end lets an account rest, but a
stated end is only an upper bound: upstreams lift limits early, and some state days by mistake. So
one ask may try a resting account again after a few minutes, and a success ends the rest at once.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from threading import Lock
from typing import NamedTuple

import orjson

from relay.errors import RateLimited, RelayError, TokenRejected, UpstreamGone

log = logging.getLogger(__name__)

_AUTH = "https://api.openai.com/auth"
REJECTED_SECONDS = 3600.0  # a rejected token is tried after all others for so long
TRIAL_SECONDS = (
    300.0  # after so much rest an account is tried again, where no other is usable
)
LATE_TRIAL_SECONDS = 900.0  # and where another one is
SHORTEST_SECRET = 8  # servers without keys are given words such as none or ollama, which are no secrets


@dataclass(frozen=True)
class Account:
    """An account and its access token.

    `name` tells accounts apart without showing the token: it is that of a person in a workspace.
    `former_name` is what an older version called all members of the workspace. `label` says to the
    operator which of the settings' tokens it is, `renewal` what to do once that is rejected.
    """

    name: str
    token: str = field(repr=False)
    former_name: str | None = None
    label: str = ""
    renewal: str = ""

    @property
    def log_name(self) -> str:
        """What the log calls it."""
        return self.label or f"A caller's own credential ({self.name})"

    def redact(self, payload: bytes) -> bytes:
        """An upstream's words without the token: some quote it."""
        token = self.token.encode("utf-8", "surrogateescape")
        if len(token) < SHORTEST_SECRET:
            return payload
        return payload.replace(token, b"...")

    @classmethod
    def of(cls, token: str) -> Account:
        """The account that a token names: a JWT's claims are read, unverified; other tokens are opaque."""
        workspace, person = _claims(token) if is_jwt(token) else ("", "")
        if workspace and person:
            name = _account_name(f"{workspace}/{person}")
            return cls(name, token, _account_name(workspace))
        if workspace or person:
            return cls(_account_name(workspace or person), token)
        return cls(f"token-{_short_hash(token)}", token)

    @classmethod
    def of_setting(
        cls, setting: str, tokens: Iterable[str], renewal: str = ""
    ) -> tuple[Account, ...]:
        """The accounts of a setting's tokens, labelled with their numbers in it, from 1 on."""
        accounts = []
        for number, token in enumerate(tokens, start=1):
            account = cls.of(token)
            label = f"{setting} number {number}"
            if account.name.startswith("account-"):
                label += f" ({account.name})"
            accounts.append(replace(account, label=label, renewal=renewal))
        return tuple(accounts)


def _claims(token: str) -> tuple[str, str]:
    """The account and the user that a JWT names, each "" where it names none."""
    payload = token.split(".")[1]
    try:
        decoded = base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))
        claims = orjson.loads(decoded)
        auth = claims.get(_AUTH, {})
        workspace = auth.get("chatgpt_account_id")
        person = auth.get("user_id") or auth.get("chatgpt_user_id") or claims.get("sub")
    except (AttributeError, ValueError, RecursionError, binascii.Error):
        return "", ""
    return str(workspace or ""), str(person or "")


def _account_name(identity: str) -> str:
    return f"account-{_short_hash(identity)}"


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def is_jwt(token: str) -> bool:
    """Whether a token looks like one of ChatGPT's; only such a one can name an account."""
    return token.startswith("eyJ") and token.count(".") >= 2


def is_openai_key(token: str) -> bool:
    """Whether a credential has the form of OpenAI's API keys; Anthropic's begin alike."""
    return token.startswith("sk-") and not token.startswith("sk-ant-")


def is_chatgpt_token(token: str) -> bool:
    """Whether a token has the form of those that ChatGPT checks: a JWT, or an access token of a workspace."""
    return is_jwt(token) or token.startswith("at-")


class Scope(NamedTuple):
    """What a limit holds for: an account and, where limits are per model, a model."""

    account: str
    model: str = ""


@dataclass(frozen=True)
class Rest:
    """An account that rests. `until`: the stated end; `since`: when it was last tried. Monotonic seconds.

    `kind`: the error that it rests for.
    """

    until: float
    since: float
    kind: type[RelayError] = RateLimited


@dataclass(frozen=True)
class Resting:
    """A resting account for those who look: its name, the model that the limit is for, and its stated end."""

    account: str
    model: str
    until: str


class AccountPool:
    """The server's accounts, used in turn; shared by all threads."""

    def __init__(
        self,
        accounts: tuple[Account, ...],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._accounts = accounts
        self._clock = clock
        self._next = 0
        self._rests: dict[Scope, Rest] = {}
        self._rejected: dict[str, float] = {}
        self._asks: Counter[str] = Counter()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._accounts)

    def only(self, name: str) -> tuple[Account, ...]:
        """The account of that name alone, for a conversation that lives there. Raises UpstreamGone."""
        found = tuple(
            account
            for account in self._accounts
            if name in (account.name, account.former_name)
        )
        if found:
            return found
        # an opaque token that was renewed has another name; where it is the only one, it is meant
        if len(self._accounts) == 1 and name.startswith("token-"):
            return self._accounts
        raise UpstreamGone(
            f"This conversation lives at the account {name}, which is not configured any "
            "more. Leave conversation_id out to begin a new one."
        )

    def in_turn(self) -> tuple[Account, ...]:
        """All accounts, beginning with the one whose turn it is."""
        with self._lock:
            first = self._next
            self._next = (first + 1) % max(1, len(self._accounts))
        return self._accounts[first:] + self._accounts[:first]

    def limit(self, account: Account, model: str = "") -> RelayError | None:
        """The error for which the account rests, with the time that is left; None for one that does not.

        The upstream's words were for the caller that met it, so they are not repeated.
        """
        rest = self._rests.get(Scope(account.name, model))
        left = rest.until - self._clock() if rest else 0.0
        if rest is None or left <= 0:
            return None
        return rest.kind(retry_after=max(1, round(left)))

    def take_trial(self, account: Account, model: str, alone: bool) -> bool:
        """Whether this ask may try a resting account again; then nobody else may for a while.

        `alone`: no other account is usable.
        """
        scope = Scope(account.name, model)
        now = self._clock()
        with self._lock:
            rest = self._rests.get(scope)
            pause = TRIAL_SECONDS if alone else LATE_TRIAL_SECONDS
            if rest is None or now < rest.since + pause:
                return False
            self._rests[scope] = replace(rest, since=now)
            return True

    def is_rejected(self, account: Account) -> bool:
        """Whether the account's token was rejected within the last hour."""
        return self._rejected.get(account.name, -math.inf) > self._clock()

    def resting(self) -> list[Resting]:
        """All accounts that rest."""
        now = self._clock()
        with self._lock:
            rests = dict(self._rests)
        return [
            Resting(scope.account, scope.model, _iso_time(rest.until - now))
            for scope, rest in rests.items()
            if rest.until > now
        ]

    def take(self, account: Account, most: int) -> bool:
        """Count one more ask in flight; False where the account has `most` of them already (0: no bound)."""
        with self._lock:
            if most and self._asks[account.name] >= most:
                return False
            self._asks[account.name] += 1
            return True

    def leave(self, account: Account) -> None:
        """Count one ask less in flight."""
        with self._lock:
            self._asks[account.name] -= 1
            if not self._asks[account.name]:
                del self._asks[account.name]

    def in_flight(self, account: Account) -> int:
        return self._asks[account.name]

    def succeeded(self, account: Account, model: str = "") -> None:
        """The account answered: whatever it rested for is over."""
        scope = Scope(account.name, model)
        if scope in self._rests or account.name in self._rejected:
            with self._lock:
                self._rests.pop(scope, None)
                self._rejected.pop(account.name, None)

    def refused(self, account: Account, error: RelayError, model: str = "") -> None:
        """Learn from a refusal: a rejected token comes last, a stated end lets the account rest."""
        now = self._clock()
        if isinstance(error, TokenRejected):
            log.warning("%s was rejected%s", account.log_name, account.renewal)
            self._rejected[account.name] = now + REJECTED_SECONDS
        elif error.rests_account and error.retry_after:
            seconds = error.retry_after
            log.info("%s rests for %d s: %s.", account.log_name, seconds, error.code)
            rest = Rest(now + seconds, now, type(error))
            with self._lock:
                current = {s: r for s, r in self._rests.items() if r.until > now}
                current[Scope(account.name, model)] = rest
                self._rests = current


def _iso_time(seconds: float) -> str:
    """The time in so many seconds, as ISO 8601."""
    at = datetime.now(timezone.utc) + timedelta(seconds=seconds)
    return at.isoformat(timespec="seconds")


class Attempts:
    """One ask's way through the accounts: the next one only after a refusal that another account may help.

    `model`: what limits are per, where the upstream has limits per model. `concurrency`: asks at once
    per account, 0 for no bound; None for what is not counted as one.
    """

    def __init__(
        self,
        pool: AccountPool,
        candidates: tuple[Account, ...],
        most: int,
        model: str = "",
        concurrency: int | None = None,
    ) -> None:
        self._pool = pool
        self._concurrency = concurrency
        self._held: Account | None = None
        self._left = sorted(candidates, key=pool.is_rejected)
        self._resting: list[Account] = []
        self._most = most
        self._last: RelayError | None = None
        self.model = model
        self.account: Account | None = None

    def next(self) -> Account:
        """The account to try now. Raises the last refusal when none is left."""
        while self._left and self._most >= 0:
            account = self._left.pop(0)
            limit = self._pool.limit(account, self.model)
            if limit is None or self._pool.take_trial(account, self.model, alone=False):
                return self._use(account)
            self._last = limit
            self._resting.append(account)
        while self._resting and self.account is None:
            account = self._resting.pop(0)
            if self._pool.take_trial(account, self.model, alone=True):
                return self._use(account)
        raise self._last or UpstreamGone("No account is configured for this.")

    def _use(self, account: Account) -> Account:
        self._most -= 1
        self.account = account
        return account

    def take(self) -> bool:
        """Count the ask at the account that `next` gave; False while that has enough to do."""
        if self._concurrency is None or self._held is not None:
            return True
        assert self.account is not None
        if not self._pool.take(self.account, self._concurrency):
            return False
        self._held = self.account
        return True

    def leave(self) -> None:
        """Leave the account to others. May be called twice."""
        if self._held is not None:
            self._pool.leave(self._held)
        self._held = None

    def refused(self, error: RelayError) -> None:
        """Learn from a refusal. Raises it again where no other account may help."""
        if self.account is not None:
            self._pool.refused(self.account, error, self.model)
        if not error.another_account_may_help:
            raise error
        # a limit ends by itself, so it is what the caller should hear of
        is_lesser = isinstance(error, TokenRejected)
        if not (is_lesser and isinstance(self._last, RateLimited)):
            self._last = error

    def succeeded(self) -> None:
        """The account accepted the question."""
        if self.account is not None:
            self._pool.succeeded(self.account, self.model)
