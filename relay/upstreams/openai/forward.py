"""Requests that pass to an OpenAI-compatible API as they are: their address, credential and headers. Pure."""

from __future__ import annotations

from relay.accounts import Account, Attempts
from relay.errors import UpstreamError
from relay.transports import Call, Headers
from relay.upstreams import Forwarded
from relay.upstreams.forwarding import check_path, chosen
from relay.upstreams.http import WholeResponse
from relay.upstreams.openai import body
from relay.upstreams.openai.procedure import API

#: headers of the caller's that say what is asked; all others are between the caller and us, or say who asks
PASSED_HEADERS = ("accept", "content-type", "openai-beta", "range")
#: headers that choose whose account pays; they go along with a caller's own key alone
OWN_HEADERS = ("openai-organization", "openai-project")
FORM = "application/x-www-form-urlencoded"


class OpenAIForwarder:
    """See `relay.upstreams.Forwarder`."""

    def __init__(self, api: API) -> None:
        self.transport = api.transport
        self._api = api

    def attempts(self, request: Forwarded) -> Attempts:
        return self._api.attempts(request.token, request.model)

    def call(self, request: Forwarded, account: Account) -> Call:
        check_path(request.path)
        own = bool(request.token)
        headers = body.headers(
            account.token, self._api.extras, request.request_id, own=own
        )
        passed = (*PASSED_HEADERS, *OWN_HEADERS) if own else PASSED_HEADERS
        extras = () if own else [name.lower() for name in self._api.extras.headers]
        stated = map(_as_json, chosen(request.headers, passed, extras))
        pairs = [*headers.items(), *stated]
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

    def passes(self, name: str) -> bool:
        return True


def _as_json(field: tuple[str, str]) -> tuple[str, str]:
    """A form's type is what curl -d says where it is told nothing, and no route of the API takes one: it is JSON."""
    name, value = field
    is_form = name.lower() == "content-type" and value.lower().startswith(FORM)
    return (name, "application/json") if is_form else field
