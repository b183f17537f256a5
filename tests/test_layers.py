"""The direction of imports, read from the source."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT

MODULES = sorted([*ROOT.glob("*.py"), *ROOT.glob("relay/**/*.py")])
VALUES = {"relay.domain", "relay.errors"}

#: module or package -> what of ours it may import; a package's own modules may always be imported within it.
MAY_IMPORT = {
    "relay.domain": set(),
    "relay.errors": set(),
    "relay.settings": set(),
    "relay.serving": set(),
    "relay.logs": set(),
    "relay.sse": VALUES,
    "relay.schema": {"relay.errors"},
    "relay.database": {"relay.errors", "relay.serving"},
    "relay.store": VALUES | {"relay.serving", "relay.schema", "relay.database"},
    "relay.keeping": VALUES | {"relay.store"},
    "relay.window": VALUES,
    "relay.accounts": VALUES,
    "relay.access": VALUES | {"relay.settings", "relay.accounts"},
    "relay.chat": VALUES | {"relay.store", "relay.keeping", "relay.window"},
    "relay.conversations": VALUES | {"relay.store"},
    "relay.transports": VALUES,
    "relay.driver": VALUES | {"relay.chat"},
    "relay.dialects": VALUES
    | {"relay.sse", "relay.chat", "relay.driver", "relay.serving"},
    "relay.upstreams": VALUES | {"relay.sse", "relay.accounts", "relay.transports"},
}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names |= {
                f"{module}.{alias.name}" if module == "relay" else module
                for alias in node.names
            }
    return names


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(
        ".__init__"
    )


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_a_module_imports_only_what_lies_below_it(path: Path) -> None:
    name = module_name(path)
    if not name.startswith("relay."):
        return
    known = [
        prefix
        for prefix in MAY_IMPORT
        if name == prefix or name.startswith(f"{prefix}.")
    ]
    assert known, f"{name} has no place in MAY_IMPORT"
    ours = {found for found in imported(path) if found.startswith("relay.")}
    allowed = MAY_IMPORT[known[0]] | {known[0]}
    assert {
        found
        for found in ours
        if found not in allowed and not found.startswith(f"{known[0]}.")
    } == set()


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_flask_and_gevent_stay_where_they_belong(path: Path) -> None:
    name, roots = module_name(path), {found.split(".")[0] for found in imported(path)}
    assert "gevent" not in roots or name == "wsgi"
    assert (
        "flask" not in roots
        or name == "chatgpt_webapi"
        or name.startswith("relay.dialects")
    )


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_one_place_catches_everything_and_none_prints(path: Path) -> None:
    tree = ast.parse(path.read_text())
    caught = [
        node.type for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler)
    ]
    broad = [
        node
        for node in caught
        if node is None or (isinstance(node, ast.Name) and node.id == "Exception")
    ]
    assert len(broad) == (1 if module_name(path) == "relay.driver" else 0)
    assert not [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
    ]
