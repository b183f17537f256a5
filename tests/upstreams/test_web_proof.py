"""The proof of work, checked by the rule that the backend checks it by."""

from __future__ import annotations

import base64
import hashlib
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.upstreams.chatgpt_web.proof import (
    ATTEMPTS_PER_SLICE,
    MOST_ATTEMPTS,
    Demand,
    ProofSearch,
    requirements_text,
)
from tests.sentinel import check_array

AGENTS = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1)


@given(seed=st.text(max_size=100), digits=st.text("0123456789abcdef", max_size=8))
def test_a_proof_is_one_by_the_backends_rule(seed: str, digits: str) -> None:
    difficulty = f"3{digits}"
    search = ProofSearch(Demand(seed, difficulty), "agent")
    assert search.advance(MOST_ATTEMPTS) and search.text is not None
    proven = seed.encode("utf-8", "replace") + search.text.encode()
    digest = hashlib.sha3_512(proven).hexdigest()
    assert digest[: len(difficulty)] <= difficulty


@given(agent=AGENTS)
def test_the_array_says_the_agent_and_nothing_of_a_browser(agent: str) -> None:
    answer = check_array(requirements_text(agent), "gAAAAAC", agent)
    array = json.loads(base64.b64decode(answer))
    said = {place for place, value in enumerate(array) if value is not None}
    assert said == {3, 4, 9, 14}


@given(slices=st.lists(st.integers(1, 50), min_size=1, max_size=20))
def test_slices_lead_to_the_same_attempts(slices: list[int]) -> None:
    search = ProofSearch(Demand("seed", "0" * 64), "agent")
    for attempts in slices:
        assert not search.advance(attempts)
    assert search.text is None
    assert search._attempts == sum(slices)


def test_the_search_is_bounded() -> None:
    search = ProofSearch(Demand("seed", "0" * 64), "agent")
    search._attempts = MOST_ATTEMPTS - 10
    assert search.advance() and search.text is None
    assert search.advance() and search.text is None, "it stays over"


def test_a_slice_is_far_below_a_tenth_of_a_second() -> None:
    search = ProofSearch(Demand("seed", "0" * 64), "a" * 300)
    times = []
    for _ in range(20):
        begun = time.thread_time()
        search.advance(ATTEMPTS_PER_SLICE)
        times.append(time.thread_time() - begun)
    assert sorted(times)[10] < 0.05


@pytest.mark.parametrize(
    ("difficulty", "hardest", "is_refused"),
    [
        ("000032", "000032", True),
        ("000031", "000032", True),
        ("000033", "000032", False),
        ("0000320", "000032", False),
        ("00003", "000032", True),
        ("06bf7d", "000032", False),
        ("0", "000032", True),
    ],
)
def test_what_is_too_hard_is_decided_by_comparing_texts(
    difficulty: str, hardest: str, is_refused: bool
) -> None:
    assert Demand("seed", difficulty).is_harder_than(hardest) is is_refused


@pytest.mark.parametrize("difficulty", ["", "easy", "0x12", "-1", "AB", "f" * 129])
def test_a_difficulty_that_is_no_number_cannot_be_met(difficulty: str) -> None:
    with pytest.raises(ValueError):
        Demand("seed", difficulty)


def test_a_seed_has_a_bound() -> None:
    with pytest.raises(ValueError):
        Demand("s" * 1001, "0f")
