"""chatgpt-webapi: one form POST in, the reply and its conversation ids out.

This module is the whole service at a glance: what is built (`create_app`), who is let in (`admit`), the own routes, and
how every failure is told (`tell`). What they call is in the package `relay` beside it.
"""

from __future__ import annotations

if (
    __name__ == "__main__"
):  # gevent must patch the standard library before anything else is imported
    import runpy

    runpy.run_module("wsgi", run_name="__main__")
    raise SystemExit

import logging
import re
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson
from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from relay.access import OPEN, Access, Key, first_key, keys_from
from relay.accounts import Account, AccountPool
from relay.chat import Chat, Choice, Upstream
from relay.conversations import Conversations, History
from relay.dialects import form, ndjson, tree
from relay.dialects.responses import Answering, headers_of
from relay.driver import Clocks
from relay.errors import (
    BadRequest,
    InternalError,
    MethodNotAllowed,
    NotFound,
    RelayError,
    TooLarge,
)
from relay.keeping import Leases, Upkeep
from relay.serving import Serving
from relay.settings import Settings, SettingsError
from relay.store import Store
from relay.transports.plain import Plain
from relay.upstreams.chatgpt_web import ChatGPTWeb
from relay.upstreams.chatgpt_web.body import Extras, place
from relay.upstreams.chatgpt_web.history import WebHistory
from relay.upstreams.chatgpt_web.session import Backend
from relay.upstreams.offline import Offline
from relay.upstreams.openai import OpenAI
from relay.upstreams.openai import body as openai_body
from relay.upstreams.openai.session import API, KEYLESS

log = logging.getLogger("chatgpt_webapi")

PUBLIC = ("healthz",)
TOO_LARGE = "The body is larger than MAX_BODY allows."
CUT_SHORT = (
    "The request's body was cut short or is broken: nothing was asked. Send it again."
)
#: The first segment of a path -> how its failures are printed; the last entry is for all others.
ERROR_SHAPES: dict[str, Callable[[RelayError], tuple[int, dict[str, Any] | bytes]]] = {
    "send_message": form.message_error,
    "get_access_token": form.message_error,
    "chat": ndjson.error,
    "": form.coded_error,
}
#: What an answer can be: the field `format` -> the media type that asks for the same in an Accept header.
FORMATS = {
    "json": "application/json",
    "text": "text/plain",
    "markdown": "text/markdown",
    "jsonl": ndjson.TYPE,
}


