"""Conversations as ChatGPT's own API prints them: an item of the list, and the tree of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any, TypeAlias

import orjson

from relay import shown
from relay.domain import ROOT, SYSTEM_ROLES, Conversation, Node, RemoteFile
from relay.shown import part_of

#: where a file of ChatGPT's can be had
Address: TypeAlias = Callable[[RemoteFile], str]

_HEADINGS = {"user": "You", "assistant": "Answer", "system": "System"}
_STATUS = {
    "whole": "finished_successfully",
    "open": "in_progress",
    "broken": "finished_partial_completion",
    "deleted": "finished_partial_completion",
}


def item(conversation: Conversation | dict[str, Any]) -> dict[str, Any]:
    """One conversation in a list; times are ISO 8601 here. What comes from ChatGPT is passed on as it is."""
    if isinstance(conversation, dict):
        return conversation
    return {
        "id": conversation.id,
        "title": conversation.title,
        "create_time": _iso(conversation.created),
        "update_time": _iso(conversation.updated),
        "mapping": None,
        "current_node": None,
        "name": conversation.name,
    }


def no_address(file: RemoteFile) -> str:
    """A file by its own name, where there is no address of it."""
    return file.pointer


def tree(
    conversation: Conversation | dict[str, Any], address: Address = no_address
) -> dict[str, Any]:
    """One conversation with all its messages; times are seconds since 1970 here.

    What comes from ChatGPT stays as it is; `download_links` has the addresses of its files by their
    pointers, where it has any.
    """
    if isinstance(conversation, dict):
        links = {file.pointer: address(file) for file in _files(conversation)}
        return {**conversation, "download_links": links} if links else conversation
    mapping = _mapping(conversation)
    roots = [node.id for node in conversation.nodes if node.role in SYSTEM_ROLES]
    return {
        "title": conversation.title,
        "create_time": conversation.created,
        "update_time": conversation.updated,
        "mapping": mapping,
        "moderation_results": [],
        "current_node": conversation.newest or (roots[0] if roots else ROOT),
        "conversation_id": conversation.id,
        "is_archived": False,
        "name": conversation.name,
    }


def _mapping(conversation: Conversation) -> dict[str, dict[str, Any]]:
    """The nodes by their ids, below one root."""
    mapping: dict[str, dict[str, Any]] = {
        ROOT: {"id": ROOT, "message": None, "parent": None, "children": []}
    }
    for node in conversation.nodes:
        mapping[node.id] = {
            "id": node.id,
            "message": _message(node),
            "parent": node.parent or ROOT,
            "children": [],
        }
    for node in conversation.nodes:
        mapping[node.parent or ROOT]["children"].append(node.id)
    return mapping


def _nodes(conversation: dict[str, Any]) -> list[dict[str, Any]]:
    """The nodes of ChatGPT's own tree that have a message."""
    nodes = part_of(conversation, "mapping").values()
    objects = [node for node in nodes if isinstance(node, dict)]
    return [node for node in objects if isinstance(node.get("message"), dict)]


def _files(conversation: dict[str, Any]) -> list[RemoteFile]:
    messages = [node["message"] for node in _nodes(conversation)]
    return [file for message in messages for file in shown.files_of(message)]


def lines(
    conversation: Conversation | dict[str, Any], address: Address = no_address
) -> bytes:
    """One conversation as JSON lines: a message each, all branches, in the order of their times."""
    return b"".join(
        orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE)
        for entry in entries(conversation, address)
    )


def markdown(
    conversation: Conversation | dict[str, Any], address: Address = no_address
) -> str:
    """One conversation to be read: its title, and the messages from the root to the newest answer."""
    title, newest = _headline(conversation)
    parts = [f"# {title}"]
    for entry in _path(entries(conversation, address), newest):
        text = entry["text"].strip()
        if text:
            parts.append(f"{_heading(entry)}\n\n{text}")
    return "\n\n".join(parts) + "\n"


def _path(entries: list[dict[str, Any]], newest: str | None) -> list[dict[str, Any]]:
    """The entries from the root to the newest; a circle of parents ends it."""
    by_id = {entry["id"]: entry for entry in entries}
    path: list[dict[str, Any]] = []
    while newest in by_id and len(path) <= len(by_id):
        path.append(by_id[newest])
        newest = by_id[newest]["parent"]
    return path[::-1]


