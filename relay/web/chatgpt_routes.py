"""ChatGPT's own web API under its own names: passed on where the upstream is ChatGPT, and else answered here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

from flask import Blueprint

from relay.access import parse_authorization
from relay.dialects.chatgpt import errors, session, wire
from relay.dialects.chatgpt.answer import dumps
from relay.domain import Conversation, title_of
from relay.errors import Forbidden, NotFound, RelayError, Unauthorized
from relay.ids import new_id
from relay.index import ChangeObserver, ClearingObserver, TurnObserver
from relay.passage import Observer
from relay.transports import Headers
from relay.upstreams import Forwarded, Gateway, Upstream
from relay.usage import PassageMeter
from relay.values import frozen
from relay.web import chatgpt_local, passages, signin
from relay.web.edge import Dialect
from relay.web.incoming import Incoming
from relay.web.response import Response
from relay.window import estimate_text

routes = Blueprint("chatgpt", __name__)

#: where the API is found here -> where that is below the upstream's base. Sources: seeds 3 and 4, Pandora
PREFIXES = {
    "/chatgpt/backend-api": "",
    "/chatgpt/api": "",
    "/chatgpt": "",
    "/api": "",
    "/backend-api": "",
    "/backend-anon": "backend-anon/",
}
OLDEST_PATH = "/conversation"
HIDDEN = {"is_visible": False}  # how the backend is told to delete
SESSION_DAYS = 1
NO_GATEWAY = (
    "Of ChatGPT's web API only conversations and models are answered here: the rest "
    "passes to ChatGPT where that is the upstream and ENABLE_GATEWAY allows it."
)
SHARED = (
    "The server's accounts are shared by several client keys, so only conversations "
    "of your own, models and new questions pass. Send an access token of your own for "
    "the rest."
)


def gateway_of(incoming: Incoming) -> Gateway | None:
    """ChatGPT's API, where that answers this caller."""
    return incoming.service.upstream_for(incoming.caller).gateway


def is_only_account(incoming: Incoming, gateway: Gateway) -> bool:
    """Whether there is one account alone that the caller may see, and all of it."""
    if incoming.caller.token:
        return True
    return gateway.accounts <= 1 and incoming.service.routing.sole_owner


@frozen
class Place:
    """Where a request about a conversation passes. `row`: the conversation's in the index, if it has one."""

    gateway: Gateway
    row: Conversation | None


def place_of(incoming: Incoming, conversation_id: str) -> Place | None:
    """Where a conversation is, at ChatGPT; None where it is answered here: it is here, or its account is not known.

    Raises NoConversation.
    """
    gateway = gateway_of(incoming)
    if gateway is None:
        return None
    caller = incoming.caller
    row = incoming.service.conversations.row_of(caller, conversation_id)
    if row is None and not caller.token and gateway.accounts > 1:
        return None
    if row is not None and not row.remote:
        return None
    return Place(gateway, row)


def list_conversations(incoming: Incoming) -> Response:
    gateway = gateway_of(incoming)
    if gateway is None or not is_only_account(incoming, gateway):
        return chatgpt_local.list_conversations(incoming)
    return deliver(incoming, gateway, passages.unread(incoming, path_of(incoming)))


def read(incoming: Incoming, conversation_id: str) -> Response:
    place = place_of(incoming, conversation_id)
    if place is None:
        return chatgpt_local.read(incoming, conversation_id)
    return deliver(incoming, place.gateway, unread_at(incoming, place.row))


def change(incoming: Incoming, conversation_id: str) -> Response:
    place = place_of(incoming, conversation_id)
    if place is None:
        return chatgpt_local.change(incoming, conversation_id)
    body = incoming.whole_body()
    request = request_at(incoming, place.row, body)
    observer = observer_of(incoming, place.row, wire.read(body))
    return deliver(incoming, place.gateway, request, observer)


def observer_of(
    incoming: Incoming, row: Conversation | None, changes: Mapping[str, Any]
) -> Observer | None:
    """What keeps the index as a change leaves the conversation."""
    title = changes.get("title")
    if row is None:
        return None
    if changes.get("is_visible") is False:
        return ChangeObserver(incoming.service.store, row, None)
    if isinstance(title, str) and title.strip():
        return ChangeObserver(incoming.service.store, row, title_of(title))
    return None


def delete(incoming: Incoming, conversation_id: str) -> Response:
    """Pandora's way to delete; the backend has another."""
    place = place_of(incoming, conversation_id)
    if place is None:
        return chatgpt_local.delete(incoming, conversation_id)
    request = as_patch(request_at(incoming, place.row, dumps(HIDDEN)))
    observer = observer_of(incoming, place.row, HIDDEN)
    return deliver(incoming, place.gateway, request, observer)


