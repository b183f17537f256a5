"""Where files are put: at an address that the backend chooses, so nothing of an account's goes there."""

from __future__ import annotations

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

LONGEST_ADDRESS = 8 * 1024
UPLOAD_SECONDS = 120.0  # for one file
#: what Azure's blob storage asks for; protocol notes, files
_HEADERS = {"x-ms-blob-type": "BlockBlob", "x-ms-version": "2020-04-08"}


@dataclass(frozen=True)
class StorageCall(Call):
    """A request to a host that the backend named: it must be a public one."""


def put(file: Attachment, address: str, bases: Sequence[str]) -> Call:
    """The request that puts a file at an address. `bases`: the backend's own, whose hosts need not be public.

    Raises UploadFailed for an address that nothing is sent to.
    """
    url = _checked(address, bases)
    headers = {"Content-Type": file.media_type, **_HEADERS}
    is_own = url.hostname in _hosts(bases)
    kind: Callable[..., Call] = Call if is_own else StorageCall
    return kind("PUT", url.geturl(), headers, _pieces(file), file.size)


def _pieces(file: Attachment) -> Iterator[bytes]:
    """The content. Raises UploadFailed where its reader takes too long."""
    deadline = Deadline.after(UPLOAD_SECONDS)
    for piece in file.pieces():
        if deadline.passed:
            raise UploadFailed(
                f"The upstream did not take the file within {UPLOAD_SECONDS:g} s."
            )
        yield piece


def _checked(address: str, bases: Sequence[str]) -> SplitResult:
    refused = UploadFailed(
        "The upstream named an address for the file that nothing is sent to: it must be "
        "https, and no private one."
    )
    if len(address) > LONGEST_ADDRESS or not address.isascii() or " " in address:
        raise refused
    try:
        url = urlsplit(address)
        is_usable = bool(url.hostname) and url.port != 0 and not url.username
    except ValueError:
        raise refused from None
    if not is_usable or not address.isprintable() or url.fragment:
        raise refused
    if origin_of(address) in map(origin_of, bases):
        return url
    if url.scheme != "https":
        raise refused
    if url.hostname not in _hosts(bases) and _is_private(url.hostname or ""):
        raise refused
    return url


def _hosts(bases: Sequence[str]) -> set[str | None]:
    return {urlsplit(base).hostname for base in bases}


def _is_private(host: str) -> bool:
    """Whether a host is a private address; of a name, the one who dials sees it."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return not is_public(host)
