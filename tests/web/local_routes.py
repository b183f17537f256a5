"""The views of the ChatGPT web API over the own store, at the paths where its clients look, and the service with them.

The product has routes of its own for these paths; here they are for the views alone.
"""

from __future__ import annotations

import sys

from flask import Blueprint, Response

from relay.errors import RelayError
from relay.web import chatgpt_local
from relay.web.edge import Dialect
from relay.web.incoming import Incoming
from relay.web.responses import json_response
from tests.processes import Service

PREFIXES = ("/backend-api", "/chatgpt/backend-api", "/api")

routes = Blueprint("local", __name__)


def add(method: str, path: str, name: str) -> None:
    for prefix in PREFIXES:
        endpoint = f"{prefix} {method} {path}".replace(".", "")
        view = getattr(chatgpt_local, name)
        routes.add_url_rule(prefix + path, endpoint, view, methods=[method])


add("GET", "/conversations", "list_conversations")
add("PATCH", "/conversations", "delete_all")
add("GET", "/conversation/<conversation_id>", "read")
add("PATCH", "/conversation/<conversation_id>", "change")
add("DELETE", "/conversation/<conversation_id>", "delete")
add("POST", "/conversation", "ask")
add("POST", "/conversation/talk", "talk")
add("POST", "/conversation/regenerate", "regenerate")
add("POST", "/conversation/goon", "go_on")
add("POST", "/conversation/gen_title/<conversation_id>", "make_title")
add("POST", "/conversation/message_feedback", "feedback")
add("GET", "/models", "list_models")


def error_response(error: RelayError, incoming: Incoming) -> Response:
    response = json_response({"detail": {"message": error.message, "code": error.code}})
    response.status_code = error.status
    return response


DIALECT = Dialect(routes, ("backend-api", "chatgpt", "api"), error_response)


START = """
from gevent import monkey
monkey.patch_all()
import runpy
import chatgpt_webapi
from tests.web.local_routes import DIALECT
chatgpt_webapi.DIALECTS = (*chatgpt_webapi.DIALECTS, DIALECT)
runpy.run_module("wsgi", run_name="__main__")
"""


class LocalService(Service):
    """The service with these routes, as a process."""

    def start(self) -> None:
        self._command = [sys.executable, "-c", START]
        super().start()
