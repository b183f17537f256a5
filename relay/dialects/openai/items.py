"""The items of OpenAI's Responses API as messages of chat completions, and stored answers as items. Pure.

Source: OpenAI's response_input_item and response_output_item types. A call of a function is an item of its own there
and a part of the assistant's message here; a model's reasoning is sent to no other model again.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from relay.attachments import FILE_PARTS
from relay.dialects.openai.messages import NOT_SENT, ONLY_FILES
from relay.domain import (
    TOOL_ROLES,
    FinishReason,
    Message,
    Node,
    Reply,
    StoredTurn,
    ToolCall,
)
from relay.errors import BadRequest, Unsupported

MOST_ITEMS = 10_000
_EXAMPLE = 'Send it as in {"input": "hello"}.'
_ROLES = ("user", "assistant", "system", "developer")
_TEXTS = ("input_text", "output_text", "text")
#: the ids of an answer's items have the answer's own within them
_ITEM_ID = re.compile(r"(rs|msg|fc)_([0-9a-f]{32})(?:_([0-9]{1,4}))?")
_RESPONSE_ID = re.compile(r"resp_([0-9a-f]{32})")

Item = Mapping[str, Any]
Payload = dict[str, Any]


def answer_id(response_id: str) -> str | None:
    """The stored answer's id, by that of the response; None for what is no id of ours."""
    found = _RESPONSE_ID.fullmatch(response_id)
    return str(uuid.UUID(found[1])) if found else None


def referenced(items: Any) -> set[str]:
    """The ids of the stored answers that a request's items refer to. Raises BadRequest for too many items."""
    if not isinstance(items, list):
        return set()
    _check_number(items)
    ids = (item.get("id") for item in items if _kind(item) == "item_reference")
    found = (_ITEM_ID.fullmatch(name) for name in ids if isinstance(name, str))
    return {str(uuid.UUID(match[2])) for match in found if match}


def messages_of(
    items: Any,
    known: Mapping[str, StoredTurn],
    *,
    text_only: bool,
    accepts_files: bool = False,
) -> tuple[list[Payload], tuple[str, ...]]:
    """The field `input` as messages, and the names of what has no effect.

    `known`: the stored answers that it refers to, by their ids. Raises BadRequest; Unsupported for
    items that no chat completion has, and with `text_only` for what is no text; with `accepts_files`
    the user's images and files are taken all the same.
    """
    if isinstance(items, str):
        items = [{"role": "user", "content": items}]
    if not isinstance(items, list) or not items:
        raise BadRequest(
            f"The field input must be text, or a list of items. {_EXAMPLE}"
        )
    _check_number(items)
    reader = _ItemReader(known, text_only, accepts_files)
    for at, item in enumerate(items):
        reader.read(item, f"input[{at}]")
    return reader.messages, tuple(sorted(reader.ignored))


def _check_number(items: list[Any]) -> None:
    if len(items) > MOST_ITEMS:
        raise BadRequest(
            f"There are more than {MOST_ITEMS} items: send the newest ones."
        )


