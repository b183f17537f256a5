"""What tests read of the service's answers."""

from __future__ import annotations

from typing import Any


def body_of(response: Any) -> Any:
    """The JSON of an answer that is whole."""
    assert response.status_code == 200, response.text
    return response.json
