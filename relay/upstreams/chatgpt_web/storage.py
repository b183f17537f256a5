"""Where files are: at an address that the backend chooses, so nothing of an account's goes there."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit

from relay.attachments import Attachment
from relay.deadline import Deadline
from relay.errors import UploadFailed, UpstreamFailed
from relay.transports import Call
from relay.transports.public import is_public
from relay.upstreams.chatgpt_web.cookies import origin_of
from relay.values import frozen

UPLOAD_SECONDS = 120.0  # for one file
_ADDRESS = re.compile(r"[!\"$-~]{1,8192}")  # without a fragment
#: what Azure's blob storage asks for; protocol notes, files
_HEADERS = {"x-ms-blob-type": "BlockBlob", "x-ms-version": "2020-04-08"}


@frozen
class StorageCall(Call):
    """A request to a host that the backend named: it must be a public one."""


@frozen
class Storage:
    """Puts files where the backend says, and gets them from there.

    `bases`: its own, whose hosts need not be public. `seconds`: the longest time for one file.
    """

    bases: tuple[str, ...]
    seconds: float = UPLOAD_SECONDS

    def put(self, file: Attachment, address: str) -> Call:
        """The request that puts a file at an address. Raises UploadFailed for one that nothing is sent to."""
        url = _usable(address, self.bases)
        if url is None:
            raise UploadFailed(
                "The upstream named an address for the file that nothing is sent to: it "
                "must be https, and no private one."
            )
        headers = {"Content-Type": file.media_type, **_HEADERS}
        body = self._pieces(file)
        return self._kind(url)("PUT", url.geturl(), headers, body, file.size)

    def get(self, address: str) -> Call:
        """The request for the bytes of a file at an address. Raises UpstreamFailed for one that is not followed."""
        url = _usable(address, self.bases)
        if url is None:
            raise UpstreamFailed(
                "The upstream named an address for the file that is not followed: it must "
                "be https, or the upstream's own."
            )
        headers = {"Accept": "*/*", "Accept-Encoding": "identity"}
        return self._kind(url)("GET", url.geturl(), headers, unpack=False)

    def _kind(self, url: SplitResult) -> Callable[..., Call]:
        return Call if url.hostname in _hosts(self.bases) else StorageCall

    def _pieces(self, file: Attachment) -> Iterator[bytes]:
        """The content. Raises UploadFailed where its reader takes too long."""
        deadline = Deadline.after(self.seconds)
        for piece in file.pieces():
            if deadline.passed:
                raise UploadFailed(
                    f"The upstream did not take the file within {self.seconds:g} s."
                )
            yield piece


def _usable(address: str, bases: Sequence[str]) -> SplitResult | None:
    """The parts of an address at the backend's own origin, or at a public host by https; None for any other."""
    if not _ADDRESS.fullmatch(address):
        return None
    try:
        url = urlsplit(address)
        is_usable = bool(url.hostname) and url.port != 0 and "@" not in url.netloc
    except ValueError:
        return None
    is_own = origin_of(address) in map(origin_of, bases)
    is_allowed = is_own or _is_public(url, bases)
    return url if is_usable and is_allowed else None


def _is_public(url: SplitResult, bases: Sequence[str]) -> bool:
    """Whether it is https, and to a host that may be public."""
    is_known = url.hostname in _hosts(bases)
    return url.scheme == "https" and (is_known or not _is_private(url.hostname or ""))


def _hosts(bases: Sequence[str]) -> set[str | None]:
    return {urlsplit(base).hostname for base in bases}


def _is_private(host: str) -> bool:
    """Whether a host is a private address; of a name, the one who dials sees it."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return not is_public(host)
