"""The direction of imports, read from the source."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.processes import ROOT

MODULES = sorted([*ROOT.glob("*.py"), *ROOT.glob("relay/**/*.py")])
VALUES = {
    "relay.domain",
    "relay.errors",
    "relay.deadline",
    "relay.cached",
    "relay.ids",
}
PROTOCOL = {
    "relay.upstreams!"
}  # the package's own module alone: what an upstream must be able to do

#: module or package -> which modules of the project it may import; a package's own modules may always be imported within it.
MAY_IMPORT = {
    "relay.domain": set(),
    "relay.errors": set(),
    "relay.deadline": set(),
    "relay.cached": set(),
    "relay.ids": set(),
    "relay.values": set(),
    "relay.settings": set(),
    "relay.server": set(),
    "relay.connection": {"relay.deadline", "relay.transports.sockets"},
    "relay.request_parser": set(),
    "relay.stream_pump": {"relay.deadline", "relay.delivery"},
    "relay.containers": set(),
    "relay.systemd": set(),
    "relay.workers": {"relay.containers", "relay.logs", "relay.systemd"},
    "relay.waiting_callers": {"relay.connection", "relay.deadline"},
    "relay.http_server": {
        "relay.waiting_callers",
        "relay.server",
        "relay.stream_pump",
        "relay.connection",
        "relay.deadline",
        "relay.request_parser",
    },
    "relay.logs": set(),
    "relay.sse": VALUES,
    "relay.attachments": VALUES | {"relay.shown"},
    "relay.citations": set(),
    "relay.growing_text": set(),
    "relay.shown": VALUES | {"relay.citations"},
    "relay.window": VALUES,
    "relay.schema": {"relay.errors"},
    "relay.database_errors": {"relay.errors"},
    "relay.database": {"relay.errors", "relay.server", "relay.database_errors"},
    "relay.tables": VALUES | {"relay.schema", "relay.window"},
    "relay.store": VALUES
    | {"relay.server", "relay.schema", "relay.database", "relay.tables"},
    "relay.usage": VALUES
    | {"relay.window", "relay.schema", "relay.database", "relay.tables"},
    "relay.upkeep": VALUES | {"relay.store"},
    "relay.replay": VALUES,
    "relay.keeping": VALUES | {"relay.store", "relay.upkeep", "relay.replay"},
    "relay.accounts": VALUES,
    "relay.token_store": VALUES
    | {"relay.schema", "relay.tables", "relay.store", "relay.accounts"},
    "relay.rest_store": VALUES
    | {"relay.schema", "relay.tables", "relay.store", "relay.accounts"},
    "relay.account_watch": VALUES | {"relay.accounts", "relay.rest_store"},
    "relay.pool": VALUES
    | {"relay.accounts", "relay.token_store", "relay.signin.tokens"},
    "relay.signin.refresh": VALUES
    | {"relay.transports!", "relay.upstreams.http", "relay.upstreams.wording"},
    "relay.signin.renewal": VALUES
    | {"relay.accounts", "relay.token_store", "relay.upkeep", "relay.signin.refresh"},
    "relay.signin.tokens": VALUES
    | {"relay.accounts", "relay.token_store", "relay.signin.renewal"},
    "relay.signin.claims": {"relay.accounts"},
    "relay.signin.issuer": VALUES
    | {"relay.signin.claims", "relay.signin.refresh", "relay.transports!"}
    | {"relay.upstreams.http", "relay.upstreams.wording"},
    "relay.signin.device": VALUES | {"relay.signin.issuer", "relay.signin.refresh"},
    "relay.signin.browser": VALUES | {"relay.signin.issuer", "relay.signin.refresh"},
    "relay.signin.keeping": {"relay.signin.claims", "relay.signin.issuer"},
    "relay.signin.grants": VALUES | {"relay.accounts"},
    "relay.signin": VALUES
    | {"relay.settings", "relay.upstreams.addresses", "relay.upstreams.wording"},
    "relay.access": VALUES | {"relay.settings", "relay.accounts"},
    "relay.transports.selection": {"relay.server", "relay.settings"}
    | {"relay.transports"},
    "relay.transports": VALUES | {"relay.server", "relay.sse"},
    "relay.upstreams": VALUES
    | {"relay.sse", "relay.accounts", "relay.transports", "relay.settings"}
    | {"relay.server", "relay.attachments", "relay.shown", "relay.citations"}
    | {"relay.growing_text"},
    "relay.links": VALUES
    | {"relay.attachments", "relay.transports!", "relay.upstreams.http"},
    "relay.wrapping": PROTOCOL,
    "relay.cutting": VALUES | {"relay.window", "relay.wrapping"} | PROTOCOL,
    "relay.models": VALUES | PROTOCOL,
    "relay.downloads": VALUES
    | {"relay.access", "relay.settings", "relay.wrapping"}
    | PROTOCOL,
    "relay.turn": VALUES
    | {"relay.keeping", "relay.usage", "relay.window", "relay.growing_text"}
    | PROTOCOL,
    "relay.chat": VALUES
    | {"relay.store", "relay.keeping", "relay.upkeep", "relay.replay", "relay.window"}
    | {"relay.cutting", "relay.models", "relay.usage", "relay.attachments"}
    | {"relay.downloads", "relay.turn"}
    | PROTOCOL,
    "relay.index": VALUES
    | {"relay.store", "relay.accounts", "relay.window"}
    | PROTOCOL,
    "relay.conversations": VALUES | {"relay.store", "relay.downloads"} | PROTOCOL,
    "relay.delivery": VALUES | {"relay.chat", "relay.turn"},
    "relay.memory": VALUES,
    "relay.passage": VALUES
    | {"relay.accounts", "relay.transports", "relay.delivery", "relay.upstreams.http"}
    | PROTOCOL,
    "relay.file_passage": VALUES
    | {"relay.accounts", "relay.transports!", "relay.delivery", "relay.passage"}
    | {"relay.upstreams.http"}
    | PROTOCOL,
    "relay.newcomers": VALUES | {"relay.chat", "relay.turn", "relay.delivery"},
    "relay.dialects.openai": VALUES
    | {"relay.sse", "relay.window", "relay.dialects", "relay.attachments"},
    "relay.dialects": VALUES | {"relay.sse", "relay.attachments", "relay.shown"},
    "relay.server_accounts": VALUES
    | {"relay.accounts", "relay.account_watch", "relay.pool"}
    | {"relay.signin.tokens", "relay.token_store", "relay.upstreams"},
    "relay.service": {"relay"},
    "relay.setting_warnings": {"relay.settings"},
    "relay.commands.backup": {"relay.errors", "relay.schema", "relay.database"},
    "relay.startup": {
        "relay.systemd",
        "relay.errors",
        "relay.settings",
        "relay.access",
        "relay.accounts",
        "relay.database",
    }
    | {"relay.service", "relay.upstreams", "relay.transports.selection"},
    "relay.commands.keys": {"relay.settings", "relay.access", "relay.database"}
    | {"relay.server", "relay.store", "relay.startup", "relay.usage"},
    "relay.commands.check": {"relay"},
    "relay.commands.terminal": {"relay.errors"},
    "relay.commands.sign_ins": {"relay"},
    "relay.commands.login": {"relay"},
    "relay.commands.logout": {"relay"},
    "relay.commands": {"relay.__version__", "relay.errors", "relay.settings"}
    | {"relay.commands.backup", "relay.commands.check", "relay.commands.keys"}
    | {"relay.commands.login", "relay.commands.logout"},
    "relay.web": VALUES
    | {"relay.dialects", "relay.service", "relay.delivery", "relay.turn"}
    | {"relay.access", "relay.newcomers", "relay.memory", "relay.signin"}
    | {"relay.passage", "relay.index", "relay.transports!", "relay.usage"}
    | {"relay.window", "relay.attachments", "relay.downloads"}
    | {"relay.file_passage", "relay.pool", "relay.logs"}
    | PROTOCOL,
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


def may_import(module: str, allowed: set[str]) -> bool:
    """Whether an import is allowed; a name with "!" allows a package's own module, and none within it."""
    packages = {name for name in allowed if not name.endswith("!")}
    within = any(module == name or module.startswith(f"{name}.") for name in packages)
    return within or f"{module}!" in allowed


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_a_module_imports_only_what_lies_below_it(path: Path) -> None:
    name = module_name(path)
    if not name.startswith("relay."):
        return
    prefixes = [
        prefix
        for prefix in MAY_IMPORT
        if name == prefix or name.startswith(f"{prefix}.")
    ]
    assert prefixes, f"{name} has no place in MAY_IMPORT"
    allowed = MAY_IMPORT[prefixes[0]] | {prefixes[0], "relay.values"}
    modules = {module for module in imported(path) if module.startswith("relay.")}
    assert {module for module in modules if not may_import(module, allowed)} == set()


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_flask_and_gevent_stay_where_they_belong(path: Path) -> None:
    name = module_name(path)
    roots = {module.split(".")[0] for module in imported(path)}
    assert "gevent" not in roots or name == "wsgi"
    is_flasks = name == "chatgpt_webapi" or name.startswith("relay.web")
    assert "flask" not in roots or is_flasks


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_dialects_and_decoders_need_no_threads_and_no_clock(path: Path) -> None:
    name = module_name(path)
    roots = {module.split(".")[0] for module in imported(path)}
    pure = name.startswith("relay.dialects") or name.endswith(
        (".decoder", ".classic", ".delta", ".answer", ".body", ".proof", ".sentinel")
    )
    assert not pure or not roots & {"threading", "time", "socket", "queue"}


