"""Accounts at an upstream: whose turn it is, who rests until when. The one loop over accounts is here."""

from __future__ import annotations

import base64
import binascii
import hashlib
import logging
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock

import orjson

from relay.errors import RateLimited, RelayError, TokenRejected, UpstreamGone

log = logging.getLogger(__name__)

_AUTH = "https://api.openai.com/auth"
REJECTED_SECONDS = 300.0  # so long a rejected token is tried after all others; it may have been signed in again
SHORTEST_SECRET = 8  # what servers without keys are given in a key's place is no secret: none, ollama ...


@dataclass(frozen=True)
class Account:
    """An account and its access token. `name` says whose it is without showing the token."""

    name: str
    token: str = field(repr=False)

    def hidden_in(self, told: bytes) -> bytes:
        """What an upstream told, without the token: some quote it."""
        token = self.token.encode("utf-8", "surrogateescape")
        return told.replace(token, b"...") if len(token) >= SHORTEST_SECRET else told

    @classmethod
    def of(cls, token: str) -> Account:
        """The account that a token names. Tokens are opaque; a JWT's claims are read where it is one, unverified."""
        opaque = cls(f"token-{hashlib.sha256(token.encode()).hexdigest()[:16]}", token)
        if not is_jwt(token):
            return opaque
        try:
            payload = token.split(".")[1]
            claims = orjson.loads(
                base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))
            )
            auth = claims.get(_AUTH, {})
            known = (
                auth.get("chatgpt_account_id") or auth.get("user_id") or claims["sub"]
            )
            return cls(
                f"account-{hashlib.sha256(str(known).encode()).hexdigest()[:16]}", token
            )
        except (KeyError, AttributeError, ValueError, binascii.Error):
            return opaque


def is_jwt(token: str) -> bool:
    """Whether a token looks like one of ChatGPT's; only such a one can name an account, and ChatGPT checks it."""
    return token.startswith("eyJ") and token.count(".") >= 2


class AccountPool:
    """The owner's accounts, used in turn. A limit with a stated time lets one rest; a rejected token comes last."""

    def __init__(
        self, accounts: tuple[Account, ...], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._accounts = accounts
        self._clock = clock
        self._next = 0
        self._resting: dict[tuple[str, str], float] = {}
        self._rejected: dict[str, float] = {}
        self._asks: Counter[str] = Counter()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._accounts)

    def only(self, name: str) -> tuple[Account, ...]:
        """The account of that name alone, for a conversation that lives there."""
        found = tuple(account for account in self._accounts if account.name == name)
        # an opaque token that was renewed has another name; where it is the only one, it is meant
        if not found and len(self._accounts) == 1 and name.startswith("token-"):
            return self._accounts
        if not found:
            raise UpstreamGone(
                f"This conversation lives at the account {name}, which is not configured any more. "
                "Leave conversation_id out to begin a new one."
            )
        return found

    def in_turn(self) -> tuple[Account, ...]:
        """All accounts, beginning with the one whose turn it is."""
        with self._lock:
            first, self._next = (
                self._next,
                (self._next + 1) % max(1, len(self._accounts)),
            )
        return self._accounts[first:] + self._accounts[:first]

    def rests(self, account: Account, scope: str = "") -> RateLimited | None:
        """The limit by which the account rests, with the time that is left; None for one that does not.

        What the upstream said of it was said to another caller, and is not told again.
        """
        left = self._resting.get((account.name, scope), -math.inf) - self._clock()
        return (
            RateLimited(
                "The upstream's limit is reached.", retry_after=max(1, round(left))
            )
            if left > 0
            else None
        )

    def rejected(self, account: Account) -> bool:
        """Whether the account's token was rejected of late."""
        return self._rejected.get(account.name, -math.inf) > self._clock()

    def take(self, account: Account, most: int) -> bool:
        """Count one more ask in flight; False where the account has `most` of them already (0: no bound)."""
        with self._lock:
            if most and self._asks[account.name] >= most:
                return False
            self._asks[account.name] += 1
            return True

    def leave(self, account: Account) -> None:
        with self._lock:
            self._asks[account.name] -= 1
            if not self._asks[account.name]:
                del self._asks[account.name]

    def in_flight(self, account: Account) -> int:
        return self._asks[account.name]

    def heard(self, account: Account, error: RelayError, scope: str = "") -> None:
        """What an account's refusal means for its next turns; a limit is one of `scope`, a model say."""
        now = self._clock()
        if isinstance(error, TokenRejected):
            log.warning("The upstream rejects the credential of %s.", account.name)
            self._rejected[account.name] = now + REJECTED_SECONDS
        elif isinstance(error, RateLimited) and error.retry_after:
            log.info(
                "%s has reached a limit of the upstream's, for %d s.",
                account.name,
                error.retry_after,
            )
            with self._lock:
                self._resting = {
                    key: until for key, until in self._resting.items() if until > now
                }
                self._resting[account.name, scope] = now + error.retry_after


class Attempts:
    """One ask's way through the accounts: the next one only after a refusal that another account may mend."""

    def __init__(
        self,
        pool: AccountPool,
        candidates: tuple[Account, ...],
        most: int,
        scope: str = "",
    ) -> None:
        self._pool = pool
        self.scope = scope
        self._left = sorted(candidates, key=pool.rejected)
        self._most = most
        self._last: RelayError | None = None
        self.account: Account | None = None

    def next(self) -> Account:
        """The account to try now. Raises the last refusal when none is left."""
        while self._left and self._most >= 0:
            account = self._left.pop(0)
            if (resting := self._pool.rests(account, self.scope)) is not None:
                self._last = resting
                continue
            self._most -= 1
            self.account = account
            return account
        raise self._last or UpstreamGone("No account is configured for this.")

    def refused(self, error: RelayError) -> None:
        """Take note of a refusal; raises it again where no other account may mend it."""
        if self.account is not None:
            self._pool.heard(self.account, error, self.scope)
        if not error.another_account_may_help:
            raise error
        if not (
            isinstance(error, TokenRejected) and isinstance(self._last, RateLimited)
        ):
            self._last = error  # a limit ends by itself, so it is what is worth telling
