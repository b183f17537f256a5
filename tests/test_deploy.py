"""deploy/ as an operator uses it: the systemd unit, Caddy, compose, and the commands of docs/server.md."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
import requests

from relay.settings import Settings
from tests.nginx import certificate
from tests.notifications import Notifications
from tests.processes import ROOT, Service, curl, free_port, need

Serve = Callable[..., Service]
Caddy = Callable[[str], str]

DEPLOY = ROOT / "deploy"
DOCUMENT = (ROOT / "docs" / "server.md").read_text()
BLOCKS = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", DOCUMENT, re.MULTILINE | re.DOTALL)
SHELL_BLOCKS = [text for language, text in BLOCKS if language == "sh"]
KEY = "the-client-key-0"
#: W^X as the unit's MemoryDenyWriteExecute has it, where the kernel has PR_SET_MDWE, and then the command
DENY_WRITE_EXECUTE = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(65, 1, 0, 0, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


@dataclass(frozen=True)
class Unit:
    """A systemd unit: its lines, in order, as names and values."""

    lines: tuple[tuple[str, str], ...]

    @classmethod
    def read(cls, path: Path) -> Unit:
        found = re.findall(r"^(\w+)=(.*)$", path.read_text(), re.MULTILINE)
        return cls(tuple(found))

    def all_of(self, name: str) -> list[str]:
        return [value for known, value in self.lines if known == name]

    def one(self, name: str) -> str:
        [value] = self.all_of(name)
        return value

    def environment(self) -> dict[str, str]:
        return dict(value.split("=", 1) for value in self.all_of("Environment"))


UNIT = Unit.read(DEPLOY / "chatgpt-webapi.service")


def test_the_unit_has_a_user_a_required_file_of_settings_and_a_private_state() -> None:
    assert UNIT.one("User") == "chatgpt-webapi"
    assert UNIT.one("EnvironmentFile") == "/etc/chatgpt-webapi.env", "no leading minus"
    assert UNIT.one("StateDirectoryMode") == "0700" and UNIT.one("UMask") == "0077"
    assert UNIT.environment()["DATA_DIR"] == f"/var/lib/{UNIT.one('StateDirectory')}"
    assert UNIT.one("Restart") == "on-failure" and UNIT.one("RestartSec") == "5"
    stop_seconds = float(UNIT.one("TimeoutStopSec"))
    assert stop_seconds > Settings().total_timeout, "running answers may end"


def test_systemd_accepts_the_unit_and_finds_it_confined(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed here")
    text = (DEPLOY / "chatgpt-webapi.service").read_text()
    program = UNIT.one("ExecStart").split()[0]
    unit = tmp_path / "chatgpt-webapi.service"
    unit.write_text(text.replace(program, "/bin/true"))
    verified = subprocess.run(
        [analyze, "verify", "--man=no", str(unit)], capture_output=True, text=True
    )
    assert verified.returncode == 0, verified.stderr
    assert "chatgpt-webapi.service:" not in verified.stderr, "an unknown line"
    rated = subprocess.run(
        [analyze, "security", "--offline=true", str(unit)],
        capture_output=True,
        text=True,
    )
    level = re.search(r"exposure level for .*: ([\d.]+)", rated.stdout)
    assert level is None or float(level[1]) < 2.5  # systemd before 250 has no --offline


@dataclass
class Start:
    """The unit's ExecStart, run by hand as systemd would."""

    process: subprocess.Popen[bytes]
    notifications: Notifications
    log: Path
    url: str


@pytest.fixture
def start_unit(tmp_path: Path) -> Iterator[Callable[..., Start]]:
    """Starts the unit's command in a folder with the service's files; it is stopped after the test."""
    started: list[Start] = []

    def start(unit: Unit = UNIT, folder: Path = ROOT, **settings: str) -> Start:
        port = free_port()
        program, *arguments = shlex.split(unit.one("ExecStart"))
        assert Path(program).parts[-3:] == (".venv", "bin", "python")
        python = [sys.executable, "-c", DENY_WRITE_EXECUTE, sys.executable]
        notifications = Notifications()
        environ = {
            "PATH": os.environ["PATH"],
            **unit.environment(),
            "DATA_DIR": str(tmp_path / "state"),
            "PORT": str(port),
            "NOTIFY_SOCKET": notifications.address,
            **settings,
        }
        log = tmp_path / "unit.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [*python, *arguments], cwd=folder, env=environ, stdout=file, stderr=file
            )
        url = f"http://127.0.0.1:{port}"
        started.append(Start(process, notifications, log, url))
        return started[-1]

    yield start
    for known in started:
        if known.process.poll() is None:
            known.process.terminate()
        known.process.wait(20)
        known.notifications.close()


