"""HTTPS by tls-client: a native library whose TLS and HTTP/2 look like those of a browser it is told to be.

Its one call blocks until the answer's end, so it runs in a native thread. The body comes before that, as it arrives,
through a pipe; status and headers come only with the end of the call. So the head of a body that begins as an event
stream does is given at once, as a 200 with that type, and checked at its end; for any other the end is waited for, and
the body is kept until then, beyond a bound in a temporary file. The library connects through a tunnel of ours, whose
end ends the call at once. What it writes in the pipe is unpacked, and has had no character set guessed: that is what
asking for bytes does. Each call has a connection of its own.
"""

from __future__ import annotations

import io
import logging
import os
import re
import select
from base64 import b64encode
from collections.abc import Callable, Mapping
from tempfile import SpooledTemporaryFile
from typing import Any, TypeAlias

import orjson

from relay import sse
from relay.deadline import Deadline
from relay.errors import (
    BadRequest,
    Overloaded,
    RelayError,
    TooLarge,
    Unreachable,
    UpstreamCut,
    UpstreamFailed,
)
from relay.transports import TOO_LARGE, Call, Exchange, Head, Headers, Transport
from relay.transports.direct import (
    LARGEST_READ,
    LONGEST_HEAD,
    TimeSlice,
    check_sendable,
    target_of,
)
from relay.transports.tunnel import Lane, Tunnel
from relay.values import frozen

log = logging.getLogger(__name__)

#: takes and gives JSON: see `cffi_src/types.go` of bogdanfinn/tls-client for both; blocks
Library: TypeAlias = Callable[[bytes], Mapping[str, Any]]

LARGEST_IN_MEMORY = 1024 * 1024  # of a body that is kept until its head comes
BLOCK_SIZE = 16 * 1024
NO_TIMEOUT = 7 * 86_400_000  # ms; the clocks are ours, and 0 means 30 s
EVENT_STREAM = Head(200, Headers((("content-type", "text/event-stream"),)))
UNPACKED = ("gzip", "deflate", "br", "zstd")

_REQUEST_LINE = re.compile(r'^failed to do request: \w+ "[^"]*": ')
_DISTRUST = re.compile(r"x509:|failed to verify certificate")
_NO_AGREEMENT = re.compile(r"tls: (handshake failure|protocol version|no application)")
_NO_HTTP = re.compile(
    r"malformed|headers exceeded|invalid|corrupt|gzip:|zlib:|flate:|brotli:|PROTOCOL_ERROR"
)


@frozen
class Bounds:
    """Bytes. `answer`: of a body that is kept until its head comes. `request`: of a request's body."""

    answer: int = 32 * 1024**2
    request: int = 25 * 1024**2


class TLSTransport:
    """Makes exchanges for https addresses; `plain` makes those for others.

    `profile`: the library's name of a browser. `start_thread`: see `relay.server`.
    """

    def __init__(
        self,
        library: Library,
        profile: str,
        tunnel: Tunnel,
        plain: Transport,
        start_thread: Callable[[Callable[[], None]], None],
        bounds: Bounds | None = None,
    ) -> None:
        self.library = library
        self.profile = profile
        self.tunnel = tunnel
        self.start_thread = start_thread
        self.bounds = bounds or Bounds()
        self._plain = plain

    def send(self, call: Call) -> Exchange:
        if target_of(call.url).origin.scheme != "https":
            return self._plain.send(call)
        return TLSExchange(self, call)

    def close(self) -> None:
        self.tunnel.close()


