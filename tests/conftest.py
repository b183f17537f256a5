"""What tests share: a clean environment, the app in the process, the service as a process of its own, and nginx."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from socketserver import BaseServer
from typing import Any, TypeVar

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import make_url

from chatgpt_webapi import create_app
from relay.server import in_place
from relay.settings import Settings
from relay.store import Store
from tests.chatgpt_backend import Backend
from tests.openai_backend import OpenAIBackend
from tests.postgresql import PostgreSQL, programs
from tests.processes import Service, free_port, need
from tests.proxy_servers import pgbouncer

Server = TypeVar("Server", bound=BaseServer)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of the machine, and no `.env`, reaches a test."""
    for field in fields(Settings):
        for name in (field.metadata["env"], *field.metadata["also"]):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(f"{name}_FILE", raising=False)
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A PostgreSQL server; without the program its tests are skipped, but in CI they fail."""
    if (found := programs()) is None:
        need("initdb")
    assert found is not None
    server = PostgreSQL(found, free_port())
    yield server
    server.remove()


@pytest.fixture(scope="session")
def pooler(
    postgresql: PostgreSQL, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[int]:
    """The port of PgBouncer before the PostgreSQL server."""
    with pgbouncer(tmp_path_factory.mktemp("pgbouncer"), postgresql.port) as port:
        yield port


@pytest.fixture
def database(request: pytest.FixtureRequest) -> str:
    """The URL of the test's database; empty: a SQLite file of its own."""
    kind = getattr(request, "param", "sqlite")
    if kind == "sqlite":
        return ""
    server: PostgreSQL = request.getfixturevalue("postgresql")
    url = server.database()
    if kind == "postgresql":
        return url
    through = make_url(url).set(port=request.getfixturevalue("pooler"))
    return through.render_as_string(hide_password=False)


#: the files that take longest: they begin first, so that no process works alone at the end
LONGEST = (
    "test_clients",
    "test_load",
    "test_peers",
    "test_image",
    "test_readme_commands",
    "test_wsgi",
    "test_web_clients",
    "test_routes_to_chatgpt",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONGEST)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests of a module that says ON_BOTH run on either database, as far as they use one and do not say which.

    Those of one that says ALSO_POOLED run by way of PgBouncer too.
    """
    if any(
        "database" in mark.args[0]
        for mark in metafunc.definition.iter_markers("parametrize")
    ):
        return
    if "database" in metafunc.fixturenames and getattr(
        metafunc.module, "ON_BOTH", False
    ):
        is_pooled = getattr(metafunc.module, "ALSO_POOLED", False)
        kinds = ["sqlite", "postgresql", *(["pgbouncer"] if is_pooled else [])]
        metafunc.parametrize("database", kinds, indirect=True)


@pytest.fixture
def build(tmp_path: Path, database: str) -> Iterator[Callable[..., Flask]]:
    """Makes apps within the process, as `build(upstreams, **settings)`."""
    built: list[Flask] = []

    def make(*upstreams: Any, **settings: Any) -> Flask:
        known = {upstream.name: upstream for upstream in upstreams} or None
        given = {
            "data_dir": str(tmp_path / "data"),
            "database_url": database,
            **settings,
        }
        app = create_app(Settings(**given), upstreams=known)
        app.testing = False  # the error handler is what callers meet
        built.append(app)
        return app

    yield make
    for app in built:
        app.extensions["service"].close()


@pytest.fixture
def client(build: Callable[..., Flask]) -> FlaskClient:
    return build().test_client()


@pytest.fixture
def store(tmp_path: Path, database: str) -> Iterator[Store]:
    store = Store(database or f"sqlite:///{tmp_path}/test.db", in_place)
    yield store
    store.close()


def running(server: Server) -> Iterator[Server]:
    """A server that runs already, for a fixture: stopped after the test."""
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def backend() -> Iterator[Backend]:
    yield from running(Backend())


@pytest.fixture
def api() -> Iterator[OpenAIBackend]:
    yield from running(OpenAIBackend())


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Starts services, as `serve("pywsgi", AUTHORIZATION="...")`; they are stopped after the test."""
    started: list[Service] = []

    def start(server: str = "pywsgi", **environ: str) -> Service:
        need("pgrep")
        started.append(Service(tmp_path, server, environ))
        return started[-1]

    yield start
    for service in started:
        service.stop()


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """Starts nginx with the given text within its http block; it is stopped after the test."""
    program = need("nginx")
    started: list[subprocess.Popen[bytes]] = []

    def start(text: str) -> None:
        folder = tmp_path / f"nginx-{len(started)}"
        folder.mkdir()
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        paths = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in kinds)
        user = "user root;\n" if os.geteuid() == 0 else ""
        config = folder / "nginx.conf"
        config.write_text(
            f"{user}daemon off;\nworker_processes 1;\nerror_log {folder}/error.log;\npid {folder}/pid;\n"
            f"events {{ worker_connections 512; }}\nhttp {{\naccess_log off;\n{paths}{text}\n}}\n"
        )
        process = subprocess.Popen(
            [program, "-e", str(folder / "error.log"), "-c", str(config)],
            stderr=sys.stderr,
        )
        started.append(process)
        until = time.monotonic() + 10
        while not (folder / "pid").exists() or not (folder / "pid").read_text():
            assert process.poll() is None and time.monotonic() < until, (
                folder / "error.log"
            ).read_text()
            time.sleep(0.02)

    yield start
    for process in started:
        process.terminate()
        process.wait(10)