class _ItemReader:
    """Collects the messages of items, in their order."""

    def __init__(
        self, known: Mapping[str, StoredTurn], text_only: bool, accepts_files: bool
    ) -> None:
        self.messages: list[Payload] = []
        self.ignored: set[str] = set()
        self._known = known
        self._referenced: set[str] = set()
        self._text_only = text_only
        self._accepts_files = accepts_files
        self._why = ONLY_FILES if accepts_files else NOT_SENT
        self._readers: dict[str, Callable[[Item, str], None]] = {
            "message": self._message,
            "function_call": self._call,
            "function_call_output": self._call_output,
            "reasoning": self._reasoning,
            "item_reference": self._reference,
        }

    def read(self, item: Any, place: str) -> None:
        kind = _kind(item)
        if kind is None:
            raise BadRequest(
                f"{place} must be an object with a type or a role. {_EXAMPLE}"
            )
        if kind not in self._readers:
            raise Unsupported(
                f"{place} is of the type {kind[:80]}, which a chat completion has not: "
                "leave such items out.",
                parameter=place,
                quoted=kind[:80],
            )
        self._readers[kind](item, place)

    def _message(self, item: Item, place: str) -> None:
        role = item.get("role")
        if role not in _ROLES:
            raise BadRequest(f"{place}.role must be one of {', '.join(_ROLES)}.")
        content = item.get("content")
        if isinstance(content, str):
            text = _text(item, "content", place)
            content = [{"type": "input_text", "text": text}]
        if not isinstance(content, list) or not content:
            raise BadRequest(f"{place}.content must be text, or a list of parts.")
        parts = [
            self._part(part, f"{place}.content[{at}]", role)
            for at, part in enumerate(content)
        ]
        if role == "assistant":
            self._assistant(_texts(parts, "text"), _texts(parts, "refusal"))
        else:
            self.messages.append({"role": role, "content": _content(parts)})

    def _assistant(self, text: str, refusal: str) -> None:
        """What an assistant said. After its calls only their results may come, so a text goes before them."""
        last = self.messages[-1] if self.messages else {}
        if not last.get("tool_calls"):
            last = {"role": "assistant", "content": ""}
            self.messages.append(last)
        last["content"] = "\n".join(filter(None, (last["content"], text)))
        if refusal:
            last["refusal"] = refusal

    def _part(self, part: Any, place: str, role: str = "tool") -> Payload:
        kind = _kind(part)
        if kind in _TEXTS:
            return {"type": "text", "text": _text(part, "text", place)}
        if kind == "refusal":
            name = "text" if self._text_only else "refusal"
            return {"type": name, name: _text(part, "refusal", place)}
        if kind is None:
            raise BadRequest(
                f'{place} must be an object with a type, as in {{"type": '
                '"input_text", "text": "hello"}.'
            )
        takes_files = self._accepts_files and role == "user"
        if self._text_only and not takes_files:
            raise Unsupported(f"{place} is no text. {self._why}", parameter=place)
        found = _media(part, kind, place)
        if self._text_only and found["type"] not in FILE_PARTS:
            raise Unsupported(f"{place} is no text. {self._why}", parameter=place)
        return found

    def _call(self, item: Item, place: str) -> None:
        self._refuse_tools(place)
        call = ToolCall(
            0,
            _text(item, "call_id", place),
            _text(item, "name", place),
            _text(item, "arguments", place),
        )
        self._add_calls([call.as_sent])

    def _add_calls(self, calls: Iterable[Payload]) -> None:
        """Calls belong to the assistant's message before them."""
        if not self.messages or self.messages[-1]["role"] != "assistant":
            self.messages.append({"role": "assistant", "content": None})
        self.messages[-1].setdefault("tool_calls", []).extend(calls)

    def _call_output(self, item: Item, place: str) -> None:
        self._refuse_tools(place)
        output = item.get("output")
        if isinstance(output, list):
            parts = [
                self._part(part, f"{place}.output[{at}]")
                for at, part in enumerate(output)
            ]
            if any(part["type"] != "text" for part in parts):
                raise Unsupported(
                    f"{place}.output is no text, which a tool's result is in a chat "
                    "completion: send what it is about as a message of the user.",
                    parameter=place,
                )
            output = _texts(parts, "text")
        if not isinstance(output, str):
            raise BadRequest(f"{place}.output must be text, or a list of parts.")
        call_id = _text(item, "call_id", place)
        self.messages.append(
            {"role": "tool", "tool_call_id": call_id, "content": output}
        )

    def _refuse_tools(self, place: str) -> None:
        if self._text_only:
            raise Unsupported(f"{place} is no text. {self._why}", parameter=place)

    def _reasoning(self, item: Item, place: str) -> None:
        self.ignored.add("input.reasoning")

    def _reference(self, item: Item, place: str) -> None:
        """An item of a stored answer, in the place of the item itself."""
        name = item.get("id")
        found = _ITEM_ID.fullmatch(name) if isinstance(name, str) else None
        if found is None:
            raise _not_stored(place)
        turn = self._known.get(str(uuid.UUID(found[2])))
        if turn is None or turn.answer.status != "whole":
            raise _not_stored(place)
        answer = assistant_payload(turn.answer)
        match found[1]:
            case "rs":
                self._reasoning(item, place)
            case "fc":
                self._referenced_call(answer, int(found[3] or 0), place)
            case _:
                self._referenced_message(answer, found[2])

    def _referenced_call(self, answer: Payload, at: int, place: str) -> None:
        self._refuse_tools(place)
        calls = _calls_of(answer)[at : at + 1]
        if not calls:
            raise _not_stored(place)
        self._add_calls(calls)

    def _referenced_message(self, answer: Payload, key: str) -> None:
        """A stored answer's text, once: a stream that alternates has several messages of it."""
        if key in self._referenced:
            return
        self._referenced.add(key)
        refusal = _string(answer.get("refusal"))
        text = _content_text(answer.get("content"))
        if self._text_only:
            text, refusal = text or refusal, ""
        self._assistant(text, refusal)