def delete_all(incoming: Incoming) -> Response:
    """The backend's way and Pandora's, which has no body."""
    if incoming.method == "DELETE":
        incoming.put_back(dumps(HIDDEN))
    gateway = gateway_of(incoming)
    if gateway is None or not is_only_account(incoming, gateway):
        return chatgpt_local.delete_all(incoming)
    body = incoming.whole_body()
    request = as_patch(request_at(incoming, None, body))
    observer = clearing(incoming) if wire.read(body) == HIDDEN else None
    return deliver(incoming, gateway, request, observer)


def clearing(incoming: Incoming) -> Observer:
    service = incoming.service
    upstream = service.upstream_for(incoming.caller)
    return ClearingObserver(service.store, incoming.caller.owner, upstream.name)


def make_title(incoming: Incoming, conversation_id: str) -> Response:
    place = place_of(incoming, conversation_id)
    if place is None:
        return chatgpt_local.make_title(incoming, conversation_id)
    return deliver(incoming, place.gateway, unread_at(incoming, place.row))


def feedback(incoming: Incoming) -> Response:
    return with_conversation(incoming, chatgpt_local.feedback)


def share(incoming: Incoming) -> Response:
    return with_conversation(incoming, no_route)


def no_route(incoming: Incoming) -> Response:
    raise NotFound(NO_GATEWAY)


def with_conversation(
    incoming: Incoming, answer: Callable[[Incoming], Response]
) -> Response:
    """A request whose body names a conversation; it passes to where that lives, or `answer` answers it."""
    if gateway_of(incoming) is None:
        return answer(incoming)
    body = incoming.whole_body()
    named = wire.conversation_id_of(wire.read(body))
    place = place_of(incoming, named or "")
    if place is None:
        incoming.put_back(body)
        return answer(incoming)
    return deliver(incoming, place.gateway, request_at(incoming, place.row, body))


def list_models(incoming: Incoming) -> Response:
    gateway = gateway_of(incoming)
    if gateway is None:
        return chatgpt_local.list_models(incoming)
    return deliver(incoming, gateway, passages.unread(incoming, path_of(incoming)))


def ask(incoming: Incoming) -> Response:
    """A turn: its body passes as it came, but for what old clients leave out."""
    upstream = incoming.service.upstream_for(incoming.caller)
    gateway = gateway_of(incoming)
    if gateway is None:
        return chatgpt_local.ask(incoming)
    body = incoming.whole_body()
    payload = wire.read(body)
    named = wire.conversation_id_of(payload)
    row = None
    if named is not None:
        row = incoming.service.conversations.row_of(incoming.caller, named)
    if row is not None and not row.remote:
        incoming.put_back(body)
        return chatgpt_local.ask(incoming)
    parent_id = (row.newest if row else None) or new_id()
    request = request_at(incoming, row, wire.repaired(body, payload, parent_id))
    headers = replaced(request.headers, Accept="text/event-stream")
    request = replace(request, headers=headers)
    meter = incoming.service.usage.meter(
        incoming.caller, upstream.name, wire.model_of(payload)
    )
    reader = indexing(incoming, upstream, gateway, payload)
    observer = PassageMeter(meter, reader, estimate_text(wire.prompt_of(payload)))
    watch = wire.EventWatch(wire.takes_classic(payload))
    return passages.deliver(
        incoming, gateway, request, watch, streams=True, observer=observer
    )


@routes.post(OLDEST_PATH)
def ask_at_root(incoming: Incoming) -> Response:
    """Where reverse proxies of early 2023 had it; the other routes below this path are our own."""
    incoming.authenticate()
    return ask(incoming)


def indexing(
    incoming: Incoming, upstream: Upstream, gateway: Gateway, payload: dict[str, Any]
) -> TurnObserver:
    """What reads along with a turn, and indexes its conversation unless that is forgotten."""
    named = wire.conversation_id_of(payload)
    row = Conversation(
        id=named or "",
        owner=incoming.caller.owner,
        upstream=upstream.name,
        account=None,
        title=title_of(wire.prompt_of(payload)),
        newest=None,
        created=0,
        updated=0,
        remote=True,
    )
    decoder = gateway.decoder(named, wire.known_ids(payload))
    indexed = row if wire.is_kept(payload) else None
    return TurnObserver(incoming.service.store, indexed, decoder)


def anything_else(incoming: Incoming, path: str) -> Response:
    """Whatever else the API has."""
    gateway = gateway_of(incoming)
    if gateway is None or not incoming.service.settings.enable_gateway:
        raise NotFound(NO_GATEWAY)
    caller = incoming.caller
    if not caller.token and not incoming.service.routing.sole_owner:
        raise Forbidden(SHARED)
    request = passages.unread(incoming, path_of(incoming))
    return deliver(incoming, gateway, request)


