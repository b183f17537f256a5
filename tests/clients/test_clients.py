"""Clients of OpenAI's API that nobody here wrote, before each kind of upstream: one table of upstreams, clients and cases."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.chatgpt_backend import Mode as ChatGPTMode
from tests.clients.children import FOLDER, Codex, Llm, Outcome, Script, installed, node
from tests.openai_backend import Call, Mode
from tests.processes import ROOT
from tests.test_v1 import KEY, UPSTREAMS, Services
from tests.waiting import wait_for

MODELS = {"offline": "offline", "openai": "tiny-1", "chatgpt-web": "gpt-5-mini"}
UNABLE = ("offline", "chatgpt-web")  # to call tools, keep to a format
APIS = ("chat", "responses")
PROMPT = "hello 你好"
IMAGE = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="

OPENAI_ERRORS = {
    400: "BadRequestError",
    401: "AuthenticationError",
    404: "NotFoundError",
    429: "RateLimitError",
    500: "InternalServerError",
    503: "InternalServerError",
}

LANGCHAIN_ERRORS = {
    400: "OpenAIInvalidRequestError",
    401: "OpenAIAuthenticationError",
    404: "OpenAIModelNotFoundError",
    429: "OpenAIRateLimitError",
    500: "OpenAIAPIError",
    503: "OpenAIAPIError",
}


class Process(Protocol):
    @property
    def ended(self) -> bool: ...

    def ask(self, fields: dict[str, str]) -> Outcome: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Client:
    """`start` runs it; `errors`: the class of its exception for a status; `cut`: for a stream that was cut."""

    start: Callable[[Path], Process]
    apis: tuple[str, ...] = APIS
    errors: Mapping[int, str] = field(default_factory=lambda: OPENAI_ERRORS)
    cut: Mapping[str, str] = field(
        default_factory=lambda: dict.fromkeys(APIS, "APIError")
    )
    finish: Mapping[str, str] = field(default_factory=dict)  # api -> of an answer
    cases: frozenset[str] | None = None  # none: every one
    without: frozenset[tuple[str, str]] = frozenset()  # pairs of API and case
    always_offers_tools: bool = False

    def has(self, upstream: str, api: str, case: str) -> bool:
        if self.always_offers_tools and upstream in UNABLE:
            return api in self.apis and case in ("no-tools-streamed", "wrong-key")
        known = self.cases is None or case in self.cases
        return api in self.apis and known and (api, case) not in self.without


def own_python(script: str) -> Callable[[Path], Process]:
    return lambda folder: Script(sys.executable, script, folder)


def python(script: str, environment: str) -> Callable[[Path], Process]:
    program = ROOT / environment / "bin" / "python"
    return lambda folder: Script(installed(program), script, folder)


def javascript(script: str) -> Callable[[Path], Process]:
    return lambda folder: Script(node(), script, folder)


def llm(folder: Path) -> Process:
    return Llm(installed(ROOT / ".venv-clients" / "bin" / "llm"), folder)


def codex(folder: Path) -> Process:
    node()
    return Codex(str(FOLDER / "node_modules" / ".bin" / "codex"), folder)


FINISH = {"chat": "stop", "responses": "completed"}
#: for commands, which start anew for each ask, and try again by themselves what could be better a second later
COMMAND_CASES = frozenset(
    {
        *("streamed", "tools-in-pieces", "no-tools"),
        *("image", "format", "cut", "wrong-key"),
    }
)

#: what tests/test_v1.py has of it already
IN_TEST_V1 = frozenset(
    ("chat", name)
    for name in ("plain", "streamed", "twenty", "wrong-key", "cut", "no-tools")
) | frozenset(
    ("chat", f"status-{status}{end}")
    for status in OPENAI_ERRORS
    for end in ("", "-streamed")
)

CLIENTS = {
    "openai-python": Client(
        own_python("openai_python.py"), finish=FINISH, without=IN_TEST_V1
    ),
    "openai-node": Client(javascript("openai_node.mjs"), finish=FINISH),
    "agents-sdk": Client(
        python("agents_sdk.py", ".venv-clients"),
        cut={"chat": "APIError", "responses": "ModelBehaviorError"},
    ),
    "langchain": Client(
        python("langchain_openai_chat.py", ".venv-clients"),
        errors=LANGCHAIN_ERRORS,
        cut={"chat": "APIError", "responses": "ValueError"},
        finish=FINISH,
    ),
    "litellm": Client(
        python("litellm_sdk.py", ".venv-peers"),
        errors=OPENAI_ERRORS | {503: "ServiceUnavailableError"},
        cut=dict.fromkeys(APIS, "MidStreamFallbackError"),
        finish=FINISH,
    ),
    "ai-sdk": Client(
        javascript("ai_sdk.mjs"),
        errors=dict.fromkeys(OPENAI_ERRORS, "APICallError"),
        cut=dict.fromkeys(APIS, "StreamProviderError"),
        finish=dict.fromkeys(APIS, "stop"),
    ),
    "llm": Client(
        llm,
        errors=dict.fromkeys(OPENAI_ERRORS, "Error"),
        cut=dict.fromkeys(APIS, "Error"),
        cases=COMMAND_CASES,
    ),
    "codex": Client(
        codex,
        apis=("responses",),
        errors=dict.fromkeys(OPENAI_ERRORS, "turn.failed"),
        cut={"responses": "turn.failed"},
        cases=COMMAND_CASES | {"tools-streamed", "unknown-model-streamed"},
        always_offers_tools=True,
    ),
}


class Stage:
    """The services and the clients, each started when it is first needed."""

    def __init__(self, services: Services, make_folder: Callable[[str], Path]) -> None:
        self.services = services
        self._make_folder = make_folder
        self._running: dict[str, Process] = {}

    def process(self, client: str) -> Process:
        known = self._running.get(client)
        if known is not None and known.ended:
            known.close()
        if known is None or known.ended:
            folder = self._make_folder(client)
            self._running[client] = CLIENTS[client].start(folder)
        return self._running[client]

    def close(self) -> None:
        for process in self._running.values():
            process.close()


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    make_folder = tmp_path_factory.mktemp
    services = Services(make_folder, CHECK_MODEL="true")
    stage = Stage(services, make_folder)
    yield stage
    stage.close()
    services.close()


@dataclass(frozen=True)
class Row:
    """A place in the table."""

    upstream: str
    client: str
    api: str

    @property
    def tells(self) -> Client:
        return CLIENTS[self.client]


Check = Callable[[Stage, Row, Outcome], None]


@dataclass(frozen=True)
class Case:
    """What a client is told to do, how the upstream behaves, and what must come of it."""

    ask: str
    check: Check
    upstreams: tuple[str, ...] = UPSTREAMS
    model: str = ""
    key: str = KEY
    words: str = ""  # in the prompt, for the offline upstream
    api: Callable[[], Mode] = Mode
    backend: Callable[[], ChatGPTMode] = ChatGPTMode


def answers(stage: Stage, row: Row, outcome: Outcome) -> None:
    assert PROMPT in outcome.get("text", ""), outcome
    assert outcome.get("finish") == row.tells.finish.get(row.api)


def comes_in_pieces(stage: Stage, row: Row, outcome: Outcome) -> None:
    assert PROMPT in outcome.get("text", ""), outcome
    if row.client not in ("llm", "codex"):
        assert outcome["pieces"] > 1
        assert outcome.get("finish") == row.tells.finish.get(row.api)


def goes_on(stage: Stage, row: Row, outcome: Outcome) -> None:
    assert f"{PROMPT} again" in outcome.get("text", ""), outcome
    if row.upstream == "openai":
        assert outcome["text"].startswith("Turn 2.")
        roles = [sent["role"] for sent in last_sent(stage)["messages"]]
        assert [role for role in roles if role not in ("system", "developer")] == [
            "user",
            "assistant",
            "user",
        ]


def are_not_mixed(stage: Stage, row: Row, outcome: Outcome) -> None:
    assert len(outcome["texts"]) == 20
    for number, text in enumerate(outcome["texts"]):
        assert f"{PROMPT} number {number}." in text


def last_sent(stage: Stage) -> dict[str, Any]:
    body: dict[str, Any] = stage.services.api.completions[-1].body
    return body


def refuses(parameter: str) -> Check:
    """What the upstream cannot do is the API's own error."""

    def check(stage: Stage, row: Row, outcome: Outcome) -> None:
        fails(400)(stage, row, outcome)
        if outcome["error"].get("code"):
            assert outcome["error"]["code"] == "unsupported_parameter"
        assert parameter in outcome["error"]["message"]
        assert not stage.services.backend.turns

    return check


