"""OpenAI's platform under its own name, as go-chatgpt-api has it: whatever the upstream of conversations is."""

from __future__ import annotations

from flask import Blueprint

from relay.dialects.openai import wire
from relay.errors import BadRequest, NotFound
from relay.upstreams import Forwarder
from relay.web import passages, signin
from relay.web.edge import Dialect
from relay.web.incoming import Incoming
from relay.web.openai_routes import (
    DEFAULTED,
    deliver,
    deliver_ask,
    error_response,
)
from relay.web.response import Response

routes = Blueprint("platform", __name__, url_prefix="/platform")
API = "v1/"
DASHBOARD = "dashboard/"
OTHER_CREDENTIAL = (
    "That credential is none of the platform's: send a key of its API, or a client key."
)

routes.add_url_rule("/login", view_func=signin.platform_login, methods=["POST"])
routes.add_url_rule("/v1/login", view_func=signin.platform_login, methods=["POST"])


@routes.route("/v1/<path:path>", methods=passages.METHODS)
def api(incoming: Incoming, path: str) -> Response:
    """The API of the OpenAI-compatible upstream, or of the platform itself for a caller's own key."""
    platform = incoming.service.platform
    token = incoming.caller.token
    if token and not platform.recognizes_key(token):
        raise BadRequest(OTHER_CREDENTIAL)
    path = path.rstrip("/")
    if incoming.mimetype == "application/json" and path in DEFAULTED:
        name = platform.upstream.name if platform.upstream else "platform"
        return pass_turn(incoming, platform.api, path, name)
    request = passages.unread(incoming, path)
    return deliver(incoming, platform.api, request, path)


def pass_turn(
    incoming: Incoming, forwarder: Forwarder, path: str, upstream: str
) -> Response:
    """A question: its JSON is looked at for whether it streams, and for its model, which limits are per."""
    body = incoming.whole_body()
    payload = wire.read(body)
    model = wire.model_of(payload)
    request = passages.forwarded(incoming, path, body, model=model)
    return deliver_ask(incoming, forwarder, request, path, payload, upstream)


@routes.route("/dashboard/<path:path>", methods=passages.METHODS)
def dashboard(incoming: Incoming, path: str) -> Response:
    """What the platform's pages show: billing, keys. Only with the caller's own session."""
    request = passages.unread(incoming, f"{DASHBOARD}{path}")
    return deliver(incoming, incoming.service.platform.dashboard, request, path)


@routes.route("/<path:path>", methods=passages.METHODS)
def nothing(incoming: Incoming, path: str) -> Response:
    raise NotFound("Below /platform there are /platform/v1 and /platform/dashboard.")


def recognizes(token: str, incoming: Incoming) -> bool:
    """Whether the route asked has a use for a caller's own credential."""
    path = incoming.path.removeprefix("/platform/")
    platform = incoming.service.platform
    if path.startswith(DASHBOARD):
        return platform.recognizes_session(token)
    return path.startswith(API) and platform.recognizes_key(token)


DIALECT = Dialect(
    routes,
    ("platform",),
    error_response,
    keyless=frozenset({"platform.platform_login"}),
    recognizes=recognizes,
)
