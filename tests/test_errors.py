from __future__ import annotations

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
