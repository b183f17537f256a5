"""A file of an upstream's that passes to a caller: streamed, in constant memory, from an address that it gave.

Nothing but a range goes along with the request; a redirect is not followed. Of the answer pass the bytes, how many
there are, and which; how a browser may treat them is said here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from relay.accounts import Account, AccountPool, Attempts
from relay.delivery import Clocks
from relay.errors import NoFile, RelayError, UpstreamError, UpstreamFailed
from relay.passage import Passage
from relay.transports import TOO_LARGE, Call, Head, Transport
from relay.upstreams import Forwarded, FoundFile
from relay.upstreams.http import WholeResponse

#: what browsers may show: images that can hold no script
SHOWN_TYPES = ("image/png", "image/jpeg", "image/gif", "image/webp")
OTHER_TYPE = "application/octet-stream"
PASSED_HEADERS = ("accept-ranges", "content-range")
#: a page that the file may pretend not to be runs nothing, and is nobody's origin
POLICY = "default-src 'none'; sandbox"
_NOBODY = Account("nobody", "")


class FileForwarder:
    """See `relay.upstreams.Forwarder`. No account is asked: the address is the credential."""

    def __init__(self, file: FoundFile) -> None:
        self._call = file.call
        self.transport: Transport = file.transport

    def attempts(self, request: Forwarded) -> Attempts:
        return Attempts(AccountPool((_NOBODY,)), (_NOBODY,), 0)

    def call(self, request: Forwarded, account: Account) -> Call:
        ranges = request.headers.get("range", "")
        if not ranges:
            return self._call
        return replace(self._call, headers={**self._call.headers, "Range": ranges})

    def failure(self, response: WholeResponse, request: Forwarded) -> UpstreamError:
        return UpstreamFailed(
            f"The file's storage answered with the status {response.status}. Try again."
        )

    def passes(self, name: str) -> bool:
        return name in PASSED_HEADERS


class NoWatch:
    """See `relay.passage.Watch`: nothing is read along."""

    keep_alive = b""
    is_whole = True
    has_failed = False
    is_between_events = False

    def listen(self, listener: Callable[[bytes], None]) -> None:
        pass

    def look(self) -> None:
        pass

    def feed(self, piece: bytes) -> bytes:
        return piece

    def end(self) -> bytes:
        return b""

    def fail(self, error: RelayError) -> bytes:
        return b""


class FilePassage(Passage):
    """See `Passage`: whatever the file says that it is, it is no event stream. An error's body does not pass.

    `largest`: bytes of a file that does not state its length: a caller of HTTP/1.0 gets it whole.
    """

    def __init__(
        self, file: FoundFile, request: Forwarded, clocks: Clocks, largest: int
    ) -> None:
        forwarder = FileForwarder(file)
        super().__init__(forwarder, request, NoWatch(), clocks, streams=False)
        self._left = largest

    def start(self) -> Head | None:
        head = super().start()
        if head is None or self._refused is None:
            return head
        failure = NoFile() if head.status in (404, 410) else self._refused
        self._fail(failure)
        raise failure

    def _read(self) -> bytes | None:
        piece = super()._read()
        if piece and self.length is None:
            self._left -= len(piece)
            if self._left < 0:
                raise UpstreamFailed(TOO_LARGE)
        return piece

    @property
    def is_event_stream(self) -> bool:
        return False

    @property
    def file_headers(self) -> Mapping[str, str]:
        """How a browser is to treat the file, once its head is there."""
        stated = self._head.headers.get("content-type", "") if self._head else ""
        kind = stated.partition(";")[0].strip().lower()
        is_shown = kind in SHOWN_TYPES
        return {
            "Content-Type": kind if is_shown else OTHER_TYPE,
            "Content-Security-Policy": POLICY,
            "Cache-Control": "private, max-age=3600",
        }
