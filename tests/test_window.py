"""How much of a conversation goes upstream."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.domain import Message
from relay.window import estimate_tokens, fit


def within(
    messages: tuple[Message, ...], budget: int
) -> tuple[tuple[Message, ...], int]:
    """What goes, and how many do not; the estimate is always that of what goes."""
    window = fit(messages, budget)
    assert window.tokens == sum(map(estimate_tokens, window.messages))
    return window.messages, window.dropped


def dialogue(*texts: str, system: str = "") -> tuple[Message, ...]:
    messages = [
        Message("user" if at % 2 == 0 else "assistant", text)
        for at, text in enumerate(texts)
    ]
    return (*((Message("system", system),) if system else ()), *messages)


@pytest.mark.parametrize(
    ("text", "cost"), [("", 4), ("abcd", 5), ("abcde", 6), ("你好", 6), ("a你", 6)]
)
def test_tokens_are_estimated(text: str, cost: int) -> None:
    assert estimate_tokens(Message("user", text)) == cost


def test_a_dialogue_that_fits_is_sent_whole() -> None:
    messages = dialogue("one", "uno", "two", system="Be kind.")
    assert within(messages, sum(map(estimate_tokens, messages))) == (messages, 0)


def test_the_oldest_turns_are_dropped_first_and_whole() -> None:
    messages = dialogue("one", "uno", "two", "due", "three", system="Be kind.")
    assert within(messages, sum(map(estimate_tokens, messages)) - 1) == (
        (messages[0], *messages[3:]),
        2,
    )
    assert within(messages, sum(map(estimate_tokens, messages)) - 11) == (
        (messages[0], messages[5]),
        4,
    )


def test_without_a_budget_the_whole_dialogue_is_sent() -> None:
    messages = dialogue("one" * 1000, "uno", "two", system="Be kind.")
    assert within(messages, 0) == (messages, 0)


def test_the_prompt_is_sent_even_if_it_exceeds_the_budget() -> None:
    assert within(dialogue("one", "uno", "x" * 1000, system="s"), 10) == (
        dialogue("x" * 1000, system="s"),
        2,
    )


def test_an_answer_without_a_question_is_sent_if_it_fits() -> None:
    messages = (Message("assistant", "hello"), Message("user", "hi"))
    assert within(messages, 100) == (messages, 0)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["system", "user", "assistant"]), st.text(max_size=30)
        ),
        min_size=1,
    ),
    st.integers(1, 200),
)
def test_what_is_sent_fits_and_is_the_end_of_the_dialogue(
    pairs: list[tuple[str, str]], budget: int
) -> None:
    messages = tuple(Message(role, text) for role, text in pairs)
    sent, dropped = within(messages, budget)
    assert sent[-1] == messages[-1] and dropped == len(messages) - len(sent)
    assert [message for message in sent if message.role == "system"] == [
        message for message in messages if message.role == "system"
    ]
    turns = [message for message in messages if message.role != "system"]
    sent_turns = [message for message in sent if message.role != "system"]
    assert turns[len(turns) - len(sent_turns) :] == sent_turns
    free = [message for message in sent[:-1] if message.role != "system"]
    assert not free or sum(map(estimate_tokens, sent)) <= budget
