"""Files at addresses that callers name: fetched only where the owner allows it, and from public addresses alone."""

from __future__ import annotations

import logging
from urllib.parse import urlsplit

from relay.attachments import LARGEST_FILE, Attachment, from_bytes
from relay.errors import BadRequest, Forbidden, RelayError
from relay.transports import Call, Transport
from relay.upstreams.http import WholeResponse, fetch

log = logging.getLogger(__name__)

FETCH_SECONDS = 20.0
LONGEST_LINK = 2048
#: no word on why: a caller must not learn what answers within the network
NOT_FETCHED = (
    "The file that {} links to cannot be fetched: the link must be a public http or "
    "https address that answers 200 itself, without a redirect, within "
    f"{FETCH_SECONDS:g} s, and all linked files together have at most "
    f"{LARGEST_FILE // 1024**2} MB. Send the file itself as a data URL instead."
)
_HEADERS = {
    "User-Agent": "chatgpt-webapi",
    "Accept": "*/*",
    "Accept-Encoding": "identity",
}


class LinkedFiles:
    """Fetches the files. `transport`: one that reaches public addresses alone; None: nothing is fetched."""

    def __init__(
        self, transport: Transport | None, seconds: float = FETCH_SECONDS
    ) -> None:
        self._transport = transport
        self._seconds = seconds

    def fetch(self, link: str, place: str, largest: int = LARGEST_FILE) -> Attachment:
        """The file at a link, of `largest` bytes at most. `place`: where the link stands, for errors. Blocks.

        Raises Forbidden where links are not fetched; BadRequest, or TooLarge.
        """
        if self._transport is None:
            raise Forbidden(
                f"{place} is a link, and links are not fetched here: send the image "
                "itself as a data URL. (The owner may set UPLOAD_BY_URL=true.)"
            )
        call = Call("GET", _checked(link, place), _HEADERS, unpack=False)
        response = self._response(self._transport, call, place, largest)
        name = urlsplit(link).path.rpartition("/")[2]
        return from_bytes(name, response.body, place, is_image=True)

    def _response(
        self, transport: Transport, call: Call, place: str, largest: int
    ) -> WholeResponse:
        try:
            response = fetch(transport, call, self._seconds, largest)
        except RelayError as error:
            log.info("A linked file was not fetched: %s", error.reason)
            raise BadRequest(NOT_FETCHED.format(place)) from None
        if response.status != 200:
            log.info("A linked file was answered with status %d.", response.status)
            raise BadRequest(NOT_FETCHED.format(place))
        return response


def _checked(link: str, place: str) -> str:
    """A link that can be fetched, without its fragment. Raises BadRequest."""
    try:
        parts = urlsplit(link)
        is_usable = bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_usable = False
    is_plain = link.isascii() and link.isprintable() and " " not in link
    if not is_usable or not is_plain or len(link) > LONGEST_LINK or "@" in parts.netloc:
        raise BadRequest(NOT_FETCHED.format(place))
    return parts._replace(fragment="", path=parts.path or "/").geturl()
