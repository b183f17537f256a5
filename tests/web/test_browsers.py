"""What a browser may do for a page of another origin."""

from __future__ import annotations

import base64

import pytest

from relay.errors import Forbidden
from relay.web.browsers import BrowserRules


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"anyone:{password}".encode()).decode()


HOST = "chat.example.org"
LISTED = ("https://page.example",)
BROWSERS = [
    pytest.param((), {}, True, id="curl"),
    pytest.param((), {"Sec-Fetch-Site": "none"}, True, id="typed-by-hand"),
    pytest.param(
        (),
        {"Sec-Fetch-Site": "same-origin", "Origin": "https://chat.example.org"},
        True,
        id="own-page",
    ),
    pytest.param((), {"Sec-Fetch-Site": "cross-site"}, False, id="another-site"),
    pytest.param(
        (), {"Sec-Fetch-Site": "same-site"}, False, id="another-origin-of-the-site"
    ),
    pytest.param(
        LISTED,
        {"Sec-Fetch-Site": "cross-site"},
        False,
        id="another-site-without-origin",
    ),
    pytest.param(
        LISTED,
        {"Sec-Fetch-Site": "cross-site", "Origin": "https://page.example"},
        True,
        id="listed",
    ),
    pytest.param(
        LISTED,
        {"Sec-Fetch-Site": "cross-site", "Origin": "https://other.example"},
        False,
        id="not-listed",
    ),
    pytest.param(
        ("*",),
        {"Sec-Fetch-Site": "cross-site", "Origin": "https://other.example"},
        True,
        id="any",
    ),
    pytest.param(
        ("*",),
        {
            "Sec-Fetch-Site": "cross-site",
            "Origin": "https://other.example",
            "Cookie": "a=b",
        },
        False,
        id="any-but-never-with-credentials",
    ),
    pytest.param(
        (), {"Origin": "https://other.example", "Cookie": "a=b"}, False, id="cookie"
    ),
    pytest.param(
        (),
        {"Origin": "https://other.example", "Authorization": basic("k")},
        False,
        id="basic",
    ),
    pytest.param((), {"Origin": "null", "Cookie": "a=b"}, False, id="null-origin"),
    pytest.param(
        (), {"Origin": "http://[", "Cookie": "a=b"}, False, id="no-origin-at-all"
    ),
    pytest.param(
        (),
        {"Origin": "https://chat.example.org", "Cookie": "a=b"},
        True,
        id="own-origin",
    ),
    pytest.param(
        (),
        {"Origin": "https://other.example", "Authorization": "Bearer k"},
        True,
        id="nothing-ambient",
    ),
    pytest.param(
        LISTED,
        {"Origin": "https://page.example", "Authorization": basic("k")},
        True,
        id="listed-basic",
    ),
    pytest.param(
        (), {"Origin": "https://other.example"}, False, id="nothing-is-needed"
    ),
    pytest.param(
        (),
        {"Origin": "https://chat.example.org"},
        True,
        id="nothing-is-needed-by-our-own-page",
    ),
    pytest.param(
        LISTED,
        {"Origin": "https://page.example"},
        True,
        id="nothing-is-needed-by-a-listed-page",
    ),
    pytest.param(
        ("*",),
        {"Origin": "https://other.example"},
        True,
        id="nothing-is-needed-by-any-page",
    ),
    pytest.param(
        (),
        {
            "Sec-Fetch-Site": "same-origin",
            "Origin": "https://before.the.proxy",
            "Authorization": basic("k"),
        },
        True,
        id="the-browser-knows-better-than-a-host-that-a-proxy-changed",
    ),
]


@pytest.mark.parametrize(("origins", "headers", "allowed"), BROWSERS)
def test_browsers_on_other_origins(
    origins: tuple[str, ...], headers: dict[str, str], allowed: bool
) -> None:
    rules = BrowserRules(origins, needs_key=False)
    if allowed:
        rules.check(headers, HOST)
    else:
        with pytest.raises(Forbidden):
            rules.check(headers, HOST)


def test_where_a_key_is_needed_an_origin_alone_is_no_harm() -> None:
    rules = BrowserRules((), needs_key=True)
    rules.check({"Origin": "https://other.example"}, HOST)


def test_what_a_browser_may_read() -> None:
    assert BrowserRules((), False).cors("https://page.example") == {}
    listed = BrowserRules(LISTED, False)
    assert (
        listed.cors("https://page.example")["Access-Control-Allow-Origin"]
        == "https://page.example"
    )
    assert (
        listed.cors("https://page.example")["Access-Control-Allow-Credentials"]
        == "true"
    )
    assert listed.cors("https://other.example") == {"Vary": "Origin"}
    anyone = BrowserRules(("*",), False).cors("https://other.example")
    assert (
        anyone["Access-Control-Allow-Origin"] == "*"
        and "Access-Control-Allow-Credentials" not in anyone
    )
    with pytest.raises(Forbidden):
        listed.preflight({"Origin": "https://other.example"})
