"""chatgpt-webapi: one form POST in, the reply and its conversation ids out.

This module is the service at a glance: the own routes, and what they call. `relay/web/edge.py` lets requests in and
answers failures, `relay/service.py` builds the parts, `relay/chat.py` is the one use case.
"""

from __future__ import annotations

if __name__ == "__main__":  # before other imports: gevent patches what `serve` imports
    from relay import commands

    raise SystemExit(commands.main())

from collections.abc import Mapping
from dataclasses import asdict

from flask import Blueprint, Flask

from relay import __version__
from relay.dialects import fields, form, ndjson, report, tree
from relay.server import Server
from relay.service import Service
from relay.settings import Settings
from relay.upstreams import Upstream
from relay.web import (
    chatgpt_routes,
    downloads,
    edge,
    ndjson_routes,
    openai_routes,
    own,
    platform_routes,
    pool_routes,
    signin,
)
from relay.web.app import App
from relay.web.edge import Dialect
from relay.web.incoming import Incoming
from relay.web.response import Response
from relay.web.responses import bytes_response, json_response, text_response

routes = Blueprint("own", __name__)


@routes.post("/get_access_token")
def get_access_token(incoming: Incoming) -> Response:
    found = signin.sign_in(incoming)
    return json_response(
        {"access_token": found.access_token, "expires": found.expires_at}
    )


@routes.post("/send_message")
def send_message(incoming: Incoming) -> Response:
    return own.answer(incoming, form.SEND_MESSAGE)


@routes.post("/ask")
def ask(incoming: Incoming) -> Response:
    return own.answer(incoming, form.ASK)


@routes.get("/conversations")
def conversations(incoming: Incoming) -> Response:
    own.read_query(incoming)
    offset = fields.count_of(incoming.args.get("offset", "0"), "offset")
    limit = fields.count_of(incoming.args.get("limit", "100"), "limit")
    search = fields.search_of(incoming.args.get("q", ""))
    page = incoming.service.conversations.list(incoming.caller, offset, limit, search)
    response = json_response([tree.item(item) for item in page.items])
    if page.missing:
        response.headers["X-Incomplete"] = page.missing.code
    return response


@routes.get("/conversation/<path:conversation_id>")
def conversation(incoming: Incoming, conversation_id: str) -> Response:
    own.read_query(incoming, own.EXPORT_FORMATS)
    found = incoming.service.conversations.read(incoming.caller, conversation_id)
    address = downloads.address_maker(incoming, conversation_id, found)
    if incoming.format in ("text", "markdown"):
        mimetype = own.EXPORT_FORMATS[incoming.format]
        response = text_response(tree.markdown(found, address), mimetype)
    elif incoming.format == "jsonl":
        response = bytes_response(tree.lines(found, address), ndjson.TYPE)
    else:
        response = json_response(tree.tree(found, address))
    if isinstance(found, dict):  # as its upstream has it, so its links are new
        return response
    return downloads.with_new_links(incoming, response)


@routes.post("/conversation/<path:conversation_id>/delete")
def delete(incoming: Incoming, conversation_id: str) -> Response:
    own.authenticate_by_fields(incoming)
    incoming.service.conversations.delete(incoming.caller, conversation_id)
    return json_response({"code": 0, "msg": "The conversation is deleted."})


@routes.post("/conversation/<path:conversation_id>/title")
def title(incoming: Incoming, conversation_id: str) -> Response:
    wanted = fields.title_of(own.authenticate_by_fields(incoming))
    known = incoming.service.conversations
    if wanted is None:
        found = known.make_title(incoming.caller, conversation_id)
        return json_response({"code": 0, "msg": found})
    known.rename(incoming.caller, conversation_id, wanted)
    return json_response({"code": 0, "msg": "The conversation has its new title."})


@routes.get("/models")
def models(incoming: Incoming) -> Response:
    own.read_query(incoming)
    listed = incoming.service.models(incoming.caller)
    if incoming.format == "text":
        return text_response("".join(f"{model.id}\n" for model in listed))
    return json_response([asdict(model) for model in listed])


@routes.get("/usage")
def usage(incoming: Incoming) -> Response:
    own.read_query(incoming, own.TABLE_FORMATS)
    today = incoming.service.usage.store.today()
    query = report.query(incoming.args.to_dict(), today)
    rows = incoming.service.usage_of(incoming.caller, query)
    if incoming.format == "csv":
        return bytes_response(report.csv(query, rows), report.CSV_TYPE)
    return json_response(report.json(query, rows))


@routes.get("/files/<link>")
def file(incoming: Incoming, link: str) -> Response:
    return downloads.answer(incoming, link)


@routes.get("/")
def index(incoming: Incoming) -> Response:
    """The first thing that a person opens."""
    url = f"{incoming.scheme}://{incoming.host}{incoming.root_path}"
    return text_response(
        f"chatgpt-webapi {__version__} works. Ask it from a shell:\n\n"
        f"  curl --data-urlencode 'prompt=hello' {url}/send_message\n"
        f"  curl -H 'Accept: text/plain' --data-urlencode 'prompt=hello' {url}/ask\n"
        f"  curl {url}/conversations\n\n"
        "With a client key, add: -H 'Authorization: Bearer KEY'\n"
    )


@routes.get("/healthz")
def healthz(incoming: Incoming) -> Response:
    return json_response({"status": "ok", "version": __version__})


@routes.get("/readyz")
def readyz(incoming: Incoming) -> Response:
    service = incoming.service
    service.store.check()
    ready = {
        "status": "ready",
        "default_upstream": service.routing.default_upstream,
        "upstreams": list(service.upstreams),
        "resting": service.resting(),
    }
    return json_response(ready)


OWN = Dialect(
    routes,
    first_segments=("",),  # every path that is no other dialect's
    error=own.error_response,
    public=frozenset({"own.index", "own.healthz", "own.file"}),
    keyless=frozenset({"own.get_access_token"}),
    answers_head=frozenset({"own.readyz"}),
    token_in_body=True,
)
DIALECTS = (
    OWN,
    ndjson_routes.DIALECT,
    openai_routes.DIALECT,
    openai_routes.IMITATE,
    chatgpt_routes.DIALECT,
    platform_routes.DIALECT,
    pool_routes.DIALECT,
)


def create_app(
    settings: Settings | None = None,
    *,
    upstreams: Mapping[str, Upstream] | None = None,
    server: Server | None = None,
) -> Flask:
    """Build the service. What is not handed in is read from the environment and `.env`, or has its default."""
    service = Service.build(settings or Settings.load(), upstreams, server)
    app = App("chatgpt_webapi")
    app.extensions["service"] = service
    edge.install(app, service, DIALECTS)
    return app
