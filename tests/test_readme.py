"""The README is true: each route, field, setting, error and word of the offline upstream stands in it, and no other."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flask import Flask

from relay.dialects import bodies, fields, form
from relay.settings import Settings
from relay.upstreams.offline import WORDS
from relay.web import chatgpt_routes, own, passages
from tests.error_tree import members
from tests.processes import ROOT

README = (ROOT / "README.md").read_text()
CATCH_ALL = "/<path:path>"
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


def routes_of(app: Flask) -> Iterator[tuple[str, str]]:
    """Methods and paths; `<id>` for whatever a path's last part is called."""
    for rule in app.url_map.iter_rules():
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}:
            path = re.sub("<(?!path:path)[a-z_:]+>", "<id>", rule.rule)
            yield method, path


def prefixes() -> list[str]:
    """Those below which the README puts ChatGPT's web API."""
    return re.findall(r"`(/[^`]*)`", first_column("prefix"))


def routes_below_prefixes() -> list[tuple[str, str]]:
    """What the README has below each of them: methods and paths."""
    return re.findall(r"`([A-Z]+) ([^`]+)`", first_column("below each prefix"))


def first_column(head: str) -> str:
    """The first cells of the one table of ChatGPT's web API that begins with this head."""
    part = re.split(r"\n### ", README.split("\n### ChatGPT's web API\n")[1])[0]
    [table] = re.findall(rf"^\| {head} \|.*\n\|-.*\n((?:\|.*\n)+)", part, re.MULTILINE)
    return "\n".join(row.split("|")[1] for row in table.splitlines())


def test_every_route_stands_in_the_readme_and_no_other(
    build: Callable[..., Flask],
) -> None:
    routes = {
        f"{method} {path}"
        for method, path in routes_of(build())
        if not path.endswith(CATCH_ALL)
    }
    written = re.findall(r"`((?:GET|POST|PUT|PATCH|DELETE) /[^` ]*)`", README)
    below = [
        f"{method} {prefix}/{path}"
        for prefix in prefixes()
        for method, path in routes_below_prefixes()
    ]
    assert {*written, *below} == routes
    assert not set(written) & set(below)


def test_the_table_of_prefixes_and_routes_is_that_of_the_code() -> None:
    assert sorted(prefixes()) == sorted(chatgpt_routes.PREFIXES)
    known = [
        (method, re.sub("<[a-z_:]+>", "<id>", path))
        for method, path, _ in chatgpt_routes.ROUTES
    ]
    assert sorted(routes_below_prefixes()) == sorted(known)


def test_everything_else_stands_in_the_readme_wherever_it_is_answered(
    build: Callable[..., Flask],
) -> None:
    found = {route for route in routes_of(build()) if route[1].endswith(CATCH_ALL)}
    written = re.findall(r"everything (?:else )?below `(/[^`]+)/`", README)
    assert "everything else" in first_column("below each prefix")
    assert found == {
        (method, f"{place}{CATCH_ALL}")
        for place in (*written, *prefixes())
        for method in passages.METHODS
    }


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
    read |= {"prompt", "msg", *fields.PARAMETERS, *bodies.FILE_FIELDS}
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
