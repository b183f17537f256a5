"""Invented access tokens."""

from __future__ import annotations

import base64
import json


def jwt(**claims: object) -> str:
    """An unsigned token with these claims, in the form of ChatGPT's."""
    payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"eyJhbGciOiJub25lIn0.{payload}.c2ln"
