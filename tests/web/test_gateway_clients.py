"""Old clients of ChatGPT's web API, unmodified, before the gateway: they ask, go on, branch, list, rename and delete."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chatgpt_backend import Backend, Mode
from tests.processes import IN_CI, ROOT, Service, need

Start = Callable[..., Service]
BASES = ["/chatgpt/backend-api/", "/chatgpt/", "/backend-api/", "/api/"]

#: revChatGPT 6.8.6, which lss233's bot, chatgpt-web-share and many scripts are made of
PYTHON = """
import os
from revChatGPT.V1 import Chatbot
bot = Chatbot({"access_token": os.environ["TOKEN"]}, base_url=os.environ["BASE"])
def ask(prompt, **more):
    replies = list(bot.ask(prompt, **more))
    assert len(replies) > 2
    return replies[-1]
if "CUT" in os.environ:
    try:
        ask("cut this")
    except Exception as error:
        print(type(error).__name__, error)
    raise SystemExit
first = ask("hello — 你好")
assert first["message"] == "Turn 1. You said: hello — 你好 — 你好 🙂.", first
assert "Turn 2." in ask("two")["message"]
branch = ask("three", conversation_id=bot.conversation_id, parent_id=first["parent_id"])
assert branch["conversation_id"] == first["conversation_id"]
assert [item["id"] for item in bot.get_conversations()] == [bot.conversation_id]
history = bot.get_msg_history(bot.conversation_id)
assert history["current_node"] == branch["parent_id"]
print(bot.gen_title(bot.conversation_id, branch["parent_id"]))
bot.change_title(bot.conversation_id, "A new title ä")
assert bot.get_conversations()[0]["title"] == "A new title ä"
bot.delete_conversation(bot.conversation_id)
bot.reset_chat()
ask("one more")
bot.clear_conversations()
print(bot.get_conversations())
"""

#: npm's chatgpt 5.2.5, which Chanzhaoyu's chatgpt-web and its kin are made of
NODE = """
import { ChatGPTUnofficialProxyAPI } from 'chatgpt'
const api = new ChatGPTUnofficialProxyAPI({
  accessToken: process.env.TOKEN, apiReverseProxyUrl: process.env.BASE + 'conversation' })
const options = { timeoutMs: process.env.CUT ? 1000 : 20000 }
try {
  let seen = 0
  const first = await api.sendMessage('hello', { ...options, onProgress: () => seen++ })
  const { conversationId, id: parentMessageId } = first
  const more = { ...options, conversationId, parentMessageId }
  const second = await api.sendMessage('two', more)
  const branch = await api.sendMessage('three', more)
  console.log(seen > 2, first.text, second.text, branch.conversationId == conversationId)
} catch (error) {
  console.log('rejected', String(error))
}
process.exit(0)
"""


@pytest.fixture
def service(serve: Start, backend: Backend) -> Service:
    backend.mode = Mode(pace=0.005, ascii_only=True)
    return serve(
        REVERSE_PROXY=backend.url,
        ACCESS_TOKEN="token-of-the-server",
        AUTHORIZATION="the-client-key-0",
    )


def installed(path: str) -> Path:
    """A client's environment; without it the test is skipped, but in CI it fails."""
    found = ROOT / path
    if not found.exists() and IN_CI:
        pytest.fail(f"{path} is missing in CI")
    if not found.exists():
        pytest.skip(f"{path} is not installed here")
    return found


def run(command: list[str], folder: Path, url: str, **more: str) -> str:
    """What a client prints. It reaches 127.0.0.1 alone."""
    nowhere = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "BASE": url,
        "TOKEN": "the-client-key-0",
        "NO_PROXY": "127.0.0.1",
        "PYTHONUTF8": "1",
    }
    ran = subprocess.run(
        command,
        env={**environ, **nowhere, **more},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def run_python(folder: Path, url: str, **more: str) -> str:
    python = installed(".venv-web-clients/bin/python")
    return run([str(python), "-c", PYTHON], folder, url, **more)


def run_node(folder: Path, url: str, **more: str) -> str:
    """What the script prints; its modules are found from where it stands."""
    packages = installed("tests/web_clients/node_modules")
    link = folder / "node_modules"
    if not link.exists():
        link.symlink_to(packages)
    script = folder / "client.mjs"
    script.write_text(NODE)
    return run([need("node"), str(script)], folder, url, **more)


@pytest.mark.parametrize("base", BASES)
def test_revchatgpt(service: Service, tmp_path: Path, base: str) -> None:
    printed = run_python(tmp_path, service.url + base)
    assert printed.splitlines() == ["A generated title", "[]"]


def test_revchatgpt_notices_an_answer_that_was_cut(
    service: Service, backend: Backend, tmp_path: Path
) -> None:
    backend.mode = Mode(cut_after=8, ascii_only=True)
    printed = run_python(tmp_path, f"{service.url}/chatgpt/backend-api/", CUT="1")
    assert "Internal Server Error" in printed


@pytest.mark.parametrize("base", BASES)
def test_npms_chatgpt(service: Service, tmp_path: Path, base: str) -> None:
    printed = run_node(tmp_path, service.url + base)
    answers = "Turn 1. You said: hello — 你好 🙂. Turn 2. You said: two — 你好 🙂."
    assert printed == f"true {answers} true\n"


def test_npms_chatgpt_takes_no_cut_answer_for_a_whole_one(
    service: Service, backend: Backend, tmp_path: Path
) -> None:
    backend.mode = Mode(cut_after=8, ascii_only=True)
    printed = run_node(tmp_path, f"{service.url}/chatgpt/backend-api/", CUT="1")
    assert printed.startswith("rejected") and "timed out" in printed
