"""The Dockerfile, followed step by step without Docker: a fresh virtual environment, the copied files, the command."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests

from tests.processes import IN_CI, ROOT, free_port, need

LINES = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
FINAL = LINES[
    max(number for number, line in enumerate(LINES) if line.startswith("FROM")) :
]


def all_of(word: str) -> list[str]:
    return [
        line.removeprefix(word).strip() for line in FINAL if line.startswith(f"{word} ")
    ]


def test_the_image_runs_without_privileges_and_has_a_health_check() -> None:
    assert (
        all_of("USER") == ["chatgpt"]
        and all_of("HEALTHCHECK")
        and all_of("VOLUME") == ["/data"]
    )
    assert len([line for line in LINES if line.startswith("FROM")]) == 2


def test_the_deployed_files_take_privileges_away() -> None:
    compose = (ROOT / "deploy" / "compose.yaml").read_text()
    for line in ("read_only: true", "- ALL", "- no-new-privileges:true", "- /tmp"):
        assert line in compose
    unit = (ROOT / "deploy" / "chatgpt-webapi.service").read_text().splitlines()
    assert {"LimitNOFILE=65536", "NoNewPrivileges=true", "RestartSec=5"} <= set(unit)


def versions(text: str) -> set[str]:
    """The pins of a file of requirements; names compare as the packaging standard has it."""
    pins = re.findall(r"^([\w.-]+)==([^\s\\]+)", text, re.MULTILINE)
    return {f"{re.sub('[-_.]+', '-', name).lower()}=={pin}" for name, pin in pins}


def test_the_locked_versions_are_those_that_are_required_each_with_its_hashes() -> None:
    locked = (ROOT / "requirements.lock").read_text()
    assert versions(locked) == versions((ROOT / "requirements.txt").read_text())
    entries = re.split(r"^(?=\w)", locked, flags=re.MULTILINE)[1:]
    assert entries and all("--hash=sha256:" in entry for entry in entries)
    assert any("--require-hashes -r requirements.lock" in line for line in LINES)


def test_what_is_copied_is_not_ignored() -> None:
    not_ignored = {
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = {
        name
        for line in LINES
        if line.startswith("COPY") and "--from" not in line
        for name in line.split()[1:-1]
    }
    assert copied == not_ignored


def test_the_steps_of_the_dockerfile_serve(tmp_path: Path) -> None:
    if not IN_CI and "TEST_IMAGE" not in os.environ:
        pytest.skip("installs everything anew: set TEST_IMAGE=1")
    need("pgrep")
    venv, srv, data = tmp_path / "venv", tmp_path / "srv", tmp_path / "data"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    subprocess.run(
        [
            *(venv / "bin/pip", "install", "-q", "--require-hashes"),
            *("-r", ROOT / "requirements.lock"),
        ],
        check=True,
    )
    srv.mkdir()
    data.mkdir(mode=0o700)
    for line in all_of("COPY"):
        if line.startswith("--from"):
            continue
        *sources, target = line.split()
        for source in sources:
            place = srv / target / (Path(source).name if target.endswith("/") else "")
            place.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / source).is_dir():
                shutil.copytree(
                    ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__")
                )
            else:
                shutil.copy(ROOT / source, place)
    environ = dict(
        word.split("=", 1) for line in all_of("ENV") for word in shlex.split(line)
    )
    port = str(free_port())
    environ |= {
        "PATH": f"{venv}/bin:{os.environ['PATH']}",
        "DATA_DIR": str(data),
        "HOST": "127.0.0.1",
        "PORT": port,
    }
    command = json.loads(all_of("CMD")[0])
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [venv / "bin" / command[0], *command[1:]],
            cwd=srv,
            env=environ,
            stdout=log,
            stderr=log,
        )
    try:
        check = re.fullmatch(r"CMD (.*)", all_of("HEALTHCHECK")[0])
        assert check
        health = json.loads(check[1])
        until = time.monotonic() + 20
        while subprocess.run(
            [venv / "bin" / health[0], *health[1:]],
            cwd=srv,
            env=environ,
            capture_output=True,
        ).returncode:
            assert time.monotonic() < until and process.poll() is None, (
                tmp_path / "log"
            ).read_text()
            time.sleep(0.2)
        answer = requests.post(
            f"http://127.0.0.1:{port}/ask", data={"msg": "hi"}, timeout=5
        )
        assert "You said: hi" in answer.json()["data"]["message"]
    finally:
        process.terminate()
        process.wait(20)
    assert "Traceback" not in (tmp_path / "log").read_text()