def test_the_unit_is_ready_when_the_service_answers(
    start_unit: Callable[..., Start],
) -> None:
    started = start_unit()
    assert UNIT.one("Type") == "notify"
    # with WORKERS it is a worker who reports, and that is not the unit's main process
    assert UNIT.one("NotifyAccess") == "all"
    assert "READY=1" in started.notifications.next(30), started.log.read_text()
    answer = requests.post(f"{started.url}/ask", data={"msg": "hi"}, timeout=2)
    assert answer.status_code == 200
    assert "Traceback" not in started.log.read_text()


def test_the_unit_is_never_ready_when_the_service_cannot_start(
    tmp_path: Path, start_unit: Callable[..., Start]
) -> None:
    (tmp_path / "file").touch()
    database = f"sqlite:///{tmp_path}/file/conversations.db"
    started = start_unit(DATABASE_URL=database)
    assert started.process.wait(30) == 1
    assert started.notifications.next(0.2) == []
    assert "chatgpt-webapi cannot start" in started.log.read_text()


def test_the_builtin_server_is_ready_when_it_answers(serve: Serve) -> None:
    notifications = Notifications()
    service = serve(NOTIFY_SOCKET=notifications.address)
    try:
        assert "READY=1" in notifications.next(5)
        service.terminate()
        assert "STOPPING=1" in notifications.next(5)
    finally:
        notifications.close()


def test_the_command_for_operators_runs_as_the_unit_does() -> None:
    text = (DEPLOY / "chatgpt-webapi").read_text()
    properties = dict(re.findall(r"--property=(\w+)=(\S+)", text))
    for name, value in properties.items():
        assert UNIT.one(name) == value
    assert set(properties) == {"User", "WorkingDirectory", "EnvironmentFile", "UMask"}
    assert dict(re.findall(r"--setenv=(\w+)=(\S+)", text)) == UNIT.environment()
    python = Path(UNIT.one("ExecStart").split()[0]).with_name("python")
    assert f'{python} chatgpt_webapi.py "$@"' in text
    assert os.access(DEPLOY / "chatgpt-webapi", os.X_OK)
    subprocess.run(["bash", "-n", str(DEPLOY / "chatgpt-webapi")], check=True)


def test_the_template_of_settings_has_known_names_and_sets_none() -> None:
    lines = (DEPLOY / "settings.env").read_text().splitlines()
    names = [line[1:].split("=")[0] for line in lines if re.match(r"#\w+=", line)]
    assert names and set(names) <= setting_names()
    assert all(not line or line.startswith("#") for line in lines)
    [database] = [
        line.split("=", 1)[1] for line in lines if line.startswith("#DATABASE_URL")
    ]
    Settings.from_env({"DATABASE_URL": database})


def setting_names() -> set[str]:
    names = {
        name
        for field in fields(Settings)
        for name in (field.metadata["env"], *field.metadata["also"])
    }
    secrets = {field.metadata["env"] for field in fields(Settings) if not field.repr}
    return names | {f"{name}_FILE" for name in secrets}


# compose


def compose_lists() -> dict[str, list[str]]:
    """The lists of the only service: the key above -> its items, without comments."""
    lists: dict[str, list[str]] = {}
    key = ""
    for line in (DEPLOY / "compose.yaml").read_text().splitlines():
        content = line.split(" #")[0].strip()
        if re.fullmatch(r"[\w-]+:", content):
            key = content[:-1]
        elif content.startswith("- "):
            lists.setdefault(key, []).append(content[2:].strip('"'))
    return lists


def test_compose_names_the_project_its_settings_and_the_host() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    assert "\nname: chatgpt-webapi\n" in text
    lists = compose_lists()
    assert lists["env_file"] == ["../.env"]
    assert (DEPLOY / lists["env_file"][0]).resolve().parent == ROOT
    assert ".env" in (ROOT / ".gitignore").read_text().split()
    assert lists["extra_hosts"] == ["host.docker.internal:host-gateway"]
    assert lists["ports"] == ["127.0.0.1:8080:80"], "the host's loopback alone"
    assert lists["cap_drop"] == ["ALL"] and lists["tmpfs"] == ["/tmp"]
    assert lists["security_opt"] == ["no-new-privileges:true"]
    assert "    read_only: true\n" in text


