"""One request at the edge, as every view is handed it."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flask import Request

from relay.delivery import Delivery
from relay.domain import Caller
from relay.errors import BadRequest, TooLarge, Unauthorized
from relay.service import Service

if TYPE_CHECKING:
    from relay.web.edge import Dialect

TOO_LARGE = "The body is larger than MAX_BODY allows."
CUT_SHORT = (
    "The request's body was cut short or is broken: nothing was asked. Send it again."
)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Incoming(Request):
    """A request, the service that answers it, and how far that is.

    The edge sets `service` and `dialect` before any view runs. The body is read by the view alone:
    with `whole_body`, or from `stream`, where it is passed on untouched.
    """

    service: Service
    dialect: Dialect

    def __init__(self, environ: dict[str, Any], *args: Any, **options: Any) -> None:
        super().__init__(environ, *args, **options)
        self.started = time.monotonic()
        self.id = self._own_id() or uuid.uuid4().hex
        self.format: str | None = None
        self.delivery: Delivery | None = None
        self.error_code = "-"
        self.when_sent: list[Callable[[], None]] = []
        self._caller: Caller | None = None

    def _own_id(self) -> str:
        """The caller's own X-Request-Id, where it is a valid one."""
        name = self.headers.get("X-Request-Id", "")
        return name if _REQUEST_ID.fullmatch(name) else ""

    @property
    def credential(self) -> str:
        """The Authorization header."""
        return self.headers.get("Authorization", "")

    @property
    def idempotency_key(self) -> str | None:
        return self.headers.get("Idempotency-Key")

    @property
    def caller(self) -> Caller:
        """Who asks. Raises Unauthorized for a request that nobody authenticated: no route is open by mistake."""
        if self._caller is None:
            raise Unauthorized()
        return self._caller

    def authenticate(self, access_token: str | None = None) -> None:
        """Find out who asks. Raises RelayError for one who may not ask."""
        self._caller = self.service.access.caller(self.credential, access_token)

    def whole_body(self) -> bytes:
        """The body, whole: a server may take one that was cut short for whole. Raises BadRequest or TooLarge."""
        try:
            body = self.get_data(cache=False)
        except self.service.server.broken_input:
            raise BadRequest(CUT_SHORT) from None
        announced = self.content_length
        if announced is None and len(body) >= (self.max_content_length or 0):
            raise TooLarge(TOO_LARGE)  # werkzeug stops reading a chunked body there
        if announced not in (None, len(body)):
            raise BadRequest(CUT_SHORT)
        return body
