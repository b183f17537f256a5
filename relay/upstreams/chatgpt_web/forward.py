"""Requests that pass to ChatGPT's web backend as they are: their address, credential and headers. Pure.

Headers, both ways. What is in no table goes nowhere: callers' cookies, what says who the caller is or where
(addresses, origin, user agent), and what is between two connections. The backend's cookies go to the account's jar.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from relay.accounts import Account, Attempts
from relay.errors import NotFound, UpstreamError
from relay.transports import Call, Headers, Transport
from relay.upstreams import Forwarded
from relay.upstreams.chatgpt_web import failures
from relay.upstreams.chatgpt_web.backend import Backend
from relay.upstreams.chatgpt_web.body import Place
from relay.upstreams.chatgpt_web.classic import WebDecoder
from relay.upstreams.chatgpt_web.gateways import GatewayCall
from relay.upstreams.forwarding import check_path, chosen
from relay.upstreams.http import WholeResponse

ANONYMOUS = "backend-anon/"
TURNS = ("conversation", "f/conversation")
#: of the caller's: what is asked. Source: protocol notes, headers of the conversation request
PASSED_HEADERS = (
    "accept",
    "accept-language",
    "content-type",
    "oai-language",
    "openai-sentinel-arkose-token",
    "openai-sentinel-chat-requirements-prepare-token",
    "openai-sentinel-chat-requirements-token",
    "openai-sentinel-proof-token",
    "openai-sentinel-so-token",
    "openai-sentinel-turnstile-token",
    "range",
    "x-conduit-token",
    "x-oai-turn-trace-id",
    "x-openai-target-path",
    "x-openai-target-route",
)
#: of the caller's: its account, device and session; they go along with its own token alone
OWN_HEADERS = (
    "chatgpt-account-id",
    "oai-client-build-number",
    "oai-client-version",
    "oai-device-id",
    "oai-session-id",
)
#: of the backend's answers
ANSWER_HEADERS = frozenset(
    (
        "accept-ranges",
        "cache-control",
        "content-disposition",
        "content-encoding",
        "content-language",
        "content-range",
        "content-type",
        "etag",
        "expires",
        "last-modified",
        "retry-after",
    )
)


class ChatGPTGateway:
    """See `relay.upstreams.Gateway`."""

    def __init__(self, backend: Backend) -> None:
        self.transport: Transport = backend.transport
        self._backend = backend

    @property
    def accounts(self) -> int:
        return len(self._backend.pool)

    def attempts(self, request: Forwarded) -> Attempts:
        backend = self._backend
        pool, accounts = backend.candidates(request.token, request.account)
        retries = 0 if request.token else backend.retries
        concurrency = backend.limits.concurrency if _is_turn(request) else None
        return Attempts(pool, accounts, retries, concurrency=concurrency)

    def call(self, request: Forwarded, account: Account) -> Call:
        own = bool(request.token)
        check_path(request.path)
        ours = self._backend.call(
            account,
            request.method,
            lambda place: _address(request, place),
            own=own,
            request_id=request.request_id,
        )
        first, *others = [
            _with_request(call, request, own) for call in (ours, *ours.others)
        ]
        return replace(first, others=tuple(others))

    def failure(self, response: WholeResponse, request: Forwarded) -> UpstreamError:
        return failures.from_response(
            response.status, response.head.headers, response.redacted
        )

    def passes(self, name: str) -> bool:
        return name in ANSWER_HEADERS

    def decoder(self, conversation_id: str | None, known: frozenset[str]) -> WebDecoder:
        return WebDecoder(conversation_id, known)


def _with_request(ours: GatewayCall, request: Forwarded, own: bool) -> GatewayCall:
    """Our request with what the caller's says."""
    names = PASSED_HEADERS + OWN_HEADERS if own else PASSED_HEADERS
    # our Accept is for callers that have none
    set_here = {name.lower() for name in ours.headers} - {"accept"}
    theirs = chosen(request.headers, names, set_here)
    return replace(
        ours,
        headers=Headers([*_others(ours.headers, theirs), *theirs]),
        body=request.body,
        length=request.length,
        unpack=False,
    )


def _address(request: Forwarded, place: Place) -> str:
    """Where a request goes at a place. A turn goes where the operator's turns go. Raises NotFound."""
    path = request.path
    if path.startswith(ANONYMOUS):
        path = path.removeprefix(ANONYMOUS)
        if place.anonymous is None:
            raise NotFound(
                "The configured address of ChatGPT is no /backend-api, so there is no "
                "/backend-anon beside it: ask below /backend-api."
            )
        return f"{place.anonymous.base}/{path}"
    if path == "conversation" and request.method == "POST":
        return place.turn
    return f"{place.base}/{path}"


def _is_turn(request: Forwarded) -> bool:
    path = request.path.partition("?")[0].removeprefix(ANONYMOUS)
    return request.method == "POST" and path in TURNS


def _others(
    ours: Mapping[str, str], theirs: Iterable[tuple[str, str]]
) -> list[tuple[str, str]]:
    """Our headers but for those that the caller's replace."""
    replaced = {name.lower() for name, _ in theirs}
    return [(name, ours[name]) for name in ours if name.lower() not in replaced]
