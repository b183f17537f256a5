"""The pool's pages, under chat2api's paths: HTML without scripts for browsers, chat2api's JSON for everybody else."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import asdict
from functools import lru_cache
from typing import Any

from flask import Blueprint
from jinja2 import Environment, Template

from relay.dialects import bodies, fields
from relay.errors import BadRequest, Forbidden, RelayError
from relay.pool import PooledAccount
from relay.web import own
from relay.web.edge import Dialect
from relay.web.incoming import Incoming, pause
from relay.web.response import Response
from relay.web.responses import json_response

routes = Blueprint("pool", __name__, url_prefix="/tokens")

PAGE_FORMATS = {"html": "text/html", "json": "application/json"}
JSON_FORMATS = {"json": "application/json", "html": "text/html"}
NO_OPERATOR = (
    "The pool belongs to the owner of this service: show the only client key, or the one "
    "that AUTHORIZATION names owner (owner:KEY). A service that is open to everybody "
    "(AUTHORIZATION=none) has no owner, and takes its accounts from ACCESS_TOKEN or login."
)
STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
    "textarea{width:100%;font-family:monospace}table{border-collapse:collapse;width:100%}"
    "td,th{border-bottom:1px solid #ccc;padding:.3em .6em;text-align:left}"
    ".error{color:#a00}"
)
_STYLE_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
PAGE_HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; form-action 'self'; "
        "frame-ancestors 'none'; base-uri 'none'"
    ),
    "Referrer-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Accounts</title>
<meta name="viewport" content="width=device-width"><style>{{ style|safe }}</style></head>
<body><h1>Accounts</h1>
{% if failure %}<p class="error" role="alert">{{ failure }}</p>{% endif %}
{% if accounts is not none %}
<p id="count">{{ usable }} of {{ accounts|length }} tokens can be used.</p>
{% if accounts %}<table><tr><th>Account</th><th>Token</th><th>Workspace</th><th>Rests</th></tr>
{% for account in accounts %}<tr><td>{{ account.name }}</td><td>{{ account.kind }}</td><td>{{ account.workspace }}</td>
<td>{% for rest in account.resting %}{{ rest.reason }}{% if rest.model %}, {{ rest.model }}{% endif %}
{%- if rest.until %} until {{ rest.until }}{% endif %}{% if not loop.last %}; {% endif %}{% endfor %}</td></tr>
{% endfor %}</table>{% endif %}
<h2>Add</h2>
<form method="post" action="{{ base }}/tokens/upload"><p><label for="text">One token a line: an access token, a refresh
token, or either with a comma and an account id behind it. A line that begins with # is left out.</label></p>
<textarea id="text" name="text" rows="8" required autocomplete="off" spellcheck="false"></textarea>
<p><button>Add</button></p></form>
<h2>Remove</h2>
<form method="post" action="{{ base }}/tokens/clear">
<p>All of these, at once. What ACCESS_TOKEN and login give stays.</p>
<p><button>Remove all</button></p></form>
{% endif %}</body></html>
"""


@routes.get("")
def show(incoming: Incoming) -> Response:
    incoming.format = choose_format(incoming)
    check_operator(incoming)
    accounts = incoming.service.pool.accounts()
    if incoming.format == "html":
        return page(incoming, accounts)
    listed = [asdict(account) for account in accounts]
    return json_response({"tokens_count": count_usable(accounts), "accounts": listed})


@routes.post("/upload")
def upload(incoming: Incoming) -> Response:
    found = read_fields(incoming)
    text = fields.text_of(found, "text") or found.get(bodies.PLAIN_BODY, "")
    incoming.service.pool.add(text)
    return answer_count(incoming)


@routes.post("/clear")
def clear(incoming: Incoming) -> Response:
    read_fields(incoming)
    incoming.service.pool.clear()
    return answer_count(incoming)


@routes.post("/error")
def error(incoming: Incoming) -> Response:
    read_fields(incoming)
    accounts = incoming.service.pool.accounts()
    if incoming.format == "html":
        return page(incoming, [each for each in accounts if each.has_failed])
    names = [account.name for account in accounts if account.has_failed]
    return json_response({"status": "success", "error_tokens": names})


def choose_format(incoming: Incoming) -> str:
    """What is asked for: a page is the default of a GET, JSON that of a POST. Raises BadRequest."""
    formats = PAGE_FORMATS if incoming.method in ("GET", "HEAD") else JSON_FORMATS
    query = bodies.read_query(dict(incoming.args.lists()))
    if not query.get("format") and not incoming.fields.get("Accept"):
        return next(iter(formats))
    return own.choose_format(incoming, query, formats)


def check_operator(incoming: Incoming) -> None:
    """Raise Forbidden for anybody but the owner."""
    caller = incoming.caller
    if caller.token or not incoming.service.access.is_operator(caller):
        raise Forbidden(NO_OPERATOR)


def read_fields(incoming: Incoming) -> dict[str, Any]:
    """The fields of a body that the owner sent. Raises RelayError."""
    incoming.format = choose_format(incoming)
    check_operator(incoming)
    return bodies.read(incoming.content_type, incoming.whole_body(), pause)


def answer_count(incoming: Incoming) -> Response:
    """What there is now: chat2api's answer, or the page."""
    accounts = incoming.service.pool.accounts()
    if incoming.format == "html":
        return page(incoming, accounts)
    count = count_usable(accounts)
    return json_response({"status": "success", "tokens_count": count})


def count_usable(accounts: list[PooledAccount]) -> int:
    return sum(not account.has_failed for account in accounts)


@lru_cache(maxsize=1)
def page_template() -> Template:
    return Environment(autoescape=True).from_string(PAGE)


def page(
    incoming: Incoming, accounts: list[PooledAccount] | None, failure: str = ""
) -> Response:
    """`accounts`: None for who may not see them."""
    html = page_template().render(
        style=STYLE,
        failure=failure,
        accounts=accounts,
        usable=count_usable(accounts or []),
        base=incoming.root_path,
    )
    return Response(html.encode(), "text/html; charset=utf-8", headers=PAGE_HEADERS)


def error_response(error: RelayError, incoming: Incoming) -> Response:
    """A failure as FastAPI has it, or as a page."""
    if _format_of_error(incoming) == "html":
        response = page(incoming, None, error.message)
    else:
        response = json_response({"detail": error.message})
    response.status = error.status
    return response


def _format_of_error(incoming: Incoming) -> str:
    """The format, also of a request that failed before it was known."""
    try:
        return incoming.format or choose_format(incoming)
    except BadRequest:
        return "json"


DIALECT = Dialect(
    routes,
    ("tokens",),
    error_response,
    challenge="Basic",
    answers_head=frozenset({"pool.show"}),
)
