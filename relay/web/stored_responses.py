"""Responses of OpenAI's API where the upstream has none: translated, and kept in our own store."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from relay.dialects import fields as read
from relay.dialects.openai import items, responses
from relay.dialects.openai.response_events import ResponseEvents
from relay.domain import StoredTurn
from relay.errors import BadRequest, NoConversation, NoPreviousResponse, NoResponse
from relay.upstreams import Upstream
from relay.web import downloads, links
from relay.web.incoming import Incoming
from relay.web.response import Response
from relay.web.responses import (
    deliver_stream,
    deliver_whole,
    json_response,
    reply_headers,
)

T = TypeVar("T")
MOST_LISTED = 100


def create(incoming: Incoming, payload: dict[str, Any], upstream: Upstream) -> Response:
    """One ask like any other, printed as this API does."""
    known = incoming.service.conversations
    previous = _previous(incoming, payload)
    path: Any = ()
    if previous is not None and not responses.stores(payload):
        path = known.path(incoming.caller, previous.answer.id)
    ask = responses.ask(
        payload,
        incoming.caller,
        incoming.idempotency_key,
        accepts_options=upstream.accepts_options,
        accepts_files=upstream.accepts_files,
        previous=previous,
        path=path,
        known=_referenced(incoming, payload),
        created=int(time.time()),
    )
    if not upstream.accepts_options:
        ask = links.with_linked_files(incoming, ask)
    if read.flag_of(payload, "stream"):
        printer = ResponseEvents.of(ask)
        return deliver_stream(incoming, ask, printer, "text/event-stream")
    reply = deliver_whole(incoming, ask)
    response = json_response(responses.whole(reply, ask))
    response.headers.update(reply_headers(reply))
    return response


def _previous(incoming: Incoming, payload: dict[str, Any]) -> StoredTurn | None:
    """The answer that a request goes on from; None where it begins. Raises NoPreviousResponse."""
    name = responses.previous_of(payload)
    if name is None:
        return None
    try:
        turn = _find(incoming, name)
    except NoConversation:
        raise NoPreviousResponse() from None
    if turn.answer.status != "whole":
        raise NoPreviousResponse()
    return turn


def _referenced(incoming: Incoming, payload: dict[str, Any]) -> dict[str, StoredTurn]:
    """The stored answers that the request's items refer to, as far as there are any."""
    found = {}
    for answer_id in items.referenced(payload.get("input")):
        try:
            turn = incoming.service.conversations.turn(incoming.caller, answer_id)
        except NoConversation:
            continue
        found[answer_id] = turn
    return found


def retrieve(incoming: Incoming, response_id: str) -> Response:
    if read.flag_of(incoming.args, "stream"):
        raise BadRequest(
            "A stored response is not streamed again: leave stream out, and read it "
            "whole."
        )
    stored = responses.stored(_known(incoming, response_id, _find))
    return downloads.with_new_links(incoming, json_response(stored))


def delete(incoming: Incoming, response_id: str) -> Response:
    _known(incoming, response_id, _delete)
    return json_response(responses.deletion(response_id))


def list_input(incoming: Incoming, response_id: str) -> Response:
    order = incoming.args.get("order", "desc")
    if order not in ("asc", "desc"):
        raise BadRequest("order must be asc or desc.")
    limit = read.count_of(incoming.args.get("limit", "20"), "limit")
    after = incoming.args.get("after", "")
    turn = _known(incoming, response_id, _find)
    limit = max(1, min(limit, MOST_LISTED))
    return json_response(
        responses.input_list(turn, order=order, limit=limit, after=after)
    )


def cancel(incoming: Incoming, response_id: str) -> Response:
    _known(incoming, response_id, _find)
    raise BadRequest(
        "Only a response that was made in the background can be cancelled, and none is "
        "here: a caller that leaves ends its response."
    )


def _known(
    incoming: Incoming, response_id: str, act: Callable[[Incoming, str], T]
) -> T:
    """What `act` gives for a response. Raises NoResponse."""
    try:
        return act(incoming, response_id)
    except NoConversation:
        raise NoResponse() from None


def _find(incoming: Incoming, response_id: str) -> StoredTurn:
    """Raises NoConversation."""
    known = incoming.service.conversations
    return known.turn(incoming.caller, _answer_id(response_id))


def _delete(incoming: Incoming, response_id: str) -> None:
    """Raises NoConversation."""
    known = incoming.service.conversations
    known.delete_turn(incoming.caller, _answer_id(response_id))


def _answer_id(response_id: str) -> str:
    """Raises NoConversation for what is no id of a response."""
    answer_id = items.answer_id(response_id)
    if answer_id is None:
        raise NoConversation()
    return answer_id