class LibraryCall:
    """One call of the library, in a thread of its own. `answer`: None until it has returned."""

    def __init__(
        self, library: Library, request: Mapping[str, Any], body: bytes
    ) -> None:
        reading, writing = os.pipe()
        self.body: io.FileIO = io.FileIO(reading, "rb")
        self._writing: io.FileIO = io.FileIO(writing, "wb")
        self._library = library
        self._request = {**request, "streamOutputPath": f"/dev/fd/{writing}"}
        self._request_body = body
        self.answer: Mapping[str, Any] | None = None

    def run(self) -> None:
        """Blocks until the answer's end; then the pipe ends too. In a native thread."""
        with self._writing:
            encoded = b64encode(self._request_body).decode()
            request = {**self._request, "requestBody": encoded or None}
            self._request_body = b""
            self.answer = self._library(orjson.dumps(request))

    def abandon(self) -> None:
        """It is not run."""
        self.body.close()
        self._writing.close()

    def read(self, deadline: Deadline) -> bytes | None:
        """What has arrived of the body; b"" where the call has ended, None where nothing came by the deadline."""
        poll = select.poll()
        poll.register(self.body.fileno(), select.POLLIN)
        if not poll.poll(deadline.left * 1000):
            return None
        return os.read(self.body.fileno(), BLOCK_SIZE)


