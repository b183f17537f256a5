"""Requests of the ChatGPT web API and of Pandora's talk as asks, and its lists."""

from __future__ import annotations

from typing import Any

import pytest

from relay.dialects import talk
from relay.dialects.chatgpt import listing
from relay.dialects.chatgpt.ask import GO_ON, Request, read_request
from relay.domain import ROOT, Ask, Caller, Conversation, Message, Model, Node
from relay.errors import BadRequest, NoConversation, Unsupported

ME = Caller("owner", True)
CONVERSATION = "6d0c0000-0000-4000-8000-000000000001"
RANDOM = "0b0d3f1e-1111-4222-8333-444455556666"


def message(text: str = "Hi", role: str | None = "user", **more: Any) -> dict[str, Any]:
    author = {"author": {"role": role}} if role else {}
    content = {"content_type": "text", "parts": [text]}
    return {"id": RANDOM, **author, "content": content, **more}


def body(**fields: Any) -> dict[str, Any]:
    first = {
        "action": "next",
        "messages": [message()],
        "parent_message_id": RANDOM,
        "model": "gpt-4",
    }
    return first | fields


def ask(**fields: Any) -> Ask:
    return read_request(body(**fields)).ask(ME, None)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"conversation_id": ""},
        {"conversation_id": None},
        {"conversation_id": "", "parent_message_id": ""},
        {"messages": [message(role=None)]},
        {"messages": [message(role=None) | {"role": "user"}]},
        {"parent_message_id": "what no id looks like"},
        {"supported_encodings": []},
        {"timezone_offset_min": 0, "plugin_ids": [], "arkose_token": None},
    ],
)
def test_a_first_question_needs_no_parent_that_is_known(fields: dict[str, Any]) -> None:
    asked = ask(**fields)
    assert (asked.prompt, asked.conversation_id, asked.parent_id) == ("Hi", None, None)
    assert asked.model == "gpt-4" and asked.keep and asked.ignored == ()


def test_a_following_question_names_its_place() -> None:
    asked = ask(conversation_id=CONVERSATION)
    assert (asked.conversation_id, asked.parent_id) == (CONVERSATION, RANDOM)


def test_what_means_nothing_here_is_named() -> None:
    mode = {"kind": "primary_assistant"}
    asked = ask(timezone_offset_min=-480, conversation_mode=mode, auto_continue=True)
    names = ("auto_continue", "conversation_mode", "timezone_offset_min")
    assert asked.ignored == names


def test_earlier_messages_begin_a_new_conversation_and_no_other() -> None:
    sent = [message("Be brief.", "critic"), message("One"), message("1", "assistant")]
    asked = ask(messages=[*sent, message("Two")])
    assert asked.prompt == "Two"
    assert asked.preamble == (
        Message("system", "Be brief."),
        Message("user", "One"),
        Message("assistant", "1"),
    )
    asked = ask(messages=[*sent, message("Two")], conversation_id=CONVERSATION)
    assert asked.preamble == () and asked.ignored == ("messages[:-1]",)


def test_the_encoding_is_the_one_that_is_asked_for() -> None:
    assert read_request(body(supported_encodings=["v1"])).edits
    assert not read_request(body(supported_encodings=["v2"])).edits
    assert not read_request(body()).edits


