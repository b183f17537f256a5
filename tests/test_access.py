from __future__ import annotations

import base64
import multiprocessing
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.access import Access, first_key, parse_keys
from relay.errors import BadRequest, Forbidden, RelayError, Unauthorized
from relay.settings import SettingsError
from tests.tokens import jwt

TWO = parse_keys(("alice:key-of-alice", "key-of-nobody"))
ONE = parse_keys(("the-only-key",))


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"anyone:{password}".encode()).decode()


@pytest.mark.parametrize(
    ("header", "field"),
    [
        ("Bearer key-of-alice", None),
        ("bearer  key-of-alice ", None),
        ("key-of-alice", None),
        (basic("key-of-alice"), None),
        ("", "key-of-alice"),
        ("Bearer key-of-alice", "key-of-alice"),
    ],
)
def test_a_key_is_accepted_in_four_ways(header: str, field: str | None) -> None:
    caller = Access(TWO).caller(header, field)
    assert (caller.owner, caller.may_spend, caller.token) == ("alice", True, None)


def test_owners() -> None:
    assert Access(ONE).caller("the-only-key", None).owner == "owner"
    unnamed = Access(TWO).caller("key-of-nobody", None).owner
    assert unnamed.startswith("key-") and "nobody" not in unnamed
    nobody = Access(()).caller("", None)
    assert (nobody.owner, nobody.may_spend) == ("anonymous", True)
    by_token = Access(()).caller("", "some-token").owner
    assert (
        by_token.startswith("token-")
        and by_token == Access(()).caller("Bearer some-token", None).owner
    )


@pytest.mark.parametrize(
    "header",
    [
        "", " ", "Bearer", "Bearer ", "Bearer  ", "wrong", "the-only-key-", "the-only-ke", "THE-ONLY-KEY",
        "Bearer cw-wrong", basic("wrong"), basic(""), "Digest the-only-key", "Bearer None",
    ],
)  # fmt: skip
def test_without_a_valid_key_nobody_may_spend_the_services_credentials(
    header: str,
) -> None:
    access = Access(ONE, allow_tokens=False)
    with pytest.raises(Unauthorized):
        access.caller(header, None)


@given(st.text(max_size=40), st.text(max_size=40))
def test_no_other_text_is_accepted_as_a_key(header: str, field: str) -> None:
    if "the-only-key" in header or "the-only-key" in field:
        return
    try:
        caller = Access(ONE).caller(header, field or None)
    except RelayError:
        return
    assert not caller.may_spend and caller.token


def test_a_callers_own_token_needs_no_key() -> None:
    caller = Access(ONE).caller("Bearer eyJ.own.token", None)
    assert (caller.may_spend, caller.token) == (False, "eyJ.own.token")
    assert Access(ONE).caller("", "own-token").token == "own-token"


def test_a_key_beside_a_token_spends_the_token_for_the_keys_owner() -> None:
    for header, field in (
        ("Bearer the-only-key", "own"),
        ("Bearer own", "the-only-key"),
    ):
        caller = Access(ONE).caller(header, field)
        assert (caller.owner, caller.token) == ("owner", "own")


def test_tokens_can_be_switched_off() -> None:
    access = Access(ONE, allow_tokens=False)
    with pytest.raises(Unauthorized):
        access.caller("Bearer own", None)
    with pytest.raises(Forbidden):
        access.caller("Bearer the-only-key", "own")


def test_a_text_that_looks_like_a_client_key_is_never_used_as_a_token() -> None:
    for access in (Access(ONE), Access(())):
        with pytest.raises(Unauthorized):
            access.caller("", "cw-not-ours-any-more")


def test_a_text_that_no_upstream_recognizes_is_no_token() -> None:
    def recognizes(token: str) -> bool:
        return token.startswith("eyJ")

    access = Access(ONE, recognizes=recognizes)
    assert access.caller("Bearer eyJ.own.token", None).token == "eyJ.own.token"
    for header, field in (
        ("Bearer mistyped", None),
        ("", "mistyped"),
        ("Bearer the-only-key", "mistyped"),
    ):
        with pytest.raises(Unauthorized):
            access.caller(header, field)
    assert Access((), recognizes=recognizes).caller("Bearer dummy", None).token is None
    with pytest.raises(Unauthorized):
        Access((), recognizes=recognizes).caller("", "dummy")


def test_two_tokens_are_refused() -> None:
    with pytest.raises(BadRequest):
        Access(()).caller("Bearer one", "two")


def test_a_broken_basic_header() -> None:
    with pytest.raises(BadRequest):
        Access(ONE).caller("Basic !!!", None)


def test_no_secret_is_shown() -> None:
    text = repr(ONE) + repr(Access(ONE).caller("", "own-token"))
    assert "the-only-key" not in text and "own-token" not in text


@pytest.mark.parametrize(
    "entries",
    [
        ("none", "key"),
        ("anonymous:key",),
        ("a b:key",),
        ("name:",),
        (":key",),
        ("a:x", "b:x"),
        ("x", "x"),
    ],
)
def test_invalid_keys_refuse_the_start(entries: tuple[str, ...]) -> None:
    with pytest.raises(SettingsError, match="AUTHORIZATION"):
        parse_keys(entries)


def _make(folder: str) -> tuple[str, bool]:
    return first_key(Path(folder))


def test_processes_that_start_at_once_make_one_key(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        made = pool.map(_make, [str(tmp_path / "data")] * 16)
    keys = {key for key, _ in made}
    assert len(keys) == 1 and sum(new for _, new in made) == 1
    assert keys.pop().startswith("cw-")
    path = tmp_path / "data" / "client_key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["client_key"]


def test_a_key_file_that_others_can_read_refuses_the_start(tmp_path: Path) -> None:
    first_key(tmp_path)
    (tmp_path / "client_key").chmod(0o644)
    with pytest.raises(SettingsError, match="chmod 600"):
        first_key(tmp_path)


def test_an_empty_key_file_refuses_the_start(tmp_path: Path) -> None:
    (tmp_path / "client_key").touch(mode=0o600)
    with pytest.raises(SettingsError, match="holds no client key"):
        first_key(tmp_path)


def test_a_token_of_chatgpts_may_be_shown_bare_and_no_other() -> None:
    access = Access(parse_keys(("the-client-key-0",)), recognizes=lambda token: True)
    token = jwt(sub="a-person")
    assert access.caller(token, None).token == token
    assert access.caller("the-client-key-0", None).token is None
    for other in ("sk-a-key-of-theirs", "sess-of-theirs", "mistyped-key"):
        with pytest.raises(Unauthorized) as caught:
            access.caller(other, None)
        assert caught.value.wrong_key


def test_a_route_may_take_what_no_upstream_recognizes() -> None:
    access = Access(parse_keys(("the-client-key-0",)), recognizes=lambda token: False)
    shown = "Bearer sess-of-theirs"
    with pytest.raises(Unauthorized):
        access.caller(shown, None)
    assert access.caller(shown, None, lambda token: True).token == "sess-of-theirs"
