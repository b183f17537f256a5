"""What answers of ChatGPT's show beside their text: images, links to files, sources, and code apart."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay import shown
from relay.domain import (
    Delta,
    Event,
    FileLink,
    Finished,
    Reasoning,
    RemoteFile,
    Restarted,
)
from relay.errors import UpstreamCut, UpstreamFailed
from relay.upstreams.chatgpt_web.classic import Continue, Poll, WebDecoder
from relay.upstreams.chatgpt_web.procedure import complete_answers
from tests.chatgpt_backend import classic, delta
from tests.upstreams.test_web_decoder import decoded as decode

DONE = b"data: [DONE]\n\n"


def message(identifier: str, role: str, content: Any, **more: Any) -> dict[str, Any]:
    if isinstance(content, str):
        content = {"content_type": "text", "parts": [content]}
    return {
        "id": identifier,
        "author": {"role": role},
        "content": content,
        "status": "finished_successfully",
        "end_turn": True if role == "assistant" else None,
        "metadata": {},
        "recipient": "all",
        **more,
    }


def pictures(*pointers: str, text: str = "") -> dict[str, Any]:
    parts: list[Any] = [
        {"content_type": "image_asset_pointer", "asset_pointer": pointer}
        for pointer in pointers
    ]
    return {"content_type": "multimodal_text", "parts": [*parts, text]}


def wire(*messages: dict[str, Any]) -> bytes:
    payloads = ({"message": each, "conversation_id": "C"} for each in messages)
    return b"".join(b"data: %s\n\n" % json.dumps(each).encode() for each in payloads)


decoded = partial(decode, known=frozenset(("q",)))


def said(events: list[Event]) -> str:
    """The text that the caller has in the end, with pointers in the place of addresses."""
    text = ""
    for event in events:
        match event:
            case Restarted():
                text = ""
            case Delta(piece):
                text += piece
            case FileLink(file):
                text += f"<{file.message_id} {file.pointer}>"
    return text


QUESTION = message("q", "user", "Draw a cat")
PROMPT = message(
    "t0",
    "assistant",
    {"content_type": "code", "language": "json", "text": '{"prompt": "cat"}'},
    recipient="dalle.text2im",
    end_turn=False,
)
CAT = message("t1", "tool", pictures("file-service://file-Cat"))
DOG = message("t2", "tool", pictures("sediment://file_dog"))
FINAL = message("a1", "assistant", "Here are a cat and a dog.")
REFERENCES = [
    {
        "type": "sources_footnote",
        "start_idx": 0,
        "sources": [{"title": "Late", "url": "https://late.example/"}],
    },
    {
        "type": "grouped_webpages",
        "matched_text": "\ue200cite\ue202turn0search2\ue201",
        "start_idx": 30,
        "items": [
            {
                "title": "Second [draft] *x*",
                "url": "https://b.example/p?utm_source=chatgpt.com",
            }
        ],
    },
    {
        "type": "grouped_webpages",
        "start_idx": 4,
        "items": [
            {
                "title": "First",
                "url": "https://a.example/x(1)?a=1&utm_source=chatgpt.com&b=2",
                "supporting_websites": [
                    {"title": "Again", "url": "https://b.example/p"},
                    {"title": "", "url": "http://c.example/"},
                ],
            },
            {"title": "Script", "url": "javascript:alert(1)"},
            {"title": "File", "url": "file:///etc/passwd"},
        ],
    },
    {"type": "hidden", "items": [{"title": "No", "url": "https://hidden.example/"}]},
    "garbage",
]
LIST = (
    "Sources:\n- [First](https://a.example/x%281%29?a=1&b=2)\n- [Again](https://b.example/p)\n"
    "- [c.example](http://c.example/)\n- [Late](https://late.example/)"
)
CITED = message(
    "a1",
    "assistant",
    "Cats \ue200cite\ue202turn0search3\ue201 purr\ue200cite\ue202turn0search2\ue201.",
    metadata={"content_references": REFERENCES},
)
SHOWN = "![image](<t1 file-service://file-Cat>)\n\n![image](<t2 sediment://file_dog>)"


@pytest.mark.parametrize("encode", [classic, delta])
def test_the_same_wherever_the_bytes_are_cut(encode: Any) -> None:
    answer = message(
        "a1",
        "assistant",
        "See [data](sandbox:/mnt/data/x%20y.csv) \ue200cite\ue202a\ue201and](sand (b).",
        metadata={"content_references": REFERENCES},
    )
    stream = "".join(encode("C", [QUESTION, PROMPT, CAT, DOG, answer])).encode()
    events, _ = decoded(stream)
    text = f"{SHOWN}\n\nSee [data](<a1 sandbox:/mnt/data/x y.csv>) and](sand (b).\n\n{LIST}"
    assert said(events) == text and Restarted() not in events
    assert Reasoning('```json\n{"prompt": "cat"}\n```\n') in events
    assert events[-1] == Finished("stop", "a1", "gpt-test")
    for cut in range(len(stream)):
        halves, _ = decoded(stream[:cut], stream[cut:])
        assert halves == events
    single, _ = decoded(*(stream[at : at + 1] for at in range(len(stream))))
    assert single == events


def test_sources_stand_below_the_text_once_in_the_order_of_their_mention() -> None:
    events, _ = decoded(wire(QUESTION, CITED), DONE)
    assert said(events) == f"Cats  purr.\n\n{LIST}"


def test_sources_of_2023() -> None:
    page = {"title": "T", "url": "https://a.example/?utm_source=x"}
    citations = [{"start_ix": 1, "end_ix": 2, "metadata": {"type": "webpage", **page}}]
    old = message(
        "a", "assistant", "A cat【4†source】.", metadata={"citations": citations * 2}
    )
    events, _ = decoded(wire(old), DONE)
    assert said(events) == "A cat.\n\nSources:\n- [T](https://a.example/)"


def test_a_text_without_references_has_nothing_added() -> None:
    events, _ = decoded(wire(QUESTION, FINAL), DONE)
    assert said(events) == "Here are a cat and a dog."


@pytest.mark.parametrize(
    "references", [None, "x", {}, [1], [{"items": 1}], [{"items": [{"url": 5}]}]]
)
def test_references_of_no_form_add_nothing(references: Any) -> None:
    metadata = {"content_references": references, "citations": references}
    events, _ = decoded(wire(message("a", "assistant", "Hi", metadata=metadata)), DONE)
    assert said(events) == "Hi"


@given(
    st.text(max_size=300),
    st.text(max_size=300),
)
def test_no_title_and_no_address_breaks_out_of_its_link(title: str, rest: str) -> None:
    item = {"title": title, "url": f"https://a.example/{rest}"}
    text = shown.sources_text([{"content_references": [{"items": [item]}]}])
    if not text:
        return  # no address at all
    head, line = text.split("\n")
    assert head == "Sources:" and line.startswith("- [") and line.endswith(")")
    inner = line.removeprefix("- [")
    at = inner.index("](https://a.example/")
    plain = inner[:at].replace("\\\\", "").replace("\\[", "").replace("\\]", "")
    assert "[" not in plain and "]" not in plain
    assert not set(inner[at + 2 : -1]) & set('()<> \t\\"')


def test_sources_are_bounded() -> None:
    items = [{"title": "t" * 999, "url": f"https://a.example/{n}"} for n in range(999)]
    text = shown.sources_text([{"content_references": [{"items": items}]}])
    assert text.count("\n") == shown.MOST_SOURCES and len(text) < 50 * 300


def test_images_that_come_after_the_text_stand_below_it() -> None:
    events, _ = decoded(wire(QUESTION, FINAL, CAT), DONE)
    assert said(events) == (
        "Here are a cat and a dog.\n\n![image](<t1 file-service://file-Cat>)"
    )
    assert events[-1] == Finished("stop", "t1", None), "a next question follows it"


def test_an_image_alone_is_an_answer() -> None:
    events, decoder = decoded(wire(QUESTION, PROMPT, CAT, DOG), DONE)
    assert said(events) == SHOWN and events[-1] == Finished("stop", "t2", None)
    assert decoder.message_id == "t2"
    with pytest.raises(UpstreamCut):
        decoded(wire(QUESTION, PROMPT, CAT))


def test_images_within_the_answers_own_parts_keep_their_order() -> None:
    content = pictures("sediment://file_1", text="between")
    content["parts"] += pictures("sediment://file_2")["parts"]
    events, _ = decoded(wire(message("a", "assistant", content)), DONE)
    assert said(events) == (
        "![image](<a sediment://file_1>)\n\nbetween\n\n![image](<a sediment://file_2>)"
    )


def test_an_assistants_image_before_the_last_message_is_kept() -> None:
    first = message("a0", "assistant", pictures("sediment://file_1"), end_turn=False)
    events, _ = decoded(wire(QUESTION, first, FINAL), DONE)
    assert said(events) == (
        "![image](<a0 sediment://file_1>)\n\nHere are a cat and a dog."
    )


def test_what_is_drawn_by_code_is_an_image_and_what_is_printed_is_reasoning() -> None:
    code = message(
        "c",
        "assistant",
        {"content_type": "code", "language": "unknown", "text": "print('```')"},
        recipient="python",
        end_turn=False,
    )
    growing = {**code, "status": "in_progress"}
    drawn = [{"message_type": "image", "image_url": "file-service://file-Plot"}]
    output = message(
        "o",
        "tool",
        {"content_type": "execution_output", "text": "```\n"},
        metadata={"aggregate_result": {"messages": drawn}},
    )
    events, _ = decoded(wire(QUESTION, growing, code, code, output, FINAL), DONE)
    assert [event for event in events if isinstance(event, Reasoning)] == [
        Reasoning("````python\nprint('```')\n````\n"),
        Reasoning("````\n```\n````\n"),
    ]
    assert said(events) == (
        "![image](<o file-service://file-Plot>)\n\nHere are a cat and a dog."
    )


def test_thoughts_are_reasoning_once_they_are_finished() -> None:
    thoughts = [
        {"summary": "Cats", "content": "They purr.", "finished": True},
        {"summary": "", "content": "And sleep."},
        {"summary": 5, "content": ["x"]},
    ]
    content = {"content_type": "thoughts", "thoughts": thoughts}
    whole = message("r", "assistant", content, end_turn=False)
    events, _ = decoded(
        wire(QUESTION, {**whole, "status": "in_progress"}, whole, whole, FINAL), DONE
    )
    assert [event for event in events if isinstance(event, Reasoning)] == [
        Reasoning("**Cats**\n\nThey purr.\n\nAnd sleep.\n\n")
    ]


def test_a_hidden_message_shows_nothing() -> None:
    hidden = {"is_visually_hidden_from_conversation": True}
    events, _ = decoded(wire(QUESTION, {**CAT, "metadata": hidden}, FINAL), DONE)
    assert said(events) == "Here are a cat and a dog."


def test_images_of_earlier_turns_that_are_echoed_are_no_part_of_this_one() -> None:
    events, _ = decoded(wire(CAT, QUESTION, FINAL), DONE)
    assert said(events) == "Here are a cat and a dog."


def test_an_edited_text_is_given_again_with_its_images() -> None:
    def state(text: str, **more: Any) -> dict[str, Any]:
        open_ = {"status": "in_progress", "end_turn": None, **more}
        return message("a1", "assistant", text, **open_)

    events, _ = decoded(
        wire(QUESTION, CAT, state("Hello"), state("Bye [x](sandbox:/a)"), DOG),
        wire(message("a1", "assistant", "Bye [x](sandbox:/a) now")),
        DONE,
    )
    assert Restarted() in events
    assert said(events) == (
        "![image](<t1 file-service://file-Cat>)\n\nBye [x](<a1 sandbox:/a>) now\n\n"
        "![image](<t2 sediment://file_dog>)"
    )


def test_an_answer_that_is_continued_has_the_sources_of_both_parts_below() -> None:
    def part(identifier: str, text: str, host: str, stop: str) -> dict[str, Any]:
        item = {"title": host, "url": f"https://{host}/"}
        metadata = {
            "finish_details": {"type": stop},
            "content_references": [{"items": [item]}],
        }
        return message(identifier, "assistant", text, metadata=metadata)

    decoder = WebDecoder(known=frozenset(("q",)))
    first = part("a1", "One ", "a.example", "max_tokens")
    events = [*decoder.feed(wire(QUESTION, CAT, first) + DONE)]
    assert decoder.wants == Continue("C", "a1") and "Sources" not in said(events)
    decoder.again()
    events += decoder.feed(wire(part("a2", "two", "b.example", "stop")) + DONE)
    assert said(events) == (
        "![image](<t1 file-service://file-Cat>)\n\nOne two\n\n"
        "Sources:\n- [a.example](https://a.example/)\n- [b.example](https://b.example/)"
    )


TASK = message("w", "tool", "Processing image.", metadata={"image_gen_task_id": "i"})


@pytest.mark.parametrize("answers", [(), (FINAL,)])
def test_an_image_that_is_still_being_made_is_looked_for(answers: Any) -> None:
    decoder = WebDecoder(known=frozenset(("q",)))
    events = [*decoder.feed(wire(QUESTION, TASK, *answers))]
    assert not decoder.complete
    events += decoder.feed(DONE)
    assert decoder.wants == Poll("C") and Finished() not in events
    decoder.again()
    events += decoder.feed(wire(TASK, *answers, DOG) + DONE)
    assert said(events).endswith("![image](<t2 sediment://file_dog>)")
    assert isinstance(events[-1], Finished)


def test_an_image_that_never_comes_is_looked_for_once() -> None:
    decoder = WebDecoder(known=frozenset(("q",)))
    events = [*decoder.feed(wire(QUESTION, TASK, FINAL) + DONE)]
    decoder.again()
    events += decoder.feed(wire(TASK, FINAL) + DONE)
    assert decoder.wants is None and isinstance(events[-1], Finished)


def tree(*messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    parent = None
    for each in messages:
        mapping[each["id"]] = {"message": each, "parent": parent, "children": []}
        if parent:
            mapping[parent]["children"].append(each["id"])
        parent = each["id"]
    return {"mapping": mapping, **more}


def test_when_an_answer_in_a_conversation_is_whole() -> None:
    def ids(*messages: dict[str, Any], **more: Any) -> list[str]:
        found = complete_answers(tree(QUESTION, *messages, **more), "q")
        return [each["id"] for each in found]

    ended = {**DOG, "end_turn": True}
    assert ids(CAT) == [], "its text may still come"
    assert ids(CAT, FINAL) == ["t1", "a1"] and ids(ended) == ["t2"]
    assert ids(TASK, async_status="PENDING") == [] and ids(TASK) == []
    assert ids(TASK, DOG, async_status="PENDING") == []
    assert ids(TASK, DOG, async_status="UNREAD") == ["w", "t2"]
    assert ids(TASK, FINAL, async_status="PENDING") == []
    assert ids(TASK, FINAL) == ["w", "a1"], "the image was not made"
    assert ids(CAT, {**FINAL, "status": "in_progress"}) == []
    later = message("q2", "user", "More")
    assert ids(FINAL, later) == ["a1"]
    with pytest.raises(UpstreamFailed, match="no text"):
        ids(message("x", "tool", {"content_type": "sonic_webpage"}, end_turn=True))


@given(st.lists(st.sampled_from(["]", "(", "sandbox:", "/a", ")", " x", "\ufdd0"])))
def test_a_text_with_links_is_the_same_in_any_pieces(pieces: list[str]) -> None:
    files = (RemoteFile("sediment://a", "m"),)
    whole = shown.Rendering("m", files)
    text = "".join(pieces)
    expected = shown.merged([*whole.feed(text), *whole.end()])
    split = shown.Rendering("m", files)
    events = [event for piece in text for event in split.feed(piece)]
    assert shown.merged([*events, *split.end()]) == expected


def test_a_link_that_is_never_closed_is_text() -> None:
    text = "[x](sandbox:/" + "a" * 2000
    rendering = shown.Rendering("m")
    events = [event for sign in text for event in rendering.feed(sign)]
    assert said([*events, *rendering.end()]) == text
