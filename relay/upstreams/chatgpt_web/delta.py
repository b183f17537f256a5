"""`delta_encoding` v1: frames that edit documents, one per channel. Source: protocol notes, delta encoding.

Short keys: `c` channel, `p` path (JSON pointer), `o` operation, `v` value. A frame that lacks c, p or o takes it from
the frame before.

How it works: each channel has one document, an envelope with a message as the classic encoding has it, and frames edit
it in place. Nearly all frames append to the message's text. That grows apart, and is joined into the document only when
the text itself is edited or read (`join_text`): joining at every frame would copy all of it each time. `Edit` says what
a frame did, so that the reader looks at the text again only where it must; how much may be copied for that is bounded.

There is no survivable garbage here, other than in the classic encoding: every frame counts, a document that missed one
is wrong from then on and nothing would tell, so what cannot be applied is an error.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from relay.errors import UpstreamFailed
from relay.growing_text import GrowingText
from relay.upstreams.wording import count_values

MOST_DOCUMENTS = 1000
LONGEST_FIELD = (
    1024 * 1024
)  # characters of a text that is appended to, other than the message's own
LONGEST_LIST = 10_000
LONGEST_PATH = 1000
DEEPEST_PATH = 32
DEEPEST_PATCH = 10
MOST_VALUES = 500_000  # of all documents; each costs some 100 bytes
#: characters of text that are joined or edited in one stream: so many, and each that has come so often
MOST_COPIED = 1024 * 1024
MOST_COPIES = 2
MADE_OBJECT = 3  # values: an object that a path makes costs as much
TEXT = "/message/content/parts/0"
_PARTS = "/message/content/parts/"


class Edit(NamedTuple):
    """What a frame did to its document.

    `appended`: what it appended to the text. `text_edited`: it changed the text, or may have, in
    another way. `text`: else, all of it, where that is the only part.
    """

    document: Any
    appended: str = ""
    text_edited: bool = False
    text: GrowingText | None = None


class Documents:
    """The documents that a stream's frames make, one per channel. `text`: the one that was appended to last."""

    def __init__(self) -> None:
        self.text = GrowingText()
        self._documents: dict[object, Any] = {}
        self._texts: dict[object, GrowingText] = {}  # that grow apart from them
        self._channel: object = 0
        self._path = ""
        self._operation = "add"
        self._appended: list[str] = []
        self._text_edited = False
        self._copied = 0
        self._received = 0
        self._values = 0

    @property
    def newest(self) -> Any:
        """The document that the last frame edited."""
        return self._documents[self._channel]

    def append(self, frame: dict[str, Any]) -> str | None:
        """What a frame appends to its document's text; None for one that does anything else, which `apply` takes.

        Raises UpstreamFailed for a frame whose keys are none.
        """
        value = frame.get("v")
        if not isinstance(value, str):
            return None
        if len(frame) > 1:
            self._read_keys(frame, value)
        return value if self._append_text(self._path, self._operation, value) else None

    def apply(self, frame: dict[str, Any]) -> Edit:
        """Edit a document. Raises UpstreamFailed for a frame that fits none, and for one that makes it too large."""
        value = frame.get("v")
        self._read_keys(frame, value)
        self._appended = []
        self._text_edited = False
        self._edit(self._path, self._operation, value, 0)
        return Edit(
            self._documents.get(self._channel),
            "".join(self._appended),
            text_edited=self._text_edited,
            text=None if self._text_edited else self._growing_text(),
        )

    def count_values(self, content: bytes) -> None:
        """Count what a frame may have added, other than text. Raises UpstreamFailed for more than can be kept."""
        self._received += len(content)
        self._add_values(count_values(content))

    def _add_values(self, count: int) -> None:
        self._values += count
        if self._values > MOST_VALUES:
            raise UpstreamFailed("The upstream sent edits of too many values.")

    def join_text(self) -> None:
        """Join what was appended to the last frame's document into it, so that its text can be read."""
        parts = self._text_parts()
        lengths = [len(part) for part in parts if isinstance(part, str)]
        self._copied += len(parts) + sum(lengths)
        text = self._texts.pop(self._channel, None)
        if text is not None:
            self._copied += text.length - len(parts[0])
            parts[0] = text.text
        if self._copied > MOST_COPIED + MOST_COPIES * self._received:
            raise UpstreamFailed("The upstream edits its answer again and again.")

    def join_all(self) -> None:
        """Join what was appended to any of the documents."""
        for channel in list(self._texts):
            self._channel = channel
            self.join_text()

    def _read_keys(self, frame: dict[str, Any], value: Any) -> None:
        """Take over the keys that the frame has; the others stay as the frame before had them."""
        is_snapshot = isinstance(value, dict) and "message" in value
        if is_snapshot and "p" not in frame and "o" not in frame:
            self._path = ""  # a new message, whatever came before
            self._operation = "add"
        channel = frame.get("c", self._channel)
        path = frame.get("p", self._path)
        operation = frame.get("o", self._operation)
        if not isinstance(path, str) or not isinstance(operation, str):
            raise _misfit(frame)
        if isinstance(channel, (dict, list)):
            raise _misfit(frame)
        self._channel = channel
        self._path = path
        self._operation = operation

    def _append_text(self, path: str, operation: str, value: str) -> bool:
        """Whether the edit appends to the text; then that has grown by the piece."""
        if operation != "append" or path != TEXT:
            return False
        text = self._growing_text()
        if text is None:
            return False
        text.append(value)
        self._received += len(value)
        self.text = text
        return True

    def _growing_text(self) -> GrowingText | None:
        """The text of the channel's message; None where it is not its only part."""
        text = self._texts.get(self._channel)
        if text is not None:
            return text
        parts = self._text_parts()
        if len(parts) != 1 or not isinstance(parts[0], str):
            return None
        text = self._texts[self._channel] = GrowingText(parts[0])
        return text

    def _text_parts(self) -> list[Any]:
        """The parts of the channel's message; none where it has no message."""
        try:
            parts = self._documents[self._channel]["message"]["content"]["parts"]
        except (KeyError, IndexError, TypeError):
            return []
        return parts if isinstance(parts, list) else []

    def _edit(self, path: str, operation: str, value: Any, depth: int) -> None:
        if operation == "patch":
            self._patch(path, value, depth)
            return
        if isinstance(value, str) and self._append_text(path, operation, value):
            self._appended.append(value)
            return
        if not path and operation in ("add", "replace"):
            self._replace_document(value)
            return
        pointer = _pointer(path)
        if pointer.touches_text:
            self._text_edited = True
            self.join_text()
        holder, key = self._place(pointer, create=operation != "remove")
        if holder is not None:
            _change(holder, key, operation, value)

    def _replace_document(self, value: Any) -> None:
        self._check_room()
        self._text_edited = True
        if self._channel in self._texts:
            self.join_text()  # whoever holds the message, as an echo is held, has its text
        self._documents[self._channel] = value

    def _check_room(self) -> None:
        """Raise UpstreamFailed where the channel has no document yet, and none may be added."""
        is_new = self._channel not in self._documents
        if is_new and len(self._documents) >= MOST_DOCUMENTS:
            raise UpstreamFailed(
                f"The upstream's stream has more than {MOST_DOCUMENTS} messages."
            )

    def _patch(self, path: str, value: Any, depth: int) -> None:
        """Several edits in one, with paths below this one's."""
        if depth >= DEEPEST_PATCH or len(path) > LONGEST_PATH:
            raise _misfit(value)
        for edit in value if isinstance(value, list) else [value]:
            if not isinstance(edit, dict) or not isinstance(edit.get("p", ""), str):
                raise _misfit(value)
            self._edit(
                path + edit.get("p", ""),
                edit.get("o", "replace"),
                edit.get("v"),
                depth + 1,
            )

    def _place(self, pointer: Pointer, create: bool) -> tuple[Any, Any]:
        """The container and the key that a pointer names; missing objects on the way are made."""
        self._check_room()
        holder: Any = self._documents
        last: Any = self._channel
        for key in pointer.keys:
            inner = _get(holder, last)
            if inner is None:
                if not create:
                    return None, None
                inner = {}
                self._add_values(MADE_OBJECT)
                _set(holder, last, inner, insert=False)
            elif not isinstance(inner, (dict, list)):
                raise _misfit(inner)
            holder, last = inner, key
        return holder, _key(holder, last)


