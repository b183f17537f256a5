"""What tests share: a clean environment, the app in the process, the service as a process of its own, and nginx."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from socketserver import BaseServer
from typing import Any, TypeVar

import pytest
import requests
from flask import Flask
from flask.testing import FlaskClient

from chatgpt_webapi import create_app
from relay.serving import in_place
from relay.settings import Settings
from relay.store import Store
from tests.chatgpt_backend import Backend
from tests.openai_backend import OpenAIBackend
from tests.postgresql import PostgreSQL, programs

ROOT = Path(__file__).parent.parent
Server = TypeVar("Server", bound=BaseServer)
IN_CI = os.environ.get("CI") == "true"


def need(program: str, folder: Path = Path("/usr/sbin")) -> str:
    """The path of a program, by PATH or in `folder`; without it the test is skipped, but in CI it fails."""
    path = shutil.which(program, path=f"{os.environ['PATH']}:{folder}")
    if path is None and IN_CI:
        pytest.fail(f"{program} is missing in CI")
    if path is None:
        pytest.skip(f"{program} is not installed here")
    return path


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


@pytest.fixture
def database(request: pytest.FixtureRequest) -> str:
    """The URL of the test's database; empty: a SQLite file of its own."""
    kind = getattr(request, "param", "sqlite")
    return (
        request.getfixturevalue("postgresql").database() if kind == "postgresql" else ""
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests of a module that says ON_BOTH run on either database, as far as they use one and do not say which."""
    if any(
        "database" in mark.args[0]
        for mark in metafunc.definition.iter_markers("parametrize")
    ):
        return
    if "database" in metafunc.fixturenames and getattr(
        metafunc.module, "ON_BOTH", False
    ):
        metafunc.parametrize("database", ["sqlite", "postgresql"], indirect=True)


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
        app = create_app(Settings(**given), known)
        app.testing = False  # the error handler is what callers meet
        built.append(app)
        return app

    yield make
    for app in built:
        for close in app.extensions["to_close"]:
            close()


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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Service:
    """The service as its users run it: a process, its log, and a requests session."""

    def __init__(self, folder: Path, server: str, environ: dict[str, str]) -> None:
        self.port = int(environ.pop("PORT", 0)) or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / f"service-{self.port}.log"
        self._command = {
            "pywsgi": [sys.executable, str(ROOT / "chatgpt_webapi.py")],
            "wsgi": [sys.executable, str(ROOT / "wsgi.py")],
            "gunicorn": [
                sys.executable,
                "-m",
                "gunicorn",
                "-c",
                "deploy/gunicorn.conf.py",
                "wsgi:app",
            ],
            "gunicorn-bare": [
                *(
                    sys.executable,
                    "-m",
                    "gunicorn",
                    "-k",
                    "gevent",
                    "-b",
                    f"127.0.0.1:{self.port}",
                    "wsgi:app",
                )
            ],
        }[server]
        given = {
            "DATA_DIR": str(folder / "data"),
            "PORT": str(self.port),
            "LOG_FORMAT": "json",
        } | environ
        self._environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "PYTHONUNBUFFERED": "1",
        } | given
        self.process: subprocess.Popen[bytes]
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, cwd=ROOT, env=self._environ, stdout=log, stderr=log
            )
        prefix = self._environ.get("API_PREFIX", "")
        until = time.monotonic() + 30
        while time.monotonic() < until:
            try:
                if requests.get(f"{self.url}/healthz", timeout=2).ok:
                    return
            except requests.RequestException:
                if self.process.poll() is not None:
                    break
                time.sleep(0.05)
        self.stop()
        raise RuntimeError(
            f"the service did not start{prefix}:\n{self.log.read_text()}"
        )

    def logged(self) -> str:
        return self.log.read_text()

    def kill(self) -> None:
        """As a power cut would, with all its children."""
        children = subprocess.run(
            ["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True
        ).stdout.split()
        self.process.kill()
        for child in children:
            os.kill(int(child), signal.SIGKILL)
        self.process.wait(10)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()

    def resident(self) -> int:
        """Megabytes that the process and its children hold."""
        pids = [str(self.process.pid)]
        pids += subprocess.run(
            ["pgrep", "-P", pids[0]], capture_output=True, text=True
        ).stdout.split()
        sizes = [
            Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]
            for pid in pids
        ]
        return max(map(int, sizes)) // 1024


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
