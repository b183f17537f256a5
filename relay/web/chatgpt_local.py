"""The ChatGPT web API over our own store, for upstreams that are not ChatGPT itself; and Pandora's talk.

Each view is handed an authenticated request. Failures are the dialect's to print.
"""

from __future__ import annotations

import time
from typing import Any

from relay.dialects import bodies, fields, tree
from relay.dialects import talk as talking
from relay.dialects.bodies import Fields
from relay.dialects.chatgpt import ask as asking
from relay.dialects.chatgpt import listing
from relay.dialects.chatgpt.answer import Action, Answer, dumps
from relay.dialects.chatgpt.classic import Classic, whole
from relay.dialects.chatgpt.delta import Edits
from relay.errors import BadRequest
from relay.turn import Printer
from relay.web.incoming import Incoming, pause
from relay.web.response import Response
from relay.web.responses import deliver_stream, deliver_whole, reply_headers

SUCCESS = {"success": True}
_HIDES = {"is_visible": False}
_NOT_KEPT = "X-Ignored-Parameters"


def list_conversations(incoming: Incoming) -> Response:
    bodies.read_query(dict(incoming.args.lists()))
    offset = fields.count_of(incoming.args.get("offset", "0"), "offset")
    limit = listing.limit_of(incoming.args.get("limit"))
    known = incoming.service.conversations
    page = known.list(incoming.caller, offset, limit + 1)
    missing = page.missing is not None
    return ascii_response(
        listing.conversations(page.items, offset, limit, is_incomplete=missing)
    )


def read(incoming: Incoming, conversation_id: str) -> Response:
    found = incoming.service.conversations.read(incoming.caller, conversation_id)
    return ascii_response(tree.tree(found))


def ask(incoming: Incoming) -> Response:
    """One turn, as the web API has it: a stream, whatever comes."""
    request = asking.read_request(read_payload(incoming))
    return answer(incoming, request, streams=True)


def talk(incoming: Incoming) -> Response:
    return _talk(incoming, "next")


def regenerate(incoming: Incoming) -> Response:
    return _talk(incoming, "variant")


def go_on(incoming: Incoming) -> Response:
    return _talk(incoming, "continue")


def _talk(incoming: Incoming, action: Action) -> Response:
    payload = read_payload(incoming)
    request = talking.read_request(payload, action)
    return answer(incoming, request, streams=talking.streams(payload))


def answer(incoming: Incoming, request: asking.Request, *, streams: bool) -> Response:
    """The answer as a stream, or as one object."""
    if request.needs_question:
        assert request.conversation_id is not None
        known = incoming.service.conversations
        found = known.read(incoming.caller, request.conversation_id)
        request = request.asking_again(found)
    wanted = request.ask(incoming.caller, incoming.idempotency_key)
    begun = Answer.new(request.action, request.model, time.time())
    if streams:
        printer: Printer = Edits(begun) if request.edits else Classic(begun)
        return deliver_stream(incoming, wanted, printer, "text/event-stream")
    reply = deliver_whole(incoming, wanted)
    response = ascii_response(whole(begun, reply))
    response.headers.update(reply_headers(reply))
    return response


def change(incoming: Incoming, conversation_id: str) -> Response:
    """A new title, or the end of the conversation. Raises BadRequest for what has no meaning here."""
    payload = read_payload(incoming)
    if payload.get("is_visible") is False:
        return delete(incoming, conversation_id)
    title = fields.title_of(payload)
    if title is None:
        raise BadRequest(
            'A conversation can be given a title, as in {"title": "..."}, or be deleted: '
            '{"is_visible": false}.'
        )
    incoming.service.conversations.rename(incoming.caller, conversation_id, title)
    return ascii_response(SUCCESS)


def delete(incoming: Incoming, conversation_id: str) -> Response:
    incoming.service.conversations.delete(incoming.caller, conversation_id)
    return ascii_response(SUCCESS)


def delete_all(incoming: Incoming) -> Response:
    if read_payload(incoming) != _HIDES:
        raise BadRequest(
            'All conversations are deleted by {"is_visible": false}, and by nothing else.'
        )
    incoming.service.conversations.delete_all(incoming.caller)
    return ascii_response(SUCCESS)


def make_title(incoming: Incoming, conversation_id: str) -> Response:
    read_payload(incoming)
    known = incoming.service.conversations
    return ascii_response({"title": known.find_title(incoming.caller, conversation_id)})


def feedback(incoming: Incoming) -> Response:
    """What a person thinks of an answer is taken, and kept nowhere."""
    payload = read_payload(incoming)
    names = ("message_id", "conversation_id", "rating")
    taken = {name: fields.text_of(payload, name) or None for name in names}
    response = ascii_response({**taken, "content": None})
    response.headers[_NOT_KEPT] = "rating"
    return response


def list_models(incoming: Incoming) -> Response:
    bodies.read_query(dict(incoming.args.lists()))
    listed = incoming.service.listed_models(incoming.caller)
    return ascii_response(listing.models(listed))


def read_payload(incoming: Incoming) -> Fields:
    """The body, which is JSON whatever its type says. Raises BadRequest."""
    return bodies.read("application/json", incoming.whole_body(), pause)


def ascii_response(value: Any) -> Response:
    return Response(dumps(value), "application/json")