def _not_stored(place: str) -> BadRequest:
    return BadRequest(
        f"{place} refers to an item that is not stored here, or not any more: send the "
        "item itself."
    )


def assistant_payload(answer: Node) -> Payload:
    """A stored answer as a message of chat completions."""
    return dict(Message("assistant", answer.text, answer.payloads).as_sent[0])


def stored_reply(answer: Node) -> Reply:
    """A stored answer as it was when it ended."""
    payload = assistant_payload(answer)
    calls = [_call_of(call) for call in _calls_of(payload)]
    return Reply(
        _content_text(payload.get("content")),
        "",
        "",
        model=answer.model,
        finish_reason=cast(FinishReason, answer.finish_reason or "stop"),
        reasoning=answer.reasoning or "",
        refusal=_string(payload.get("refusal")),
        tool_calls=tuple(calls),
        usage=answer.usage,
    )


def input_items(turn: StoredTurn) -> list[Payload]:
    """What a stored answer was asked, as items, in their order."""
    items: list[Payload] = []
    for node in (*turn.preamble, turn.question):
        message = Message(node.role, node.text, node.payloads)
        for at, payload in enumerate(message.as_sent):
            items += _input_items(payload, f"{uuid.UUID(node.id).hex}_{at}")
    return items


def _input_items(payload: Mapping[str, Any], key: str) -> list[Payload]:
    content = payload.get("content")
    if payload["role"] in TOOL_ROLES:
        return [
            {
                "id": f"fco_{key}",
                "type": "function_call_output",
                "call_id": payload.get("tool_call_id") or "",
                "output": _content_text(content),
                "status": "completed",
            }
        ]
    if payload["role"] == "assistant":
        return output_items(key, "", payload, "completed")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return [
        {
            "id": f"msg_{key}",
            "type": "message",
            "role": payload["role"],
            "content": [_input_part(part) for part in parts or ()],
            "status": "completed",
        }
    ]


def _input_part(part: Mapping[str, Any]) -> Payload:
    """A part of a message as a Responses request has it; of unknown ones as they are."""
    kind = part.get("type")
    if kind == "text":
        return {"type": "input_text", "text": part.get("text")}
    if kind == "image_url":
        image = part.get("image_url")
        fields = image if isinstance(image, Mapping) else {"url": image}
        detail = fields.get("detail") or "auto"
        return {"type": "input_image", "image_url": fields.get("url"), "detail": detail}
    if kind == "file" and isinstance(part.get("file"), Mapping):
        return {"type": "input_file", **part["file"]}
    return dict(part)


