"""POST /chat: the routes of openai-api-server's dialect."""

from __future__ import annotations

from flask import Blueprint

from relay.dialects import ndjson
from relay.errors import RelayError
from relay.web import links
from relay.web.edge import Dialect
from relay.web.incoming import Incoming
from relay.web.own import authenticate_by_fields
from relay.web.response import Response
from relay.web.responses import bytes_response, deliver_stream

routes = Blueprint("ndjson", __name__)


@routes.post("/chat")
def chat(incoming: Incoming) -> Response:
    fields = authenticate_by_fields(incoming)
    ask = ndjson.ask(fields, incoming.caller, incoming.idempotency_key)
    if not incoming.service.upstream_for(incoming.caller).accepts_options:
        ask = links.with_linked_files(incoming, ask)
    return deliver_stream(incoming, ask, ndjson.Lines(), ndjson.TYPE)


def error_response(error: RelayError, incoming: Incoming) -> Response:
    status, lines = ndjson.error(error)
    response = bytes_response(lines, ndjson.TYPE)
    response.status = status
    return response


DIALECT = Dialect(routes, ("chat",), error_response, token_in_body=True)