def calls(*cities: str) -> Check:
    def check(stage: Stage, row: Row, outcome: Outcome) -> None:
        if row.client == "codex":
            assert [call[1]["output"] for call in outcome["calls"]] == ["sunny\n"]
            assert "sunny" in outcome["text"]
            return
        results = ", ".join(f"sunny in {city}" for city in cities)
        assert outcome["text"].splitlines()[-1] == f"The tools said: {results}.", (
            outcome
        )
        if row.client != "llm":
            assert [call(*made) for made in outcome["calls"]] == [
                ("get_weather", {"city": city}) for city in cities
            ]

    return check


def call(name: str, arguments: Any) -> tuple[str, Any]:
    return name, json.loads(arguments) if isinstance(arguments, str) else arguments


def sees_the_upload(stage: Stage, row: Row, outcome: Outcome) -> None:
    assert "[sees image.png]" in outcome["text"]


def sees_the_image(stage: Stage, row: Row, outcome: Outcome) -> None:
    parts = last_sent(stage)["messages"][-1]["content"]
    [url] = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    assert url == IMAGE
    assert "[image_url]" in outcome["text"]


def keeps_the_format(stage: Stage, row: Row, outcome: Outcome) -> None:
    assert outcome["value"] == {"city": "Paris"}, outcome
    sent = last_sent(stage)["response_format"]
    assert sent["type"] == "json_schema"
    assert sent["json_schema"]["name"]
    assert sent["json_schema"]["schema"]["required"] == ["city"]


