"""The server's own accounts at ChatGPT: added, removed and resting as the database says, while the service runs."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence

from relay.account_watch import AccountWatch, RestOutbox
from relay.accounts import Rest, Resting, Scope
from relay.errors import RelayError
from relay.pool import Pool
from relay.signin.tokens import SignedInTokens
from relay.token_store import TokenStore
from relay.upstreams import Upstream, chatgpt_web

log = logging.getLogger("chatgpt_webapi")


class ServerAccounts:
    """The server's accounts at ChatGPT, as the database has them. See `relay.account_watch.Watched`.

    `accepts_more`: whether accounts are taken while it runs; the first of a service that has neither a
    client key nor AUTHORIZATION=none would be everybody's until the next start makes a key.
    """

    def __init__(
        self,
        tokens: SignedInTokens,
        upstreams: Mapping[str, Upstream],
        accepts_more: bool,
    ) -> None:
        found = upstreams.get("chatgpt-web")
        self._web = found if isinstance(found, chatgpt_web.ChatGPTWeb) else None
        self._tokens = tokens
        self._accepts_more = accepts_more

    def watch(self, outbox: RestOutbox, refreshes: bool) -> AccountWatch:
        """What keeps them as the database has them. `refreshes`: as SCHEDULED_REFRESH says."""
        return AccountWatch(outbox, self, self.refresh if refreshes else None)

    def pool(self, store: TokenStore, watch: AccountWatch) -> Pool:
        """What adds and removes them. `watch`: what `watch` gave."""
        return Pool(store, self.recognizes, watch.look, self.resting)

    def reload(self) -> None:
        if self._web is not None and self._accepts_more:
            self._tokens.reload()
            self._web.take_accounts()

    def take_rests(self, rests: Mapping[Scope, Rest], own: Collection[Scope]) -> None:
        if self._web is not None:
            self._web.take_rests(rests, own)

    def recognizes(self, token: str) -> bool:
        return self._web is not None and self._web.recognizes(token)

    def resting(self) -> Sequence[Resting]:
        return self._web.resting() if self._web is not None else ()

    def refresh(self, forced: bool) -> None:
        """Get access tokens for all accounts with a refresh token: new ones (`forced`), or where there is none."""
        if self._web is None:
            return
        if forced and not self._tokens.take_night():
            return
        for sign_in in self._web.sign_ins:
            try:
                self._tokens.refresh(sign_in, forced)
            except RelayError as error:
                log.warning("A scheduled refresh failed: %s", error.reason)
