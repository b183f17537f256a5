"""Sign-ins as they are kept: what `login` adds and `logout` takes away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from typing import Protocol

from relay.signin.claims import Person
from relay.signin.issuer import Tokens
from relay.values import frozen


@frozen
class KeptSignIn:
    """One sign-in.

    `id`: under which it is kept; `account`: its name, as the log and /readyz have it; `refresh_token`: the one that is
    valid now.
    """

    id: str
    account: str
    person: Person
    refresh_token: str = field(repr=False)


class SignIns(Protocol):
    """Keeps sign-ins, over restarts, where their owner alone can read them. All methods raise StoreFailed."""

    def keep(self, tokens: Tokens, id: str | None = None) -> KeptSignIn:
        """Keep what a sign-in gave, beside all others, or in the place of the one of that id."""

    def list(self) -> Sequence[KeptSignIn]:
        """All that are kept, the one that was used least recently first."""

    def remove(self, sign_in: KeptSignIn) -> str:
        """Keep it no longer, and erase its tokens; the refresh token that was its last."""

    def close(self) -> None:
        """Called once, after the last use."""
