"""Download links of our own: what they name, their signature, and where answers get them.

A link is the right to read one file for LINK_SECONDS, whoever shows it: an <img> can show nothing else. It names the
owner, the account and the conversation, so that whoever serves it can see whether they still are what they were. One to
a file of a caller's own account holds no token, so its caller's is asked for.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import astuple, replace
from functools import cached_property
from pathlib import Path

import orjson

from relay.access import first_key
from relay.domain import Delta, Event, FileLink, RemoteFile, Started
from relay.errors import InternalError, LinkExpired, NoFile
from relay.settings import SettingsError
from relay.upstreams import Decoder
from relay.values import frozen
from relay.wrapping import WrappingDecoder

log = logging.getLogger(__name__)

LINK_SECONDS = 24 * 3600
LONGEST_LINK = 4096
KEY_FILE = "link_key"
MOST_RENEWED = 1000
PATH = "/files/"
_LINK = re.compile(r"/files/([A-Za-z0-9_-]{20,4000}\.[A-Za-z0-9_-]{43})")


@frozen
class Download:
    """What a link leads to.

    `conversation_id`: the upstream's; `row`: the id of the conversation in the index, "" where it is
    not kept. `account`: the one that has the file; `own`: it is a caller's own, whose token must be shown.
    """

    owner: str
    upstream: str
    account: str | None = None
    conversation_id: str = ""
    row: str = ""
    own: bool = False
    pointer: str = ""
    message_id: str = ""

    @property
    def file(self) -> RemoteFile:
        return RemoteFile(self.pointer, self.message_id)

    def of(self, file: RemoteFile) -> Download:
        """The same place's other file."""
        return replace(self, pointer=file.pointer, message_id=file.message_id)


class Links:
    """Makes and reads links. `secret`: signs them, the same in all processes; `clock`: seconds since 1970."""

    def __init__(
        self, secret: Callable[[], bytes], clock: Callable[[], float] = time.time
    ) -> None:
        self._read_secret = secret
        self._clock = clock

    @cached_property
    def _secret(self) -> bytes:
        return hashlib.sha256(b"download links\0" + self._read_secret()).digest()

    def address(self, download: Download, base_url: str) -> str:
        """A new link, below the address where this service is reached."""
        expires = int(self._clock()) + LINK_SECONDS
        content = orjson.dumps([expires, *astuple(download)])
        signature = self._sign(content)
        return f"{base_url}{PATH}{_encoded(content)}.{_encoded(signature)}"

    def read(self, token: str) -> Download:
        """What a link names. Raises NoFile for one that was not made here, LinkExpired for an old one."""
        expires, download = self._open(token)
        if self._clock() > expires:
            raise LinkExpired()
        return download

    def renewed(self, text: str, owners: Collection[str]) -> str:
        """A text that was stored, with new links in the place of its owners' old ones, MOST_RENEWED at most."""
        if PATH not in text:
            return text

        def renew(found: re.Match[str]) -> str:
            with suppress(NoFile):
                _, download = self._open(found[1])
                if download.owner in owners:
                    return self.address(download, "")
            return found[0]

        return _LINK.sub(renew, text, count=MOST_RENEWED)

    def _open(self, token: str) -> tuple[float, Download]:
        """When a link expires, and what it names. Raises NoFile."""
        content, _, signature = token.partition(".")
        try:
            named = _decoded(content)
            is_ours = hmac.compare_digest(self._sign(named), _decoded(signature))
        except (binascii.Error, ValueError):
            raise NoFile() from None
        if not is_ours or len(token) > LONGEST_LINK:
            raise NoFile()
        expires, *values = orjson.loads(named)
        return expires, Download(*values)

    def _sign(self, content: bytes) -> bytes:
        return hmac.digest(self._secret, content, "sha256")


def _encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def _decoded(text: str) -> bytes:
    padded = text.encode("ascii") + b"=" * (-len(text) % 4)
    return base64.b64decode(padded, altchars=b"-_", validate=True)


def secret_of(key: str, folder: Path) -> bytes:
    """The secret that signs links: the operator's, or that of the folder, made at first use. Raises InternalError."""
    if key:
        return key.encode()
    try:
        return first_key(folder, KEY_FILE)[0].encode()
    except (SettingsError, OSError) as error:
        log.error("Download links cannot be signed: %s", error)
        raise InternalError() from None


class LinkingDecoder(WrappingDecoder):
    """A decoder with addresses in the place of another one's `FileLink`s. See `relay.upstreams.Decoder`.

    `place`: the owner and the upstream; what the answer says of its conversation is added. `base_url`: where
    the caller reaches this service. `is_kept`: the conversation is one of the index, by its own id where
    `place` has none.
    """

    _started = Started()  # until it says where it is

    def __init__(
        self,
        decoder: Decoder,
        place: Download,
        links: Links,
        base_url: str,
        *,
        is_kept: bool,
    ) -> None:
        super().__init__(decoder)
        self._place = place
        self._links = links
        self._base_url = base_url
        self._is_kept = is_kept

    def feed(self, piece: bytes) -> Iterator[Event]:
        return self._linked(self._decoder.feed(piece))

    def end(self) -> Iterator[Event]:
        return self._linked(self._decoder.end())

    def _linked(self, events: Iterable[Event]) -> Iterator[Event]:
        for event in events:
            if isinstance(event, Delta):  # which most are
                yield event
                continue
            if isinstance(event, Started):
                self._started = event
            elif isinstance(event, FileLink):
                event = Delta(self._address(event.file))
            yield event

    def _address(self, file: RemoteFile) -> str:
        """A link to a file of the answer, in the place where it began."""
        there = self._started.conversation_id or ""
        row = (self._place.row or there) if self._is_kept else ""
        place = replace(
            self._place.of(file),
            account=self._started.account,
            conversation_id=there,
            row=row,
        )
        return self._links.address(place, self._base_url)
