"""Who may spend what: client keys, callers' own credentials, and what a browser on another origin may do."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
import secrets
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from relay.accounts import Account
from relay.domain import Caller
from relay.errors import BadRequest, Forbidden, Unauthorized
from relay.settings import SettingsError

MADE_HERE = "cw-"
OPEN = "none"
_NEEDS_KEY = (
    "This service asks for a client key. Send it as the header 'Authorization: Bearer KEY', with curl -u :KEY, "
    "or in the field access_token."
)


@dataclass(frozen=True)
class Key:
    """A client key, kept as its SHA-256 only, and the owner of what is asked with it."""

    owner: str
    digest: bytes = field(repr=False)

    def opens(self, shown: str) -> bool:
        return hmac.compare_digest(self.digest, _digest(shown))


def keys_from(entries: tuple[str, ...]) -> tuple[Key, ...]:
    """Keys as AUTHORIZATION lists them: KEY or NAME:KEY. A single unnamed key belongs to `owner`."""
    keys: list[Key] = []
    for entry in entries:
        name, colon, key = entry.partition(":")
        if not colon:
            name, key = (
                "owner" if len(entries) == 1 else f"key-{_digest(entry).hex()[:16]}",
                entry,
            )
        if (
            not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name)
            or name == "anonymous"
            or not key
        ):
            raise SettingsError(
                "AUTHORIZATION cannot be read: each entry must be KEY or NAME:KEY, the name of letters, digits, "
                "'.', '_' and '-', and not 'anonymous'."
            )
        if key == OPEN:
            raise SettingsError(
                "AUTHORIZATION cannot be read: 'none' opens the service and must stand alone."
            )
        if any(known.opens(key) for known in keys):
            raise SettingsError(
                "AUTHORIZATION cannot be read: the same key stands in it twice."
            )
        keys.append(Key(name, _digest(key)))
    return tuple(keys)


def first_key(folder: Path) -> tuple[str, bool]:
    """The key of a service that has something to protect and was given none, and whether it was made just now.

    It is linked into place whole, so of two processes that start at once one makes it and both read the same.
    """
    path = folder / "client_key"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = False
    if not path.exists():
        handle, draft = tempfile.mkstemp(
            dir=folder, prefix=".client_key-"
        )  # mkstemp makes it 0600
        with os.fdopen(handle, "w") as file:
            file.write(MADE_HERE + secrets.token_urlsafe(32) + "\n")
        try:
            os.link(draft, path)
            made = True
        except FileExistsError:
            pass
        finally:
            os.unlink(draft)
    if path.stat().st_mode & 0o077:
        raise SettingsError(
            f"{path} can be read by others than its owner. Say: chmod 600 {path}"
        )
    key = path.read_text("ascii").strip()
    if not key.startswith(MADE_HERE) or len(key) < 32:
        raise SettingsError(
            f"{path} holds no client key. Remove it, and the next start makes a new one."
        )
    return key, made


class Access:
    """Tells callers apart. Without keys there is nothing to protect, or the operator opened the service.

    `knows` says whether a text may be a credential of a caller's own: a mistyped key is not sent anywhere. Without
    keys, a header that holds something else is left alone: many clients cannot but send one.
    """

    def __init__(
        self,
        keys: tuple[Key, ...],
        *,
        allow_tokens: bool = True,
        origins: tuple[str, ...] = (),
        knows: Callable[[str], bool] = bool,
    ) -> None:
        self._keys = keys
        self._allow_tokens = allow_tokens
        self._knows = knows
        self._origins = origins

    def caller(self, authorization: str, access_token: str | None) -> Caller:
        """Who asks, by the Authorization header and the access_token field. Raises Unauthorized without a right."""
        key: Key | None = None
        tokens: list[str] = []
        for shown, may_be_token in (
            *_shown(authorization),
            *([(access_token, True)] if access_token else []),
        ):
            found = self._checked(shown, may_be_token)
            if found is not None:
                key = key or found
            elif (
                may_be_token
                and shown not in tokens
                and (self._keys or shown == access_token or self._knows(shown))
            ):
                tokens.append(shown)
        if len(tokens) > 1:
            raise BadRequest(
                "The Authorization header and the field access_token hold two different credentials."
            )
        if self._keys and key is None and not (tokens and self._allow_tokens):
            raise Unauthorized(_NEEDS_KEY)
        if tokens and not self._allow_tokens:
            raise Forbidden(
                "This service takes no credentials of its callers' own: leave access_token out."
            )
        if tokens and not self._knows(tokens[0]):
            raise Unauthorized(
                "That is no client key of this service, nor an access token that it has a use for."
            )
        token = tokens[0] if tokens else None
        owner = key.owner if key else Account.of(token).name if token else "anonymous"
        return Caller(
            owner,
            key is not None or not self._keys,
            token,
            claimed=key is None and token is not None,
        )

    def check(self, authorization: str) -> None:
        """Refuse a header that shows what can be no credential at all, before anything costly is done for it."""
        for shown, may_be_token in _shown(authorization):
            self._checked(shown, may_be_token)

    def _checked(self, shown: str, may_be_token: bool) -> Key | None:
        """The key that is shown; None for what may be a credential of the caller's own. Raises for anything else."""
        if (found := self._key(shown)) is not None:
            return found
        if shown.startswith(MADE_HERE) or (self._keys and not may_be_token):
            raise Unauthorized("That is not a client key of this service.")
        return None

    def _key(self, shown: str) -> Key | None:
        found = None
        for key in self._keys:  # all of them, so that the time tells nothing
            if key.opens(shown):
                found = found or key
        return found

    def check_browser(self, headers: Mapping[str, str], host: str) -> None:
        """Refuse a page of another origin, told by Sec-Fetch-Site, or else by Origin where a page needs no key."""
        origin, shown = (
            headers.get("Origin", "").lower(),
            headers.get("Authorization", "").lower(),
        )
        sent_unasked = "Cookie" in headers or shown.startswith("basic ")
        if site := headers.get("Sec-Fetch-Site", "").lower():
            foreign = site not in ("none", "same-origin")
        else:  # browsers say it to https and to this machine alone
            ambient = sent_unasked or not (self._keys or shown)
            foreign = (
                bool(origin) and ambient and origin.partition("://")[2] != host.lower()
            )
        allowed = origin in self._origins or ("*" in self._origins and not sent_unasked)
        if foreign and not (origin and allowed):
            raise Forbidden(
                "A page of another origin may not ask here. Its origin must stand in CORS_ORIGINS."
            )

    def cors(self, origin: str) -> dict[str, str]:
        """The headers by which a browser lets a page of `origin` read the answer; none for other origins."""
        if not self._origins:
            return {}
        headers = {"Vary": "Origin"}
        if origin.lower() in self._origins:
            headers |= {
                "Access-Control-Allow-Origin": origin,
                "Access-Control-Allow-Credentials": "true",
            }
        elif origin and "*" in self._origins:
            headers["Access-Control-Allow-Origin"] = "*"
        else:
            return headers
        exposed = "X-Conversation-Id, X-Parent-Message-Id, X-Request-Id, X-Error-Source, X-Error-Code, "
        exposed += (
            "X-Incomplete, X-Finish-Reason, X-History-Dropped, X-Ignored-Parameters, "
        )
        exposed += "Idempotent-Replayed, Retry-After"
        return headers | {"Access-Control-Expose-Headers": exposed}

    def preflight(self, headers: Mapping[str, str]) -> dict[str, str]:
        """The answer to a browser's question before it asks. Raises Forbidden for an origin that is not listed."""
        allowed = self.cors(headers.get("Origin", ""))
        if "Access-Control-Allow-Origin" not in allowed:
            raise Forbidden(
                "This origin may not ask here. It must stand in CORS_ORIGINS."
            )
        return allowed | {
            "Access-Control-Allow-Methods": "GET, POST, PATCH, DELETE",
            "Access-Control-Allow-Headers": headers.get(
                "Access-Control-Request-Headers", "Authorization"
            ),
            "Access-Control-Max-Age": "600",
        }


def _shown(authorization: str) -> list[tuple[str, bool]]:
    """What an Authorization header shows, and whether it may be a caller's own credential: Bearer, Basic, or bare."""
    scheme, _, rest = authorization.strip().partition(" ")
    rest = rest.strip()
    if scheme.lower() == "bearer":
        return [(rest, True)] if rest else []
    if scheme.lower() == "basic":
        try:
            password = (
                base64.b64decode(rest, validate=True).decode("utf-8").partition(":")[2]
            )
        except (binascii.Error, UnicodeDecodeError):
            raise BadRequest(
                "The Authorization header says Basic but holds no name and password."
            ) from None
        return [(password, False)] if password else []
    bare = authorization.strip()
    return [(bare, False)] if bare else []


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
