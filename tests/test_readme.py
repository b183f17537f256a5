"""The README is true: each route, field, setting, error and word of the offline upstream stands in it, and no other."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
from flask import Flask

from relay.dialects import form
from relay.settings import Settings
from relay.upstreams.offline import WORDS
from tests.error_tree import members
from tests.processes import ROOT

README = (ROOT / "README.md").read_text()
ABSTRACT = {"error", "caller_error", "service_error", "upstream_error"}


def section(title: str) -> str:
    return re.split(r"\n## ", README.split(f"\n## {title}\n")[1])[0]


def first_cells(text: str) -> set[str]:
    """The names in the first cells of a section's tables."""
    cells = re.findall(r"^\| (.+?) \|", text, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_every_setting_stands_in_the_readme_and_no_other() -> None:
    known = {
        name
        for field in fields(Settings)
        for name in (field.metadata["env"], *field.metadata["also"])
    }
    assert first_cells(section("Settings")) == known


@pytest.mark.parametrize("field", fields(Settings), ids=lambda field: field.name)
def test_a_settings_default_is_the_one_that_the_readme_gives(field: object) -> None:
    name, default = field.metadata["env"], field.default  # type: ignore[attr-defined]
    if not isinstance(default, (str, bool, int, float, tuple)):
        return
    [row] = [
        line
        for line in section("Settings").splitlines()
        if re.match(rf"\|[^|]*`{name}`", line)
    ]
    shown = row.split("|")[2]
    if name == "MAX_BODY":
        default = f"{default // 1024**2}MB"
    if isinstance(default, bool):
        default = str(default).lower()
    if isinstance(default, tuple):
        default = default[0] if default else ""
    if isinstance(default, float):
        default = f"{default:g}"
    if default and name != "DATABASE_URL":
        assert str(default) in shown


def test_every_route_stands_in_the_readme_and_no_other(
    build: Callable[..., Flask],
) -> None:
    known = {
        f"{method} {rule.rule.replace('<conversation_id>', '<id>')}"
        for rule in build().url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert {found for found in re.findall(r"`((?:GET|POST) /[^` ]*)`", README)} == known


def test_every_error_stands_in_the_readme_and_no_other() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", section("Failures"), re.MULTILINE)
    known = {member.code: member for member in members() if member.code not in ABSTRACT}
    assert {code for code, _ in rows} == set(known)
    for code, status in rows:
        if status.isdigit():
            assert known[code].status == int(status)


def test_every_field_stands_in_the_readme() -> None:
    told = first_cells(section("Asking"))
    used = set(re.findall(r'_of\(\s*fields, "(\w+)"', Path(form.__file__).read_text()))
    assert (
        used - {"title"} <= told
        and {
            "prompt",
            "msg",
            "parent_id",
            "parent_message_id",
            "access_token",
            "stream",
        }
        <= told
    )


def test_every_word_of_the_offline_upstream_stands_in_the_readme() -> None:
    rows = dict(
        re.findall(r"^\| `offline:(\w+)(?:=[^`]*)?` \| (.+) \|$", README, re.MULTILINE)
    )
    assert set(rows) == set(WORDS)
    for word, (_, _, _, meaning) in WORDS.items():
        assert meaning.split(" (")[0] in rows[word]


def test_the_first_screen_has_both_commands() -> None:
    commands = re.findall(r"^python3 -m venv .*$", README, re.MULTILINE)
    assert len(commands) == 2 and commands[0].endswith("python chatgpt_webapi.py")
    assert README.index(commands[1]) < README.index("## ")
    assert "python -m pytest" in (ROOT / ".ci" / "run").read_text()


def test_what_deploy_and_the_image_name_exists() -> None:
    for name in re.findall(r"`((?:deploy|benchmarks|relay)/[\w./-]+)`", README):
        assert (ROOT / name).exists(), name
