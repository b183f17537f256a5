"""Who a token of a sign-in belongs to, as the token itself says. Pure."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Any

import orjson

from relay.accounts import is_jwt

AUTH = "https://api.openai.com/auth"
PROFILE = "https://api.openai.com/profile"
LONGEST_CLAIM = 200
LATEST = 32503680000  # seconds since 1970: the year 3000


@dataclass(frozen=True)
class Person:
    """Who signed in: "" and None for what no token says. `expires`: of the access token, seconds since 1970."""

    email: str = ""
    plan: str = ""
    expires: float | None = None

    @property
    def label(self) -> str:
        """The e-mail address and the plan, for a sentence."""
        name = self.email or "an account without an e-mail address"
        return f"{name} (plan: {self.plan})" if self.plan else name


def read_claims(token: str) -> dict[str, Any]:
    """The claims of a JWT, unverified: it came from its issuer over TLS. Empty for what has none."""
    if not is_jwt(token):
        return {}
    payload = token.split(".")[1]
    try:
        decoded = base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))
        claims = orjson.loads(decoded)
    except (ValueError, RecursionError, binascii.Error):
        return {}
    return claims if isinstance(claims, dict) else {}


def person_of(access_token: str, id_token: str = "") -> Person:
    """Who two tokens of one sign-in belong to; the id_token counts first."""
    both = [read_claims(id_token), read_claims(access_token)]
    emails = [claims.get("email") for claims in both]
    emails += [_part(claims, PROFILE).get("email") for claims in both]
    plans = [_part(claims, AUTH).get("chatgpt_plan_type") for claims in both]
    return Person(_first(emails), _first(plans), _moment(both[1].get("exp")))


def _part(claims: dict[str, Any], name: str) -> dict[str, Any]:
    part = claims.get(name)
    return part if isinstance(part, dict) else {}


def _first(values: list[Any]) -> str:
    """The first text that is fit for a terminal, which some characters would command."""
    for value in values:
        if isinstance(value, str) and 0 < len(value) <= LONGEST_CLAIM:
            if value.isprintable():
                return value
    return ""


def _moment(value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and 0 < value < LATEST else None
