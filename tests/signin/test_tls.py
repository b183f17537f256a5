"""Signing in over TLS: the certificate is verified, and the deadline holds within TLS too."""

from __future__ import annotations

import ssl
import subprocess
import time
from pathlib import Path

import pytest

from relay.errors import Unreachable, UpstreamTimeout
from relay.settings import Settings
from relay.signin.grants import Credentials
from relay.signin.logins import Logins, open_logins
from tests.processes import need
from tests.signin_pages import EMAIL, PASSWORD, SignInPages

CREDENTIALS = Credentials(EMAIL, PASSWORD)


@pytest.fixture
def certificate(pages: SignInPages, tmp_path: Path) -> Path:
    """One for the two names of the pages, which speak TLS from then on."""
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    kind = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-addext", names]
    files = ["-subj", "/CN=localhost", "-keyout", str(key), "-out", str(chain)]
    command = [need("openssl"), "req", *kind, *files]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    for site in (pages.chatgpt, pages.auth):
        site.socket = context.wrap_socket(site.socket, server_side=True)
        site.url = site.url.replace("http:", "https:")
    return chain


def open_for(pages: SignInPages, seconds: float = 20.0) -> Logins:
    settings = Settings(
        chatgpt_base_url=(pages.chatgpt.url,),
        auth_base_url=pages.auth.url,
        total_timeout=seconds,
    )
    return open_logins(settings)


def test_a_certificate_that_is_trusted(
    pages: SignInPages, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    grant = open_for(pages).to_chatgpt(CREDENTIALS, "192.0.2.1")
    assert grant.access_token == pages.tokens[0]


def test_one_that_nobody_knows_is_sent_nothing(
    pages: SignInPages, certificate: Path
) -> None:
    with pytest.raises(Unreachable, match="TLS"):
        open_for(pages).to_chatgpt(CREDENTIALS, "192.0.2.1")
    assert not pages.all_received


def test_a_page_that_drips_within_tls(
    pages: SignInPages, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    pages.mode.drip_head = "/u/login/identifier"
    signing = open_for(pages, 3.0)
    began = time.monotonic()
    with pytest.raises(UpstreamTimeout):
        signing.to_chatgpt(CREDENTIALS, "192.0.2.1")
    assert time.monotonic() - began < 8