def leaves(stage: Stage, row: Row, outcome: Outcome) -> None:
    """The upstream's connection is closed while the client runs on."""
    assert outcome.get("text"), outcome
    backends = {"openai": stage.services.api, "chatgpt-web": stage.services.backend}
    asked = backends[row.upstream].asked
    wait_for(lambda: any(one.left for one in asked), seconds=1.5)


def fails(status: int) -> Check:
    def check(stage: Stage, row: Row, outcome: Outcome) -> None:
        error = outcome["error"]
        assert error["class"] == row.tells.errors[status], error
        if row.client == "codex" and status == 404:  # its sentence is all it shows
            assert "has no model no-such-model" in error["message"]
        else:
            assert error["status"] == status, error

    return check


def is_an_error(stage: Stage, row: Row, outcome: Outcome) -> None:
    assert outcome["error"]["class"] == row.tells.cut[row.api], outcome["error"]


WEATHER = (Call("get_weather", '{"city": "Paris"}'), Call("exec_command", '{"cmd": "echo sunny"}'))  # fmt: skip
BOTH_CITIES = (WEATHER[0], Call("get_weather", '{"city": "Rome"}'))
BEYOND_OFFLINE = ("openai", "chatgpt-web")


def refusing(mode: Any, status: int) -> Callable[[], Any]:
    error = {"message": "It is so.", "type": "t", "code": "c", "param": None}
    refusal = (status, {}, json.dumps({"error": error}).encode())
    # a client that cannot be told otherwise asks three times
    return lambda: mode(refusals=[refusal] * 3)