def test_composes_environment_is_the_images() -> None:
    """What `.env` has for a start without Docker cannot move the container's port or data."""
    image = (ROOT / "Dockerfile").read_text()
    text = (DEPLOY / "compose.yaml").read_text()
    [block] = re.findall(r"    environment:.*\n((?:      .*\n)+)", text)
    known = dict(re.findall(r'^ +(\w+): "?([^"\n]+)', block, re.MULTILINE))
    assert set(known) == {"HOST", "PORT", "DATA_DIR", "FORWARDED_ALLOW_IPS"}
    for name in ("HOST", "PORT", "DATA_DIR"):
        assert f"{name}={known[name]}" in image
    # the host's proxy comes from the gateway of one of Docker's networks
    assert {"172.16.0.0/12", "192.168.0.0/16"} == set(
        known["FORWARDED_ALLOW_IPS"].split(",")
    )
    assert f"exec chatgpt-webapi cat {known['DATA_DIR']}/client_key" in text


# Caddy


@pytest.fixture
def caddy(tmp_path: Path) -> Iterator[Caddy]:
    """Runs Caddy with deploy/Caddyfile before the given URL, and gives its own; it is stopped after the test."""
    program = need("caddy")
    started: list[subprocess.Popen[bytes]] = []

    def start(service_url: str) -> str:
        port = free_port()
        key, chain = certificate(tmp_path)
        text = (DEPLOY / "Caddyfile").read_text()
        changes = {
            "chat.example.org {": f"https://localhost:{port} {{\n\ttls {chain} {key}",
            "127.0.0.1:8080": service_url.removeprefix("http://"),
        }
        for known, changed in changes.items():
            assert text.count(known) == 1
            text = text.replace(known, changed)
        config = tmp_path / "Caddyfile"
        config.write_text(
            f"{{\n\tadmin off\n\tauto_https disable_redirects\n}}\n{text}"
        )
        environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
        log = tmp_path / "caddy.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [program, "run", "--adapter", "caddyfile", "--config", str(config)],
                env=environ,
                stdout=file,
                stderr=file,
            )
        started.append(process)
        until = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return f"https://localhost:{port}"
            except OSError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.05)

    yield start
    for process in started:
        process.terminate()
        process.wait(20)


