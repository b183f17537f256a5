from __future__ import annotations

import base64
import json

import pytest

from relay.accounts import REJECTED_SECONDS, Account, AccountPool, Attempts
from relay.errors import (
    RateLimited,
    RelayError,
    TokenRejected,
    Unreachable,
    UpstreamGone,
    UpstreamRefused,
)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def jwt(**claims: object) -> str:
    payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"eyJhbGciOiJub25lIn0.{payload}.c2ln"


A, B, C = (Account(name, f"token-{name}") for name in "abc")


def test_an_account_is_named_by_its_token_without_showing_it() -> None:
    auth = {"https://api.openai.com/auth": {"chatgpt_account_id": "acc-1?>"}}
    one, renewed = Account.of(jwt(**auth, exp=1)), Account.of(jwt(**auth, exp=2))
    assert one.name == renewed.name and one.name.startswith("account-")
    assert Account.of(jwt(sub="user")).name != one.name
    claiming = jwt(sub="user").removeprefix("eyJ")
    for opaque in (
        "fk-opaque",
        "a.b.c",
        "eyJ.e30.c",
        "eyJ.W10.c",
        "..",
        jwt(),
        "eyJ.!!!.c",
        claiming,
        f"sk-{claiming}",
    ):
        assert Account.of(opaque).name.startswith("token-") and opaque not in repr(
            Account.of(opaque)
        )


def test_accounts_take_turns() -> None:
    pool = AccountPool((A, B, C))
    assert [pool.in_turn()[0].name for _ in range(4)] == ["a", "b", "c", "a"]


def test_another_account_is_tried_only_after_a_refusal_that_it_may_mend() -> None:
    attempts = Attempts(AccountPool((A, B, C)), (A, B, C), 3)
    assert attempts.next() is A
    attempts.refused(RateLimited("slow", retry_after=9))
    assert attempts.next() is B
    attempts.refused(Unreachable("gone"))
    assert attempts.next() is C
    for error in (
        UpstreamRefused("bad", status=500),
        UpstreamRefused("bad", status=404),
    ):
        with pytest.raises(UpstreamRefused):
            attempts.refused(error)


def test_the_last_refusal_is_told_when_none_is_left() -> None:
    attempts = Attempts(AccountPool((A, B)), (A, B), 3)
    attempts.next()
    attempts.refused(TokenRejected("no"))
    attempts.next()
    attempts.refused(RateLimited("slow", retry_after=7))
    with pytest.raises(RateLimited) as limited:
        attempts.next()
    assert limited.value.retry_after == 7


def test_the_number_of_attempts_is_bounded() -> None:
    attempts = Attempts(AccountPool((A, B, C)), (A, B, C), 1)
    for account in (A, B):
        assert attempts.next() is account
        attempts.refused(Unreachable("gone"))
    with pytest.raises(Unreachable):
        attempts.next()


@pytest.mark.parametrize(
    ("error", "rest"),
    [
        (RateLimited("slow", retry_after=30), 30),
        (RateLimited("slow"), 0),
        (UpstreamRefused("bad", status=500), 0),
        (Unreachable("gone"), 0),
    ],
)
def test_only_a_stated_limit_lets_an_account_rest(
    error: RelayError, rest: float
) -> None:
    clock = Clock()
    pool = AccountPool((A, B), clock)
    pool.heard(A, error)
    assert (
        bool(pool.rests(A)) is bool(rest)
        and pool.rests(B) is None
        and not pool.rejected(A)
    )
    clock.now = rest - 10 if rest else 0
    resting = pool.rests(A)
    assert bool(resting) is bool(rest)
    if resting is not None:
        assert resting.retry_after == 10, "the time that is left"
        assert "slow" not in resting.message, (
            "what was said to one caller is not told to another"
        )
    clock.now = rest
    assert pool.rests(A) is None


def test_when_all_rest_their_limit_is_told_without_asking() -> None:
    pool = AccountPool((A, B))
    for account in (A, B):
        pool.heard(account, RateLimited("slow", retry_after=60))
    with pytest.raises(RateLimited):
        Attempts(pool, (A, B), 3).next()


def test_a_rejected_token_is_tried_after_all_others_for_a_while() -> None:
    clock = Clock()
    pool = AccountPool((A, B, C), clock)
    pool.heard(A, TokenRejected("no"))
    attempts = Attempts(pool, (A, B, C), 3)
    assert [attempts.next() for _ in range(3)] == [B, C, A], (
        "it may have been one model's refusal"
    )
    assert Attempts(pool, (A,), 0).next() is A, "the only one is never shut off"
    clock.now = REJECTED_SECONDS
    assert Attempts(pool, (A, B, C), 3).next() is A


def test_a_token_is_taken_out_of_what_is_told() -> None:
    assert (
        Account("a", "any-key-at-all").hidden_in(b"wrong key: any-key-at-all!")
        == b"wrong key: ...!"
    )
    assert Account("a", "ollama").hidden_in(b"ollama is full") == b"ollama is full"
    assert Account("a", "").hidden_in(b"nothing") == b"nothing"


def test_a_conversation_goes_on_at_its_own_account_or_nowhere() -> None:
    pool = AccountPool((A, B))
    assert pool.only("b") == (B,)
    with pytest.raises(UpstreamGone, match="account gone"):
        pool.only("gone")
    opaque = Account.of("renewed")
    assert AccountPool((opaque,)).only("token-before") == (opaque,)


def test_asks_in_flight_are_counted() -> None:
    pool = AccountPool((A,))
    assert pool.take(A, 2) and pool.take(A, 2) and not pool.take(A, 2)
    assert pool.in_flight(A) == 2
    pool.leave(A)
    assert pool.take(A, 2)
    for _ in range(2):
        pool.leave(A)
    assert pool.in_flight(A) == 0 and all(pool.take(A, 0) for _ in range(5))