class Pointer(NamedTuple):
    """A JSON pointer. `touches_text`: an edit there may change the text: at it, above it, or at another part."""

    keys: tuple[str, ...]
    touches_text: bool


@lru_cache(maxsize=100)
def _pointer(path: str) -> Pointer:
    if path and not path.startswith("/"):
        raise _misfit(path)
    if len(path) > LONGEST_PATH or path.count("/") > DEEPEST_PATH:
        raise _misfit(path)
    keys = tuple(map(_unescaped, path.split("/")[1:]))
    return Pointer(keys, path.startswith(_PARTS) or TEXT.startswith(f"{path}/"))


def _unescaped(part: str) -> str:
    return part.replace("~1", "/").replace("~0", "~")


def _change(holder: Any, key: Any, operation: str, value: Any) -> None:
    if operation in ("add", "replace"):
        _set(holder, key, value, insert=operation == "add")
    elif operation == "append":
        _append(holder, key, value)
    elif operation == "remove":
        _remove(holder, key)
    elif operation == "truncate" and isinstance(value, int):
        target = _get(holder, key)
        if isinstance(target, (str, list)):
            _set(holder, key, target[:value], insert=False)
    else:
        raise _misfit(operation)


def _key(holder: Any, key: Any) -> Any:
    if not isinstance(holder, list):
        return key
    if len(holder) > LONGEST_LIST:
        raise _misfit(holder)
    if key == "-":
        return len(holder)
    digits = str(key)
    if not digits.isdecimal() or len(digits) > 9 or int(digits) > len(holder):
        raise _misfit(key)
    return int(digits)


def _get(holder: Any, key: Any) -> Any:
    if not isinstance(holder, list):
        return holder.get(key)
    key = _key(holder, key)
    return holder[key] if key < len(holder) else None


def _set(holder: Any, key: Any, value: Any, insert: bool) -> None:
    if not isinstance(holder, list):
        holder[key] = value
        return
    key = _key(holder, key)
    if insert or key == len(holder):
        holder.insert(key, value)
    else:
        holder[key] = value


def _remove(holder: Any, key: Any) -> None:
    if isinstance(holder, dict):
        holder.pop(key, None)
    elif key < len(holder):
        del holder[key]


def _append(holder: Any, key: Any, value: Any) -> None:
    target = _get(holder, key)
    match target, value:
        case None, _:
            _set(holder, key, value, insert=False)
        case str(), str() if len(target) <= LONGEST_FIELD:
            _set(holder, key, "", insert=False)
            target += value  # grows in its place, now that nothing else has it
            _set(holder, key, target, insert=False)
        case list(), list():
            target.extend(value)
        case list(), _:
            target.append(value)
        case dict(), dict():
            target.update(value)
        case _:
            raise _misfit(value)


def _misfit(what: object) -> UpstreamFailed:
    return UpstreamFailed(
        f"The upstream sent an edit that fits no document ({type(what).__name__}): text may be lost."
    )
