"""Files at the links of answers: whoever shows a link reads its file, without a key."""

from __future__ import annotations

from typing import Any

from werkzeug.http import dump_options_header

from relay.dialects.tree import Address, no_address
from relay.domain import Caller, Conversation
from relay.downloads import PATH, Download
from relay.errors import Unauthorized
from relay.file_passage import SHOWN_TYPES, FilePassage
from relay.transports import Headers
from relay.upstreams import Forwarded
from relay.web.incoming import Incoming
from relay.web.response import Response
from relay.web.responses import deliver_passage

NEEDS_TOKEN = (
    "This file is at a ChatGPT account of your own: send that account's access token as "
    "the header 'Authorization: Bearer TOKEN'."
)


def address_maker(
    incoming: Incoming, conversation_id: str, found: Conversation | dict[str, Any]
) -> Address:
    """What gives the files of a conversation that was read their addresses. Raises NoConversation."""
    if isinstance(found, Conversation):  # its text is here, with its links
        return no_address
    service, base = incoming.service, incoming.base_url
    place = service.conversations.place_of_files(incoming.caller, conversation_id)
    return lambda file: service.links.address(place.of(file), base)


def with_new_links(incoming: Incoming, response: Response) -> Response:
    """The response with new links in the place of those that were stored with a text of the caller's."""
    caller = incoming.caller
    if PATH.encode() in response.body:
        owners = (caller.owner, caller.verified_owner)
        text = incoming.service.links.renewed(response.body.decode(), owners)
        response.body = text.encode()
    return response


def answer(incoming: Incoming, link: str) -> Response:
    """The file's bytes; of a HEAD whether the link still leads there, as far as nobody needs to be asked."""
    service = incoming.service
    download = service.links.read(link)
    caller = _caller(incoming, download)
    if incoming.method == "HEAD":
        service.conversations.check_file(download)
        return Response(content_type="application/octet-stream")
    file = service.conversations.find_file(caller, download)
    ranges = incoming.fields.get("Range", "")
    headers = Headers([("Range", ranges)] if ranges else ())
    request = Forwarded("GET", "", headers, request_id=incoming.id)
    largest = service.settings.max_answer
    passage = FilePassage(file, request, service.clocks, largest)
    response = deliver_passage(incoming, passage)
    response.headers.update(passage.file_headers)
    kind = response.headers["Content-Type"]
    disposition = "inline" if kind in SHOWN_TYPES else "attachment"
    if file.name:
        name = "".join(sign for sign in file.name if sign.isprintable())
        disposition = dump_options_header(disposition, {"filename": name})
    response.headers["Content-Disposition"] = disposition
    return response


def _caller(incoming: Incoming, download: Download) -> Caller:
    """Who reads: the link's owner, with the token that is shown where the file is at a caller's own account.

    Raises Unauthorized.
    """
    if not download.own:
        incoming.authenticate_as(Caller(download.owner, may_spend=True))
        return incoming.caller
    if not incoming.credential:
        raise Unauthorized(NEEDS_TOKEN)
    incoming.authenticate()
    if incoming.caller.token is None:
        raise Unauthorized(NEEDS_TOKEN)
    return incoming.caller