def is_broad(handler: ast.expr | None) -> bool:
    """Whether a handler catches everything: by no type, or by one of the two widest, alone or among others."""
    if handler is None:
        return True
    names = {node.id for node in ast.walk(handler) if isinstance(node, ast.Name)}
    return bool(names & {"Exception", "BaseException"})


#: what answers every failure, and what drives streams: each by its own thread, or all by one
CATCHING = ("relay.web.edge", "relay.delivery", "relay.stream_pump")


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_who_must_not_fail_catches_everything_and_none_prints(path: Path) -> None:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    handlers = [node.type for node in nodes if isinstance(node, ast.ExceptHandler)]
    broad = [handler for handler in handlers if is_broad(handler)]
    assert len(broad) == (1 if module_name(path) in CATCHING else 0)
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    assert not [call for call in calls if getattr(call.func, "id", "") == "print"]


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_no_view_and_no_function_of_the_web_is_handed_things_by_flasks_g(
    path: Path,
) -> None:
    names = [node for node in ast.walk(ast.parse(path.read_text()))]
    flask = [node for node in names if isinstance(node, ast.ImportFrom)]
    aliases = {
        alias.name for node in flask if node.module == "flask" for alias in node.names
    }
    assert not aliases & {"g", "current_app", "request", "session"}
