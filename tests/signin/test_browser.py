"""Signing in by a redirect that a person pastes."""

from __future__ import annotations

import base64
import hashlib
import os
from urllib.parse import parse_qs, urlsplit

import pytest

from relay.errors import BadRequest, UpstreamRefused
from relay.signin.browser import (
    REDIRECT_URI,
    AuthorizationRequest,
    authorize_url,
    read_redirect,
)
from relay.signin.issuer import Issuer
from tests.signin.oauth_server import OAuthServer


def test_a_pasted_redirect_leads_to_tokens(server: OAuthServer, issuer: Issuer) -> None:
    request = AuthorizationRequest.begin(os.urandom)
    landed = server.authorize(authorize_url(issuer.base, request))
    tokens = issuer.redeem(read_redirect(f"  {landed}\r\n", request))
    assert tokens.person.email == server.person.email
    assert request.verifier not in repr(request) and request.state not in repr(request)


def test_a_verifier_of_another_sign_in_is_refused(
    server: OAuthServer, issuer: Issuer
) -> None:
    request = AuthorizationRequest.begin(os.urandom)
    landed = server.authorize(authorize_url(issuer.base, request))
    thief = AuthorizationRequest(
        AuthorizationRequest.begin(os.urandom).verifier, request.state
    )
    with pytest.raises(UpstreamRefused, match="invalid_grant"):
        issuer.redeem(read_redirect(landed, thief))


def test_the_attempt_is_as_rfc_7636_wants_it() -> None:
    request = AuthorizationRequest.begin(lambda size: bytes(range(size)))
    assert len(request.verifier) == 86 and len(request.state) == 43
    digest = hashlib.sha256(request.verifier.encode()).digest()
    assert base64.urlsafe_b64decode(f"{request.challenge}=") == digest
    query = parse_qs(urlsplit(authorize_url("https://issuer.example", request)).query)
    assert query["redirect_uri"] == [REDIRECT_URI]
    assert request.verifier not in str(query)


REQUEST = AuthorizationRequest("v" * 43, "the-state-of-this")


@pytest.mark.parametrize(
    "text",
    [
        f"{REDIRECT_URI}?code=the-code&state=the-state-of-this",
        f"{REDIRECT_URI}?state=the-state-of-this&code=the-code&scope=openid#_",
        "?code=the-code&state=the-state-of-this",
        "code=the-code&state=the-state-of-this",
        "localhost:1455/auth/callback?code=the-code&state=the-state-of-this",
    ],
)
def test_the_whole_address_or_its_query(text: str) -> None:
    grant = read_redirect(text, REQUEST)
    assert grant.code == "the-code" and grant.verifier == REQUEST.verifier
    assert grant.redirect_uri == REDIRECT_URI


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "whole address"),
        ("the-code", "whole address"),
        ("http://[/?code=a&state=b", "whole address"),
        (f"{REDIRECT_URI}?code=the-code", "whole address"),
        (f"{REDIRECT_URI}?state=the-state-of-this", "whole address"),
        ("x\x1b?code=a&state=the-state-of-this", "whole address"),
        (f"?code=a&state=the-state-of-this&x={'y' * 9000}", "whole address"),
        ("?" + "a=b&" * 60 + "state=the-state-of-this", "whole address"),
        ("?code=a&state=another", "another sign-in"),
        ("?error=access_denied&state=another", "another sign-in"),
    ],
    ids=lambda value: value[:40],
)
def test_what_may_be_pasted_again(text: str, sentence: str) -> None:
    with pytest.raises(BadRequest, match=sentence):
        read_redirect(text, REQUEST)


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("error=access_denied", "refused on the page"),
        ("error=access_denied&error_description=missing_codex_entitlement", "admin"),
        ("error=server_error&error_description=x", "did not sign in"),
    ],
)
def test_what_the_issuer_refuses(query: str, sentence: str) -> None:
    with pytest.raises(UpstreamRefused, match=sentence):
        read_redirect(f"{REDIRECT_URI}?{query}&state=the-state-of-this", REQUEST)