CASES = {
    "plain": Case("plain", answers),
    "streamed": Case(
        "streamed", comes_in_pieces, backend=lambda: ChatGPTMode(pace=0.01)
    ),
    "continued": Case("continued", goes_on),
    "twenty": Case("twenty", are_not_mixed),
    "tools": Case(
        "tools", calls("Paris"), ("openai",), api=lambda: Mode(calls=WEATHER)
    ),
    "tools-streamed": Case(
        "tools-streamed", calls("Paris"), ("openai",), api=lambda: Mode(calls=WEATHER)
    ),
    "tools-in-pieces": Case(
        "tools-streamed",
        calls("Paris"),
        ("openai",),
        api=lambda: Mode(calls=WEATHER, arguments_of=3),
    ),
    "tools-parallel": Case(
        "tools",
        calls("Paris", "Rome"),
        ("openai",),
        api=lambda: Mode(calls=BOTH_CITIES),
    ),
    "tools-parallel-in-pieces": Case(
        "tools-streamed",
        calls("Paris", "Rome"),
        ("openai",),
        api=lambda: Mode(calls=BOTH_CITIES, arguments_of=3),
    ),
    "no-tools": Case("tools", refuses("tools"), UNABLE),
    "no-tools-streamed": Case("tools-streamed", refuses("tools"), UNABLE),
    "image": Case("image", sees_the_image, ("openai",)),
    "image-uploaded": Case("image", sees_the_upload, ("chatgpt-web",)),
    "no-image": Case("image", refuses("image"), ("offline",)),
    "format": Case(
        "format",
        keeps_the_format,
        ("openai",),
        api=lambda: Mode(text='{"city": "Paris"}'),
    ),
    "no-format": Case("format", refuses("format"), UNABLE),
    "stopped": Case(
        "stopped",
        leaves,
        BEYOND_OFFLINE,
        api=lambda: Mode(stall_after=5),
        backend=lambda: ChatGPTMode(stall_after=5),
    ),
    "cut": Case(
        "streamed",
        is_an_error,
        words="offline:cut",
        api=lambda: Mode(cut_after=4),
        backend=lambda: ChatGPTMode(pace=0.01, cut_after=8),
    ),
    "wrong-key": Case("plain", fails(401), key="sk-not-a-key-of-it"),
    "wrong-key-streamed": Case("streamed", fails(401), key="sk-not-a-key-of-it"),
    "unknown-model": Case("plain", fails(404), model="no-such-model"),
    "unknown-model-streamed": Case("streamed", fails(404), model="no-such-model"),
    **{
        f"status-{status}{end}": Case(
            ask,
            fails(status),
            words=f"offline:status={status}",
            api=refusing(Mode, status),
            backend=refusing(ChatGPTMode, status),
        )
        for status in (400, 429, 500, 503)
        for ask, end in (("plain", ""), ("streamed", "-streamed"))
    },
}

TABLE = [
    pytest.param(Row(upstream, title, api), name, id=f"{title}-{api}-{upstream}-{name}")
    for title, client in CLIENTS.items()
    for api in APIS
    for upstream in UPSTREAMS
    for name, case in CASES.items()
    if upstream in case.upstreams and client.has(upstream, api, name)
]  # fmt: skip


@pytest.mark.parametrize(("row", "name"), TABLE)
def test_a_client(stage: Stage, row: Row, name: str) -> None:
    case, services = CASES[name], stage.services
    services.api.mode, services.backend.mode = case.api(), case.backend()
    process = stage.process(row.client)
    url = services.url(row.upstream, "pywsgi")
    services.api.asked.clear()
    services.backend.asked.clear()
    words = case.words if row.upstream == "offline" else ""
    outcome = process.ask(
        {
            "name": case.ask,
            "api": row.api,
            "base_url": f"{url}/v1",
            "key": case.key,
            "model": case.model or MODELS[row.upstream],
            "prompt": f"{PROMPT} {words}".strip(),
            "image": IMAGE,
        }
    )
    case.check(stage, row, outcome)
