"""Single fields: what they may be, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from relay.dialects import fields
from relay.errors import BadRequest, TooLarge


@pytest.mark.parametrize(
    ("value", "flag"),
    [
        ("true", True),
        (True, True),
        ("1", True),
        (1, True),
        ("False", False),
        (0, False),
        ("no", False),
    ],
)
def test_a_flag(value: object, flag: bool) -> None:
    assert fields.flag_of({"stream": value}, "stream") is flag


@pytest.mark.parametrize("value", ["perhaps", 2, [], {}, 1.5])
def test_an_invalid_flag(value: object) -> None:
    with pytest.raises(BadRequest, match="true or false"):
        fields.flag_of({"stream": value}, "stream")


@pytest.mark.parametrize("absent", ["undefined", "null", "", "  ", None])
@pytest.mark.parametrize("name", ["conversation_id", "conversationId"])
def test_an_id_that_a_script_left_out_is_absent(name: str, absent: str | None) -> None:
    assert fields.conversation_of({name: absent}) is None


def test_ids_have_the_names_of_node_clients_too() -> None:
    values: dict[str, Any] = {"conversationId": "c1", "parentMessageId": "p1"}
    assert fields.conversation_of(values) == "c1" and fields.parent_of(values) == "p1"
    both = {"conversation_id": "c1", "conversationId": "c2"}
    with pytest.raises(BadRequest, match="differ"):
        fields.conversation_of(both)
    with pytest.raises(BadRequest, match="differ"):
        fields.parent_of({"parent_id": "p1", "parentMessageId": "p2"})
    assert fields.conversation_of({**both, "conversationId": "undefined"}) == "c1"


def test_a_whole_number_of_a_query_has_a_largest_value() -> None:
    assert fields.count_of("1000", "limit") == 1000
    assert fields.count_of("999999999", "offset") == 999_999_999
    for value in ("1001", "", "-1", "1.5", "1" * 400, "\u0661"):
        with pytest.raises(BadRequest, match="at most 1000"):
            fields.count_of(value, "limit")


@pytest.mark.parametrize("name", ["metadata", "response_format", "stop"])
def test_json_in_a_field_has_the_same_bounds_as_a_body(name: str) -> None:
    with pytest.raises(BadRequest, match="nested"):
        fields.options_of({name: "[" * 101 + "]" * 101})
    with pytest.raises(TooLarge, match="200000"):
        fields.options_of({name: "[" + "1," * 600_000 + "1]"})
