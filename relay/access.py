"""Who may spend what: client keys, and credentials of the callers' own."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable
from dataclasses import field
from pathlib import Path
from threading import Lock
from typing import Literal, TypeAlias

from relay.accounts import (
    Account,
    is_workspace,
    join_token,
    may_be_chatgpt_token,
    split_token,
)
from relay.domain import Caller
from relay.errors import (
    BadRequest,
    Forbidden,
    TooManyAttempts,
    Unauthorized,
)
from relay.settings import SettingsError
from relay.values import frozen

log = logging.getLogger("chatgpt_webapi")

MADE_HERE = "cw-"
KEY_FILE = "client_key"
OPEN = "none"
OWNER = "owner"  # of a key that has no other name
SHORTEST_KEY = 8
SHORT_KEY = 16
WELL_KNOWN = (
    "authorization",
    "changeme",
    "change-me",
    "password",
    "secret-key",
    "undefined",
    "your-key",
    "your-secret-key",
    "your_secret_key",
    "your-api-key",
    "sk-xxxxxxxx",
    "12345678",
    "123456789",
    "1234567890",
    "qwertyuiop",
)
MOST_ATTEMPTS = 20  # wrong keys of one address within a minute
ATTEMPT_SECONDS = 60.0
MOST_ADDRESSES = 10_000
NEEDS_KEY = (
    "This service asks for a client key. Send it as the header 'Authorization: Bearer "
    "KEY', with curl -u :KEY, or in the field access_token."
)
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")

#: whether a text has the form of a credential that is checked where it would be sent
Recognizer: TypeAlias = Callable[[str], bool]


def never(token: str) -> bool:
    return False


@frozen
class Key:
    """A client key, held as its SHA-256 only, and the owner of what is asked with it."""

    owner: str
    digest: bytes = field(repr=False)

    def matches(self, digest: bytes) -> bool:
        """Whether a text of this SHA-256 is the key; in constant time."""
        return hmac.compare_digest(self.digest, digest)


def parse_keys(entries: tuple[str, ...]) -> tuple[Key, ...]:
    """Keys as AUTHORIZATION lists them: KEY or NAME:KEY. A single unnamed key belongs to `owner`."""
    keys: list[Key] = []
    for entry in entries:
        name, colon, text = entry.partition(":")
        if not colon:
            text = entry
            is_only_one = len(entries) == 1
            name = OWNER if is_only_one else f"key-{_digest(entry).hex()[:16]}"
        if not _is_name(name) or not text:
            raise SettingsError(
                "AUTHORIZATION cannot be read: each entry must be KEY or NAME:KEY, the "
                "name of letters, digits, '.', '_' and '-', and not 'anonymous'."
            )
        if text == OPEN:
            raise SettingsError(
                "AUTHORIZATION cannot be read: 'none' opens the service and must stand "
                "alone."
            )
        _check_strength(name, text)
        digest = _digest(text)
        if any(known.matches(digest) for known in keys):
            raise SettingsError(
                "AUTHORIZATION cannot be read: the same key stands in it twice."
            )
        keys.append(Key(name, digest))
    return tuple(keys)


def _check_strength(name: str, key: str) -> None:
    """Raise SettingsError for a key that strangers would guess; one that is short is only warned of."""
    if "$(" in key:
        raise SettingsError(
            f"AUTHORIZATION cannot be used: the key of {name} holds '$(', which only a "
            "shell replaces. Write the key itself."
        )
    if len(key) < SHORTEST_KEY or key.lower() in WELL_KNOWN:
        raise SettingsError(
            f"AUTHORIZATION cannot be used: the key of {name} has fewer than "
            f"{SHORTEST_KEY} characters or is a well-known word, so strangers would guess "
            "it. openssl rand -hex 16 makes one."
        )
    if len(key) < SHORT_KEY:
        log.warning(
            "AUTHORIZATION: the key of %s has fewer than %d characters.",
            name,
            SHORT_KEY,
        )


def new_key() -> str:
    """A client key that nobody guesses."""
    return MADE_HERE + secrets.token_urlsafe(32)


def key_file(folder: Path) -> Path:
    """Where the key of a service is kept that was given none."""
    return folder / KEY_FILE


def _is_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None and name != "anonymous"


def check_name(name: str) -> None:
    """Raise SettingsError for what cannot be the name of a key."""
    if not _is_name(name):
        raise SettingsError(
            f"{name!r} cannot name a client key: a name has 1 to 64 letters, digits, "
            "'.', '_' and '-', and is not 'anonymous'."
        )


def first_key(folder: Path, name: str = KEY_FILE) -> tuple[str, bool]:
    """The key of a service that was given none, and whether it was made just now. Raises SettingsError.

    `name`: of its file in the folder.
    """
    path = folder / name
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = not path.exists() and _make_key(path)
    if path.stat().st_mode & 0o077:
        raise SettingsError(
            f"{path} can be read by others than its owner. Say: chmod 600 {path}"
        )
    key = path.read_bytes().decode("ascii", "replace").strip()
    if not key.startswith(MADE_HERE) or len(key) < 32:
        raise SettingsError(
            f"{path} holds no {name.replace('_', ' ')}. Remove it, and the next start makes a new one."
        )
    return key, made


def _make_key(path: Path) -> bool:
    """Make a key file; False where another process was first.

    The file is linked into place whole, so of two processes that start at once one makes it and
    both read the same.
    """
    # mkstemp makes it 0600
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    with os.fdopen(handle, "w") as file:
        file.write(new_key() + "\n")
    try:
        os.link(draft, path)
        return True
    except FileExistsError:
        return False
    finally:
        os.unlink(draft)


@frozen
class Credential:
    """What a request shows. `may_be_token`: it may be the caller's own. `explicit`: it was sent for us alone.

    A header is not explicit: many clients cannot avoid sending one.
    """

    text: str = field(repr=False)
    may_be_token: bool
    explicit: bool = False


class Access:
    """Tells callers apart. Without keys there is nothing to protect, or the operator opened the service.

    `recognizes`: whether a text has the form of a credential that an upstream checks. What no
    upstream recognizes is a mistyped key, and is sent nowhere.
    """

    def __init__(
        self,
        keys: tuple[Key, ...],
        *,
        allow_tokens: bool | Literal["any"] = True,
        recognizes: Recognizer = bool,
    ) -> None:
        self._keys = keys
        self._allow_tokens = bool(allow_tokens)
        self._recognizes = recognizes

    @property
    def needs_key(self) -> bool:
        return bool(self._keys)

    @property
    def owners(self) -> tuple[str, ...]:
        """The owners that have a key, in the order of the keys; an owner may have several."""
        return tuple(dict.fromkeys(key.owner for key in self._keys))

    def is_operator(self, caller: Caller) -> bool:
        """Whether a caller may see and do what is the service's own: the holder of the only key, or of one named OWNER.

        An open service has none.
        """
        has_key = bool(self._keys) and caller.may_spend
        return has_key and (caller.owner == OWNER or self.owners == (caller.owner,))

    def check(self, authorization: str) -> None:
        """Refuse a header that can be no credential at all, before anything costly is done. Raises RelayError."""
        for credential in parse_authorization(authorization):
            self._find_key(credential)

    def caller(
        self,
        authorization: str,
        access_token: str | None,
        also: Recognizer = never,
        workspace: str = "",
    ) -> Caller:
        """Who asks, by the Authorization header and the access_token field.

        `workspace`: the id of the one that the caller's own token is to ask in; it goes with no other.
        `also`: whether the route asked has a use for a credential that no upstream of the service recognizes.

        Raises Unauthorized, Forbidden or BadRequest for one who may not ask.
        """
        credentials = parse_authorization(authorization)
        if access_token:
            credentials.append(Credential(access_token, True, explicit=True))
        key: Key | None = None
        tokens: list[str] = []
        for credential in credentials:
            found = self._find_key(credential)
            if found is not None:
                key = key or found
            elif self._is_token(credential, also) and credential.text not in tokens:
                tokens.append(credential.text)
        if len(tokens) > 1:
            raise BadRequest(
                "A header and the field access_token hold two different credentials: "
                "send one of them."
            )
        token = _in_workspace(tokens[0], workspace) if tokens else None
        self._check_may_ask(key, token, also)
        return self._caller(key, token)

    def _caller(self, key: Key | None, token: str | None) -> Caller:
        may_spend = key is not None or not self._keys
        if key is not None:
            return Caller(key.owner, may_spend, token)
        if token is not None:
            account = Account.of(token)
            former = account.former_name
            return Caller(account.name, may_spend, token, True, former)
        return Caller("anonymous", may_spend)

    def _is_token(self, credential: Credential, also: Recognizer) -> bool:
        """Whether to take what is no key for a token of the caller's own."""
        if not credential.may_be_token:
            return False
        is_meant = self.needs_key or credential.explicit
        return is_meant or self._has_use(credential.text, also)

    def _has_use(self, token: str, also: Recognizer) -> bool:
        return self._recognizes(token) or also(token)

    def _check_may_ask(
        self, key: Key | None, token: str | None, also: Recognizer
    ) -> None:
        """Raise where the caller may not ask."""
        pays_itself = token is not None and self._allow_tokens
        if self._keys and key is None and not pays_itself:
            raise Unauthorized(NEEDS_KEY)
        if token is None:
            return
        if not self._allow_tokens:
            raise Forbidden(
                "This service takes no credentials of its callers' own: leave "
                "access_token out."
            )
        if not self._has_use(token, also):
            raise Unauthorized(
                "That is no client key of this service, nor an access token that it "
                "has a use for.",
                wrong_key=True,
            )

    def _find_key(self, credential: Credential) -> Key | None:
        """The key that is shown; None for what may be a token of the caller's own. Raises for anything else."""
        found = None
        digest = _digest(credential.text)
        for key in self._keys:  # all of them, so that the time says nothing
            if key.matches(digest):
                found = found or key
        if found is not None:
            return found
        is_only_a_key = bool(self._keys) and not credential.may_be_token
        if is_only_a_key or credential.text.startswith(MADE_HERE):
            message = "That is not a client key of this service."
            raise Unauthorized(message, wrong_key=True)
        return None