def arrivals(*arguments: str) -> tuple[list[float], bytes]:
    """The moments at which curl's output arrived, and all of it."""
    command = [need("curl"), "-sSkN", "--http2", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        times: list[float] = []
        output = b""
        while piece := os.read(process.stdout.fileno(), 65536):
            times.append(time.monotonic())
            output += piece
    return times, output


def test_caddy_passes_pieces_on_as_they_come(serve: Serve, caddy: Caddy) -> None:
    url = caddy(serve(AUTHORIZATION=KEY).url)
    authorized = ["-H", f"Authorization: Bearer {KEY}"]
    question = ["-d", "msg=hi offline:pace=0.1", "-d", "stream=1"]
    for accept in ("text/event-stream", "text/plain"):
        times, output = arrivals(
            *authorized, "-H", f"Accept: {accept}", *question, f"{url}/ask"
        )
        assert len(times) >= 8 and times[-1] - times[0] > 0.5, "Caddy holds back"
        assert (b"event: done" in output) == (accept == "text/event-stream")
    version = curl("-k", "-o", "/dev/null", "-w", "%{http_version}", f"{url}/healthz")
    assert version.stdout == "2"
    # a cut is seen: the service's event over any Caddy, HTTP/2's own error (curl: 92) from Caddy 2.7.6 on
    cut = curl(
        "-k", *authorized, "-d", "msg=offline:cut", "-d", "stream=1", f"{url}/ask"
    )
    assert "event: error" in cut.stdout and "event: done" not in cut.stdout
    text = curl(
        *("-k", *authorized, "-H", "Accept: text/plain"),
        *("-d", "msg=offline:cut", "-d", "stream=1", f"{url}/ask"),
    )
    assert text.returncode == (92 if caddy_version() >= (2, 7, 6) else 0)


def caddy_version() -> tuple[int, ...]:
    printed = subprocess.run(
        [need("caddy"), "version"], capture_output=True, text=True, check=True
    ).stdout
    found = re.match(r"v?(\d+)\.(\d+)\.(\d+)", printed)
    assert found is not None, printed
    return tuple(int(number) for number in found.groups())


def test_caddy_takes_what_the_service_takes_and_passes_its_errors(
    serve: Serve, caddy: Caddy, tmp_path: Path
) -> None:
    service = serve()
    url = caddy(service.url)
    body = tmp_path / "question"
    for size, status in ((20_000_000, "200"), (30_000_000, "413")):
        body.write_text("x" * size)
        sent = curl(
            *("-k", "-o", "/dev/null", "-w", "%{http_code}"),
            *("-F", f"msg=<{body}", f"{url}/ask"),
        )
        assert sent.stdout == status
    refused = curl("-k", "-d", "msg=offline:status=502", f"{url}/ask")
    assert '"error":"upstream_refused"' in refused.stdout
    same_origin = curl("-k", "-H", f"Origin: {url}", "-d", "msg=hi", f"{url}/ask")
    assert '"code":0' in same_origin.stdout
    service.stop()
    gone = curl("-k", "-o", "/dev/null", "-w", "%{http_code}", f"{url}/healthz")
    assert gone.stdout == "502"


def test_ci_installs_caddy() -> None:
    assert "caddy:caddy" in (ROOT / ".ci" / "run").read_text()


# docs/server.md


@pytest.mark.parametrize("block", SHELL_BLOCKS, ids=lambda text: text.split("\n")[0])
def test_the_commands_of_the_document_are_valid(block: str) -> None:
    checked = subprocess.run(
        ["bash", "-n"], input=block, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr


def test_the_services_commands_in_the_document_exist() -> None:
    names = set(re.findall(r"(?:^|`)chatgpt-webapi ([a-z]+)", DOCUMENT, re.MULTILINE))
    assert names >= {"backup", "restore", "check", "keys"}
    for name in names:
        shown = subprocess.run(
            [sys.executable, str(ROOT / "chatgpt_webapi.py"), name, "--help"],
            capture_output=True,
        )
        assert shown.returncode == 0, name


def test_every_block_has_a_language() -> None:
    assert SHELL_BLOCKS
    assert {language for language, _ in BLOCKS} <= {"sh", "env", "yaml", "nginx"}


def test_every_file_of_deploy_is_in_the_document_and_each_named_one_exists() -> None:
    named = set(re.findall(r"\bdeploy/[\w.-]*\w", DOCUMENT))
    for name in named:
        assert (ROOT / name).exists(), name
    files = {f"deploy/{path.name}" for path in DEPLOY.iterdir() if path.is_file()}
    assert files <= named


def test_every_setting_of_the_document_exists() -> None:
    others = {
        "OLLAMA_HOST",  # Ollama's
    }
    blocks = "\n".join(text for _, text in BLOCKS)
    named = set(re.findall(r"`([A-Z][A-Z0-9]*_[A-Z0-9_]+)\b", DOCUMENT))
    named |= set(re.findall(r"\b([A-Z][A-Z0-9]*_[A-Z0-9_]+)=", DOCUMENT))
    assert blocks and named - others <= setting_names()


def test_nginxs_codes_are_those_of_the_document() -> None:
    text = (DEPLOY / "nginx.conf").read_text()
    codes = set(re.findall(r'"error":"(\w+)"', text))
    section = DOCUMENT.split("\n## nginx")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == codes
    assert set(re.findall(r"X-Error-Code (\w+)", text)) == codes


def install_steps(folder: Path) -> str:
    """The first block of the document's install section, with an empty folder as the root of the file system."""
    [install] = re.findall(
        r"^## Install.*?^```sh\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL
    )
    for path in ("/opt", "/etc", "/usr/local/sbin"):
        (folder / path[1:]).mkdir(parents=True)
        install = re.sub(rf"(?<=\s){path}/", f"{folder}{path}/", install)
    (folder / "etc/systemd/system").mkdir(parents=True)
    return install


def test_the_steps_of_the_document_install_a_unit_that_serves(
    tmp_path: Path, start_unit: Callable[..., Start]
) -> None:
    """Without what only root on a machine with systemd may do: packages, the user, the unit's start."""
    root, programs = tmp_path / "root", tmp_path / "programs"
    programs.mkdir()
    for name in ("apt-get", "useradd"):
        (programs / name).write_text("#!/bin/sh\n")
        (programs / name).chmod(0o755)
    # the environment is this one's; test_image installs one anew from the same locked file
    (programs / "python3").write_text(
        '#!/bin/sh\nmkdir -p "$3/bin"\nprintf "#!/bin/sh\\n" > "$3/bin/pip"\n'
        'chmod +x "$3/bin/pip"\n'
    )
    (programs / "python3").chmod(0o755)
    subprocess.run(
        ["bash", "-euc", install_steps(root)],
        cwd=ROOT,
        env={"PATH": f"{programs}:{os.environ['PATH']}"},
        check=True,
    )
    settings = root / "etc/chatgpt-webapi.env"
    assert settings.stat().st_mode & 0o777 == 0o600
    assert os.access(root / "usr/local/sbin/chatgpt-webapi", os.X_OK)
    installed = Unit.read(root / "etc/systemd/system/chatgpt-webapi.service")
    assert installed == UNIT
    folder = root / installed.one("WorkingDirectory")[1:]
    for path in (folder, *folder.rglob("*")):
        assert path.stat().st_mode & 0o004, f"the service's user cannot read {path}"
    started = start_unit(installed, folder)
    assert "READY=1" in started.notifications.next(30), started.log.read_text()
    answer = requests.get(f"{started.url}/healthz", timeout=5)
    assert answer.status_code == 200
