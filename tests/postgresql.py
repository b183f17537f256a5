"""A PostgreSQL server of the tests' own, with a database for each test."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path

import psycopg


def programs() -> Path | None:
    """The folder of the newest initdb and postgres: Debian keeps them out of PATH."""
    versions = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"),
        key=lambda path: int(path.parts[-3]),
    )
    if versions:
        return versions[-1].parent
    path = shutil.which("initdb")
    if path is None:
        return None
    return Path(path).resolve().parent


class PostgreSQL:
    """A server on a port of 127.0.0.1, in a folder of its own. It refuses to run as root: then another account runs it."""

    def __init__(self, bin: Path, port: int) -> None:
        self.port = port
        self._bin = bin
        self._folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
        self._data = str(self._folder / "data")
        self._command_prefix: list[str] = []
        if os.geteuid() == 0:
            account = next(
                name for name in ("postgres", "nobody") if _account_exists(name)
            )
            shutil.chown(self._folder, account)
            self._command_prefix = [
                "setpriv",
                f"--reuid={account}",
                f"--regid={pwd.getpwnam(account).pw_gid}",
                "--clear-groups",
            ]
        options = "-U tests -A trust -E UTF8 --locale=C.UTF-8 -N"
        self._run("initdb", "-D", self._data, *options.split())
        self.start()

    def _run(self, program: str, *arguments: str) -> None:
        command = [*self._command_prefix, str(self._bin / program), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=self._folder)

    def start(self) -> None:
        options = (
            f"-c listen_addresses=127.0.0.1 -c port={self.port}"
            f" -c unix_socket_directories={self._folder}"
            " -c fsync=off -c max_connections=60"
        )
        log = str(self._folder / "log")
        self._control("-l", log, "-o", options, "start")

    def stop(self, mode: str = "immediate") -> None:
        self._control("-m", mode, "stop")

    def _control(self, *arguments: str) -> None:
        self._run("pg_ctl", "-D", self._data, "-w", *arguments)

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def execute(
        self, statement: str, database: str = "postgres"
    ) -> list[tuple[object, ...]]:
        with psycopg.connect(self._address(database), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def database(self) -> str:
        """A new database's URL."""
        name = f"test_{uuid.uuid4().hex}"
        self.execute(f"CREATE DATABASE {name}")
        return self._address(name).replace("postgresql://", "postgresql+psycopg://")

    def _address(self, database: str) -> str:
        return f"postgresql://tests@127.0.0.1:{self.port}/{database}"


def _account_exists(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True
