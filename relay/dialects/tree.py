"""Conversations as ChatGPT's own API prints them: an item of the list, and the tree of one."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import orjson

from relay.domain import ROOT, Conversation, Node

_HEADINGS = {"user": "You", "assistant": "Answer", "system": "System"}
_STATUS = {
    "whole": "finished_successfully",
    "open": "in_progress",
    "broken": "finished_partial_completion",
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
    }


def tree(conversation: Conversation | dict[str, Any]) -> dict[str, Any]:
    """One conversation with all its messages; times are seconds since 1970 here."""
    if isinstance(conversation, dict):
        return conversation
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
    roots = [node.id for node in conversation.nodes if node.role == "system"]
    return {
        "title": conversation.title,
        "create_time": conversation.created,
        "update_time": conversation.updated,
        "mapping": mapping,
        "moderation_results": [],
        "current_node": conversation.newest or (roots[0] if roots else ROOT),
        "conversation_id": conversation.id,
        "is_archived": False,
    }


def lines(conversation: Conversation | dict[str, Any]) -> bytes:
    """One conversation as JSON lines: a message each, all branches, in the order in which they were said."""
    return b"".join(
        orjson.dumps(said, option=orjson.OPT_APPEND_NEWLINE)
        for said in _said(conversation)
    )


def markdown(conversation: Conversation | dict[str, Any]) -> str:
    """One conversation to be read: its title, and what was said from the beginning to the newest answer."""
    by_id = {said["id"]: said for said in _said(conversation)}
    title, newest = _headline(conversation)
    way: list[dict[str, Any]] = []
    while newest in by_id and len(way) <= len(by_id):
        way.append(by_id[newest])
        newest = by_id[newest]["parent"]
    parts = [f"# {title}"]
    for said in reversed([said for said in way if said["text"].strip()]):
        broken = " (broken)" if said["status"] == "broken" else ""
        parts.append(
            f"## {_HEADINGS.get(said['role'], said['role'].capitalize())}{broken}\n\n{said['text'].strip()}"
        )
    return "\n\n".join(parts) + "\n"


def _headline(conversation: Conversation | dict[str, Any]) -> tuple[str, str | None]:
    """Title and newest message. Where no answer is whole yet, the last thing said counts as newest."""
    if isinstance(conversation, dict):
        return str(conversation.get("title") or "New chat"), conversation.get(
            "current_node"
        )
    last = conversation.nodes[-1].id if conversation.nodes else None
    return conversation.title, conversation.newest or last


def _said(conversation: Conversation | dict[str, Any]) -> list[dict[str, Any]]:
    if isinstance(conversation, Conversation):
        return [
            {
                "id": node.id,
                "parent": node.parent,
                "role": node.role,
                "text": node.text,
                "status": node.status,
                "created": node.created,
                "model": node.model,
            }
            for node in conversation.nodes
        ]
    mapping = conversation.get("mapping")
    nodes = (
        [node for node in mapping.values() if isinstance(node, dict)]
        if isinstance(mapping, dict)
        else []
    )
    return [said for node in nodes if (said := _of_chatgpt(node)) is not None]


def _of_chatgpt(node: dict[str, Any]) -> dict[str, Any] | None:
    """A node of ChatGPT's own tree; those without words stay, for others stand on them."""
    message = node.get("message")
    if not isinstance(message, dict):
        return None
    content, author, metadata = (
        message.get(name) or {} for name in ("content", "author", "metadata")
    )
    status = message.get("status")
    parts = content.get("parts") if isinstance(content, dict) else None
    text = "".join(part for part in parts or [] if isinstance(part, str))
    return {
        "id": node.get("id"),
        "parent": node.get("parent"),
        "role": author.get("role", "") if isinstance(author, dict) else "",
        "text": text,
        "status": {"finished_successfully": "whole", None: "whole"}.get(status, status),
        "created": message.get("create_time"),
        "model": metadata.get("model_slug") if isinstance(metadata, dict) else None,
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
        "content": {"content_type": "text", "parts": [node.text]},
        "status": _STATUS[node.status],
        "end_turn": whole if node.role == "assistant" else None,
        "metadata": metadata,
        "recipient": "all",
    }


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat()
