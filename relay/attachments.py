"""Files that go with a message: what they are by their content, and as what they are sent. Pure.

A message has them as OpenAI's API does: in base64, as parts of its payload. They are decoded where they are uploaded,
piece by piece, so that a file is never in memory twice. Of an image only the header is read, and no pixel decoded.
"""

from __future__ import annotations

import re
from base64 import b64encode
from binascii import a2b_base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from typing import Any

import filetype

from relay.domain import Message
from relay.errors import BadRequest, TooLarge
from relay.shown import fence_for
from relay.values import frozen

LARGEST_FILE = 16 * 1024 * 1024  # bytes; in base64 it fits into the default MAX_BODY
MOST_FILES = 10  # with one question
LARGEST_FENCED = 200 * 1024  # bytes of a text file that is sent as text
MOST_PIXELS = 100_000_000
LONGEST_NAME = 120
IMAGES = ("image/png", "image/jpeg", "image/gif", "image/webp")
TEXT = "text/plain"
UNKNOWN = "application/octet-stream"
#: types of parts that carry a file
FILE_PARTS = ("image_url", "file")
_HEAD = 8 * 1024  # bytes that a type is told by
_PIECE = 48 * 1024  # bytes that are decoded at a time
_MOST_READS = 2000  # of a header
_LARGEST_READ = 64 * 1024
_LARGEST_HEADER = 2 * 1024 * 1024
_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_DATA_URL = re.compile(r"data:([^,;]{0,200})((?:;[^,;]{0,200}){0,5}),", re.IGNORECASE)
_LINK = re.compile(r"https?://", re.IGNORECASE)
_UNSAFE = re.compile(r"[^\w .,()+=@#-]")
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f]")


