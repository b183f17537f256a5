"""What tests read of the service's answers."""

from __future__ import annotations

from typing import Any

from flask.testing import FlaskClient


class Reader(FlaskClient):
    """A client that reads each answer to its end and lets it go."""

    def open(self, *arguments: Any, **options: Any) -> Any:
        return super().open(*arguments, **{"buffered": True, **options})


def body_of(response: Any) -> Any:
    """The JSON of an answer that is whole."""
    assert response.status_code == 200, response.text
    return response.json
