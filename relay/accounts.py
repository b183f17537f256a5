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
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import field, replace
from datetime import datetime, timedelta, timezone
from threading import Lock
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import orjson

from relay.deadline import Deadline
from relay.errors import RateLimited, RelayError, TokenRejected, UpstreamGone
from relay.values import frozen

log = logging.getLogger(__name__)

_AUTH = "https://api.openai.com/auth"
REJECTED_SECONDS = 3600.0  # a rejected token is tried after all others for so long
TRIAL_SECONDS = (
    300.0  # after so much rest an account is tried again, where no other is usable
)
LATE_TRIAL_SECONDS = 900.0  # and where another one is
SHORTEST_SECRET = 8  # servers without keys are given words such as none or ollama, which are no secrets
_AUTH0_REFRESH_TOKEN = re.compile(r"[A-Za-z0-9_-]{45}")
_SENDABLE = re.compile(r"[!-~]*")
_WORKSPACE = re.compile(r"[A-Za-z0-9_-]{1,64}")
_OTHER_TOKENS = ("at-", "cw-", "fk-", "pk-", "sess-", "sk-")

#: who gave a token: a setting, the command `login`, the owner while the service runs, or a caller
Source: TypeAlias = Literal["setting", "login", "pool", "caller"]


@frozen
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


@frozen
class Account:
    """An account and its access token.

    `name` tells accounts apart without showing the token: it is that of a person in a workspace.
    `former_name` is what an older version called all members of the workspace. `label` says to the
    operator which of the settings' tokens it is, `renewal` what to do once that is rejected.
    `sign_in`: its refresh token, where it has one; its access token is then the current one, or "".
    `wanted`: the name that it must turn out to have. `workspace`: the id of the team workspace that it
    asks in, where that was stated with its token.
    """

    name: str
    token: str = field(repr=False)
    former_name: str | None = None
    label: str = ""
    renewal: str = ""
    sign_in: SignIn | None = None
    wanted: str | None = None
    workspace: str = ""

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
    def of(cls, text: str) -> Account:
        """The account that a token names: a JWT's claims are read, unverified; other tokens are opaque.

        `text`: the token, or `token,workspace`.
        """
        token, stated = split_token(text)
        claimed, person = _claims(token) if is_jwt(token) else ("", "")
        workspace = stated or claimed
        if workspace and person:
            name = _account_name(f"{workspace}/{person}")
            former = _account_name(claimed) if claimed == workspace else None
            return cls(name, token, former, workspace=stated)
        if claimed or person:
            return cls(_account_name(workspace or person), token, workspace=stated)
        return cls(f"token-{_short_hash(text)}", token, workspace=stated)

    @classmethod
    def of_sign_in(
        cls, sign_in: SignIn, label: str = "", workspace: str = ""
    ) -> Account:
        """The account of a refresh token, whose access token is not known yet."""
        name = sign_in.name
        if workspace:
            name = f"token-{_short_hash(f'{sign_in.id},{workspace}')}"
        return cls(name, "", label=label, sign_in=sign_in, workspace=workspace)

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
        found = Account.of(join_token(token, self.workspace))
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


def can_be_sent(token: str) -> bool:
    """Whether a header can carry a token: no spaces, and nothing but ASCII."""
    return _SENDABLE.fullmatch(token) is not None


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


def may_be_chatgpt_token(token: str) -> bool:
    """Whether a token has one of ChatGPT's forms, of which auth0's refresh tokens may be something else's too."""
    return is_chatgpt_token(token) or is_refresh_token(token)


def split_token(text: str) -> tuple[str, str]:
    """A token and the id of the team workspace that it asks in, "" where none is stated: `token,workspace`."""
    token, comma, workspace = text.rpartition(",")
    if comma and token and is_workspace(workspace):
        return token, workspace
    return text, ""


def join_token(token: str, workspace: str) -> str:
    """The two as one text, as `split_token` takes it."""
    return f"{token},{workspace}" if workspace else token


def is_workspace(text: str) -> bool:
    """Whether a text has the form of a workspace's id."""
    return _WORKSPACE.fullmatch(text) is not None


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
    """What a rest holds for: an account and, where limits are per model, a model; or one token of the account alone.

    `token`: the start of the token's SHA-256, which stays out of every answer.
    """

    account: str
    model: str = ""
    token: str = ""


