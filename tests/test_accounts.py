from __future__ import annotations

import base64
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone

import pytest

from relay.accounts import (
    LATE_TRIAL_SECONDS,
    REJECTED_SECONDS,
    TRIAL_SECONDS,
    Account,
    AccountPool,
    Attempts,
)
from relay.errors import (
    Challenged,
    RateLimited,
    RelayError,
    TokenRejected,
    Unreachable,
    UpstreamGone,
    UpstreamRefused,
)
from relay.upstreams.chatgpt_web.backend import anonymous_account
from tests.tokens import jwt


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


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


def member(person: str) -> Account:
    auth = {"chatgpt_account_id": "workspace-1", "user_id": person}
    return Account.of(jwt(**{"https://api.openai.com/auth": auth}))


def test_members_of_one_workspace_are_told_apart() -> None:
    alice, bob = member("alice"), member("bob")
    assert alice.name != bob.name and alice.former_name == bob.former_name
    auth = {"https://api.openai.com/auth": {"chatgpt_account_id": "workspace-1"}}
    assert Account.of(jwt(**auth)).name == alice.former_name
    by_subject = Account.of(jwt(**auth, sub="alice"))
    assert by_subject.name == alice.name, "the claim may have either name"
    assert Account.of(jwt(sub="alice")).former_name is None


def test_a_conversation_of_before_goes_on_at_its_workspaces_accounts() -> None:
    pool = AccountPool((member("alice"), C))
    assert pool.only(str(member("alice").former_name)) == (member("alice"),)


def test_claims_that_nest_too_deeply_name_nobody() -> None:
    deep: dict[str, object] = {}
    for _ in range(900):
        deep = {"a": deep}
    payload = base64.urlsafe_b64encode(json.dumps(deep).encode()).decode()
    assert Account.of(f"eyJ.{payload}.c").name.startswith("token-")


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


def test_the_last_refusal_is_raised_when_no_account_is_left() -> None:
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
    pool.refused(A, error)
    assert (
        bool(pool.limit(A)) is bool(rest)
        and pool.limit(B) is None
        and not pool.is_rejected(A)
    )
    clock.now = rest - 10 if rest else 0
    resting = pool.limit(A)
    assert bool(resting) is bool(rest)
    if resting is not None:
        assert resting.retry_after == 10, "the time that is left"
        assert "slow" not in resting.message, (
            "the message for one caller is not passed to another"
        )
    clock.now = rest
    assert pool.limit(A) is None


def test_when_all_accounts_rest_their_limit_is_raised_without_asking() -> None:
    pool = AccountPool((A, B))
    for account in (A, B):
        pool.refused(account, RateLimited("slow", retry_after=60))
    with pytest.raises(RateLimited):
        Attempts(pool, (A, B), 3).next()


WEEK = 7 * 86400


def test_a_limit_of_days_rests_an_only_account_for_minutes() -> None:
    """A stated time is an upper bound: one ask may try again after five minutes."""
    clock = Clock()
    pool = AccountPool((A,), clock)
    pool.refused(A, RateLimited("come back next week", retry_after=WEEK))
    clock.now = TRIAL_SECONDS - 1
    with pytest.raises(RateLimited) as limited:
        Attempts(pool, (A,), 3).next()
    assert limited.value.retry_after == WEEK - TRIAL_SECONDS + 1
    clock.now = TRIAL_SECONDS
    trial = Attempts(pool, (A,), 3)
    assert trial.next() is A
    with pytest.raises(RateLimited):
        Attempts(pool, (A,), 3).next()
    own_words = RateLimited("come back on Tuesday", retry_after=WEEK)
    trial.refused(own_words)
    with pytest.raises(RateLimited) as raised:
        trial.next()
    assert raised.value is own_words, (
        "the caller of the trial gets the upstream's words"
    )
    clock.now = 2 * TRIAL_SECONDS - 1
    with pytest.raises(RateLimited):
        Attempts(pool, (A,), 3).next()
    clock.now = 2 * TRIAL_SECONDS
    healed = Attempts(pool, (A,), 3)
    assert healed.next() is A
    healed.succeeded()
    assert pool.limit(A) is None and pool.resting() == []
    assert Attempts(pool, (A,), 3).next() is A


