"""Where files are put: at an address that the backend chooses, so nothing of an account's goes there."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit

from relay.attachments import Attachment
from relay.deadline import Deadline
from relay.errors import UploadFailed
from relay.transports import Call
from relay.transports.public import is_public
from relay.upstreams.chatgpt_web.cookies import origin_of

UPLOAD_SECONDS = 120.0  # for one file
_ADDRESS = re.compile(r"[!\"$-~]{1,8192}")  # without a fragment
#: what Azure's blob storage asks for; protocol notes, files
_HEADERS = {"x-ms-blob-type": "BlockBlob", "x-ms-version": "2020-04-08"}


@dataclass(frozen=True)
class StorageCall(Call):
    """A request to a host that the backend named: it must be a public one."""


@dataclass(frozen=True)
class Storage:
    """Puts files where the backend says.

    `bases`: its own, whose hosts need not be public. `seconds`: the longest time for one file.
    """

    bases: tuple[str, ...]
    seconds: float = UPLOAD_SECONDS

    def put(self, file: Attachment, address: str) -> Call:
        """The request that puts a file at an address. Raises UploadFailed for one that nothing is sent to."""
        url = _checked(address, self.bases)
        headers = {"Content-Type": file.media_type, **_HEADERS}
        is_own = url.hostname in _hosts(self.bases)
        kind: Callable[..., Call] = Call if is_own else StorageCall
        return kind("PUT", url.geturl(), headers, self._pieces(file), file.size)

    def _pieces(self, file: Attachment) -> Iterator[bytes]:
        """The content. Raises UploadFailed where its reader takes too long."""
        deadline = Deadline.after(self.seconds)
        for piece in file.pieces():
            if deadline.passed:
                raise UploadFailed(
                    f"The upstream did not take the file within {self.seconds:g} s."
                )
            yield piece


def _checked(address: str, bases: Sequence[str]) -> SplitResult:
    refused = UploadFailed(
        "The upstream named an address for the file that nothing is sent to: it must be "
        "https, and no private one."
    )
    if not _ADDRESS.fullmatch(address):
        raise refused
    try:
        url = urlsplit(address)
        is_usable = bool(url.hostname) and url.port != 0 and "@" not in url.netloc
    except ValueError:
        raise refused from None
    is_own = origin_of(address) in map(origin_of, bases)
    if not is_usable or not (is_own or _is_public(url, bases)):
        raise refused
    return url


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