class TLSExchange:
    """One request and its answer by one call of the library."""

    def __init__(self, transport: TLSTransport, call: Call) -> None:
        self._transport = transport
        self._request = call
        self._target = target_of(call.url)
        self._lane: Lane | None = None
        self._call: LibraryCall | None = None
        self._head: Head | None = None
        self._kept = SpooledTemporaryFile(max_size=LARGEST_IN_MEMORY)
        self._size = 0  # of what is kept
        self._beginning = b""
        self._complete = False
        self._interrupted = False
        self._slice = TimeSlice()

    def head(self, seconds: float) -> Head | None:
        deadline = Deadline.after(seconds)
        if self._call is None:
            self._call = self._dispatch()
        while self._head is None:
            piece = self._receive(self._call, deadline)
            if piece is None:
                return None
            if piece:
                self._keep(piece)
            else:
                self._head = self._finish(self._call)
        return self._head

    @property
    def awaited(self) -> int | None:
        """The library's pieces come by a pipe, which a read has to look at."""
        return None

    def read(self, seconds: float) -> bytes | None:
        assert self._call is not None
        kept = self._kept.read(LARGEST_READ)
        if kept or self._complete:
            self._slice.use(len(kept))
            return kept
        piece = self._receive(self._call, Deadline.after(seconds))
        if piece == b"":
            self._check_end(self._finish(self._call))
        return piece

    def _dispatch(self) -> LibraryCall:
        body = self._read_body()
        request = self._library_request()
        origin = self._target.origin
        lane = self._transport.tunnel.open(origin.host, origin.port)
        self._lane = lane
        if self._interrupted:
            raise UpstreamCut()
        request["proxyUrl"] = self._transport.tunnel.url_of(lane)
        call = LibraryCall(self._transport.library, request, body)
        try:
            self._transport.start_thread(call.run)
        except RuntimeError as error:
            call.abandon()
            raise Overloaded() from error
        return call

    def _read_body(self) -> bytes:
        """The request's body. Raises TooLarge for one that is too large to be kept whole."""
        body, largest = self._request.body, self._transport.bounds.request
        pieces = [body] if isinstance(body, bytes) else body
        whole = bytearray()
        for piece in pieces:
            whole += piece
            if len(whole) > largest or (self._request.length or 0) > largest:
                raise TooLarge(
                    f"With TLS_CLIENT a request's body may have {largest} bytes. Send less."
                )
        return bytes(whole)

    def _library_request(self) -> dict[str, Any]:
        headers = self._request.headers
        pairs = headers.pairs if isinstance(headers, Headers) else headers.items()
        check_sendable("".join([self._target.path, *map("".join, pairs)]))
        joined: dict[str, str] = {}
        for name, value in pairs:
            between = "; " if name.lower() == "cookie" else ", "
            joined[name] = (
                f"{joined[name]}{between}{value}" if name in joined else value
            )
        if not "".join(joined.values()).isascii():
            raise BadRequest("With TLS_CLIENT a header's value must be in ASCII.")
        return {
            "tlsClientIdentifier": self._transport.profile,
            "requestMethod": self._request.method,
            "requestUrl": self._request.url,
            "headers": joined,
            "headerOrder": ["host", *map(str.lower, joined), "content-length"],
            "isByteRequest": True,
            "isByteResponse": True,
            "streamOutputBlockSize": BLOCK_SIZE,
            "timeoutMilliseconds": NO_TIMEOUT,
            "followRedirects": False,
            "withoutCookieJar": True,
            "insecureSkipVerify": False,
            "catchPanics": True,
            "transportOptions": {
                "disableCompression": True,  # it would add a header of its own
                "maxResponseHeaderBytes": LONGEST_HEAD,
            },
        }

    def _receive(self, call: LibraryCall, deadline: Deadline) -> bytes | None:
        if self._interrupted:
            raise UpstreamCut()
        piece = call.read(deadline)
        if self._interrupted:
            raise UpstreamCut()
        if piece:
            self._slice.use(len(piece))
        return piece

    def _keep(self, piece: bytes) -> None:
        """A piece whose head is not known. Raises UpstreamFailed where there are too many."""
        self._kept.write(piece)
        self._size += len(piece)
        if len(self._beginning) < sse.OPENING_SIZE:
            self._beginning += piece[: sse.OPENING_SIZE]
            if sse.opens_stream(self._beginning):
                self._head = EVENT_STREAM
                self._kept.seek(0)
        if self._size > self._transport.bounds.answer:
            raise self._logged(UpstreamFailed(TOO_LARGE))

    def _finish(self, call: LibraryCall) -> Head:
        """The head, which the call's end brings. Raises the failure that it ended in."""
        answer = call.answer
        if answer is None or not answer["status"]:
            raise self._failure(answer["body"] if answer else "the call failed")
        self._complete = True
        if self._head is None:
            self._kept.seek(0)
        return Head(answer["status"], _headers_of(answer["headers"] or {}))

    def _check_end(self, head: Head) -> None:
        """Raises UpstreamFailed where a body that looked like an event stream was that of an error."""
        if head.status != 200:
            failure = UpstreamFailed(
                f"The upstream answered with status {head.status}, in the form of a stream."
            )
            raise self._logged(failure)

    def _failure(self, reason: str) -> RelayError:
        """What the library says of a call that failed, as an error of ours."""
        lane = self._lane
        assert lane is not None
        if lane.failure is not None:
            return lane.failure
        reason = _REQUEST_LINE.sub("", reason)
        failure: RelayError = UpstreamCut()
        if _DISTRUST.search(reason):
            failure = Unreachable("The upstream's certificate cannot be trusted.")
        elif not lane.received or _NO_AGREEMENT.search(reason):
            failure = Unreachable("The upstream did not agree on TLS.")
        elif _NO_HTTP.search(reason):
            failure = UpstreamFailed("The upstream sent what is no HTTP.")
        elif not self._beginning:
            failure = UpstreamCut(
                "The upstream closed the connection without answering."
            )
        return self._logged(failure, reason)

    def _logged(self, failure: RelayError, reason: str = "") -> RelayError:
        if not self._interrupted:
            _, host, port = self._target.origin
            log.warning("%s:%d: %s %s", host, port, failure.message, reason)
        return failure

    def interrupt(self) -> None:
        self._interrupted = True
        lane = self._lane
        if lane is not None:
            lane.close()

    def close(self) -> None:
        if self._lane is not None:
            self._transport.tunnel.forget(self._lane)
        if self._call is not None:
            self._call.body.close()
        self._kept.close()


def _headers_of(headers: Mapping[str, list[str]]) -> Headers:
    """The library's headers; those of one name in their order, the names in none. The body is unpacked already."""
    values = {name.lower(): each for name, each in headers.items()}
    if ",".join(values.get("content-encoding", ())).lower() in UNPACKED:
        values.pop("content-encoding")
        values.pop("content-length", None)
    return Headers((name, value) for name, each in values.items() for value in each)
