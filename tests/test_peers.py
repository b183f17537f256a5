"""Ten turns before an OpenAI-compatible server that nobody here wrote, with curl alone and a kill in the middle."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.processes import ROOT, Service, free_port, need

ON_BOTH = True

ANSWER = "A mock answer — 你好 🙂 — of several words."
CONFIG = f"""
model_list:
  - model_name: mock
    litellm_params: {{model: openai/mock, api_key: unused, mock_response: "{ANSWER}"}}
  - model_name: slow
    litellm_params: {{model: openai/slow, api_key: unused, mock_response: "{ANSWER}", mock_delay: 5}}
general_settings: {{master_key: sk-invented-master}}
"""


@pytest.fixture(scope="module")
def litellm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The origin of a LiteLLM proxy with mock replies. It reaches nobody else, and is configured not to try."""
    folder, port = tmp_path_factory.mktemp("litellm"), free_port()
    program = need("litellm", ROOT / ".venv-peers" / "bin")
    (folder / "config.yaml").write_text(CONFIG)
    quiet = {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_TELEMETRY": "False",
        "NO_PROXY": "127.0.0.1",
    }
    nowhere = dict.fromkeys(
        ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9"
    )
    command = [
        program,
        "--config",
        str(folder / "config.yaml"),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    environ = {"PATH": os.environ["PATH"], "HOME": str(folder)} | quiet | nowhere
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environ, stdout=log, stderr=log
        )
    until = time.monotonic() + 90
    while True:
        try:
            if requests.get(f"http://127.0.0.1:{port}/health/liveliness", timeout=2).ok:
                break
        except requests.RequestException:
            assert process.poll() is None and time.monotonic() < until, (
                folder / "log"
            ).read_text()
            time.sleep(0.2)
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait(20)


def curl(service: Service, path: str, *arguments: str) -> str:
    command = [
        need("curl"),
        "-sS",
        "-m",
        "40",
        "-u",
        ":the-client-key-0",
        *arguments,
        f"{service.url}{path}",
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.timeout(180)
def test_ten_turns_through_a_kill(
    serve: Callable[..., Service], litellm: str, database: str, tmp_path: Path
) -> None:
    settings = {
        "OPENAI_BASE_URL": litellm,
        "OPENAI_API_KEY": "sk-invented-master",
        "AUTHORIZATION": "the-client-key-0",
    }
    service = serve(**settings, OPENAI_MODEL="mock", DATABASE_URL=database)
    first: dict[str, Any] = json.loads(
        curl(service, "/send_message", "--data-urlencode", "prompt=turn 1 & a+b%")
    )
    assert first["text"] == ANSWER
    goes_on = ("-d", f"conversation_id={first['conversation_id']}", "--data-urlencode")
    for turn in range(2, 6):
        assert (
            json.loads(curl(service, "/send_message", *goes_on, f"prompt=turn {turn}"))[
                "text"
            ]
            == ANSWER
        )
    killed = [
        need("curl"),
        "-sS",
        "-u",
        ":the-client-key-0",
        "-d",
        "model=slow",
        *goes_on,
        "prompt=killed",
    ]
    with subprocess.Popen(
        [*killed, f"{service.url}/ask"], stderr=subprocess.DEVNULL
    ) as asking:
        time.sleep(1)
        service.kill()
        assert asking.wait(10) != 0
    service.start()
    for turn in range(6, 10):
        assert (
            json.loads(curl(service, "/send_message", *goes_on, f"prompt=turn {turn}"))[
                "text"
            ]
            == ANSWER
        )
    (tmp_path / "turn").write_text("turn 10")
    assert (
        curl(
            service,
            "/ask",
            "-N",
            "-d",
            "stream=true",
            *goes_on,
            f"msg@{tmp_path}/turn",
            "-d",
            "format=text",
        )
        == f"{ANSWER}\n"
    )
    lines = curl(
        service, f"/conversation/{first['conversation_id']}?format=jsonl"
    ).splitlines()
    rows = [json.loads(line) for line in lines]
    asked = [row["text"] for row in rows if row["role"] == "user"]
    turns = [f"turn {turn}" for turn in range(2, 11)]
    assert asked == ["turn 1 & a+b%", *turns[:4], "killed", *turns[4:]]
    answers = [
        (row["text"], row["status"]) for row in rows if row["role"] == "assistant"
    ]
    assert answers == [
        *[(ANSWER, "whole")] * 5,
        ("", "broken"),
        *[(ANSWER, "whole")] * 5,
    ]
    payload = json.loads(
        curl(service, "/ask", "--data-urlencode", "msg=x", "-d", "model=unheard-of")
    )
    assert payload["source"] == "upstream"
    assert payload["code"] == 1
    assert "unheard-of" in payload["msg"]
    assert "Traceback" not in service.logged()