def test_where_another_account_is_usable_the_trial_comes_later() -> None:
    clock = Clock()
    pool = AccountPool((A, B), clock)
    pool.refused(A, RateLimited("slow", retry_after=WEEK))
    clock.now = LATE_TRIAL_SECONDS - 1
    assert Attempts(pool, (A, B), 3).next() is B
    clock.now = LATE_TRIAL_SECONDS
    assert Attempts(pool, (A, B), 3).next() is A
    assert Attempts(pool, (A, B), 3).next() is B, "one ask tries, the others do not"


def test_a_trial_is_one_asks_alone_whoever_comes_at_once() -> None:
    clock = Clock()
    pool = AccountPool((A,), clock)
    pool.refused(A, RateLimited("slow", retry_after=WEEK))
    clock.now = TRIAL_SECONDS
    with ThreadPoolExecutor(8) as threads:
        trials = list(threads.map(lambda _: pool.take_trial(A, "", True), range(32)))
    assert trials.count(True) == 1


def test_who_rests_is_listed_by_name_and_stated_end() -> None:
    pool = AccountPool((A, B))
    pool.refused(A, RateLimited("slow", retry_after=60), "tiny-1")
    [resting] = pool.resting()
    assert (resting.account, resting.model) == ("a", "tiny-1")
    left = datetime.fromisoformat(resting.until) - datetime.now(timezone.utc)
    assert 50 < left.total_seconds() <= 60 and "token" not in repr(resting)


def test_a_rejected_token_is_tried_after_all_others_for_a_while() -> None:
    clock = Clock()
    pool = AccountPool((A, B, C), clock)
    pool.refused(A, TokenRejected("no"))
    attempts = Attempts(pool, (A, B, C), 3)
    assert [attempts.next() for _ in range(3)] == [B, C, A], (
        "it may have been one model's refusal"
    )
    assert Attempts(pool, (A,), 0).next() is A, "the only one is never shut off"
    clock.now = REJECTED_SECONDS
    assert Attempts(pool, (A, B, C), 3).next() is A


def test_a_token_is_redacted() -> None:
    assert (
        Account("a", "any-key-at-all").redact(b"wrong key: any-key-at-all!")
        == b"wrong key: ...!"
    )
    assert Account("a", "ollama").redact(b"ollama is full") == b"ollama is full"
    assert Account("a", "").redact(b"nothing") == b"nothing"


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


def test_the_accounts_of_a_setting_are_labelled_by_number_without_their_tokens() -> (
    None
):
    person = jwt(sub="someone")
    first, second = Account.of_setting("ACCESS_TOKEN", ("opaque-1", person), ": why")
    assert first.log_name == "ACCESS_TOKEN number 1"
    assert second.log_name == f"ACCESS_TOKEN number 2 ({second.name})"
    assert (first.renewal, second.token) == (": why", person)
    own = Account.of(person)
    assert own.log_name == f"A caller's own credential ({own.name})"


def test_an_account_rests_for_the_error_that_says_so() -> None:
    clock = Clock()
    pool = AccountPool((A,), clock)
    pool.refused(A, Challenged("no end is stated"))
    assert pool.limit(A) is None
    pool.refused(A, Challenged("words for one caller", retry_after=300))
    clock.now += 10
    rest = pool.limit(A)
    assert isinstance(rest, Challenged) and rest.retry_after == 290
    assert rest.status == 403 and "one caller" not in rest.message
    clock.now += 290
    assert pool.limit(A) is None


def test_a_conversation_of_an_account_that_is_gone_is_not_asked_for_without_one() -> (
    None
):
    pool = AccountPool((anonymous_account(),))
    with pytest.raises(UpstreamGone):
        pool.only(Account.of(jwt(sub="gone")).name)
