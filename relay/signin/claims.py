"""Who a token of a sign-in belongs to, as the token itself says. Pure."""

from __future__ import annotations

from typing import Any

from relay.accounts import claims_of, expiry
from relay.values import frozen

AUTH = "https://api.openai.com/auth"
PROFILE = "https://api.openai.com/profile"
LONGEST_CLAIM = 200


@frozen
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


def person_of(access_token: str, id_token: str = "") -> Person:
    """Who two tokens of one sign-in belong to; the id_token counts first."""
    both = [claims_of(id_token), claims_of(access_token)]
    emails = [claims.get("email") for claims in both]
    emails += [_part(claims, PROFILE).get("email") for claims in both]
    plans = [_part(claims, AUTH).get("chatgpt_plan_type") for claims in both]
    return Person(_first(emails), _first(plans), expiry(access_token))


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
