"""chat2api's environment: each of its variables is a setting of the same name here, or the README says why it is none."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from relay.setting_warnings import FORMER_NAMES, find_warnings
from relay.settings import Settings, names_of
from tests.processes import ROOT

#: as its document has them, with the values that it gives
DOCUMENTED = {
    "API_PREFIX": "your_prefix",
    "CHATGPT_BASE_URL": "https://chatgpt.com",
    "HISTORY_DISABLED": "true",
    "PROXY_URL": "http://127.0.0.1:8081, socks5://127.0.0.1:8082",
    "ARKOSE_TOKEN_URL": "https://arkose.example.com/token",
    "POW_DIFFICULTY": "000032",
    "RETRY_TIMES": "3",
    "ENABLE_GATEWAY": "true",
}
#: as its code reads them besides
READ = {
    "ARK0SE_TOKEN_URL": "https://arkose.example.com/token",
    "AUTHORIZATION": "an-invented-key-1,an-invented-key-2",
    "AUTH_KEY": "an-invented-gateway-key",
    "CF_FILE_URL": "https://files.example.com",
    "CHECK_MODEL": "false",
    "CONVERSATION_ONLY": "false",
    "ENABLE_LIMIT": "true",
    "EXPORT_PROXY_URL": "http://127.0.0.1:8083",
    "SCHEDULED_REFRESH": "false",
    "UPLOAD_BY_URL": "false",
    "USER_AGENTS": '["Mozilla/5.0 (X11; Linux x86_64)"]',
}
NAMES = [*DOCUMENTED, *READ]
SETTINGS = {name for known in fields(Settings) for name in names_of(known)}


def rows() -> dict[str, str]:
    """The README's table of chat2api's variables: name -> what stands behind it."""
    readme = (ROOT / "README.md").read_text()
    section = readme.split("## chat2api's variables\n")[1].split("\n## ")[0]
    return dict(re.findall(r"^\| `([A-Z0-9_]+)` \| (.+) \|$", section, re.MULTILINE))


@pytest.mark.parametrize("name", NAMES)
def test_each_variable_is_a_setting_or_is_told_to_be_none(name: str) -> None:
    assert (name in SETTINGS) != (name in FORMER_NAMES)
    assert name in rows()
    assert ("has no effect" in rows()[name]) == (name in FORMER_NAMES)


def test_the_readme_names_no_other() -> None:
    assert rows().keys() == set(NAMES)


def test_a_compose_file_of_it_is_read_as_it_is() -> None:
    env = {**DOCUMENTED, **READ}
    del env["ARK0SE_TOKEN_URL"]  # the other spelling
    settings = Settings.from_env(env)
    assert settings.api_prefix == "/your_prefix"
    assert settings.proxy_url == ("http://127.0.0.1:8081", "socks5://127.0.0.1:8082")
    assert settings.user_agents == ("Mozilla/5.0 (X11; Linux x86_64)",)
    assert settings.retry_times == 3 and settings.history_disabled


@pytest.mark.parametrize("quote", ['"', "'"])
def test_user_agents_are_read_in_either_quotes(quote: str) -> None:
    value = f"[{quote}Mozilla/5.0 (A, B){quote}, {quote}curl/8{quote}]"
    settings = Settings.from_env({"USER_AGENTS": value})
    assert settings.user_agents == ("Mozilla/5.0 (A, B)", "curl/8")


def test_what_has_no_effect_is_warned_of(tmp_path: Path) -> None:
    env = {"CF_FILE_URL": "https://files.example.com"}
    warnings = find_warnings(Settings(), env, tmp_path / ".env")
    assert len(warnings) == 1 and warnings[0].startswith("CF_FILE_URL has no effect: ")
    assert "files.example.com" not in warnings[0]
