"""The service as its users run it, and the programs beside it: processes that tests start and stop."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import requests

ROOT = Path(__file__).parent.parent
IN_CI = os.environ.get("CI") == "true"
SERVERS = ["pywsgi", "gunicorn"]


def need(program: str, folder: Path = Path("/usr/sbin")) -> str:
    """The path of a program, by PATH or in `folder`; without it the test is skipped, but in CI it fails."""
    path = shutil.which(program, path=f"{os.environ['PATH']}:{folder}")
    if path is None and IN_CI:
        pytest.fail(f"{program} is missing in CI")
    if path is None:
        pytest.skip(f"{program} is not installed here")
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def children_of(pid: int) -> tuple[int, ...]:
    """The pids of a process's children."""
    command = ["pgrep", "-P", str(pid)]
    found = subprocess.run(command, capture_output=True, text=True).stdout.split()
    return tuple(map(int, found))


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
        settings = {
            "DATA_DIR": str(folder / "data"),
            "PORT": str(self.port),
            "LOG_FORMAT": "json",
        } | environ
        self._environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "PYTHONUNBUFFERED": "1",
        } | settings
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
        children = children_of(self.process.pid)
        self.process.kill()
        for child in children:
            os.kill(child, signal.SIGKILL)
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
        pids = [self.process.pid, *children_of(self.process.pid)]
        sizes = [
            Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]
            for pid in pids
        ]
        return max(map(int, sizes)) // 1024


def curl(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [need("curl"), "-sS", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        **options,
    )


def refuses_connections(service: Service) -> bool:
    """Whether nobody listens there any more."""
    try:
        requests.get(f"{service.url}/healthz", timeout=0.3)
    except requests.ConnectionError:
        return True
    except requests.Timeout:
        pass
    return False


def outcomes(service: Service) -> list[dict[str, Any]]:
    """The log's lines about requests."""
    lines = [
        json.loads(line)
        for line in service.logged().splitlines()
        if line.startswith("{")
    ]
    return [line for line in lines if "outcome" in line and line["path"] != "/healthz"]
