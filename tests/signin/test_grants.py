"""What is kept, and for how long."""

from __future__ import annotations

from typing import Any

import pytest

from relay.errors import TooManyAttempts, WrongCredentials
from relay.signin.attempts import MOST_IN_FLIGHT, MOST_OF_ONE, AttemptCounter
from relay.signin.grants import (
    MOST_KEPT,
    SPARE_SECONDS,
    WRONG_SECONDS,
    Credentials,
    Grant,
    Grants,
    expiry_of,
)
from tests.tokens import jwt

ANN = Credentials("ann@example.org", "the-password")


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Counted:
    """A sign-in that counts how often it is done."""

    def __init__(self, *outcomes: Any) -> None:
        self.outcomes = outcomes
        self.count = 0

    def __call__(self) -> Grant:
        outcome = self.outcomes[min(self.count, len(self.outcomes) - 1)]
        self.count += 1
        if isinstance(outcome, Exception):
            raise outcome
        grant: Grant = outcome
        return grant


def test_a_grant_is_kept_until_shortly_before_it_expires() -> None:
    clock = Clock()
    grants, sign_in = Grants(clock), Counted(Grant("t-1", clock.now + 3600))
    for _ in range(3):
        assert grants.get("chatgpt", ANN, sign_in, 1).access_token == "t-1"
    assert sign_in.count == 1
    clock.now += 3600 - SPARE_SECONDS - 1
    grants.get("chatgpt", ANN, sign_in, 1)
    assert sign_in.count == 1
    clock.now += 2
    grants.get("chatgpt", ANN, sign_in, 1)
    assert sign_in.count == 2


def test_another_password_another_address_and_another_place_are_asked_for() -> None:
    clock = Clock()
    grants, sign_in = Grants(clock), Counted(Grant("t-1", clock.now + 3600))
    others = [
        ("chatgpt", ANN),
        ("platform", ANN),
        ("chatgpt", Credentials(ANN.email, "other")),
        ("chatgpt", Credentials("bob@example.org", ANN.password)),
        ("chatgpt", Credentials(ANN.email + "t", ANN.password[1:])),
    ]
    for place, credentials in others * 2:
        grants.get(place, credentials, sign_in, 1)
    assert sign_in.count == len(others)


def test_wrong_credentials_are_answered_for_some_seconds_without_asking() -> None:
    clock = Clock()
    wrong = WrongCredentials("Not these.")
    grants = Grants(clock)
    sign_in = Counted(wrong, Grant("t-1", clock.now + 3600))
    for fresh in (False, True, False):
        with pytest.raises(WrongCredentials, match="Not these"):
            grants.get("chatgpt", ANN, sign_in, 1, fresh=fresh)
    assert sign_in.count == 1
    clock.now += WRONG_SECONDS + 1
    assert grants.get("chatgpt", ANN, sign_in, 1).access_token == "t-1"


def test_what_is_kept_is_bounded_and_shows_nothing() -> None:
    clock = Clock()
    grants, sign_in = Grants(clock), Counted(Grant("t-1", clock.now + 3600))
    for number in range(MOST_KEPT + 10):
        person = Credentials(f"{number}@example.org", "the-password")
        grants.get("chatgpt", person, sign_in, 1)
    assert len(grants._kept) == MOST_KEPT
    first = Credentials("0@example.org", "the-password")
    grants.get("chatgpt", first, sign_in, 1)
    assert sign_in.count == MOST_KEPT + 11
    shown = repr((ANN, grants.__dict__))
    assert "the-password" not in shown and "t-1" not in shown and "ann" not in shown


@pytest.mark.parametrize(
    "token, stated, expires",
    [
        (jwt(exp=2_000_000_000), None, 2_000_000_000.0),
        (jwt(exp=2_000_000_000), "2001-09-09T01:46:40Z", 1_000_000_000.0),
        (jwt(exp=1_000_000_000), "2033-05-18T03:33:20.000Z", 1_000_000_000.0),
        ("opaque", "2001-09-09T01:46:40.000Z", 1_000_000_000.0),
        ("opaque", "2001-09-09 01:46:40", 1_000_000_000.0),
        ("opaque", 1_000_000_000, 1_000_000_000.0),
        ("opaque", None, None),
        ("opaque", True, None),
        ("opaque", "soon", None),
        ("opaque", 10**300, None),
        ("a.b.c", {}, None),
        (jwt(exp="x"), [], None),
        ("eyJ.\x00.x", -1, None),
    ],
)
def test_when_a_token_expires(
    token: str, stated: object, expires: float | None
) -> None:
    assert expiry_of(token, stated) == expires


def test_few_sign_ins_are_in_flight_at_once() -> None:
    attempts = AttemptCounter(Clock())
    held = [attempts.counted("192.0.2.1") for _ in range(MOST_OF_ONE)]
    for each in held:
        each.__enter__()
    with pytest.raises(TooManyAttempts), attempts.counted("192.0.2.1"):
        pass
    for number in range(MOST_IN_FLIGHT - MOST_OF_ONE):
        held.append(attempts.counted(f"198.51.100.{number}"))
        held[-1].__enter__()
    with pytest.raises(TooManyAttempts), attempts.counted("203.0.113.1"):
        pass
    for each in held:
        each.__exit__(None, None, None)
    with attempts.counted("192.0.2.1"):
        pass


def test_an_address_may_try_again_after_a_minute() -> None:
    clock = Clock()
    attempts = AttemptCounter(clock)
    for _ in range(10):
        with attempts.counted("192.0.2.1"):
            clock.now += 1
    with pytest.raises(TooManyAttempts) as caught, attempts.counted("192.0.2.1"):
        pass
    assert caught.value.retry_after == 50
    clock.now += 51
    with attempts.counted("192.0.2.1"):
        pass
