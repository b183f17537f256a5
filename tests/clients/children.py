"""The clients as processes: those that read asks from their input, and the commands that are run once for each ask."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any

from tests.processes import need

FOLDER = Path(__file__).parent
Fields = dict[str, str]
Outcome = dict[str, Any]

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}


def environ(folder: Path) -> dict[str, str]:
    """No setting of the machine, nobody to report to, and no way to another host."""
    nowhere = dict.fromkeys(
        ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9"
    )
    quiet = {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "OPENAI_AGENTS_DISABLE_TRACING": "1",
        "AI_SDK_TELEMETRY_DISABLED": "1",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    return {"PATH": os.environ["PATH"], "HOME": str(folder)} | quiet | nowhere


class Script:
    """A client that runs until its input ends: a script of this folder."""

    def __init__(self, program: str, script: str, folder: Path) -> None:
        self._log = folder / f"{script}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [program, str(FOLDER / script)],
                cwd=folder,
                env=environ(folder),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
            )
        self._answers: Queue[str] = Queue()
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def ask(self, fields: Fields) -> Outcome:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(fields) + "\n")
        self._process.stdin.flush()
        try:
            line = self._answers.get(timeout=30)
        except Empty:
            self._process.kill()
            line = ""
        assert line, f"{fields['name']}: no outcome\n{self._log.read_text()}"
        outcome: Outcome = json.loads(line)
        return outcome

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.kill()
        self._process.wait()
        self._reader.join()
        self._process.stdin.close()
        self._process.stdout.close()


def picture(fields: Fields, folder: Path) -> str:
    """The path of a file with the image."""
    path = folder / "image.png"
    path.write_bytes(base64.b64decode(fields["image"].split(",")[1]))
    return str(path)


class Llm:
    """The `llm` command."""

    FUNCTION = 'def get_weather(city: str) -> str:\n    "The weather of a city."\n    return f"sunny in {city}"\n'

    ended = False

    def __init__(self, program: str, folder: Path) -> None:
        self._program, self._folder = program, folder

    def ask(self, fields: Fields) -> Outcome:
        model = {
            "model_id": "relay",
            "model_name": fields["model"],
            "api_base": fields["base_url"],
            "api_key_name": "relay",
            "responses": fields["api"] == "responses",
            "vision": True,
            "supports_schema": True,
            "supports_tools": True,
        }
        (self._folder / "extra-openai-models.yaml").write_text(json.dumps([model]))
        more = {
            "plain": ["--no-stream"],
            "streamed": [],
            "tools": ["--no-stream", "--functions", self.FUNCTION],
            "tools-streamed": ["--functions", self.FUNCTION],
            "image": ["-a", picture(fields, self._folder)],
            "format": ["--schema", json.dumps(SCHEMA)],
        }[fields["name"]]
        command = ["-m", "relay", "--key", fields["key"], "--no-log", *more]
        answer = subprocess.run(
            [self._program, *command, fields["prompt"]],
            env={**environ(self._folder), "LLM_USER_PATH": str(self._folder)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
        )
        text = answer.stdout.removesuffix("\n")
        if answer.returncode:
            status = re.search(r"Error code: (\d+)", answer.stderr)
            return {
                "error": {
                    "class": answer.stderr.split(":")[0],
                    "status": status and int(status[1]),
                    "message": answer.stderr,
                }
            }
        return {"value": json.loads(text)} if "--schema" in more else {"text": text}

    def close(self) -> None:
        pass


class Codex:
    """OpenAI's Codex CLI, in a folder of its own. Its web search and sub-agents are not tools of the API's function kind."""

    ended = False

    def __init__(self, program: str, folder: Path) -> None:
        self._program, self._folder = program, folder

    def _config(self, fields: Fields) -> list[str]:
        values = {
            "model_provider": "relay",
            "model_providers.relay.name": "relay",
            "model_providers.relay.base_url": fields["base_url"],
            "model_providers.relay.env_key": "RELAY_KEY",
            "model_providers.relay.wire_api": "responses",
            "model_providers.relay.request_max_retries": 0,
            "model_providers.relay.stream_max_retries": 0,
            "web_search": "disabled",
            "features.multi_agent": False,
        }
        return [
            word
            for name, value in values.items()
            for word in ("-c", f"{name}={json.dumps(value)}")
        ]

    def ask(self, fields: Fields) -> Outcome:
        schema = self._folder / "schema.json"
        schema.write_text(json.dumps(SCHEMA))
        more = {
            "image": ["-i", picture(fields, self._folder), "--"],
            "format": ["--output-schema", str(schema)],
        }.get(fields["name"], [])
        # without a sandbox, which needs namespaces that a container may not have; the only command is the test's own
        options = [
            "--skip-git-repo-check",
            "--dangerously-bypass-approvals-and-sandbox",
        ]
        answer = subprocess.run(
            [self._program, "exec", *self._config(fields), *options]
            + ["--json", "-m", fields["model"], *more, fields["prompt"]],
            cwd=self._folder,
            env={
                **environ(self._folder),
                "CODEX_HOME": str(self._folder),
                "RELAY_KEY": fields["key"],
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
        )
        events = [json.loads(line) for line in answer.stdout.splitlines()]
        for event in events:
            if event["type"] == "turn.failed":
                return {"error": failure(event["error"]["message"])}
        items = [e["item"] for e in events if e["type"] == "item.completed"]
        text = [i["text"] for i in items if i["type"] == "agent_message"][-1]
        calls = [
            ["exec_command", {"output": i["aggregated_output"]}]
            for i in items
            if i["type"] == "command_execution"
        ]
        value = json.loads(text) if fields["name"] == "format" else None
        return {"text": text, "calls": calls, "value": value}

    def close(self) -> None:
        pass


def failure(message: str) -> Outcome:
    """What Codex CLI says of an error: a 400's body as it is, other statuses in words."""
    status = re.search(r"status:? (\d{3})", message)
    if message.startswith("{"):
        return {"class": "turn.failed", "status": 400, "message": message}
    return {
        "class": "turn.failed",
        "status": status and int(status[1]),
        "message": message,
    }


def node() -> str:
    """Node, if its packages are there."""
    installed(FOLDER / "node_modules" / ".bin" / "codex")
    return need("node")


def installed(program: Path) -> str:
    """The path of a program that is looked for nowhere else."""
    return need(str(program))
