from __future__ import annotations

import inspect
import re

import pytest

from relay import errors
from relay.errors import RelayError, UpstreamRefused
from tests.error_tree import members


def test_every_error_has_a_code_of_its_own() -> None:
    codes = [member.code for member in members()]
    assert len(codes) == len(set(codes))


@pytest.mark.parametrize("member", members(), ids=lambda member: member.__name__)
def test_the_tree_at_the_top_of_the_file_is_true(member: type[RelayError]) -> None:
    lines = [
        line
        for line in str(errors.__doc__).splitlines()
        if re.search(rf"\b{member.__name__}\b", line)
    ]
    assert lines, f"{member.__name__} is missing in the drawing"
    if drawn := re.search(r" (\d{3})\b", lines[0]):
        assert int(drawn[1]) == member.status


def test_a_status_that_is_no_error_becomes_a_bad_gateway() -> None:
    assert UpstreamRefused("odd", status=302).status == 502
    assert UpstreamRefused("gone", status=410).status == 410


def test_the_reason_of_an_error_has_nothing_that_others_wrote() -> None:
    failed = errors.UpstreamFailed("It said: a b (a b)", quoted="a b")
    assert (failed.message, failed.reason) == (
        "It said: a b (a b)",
        "It said: ... (...)",
    )
    assert errors.BadRequest("Send one prompt.").reason == "Send one prompt."
    # what is a quote as a whole, or is not found in the message, shows less
    for kind in (errors.Refused, errors.OutcomeUnknown):
        assert kind("secret").reason == kind.message
    assert errors.Busy("secret", quoted="other").reason == errors.Busy.message
    assert errors.Refused("It said: no", quoted="no").reason == "It said: ..."


@pytest.mark.parametrize("member", members(), ids=lambda member: member.__name__)
def test_every_error_that_takes_a_message_takes_what_it_quotes(
    member: type[RelayError],
) -> None:
    parameters = inspect.signature(member).parameters
    fixed = {
        errors.StillAnswering,
        errors.Unauthorized,
        errors.Overloaded,
        errors.NotRenewed,
    }
    assert "quoted" in parameters or member in fixed or member is errors.Challenged
