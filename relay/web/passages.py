"""Requests that pass as they are, on whichever route: what is sent, and how the answer is delivered."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import quote

from relay.passage import Observer, Passage, Watch
from relay.transports import Headers
from relay.upstreams import Forwarded, Forwarder
from relay.usage import PassageMeter
from relay.web.incoming import Incoming
from relay.web.response import Response
from relay.web.responses import deliver_passage

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_PLAIN_PATH = re.compile(r"[A-Za-z0-9_./~-]*")
PATH_CHARACTERS = "/:@!$&'()*+,;=~"  # that a path may hold as they are


def forwarded(
    incoming: Incoming,
    path: str,
    body: bytes | Iterable[bytes],
    *,
    length: int | None = None,
    model: str = "",
    account: str | None = None,
) -> Forwarded:
    """The request at hand for an API's path, with its query and its caller's own credential."""
    target = path
    if not _PLAIN_PATH.fullmatch(path):
        target = quote(path, safe=PATH_CHARACTERS)
    if incoming.query:
        target += f"?{incoming.query}"
    return Forwarded(
        method=incoming.method,
        path=target,
        headers=Headers(incoming.fields.items()),
        body=body,
        length=length,
        model=model,
        token=incoming.caller.token,
        request_id=incoming.id,
        account=account,
    )


def unread(incoming: Incoming, path: str, *, account: str | None = None) -> Forwarded:
    """The same with its body as it arrives, which is not looked at."""
    has_body = incoming.announced or incoming.is_chunked
    if not has_body:
        return forwarded(incoming, path, b"", account=account)
    return forwarded(
        incoming,
        path,
        incoming.body_pieces(),
        length=incoming.announced,
        account=account,
    )


def deliver(
    incoming: Incoming,
    forwarder: Forwarder,
    request: Forwarded,
    watch: Watch,
    *,
    streams: bool = False,
    observer: Observer | None = None,
) -> Response:
    """The answer to a request that passes; raises RelayError. `streams`: an event stream is expected.

    A PassageMeter as the observer counts it as an ask.
    """
    clocks = incoming.service.clocks
    passage = Passage(
        forwarder, request, watch, clocks, streams=streams, observer=observer
    )
    if isinstance(observer, PassageMeter):
        incoming.when_sent.append(lambda: observer.count(passage.failure))
    if incoming.method == "POST":  # what only reads or changes something asks nothing
        incoming.service.chat.note(incoming.caller)
    return deliver_passage(incoming, passage)
