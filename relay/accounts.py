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
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from threading import Lock
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import orjson

from relay.deadline import Deadline
from relay.errors import RateLimited, RelayError, TokenRejected, UpstreamGone

log = logging.getLogger(__name__)

_AUTH = "https://api.openai.com/auth"
REJECTED_SECONDS = 3600.0  # a rejected token is tried after all others for so long
TRIAL_SECONDS = (
    300.0  # after so much rest an account is tried again, where no other is usable
)
LATE_TRIAL_SECONDS = 900.0  # and where another one is
SHORTEST_SECRET = 8  # servers without keys are given words such as none or ollama, which are no secrets
_AUTH0_REFRESH_TOKEN = re.compile(r"[A-Za-z0-9_-]{45}")
_OTHER_TOKENS = ("at-", "cw-", "fk-", "pk-", "sess-", "sk-")

#: who gave a refresh token: a setting, the command `login`, or a caller
Source: TypeAlias = Literal["setting", "login", "caller"]


@dataclass(frozen=True)
class SignIn:
    """A refresh token, by which an account's access tokens are got.

    `id`: SHA-256 of the token as it was first given; it stays while the token itself is replaced.
    `given`: that token; "" where only the database has it.
    """

    id: str
    source: Source
    given: str = field(default="", repr=False)

    @classmethod
    def of(cls, refresh_token: str, source: Source) -> SignIn:
        encoded = refresh_token.encode("utf-8", "surrogateescape")
        return cls(hashlib.sha256(encoded).hexdigest(), source, refresh_token)

    @property
    def name(self) -> str:
        """The account's name while nothing says which one it is."""
        return f"token-{self.id[:16]}"


@dataclass(frozen=True)
class Account:
    """An account and its access token.

    `name` tells accounts apart without showing the token: it is that of a person in a workspace.
    `former_name` is what an older version called all members of the workspace. `label` says to the
    operator which of the settings' tokens it is, `renewal` what to do once that is rejected.
    `sign_in`: its refresh token, where it has one; its access token is then the current one, or "".
    `wanted`: the name that it must turn out to have.
    """

    name: str
    token: str = field(repr=False)
    former_name: str | None = None
    label: str = ""
    renewal: str = ""
    sign_in: SignIn | None = None
    wanted: str | None = None

    @property
    def log_name(self) -> str:
        """What the log calls it."""
        if not self.label:
            return f"A caller's own credential ({self.name})"
        if self.name.startswith("account-"):
            return f"{self.label} ({self.name})"
        return self.label

    def is_named(self, name: str) -> bool:
        """Whether this is its name, or its former one."""
        return name in (self.name, self.former_name)

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
    def of_sign_in(cls, sign_in: SignIn, label: str = "") -> Account:
        """The account of a refresh token, whose access token is not known yet."""
        return cls(sign_in.name, "", label=label, sign_in=sign_in)

    @classmethod
    def of_setting(
        cls, setting: str, tokens: Iterable[str], renewal: str = ""
    ) -> tuple[Account, ...]:
        """The accounts of a setting's tokens, labelled with their numbers in it, from 1 on."""
        return tuple(
            replace(cls.of(token), label=f"{setting} number {number}", renewal=renewal)
            for number, token in enumerate(tokens, start=1)
        )

    def with_token(self, token: str) -> Account:
        """The same account with an access token; its name is the one that the token's claims give, if they do."""
        found = Account.of(token)
        if not found.name.startswith("account-"):
            return replace(self, token=token)
        return replace(
            self, token=token, name=found.name, former_name=found.former_name
        )


def _claims(token: str) -> tuple[str, str]:
    """The account and the user that a JWT names, each "" where it names none."""
    claims = claims_of(token)
    auth = claims.get(_AUTH, {})
    if not isinstance(auth, dict):
        return "", ""
    workspace = auth.get("chatgpt_account_id")
    person = auth.get("user_id") or auth.get("chatgpt_user_id") or claims.get("sub")
    return str(workspace or ""), str(person or "")


def claims_of(token: str) -> dict[str, Any]:
    """The claims of a JWT, unverified; empty for what has none that can be read."""
    if not is_jwt(token):
        return {}
    encoded = token.split(".")[1]
    try:
        decoded = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
        claims = orjson.loads(decoded)
    except (ValueError, RecursionError, binascii.Error):
        return {}
    return claims if isinstance(claims, dict) else {}


def expiry(token: str) -> float | None:
    """When a JWT expires, in seconds since 1970; None for what does not say so."""
    at = claims_of(token).get("exp")
    if isinstance(at, (int, float)) and 0 < at < 32503680000:
        return float(at)
    return None


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
    """Whether a token has the form of ChatGPT's own: a JWT, an access token of a workspace, or a refresh token."""
    return is_jwt(token) or token.startswith(("at-", "rt_"))


def is_refresh_token(token: str) -> bool:
    """Whether a token has the form of a refresh token: `rt_...`, or the 45 characters of auth0's.

    Source: protocol notes, strings that clients accept in place of a JWT.
    """
    if token.startswith("rt_"):
        return True
    is_other = is_jwt(token) or token.startswith(_OTHER_TOKENS)
    return not is_other and _AUTH0_REFRESH_TOKEN.fullmatch(token) is not None


