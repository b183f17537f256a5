"""Ids of our own making."""

from __future__ import annotations

import uuid

from relay.ids import new_id, new_ids


def test_an_id_is_a_random_uuid_as_python_writes_it() -> None:
    ids = {new_id() for _ in range(400)}
    for _ in range(200):
        ids.update(new_ids())
    assert len(ids) == 1000
    for identifier in ids:
        parsed = uuid.UUID(identifier)
        assert str(parsed) == identifier
        assert parsed.version == 4 and parsed.variant == uuid.RFC_4122
    digits = zip(*(identifier.replace("-", "") for identifier in ids), strict=True)
    varied = [len(set(digit)) == 16 for digit in digits]
    assert varied.count(False) == 2, (
        "all but those that say the version and the variant"
    )
