"""Conversations as ChatGPT's own API prints them: an item of the list, and the tree of one."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from relay.domain import ROOT, Conversation, Node

_STATUS = {"whole": "finished_successfully", "open": "in_progress", "broken": "finished_partial_completion"}


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
    mapping: dict[str, dict[str, Any]] = {ROOT: {"id": ROOT, "message": None, "parent": None, "children": []}}
    for node in conversation.nodes:
        mapping[node.id] = {"id": node.id, "message": _message(node), "parent": node.parent or ROOT, "children": []}
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


def _message(node: Node) -> dict[str, Any]:
    whole = node.status == "whole"
    metadata: dict[str, Any] = {}
    if node.role == "assistant":
        metadata = {"model_slug": node.model, "finish_details": {"type": node.finish_reason} if whole else None}
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