def output_items(
    key: str, reasoning: str, message: Mapping[str, Any], status: str
) -> list[Payload]:
    """An answer as items, the last of which has the status; those before it are complete.

    `key`: the hexadecimal id that theirs have. `message`: as chat completions have it.
    """
    items = [reasoning_item(f"rs_{key}", reasoning)] if reasoning else []
    calls = _calls_of(message)
    text = _content_text(message.get("content"))
    refusal = _string(message.get("refusal"))
    if text or refusal or not calls:
        parts = [text_part(text)] if text or not refusal else []
        if refusal:
            parts.append(refusal_part(refusal))
        items.append(message_item(f"msg_{key}", parts, "completed"))
    items += [_call_item(call, f"fc_{key}_{at}") for at, call in enumerate(calls)]
    items[-1]["status"] = status
    return items


def _call_item(call: Mapping[str, Any], name: str) -> Payload:
    return call_item(name, _call_of(call), "completed")


def _call_of(call: Mapping[str, Any]) -> ToolCall:
    """A call of a stored message, which may be as its caller sent it."""
    function = call.get("function")
    fields = function if isinstance(function, Mapping) else {}
    known = (call.get("id"), fields.get("name"), fields.get("arguments"))
    return ToolCall(0, *map(_string, known))


def _calls_of(message: Mapping[str, Any]) -> list[Any]:
    """The calls of a message, which may be as its caller sent it."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return []
    return [call for call in calls if isinstance(call, Mapping)]


def _string(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _content_text(content: Any) -> str:
    """The text of a message's content."""
    if isinstance(content, str):
        return content
    return _texts(content if isinstance(content, list) else (), "text")


def message_item(name: str, parts: list[Payload], status: str) -> Payload:
    return {
        "id": name,
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": parts,
    }


def reasoning_item(name: str, text: str) -> Payload:
    summary = [{"type": "summary_text", "text": text}] if text else []
    return {"id": name, "type": "reasoning", "summary": summary}


def call_item(name: str, call: ToolCall, status: str) -> Payload:
    """A call; one without an id gets one, because its result must name it."""
    return {
        "id": name,
        "type": "function_call",
        "call_id": call.id or f"call_{name}",
        "name": call.name,
        "arguments": call.arguments,
        "status": status,
    }


def text_part(text: str) -> Payload:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def refusal_part(text: str) -> Payload:
    return {"type": "refusal", "refusal": text}


def _kind(item: Any) -> str | None:
    """The type of an item or a part; a message may leave it out."""
    if not isinstance(item, Mapping):
        return None
    kind = item.get("type")
    if kind is None and "role" in item:
        return "message"
    return kind if isinstance(kind, str) else None


def _media(part: Mapping[str, Any], kind: str, place: str) -> Payload:
    """A part that is no text, as chat completions have it."""
    if kind == "input_image" and isinstance(part.get("image_url"), str):
        image = {"url": part["image_url"]}
        if part.get("detail"):
            image["detail"] = part["detail"]
        return {"type": "image_url", "image_url": image}
    has_file = bool(part.get("file_data") or part.get("file_id"))
    if kind == "input_file" and has_file and not part.get("file_url"):
        names = ("file_data", "file_id", "filename")
        return {"type": "file", "file": {n: part[n] for n in names if part.get(n)}}
    if kind == "input_audio":
        return {"type": "input_audio", "input_audio": part.get("input_audio")}
    raise Unsupported(
        f"{place} ({kind[:80]}) cannot be sent as a part of a chat completion: send an "
        "image as a URL or data URL in image_url, a file as file_data.",
        parameter=place,
        quoted=kind[:80],
    )


def _content(parts: list[Payload]) -> str | list[Payload]:
    """Parts that are all text as one text: not every server takes a list."""
    if all(part["type"] == "text" for part in parts):
        return _texts(parts, "text")
    return parts


def _texts(parts: Any, name: str) -> str:
    found = (part.get(name) for part in parts or () if isinstance(part, Mapping))
    return "\n".join(text for text in found if isinstance(text, str))


def _text(fields: Mapping[str, Any], name: str, place: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise BadRequest(f"{place}.{name} must be text.")
    if "\0" in value:
        raise BadRequest(f"{place}.{name} holds a NUL character: leave it out.")
    return value