def _heading(entry: dict[str, Any]) -> str:
    role = entry["role"]
    broken = " (broken)" if entry["status"] == "broken" else ""
    return f"## {_HEADINGS.get(role, role.capitalize())}{broken}"


def newest_of(conversation: Conversation | dict[str, Any]) -> str | None:
    """The message that the conversation's next question follows."""
    if isinstance(conversation, dict):
        return conversation.get("current_node")
    return conversation.newest


def _headline(conversation: Conversation | dict[str, Any]) -> tuple[str, str | None]:
    """Title and newest message; where no answer is whole yet, the last message."""
    if isinstance(conversation, dict):
        title = str(conversation.get("title") or "New chat")
        return title, conversation.get("current_node")
    last = conversation.nodes[-1].id if conversation.nodes else None
    return conversation.title, conversation.newest or last


def entries(
    conversation: Conversation | dict[str, Any], address: Address = no_address
) -> list[dict[str, Any]]:
    """The messages with what exports show of them."""
    if isinstance(conversation, Conversation):
        return [_entry(node) for node in conversation.nodes]
    return [_remote_entry(node, address) for node in _nodes(conversation)]


def _entry(node: Node) -> dict[str, Any]:
    return {
        "id": node.id,
        "parent": node.parent,
        "role": node.role,
        "text": "\n\n".join(_parts(node)),
        "status": node.status,
        "created": node.created,
        "model": node.model,
    }


def _remote_entry(node: dict[str, Any], address: Address) -> dict[str, Any]:
    """A node of ChatGPT's own tree; one without text stays, because others hang on it."""
    message = node["message"]
    status = message.get("status")
    return {
        "id": node.get("id"),
        "parent": node.get("parent"),
        "role": part_of(message, "author").get("role", ""),
        "text": shown.markdown(message, address),
        "status": {"finished_successfully": "whole", None: "whole"}.get(status, status),
        "created": message.get("create_time"),
        "model": part_of(message, "metadata").get("model_slug"),
    }


def _message(node: Node) -> dict[str, Any]:
    whole = node.status == "whole"
    metadata: dict[str, Any] = {}
    if node.role == "assistant":
        metadata = {
            "model_slug": node.model,
            "finish_details": {"type": node.finish_reason} if whole else None,
        }
        if node.status == "broken":
            metadata["error"] = node.finish_reason or "interrupted"
    return {
        "id": node.id,
        "author": {"role": node.role, "name": None, "metadata": {}},
        "create_time": node.created,
        "content": {"content_type": "text", "parts": _parts(node) or [""]},
        "status": _STATUS[node.status],
        "end_turn": whole if node.role == "assistant" else None,
        "metadata": metadata,
        "recipient": "all",
    }


def _parts(node: Node) -> list[str]:
    """What a message says: its text, and what else it has, as far as words can say that."""
    parts = [node.text] if node.text else []
    for payload in node.payloads:
        parts += _described(payload)
    return parts


def _described(payload: Mapping[str, Any]) -> list[str]:
    """The images, files and calls of a message, in brackets, and its refusal."""
    content = payload.get("content")
    parts = content if isinstance(content, list) else []
    described = [_described_part(part) for part in parts if isinstance(part, Mapping)]
    calls = payload.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        described.append(_described_call(call))
    refusal = payload.get("refusal")
    if isinstance(refusal, str) and refusal not in ("", content):
        described.append(refusal)
    return [text for text in described if text]


def _described_call(call: Any) -> str:
    """A call; "" for what is none, as a caller may have sent it."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        return ""
    return f"[calls {function.get('name')}({function.get('arguments')})]"


def _described_part(part: Mapping[str, Any]) -> str:
    """A part that is no text; "" for one that is."""
    kind = str(part.get("type", ""))
    if kind in ("text", "refusal"):
        return ""
    file = part.get("file")
    name = file.get("filename") if isinstance(file, Mapping) else part.get("filename")
    return f"[{kind.removesuffix('_url').removeprefix('input_')}{f' {name}' if name else ''}]"


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat()
