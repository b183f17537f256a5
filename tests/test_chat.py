"""Turns, pushed from plain lists of byte pieces; and what Chat decides."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from relay.chat import Chat, Routing, Waiting
from relay.delivery import Silent
from relay.dialects import form
from relay.dialects.openai.chat import Chunks
from relay.domain import Ask, Caller, Message
from relay.errors import (
    BadRequest,
    CallerLeft,
    Forbidden,
    NoConversation,
    RateLimited,
    Unauthorized,
    UpstreamCut,
    UpstreamFailed,
    UpstreamGone,
)
from relay.store import Store
from relay.turn import Turn
from relay.upkeep import Leases
from tests.scripted import Scripted

ON_BOTH = True

OWNER = Caller("owner", may_spend=True)
STRANGER = Caller("token-x", may_spend=False, token="own-token")


@pytest.fixture
def chat_with(store: Store) -> Callable[..., Chat]:
    def make(*upstreams: Scripted, explicit: bool = False) -> Chat:
        by_name = {upstream.name: upstream for upstream in upstreams}
        return Chat(
            by_name,
            Routing(lambda: upstreams[0].name, explicit),
            store,
            Leases(store.renew),
        )

    return make


def ask(prompt: str = "Hi", caller: Caller = OWNER, **more: Any) -> Ask:
    return Ask(prompt, caller, **more)


def opened(chat: Chat, request: Ask, printer: Any = None) -> Turn:
    turn = chat.open(request, printer or Silent())
    assert isinstance(turn, Turn)
    return turn


def whole(chat: Chat, request: Ask) -> Turn:
    turn = opened(chat, request)
    turn.feed(b"S|Hel|lo|F|")
    turn.end()
    return turn


def test_a_turn_is_fed_from_a_plain_list_of_byte_pieces(
    chat_with: Callable[..., Chat], store: Store
) -> None:
    turn = opened(chat_with(Scripted()), ask(), form.Events(form.SEND_MESSAGE))
    printed = [
        turn.feed(piece) for piece in (b"S|", b"He", b"l|", b"lo|", b"F|", b"never|")
    ] + [turn.end()]
    reply = turn.reply
    assert reply and (reply.text, reply.model) == ("Hello", "scripted-model")
    assert printed[:-1] == [
        b"",
        b"",
        b'data: {"text":"Hel"}\n\n',
        b'data: {"text":"lo"}\n\n',
        b"",
        b"",
    ]
    assert printed[-1].startswith(b'event: done\ndata: {"text":"Hello"')
    conversation = store.get("owner", turn.conversation_id)
    assert (
        conversation.newest == reply.message_id
        and conversation.nodes[-1].text == "Hello"
    )


@pytest.mark.parametrize(
    ("more", "is_held"),
    [({}, False), ({"keep": True}, True), ({"idempotency_key": "k"}, True)],
)
def test_a_text_that_nobody_reads_is_counted_and_not_held(
    chat_with: Callable[..., Chat], more: dict[str, Any], is_held: bool
) -> None:
    printer = Chunks("m", include_usage=True, prompt_tokens=5, created=1)
    turn = opened(chat_with(Scripted()), ask(**{"keep": False, **more}), printer)
    turn.feed(b"S|")
    tracemalloc.start()
    try:
        for _ in range(1000):
            turn.feed("ä, and so on: 1 kB".encode().ljust(1000, b".") + b"|")
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert (held > 900_000) is is_held and (held < 50_000) is not is_held
    turn.feed(b"F|")
    end = turn.end()
    tokens = 1000 + -(-998_000 // 4)
    assert b'"completion_tokens":%d,' % tokens in end
    assert turn.reply is not None and bool(turn.reply.text) is is_held


def test_the_same_bytes_give_the_same_answer_wherever_they_are_cut(
    chat_with: Callable[..., Chat],
) -> None:
    chat, wire = chat_with(Scripted()), "S|Hé|llo 你|F|".encode()
    for cut in range(len(wire) + 1):
        turn = opened(chat, ask(), form.Raw())
        text = turn.feed(wire[:cut]) + turn.feed(wire[cut:]) + turn.end()
        assert text.decode() == "Héllo 你\n"


def test_nothing_is_kept_as_whole_before_its_end(
    chat_with: Callable[..., Chat], store: Store
) -> None:
    turn = opened(chat_with(Scripted()), ask())
    turn.feed(b"S|Hel|lo|")
    with pytest.raises(UpstreamCut):
        turn.end()
    turn.fail(UpstreamCut())
    node = store.get("owner", turn.conversation_id).nodes[-1]
    assert (node.text, node.status, node.finish_reason) == (
        "Hello",
        "broken",
        "upstream_cut",
    )


def test_garbage_in_the_middle_is_an_error_and_keeps_what_came(
    chat_with: Callable[..., Chat], store: Store
) -> None:
    turn = opened(chat_with(Scripted()), ask())
    turn.feed(b"S|Hel|")
    turn.feed(b"lo|?|never|")
    assert isinstance(turn.failure, UpstreamFailed)
    turn.fail(turn.failure)
    assert store.get("owner", turn.conversation_id).nodes[-1].text == "Hello"


def test_a_refusal_is_forgotten_but_an_unknown_outcome_is_not(
    chat_with: Callable[..., Chat], store: Store
) -> None:
    limited = chat_with(Scripted(RateLimited("Slow down.", retry_after=5)))
    with pytest.raises(RateLimited):
        limited.open(ask(), Silent())
    turn = opened(chat_with(Scripted()), ask())
    turn.fail(RateLimited("Slow down."))
    assert store.list("owner", 0, 10) == []
    left = opened(chat_with(Scripted()), ask())
    left.fail(CallerLeft())
    assert [node.status for node in store.get("owner", left.conversation_id).nodes] == [
        "whole",
        "broken",
    ]


def test_the_upstream_is_asked_with_all_messages_from_the_root(
    chat_with: Callable[..., Chat],
) -> None:
    upstream = Scripted()
    chat = chat_with(upstream)
    first = whole(
        chat, ask("one", preamble=(Message("system", "Be kind."),), model="m")
    )
    whole(
        chat,
        ask(
            "two",
            conversation_id=first.conversation_id,
            preamble=(Message("system", "never seen again"),),
        ),
    )
    assert upstream.asked[0].model == "m"
    assert upstream.asked[1].messages == (
        Message("system", "Be kind."),
        Message("user", "one"),
        Message("assistant", "Hello"),
        Message("user", "two"),
    )


def test_a_busy_conversation_is_not_asked(chat_with: Callable[..., Chat]) -> None:
    upstream = Scripted()
    chat = chat_with(upstream)
    first = whole(chat, ask())
    again = ask(conversation_id=first.conversation_id)
    turn = opened(chat, again)
    assert chat.open(again, Silent()) is Waiting.CONVERSATION
    turn.fail(CallerLeft())
    opened(chat, again).fail(CallerLeft())
    assert len(upstream.asked) == 3


def test_a_conversation_goes_on_at_its_own_upstream(
    chat_with: Callable[..., Chat],
) -> None:
    one, other = Scripted(name="one"), Scripted(name="other")
    first = whole(chat_with(one), ask())
    whole(chat_with(other, one), ask(conversation_id=first.conversation_id))
    assert (len(one.asked), len(other.asked)) == (2, 0)
    chat = chat_with(other)
    for _ in range(2):
        with pytest.raises(UpstreamGone, match="upstream one"):
            chat.open(ask(conversation_id=first.conversation_id), Silent())
    whole(chat_with(one), ask(conversation_id=first.conversation_id))


def test_ids_that_do_not_fit_are_refused(chat_with: Callable[..., Chat]) -> None:
    chat = chat_with(Scripted())
    with pytest.raises(BadRequest, match="both, or neither"):
        chat.open(ask(parent_id="p"), Silent())
    with pytest.raises(NoConversation):
        chat.open(ask(conversation_id="c"), Silent())


def test_no_caller_chooses_the_host(chat_with: Callable[..., Chat]) -> None:
    upstream = Scripted()
    with pytest.raises(Forbidden, match="reverse_proxy"):
        chat_with(upstream).open(
            ask(reverse_proxy="https://evil.example/api/conversation"), Silent()
        )
    assert upstream.asked == []


def test_an_upstream_that_fails_in_an_unforeseen_way_leaves_no_lease_held(
    chat_with: Callable[..., Chat],
) -> None:
    upstream = Scripted()
    chat = chat_with(upstream)
    first = whole(chat, ask())
    upstream.ask = None  # type: ignore[assignment, method-assign]
    with pytest.raises(TypeError):
        chat.open(ask(conversation_id=first.conversation_id), Silent())
    assert chat._leases._held == set()


SPENDING = [
    # caller, accepts_caller_tokens, explicit upstream -> whose credential is sent, or which error
    pytest.param(OWNER, True, False, "service", id="key"),
    pytest.param(STRANGER, True, False, "caller", id="own-token"),
    pytest.param(
        Caller("owner", True, "own-token"),
        True,
        False,
        "caller",
        id="key-and-token-spends-the-token",
    ),
    pytest.param(Caller("anonymous", False), True, False, Unauthorized, id="nothing"),
    pytest.param(
        STRANGER, False, False, Unauthorized, id="token-where-none-is-checked"
    ),
    pytest.param(
        Caller("owner", True, "own-token"),
        False,
        True,
        BadRequest,
        id="token-that-cannot-be-used",
    ),
    pytest.param(OWNER, False, True, "service", id="key-where-no-token-is-checked"),
]


@pytest.mark.parametrize(
    ("caller", "accepts_caller_tokens", "explicit", "outcome"), SPENDING
)
def test_who_may_spend_what(
    chat_with: Callable[..., Chat],
    caller: Caller,
    accepts_caller_tokens: bool,
    explicit: bool,
    outcome: Any,
) -> None:
    upstream = Scripted(
        needs_client_key=True, accepts_caller_tokens=accepts_caller_tokens
    )
    chat = chat_with(upstream, explicit=explicit)
    if isinstance(outcome, str):
        whole(chat, ask(caller=caller))
        assert upstream.asked[0].token == (
            caller.token if outcome == "caller" else None
        )
    else:
        with pytest.raises(outcome):
            chat.open(ask(caller=caller), Silent())
        assert upstream.asked == []


@pytest.mark.parametrize(
    ("prompt", "title"),
    [
        ("  two\n lines ", "two lines"),
        ("x" * 100, "x" * 59 + "…"),
        ("你" * 60, "你" * 60),
        (" \u2003", "New chat"),
    ],
)
def test_a_title_is_the_prompts_first_words(
    chat_with: Callable[..., Chat], store: Store, prompt: str, title: str
) -> None:
    turn = whole(chat_with(Scripted()), ask(prompt))
    assert store.get("owner", turn.conversation_id).title == title
