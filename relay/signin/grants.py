"""What sign-ins gave, kept in memory until shortly before it expires; one account is signed in once at a time.

Nothing here holds an e-mail address or a password: a keyed hash of both stands for them, whose key is made anew for
each process.
"""

from __future__ import annotations

import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from threading import Event, Lock

import orjson

from relay.accounts import expiry
from relay.errors import InternalError, RelayError, UpstreamTimeout, WrongCredentials
from relay.values import frozen

SPARE_SECONDS = 300.0  # so long before it expires, a grant is given out no more
WRONG_SECONDS = 30.0  # for so long, wrong credentials are answered without asking again
MOST_KEPT = 1000
LATEST = 253_402_300_799.0  # the end of the year 9999, which dates can still show
TOO_SLOW = "The sign-in took too long. Try again."


@frozen
class Credentials:
    email: str = field(repr=False)
    password: str = field(repr=False)


@frozen
class Grant:
    """What a sign-in gives. `expires`: of the access token, Unix seconds; None where nothing says when.

    `login`: the dashboard's own JSON, where its page was signed in to.
    """

    access_token: str = field(repr=False)
    expires: float | None
    login: bytes = field(default=b"", repr=False)

    @property
    def expires_at(self) -> str | None:
        """The same as ChatGPT writes it: 2030-01-31T10:00:00.000Z."""
        if self.expires is None:
            return None
        moment = datetime.fromtimestamp(self.expires, timezone.utc)
        return moment.strftime("%Y-%m-%dT%H:%M:%S.000Z")


def expiry_of(access_token: str, stated: object = None) -> float | None:
    """When an access token expires: the earlier of its own claim `exp` and what was stated with it.

    `stated`: Unix seconds, or a date as ISO 8601 has it.
    """
    known = [expiry(access_token), _moment(stated)]
    return min((each for each in known if each is not None), default=None)


def _moment(value: object) -> float | None:
    if isinstance(value, str):
        try:
            # before Python 3.11, "Z" is not read
            parsed = datetime.fromisoformat(value.strip().replace("Z", "+00:00"))
            value = parsed.replace(tzinfo=parsed.tzinfo or timezone.utc).timestamp()
        except (ValueError, OverflowError):
            return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if 0 < value <= LATEST else None


@dataclass(slots=True)
class _Running:
    """A sign-in that goes on, for all that wait for it."""

    ended: Event = field(default_factory=Event)
    grant: Grant | None = None
    error: RelayError = field(default_factory=InternalError)


class Grants:
    """Grants by credentials. `clock`: Unix seconds, because grants expire by them."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._key = secrets.token_bytes(32)
        self._lock = Lock()
        self._kept: OrderedDict[bytes, Grant] = OrderedDict()
        self._wrong: OrderedDict[bytes, tuple[float, str]] = OrderedDict()
        self._running: dict[bytes, _Running] = {}

    def get(
        self,
        place: str,
        credentials: Credentials,
        sign_in: Callable[[], Grant],
        seconds: float,
        *,
        fresh: bool = False,
    ) -> Grant:
        """The grant that is kept, the one that another caller's sign-in gives, or that of `sign_in`.

        `place`: what is signed in to. `fresh`: whether one that is kept does not do. Waits `seconds`
        for another caller's. Raises RelayError: a failed sign-in fails for all that wait.
        """
        name = self._name_of(place, credentials)
        with self._lock:
            kept = self._find(name, fresh)
            if kept is not None:
                return kept
            running = self._running.get(name)
            if running is None:
                mine = self._running[name] = _Running()
        if running is not None:
            return _outcome(running, seconds)
        try:
            mine.grant = sign_in()
            return mine.grant
        except RelayError as error:
            mine.error = error
            raise
        finally:
            self._finish(name, mine)

    def _name_of(self, place: str, credentials: Credentials) -> bytes:
        parts = orjson.dumps([place, credentials.email, credentials.password])
        return hmac.digest(self._key, parts, "sha256")

    def _find(self, name: bytes, fresh: bool) -> Grant | None:
        """What is kept. Raises WrongCredentials where they were wrong a moment ago."""
        now = self._clock()
        until, message = self._wrong.get(name, (0.0, ""))
        if until > now:
            raise WrongCredentials(message)
        grant = self._kept.get(name)
        if grant is None or fresh:
            return None
        if grant.expires is None or grant.expires - SPARE_SECONDS <= now:
            del self._kept[name]
            return None
        self._kept.move_to_end(name)
        return grant

    def _finish(self, name: bytes, ended: _Running) -> None:
        with self._lock:
            del self._running[name]
            grant = ended.grant
            if grant is not None and grant.expires is not None:
                self._kept[name] = grant
            elif isinstance(ended.error, WrongCredentials):
                until = self._clock() + WRONG_SECONDS
                self._wrong[name] = (until, ended.error.message)
            for kept in (self._kept, self._wrong):
                if len(kept) > MOST_KEPT:
                    kept.popitem(last=False)
        ended.ended.set()


def _outcome(running: _Running, seconds: float) -> Grant:
    if not running.ended.wait(seconds):
        raise UpstreamTimeout(TOO_SLOW)
    if running.grant is None:
        raise running.error
    return running.grant
