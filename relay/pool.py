"""The pool: accounts that the owner adds and removes while the service runs. They are kept in the database."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from relay.accounts import (
    Account,
    Resting,
    SignIn,
    is_refresh_token,
    is_workspace,
    split_token,
)
from relay.errors import BadRequest
from relay.signin.tokens import account_of
from relay.token_store import StoredToken, TokenStore
from relay.values import frozen

MOST_ACCOUNTS = 1000
LARGEST_TEXT = 4 * 1024**2  # bytes
LONGEST_TOKEN = 8192
MOST_NAMED = 20  # lines that an error names
_TOKEN = re.compile(r"[!-+\--~]{8,8192}")  # no comma, and no space


@frozen
class PooledAccount:
    """An account of the pool for those who look; nothing here is a secret.

    `name`: as the log and /readyz have it. `kind`: of its token, `access` or `refresh`. `workspace`: the id that was
    stated with it. `resting`: why it is not asked now.
    """

    name: str
    kind: str
    workspace: str
    resting: tuple[Resting, ...] = ()

    @property
    def has_failed(self) -> bool:
        """Whether its token is refused: it has to be replaced."""
        return any(rest.reason == "token_rejected" for rest in self.resting)


class Pool:
    """`recognizes`: the form of tokens that can be added. `learn`: has this process learn of a change. All may block.

    `resting`: all accounts of the server's that rest.
    """

    def __init__(
        self,
        store: TokenStore,
        recognizes: Callable[[str], bool],
        learn: Callable[[], None],
        resting: Callable[[], Sequence[Resting]],
    ) -> None:
        self._store = store
        self._recognizes = recognizes
        self._learn = learn
        self._resting = resting

    def accounts(self) -> list[PooledAccount]:
        """All accounts, by name. Raises StoreFailed."""
        resting: dict[str, list[Resting]] = {}
        for rest in self._resting():
            resting.setdefault(rest.account, []).append(rest)
        accounts = [_to_pooled(row, resting) for row in self._store.of_source("pool")]
        return sorted(accounts, key=lambda account: account.name)

    def add(self, text: str) -> None:
        """Add the tokens of a text, one a line: all of them, or none. Raises BadRequest or StoreFailed.

        A newer access token of an account takes the place of its former one.
        """
        rows = [_row_of(token) for token in self.parse(text)]
        known = self._store.of_source("pool")
        fresh = {row.id: row for row in rows}
        names = {row.account for row in rows if not row.refresh_token}
        former = [
            row.id
            for row in known
            if row.account in names and not row.refresh_token and row.id not in fresh
        ]
        if len(fresh.keys() | {row.id for row in known}) > MOST_ACCOUNTS:
            raise BadRequest(
                f"The pool takes {MOST_ACCOUNTS} accounts at most: nothing was added."
            )
        self._store.add([self._merged(row) for row in fresh.values()], former)
        self._learn()

    def _merged(self, row: StoredToken) -> StoredToken:
        """A row that is to be written: of a token that is known already, what is known stays."""
        known = self._store.find(row.id) if row.refresh_token else None
        if known is None:
            return row
        source = "pool" if known.source == "caller" else known.source
        return StoredToken(
            known.id, source, known.account, known.refresh_token, known.access_token,
            known.expires, known.began, known.dead, workspace=row.workspace,
        )  # fmt: skip

    def clear(self) -> int:
        """Remove all accounts; how many there were. Raises StoreFailed."""
        count = self._store.clear("pool")
        self._learn()
        return count

    def parse(self, text: str) -> list[str]:
        """The tokens of a text: one a line, `#` begins a comment, a workspace may follow after a comma.

        Raises BadRequest, which names lines by their numbers and quotes none.
        """
        if len(text) > LARGEST_TEXT:
            raise BadRequest("That is too large: add fewer tokens at once.")
        lines = [line.strip() for line in text.lstrip("\ufeff").splitlines()]
        given = {
            number: line
            for number, line in enumerate(lines, start=1)
            if line and not line.startswith("#")
        }
        wrong = [number for number, line in given.items() if not self._is_token(line)]
        if wrong:
            named = ", ".join(map(str, wrong[:MOST_NAMED]))
            raise BadRequest(
                f"No token of ChatGPT's: line {named}{' ...' * (len(wrong) > MOST_NAMED)}. "
                "Each line is an access token (eyJ..., at-...), a refresh token (rt_..., or "
                "45 characters), or one of them, a comma and an account id. Nothing was added."
            )
        if not given:
            raise BadRequest(
                "There is no token in it: send one a line in the field text."
            )
        return [_tidy(line) for line in given.values()]

    def _is_token(self, line: str) -> bool:
        token, comma, workspace = line.partition(",")
        if comma and not is_workspace(workspace.strip()):
            return False
        token = token.strip()
        if not _TOKEN.fullmatch(token) or token.startswith("cw-"):
            return False
        return self._recognizes(token)


def _tidy(line: str) -> str:
    return ",".join(part.strip() for part in line.split(","))


def _row_of(text: str) -> StoredToken:
    token, workspace = split_token(text)
    if is_refresh_token(token):
        sign_in = SignIn.of(token, "pool")
        return StoredToken(sign_in.id, "pool", sign_in.name, token, workspace=workspace)
    account = Account.of(text)
    row_id = SignIn.of(text, "pool").id
    return StoredToken(row_id, "pool", account.name, "", token, workspace=workspace)


def _to_pooled(row: StoredToken, resting: dict[str, list[Resting]]) -> PooledAccount:
    account = account_of(row)
    if account.sign_in is not None and row.access_token:
        account = account.with_token(row.access_token)
    kind = "refresh" if row.refresh_token else "access"
    rests = tuple(resting.get(account.name, ()))
    return PooledAccount(account.name, kind, row.workspace, rests)