@frozen
class _Content:
    """What a data URL has, `size` bytes of it. `start`: where in the URL its base64 begins."""

    url: str = field(repr=False)
    start: int
    size: int

    def read(self, at: int, size: int) -> bytes:
        """So many bytes from the byte `at` on."""
        first = at // 3
        last = -(-(at + size) // 3)
        found = a2b_base64(self.url[self.start + first * 4 : self.start + last * 4])
        return found[at - first * 3 :][:size]


@frozen
class Attachment:
    """A file. `media_type`: by its content. `width`, `height`: pixels, of an image."""

    name: str
    media_type: str
    content: _Content
    width: int = 0
    height: int = 0

    @property
    def size(self) -> int:
        """Bytes."""
        return self.content.size

    @property
    def is_image(self) -> bool:
        return self.media_type in IMAGES

    @property
    def is_fenced(self) -> bool:
        """Whether it is sent as text."""
        return self.media_type == TEXT and self.size <= LARGEST_FENCED

    @property
    def part(self) -> dict[str, Any]:
        """The file as a part of a message; the name of an image is for us alone."""
        url = self.content.url
        if self.is_image:
            image = {"url": url}
            return {"type": "image_url", "image_url": image, "filename": self.name}
        return {"type": "file", "file": {"filename": self.name, "file_data": url}}

    def pieces(self) -> Iterator[bytes]:
        """The content, piece by piece."""
        for at in range(0, self.size, _PIECE):
            yield self.content.read(at, _PIECE)

    def fenced(self) -> str:
        """A text file as text: its name, and what it says between fences that do not stand in it."""
        text = b"".join(self.pieces()).decode().removeprefix("\ufeff").rstrip("\n")
        fence = fence_for(text)
        return f"{self.name}:\n{fence}\n{text}\n{fence}"


class _Header:
    """A content as what reads its header sees it: bounded, so that none makes that go on for long."""

    def __init__(self, content: _Content) -> None:
        self._content = content
        self._at = 0
        self._reads = 0
        self._left = _LARGEST_HEADER

    def read(self, size: int = -1) -> bytes:
        self._reads += 1
        if self._reads > _MOST_READS or self._left < 0:
            raise EOFError("the header is too long")
        most = size if 0 <= size < _LARGEST_READ else _LARGEST_READ
        piece = self._content.read(self._at, most)
        self._at += len(piece)
        self._left -= len(piece)
        return piece

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = max(0, offset + (0, self._at, self._content.size)[whence])
        return self._at

    def tell(self) -> int:
        return self._at


def from_bytes(
    name: str, content: bytes | memoryview, place: str, *, is_image: bool = False
) -> Attachment:
    """A file by its bytes. `place`: where it came from, for errors. `is_image`: nothing else is taken.

    Raises TooLarge, or BadRequest.
    """
    _check_size(len(content), place)
    media_type = _type_of(bytes(content[:_HEAD]))
    head = f"data:{media_type};base64,"
    url = head + b64encode(content).decode("ascii")
    return _attachment(name, _Content(url, len(head), len(content)), place, is_image)


def from_url(name: str, url: str, place: str, *, is_image: bool = False) -> Attachment:
    """A file by its data URL, or by its base64 alone; otherwise as `from_bytes`."""
    found = _DATA_URL.match(url)
    start = found.end() if found else 0
    options = found[2].lower().split(";") if found else ["base64"]
    if "base64" not in options or (found is None and _LINK.match(url)):
        raise BadRequest(
            f"{place} must be a data URL in base64, as in data:image/png;base64,..."
        )
    if len(url) - start > LARGEST_FILE * 3 // 2:
        _check_size(LARGEST_FILE + 1, place)
    is_image = is_image and (found is None or found[1].lower().startswith("image/"))
    return _attachment(name, _checked(url, start, place), place, is_image)


def _attachment(name: str, content: _Content, place: str, is_image: bool) -> Attachment:
    _check_size(content.size, place)
    media_type = _type_of(content.read(0, _HEAD))
    if is_image and media_type not in IMAGES:
        raise BadRequest(
            f"{place} is no image by its content ({media_type}): send PNG, JPEG, GIF or "
            "WebP, or send it as a file."
        )
    if media_type == TEXT and content.size <= LARGEST_FENCED and not _is_text(content):
        media_type = UNKNOWN
    width, height = 0, 0
    if media_type in IMAGES:
        width, height = _measured(content, place)
    name = _safe_name(name, media_type)
    return Attachment(name, media_type, content, width, height)


def _measured(content: _Content, place: str) -> tuple[int, int]:
    """An image's width and height, by its header. Raises BadRequest or TooLarge."""
    import imagesize  # with the XML parser that it brings 1 MB, for services that get images

    width, height = imagesize.get(_Header(content))
    _check_pixels(width, height, place)
    return width, height


def _checked(url: str, start: int, place: str) -> _Content:
    """The content of a data URL whose base64 begins at `start`: checked, and without white space."""
    pieces = range(start, len(url), _PIECE)
    others = b"".join(
        url[at : at + _PIECE].encode("ascii", "replace").translate(None, _ALPHABET)
        for at in pieces
    )
    if (packed := b"".join(others.split())) != others:
        others = packed
        url = url[:start] + "".join(url[start:].split())
    length = len(url) - start - len(others)
    is_whole = others in (b"", b"=", b"==") and url.endswith(others.decode())
    if not is_whole or length % 4 == 1 or (others and (length + len(others)) % 4):
        raise BadRequest(
            f"{place} is no base64, or it was cut short: send all of it, and no more."
        )
    url += "=" * (-(len(url) - start) % 4)
    return _Content(url, start, length * 3 // 4)


def _check_size(size: int, place: str) -> None:
    if size > LARGEST_FILE:
        raise TooLarge(
            f"{place} is larger than a file may be ({LARGEST_FILE // 1024**2} MB): "
            "nothing was sent. Make it smaller."
        )
    if not size:
        raise BadRequest(f"{place} is empty: send the file's content.")


def _check_pixels(width: int, height: int, place: str) -> None:
    if width <= 0 or height <= 0:
        raise BadRequest(
            f"{place} is an image whose header is broken: nothing was sent."
        )
    if width * height > MOST_PIXELS:
        raise TooLarge(
            f"{place} has {width} x {height} pixels, and an image at most "
            f"{MOST_PIXELS // 10**6} million: nothing was sent. Make it smaller."
        )


def _type_of(head: bytes) -> str:
    """A media type by the first bytes of a content, whatever its name says."""
    found = filetype.guess(head)
    if found is not None:
        return str(found.mime)
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if len(head) < _HEAD or error.start < len(head) - 3:
            return UNKNOWN
        text = head[: error.start].decode()
    return UNKNOWN if _CONTROLS.search(text) else TEXT


def _is_text(content: _Content) -> bool:
    """Whether all of a small file is text."""
    try:
        return not _CONTROLS.search(content.read(0, content.size).decode())
    except UnicodeDecodeError:
        return False


def _safe_name(name: str, media_type: str) -> str:
    """A name without folders and without what a header or a page could mistake."""
    last = name.replace("\\", "/").rpartition("/")[2]
    kept = _UNSAFE.sub("_", last).strip(" .")[-LONGEST_NAME:]
    if kept:
        return kept
    kind, _, ending = media_type.partition("/")
    return f"image.{ending}" if kind == "image" else "file"


def link_of(part: Any) -> str:
    """The http address that an image is at; "" for any other part."""
    url = _image_url(part)
    return url if _LINK.match(url) else ""


def _image_url(part: Any) -> str:
    if not isinstance(part, Mapping) or part.get("type") != "image_url":
        return ""
    image = part.get("image_url")
    url = image.get("url") if isinstance(image, Mapping) else image
    return url if isinstance(url, str) else ""


def from_part(part: Mapping[str, Any], place: str) -> Attachment:
    """The file of a part of a message. Raises BadRequest, or TooLarge."""
    if part.get("type") == "image_url":
        if link_of(part):
            raise BadRequest(
                f"{place} is a link, and links are not fetched here: send the image "
                "itself as a data URL."
            )
        name = part.get("filename")
        url = _image_url(part)
        return from_url(
            name if isinstance(name, str) else "", url, place, is_image=True
        )
    file = part.get("file")
    fields = file if isinstance(file, Mapping) else {}
    data, name = fields.get("file_data"), fields.get("filename")
    if not isinstance(data, str):
        raise BadRequest(
            f"{place} has no file_data: send the file itself, as a data URL in base64."
        )
    return from_url(name if isinstance(name, str) else "", data, place)


def has_files_alone(payload: Mapping[str, Any]) -> bool:
    """Whether a payload is a user's message of texts, images and files."""
    if payload.get("role") != "user" or not set(payload) <= {"role", "content", "name"}:
        return False
    content = payload.get("content")
    return isinstance(content, list) and all(
        isinstance(part, Mapping) and part.get("type") in ("text", *FILE_PARTS)
        for part in content
    )


def text_of(payload: Mapping[str, Any]) -> str:
    """The texts of a payload's parts."""
    texts = (part.get("text") for part in payload["content"])
    return "\n".join(text for text in texts if isinstance(text, str))


def parts_of(message: Message) -> list[Mapping[str, Any]]:
    """The parts of a message's payloads; none where it is text alone."""
    contents = (payload.get("content") for payload in message.payloads)
    lists = (content for content in contents if isinstance(content, list))
    return [part for parts in lists for part in parts if isinstance(part, Mapping)]


def attached(text: str, parts: Sequence[Attachment | Mapping[str, Any]]) -> Message:
    """A user's question with files, or with parts that stand for them; text files go as text."""
    texts = [text]
    others: list[Mapping[str, Any]] = []
    for part in parts:
        if not isinstance(part, Attachment):
            others.append(part)
        elif part.is_fenced:
            texts.append(part.fenced())
        else:
            others.append(part.part)
    text = "\n\n".join(texts)
    if not others:
        return Message("user", text)
    content = [{"type": "text", "text": text}, *others]
    return Message("user", text, ({"role": "user", "content": content},))


def without_names(payload: Mapping[str, Any]) -> Mapping[str, Any]:
    """A payload as OpenAI's API has it, where no image has a name."""
    content = payload.get("content")
    if not isinstance(content, list) or not any(map(_is_named, content)):
        return payload
    parts = [
        {name: value for name, value in part.items() if name != "filename"}
        if _is_named(part)
        else part
        for part in content
    ]
    return {**payload, "content": parts}


def _is_named(part: Any) -> bool:
    return bool(_image_url(part)) and "filename" in part
