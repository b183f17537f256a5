"""Signing in by a device code: a person types a short code on a page, in any browser, while this side asks for the end.

It is not RFC 8628: the paths are OpenAI's own, 403 and 404 mean that nobody has typed the code yet, and what comes at
the end is an authorization code whose verifier the issuer made.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import field
from typing import Any

from relay.errors import (
    RelayError,
    Unsupported,
    UpstreamCut,
    UpstreamFailed,
    UpstreamRefused,
    UpstreamTimeout,
)
from relay.signin.issuer import (
    AuthorizationCode,
    Issuer,
    Reply,
    is_not_entitled,
    refusal,
)
from relay.signin.refresh import CLIENT_ID
from relay.values import frozen

PATH = "/api/accounts/deviceauth"
LIFETIME = 900.0  # seconds that a code lives, where the issuer does not say
INTERVAL = 5.0  # between two requests, where it does not say
SLOWER = 5.0  # by so much, after slow_down (RFC 8628, 3.5)
LONGEST_INTERVAL = 60.0
_USER_CODE = re.compile(r"[A-Za-z0-9-]{4,32}")
_DENIED = re.compile(r"denied|declined|cancel")
_ENDED = re.compile(r"denied|declined|expired|cancel|entitlement")


@frozen
class DeviceCode:
    """A code for a person to type. `interval`, `lifetime`: in seconds."""

    user_code: str = field(repr=False)
    device_id: str = field(repr=False)
    interval: float = INTERVAL
    lifetime: float = LIFETIME


@frozen
class Clock:
    """Seconds that only grow, and a way to let some pass."""

    now: Callable[[], float]
    sleep: Callable[[float], None]


@frozen
class Waiting:
    """Nobody has typed the code yet. `longer`: seconds by which to ask less often; `problem`: why nobody knows."""

    longer: float = 0.0
    problem: str = ""


def page(issuer: Issuer) -> str:
    """Where the code is typed."""
    return f"{issuer.base}/codex/device"


def request_code(issuer: Issuer) -> DeviceCode:
    """A new code. Raises Unsupported where the issuer has no sign-in by device code, or another RelayError."""
    reply = issuer.post(f"{issuer.base}{PATH}/usercode", {"client_id": CLIENT_ID})
    if reply.status == 404:
        raise Unsupported(
            "The issuer has no sign-in by device code, or it is switched off: sign in "
            "with login --browser.",
            parameter="login",
        )
    if not reply.is_ok:
        raise refusal(reply, "a device code")
    return parse_code(reply)


def parse_code(reply: Reply) -> DeviceCode:
    """The code of an answer. Raises UpstreamFailed."""
    device_id = reply.text("device_auth_id")
    user_code = _first_text(reply, "user_code", "usercode")
    if not device_id or not _USER_CODE.fullmatch(user_code):
        raise refusal(reply, "a device code")
    interval = _seconds(reply.payload.get("interval")) or INTERVAL
    lifetime = _seconds(reply.payload.get("expires_in")) or LIFETIME
    return DeviceCode(
        user_code,
        device_id,
        min(max(1.0, interval), LONGEST_INTERVAL),
        min(lifetime, LIFETIME),
    )


def _first_text(reply: Reply, *names: str) -> str:
    values = (reply.payload.get(name) for name in names)
    return next((value for value in values if isinstance(value, str)), "")


def _seconds(value: Any) -> float:
    """A number, or one in a text as the issuer writes it; 0 for what is none."""
    text = str(value)
    return float(text) if re.fullmatch(r"[0-9]{1,6}(\.[0-9]+)?", text) else 0.0


def wait_for_authorization(
    issuer: Issuer,
    code: DeviceCode,
    clock: Clock,
    report: Callable[[float, str], None],
) -> AuthorizationCode:
    """What the issuer gives once somebody has typed the code and agreed.

    `report` is called before each wait with the seconds that are left, and a problem or "". Raises
    UpstreamTimeout when the code has expired, UpstreamRefused where somebody refused.
    """
    end = clock.now() + code.lifetime
    interval = code.interval
    problem = ""
    while (left := end - clock.now()) > 0:
        report(left, problem)
        clock.sleep(min(interval, left))
        outcome = ask(issuer, code)
        if isinstance(outcome, AuthorizationCode):
            return outcome
        interval = min(LONGEST_INTERVAL, interval + outcome.longer)
        problem = outcome.problem
    raise expired()


def expired() -> UpstreamTimeout:
    return UpstreamTimeout(
        "The code has expired before anybody typed it. Run login again for a new one."
    )


def ask(issuer: Issuer, code: DeviceCode) -> AuthorizationCode | Waiting:
    """Whether the code was typed. Raises what ends the sign-in; a lost connection does not."""
    fields = {"device_auth_id": code.device_id, "user_code": code.user_code}
    try:
        reply = issuer.post(f"{issuer.base}{PATH}/token", fields)
    except (UpstreamFailed, UpstreamCut) as error:
        return Waiting(problem=error.message)
    return read_outcome(reply, issuer.base)


def read_outcome(reply: Reply, base: str) -> AuthorizationCode | Waiting:
    """What an answer says of a code. Raises RelayError where it ends the sign-in."""
    if reply.is_ok:
        code = reply.text("authorization_code")
        verifier = reply.text("code_verifier")
        if not code or not verifier:
            raise refusal(reply, "the device code")
        return AuthorizationCode(code, verifier, f"{base}/deviceauth/callback")
    if reply.code == "slow_down" or reply.status == 429:
        return Waiting(longer=SLOWER)
    if reply.status >= 500:
        return Waiting(problem=f"The issuer failed (status {reply.status}).")
    if _is_pending(reply):
        return Waiting()
    raise _ended(reply)


def _is_pending(reply: Reply) -> bool:
    if "pending" in reply.code:
        return True
    is_ended = reply.is_challenge or _ENDED.search(f"{reply.code} {reply.message}")
    return reply.status in (403, 404) and not is_ended


def _ended(reply: Reply) -> RelayError:
    """The error for an answer after which there is nothing to wait for."""
    if "expired" in reply.code:
        return expired()
    has_reason = reply.is_challenge or is_not_entitled(reply)
    if _DENIED.search(reply.code) and not has_reason:
        return UpstreamRefused(
            "Somebody refused the sign-in on the page. Run login again if that was a "
            "mistake.",
            status=403,
        )
    return refusal(reply, "the device code")