def _in_workspace(token: str, workspace: str) -> str:
    """A token with the workspace that was stated apart from it. Raises BadRequest."""
    given, stated = split_token(token)
    if not workspace or not may_be_chatgpt_token(given):
        return token
    if not is_workspace(workspace) or stated not in ("", workspace):
        raise BadRequest(
            "Chatgpt-Account-Id holds no account id, or another one than the token: send "
            "the workspace's id, as ChatGPT shows it."
        )
    return join_token(given, workspace)


def parse_authorization(header: str) -> list[Credential]:
    """What an Authorization header shows: Bearer, Basic (the password), or bare, a key or a token of ChatGPT's.

    Raises BadRequest.
    """
    scheme, _, rest = header.strip().partition(" ")
    rest = rest.strip()
    if scheme.lower() == "bearer":
        return [Credential(rest, may_be_token=True)] if rest else []
    if scheme.lower() == "basic":
        password = _basic_password(rest)
        return [Credential(password, may_be_token=False)] if password else []
    bare = header.strip()
    return [Credential(bare, may_be_chatgpt_token(bare))] if bare else []


def _basic_password(encoded: str) -> str:
    try:
        pair = base64.b64decode(encoded, validate=True).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        raise BadRequest(
            "The Authorization header says Basic but holds no name and password."
        ) from None
    return pair.partition(":")[2]


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


class WrongKeys:
    """Wrong keys, counted per address: one that showed many within a minute is not listened to for the rest of it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._wrong: dict[str, list[float]] = {}
        self._lock = Lock()

    def check(self, address: str) -> None:
        """Raise TooManyAttempts for an address that is not listened to."""
        since = self._clock() - ATTEMPT_SECONDS
        times = [at for at in self._wrong.get(address, ()) if at > since]
        if len(times) >= MOST_ATTEMPTS:
            wait = max(1, round(times[0] - since))
            raise TooManyAttempts(
                "Too many wrong keys came from this address.", retry_after=wait
            )

    def add(self, address: str) -> None:
        """Count a wrong key."""
        now = self._clock()
        with self._lock:
            if len(self._wrong) >= MOST_ADDRESSES and address not in self._wrong:
                self._wrong.clear()  # so many addresses are a flood, which this does not stop
            times = self._wrong.setdefault(address, [])
            times.append(now)
            del times[:-MOST_ATTEMPTS]
