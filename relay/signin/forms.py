"""What a sign-in page says of itself: its form's fields and the codes of its errors. Pure.

Only tags are looked at, in linear time, and no script is run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from html.parser import HTMLParser

from relay.values import frozen

MOST_TAGS = 200
_TAG = re.compile(rb"<(?:input|form|span|div|p)\s[^<>]{1,4000}>", re.IGNORECASE)
_LOCKED = re.compile(
    r"\b(blocked|locked|deactivated|suspended|disabled|breached)\b", re.IGNORECASE
)
_LOCKED_SENTENCE = re.compile(
    rb"account (?:has been|is|was) (?:temporarily )?(?:blocked|locked|deactivated|suspended|disabled)"
)
_BROWSER_CHECK = re.compile(
    rb"just a moment|cf_chl_opt|cf-please-wait|challenge-platform|error code: 10[0-9]{2}\b"
)
_SECOND_FACTOR = re.compile(
    r"\b(mfa|2fa|otp|two-factor|second factor)\b", re.IGNORECASE
)
_CAPTCHA = re.compile(r"captcha|turnstile|arkose", re.IGNORECASE)


@frozen
class Form:
    """`fields`: the inputs and their values; `codes`: what the page's error texts are marked with."""

    fields: dict[str, str]
    codes: tuple[str, ...]
    is_locked_sentence: bool = False

    @property
    def wants_captcha(self) -> bool:
        return any(map(_CAPTCHA.search, (*self.fields, *self.codes)))

    @property
    def says_locked(self) -> bool:
        return self.is_locked_sentence or any(map(says_locked, self.codes))


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.fields: dict[str, str] = {}
        self.codes: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "input" and found.get("name"):
            self.fields[found["name"] or ""] = found.get("value") or ""
        for name, value in attrs:
            if name == "data-error-code":
                self.codes.append(value or "")
            elif name.startswith("data-captcha"):
                self.codes.append("captcha")


def read_form(body: bytes) -> Form:
    """The form of a page; one without fields where the page has none."""
    tags = _Tags()
    for number, tag in enumerate(_TAG.finditer(body)):
        if number == MOST_TAGS:
            break
        tags.feed(tag[0].decode("utf-8", "replace"))
    is_locked = _LOCKED_SENTENCE.search(body.lower()) is not None
    return Form(tags.fields, tuple(tags.codes), is_locked)


def is_browser_check(headers: Mapping[str, str], body: bytes) -> bool:
    """Whether a page wants a browser to solve something. Header names are in lower case.

    Pages that merely mention a captcha, as scripts do, are none.
    """
    if headers.get("cf-mitigated") or _BROWSER_CHECK.search(body.lower()):
        return True
    return read_form(body).wants_captcha


def says_locked(text: str) -> bool:
    """Whether an error's code or text says that the account may not sign in."""
    return _LOCKED.search(text.replace("_", "-")) is not None


def says_second_factor(text: str) -> bool:
    return _SECOND_FACTOR.search(text.replace("_", "-")) is not None


def says_captcha(text: str) -> bool:
    return _CAPTCHA.search(text) is not None