class AccessTokens(Protocol):
    """The access tokens of accounts with a refresh token; shared by all threads. `relay.signin.tokens` has them."""

    def get(self, sign_in: SignIn, seconds: float) -> str | None:
        """The current one; None while it is being got, which is waited for `seconds` at most.

        Raises TokenRejected where the refresh token is dead, and RelayError where there is none just now.
        """

    def known(self, sign_in: SignIn) -> str:
        """The last one, which may have expired; "" where there was none. Never blocks."""

    def reject(self, sign_in: SignIn, token: str) -> bool:
        """The upstream says that this one has expired: whether `get` will now look for another. Never blocks."""

    def is_dead(self, sign_in: SignIn) -> bool:
        """Whether there is no access token, and the refresh token is known to get none any more. Never blocks."""


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
    """A resting account for those who look: its name, the model that the limit is for, and its stated end.

    `until` is "" for an account that rests until someone signs in again.
    """

    account: str
    model: str
    until: str


class AccountPool:
    """The server's accounts, used in turn; shared by all threads."""

    def __init__(
        self,
        accounts: tuple[Account, ...],
        clock: Callable[[], float] = time.monotonic,
        tokens: AccessTokens | None = None,
    ) -> None:
        self._accounts = accounts
        self._clock = clock
        self._tokens = tokens
        self._next = 0
        self._rests: dict[Scope, Rest] = {}
        self._rejected: dict[str, float] = {}
        self._asks: Counter[str] = Counter()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._accounts)

    def only(self, name: str) -> tuple[Account, ...]:
        """The account of that name alone, for a conversation that lives there. Raises UpstreamGone.

        Accounts whose names are not known yet are candidates: only one that turns out to have it is asked.
        """
        accounts = self._named()
        found = tuple(account for account in accounts if account.is_named(name))
        if found:
            return found
        # an opaque token that was renewed has another name; where it is the only one, it is meant
        if len(accounts) == 1 and name.startswith("token-"):
            return accounts
        nameless = [each for each in accounts if each.sign_in and not each.token]
        if nameless and name.startswith("account-"):
            return tuple(replace(account, wanted=name) for account in nameless)
        raise _gone(name)

    def in_turn(self) -> tuple[Account, ...]:
        """All accounts, beginning with the one whose turn it is."""
        with self._lock:
            first = self._next
            self._next = (first + 1) % max(1, len(self._accounts))
        accounts = self._named()
        return accounts[first:] + accounts[:first]

    def _named(self) -> tuple[Account, ...]:
        """The accounts by the names that are known now: an access token says whose a refresh token is."""
        return tuple(map(self._name, self._accounts))

    def _name(self, account: Account) -> Account:
        if account.sign_in is None or self._tokens is None:
            return account
        token = self._tokens.known(account.sign_in)
        return account.with_token(token) if token else account

    def with_token(self, account: Account, seconds: float) -> Account | None:
        """The account with its current access token; None while that is being got. Waits for `seconds` at most.

        Raises RelayError where there is none, and UpstreamGone for an account that is not the wanted one.
        """
        if account.sign_in is None or self._tokens is None:
            return account
        token = self._tokens.get(account.sign_in, seconds)
        if token is None:
            return None
        ready = account.with_token(token)
        if ready.wanted is not None and not ready.is_named(ready.wanted):
            raise _gone(ready.wanted)
        return ready

    def can_renew(self, account: Account, error: RelayError) -> bool:
        """Whether the access token was refused for one that its refresh token may replace; it is then forgotten."""
        if account.sign_in is None or self._tokens is None:
            return False
        if not isinstance(error, TokenRejected) or not error.is_renewable:
            return False
        return self._tokens.reject(account.sign_in, account.token)

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
        limited = [
            Resting(scope.account, scope.model, _iso_time(rest.until - now))
            for scope, rest in rests.items()
            if rest.until > now
        ]
        return [*limited, *self._signed_out()]

    def _signed_out(self) -> Iterator[Resting]:
        for account in self._named():
            if self._tokens is not None and account.sign_in is not None:
                if self._tokens.is_dead(account.sign_in):
                    yield Resting(account.name, "", "")

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


def _gone(name: str) -> UpstreamGone:
    return UpstreamGone(
        f"This conversation lives at the account {name}, which is not configured any "
        "more. Leave conversation_id out to begin a new one."
    )


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
        self._renewed: set[str] = set()
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

    def ready(self, seconds: float) -> Account | None:
        """The account that `next` gave, or the next one after it, with its current access token.

        None while that is being got, which is waited for `seconds` at most. Raises as `next` does.
        """
        deadline = Deadline.after(seconds)
        while True:
            assert self.account is not None
            try:
                ready = self._pool.with_token(self.account, deadline.left)
            except UpstreamGone as error:
                self._last = (
                    self._last or error
                )  # one that failed may be the wanted one
                self.next()
            except RelayError as error:
                self.refused(error)
                self.next()
            else:
                self.account = ready or self.account
                return ready

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
        """Learn from a refusal. Raises it again where no other account may help.

        An account whose access token has expired, and can be renewed, is the next one once more.
        """
        account = self.account
        if account is not None and self.renew(error):
            self._left.insert(0, account)
            self._most += 1
            return
        if account is not None:
            self._pool.refused(account, error, self.model)
        if not error.another_account_may_help:
            raise error
        # a limit ends by itself, so it is what the caller should hear of
        is_lesser = isinstance(error, TokenRejected)
        if not (is_lesser and isinstance(self._last, RateLimited)):
            self._last = error

    def renew(self, error: RelayError) -> bool:
        """Whether another access token of the same account may be accepted: once for each. It is got by `ready`."""
        account = self.account
        if account is None or account.name in self._renewed:
            return False
        if not self._pool.can_renew(account, error):
            return False
        self._renewed.add(account.name)
        return True

    def succeeded(self) -> None:
        """The account accepted the question."""
        if self.account is not None:
            self._pool.succeeded(self.account, self.model)
