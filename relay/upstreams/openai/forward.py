"""Requests that pass to an OpenAI-compatible API as they are: their address, credential and headers. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import unquote

from relay.accounts import Account, Attempts
from relay.errors import BadRequest, UpstreamError
from relay.transports import Call, Headers
from relay.upstreams import Forwarded
from relay.upstreams.http import WholeResponse
from relay.upstreams.openai import body
from relay.upstreams.openai.procedure import API

#: headers of the caller's that say what is asked; all others are between the caller and us, or say who asks
PASSED_HEADERS = ("accept", "content-type", "openai-beta", "range")
#: headers that choose whose account pays; they go along with a caller's own key alone
OWN_HEADERS = ("openai-organization", "openai-project")
#: characters of a path and a query as RFC 3986 has them
_PATH = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/?\[\]-]|%[0-9A-Fa-f]{2})*")


class OpenAIForwarder:
    """See `relay.upstreams.Forwarder`."""

    def __init__(self, api: API, has_responses: bool) -> None:
        self.transport = api.transport
        self.has_responses = has_responses
        self._api = api

    def attempts(self, request: Forwarded) -> Attempts:
        return self._api.attempts(request.token, request.model)

    def call(self, request: Forwarded, account: Account) -> Call:
        if not _PATH.fullmatch(request.path) or _leaves_base(request.path):
            raise BadRequest("The path cannot be passed on to the upstream.")
        own = bool(request.token)
        headers = body.headers(
            account.token, self._api.extras, request.request_id, own=own
        )
        names = {name.lower() for name in headers}
        passed = (*PASSED_HEADERS, *OWN_HEADERS) if own else PASSED_HEADERS
        pairs = [*headers.items(), *_chosen(request.headers, passed, names)]
        return Call(
            request.method,
            f"{self._api.base}/{request.path}",
            Headers(pairs),
            request.body,
            request.length,
            unpack=False,
        )

    def failure(self, response: WholeResponse, request: Forwarded) -> UpstreamError:
        return self._api.failure(response, bool(request.token))


def _chosen(
    headers: Headers, names: Iterable[str], known: set[str]
) -> list[tuple[str, str]]:
    """The fields of these names, but for those that are known already."""
    wanted = set(names) - known
    return [(name, value) for name, value in headers.pairs if name.lower() in wanted]


def _leaves_base(path: str) -> bool:
    """Whether a path would lead out of the API's base."""
    plain = unquote(path.partition("?")[0])
    return ".." in plain.split("/") or "\\" in plain
