from __future__ import annotations

from dataclasses import replace

from relay.dialects import tree
from relay.domain import ROOT, Conversation, Node

NODES = (
    Node("s", None, "system", "Be kind.", "whole", 1.0),
    Node("q1", "s", "user", "Hi", "whole", 1.0),
    Node("a1", "q1", "assistant", "Hello", "whole", 1.0, "m", "stop"),
    Node("q2", "a1", "user", "More", "whole", 2.0),
    Node("a2", "q2", "assistant", "Half an", "broken", 2.0, "m", "upstream_cut"),
    Node("q3", "a1", "user", "Other", "whole", 3.0),
    Node("a3", "q3", "assistant", "", "open", 3.0),
)
CONVERSATION = Conversation(
    "c", "owner", "offline", None, "Hi", "a1", 1683782780.46, 1683782790.5, nodes=NODES
)


def test_an_item_of_the_list() -> None:
    item = tree.item(CONVERSATION)
    assert item["create_time"] == "2023-05-11T05:26:20.460000+00:00"
    assert (item["id"], item["title"], item["mapping"], item["current_node"]) == (
        "c",
        "Hi",
        None,
        None,
    )


def test_the_tree_can_be_walked_from_the_current_node_to_the_root() -> None:
    payload = tree.tree(CONVERSATION)
    path, node = [], payload["current_node"]
    while node:
        path.append(node)
        node = payload["mapping"][node]["parent"]
    assert path == ["a1", "q1", "s", ROOT]
    assert payload["mapping"]["a1"]["children"] == ["q2", "q3"]
    assert (payload["create_time"], payload["conversation_id"]) == (1683782780.46, "c")


def test_a_message_says_whether_it_is_whole() -> None:
    mapping = tree.tree(CONVERSATION)["mapping"]
    statuses = {name: mapping[name]["message"]["status"] for name in ("a1", "a2", "a3")}
    assert statuses == {
        "a1": "finished_successfully",
        "a2": "finished_partial_completion",
        "a3": "in_progress",
    }
    assert mapping["a2"]["message"]["metadata"]["error"] == "upstream_cut"
    assert mapping["a1"]["message"]["content"] == {
        "content_type": "text",
        "parts": ["Hello"],
    }
    assert (
        mapping["a1"]["message"]["end_turn"]
        and not mapping["a2"]["message"]["end_turn"]
    )


def test_a_conversation_without_any_whole_answer() -> None:
    empty = Conversation(
        "c", "owner", "offline", None, "Hi", None, 1.0, 1.0, nodes=NODES[1:2]
    )
    assert tree.tree(replace(CONVERSATION, newest=None))["current_node"] == "s"
    broken = replace(empty, nodes=(Node("q", None, "user", "Hi", "whole", 1.0),))
    assert tree.tree(broken)["current_node"] == ROOT