def create_app(
    settings: Settings | None = None,
    upstreams: Mapping[str, Upstream] | None = None,
    serving: Serving | None = None,
) -> Flask:
    """Build the service. What is not handed in is read from the environment and `.env`, or has its default."""
    settings = settings or Settings.load()
    serving = serving or Serving()
    transport = Plain(settings.connect_timeout)
    histories: dict[str, History] = {}
    if upstreams is None:
        backend = chatgpt_backend(settings, transport)
        upstreams = {"offline": Offline()}
        histories = {"chatgpt-web": WebHistory(backend, settings.read_timeout)}
        if settings.openai_api_key or settings.openai_base_url:
            upstreams |= {
                "openai": OpenAI(
                    openai_api(settings, transport),
                    any_key=settings.upstream == "openai",
                )
            }
        upstreams |= {"chatgpt-web": ChatGPTWeb(backend)}
    home = home_of(settings, upstreams)
    keys = keys_for(
        settings, any(upstream.protected for upstream in upstreams.values())
    )
    sole_owner = len({key.owner for key in keys}) <= 1
    store = Store(settings.database(), serving.native)
    choice = Choice(home, settings.upstream != "auto", sole_owner)
    chat = Chat(upstreams, choice, store, Leases(store.renew), settings.history_budget)
    history = Conversations(store, histories, sole_owner)
    clocks = Clocks(
        settings.first_byte_timeout, settings.read_timeout, settings.total_timeout
    )
    answering = Answering(chat, clocks, serving)
    takers = [upstream for upstream in upstreams.values() if upstream.checks_tokens]
    access = Access(
        keys,
        allow_tokens=settings.allow_caller_tokens,
        origins=settings.cors_origins,
        knows=lambda token: any(taker.knows(token) for taker in takers),
    )
    app = Flask("chatgpt_webapi", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body
    upkeep = Upkeep(store, settings.retention_days * 86400)
    upkeep.start()
    app.url_map.merge_slashes = False
    app.extensions["to_end"] = answering.background.wait
    app.extensions["to_close"] = [upkeep.stop, store.close, transport.close]
    if settings.api_prefix:
        app.wsgi_app = mounted(app.wsgi_app, settings.api_prefix)  # type: ignore[method-assign]

    @app.before_request
    def admit() -> Response | None:
        """Nobody gets past here without a right to, on any path but the public ones."""
        g.began, g.format = time.monotonic(), "json"
        g.request_id = request_id()
        if request.endpoint in PUBLIC:
            return None
        access.check_browser(dict(request.headers), request.host)
        if (
            request.method == "OPTIONS"
            and "Access-Control-Request-Method" in request.headers
        ):
            return Response(status=204, headers=access.preflight(dict(request.headers)))
        g.fields = form.read_query(dict(request.args.lists()))
        g.format = wanted_format(g.fields)
        access.check(shown := request.headers.get("Authorization", ""))
        if request.method == "POST" and not request.routing_exception:
            g.fields |= form.read(
                request.content_type or "", body(serving.broken_input)
            )
            g.format = wanted_format(g.fields)
        g.caller = access.caller(
            shown, form.text_of(g.fields, "access_token").strip() or None
        )
        if request.method == "HEAD" and request.endpoint in (
            "conversations",
            "conversation",
        ):
            return Response(mimetype="application/json")  # a HEAD never asks upstream
        return None

    @app.post("/send_message")
    def send_message() -> Response:
        return answer(form.SEND_MESSAGE)

    @app.post("/ask")
    def ask() -> Response:
        return answer(form.ASK)

    def answer(shape: form.Shape) -> Response:
        """One ask: JSON, the text alone, or a stream of either."""
        as_text = g.format == "text"
        wanted = shape.ask(g.fields, g.caller, request.headers.get("Idempotency-Key"))
        streamed = form.flag_of(g.fields, "stream")
        if streamed and not as_text:
            return answering.stream(wanted, form.Events(shape), "text/event-stream")
        if (
            streamed and request.environ.get("SERVER_PROTOCOL") != "HTTP/1.0"
        ):  # there, a cut body would look whole
            return answering.stream(wanted, form.Raw(), "text/plain")
        reply = answering.whole(wanted)
        response = text(reply.text) if as_text else json(shape.answer(reply))
        response.headers.update(headers_of(reply))
        return response

    @app.post("/chat")
    def chat_lines() -> Response:
        wanted = ndjson.ask(g.fields, g.caller, request.headers.get("Idempotency-Key"))
        return answering.stream(wanted, ndjson.Lines(), ndjson.TYPE)

    @app.get("/conversations")
    def conversations() -> Response:
        offset = form.count_of(request.args.get("offset", "0"), "offset")
        limit = form.count_of(request.args.get("limit", "100"), "limit")
        listed = history.list(
            g.caller, offset, limit, form.search_of(request.args.get("q", ""))
        )
        response = json([tree.item(found) for found in listed.found])
        if listed.missing:
            response.headers["X-Incomplete"] = listed.missing.code
        return response

    @app.get("/conversation/<conversation_id>")
    def conversation(conversation_id: str) -> Response:
        found = history.read(g.caller, conversation_id)
        if g.format == "jsonl":
            return Response(
                tree.lines(found), content_type=f"{ndjson.TYPE}; charset=utf-8"
            )
        if g.format == "json":
            return json(tree.tree(found))
        return text(tree.markdown(found), FORMATS[g.format])

    @app.post("/conversation/<conversation_id>/delete")
    def delete(conversation_id: str) -> Response:
        history.delete(g.caller, conversation_id)
        return json({"code": 0, "msg": "The conversation is deleted."})

    @app.post("/conversation/<conversation_id>/title")
    def title(conversation_id: str) -> Response:
        wanted = form.title_of(g.fields)
        if wanted is None:
            return json({"code": 0, "msg": history.entitle(g.caller, conversation_id)})
        history.rename(g.caller, conversation_id, wanted)
        return json({"code": 0, "msg": "The conversation has its new title."})

    @app.get("/healthz")
    def healthz() -> Response:
        return json({"status": "ok"})

    @app.get("/readyz")
    def readyz() -> Response:
        store.check()
        return json({"status": "ready", "upstreams": list(upstreams)})

    @app.errorhandler(RelayError)
    @app.errorhandler(HTTPException)
    def tell(raised: RelayError | HTTPException) -> Response:
        """Every failure, in the shape that its path promises."""
        error = raised if isinstance(raised, RelayError) else ours(raised)
        segment = request.path.split("/")[1]
        status, body = ERROR_SHAPES.get(segment, ERROR_SHAPES[""])(error)
        if isinstance(body, bytes):
            response = Response(body, content_type=f"{ndjson.TYPE}; charset=utf-8")
        else:
            response = (
                text(error.message)
                if g.get("format") in ("text", "markdown")
                else json(body)
            )
        response.status_code = status
        response.headers["X-Error-Source"] = error.source
        response.headers["X-Error-Code"] = g.error_code = error.code
        if (drive := g.get("drive")) and drive.turn and drive.turn.conversation_id:
            response.headers["X-Conversation-Id"] = (
                drive.turn.conversation_id
            )  # it has the question
        if error.retry_after is not None:
            response.headers["Retry-After"] = str(error.retry_after)
        if error.status == 401 and error.source == "caller":
            response.headers["WWW-Authenticate"] = 'Bearer realm="chatgpt-webapi"'
        if isinstance(raised, HTTPException) and (
            allow := dict(raised.get_headers()).get("Allow")
        ):
            response.headers["Allow"] = allow
        return response

    @app.after_request
    def finish(response: Response) -> Response:
        response.headers["X-Request-Id"] = g.request_id
        response.headers.setdefault("Cache-Control", "no-store")
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers.update(access.cors(request.headers.get("Origin", "")))
        told = {
            "id": g.request_id,
            "method": request.method,
            "path": request.path,
            "status": response.status_code,
        }
        began, drive, code = g.began, g.get("drive"), g.get("error_code", "-")

        @response.call_on_close
        def tell_log() -> None:
            outcome = drive.outcome if drive else code
            told.update(outcome=outcome, ms=round((time.monotonic() - began) * 1000))
            log.info("request", extra={"told": told})

        return response

    return app


def chatgpt_backend(settings: Settings, transport: Plain) -> Backend:
    """ChatGPT's web backend as the settings describe it. Nothing is called before someone asks."""
    places = tuple(
        place(address, settings.conversation_path)
        for address in (
            [settings.reverse_proxy]
            if settings.reverse_proxy
            else settings.chatgpt_base_url
        )
    )
    return Backend(
        transport=transport,
        places=places,
        pool=AccountPool(tuple(Account.of(token) for token in settings.access_token)),
        allowed=settings.reverse_proxy_allow
        or tuple(filter(None, [settings.reverse_proxy])),
        path=settings.conversation_path,
        extras=Extras(settings.chatgpt_headers, settings.chatgpt_body),
        retries=settings.retry_times,
        concurrency=settings.account_concurrency,
        patience=min(settings.first_byte_timeout, settings.total_timeout),
    )


def openai_api(settings: Settings, transport: Plain) -> API:
    """The OpenAI-compatible API as the settings describe it. A local one may have no keys."""
    keys = tuple(Account.of(key) for key in settings.openai_api_key)
    return API(
        transport=transport,
        base=openai_body.base(settings.openai_base_url or openai_body.DEFAULT_BASE),
        pool=AccountPool(keys or (KEYLESS,)),
        model=settings.openai_model,
        extras=openai_body.Extras(settings.openai_headers, settings.openai_body),
        retries=settings.retry_times,
        has_keys=bool(keys),
    )


def home_of(settings: Settings, upstreams: Mapping[str, Upstream]) -> str:
    """The upstream of new conversations: the one that the settings name, or else the one that they describe."""
    if settings.upstream == "openai" and "openai" not in upstreams:
        raise SettingsError(
            "UPSTREAM=openai needs OPENAI_API_KEY, or the OPENAI_BASE_URL of a server without keys."
        )
    if settings.upstream != "auto":
        return settings.upstream
    if settings.access_token or settings.reverse_proxy:
        return "chatgpt-web"
    return "openai" if "openai" in upstreams else next(iter(upstreams))


def keys_for(settings: Settings, protects: bool) -> tuple[Key, ...]:
    """The client keys in force; the first start of a service that has something to protect makes one."""
    if settings.authorization == (OPEN,):
        log.warning(
            "AUTHORIZATION=none: the service is open, and whoever reaches it may spend what is the owner's."
        )
        return ()
    if settings.authorization:
        return keys_from(settings.authorization)
    if not protects:
        return ()
    key, made = first_key(Path(settings.data_dir))
    if made:  # the one time that it is shown
        sys.stderr.write(
            f"\nA client key was made, for this service has something to protect:\n\n    {key}\n\n"
        )
    return keys_from((f"owner:{key}",))


def mounted(app: Any, prefix: str) -> Any:
    """All routes below the prefix; outside it there is only /healthz."""

    def outside(environ: dict[str, Any], start_response: Any) -> Any:
        if environ["PATH_INFO"] != "/healthz":
            environ["PATH_INFO"] = "/outside/of/the/prefix"
        return app(environ, start_response)

    return DispatcherMiddleware(outside, {prefix: app})


def ours(raised: HTTPException) -> RelayError:
    """Flask's and werkzeug's own failures as ours."""
    match raised.code:
        case 404:
            return NotFound()
        case 405:
            return MethodNotAllowed()
        case 413:
            return TooLarge(TOO_LARGE)
        case int(code) if code < 500:
            return BadRequest(CUT_SHORT)
    return InternalError()


def body(broken_input: tuple[type[Exception], ...]) -> bytes:
    """The request's body, whole: a server may take one that was cut short for whole."""
    try:
        read = request.get_data(cache=False)
    except broken_input:
        raise BadRequest(CUT_SHORT) from None
    if request.content_length is None and len(read) >= (
        request.max_content_length or 0
    ):
        raise TooLarge(
            TOO_LARGE
        )  # werkzeug stops reading a chunked body there, and says nothing
    if request.content_length not in (None, len(read)):
        raise BadRequest(CUT_SHORT)
    return read


def wanted_format(fields: form.Fields) -> str:
    """What the answer is to be, by the field `format` or else by the Accept header."""
    offered = (
        FORMATS
        if request.endpoint == "conversation"
        else {name: FORMATS[name] for name in ("json", "text")}
    )
    named = fields.get("format")
    if named is None or named == "":
        best = request.accept_mimetypes.best_match(list(offered.values()))
        return next(
            (name for name, media_type in offered.items() if media_type == best), "json"
        )
    if not isinstance(named, str) or named not in offered:
        raise BadRequest(f"The field format must be one of: {', '.join(offered)}.")
    return named


def request_id() -> str:
    """The caller's own X-Request-Id where it is one, else a new one."""
    given = request.headers.get("X-Request-Id", "")
    return given if re.fullmatch(r"[A-Za-z0-9._-]{1,64}", given) else uuid.uuid4().hex


def json(value: object) -> Response:
    return Response(orjson.dumps(value), mimetype="application/json")


def text(value: str, mimetype: str = "text/plain") -> Response:
    return Response(value, content_type=f"{mimetype}; charset=utf-8")
