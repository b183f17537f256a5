"""Clients of the ChatGPT web API that nobody here wrote, unmodified: before the service, and before streams that it prints."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from relay.dialects.chatgpt.classic import Classic
from relay.domain import Event
from tests.openai_backend import Mode, OpenAIBackend
from tests.printing import PIECES, begun, deltas, printed, text_of
from tests.processes import IN_CI, ROOT, Service, need

PREFIXES = ("/backend-api", "/chatgpt/backend-api", "/api")
KEY = "the-client-key-0"
CLIENTS = ROOT / "tests" / "web_clients"
FIRST = "Grüße \"you\" and 'me' \\ 你好 🙂"


class Streams(ThreadingHTTPServer):
    """Answers question N with the stream N, in its pieces."""

    streams: ClassVar[list[list[bytes]]] = []

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/"
        Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Streams

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        number = int(body["messages"][-1]["content"]["parts"][0])
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in filter(None, self.server.streams[number]):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def streams() -> Iterator[Streams]:
    server = Streams()
    yield server
    server.shutdown()
    server.server_close()


def run(folder: Path, *command: str, models: str = "") -> Any:
    """What a client prints. It reaches this machine alone: revChatGPT sends its token to OPENAI_MODELS_URL."""
    nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    environ = {"PATH": os.environ["PATH"], "HOME": str(folder)} | nowhere
    environ |= {"NO_PROXY": "127.0.0.1", "OPENAI_MODELS_URL": models}
    ran = subprocess.run(
        command, cwd=CLIENTS, env=environ, capture_output=True, text=True, timeout=110
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.rstrip("\n").split("\n")[-1])


def need_file(path: Path) -> str:
    """A file that is installed with a client; without it the test is skipped, but in CI it fails."""
    if not path.exists() and IN_CI:
        pytest.fail(f"{path} is missing in CI")
    if not path.exists():
        pytest.skip(f"{path} is not installed here")
    return str(path)


def rev(folder: Path, task: str, url: str, *count: str) -> Any:
    program = need_file(ROOT / ".venv-web-clients" / "bin" / "python")
    models = f"{url}models"
    return run(folder, program, "rev_client.py", task, url, KEY, *count, models=models)


def npm(folder: Path, task: str, url: str, *count: str) -> Any:
    need_file(CLIENTS / "node_modules" / "chatgpt")
    return run(folder, need("node"), "npm_client.mjs", task, url, KEY, *count)


@pytest.fixture(scope="module", params=["offline", "openai"])
def service(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp(request.param)
    api = OpenAIBackend()
    api.mode = Mode(cutting="offline:cut", pace=0.005)
    service = Service(
        folder,
        "pywsgi",
        {
            "UPSTREAM": request.param,
            "AUTHORIZATION": KEY,
            "OPENAI_BASE_URL": api.url,
            "OPENAI_API_KEY": "sk-invented-1",
        },
    )
    yield service
    service.stop()
    api.shutdown()
    api.server_close()


@pytest.mark.parametrize("prefix", PREFIXES)
def test_revchatgpt_before_the_own_store(
    service: Service, prefix: str, tmp_path: Path
) -> None:
    steps = rev(tmp_path, "talk", f"{service.url}{prefix}/")
    texts = [piece["message"] for piece in steps["pieces"]]
    assert FIRST in texts[-1]
    assert len(texts) > 2 and all(text in texts[-1] for text in texts)
    first, second = steps["pieces"][-1], steps["second"]
    place = first["conversation_id"]
    assert first["finish_details"] == "stop" and first["end_turn"] is True
    for step in ("second", "branch", "rolled back"):
        assert "Turn 2." in steps[step]["message"]
        assert steps[step]["conversation_id"] == place
    assert "Turn 3." in steps["continued"]["message"]
    mapping = steps["history"]["mapping"]
    assert steps["history"]["current_node"] == steps["continued"]["parent_id"]
    assert len(mapping[first["parent_id"]]["children"]) == 3
    answered = mapping[mapping[second["parent_id"]]["parent"]]
    assert answered["parent"] == first["parent_id"]
    assert [item["id"] for item in steps["listed"]] == [place]
    assert steps["found title"] == FIRST and steps["renamed"] == "Ein Titel — 你好"
    assert (steps["unknown"], steps["too many"], steps["deleted"]) == (404, 400, 404)
    assert steps["new"]["conversation_id"] != place
    assert steps["cut"] != 0, "half an answer is no whole one"
    assert "Turn 4." in steps["resumed"]["message"]
    assert steps["cleared"] == steps["still cleared"] == []
    assert "secret" in steps["not kept"]["message"]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_npm_chatgpt_before_the_own_store(
    service: Service, prefix: str, tmp_path: Path
) -> None:
    steps = npm(tmp_path, "talk", f"{service.url}{prefix}/conversation")
    first, second = steps["first"], steps["second"]
    assert 'Grüße "you" 你好 🙂' in first["text"]
    assert len(steps["pieces"]) > 2 and steps["pieces"][-1] == first["text"]
    for step in ("second", "branch", "again"):
        assert "Turn 2." in steps[step]["text"]
        assert steps[step]["conversationId"] == first["conversationId"]
    assert steps["again"]["text"] == second["text"]
    assert steps["again"]["id"] != second["id"]
    assert steps["unknown"] == 404
    assert steps["cut"] == "TimeoutError", "half an answer is no whole one"


ANSWERS = 1000


def generated() -> list[list[list[Event]]]:
    """Answers of any text, in any pieces."""
    answers: list[list[list[Event]]] = []

    @settings(
        max_examples=ANSWERS,
        phases=[Phase.generate],
        deadline=None,
        suppress_health_check=[*HealthCheck],
        database=None,
    )
    @given(PIECES)
    def collect(pieces: list[str]) -> None:
        answers.append(deltas(pieces))

    collect()
    return answers


@pytest.mark.parametrize("client", [rev, npm])
def test_a_printed_stream_is_read_whole(
    streams: Streams, tmp_path: Path, client: Callable[..., Any]
) -> None:
    answers = generated()
    assert len(answers) >= ANSWERS
    streams.streams[:] = [printed(Classic(begun()), answer) for answer in answers]
    path = "conversation" if client is npm else ""
    texts = client(tmp_path, "read", streams.url + path, str(len(answers)))
    assert texts == [text_of(answer) for answer in answers]
