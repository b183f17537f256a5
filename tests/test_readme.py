"""The README is true: each route, field, setting, error and word of the offline upstream stands in it, and no other."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from flask import Flask

from relay.dialects import fields, form
from relay.settings import Settings
from relay.upstreams.offline import WORDS
from relay.web import own
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
    names = {
        name
        for field in dataclasses.fields(Settings)
        for name in (field.metadata["env"], *field.metadata["also"])
    }
    assert first_cells(section("Settings")) == names


@pytest.mark.parametrize(
    "field", dataclasses.fields(Settings), ids=lambda field: field.name
)
def test_a_settings_default_is_the_one_that_the_readme_gives(field: object) -> None:
    name, default = field.metadata["env"], field.default  # type: ignore[attr-defined]
    if not isinstance(default, (str, bool, int, float, tuple)):
        return
    [row] = [
        line
        for line in section("Settings").splitlines()
        if re.match(rf"\|[^|]*`{name}`", line)
    ]
    cell = row.split("|")[2]
    if name in ("MAX_BODY", "MAX_ANSWER"):
        default = f"{default // 1024**2}MB"
    if isinstance(default, bool):
        default = str(default).lower()
    if isinstance(default, tuple):
        default = default[0] if default else ""
    if isinstance(default, float):
        default = f"{default:g}"
    if default and name != "DATABASE_URL":
        assert str(default) in cell


def test_every_route_stands_in_the_readme_and_no_other(
    build: Callable[..., Flask],
) -> None:
    routes = {
        f"{method} {re.sub('<[a-z_:]+>', '<id>', rule.rule)}"
        for rule in build().url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        if rule.rule != "/v1/<path:path>"  # whatever else there is
    }
    assert {
        route for route in re.findall(r"`((?:GET|POST|DELETE) /[^` ]*)`", README)
    } == routes


def test_every_error_stands_in_the_readme_and_no_other() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", section("Failures"), re.MULTILINE)
    by_code = {
        member.code: member for member in members() if member.code not in ABSTRACT
    }
    assert {code for code, _ in rows} == set(by_code)
    for code, status in rows:
        if status.isdigit():
            assert by_code[code].status == int(status)


def test_every_field_stands_in_the_readme_and_no_other() -> None:
    table = section("Asking").split("| field | meaning |")[1].split("\n\n")[0]
    assert first_cells(table) == form.FIELDS


def test_every_field_that_is_read_is_listed() -> None:
    """The list that the README is compared with is that of the code."""
    modules = [form, fields, own]
    source = "".join(Path(str(module.__file__)).read_text() for module in modules)
    read = set(re.findall(r'_of\(\s*(?:fields|found), "(\w+)"', source))
    read |= set(re.findall(r'fields\.get\("(\w+)"\)', source))
    read |= set(re.findall(r'found\.get\("(\w+)"\)', source))
    aliases = re.findall(r"_one_of\(fields, \(([^)]*)\)\)", source)
    read |= {name for names in aliases for name in re.findall(r'"(\w+)"', names)}
    read |= {"prompt", "msg", *fields.PARAMETERS}
    assert read - {"title"} == form.FIELDS


def test_every_word_of_the_offline_upstream_stands_in_the_readme() -> None:
    rows = dict(
        re.findall(r"^\| `offline:(\w+)(?:=[^`]*)?` \| (.+) \|$", README, re.MULTILINE)
    )
    assert set(rows) == set(WORDS)
    for word, (_, _, _, meaning) in WORDS.items():
        assert meaning.split(" (")[0] in rows[word]


def test_both_commands_stand_in_the_readme() -> None:
    """One starts the service, the other runs the tests; CI takes the second from here."""
    commands = re.findall(r"^python3 -m venv .*$", README, re.MULTILINE)
    assert len(commands) == 2 and commands[0].endswith("python chatgpt_webapi.py")
    assert commands[1].endswith("python -m pytest")
    assert "python -m pytest" in (ROOT / ".ci" / "run").read_text()
