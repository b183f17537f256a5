"""OpenAI's API under /v1: passed through where the upstream speaks it, and translated where it does not."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from flask import Blueprint

from relay.dialects.fields import flag_of
from relay.dialects.openai import chat, errors, models, usage, wire
from relay.errors import NotFound, RelayError
from relay.upstreams import Forwarded, Forwarder, Upstream
from relay.usage import PassageMeter
from relay.web import links, passages, signin, stored_responses
from relay.web.edge import Dialect
from relay.web.incoming import WORKSPACE, Incoming
from relay.web.response import Response
from relay.web.responses import (
    deliver_stream,
    deliver_whole,
    json_response,
    reply_headers,
)

routes = Blueprint("openai", __name__, url_prefix="/v1")

#: routes whose requests get the default model, where they name none
DEFAULTED = ("chat/completions", "completions", "responses")


@routes.post("/chat/completions")
def chat_completions(incoming: Incoming) -> Response:
    body = incoming.whole_body()
    payload = wire.read(body)
    if payload.get(WORKSPACE):  # chat2api's field
        incoming.authenticate(workspace=payload.pop(WORKSPACE))
    upstream = incoming.service.upstream_for(incoming.caller)
    keeps_unasked = not incoming.service.settings.history_disabled
    is_translated = (
        upstream.forwarder is None
        or incoming.idempotency_key is not None
        or chat.keeps(payload, keeps_unasked)
    )
    if is_translated:
        return translate(incoming, payload, upstream)
    return pass_json(incoming, upstream, "chat/completions", body, payload)


@routes.post("/responses")
def create_response(incoming: Incoming) -> Response:
    body = incoming.whole_body()
    payload = wire.read(body)
    upstream = incoming.service.upstream_for(incoming.caller)
    if upstream.forwarder is not None and upstream.has_responses:
        return pass_json(incoming, upstream, "responses", body, payload)
    return stored_responses.create(incoming, payload, upstream)


@routes.get("/responses/<response_id>")
def retrieve_response(incoming: Incoming, response_id: str) -> Response:
    return pass_or(stored_responses.retrieve, incoming, response_id)


@routes.delete("/responses/<response_id>")
def delete_response(incoming: Incoming, response_id: str) -> Response:
    return pass_or(stored_responses.delete, incoming, response_id)


@routes.get("/responses/<response_id>/input_items")
def list_input_items(incoming: Incoming, response_id: str) -> Response:
    return pass_or(stored_responses.list_input, incoming, response_id)


@routes.post("/responses/<response_id>/cancel")
def cancel_response(incoming: Incoming, response_id: str) -> Response:
    return pass_or(stored_responses.cancel, incoming, response_id)


@routes.get("/models")
def list_models(incoming: Incoming) -> Response:
    return json_response(
        models.listing(incoming.service.listed_models(incoming.caller))
    )


@routes.get("/engines")
def list_engines(incoming: Incoming) -> Response:
    return json_response(
        models.engines(incoming.service.listed_models(incoming.caller))
    )


@routes.get("/models/<path:name>")
def read_model(incoming: Incoming, name: str) -> Response:
    return json_response(
        models.entry(incoming.service.find_model(incoming.caller, name))
    )


@routes.route("/<path:path>", methods=passages.METHODS)
def anything_else(incoming: Incoming, path: str) -> Response:
    """Whatever else the API has, where the upstream has it."""
    path = path.rstrip("/")
    upstream = incoming.service.upstream_for(incoming.caller)
    forwarder = upstream.forwarder
    if forwarder is None:
        raise NotFound(
            "There is no such route here: only an OpenAI-compatible upstream has more "
            "of this API than chat completions, responses and models."
        )
    if incoming.mimetype != "application/json":
        request = passages.unread(incoming, path)
        return deliver(incoming, forwarder, request, path)
    body = incoming.whole_body()
    if body.lstrip().startswith(b"{"):
        return pass_json(incoming, upstream, path, body, wire.read(body))
    return deliver(incoming, forwarder, passages.forwarded(incoming, path, body), path)


def pass_or(
    view: Callable[[Incoming, str], Response], incoming: Incoming, response_id: str
) -> Response:
    """The request as it is where the upstream has responses itself; else what our own store has."""
    upstream = incoming.service.upstream_for(incoming.caller)
    if upstream.forwarder is None or not upstream.has_responses:
        return view(incoming, response_id)
    path = incoming.path.removeprefix("/v1/")
    request = passages.unread(incoming, path)
    return deliver(incoming, upstream.forwarder, request, path)


def translate(
    incoming: Incoming, payload: dict[str, Any], upstream: Upstream
) -> Response:
    """One ask like any other, printed as this API does."""
    ask = chat.ask(
        payload,
        incoming.caller,
        incoming.idempotency_key,
        accepts_options=upstream.accepts_options,
        accepts_files=upstream.accepts_files,
        keeps_unasked=not incoming.service.settings.history_disabled,
    )
    if not upstream.accepts_options:
        ask = links.with_linked_files(incoming, ask)
    if flag_of(payload, "stream"):
        printer = chat.Chunks.of(payload, ask, created=int(time.time()))
        return deliver_stream(incoming, ask, printer, "text/event-stream")
    reply = deliver_whole(incoming, ask)
    response = json_response(chat.completion(reply, ask, created=int(time.time())))
    response.headers.update(reply_headers(reply))
    return response


def pass_json(
    incoming: Incoming,
    upstream: Upstream,
    path: str,
    body: bytes,
    payload: dict[str, Any],
) -> Response:
    """A request whose JSON is looked at for its model, and passes as it is. `upstream`: one with a forwarder."""
    forwarder = upstream.forwarder
    assert forwarder is not None
    model = wire.model_of(payload)
    wanted = choose_model(incoming, upstream, path, model)
    if wanted != model:
        body = wire.with_model(body, wanted)
    request = passages.forwarded(incoming, path, body, model=wanted)
    return deliver_ask(incoming, forwarder, request, path, payload, upstream.name)


def choose_model(incoming: Incoming, upstream: Upstream, path: str, model: str) -> str:
    """The model that the upstream is asked for; "" where none is named and the route has no default."""
    service = incoming.service
    if path not in DEFAULTED:
        return service.model_for(model) if model else ""
    caller = incoming.caller
    name = service.catalog.name_for(upstream, caller, model)
    return name or service.default_model(caller)


def deliver_ask(
    incoming: Incoming,
    forwarder: Forwarder,
    request: Forwarded,
    path: str,
    payload: dict[str, Any],
    upstream: str,
) -> Response:
    """The same of a question to a model, which is counted. `upstream`: by its name."""
    streams = payload.get("stream") is True
    observer = None
    if path in usage.COUNTED and incoming.method == "POST":
        service = incoming.service
        meter = service.usage.meter(incoming.caller, upstream, request.model)
        reader = usage.PassedAnswer(path, streams=streams)
        asked = partial(usage.tokens_asked, payload)
        # an open stream holds no request
        observer = PassageMeter(meter, reader, asked() if streams else asked)
    watch = wire.EventWatch(path, wire.choices_of(payload))
    return passages.deliver(
        incoming, forwarder, request, watch, streams=streams, observer=observer
    )


def deliver(
    incoming: Incoming,
    forwarder: Forwarder,
    request: Forwarded,
    path: str,
) -> Response:
    """The answer to a request that passes; an event stream is watched as this API's. Raises RelayError."""
    return passages.deliver(incoming, forwarder, request, wire.EventWatch(path))


def error_response(error: RelayError, incoming: Incoming) -> Response:
    response = json_response(errors.body(error))
    response.status = errors.status(error)
    return response


DIALECT = Dialect(routes, ("v1",), error_response)

#: go-chatgpt-api's name for the same
imitate = Blueprint("imitate", __name__, url_prefix="/imitate")
imitate.add_url_rule("/login", view_func=signin.login, methods=["POST"])
imitate.add_url_rule(
    "/v1/chat/completions", view_func=chat_completions, methods=["POST"]
)
imitate.add_url_rule("/v1/models", view_func=list_models)
imitate.add_url_rule("/v1/models/<path:name>", view_func=read_model)

IMITATE = Dialect(
    imitate, ("imitate",), error_response, keyless=frozenset({"imitate.login"})
)