@frozen
class Rest:
    """An account that rests. `until`: the stated end; `since`: when it was last tried. Monotonic seconds.

    `kind`: the error that it rests for.
    """

    until: float
    since: float
    kind: type[RelayError] = RateLimited


@frozen
class Resting:
    """A resting account for those who look: its name, the model that the limit is for, and its stated end.

    `until` is "" for an account that rests until someone signs in again. `reason`: the code of the error.
    """

    account: str
    model: str
    until: str
    reason: str = RateLimited.code


class RestNotes(Protocol):
    """Told of each change of a rest, so that other processes learn of it. Never blocks."""

    def note(self, scope: Scope, rest: Rest | None) -> None:
        """`rest`: what holds from now on; None: nothing does."""


class AccountPool:
    """The server's accounts, used in turn; shared by all threads.

    `notes`: is told who rests. `remembers_limits`: whether a stated limit lets an account rest at all.
    """

    def __init__(
        self,
        accounts: tuple[Account, ...],
        clock: Callable[[], float] = time.monotonic,
        tokens: AccessTokens | None = None,
        notes: RestNotes | None = None,
        *,
        remembers_limits: bool = True,
    ) -> None:
        self._accounts = accounts
        self.clock = clock
        self._tokens = tokens
        self._notes = notes
        self._remembers_limits = remembers_limits
        self._next = 0
        self._rests: dict[Scope, Rest] = {}
        self._ready: dict[Account, Account] = {}
        self._asks: Counter[str] = Counter()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._accounts)

    @property
    def accounts(self) -> tuple[Account, ...]:
        return self._accounts

    def replace(self, accounts: tuple[Account, ...]) -> None:
        """Have these accounts from now on. Asks that are under way go on with those that they have."""
        self._accounts = accounts
        self._ready.clear()

    def take_rests(self, rests: Mapping[Scope, Rest], own: Collection[Scope]) -> None:
        """Learn all rests that other processes know of; those of the scopes `own` are newer here."""
        with self._lock:
            ours = {s: r for s, r in self._rests.items() if s in own}
            theirs = {s: r for s, r in rests.items() if s not in own}
            self._rests = theirs | ours

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
        """All accounts, beginning with the one whose turn it is: each that does not rest has as many turns."""
        accounts = self._named()
        count = len(accounts)
        if count < 2:
            return accounts
        with self._lock:
            turns = [(self._next + step) % count for step in range(count)]
            awake = (turn for turn in turns if self._may_begin(accounts[turn]))
            first = next(awake, self._next % count)
            self._next = first + 1
        return accounts[first:] + accounts[:first]

    def _may_begin(self, account: Account) -> bool:
        """Whether asks may begin with the account: it does not rest, or has rested long enough to be tried."""
        rest = self._rests.get(Scope(account.name))
        now = self.clock()
        if rest is not None and now < min(rest.until, rest.since + LATE_TRIAL_SECONDS):
            return False
        return not self.is_rejected(account)

    def _named(self) -> tuple[Account, ...]:
        """The accounts by the names that are known now: an access token says whose a refresh token is."""
        return tuple(map(self._name, self._accounts))

    def _name(self, account: Account) -> Account:
        if account.sign_in is None or self._tokens is None:
            return account
        token = self._tokens.known(account.sign_in)
        if not token:
            return account
        ready = self._ready.get(account)
        if ready is None or ready.token != token:
            ready = self._ready[account] = account.with_token(token)
        return ready

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
        if not self._rests:
            return None
        rest = self._rests.get(self._limited_scope(account, model))
        left = rest.until - self.clock() if rest else 0.0
        if rest is None or left <= 0:
            return None
        return rest.kind(retry_after=max(1, round(left)))

    def _limited_scope(self, account: Account, model: str) -> Scope:
        """What an ask would have to wait for longest: the account's limit, or that of the model."""
        scopes = (Scope(account.name), Scope(account.name, model))
        return max(scopes, key=lambda scope: self._end_of(scope))

    def _end_of(self, scope: Scope) -> float:
        rest = self._rests.get(scope)
        return rest.until if rest else -math.inf

    def take_trial(self, account: Account, model: str, alone: bool) -> bool:
        """Whether this ask may try a resting account again; then nobody else may for a while.

        `alone`: no other account is usable.
        """
        now = self.clock()
        with self._lock:
            scope = self._limited_scope(account, model)
            rest = self._rests.get(scope)
            pause = TRIAL_SECONDS if alone else LATE_TRIAL_SECONDS
            if rest is None or now < rest.since + pause:
                return False
            self._set({scope: replace(rest, since=now)})
            return True

    def _set(self, changes: Mapping[Scope, Rest | None]) -> None:
        """Change rests, which are replaced whole, so that reading them takes no lock. Called with the lock held."""
        now = self.clock()
        rests: dict[Scope, Rest | None] = {**self._rests, **changes}
        self._rests = {s: r for s, r in rests.items() if r and r.until > now}
        if self._notes is not None:
            for scope, rest in changes.items():
                self._notes.note(scope, rest)

    def is_rejected(self, account: Account) -> bool:
        """Whether the account's token, as it is now, was rejected within the last hour."""
        if not self._rests:  # as it is mostly: then nothing is hashed
            return False
        return self._end_of(_token_scope(account)) > self.clock()

    def resting(self) -> list[Resting]:
        """All accounts that rest."""
        now = self.clock()
        limited = [
            Resting(
                scope.account, scope.model, _iso_time(rest.until - now), rest.kind.code
            )
            for scope, rest in self._rests.items()
            if rest.until > now and not scope.token
        ]
        return [*limited, *self._refused_tokens(now)]

    def _refused_tokens(self, now: float) -> Iterator[Resting]:
        """Accounts whose refresh token is dead, and those whose access token was rejected."""
        for account in self._named():
            if account.sign_in is not None and self._is_dead(account.sign_in):
                yield Resting(account.name, "", "", TokenRejected.code)
            elif self.is_rejected(account):
                until = self._end_of(_token_scope(account)) - now
                yield Resting(account.name, "", _iso_time(until), TokenRejected.code)

    def _is_dead(self, sign_in: SignIn) -> bool:
        return self._tokens is not None and self._tokens.is_dead(sign_in)

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

    def succeeded(
        self, account: Account, model: str = "", began: float = math.inf
    ) -> None:
        """The account answered: whatever it rested for is over.

        `began`: when it was asked; what it was refused later still holds.
        """
        if not self._rests:
            return
        scopes = (
            Scope(account.name),
            Scope(account.name, model),
            _token_scope(account),
        )
        with self._lock:
            known = ((scope, self._rests.get(scope)) for scope in scopes)
            over: dict[Scope, Rest | None] = {
                scope: None for scope, rest in known if rest and rest.since <= began
            }
            if over:
                self._set(over)

    def refused(self, account: Account, error: RelayError, model: str = "") -> None:
        """Learn from a refusal: a rejected token comes last, a stated end lets the account rest."""
        if isinstance(error, TokenRejected):
            log.warning("%s was rejected%s", account.log_name, account.renewal)
            self._let_rest(_token_scope(account), REJECTED_SECONDS, error)
        elif self._rests_for(error) and error.retry_after:
            seconds = error.retry_after
            log.info("%s rests for %d s: %s.", account.log_name, seconds, error.code)
            if error.rests_whole_account:
                model = ""
            self._let_rest(Scope(account.name, model), seconds, error)

    def _rests_for(self, error: RelayError) -> bool:
        is_limit = isinstance(error, RateLimited)
        return error.rests_account and (self._remembers_limits or not is_limit)

    def _let_rest(self, scope: Scope, seconds: float, error: RelayError) -> None:
        now = self.clock()
        with self._lock:
            self._set({scope: Rest(now + seconds, now, type(error))})


def _token_scope(account: Account) -> Scope:
    return Scope(account.name, token=_short_hash(account.token))


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
        self._left = list(candidates)
        self._began = -math.inf
        self._resting: list[Account] = []
        self._most = most
        self._last: RelayError | None = None
        self._renewed: tuple[str, ...] = ()
        self.model = model
        self.account: Account | None = None

    def next(self) -> Account:
        """The account to try now. Raises the last refusal when none is left."""
        while self._left and self._most >= 0:
            account = min(self._left, key=self._pool.is_rejected)
            self._left.remove(account)
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
        self._began = self._pool.clock()
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
                error.drop_frames()  # they have this object
                # one that failed may be the wanted one
                self._last = self._last or error
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
        error.drop_frames()  # they have the request, which may be answered for long
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
        self._renewed += (account.name,)
        return True

    def succeeded(self) -> None:
        """The account accepted the question."""
        if self.account is not None:
            self._pool.succeeded(self.account, self.model, self._began)
