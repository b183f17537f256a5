"""One request at the edge, as every view is handed it."""

from __future__ import annotations

import re
import time
import weakref
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from io import BytesIO
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from werkzeug.datastructures import MultiDict
from werkzeug.exceptions import HTTPException
from werkzeug.routing import Rule
from werkzeug.sansio.utils import get_host
from werkzeug.wsgi import get_input_stream

from relay.access import parse_authorization
from relay.cached import cached
from relay.delivery import Delivery
from relay.domain import Caller
from relay.errors import BadRequest, RelayError, TooLarge, Unauthorized
from relay.ids import random_digits
from relay.memory import MOST_IN_MEMORY
from relay.service import Service
from relay.web.proxies import TrustedProxies

if TYPE_CHECKING:
    from relay.web.edge import Dialect

TOO_LARGE = "The body is larger than MAX_BODY allows."
CUT_SHORT = (
    "The request's body was cut short or is broken: nothing was asked. Send it again."
)
NEEDS_HEADER = (
    "A body over 64 KB is read only where the headers hold a client key of this service "
    "or an access token that it takes: send it as the header 'Authorization: Bearer KEY'."
)
TWO_CREDENTIALS = (
    "The headers Authorization and x-api-key hold two different credentials: send one "
    "of them."
)
WORKSPACE = "Chatgpt-Account-Id"
MAX_UNPROVEN_BODY = 64 * 1024
UNCOUNTED = 64 * 1024  # bytes of a body that count as nothing
LONGEST_KEY = 300  # of a field that is looked at; gunicorn takes longer ones
FIELD_KEYS = ("HTTP_", "CONTENT_")  # how those of fields begin in WSGI's environ
_PIECE = 64 * 1024
_HOST = re.compile(r"[A-Za-z0-9.:\[\]_-]{1,255}")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Incoming:
    """A request, the service that answers it, and how far that is.

    The edge sets `service`, `dialect` and `proxies` before any view runs. The body is read by the
    view alone: with `whole_body`, or in pieces with `body_pieces`, where it is passed on untouched.
    `rule`, `arguments`: the route and what its path holds; `no_route`: why there is none. `failure`: the error
    that it was answered with.
    """

    service: Service
    dialect: Dialect
    proxies: TrustedProxies

    def __init__(self, environ: dict[str, Any]) -> None:
        self.environ = environ
        self.method: str = environ["REQUEST_METHOD"].upper()
        self.path = "/" + text_of(environ.get("PATH_INFO", "")).lstrip("/")
        self.query: str = environ.get("QUERY_STRING", "")
        self.rule: Rule | None = None
        self.arguments: dict[str, Any] = {}
        self.no_route: HTTPException | None = None
        self.started = time.monotonic()
        self.id = self._own_id() or random_digits()
        self.format: str | None = None
        self.delivery: Delivery | None = None
        self.failure: RelayError | None = None
        self.when_sent: list[Callable[[], None]] = []
        self._caller: Caller | None = None
        self._memory_holder: object | None = None
        self._returned: bytes | None = None

    @property
    def endpoint(self) -> str | None:
        """The name of its route."""
        return self.rule.endpoint if self.rule else None

    @cached
    def args(self) -> MultiDict[str, str]:
        """The fields of its query; bytes that are no UTF-8 stay as they are quoted."""
        query = self.query.encode("latin-1").decode(errors="werkzeug.url_quote")
        pairs = parse_qsl(query, keep_blank_values=True, errors="werkzeug.url_quote")
        return MultiDict(pairs)

    @property
    def content_type(self) -> str:
        return self.fields.get("Content-Type", "")

    @property
    def mimetype(self) -> str:
        """The type of its body, without parameters."""
        return self.content_type.partition(";")[0].strip().lower()

    @property
    def scheme(self) -> str:
        """As this process sees it: behind a proxy it is that proxy's."""
        return str(self.environ["wsgi.url_scheme"])

    @property
    def host(self) -> str:
        """The Host header, or where there is none this server's address; "" for what is no host's name."""
        name, port = self.environ["SERVER_NAME"], self.environ["SERVER_PORT"]
        server = name, int(port) if port.isdigit() else None  # a UNIX socket has none
        return get_host(self.scheme, self.fields.get("Host"), server)

    @property
    def root_path(self) -> str:
        """The prefix below which the routes are, without a slash at its end."""
        return text_of(self.environ.get("SCRIPT_NAME", "")).rstrip("/")

    @property
    def remote_address(self) -> str:
        """Who opened the connection: behind a proxy that is the proxy."""
        return str(self.environ.get("REMOTE_ADDR", ""))

    @cached
    def fields(self) -> dict[str, str]:
        """The header's fields, by their names as `Content-Type` is written."""
        return {
            field_name(key): value
            for key, value in self.environ.items()
            if key.startswith(FIELD_KEYS) and len(key) <= LONGEST_KEY
        }

    def _own_id(self) -> str:
        """The caller's own X-Request-Id, where it is a valid one."""
        name = self.fields.get("X-Request-Id", "")
        return name if _REQUEST_ID.fullmatch(name) else ""

    @cached
    def credential(self) -> str:
        """The credential in the headers, as an Authorization header has it.

        Raises BadRequest where the header x-api-key has another one than Authorization.
        """
        authorization = self.fields.get("Authorization", "")
        api_key = self.fields.get("X-Api-Key", "").strip()
        if not api_key:
            return authorization
        shown = [credential.text for credential in parse_authorization(authorization)]
        if shown and shown != [api_key]:
            raise BadRequest(TWO_CREDENTIALS)
        return authorization if shown else f"Bearer {api_key}"

    @property
    def idempotency_key(self) -> str | None:
        return self.fields.get("Idempotency-Key")

    @property
    def caller(self) -> Caller:
        """Who asks. Raises Unauthorized for a request that nobody authenticated: no route is open by mistake."""
        if self._caller is None:
            raise Unauthorized()
        return self._caller

    @property
    def owner(self) -> str | None:
        """The owner of what is asked; None while nobody has found out who asks."""
        return self._caller.owner if self._caller else None

    @property
    def caller_address(self) -> str:
        """Where the caller is, as far as that is known: see `TrustedProxies`."""
        forwarded = self.fields.get("X-Forwarded-For", "")
        return self.proxies.caller_address(self.remote_address, forwarded)

    @property
    def base_url(self) -> str:
        """Where the caller reaches this service, without a slash at the end; "" where that cannot be told."""
        settings = self.service.settings
        if settings.public_url:
            return settings.public_url.rstrip("/") + self.root_path
        host = self.fields.get("Host", "")
        if not _HOST.fullmatch(host):
            return ""
        forwarded = self.fields.get("X-Forwarded-Proto", "")
        scheme = self.proxies.scheme(self.remote_address, forwarded, self.scheme)
        return f"{scheme}://{host}{self.root_path}"

    def authenticate(
        self, access_token: str | None = None, workspace: object = None
    ) -> None:
        """Find out who asks. Raises RelayError for one who may not ask.

        `workspace`: the field Chatgpt-Account-Id; the header of that name is read as well.
        """
        shown = self._shown
        if access_token is None and not workspace and isinstance(shown, Caller):
            self._caller = shown
            return
        stated = workspace or self.fields.get(WORKSPACE, "")
        if not isinstance(stated, str):
            raise BadRequest(f"The field {WORKSPACE} must be a text.")
        self._caller = self._caller_of(access_token, stated)

    def _caller_of(self, access_token: str | None, workspace: str) -> Caller:
        return self.service.access.caller(
            self.credential, access_token, self.recognizes, workspace.strip()
        )

    @cached
    def _shown(self) -> Caller | None:
        """Who asks, by the headers alone; None for one who may not ask by them. Raises BadRequest."""
        _ = self.credential
        try:
            return self._caller_of(None, self.fields.get(WORKSPACE, ""))
        except RelayError:
            return None

    def authenticate_as(self, caller: Caller) -> None:
        """The caller is known by what the request itself names, which was signed here."""
        self._caller = caller

    @cached
    def is_proven(self) -> bool:
        """Whether the headers alone show a right to ask, or none is needed. Raises BadRequest."""
        if not self.service.access.needs_key:
            return True
        shown = self._shown
        return shown is not None and (shown.may_spend or shown.token is not None)

    def recognizes(self, token: str) -> bool:
        """Whether the route asked has a use for a credential that only it takes."""
        return self.dialect.recognizes(token, self)

    @cached
    def announced(self) -> int | None:
        """The size of the body, where a header says it."""
        stated = self.fields.get("Content-Length", "")
        is_stated = stated.isascii() and stated.isdigit()
        return int(stated) if is_stated and not self.is_chunked else None

    @property
    def is_chunked(self) -> bool:
        return "Transfer-Encoding" in self.fields

    @cached
    def _input(self) -> Any:
        """The body as the server gives it; as Flask does, where the server does not end it."""
        if self.environ.get("wsgi.input_terminated", False):
            return self.environ["wsgi.input"]
        most = self.service.settings.max_body
        return get_input_stream(self.environ, max_content_length=most)

    def whole_body(self) -> bytes:
        """The body, whole: a server may take one that was cut short for whole.

        Of a caller that showed no credential in the headers it reads MAX_UNPROVEN_BODY at most.
        Raises BadRequest, TooLarge, Unauthorized or Overloaded.
        """
        if self._returned is not None:
            body, self._returned = self._returned, None
            return body
        limit = self._body_limit()
        announced = self.announced
        if announced is not None and announced > limit:
            raise self._body_over(limit)
        try:
            body = self._read_body(limit)
        except self.service.server.broken_input:
            raise BadRequest(CUT_SHORT) from None
        if announced not in (None, len(body)):
            raise BadRequest(CUT_SHORT)
        return body

    def put_back(self, body: bytes) -> None:
        """Let the view that answers in the end read the body, too."""
        self._returned = body

    def body_pieces(self) -> Iterator[bytes]:
        """The body as it arrives, to be passed on untouched.

        Raises BadRequest for one that was cut short, and TooLarge.
        """
        size = 0
        try:
            while piece := self._input.read(_PIECE):
                size += len(piece)
                if size > self.service.settings.max_body:
                    raise TooLarge(TOO_LARGE)
                yield piece
        except self.service.server.broken_input:
            raise BadRequest(CUT_SHORT) from None
        if self.announced not in (None, size):
            raise BadRequest(CUT_SHORT)

    def _body_limit(self) -> int:
        limit = self.service.settings.max_body
        if self.is_proven:
            return limit
        return min(limit, MAX_UNPROVEN_BODY)

    def _body_over(self, limit: int) -> RelayError:
        """The error of a body that is larger."""
        if limit == self.service.settings.max_body:
            return TooLarge(TOO_LARGE)
        return Unauthorized(NEEDS_HEADER)

    def _read_body(self, limit: int) -> bytes:
        piece = self._input.read(_PIECE)
        if len(piece) == self.announced:  # most bodies come in one
            return piece  # type: ignore[no-any-return]
        body = BytesIO()
        while piece:
            size = body.tell() + len(piece)
            if size > limit:
                raise self._body_over(limit)
            if size > UNCOUNTED:
                self._reserve_memory(size)
            body.write(piece)
            piece = self._input.read(_PIECE)
        if self._memory_holder is not None:
            self.service.body_memory.finish(self._memory_holder)
        return body.getvalue()

    def hold_memory(self, size: int) -> None:
        """Take memory for what is held beside the body; given back as the body's is. Raises Overloaded."""
        holder = object()
        memory = self.service.body_memory
        self._release_when_sent(holder)
        memory.reserve(
            holder, size, max(MOST_IN_MEMORY, self.service.settings.max_body)
        )
        memory.finish(holder)

    def _reserve_memory(self, size: int) -> None:
        """Take memory for a large body; it is given back once the response is sent, or the request forgotten."""
        if self._memory_holder is None:
            self._memory_holder = object()
            self._release_when_sent(self._memory_holder)
        most = max(MOST_IN_MEMORY, self.service.settings.max_body)
        self.service.body_memory.reserve(self._memory_holder, size, most)

    def _release_when_sent(self, holder: object) -> None:
        """Give memory back once the response is sent: until then the question may be held that the body was."""
        weakref.finalize(self, self.service.body_memory.release, holder)
        self.when_sent.append(partial(self._release, holder))

    def _release(self, holder: object) -> None:
        self.service.body_memory.release(holder)


def text_of(text: str) -> str:
    """A text of WSGI's environ, whose characters are bytes of UTF-8."""
    if text.isascii():
        return text
    return text.encode("latin-1").decode(errors="replace")


@lru_cache(maxsize=1000)
def field_name(key: str) -> str:
    """The name of a header's field that WSGI's environ has by this key."""
    return key.removeprefix("HTTP_").replace("_", "-").title()


def pause() -> None:
    """Let other requests go on, in the middle of work that takes long."""
    time.sleep(0)