def test_what_is_not_kept_cannot_go_on() -> None:
    assert not ask(history_and_training_disabled=True).keep
    with pytest.raises(NoConversation, match="history_and_training_disabled"):
        ask(history_and_training_disabled=True, conversation_id=CONVERSATION)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"action": "delete"}, "action"),
        ({"messages": []}, "empty"),
        ({"messages": "Hi"}, "list"),
        ({"messages": None}, "list"),
        ({"messages": ["Hi"]}, r"messages\[0\]"),
        ({"messages": [message("  ")]}, "empty"),
        ({"messages": [message("a\0b")]}, "NUL"),
        ({"messages": [message(role="assistant")]}, "role must be user"),
        ({"messages": [message(role="tool")]}, "role must be one of"),
        ({"messages": [message(content="Hi")]}, "parts"),
        ({"messages": [message(content={"parts": "Hi"})]}, "parts"),
        ({"conversation_id": "no id/"}, "no id"),
        ({"conversation_id": CONVERSATION, "parent_message_id": "no id/"}, "no id"),
        ({"history_and_training_disabled": "perhaps"}, "true or false"),
        ({"action": "continue"}, "nothing|no answer"),
        ({"action": "variant", "messages": None}, "empty"),
        ({"model": 4}, "model"),
    ],
)
def test_what_cannot_be_asked_is_named(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        ask(**fields)


def test_images_are_refused_and_not_left_out() -> None:
    image = {
        "content_type": "multimodal_text",
        "parts": [{"asset_pointer": "x"}, "What?"],
    }
    with pytest.raises(Unsupported) as caught:
        ask(messages=[message(content=image)])
    assert caught.value.parameter == "messages[0].content"


def test_going_on_is_a_question_of_ours() -> None:
    asked = ask(action="continue", conversation_id=CONVERSATION, messages=None)
    assert (asked.prompt, asked.parent_id) == (GO_ON, RANDOM)


def node(name: str, parent: str | None, role: str, text: str = "") -> Node:
    return Node(name, parent, role, text or name, "whole", 0)


TREE = Conversation(
    CONVERSATION,
    "owner",
    "offline",
    None,
    "Title",
    newest="a2",
    created=0,
    updated=0,
    nodes=(
        node("s", None, "system"),
        node("q0", None, "user", "First"),
        node("a0", "q0", "assistant"),
        node("q1", "s", "user", "Hi"),
        node("a1", "q1", "assistant"),
        node("q2", "a1", "user", "More"),
        node("a2", "q2", "assistant"),
    ),
)


@pytest.mark.parametrize(
    ("parent", "sent", "prompt", "place"),
    [
        pytest.param("a2", "", "More", "a1", id="the answer to be replaced"),
        pytest.param("", "", "More", "a1", id="no parent: the newest answer"),
        pytest.param("a1", "", "Hi", "s", id="an earlier answer"),
        pytest.param("a0", "", "First", ROOT, id="an answer to the first question"),
        pytest.param("q2", "", "More", "a1", id="the question's own id"),
        pytest.param("q2", "Less", "Less", "a1", id="the question, edited"),
        pytest.param("a1", "More", "More", "a1", id="what the question follows"),
        pytest.param("a1", "Less", "Less", "a1", id="what an edited question follows"),
        pytest.param("a1", "Hi", "Hi", "s", id="the answer, with its question again"),
        pytest.param(RANDOM, "First", "First", ROOT, id="the first one's own parent"),
        pytest.param("", "Less", "Less", None, id="an edited one, no parent"),
    ],
)
def test_a_question_is_asked_again_at_its_own_place(
    parent: str, sent: str, prompt: str, place: str | None
) -> None:
    payload = body(action="variant", parent_message_id=parent)
    payload |= {"conversation_id": CONVERSATION, "messages": None}
    if sent:
        payload["messages"] = [message(sent)]
    request = read_request(payload)
    assert request.needs_question
    asked = request.asking_again(TREE).ask(ME, None)
    assert (asked.prompt, asked.parent_id) == (prompt, place)


@pytest.mark.parametrize(
    ("parent", "sent"),
    [(RANDOM, ""), (RANDOM, "More"), ("s", "")],
)
def test_where_no_question_is_none_is_asked_again(parent: str, sent: str) -> None:
    request = Request("variant", sent, (), CONVERSATION, parent)
    with pytest.raises(NoConversation, match="no question"):
        request.asking_again(TREE)


def test_chatgpts_own_tree_is_read_too() -> None:
    texts = {"q": ("user", "Hi", "root"), "a": ("assistant", "Hello", "q")}
    mapping: dict[str, Any] = {"root": {"id": "root", "message": None, "parent": None}}
    for name, (role, text, parent) in texts.items():
        said = message(text, role, id=name)
        mapping[name] = {"id": name, "message": said, "parent": parent}
    known = {"mapping": mapping, "current_node": "a"}
    request = Request("variant", "", (), CONVERSATION, "a").asking_again(known)
    assert (request.prompt, request.parent_id) == ("Hi", "root")
    sent = Request("variant", "Hi", (), CONVERSATION, RANDOM)
    assert sent.asking_again(known) == sent


TALK = {
    "prompt": "Hi",
    "model": "text-davinci-002-render-sha",
    "message_id": RANDOM,
    "parent_message_id": RANDOM,
    "timezone_offset_min": -480,
}


def test_talk_is_one_question_in_json() -> None:
    request = talk.read_request(TALK | {"conversation_id": "", "stream": False})
    asked = request.ask(ME, None)
    assert (asked.prompt, asked.conversation_id, asked.parent_id) == ("Hi", None, None)
    assert asked.ignored == ("message_id", "timezone_offset_min")
    request = talk.read_request(TALK | {"conversation_id": CONVERSATION})
    assert (request.conversation_id, request.parent_id) == (CONVERSATION, RANDOM)


def test_talk_streams_unless_it_says_otherwise() -> None:
    assert talk.streams({}) and talk.streams({"stream": None})
    assert talk.streams({"stream": True}) and not talk.streams({"stream": False})


def test_talk_asks_again_and_goes_on_in_a_conversation_alone() -> None:
    place = {"conversation_id": CONVERSATION}
    again = talk.read_request(TALK | place, "variant")
    assert again.needs_question and again.prompt == "Hi"
    assert talk.read_request(place, "continue").ask(ME, None).prompt == GO_ON
    for action in ("variant", "continue"):
        with pytest.raises(BadRequest, match="conversation_id"):
            talk.read_request(TALK, action)  # type: ignore[arg-type]
    with pytest.raises(BadRequest, match="empty"):
        talk.read_request({})


def test_a_page_says_whether_another_one_follows() -> None:
    item: dict[str, Any] = {"id": "c", "title": "t"}
    page = listing.conversations([item] * 3, 4, 2, is_incomplete=True)
    assert page == {
        "items": [item] * 2,
        "total": 7,
        "limit": 2,
        "offset": 4,
        "has_missing_conversations": True,
    }
    assert listing.conversations([item], 4, 2, is_incomplete=False)["total"] == 5


def test_a_page_is_as_large_as_chatgpts_at_most() -> None:
    assert listing.limit_of(None) == 20
    assert listing.limit_of("100") == 100
    for wrong in ("101", "5000", "-1", "many"):
        with pytest.raises(BadRequest, match="limit"):
            listing.limit_of(wrong)


def test_models_have_slugs() -> None:
    listed = listing.models([Model("tiny-1", "Tiny", "openai")])
    assert listed["models"][0]["slug"] == "tiny-1"
    assert listed["models"][0]["title"] == "Tiny"
    assert listed["categories"][0]["default_model"] == "tiny-1"
    assert listing.models([])["models"] == listing.models([])["categories"] == []
