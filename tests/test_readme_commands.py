"""Every command of the READMEs runs as it stands, in the order in which a newcomer meets them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.chatgpt_backend import Backend
from tests.openai_backend import Mode, OpenAIBackend
from tests.processes import ROOT, free_port, need
from tests.waiting import wait_for

READMES = ("README.md", "README.zh-CN.md")
TREE = ("chatgpt_webapi.py", "wsgi.py", "requirements.txt", "relay", "examples")
ADDRESS = "127.0.0.1:8080"  # in the READMEs
START = "chatgpt_webapi.py"
OFFLINE = f".venv/bin/python {START}"
MODEL = f"OPENAI_BASE_URL=http://localhost:11434 {OFFLINE}"  # whose answers cost nothing here


def blocks(name: str) -> list[str]:
    """The shell commands of a README, a block each, without those that run the tests."""
    found = re.findall(r"^```sh\n(.*?)^```$", (ROOT / name).read_text(), re.M | re.S)
    return [block for block in found if "python -m pytest" not in block]


class Newcomer:
    """Somebody in a fresh folder, who types what a README says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.api = OpenAIBackend()
        self.api.mode = Mode(keys=())
        self.backend = Backend()
        self.running: subprocess.Popen[bytes] | None = None
        self.command = ""
        self.log = folder / "log"
        for name in TREE:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, folder / name)
        (folder / "question.txt").write_text("a question")
        (folder / "message.txt").write_text("a message")

    def adapted(self, command: str) -> str:
        """The command with the addresses of this machine's stand-ins."""
        servers = {
            ADDRESS: f"127.0.0.1:{self.port}",
            "http://localhost:11434": self.api.url,
            "OPENAI_API_KEY=sk-...": f"OPENAI_BASE_URL={self.api.url} OPENAI_API_KEY=sk-invented-1",
            "https://proxy.example/api": self.backend.url,
            "eyJ...": "eyJ0.invented.token",
            "git log -50": "echo a log",
        }
        for given, own in servers.items():
            command = command.replace(given, own)
        return command

    def environment(self) -> dict[str, str]:
        own = {
            "PORT": str(self.port),
            "USER_ID": "u1",
            "MESSAGE_ID": os.urandom(8).hex(),
        }
        return {**os.environ, **own}

    def type(self, command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self.adapted(command)],
            cwd=self.folder,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=60,
        )

    def start(self, command: str) -> None:
        """Start the service, in the place of the one that runs."""
        self.stop()
        self.command = command.strip()
        with self.log.open("w") as log:
            self.running = subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", self.adapted(command)],
                cwd=self.folder,
                env=self.environment(),
                stderr=log,
                start_new_session=True,
            )
        wait_for(self.is_listening, 100)

    def is_listening(self) -> bool:
        assert self.running is not None
        assert self.running.poll() is None, self.log.read_text()
        try:
            url = f"http://127.0.0.1:{self.port}/healthz"
            return requests.get(url, timeout=5).ok
        except requests.ConnectionError:
            time.sleep(0.1)
            return False

    def stop(self) -> None:
        if self.running is not None:
            os.killpg(self.running.pid, signal.SIGTERM)
            self.running.wait(20)
        self.running = None

    def close(self) -> None:
        self.stop()
        for server in (self.api, self.backend):
            server.shutdown()
            server.server_close()


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Newcomer]:
    for program in ("curl", "openssl"):
        need(program)
    newcomer = Newcomer(tmp_path_factory.mktemp("newcomer"))
    yield newcomer
    newcomer.close()


@pytest.mark.timeout(300)  # it installs the requirements
@pytest.mark.parametrize("name", READMES)
def test_every_command_runs(newcomer: Newcomer, name: str) -> None:
    shutil.rmtree(newcomer.folder / "data", ignore_errors=True)
    found = blocks(name)
    assert len(found) >= 8
    for block in found:
        if block.rstrip().endswith(START):
            newcomer.start(block)
            continue
        if "offline:" in block:
            newcomer.start(OFFLINE)
        elif newcomer.command != MODEL and "client_key" in block:
            newcomer.start(MODEL)
        done = newcomer.type(block)
        assert done.returncode == 0, (block, done.stdout, done.stderr)
        assert "unauthorized" not in done.stdout, block


def test_the_readmes_have_the_same_first_screens() -> None:
    english, chinese = (blocks(name) for name in READMES)
    prompts = re.compile(r"prompt=[^'\"]+")

    def plain(commands: list[str]) -> list[str]:
        return [prompts.sub("prompt=", block) for block in commands]

    assert plain(english)[: len(chinese)] == plain(chinese)


def test_other_documents_links_and_examples_exist() -> None:
    for name in (*READMES, "CONTRIBUTING.md", "docs/server.md", "docs/chatgpt.md"):
        text = (ROOT / name).read_text()
        for target in re.findall(r"\]\(([\w./-]+)(?:#[\w-]*)?\)", text):
            assert ((ROOT / name).parent / target).exists(), (name, target)
        for path in re.findall(
            r"`((?:deploy|benchmarks|relay|examples|tests)/[\w./-]+)`", text
        ):
            assert (ROOT / path).exists(), (name, path)


def test_links_within_the_readme_lead_to_a_heading() -> None:
    text = (ROOT / "README.md").read_text()
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    anchors = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in headings
    }
    assert set(re.findall(r"\]\(#([\w-]+)\)", text)) <= anchors
