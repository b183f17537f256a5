"""Requests to ChatGPT that are answered whole: its lists, its conversations, and changes of them."""

from __future__ import annotations

from relay.accounts import Account, AccountPool, Attempts
from relay.deadline import Deadline
from relay.errors import UpstreamFailed
from relay.upstreams.chatgpt_web import failures
from relay.upstreams.chatgpt_web.backend import Backend
from relay.upstreams.http import WholeResponse, fetch
from relay.values import frozen


@frozen
class Lookup:
    """One request. `path`: below the backend's base. `own`: the account's token is the caller's. `largest`: bytes."""

    method: str
    path: str
    own: bool
    content: bytes = b""
    largest: int | None = None


def look_up(
    backend: Backend, account: Account, lookup: Lookup, seconds: float
) -> WholeResponse:
    """Its answer, of whatever status, by the account's current access token. Blocks.

    One that has expired is renewed once. Raises RelayError, at the latest after `seconds` for each request.
    """
    pool = AccountPool((account,), tokens=backend.tokens)
    attempts = Attempts(pool, (account,), 0)
    attempts.next()
    response = _ask(backend, _ready(attempts, seconds), lookup, seconds)
    if response.status != 401:
        return response
    refusal = failures.from_response(401, response.head.headers, response.redacted)
    if not attempts.renew(refusal):
        return response
    return _ask(backend, _ready(attempts, seconds), lookup, seconds)


def _ready(attempts: Attempts, seconds: float) -> Account:
    deadline = Deadline.after(seconds)
    while (account := attempts.ready(deadline.left)) is None:
        if deadline.passed:
            raise UpstreamFailed(
                f"The account's access token could not be got within {seconds:g} s. Try again soon."
            )
    return account


def _ask(
    backend: Backend, account: Account, lookup: Lookup, seconds: float
) -> WholeResponse:
    call = backend.call(
        account,
        lookup.method,
        lambda place: f"{place.base}/{lookup.path}",
        lookup.content,
        own=lookup.own,
    )
    largest = lookup.largest
    if largest is None:
        largest = backend.limits.answer
    return fetch(backend.transport, call, seconds, largest)