@routes.get("/api/auth/session")
@routes.get("/chatgpt/api/auth/session")
def read_session(incoming: Incoming) -> Response:
    """What ChatGPT's page reads first: its access token here is what the caller shows."""
    shown = [known.text for known in parse_authorization(incoming.credential)]
    expires = datetime.now(timezone.utc) + timedelta(days=SESSION_DAYS)
    until = expires.strftime("%Y-%m-%dT%H:%M:%S.000Z")
    return json_answer(session.session(incoming.caller, "".join(shown), until))


def path_of(incoming: Incoming) -> str:
    """The request's path below the upstream's base."""
    if incoming.path == OLDEST_PATH:
        return "conversation"
    for prefix, place in PREFIXES.items():
        if incoming.path.startswith(f"{prefix}/"):
            return place + incoming.path.removeprefix(f"{prefix}/")
    raise NotFound()


def account_of(row: Conversation | None) -> str | None:
    return row.account if row is not None else None


def unread_at(incoming: Incoming, row: Conversation | None) -> Forwarded:
    """The request as it arrives, for the account that has the conversation."""
    return passages.unread(incoming, path_of(incoming), account=account_of(row))


def request_at(incoming: Incoming, row: Conversation | None, body: bytes) -> Forwarded:
    """The same with this body, which is JSON, whatever its client called it."""
    path = path_of(incoming)
    request = passages.forwarded(incoming, path, body, account=account_of(row))
    return replace(
        request, headers=replaced(request.headers, Content_Type="application/json")
    )


def as_patch(request: Forwarded) -> Forwarded:
    return replace(request, method="PATCH")


def replaced(headers: Headers, **fields: str) -> Headers:
    """Headers with others in the place of those of the same name."""
    others = {name.replace("_", "-"): value for name, value in fields.items()}
    names = {name.lower() for name in others}
    kept = [pair for pair in headers.pairs if pair[0].lower() not in names]
    return Headers([*kept, *others.items()])


def deliver(
    incoming: Incoming,
    gateway: Gateway,
    request: Forwarded,
    observer: Observer | None = None,
) -> Response:
    watch = wire.EventWatch()
    return passages.deliver(incoming, gateway, request, watch, observer=observer)


def json_answer(value: Any) -> Response:
    return Response(dumps(value) + b"\n", "application/json")


def error_response(error: RelayError, incoming: Incoming) -> Response:
    """The API's shape; below go-chatgpt-api's prefix its own sentence for a request without a credential."""
    fields = incoming.fields
    shows_none = not (fields.get("Authorization") or fields.get("X-Api-Key"))
    is_missing = isinstance(error, Unauthorized) and shows_none
    if is_missing and incoming.path.startswith("/chatgpt/"):
        response = json_answer(errors.MISSING_TOKEN)
    else:
        response = json_answer(errors.body(error))
    response.status = error.status
    return response


#: method, path below each prefix, view
ROUTES: tuple[tuple[str, str, Callable[..., Response]], ...] = (
    ("POST", "login", signin.login),
    ("GET", "conversations", list_conversations),
    ("PATCH", "conversations", delete_all),
    ("DELETE", "conversations", delete_all),
    ("POST", "conversation", ask),
    ("POST", "f/conversation", ask),
    ("POST", "conversation/talk", chatgpt_local.talk),
    ("POST", "conversation/regenerate", chatgpt_local.regenerate),
    ("POST", "conversation/goon", chatgpt_local.go_on),
    ("POST", "conversation/message_feedback", feedback),
    ("POST", "conversation/gen_title/<conversation_id>", make_title),
    ("GET", "conversation/<conversation_id>", read),
    ("PATCH", "conversation/<conversation_id>", change),
    ("DELETE", "conversation/<conversation_id>", delete),
    ("POST", "share/create", share),
    ("GET", "models", list_models),
)


def add_routes(blueprint: Blueprint) -> None:
    """The table's routes at each prefix, and everything else below it."""
    for prefix in PREFIXES:
        for method, path, view in ROUTES:
            blueprint.add_url_rule(f"{prefix}/{path}", view_func=view, methods=[method])
        rest = f"{prefix}/<path:path>"
        blueprint.add_url_rule(rest, view_func=anything_else, methods=passages.METHODS)


add_routes(routes)
DIALECT = Dialect(
    routes,
    ("chatgpt", "api", "backend-api", "backend-anon"),
    error_response,
    keyless=frozenset({"chatgpt.login"}),
)
