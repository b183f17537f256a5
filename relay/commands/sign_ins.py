"""What `login` and `logout` share: the way to the issuer, and what is kept."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

from relay.accounts import Account, SignIn
from relay.commands.keys import open_store
from relay.commands.terminal import Terminal
from relay.database import check_private
from relay.deadline import Deadline
from relay.errors import RelayError, UpstreamCut, UpstreamFailed
from relay.ids import new_id
from relay.server import in_place
from relay.settings import Settings
from relay.signin.claims import person_of
from relay.signin.issuer import Issuer, Tokens
from relay.signin.keeping import KeptSignIn
from relay.store import Store
from relay.token_store import StoredToken, TokenStore
from relay.transports import Transport
from relay.transports.selection import open_transports
from relay.upkeep import LEASE_SECONDS
from relay.upstreams.addresses import check_setting

SOURCE: Literal["login"] = "login"
LEASE_WAIT_SECONDS = 40.0  # longer than an exchange takes
POLL_SECONDS = 0.25
REPLY_SECONDS = 30.0  # longest wait for an answer of the issuer


class StoredSignIns:
    """The sign-ins in the service's database. See `SignIns` for its contract."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._tokens = TokenStore(store)

    def keep(self, tokens: Tokens, id: str | None = None) -> KeptSignIn:
        stored = StoredToken(
            id or SignIn.of(tokens.refresh_token, SOURCE).id,
            SOURCE,
            Account.of(tokens.access_token).name,
            tokens.refresh_token,
            tokens.access_token,
            tokens.person.expires,
        )
        with self._unrenewed(stored.id):
            self._tokens.add([stored])
        return KeptSignIn(
            stored.id, stored.account, tokens.person, tokens.refresh_token
        )

    def list(self) -> list[KeptSignIn]:
        return [_to_kept(stored) for stored in self._tokens.of_source(SOURCE)]

    def remove(self, sign_in: KeptSignIn) -> str:
        with self._unrenewed(sign_in.id):
            last = self._tokens.find(sign_in.id)
            self._tokens.delete(sign_in.id)
        return last.refresh_token if last else sign_in.refresh_token

    @contextmanager
    def _unrenewed(self, id: str) -> Iterator[None]:
        """Keeps a service from exchanging the token meanwhile; one that takes very long is not waited for."""
        holder = new_id()
        waiting = Deadline.after(LEASE_WAIT_SECONDS)
        while not self._tokens.lease(id, holder, LEASE_SECONDS):
            if waiting.passed:
                break
            time.sleep(POLL_SECONDS)
        try:
            yield
        finally:
            self._tokens.free(id, holder)

    def close(self) -> None:
        self._store.close()


def _to_kept(stored: StoredToken) -> KeptSignIn:
    person = person_of(stored.access_token or "")
    return KeptSignIn(stored.id, stored.account, person, stored.refresh_token)


def open_sign_ins(settings: Settings) -> StoredSignIns:
    """The sign-ins of a service with these settings; its tables are brought up to date. Raises StoreFailed."""
    check_private(Path(settings.data_dir))
    return StoredSignIns(Store(settings.database(), in_place))


def find_sign_ins(settings: Settings) -> StoredSignIns | None:
    """The same; None where there is no database yet, and none is made."""
    store = open_store(settings)
    return StoredSignIns(store) if store else None


@contextmanager
def opened_transport(settings: Settings) -> Iterator[Transport]:
    """The way to the issuer."""
    transports = open_transports(replace(settings, tls_client=""))
    try:
        yield transports.proxied
    finally:
        transports.close()


def open_issuer(settings: Settings, transport: Transport) -> Issuer:
    """The issuer that the settings name. Raises SettingsError."""
    check_setting("AUTH_BASE_URL", settings.auth_base_url)
    check_setting("OAUTH_TOKEN_URL", settings.oauth_token_url)
    return Issuer(
        transport,
        settings.auth_base_url.rstrip("/"),
        settings.oauth_token_url,
        min(REPLY_SECONDS, settings.first_byte_timeout),
    )


@contextmanager
def naming(issuer: Issuer) -> Iterator[None]:
    """Has the errors of a lost connection say which server it was."""
    try:
        yield
    except (UpstreamFailed, UpstreamCut) as error:
        raise type(error)(f"{issuer.base}: {error.message}") from error


def revoke(issuer: Issuer, terminal: Terminal, refresh_token: str) -> None:
    """End a sign-in at the issuer as well, and say whether it did."""
    try:
        issuer.revoke(refresh_token)
    except RelayError as error:
        terminal.say(
            f"The issuer did not revoke its token: {error.message} In ChatGPT, Settings > "
            "Security > Log out of all devices ends it."
        )
        return
    terminal.say("The issuer has revoked its token.")
