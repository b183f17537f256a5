"""What the views of the own routes share: fields, formats, answers and errors."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header

from relay.dialects import bodies, fields, form, ndjson, report
from relay.dialects.bodies import Fields, FilePart
from relay.errors import BadRequest, RelayError
from relay.web import links
from relay.web.incoming import WORKSPACE, Incoming, pause
from relay.web.response import Response
from relay.web.responses import (
    deliver_stream,
    deliver_whole,
    json_response,
    reply_headers,
    text_response,
)

#: what an answer can be: the field `format` -> the media type that asks for the same in an Accept header
ANSWER_FORMATS = {"json": "application/json", "text": "text/plain"}
TABLE_FORMATS = {"json": "application/json", "csv": report.CSV_TYPE}
EXPORT_FORMATS = {
    **ANSWER_FORMATS,
    "markdown": "text/markdown",
    "jsonl": ndjson.TYPE,
}
LONGEST_ACCEPT = (
    1000  # characters that are looked at: 64 KB of it take a third of a second
)


def read_query(incoming: Incoming, formats: dict[str, str] = ANSWER_FORMATS) -> Fields:
    """The fields of a query string; from then on the format of the answer is known.

    Raises BadRequest, also for a credential in the URL.
    """
    if not incoming.query:
        incoming.format = choose_format(incoming, {}, formats)
        return {}
    found = bodies.read_query(dict(incoming.args.lists()))
    incoming.format = choose_format(incoming, found, formats)
    fields.check_places(incoming.args, bodies.QUERY_FIELDS)
    return found


def authenticate_by_fields(
    incoming: Incoming, files: list[FilePart] | None = None
) -> Fields:
    """The fields of a query string and a body, which may have a credential; from then on the caller is known.

    `files`: see `bodies.read`. Raises RelayError.
    """
    found = read_query(incoming)
    content_type = incoming.content_type
    found |= bodies.read(content_type, incoming.whole_body(), pause, files)
    if "format" in found:
        incoming.format = choose_format(incoming, found, ANSWER_FORMATS)
    token = fields.text_of(found, "access_token").strip()
    incoming.authenticate(token or None, found.pop(WORKSPACE, None))
    return found


def choose_format(incoming: Incoming, found: Fields, formats: dict[str, str]) -> str:
    """What the answer is to be, by the field `format` or else by the Accept header. Raises BadRequest."""
    name = found.get("format")
    if name is None or name == "":
        accept = incoming.fields.get("Accept", "")
        return _best_format(accept[:LONGEST_ACCEPT], tuple(formats.items()))
    if not isinstance(name, str) or name not in formats:
        raise BadRequest(f"The field format must be one of: {', '.join(formats)}.")
    return name


@lru_cache(maxsize=100)
def _best_format(accept: str, formats: tuple[tuple[str, str], ...]) -> str:
    """The format that an Accept header wants most: most callers send the same few headers."""
    names = {mimetype: name for name, mimetype in formats}
    best = parse_accept_header(accept, MIMEAccept).best_match(list(names))
    return names.get(best or "", "json")


def answer(incoming: Incoming, route: form.Route) -> Response:
    """One ask: JSON, the text alone, or a stream of either."""
    files: list[FilePart] = []
    found = authenticate_by_fields(incoming, files)
    ask = route.ask(found, incoming.caller, incoming.idempotency_key, files)
    ask = links.with_linked_files(incoming, ask)
    if incoming.query:
        misplaced = set(incoming.args).difference(bodies.QUERY_FIELDS)
        ask = replace(ask, ignored=(*ask.ignored, *misplaced))
    is_text = incoming.format == "text"
    if fields.flag_of(found, "stream"):
        if not is_text:
            printer = form.Events(route)
            return deliver_stream(incoming, ask, printer, "text/event-stream")
        # over HTTP/1.0 a body that was cut would look whole
        if incoming.environ.get("SERVER_PROTOCOL") != "HTTP/1.0":
            return deliver_stream(incoming, ask, form.Raw(), "text/plain")
    reply = deliver_whole(incoming, ask)
    if is_text:
        response = text_response(reply.text)
    else:
        response = json_response(route.answer(reply))
    response.headers.update(reply_headers(reply))
    return response


def error_response(error: RelayError, incoming: Incoming) -> Response:
    """A failure in the own routes' shape: the sentence alone where text was asked for."""
    always_500 = incoming.path.split("/")[1] in ("send_message", "get_access_token")
    shape = form.message_error if always_500 else form.coded_error
    status, body = shape(error)
    if _format_of_error(incoming) in ("text", "markdown"):
        response = text_response(error.message)
    else:
        response = json_response(body)
    response.status = status
    return response


def _format_of_error(incoming: Incoming) -> str:
    """The format, also of a request that failed before its fields were read."""
    if incoming.format is not None:
        return incoming.format
    try:
        query = bodies.read_query(dict(incoming.args.lists()))
        return choose_format(incoming, query, ANSWER_FORMATS)
    except BadRequest:
        return "json"
