"""`delta_encoding` v1: frames that edit documents, one per channel. Source: protocol notes, delta encoding.

Short keys: `c` channel, `p` path (JSON pointer), `o` operation, `v` value. A frame that lacks c, p or o takes it from
the frame before. What cannot be applied is an error: a lost edit would be lost text.
"""

from __future__ import annotations

from typing import Any

from relay.errors import UpstreamFailed

MOST_DOCUMENTS = 1000
TEXT = "/message/content/parts/0"


class Documents:
    """The documents that a stream's frames make. Text that grows piece by piece is joined only when it is read."""

    def __init__(self) -> None:
        self._documents: dict[object, Any] = {}
        self._channel: object = 0
        self._path = ""
        self._operation = "add"
        self._grown: list[str] = []

    def apply(self, frame: dict[str, Any]) -> tuple[Any, str | None]:
        """The document that the frame edited; and, where all it did was to append to the text, what it appended."""
        value = frame.get("v")
        if (
            "p" not in frame
            and "o" not in frame
            and isinstance(value, dict)
            and "message" in value
        ):
            frame = {
                **frame,
                "p": "",
                "o": "add",
            }  # a new message, whatever came before
        channel = frame.get("c", self._channel)
        path, operation = frame.get("p", self._path), frame.get("o", self._operation)
        if (
            not isinstance(path, str)
            or not isinstance(operation, str)
            or isinstance(channel, (dict, list))
        ):
            raise _misfit(frame)
        grows = (
            operation == "append"
            and path == TEXT
            and channel == self._channel
            and isinstance(value, str)
        )
        self._channel, self._path, self._operation = channel, path, operation
        if grows and isinstance(value, str) and self._has_text():
            self._grown.append(value)
            return self._documents[channel], value
        self.settle()
        self._edit(path, operation, value)
        return self._documents.get(channel), None

    def settle(self) -> None:
        """Join what was appended into the document, so that its text can be read."""
        if self._grown:
            grown, self._grown = "".join(self._grown), []
            parts = self._documents[self._channel]["message"]["content"]["parts"]
            parts[0] += grown

    def _has_text(self) -> bool:
        try:
            return isinstance(
                self._documents[self._channel]["message"]["content"]["parts"][0], str
            )
        except (KeyError, IndexError, TypeError):
            return False

    def _edit(self, path: str, operation: str, value: Any) -> None:
        if operation == "patch":
            for edit in value if isinstance(value, list) else [value]:
                if not isinstance(edit, dict) or not isinstance(edit.get("p", ""), str):
                    raise _misfit(value)
                self._edit(
                    path + edit.get("p", ""), edit.get("o", "replace"), edit.get("v")
                )
            return
        holder, key = self._place(path, create=operation != "remove")
        if holder is None:
            return
        if operation in ("add", "replace"):
            _set(holder, key, value, insert=operation == "add")
        elif operation == "append":
            _append(holder, key, value)
        elif operation == "remove":
            if isinstance(holder, dict):
                holder.pop(key, None)
            elif isinstance(key, int) and key < len(holder):
                del holder[key]
        elif operation == "truncate" and isinstance(value, int):
            target = _get(holder, key)
            if isinstance(target, (str, list)):
                _set(holder, key, target[:value], insert=False)
        else:
            raise _misfit(operation)

    def _place(self, path: str, create: bool) -> tuple[Any, Any]:
        """The container and the key that a pointer names; missing objects on the way are made."""
        if path and not path.startswith("/"):
            raise _misfit(path)
        if (
            self._channel not in self._documents
            and len(self._documents) >= MOST_DOCUMENTS
        ):
            raise UpstreamFailed(
                f"The upstream's stream has more than {MOST_DOCUMENTS} messages."
            )
        holder: Any = self._documents
        keys: list[Any] = [
            self._channel,
            *(_unescaped(part) for part in path.split("/")[1:]),
        ]
        for key in keys[:-1]:
            inner = _get(holder, key)
            if inner is None:
                if not create:
                    return None, None
                inner = {}
                _set(holder, key, inner, insert=False)
            if not isinstance(inner, (dict, list)):
                raise _misfit(path)
            holder = inner
        return holder, _key(holder, keys[-1])


def _unescaped(part: str) -> str:
    return part.replace("~1", "/").replace("~0", "~")


def _key(holder: Any, key: Any) -> Any:
    if not isinstance(holder, list):
        return key
    if key == "-":
        return len(holder)
    if not str(key).isdecimal() or int(key) > len(holder):
        raise _misfit(key)
    return int(key)


def _get(holder: Any, key: Any) -> Any:
    key = _key(holder, key)
    if isinstance(holder, list):
        return holder[key] if key < len(holder) else None
    return holder.get(key)


def _set(holder: Any, key: Any, value: Any, insert: bool) -> None:
    if not isinstance(holder, list):
        holder[key] = value
    elif insert or (key := _key(holder, key)) == len(holder):
        holder.insert(key, value)
    else:
        holder[key] = value


def _append(holder: Any, key: Any, value: Any) -> None:
    target = _get(holder, key)
    match target, value:
        case None, _:
            _set(holder, key, value, insert=False)
        case str(), str():
            _set(holder, key, target + value, insert=False)
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
