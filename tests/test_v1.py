"""/v1 as OpenAI's own Python client uses it, over each kind of upstream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import requests

from tests.chatgpt_backend import Backend
from tests.chatgpt_backend import Mode as ChatGPTMode
from tests.openai_backend import Mode, OpenAIBackend, error
from tests.processes import SERVERS, Service, need

KEY = "the-client-key-0"
ASKS: Any = [{"role": "user", "content": "hello 你好"}]
TOOLS: Any = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
UPSTREAMS = ("offline", "openai", "chatgpt-web")


class Services:
    """A service for each upstream and server, started when it is first asked for."""

    def __init__(self, make_folder: Callable[[str], Path], **common: str) -> None:
        self.api = OpenAIBackend()
        self.backend = Backend()
        self._make_folder = make_folder
        self._common = {"AUTHORIZATION": KEY, **common}
        self._running: dict[tuple[str, str], Service] = {}
        self._settings = {
            "offline": {},
            "openai": {
                "OPENAI_BASE_URL": self.api.url,
                "OPENAI_API_KEY": "sk-invented-1",
            },
            "chatgpt-web": {
                "REVERSE_PROXY": self.backend.url,
                "ACCESS_TOKEN": "token-1",
            },
        }

    def url(self, upstream: str, server: str) -> str:
        known = self._running.get((upstream, server))
        if known is None:
            settings = self._common | self._settings[upstream]
            known = Service(self._make_folder(upstream), server, settings)
            self._running[upstream, server] = known
        return known.url

    def close(self) -> None:
        for service in self._running.values():
            service.stop()
        for server in (self.api, self.backend):
            server.shutdown()
            server.server_close()


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    need("pgrep")
    services = Services(tmp_path_factory.mktemp)
    yield services
    services.close()


@pytest.fixture
def api(services: Services) -> OpenAIBackend:
    services.api.mode = Mode()
    services.api.asked.clear()
    return services.api


@pytest.fixture
def backend(services: Services) -> Backend:
    services.backend.mode = ChatGPTMode()
    services.backend.asked.clear()
    return services.backend


@pytest.fixture
def sdk(
    services: Services, api: OpenAIBackend, backend: Backend
) -> Callable[..., openai.OpenAI]:
    """The official client of a service before an upstream."""

    def make(upstream: str, server: str = "pywsgi", **options: Any) -> openai.OpenAI:
        url = services.url(upstream, server)
        values: dict[str, Any] = {"api_key": KEY, "max_retries": 0, "timeout": 20}
        return openai.OpenAI(base_url=f"{url}/v1", **{**values, **options})

    return make


Sdk = Callable[..., openai.OpenAI]


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("upstream", UPSTREAMS)
def test_a_whole_answer(sdk: Sdk, upstream: str, server: str) -> None:
    answer = sdk(upstream, server).chat.completions.create(model="auto", messages=ASKS)
    [choice] = answer.choices
    assert "hello 你好" in (choice.message.content or "")
    assert (choice.finish_reason, choice.message.role) == ("stop", "assistant")
    assert answer.id and answer.object == "chat.completion"
    assert answer.usage and answer.usage.total_tokens > 0


@pytest.mark.parametrize("upstream", UPSTREAMS)
def test_a_stream(sdk: Sdk, upstream: str) -> None:
    stream = sdk(upstream).chat.completions.create(
        model="auto",
        messages=ASKS,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert "hello 你好" in text
    reasons = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert [reason for reason in reasons if reason] == ["stop"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].usage and chunks[-1].choices == []


@pytest.mark.parametrize("upstream", UPSTREAMS)
def test_twenty_at_once_are_not_mixed(sdk: Sdk, upstream: str) -> None:
    client = sdk(upstream)

    def one(number: int) -> bool:
        messages: Any = [{"role": "user", "content": f"number {number}."}]
        answer = client.chat.completions.create(model="auto", messages=messages)
        return f"number {number}." in (answer.choices[0].message.content or "")

    with ThreadPoolExecutor(20) as pool:
        assert all(pool.map(one, range(20)))


@pytest.mark.parametrize("upstream", UPSTREAMS)
def test_models_are_listed_and_found(sdk: Sdk, upstream: str) -> None:
    client = sdk(upstream)
    names = [model.id for model in client.models.list()]
    assert names and client.models.retrieve(names[0]).id == names[0]
    with pytest.raises(openai.NotFoundError) as found:
        client.models.retrieve("no-such-model")
    assert found.value.code == "model_not_found"


@pytest.mark.parametrize("upstream", UPSTREAMS)
def test_a_wrong_key_is_the_sdks_own_error(sdk: Sdk, upstream: str) -> None:
    client = sdk(upstream, api_key="sk-not-a-key-of-it")
    with pytest.raises(openai.AuthenticationError) as found:
        client.chat.completions.create(model="auto", messages=ASKS)
    assert found.value.code == "invalid_api_key"


@pytest.mark.parametrize("upstream", ["offline", "chatgpt-web"])
@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("tools", TOOLS),
        ("n", 2),
        ("response_format", {"type": "json_object"}),
        ("logprobs", True),
    ],
)
def test_what_would_make_the_answer_untrue_is_refused(
    sdk: Sdk, upstream: str, parameter: str, value: Any
) -> None:
    with pytest.raises(openai.BadRequestError) as found:
        fields: Any = {parameter: value}
        sdk(upstream).chat.completions.create(model="auto", messages=ASKS, **fields)
    assert (found.value.code, found.value.param) == ("unsupported_parameter", parameter)


def test_an_answer_is_cut_as_the_caller_wants(sdk: Sdk) -> None:
    client = sdk("offline")
    short = client.chat.completions.create(
        model="offline", messages=ASKS, max_completion_tokens=5
    )
    assert short.choices[0].finish_reason == "length"
    assert short.usage and short.usage.completion_tokens <= 5
    stopped = client.chat.completions.create(
        model="offline", messages=ASKS, stop="offline"
    )
    assert stopped.choices[0].message.content == "This is the "
    assert stopped.choices[0].finish_reason == "stop"


def test_what_had_no_effect_is_named(sdk: Sdk) -> None:
    raw = sdk("offline").chat.completions.with_raw_response.create(
        model="offline", messages=ASKS, temperature=0.5, seed=3
    )
    assert raw.headers["X-Ignored-Parameters"] == "seed, temperature"


STATUSES = [
    (400, openai.BadRequestError),
    (403, openai.PermissionDeniedError),
    (404, openai.NotFoundError),
    (409, openai.ConflictError),
    (422, openai.UnprocessableEntityError),
    (429, openai.RateLimitError),
    (500, openai.InternalServerError),
    (503, openai.InternalServerError),
]


@pytest.mark.parametrize(("status", "kind"), STATUSES)
@pytest.mark.parametrize("stream", [False, True])
def test_an_upstreams_errors_are_the_sdks_own(
    sdk: Sdk, api: OpenAIBackend, status: int, kind: type[Exception], stream: bool
) -> None:
    body = b'{"error": {"message": "no", "type": "t", "code": "c", "param": null}}'
    client = sdk("openai")
    api.mode = Mode(refusals=[(status, {}, body)])
    with pytest.raises(kind) as found:
        client.chat.completions.create(model="tiny-1", messages=ASKS, stream=stream)
    assert isinstance(found.value, openai.APIStatusError)
    assert found.value.status_code == status


@pytest.mark.parametrize("upstream", ["openai", "chatgpt-web"])
@pytest.mark.parametrize("cut_after", [1, 3])
def test_a_cut_answer_is_an_error(
    sdk: Sdk, api: OpenAIBackend, backend: Backend, upstream: str, cut_after: int
) -> None:
    client = sdk(upstream)
    api.mode = Mode(cut_after=cut_after)
    backend.mode = ChatGPTMode(cut_after=cut_after)
    with pytest.raises(openai.APIError):
        list(client.chat.completions.create(model="tiny-1", messages=ASKS, stream=True))
    if upstream == "chatgpt-web":
        with pytest.raises(openai.InternalServerError):
            client.chat.completions.create(model="tiny-1", messages=ASKS)


def test_tools_and_images_pass(sdk: Sdk, api: OpenAIBackend) -> None:
    url = "data:image/png;base64,iVBORw0KGgo="
    parts: Any = [
        {"type": "text", "text": "what is it?"},
        {"type": "image_url", "image_url": {"url": url}},
    ]
    messages: Any = [{"role": "user", "content": parts}]
    sdk("openai").chat.completions.create(
        model="tiny-1", messages=messages, tools=TOOLS, tool_choice="auto"
    )
    sent = api.completions[-1].body
    assert sent["messages"] == messages and sent["tools"] == TOOLS


@pytest.mark.parametrize("upstream", UPSTREAMS)
def test_a_conversation_is_kept_by_its_name(sdk: Sdk, upstream: str) -> None:
    client = sdk(upstream)
    ids = []
    for prompt in ("one", "two"):
        messages: Any = [{"role": "user", "content": prompt}]
        raw = client.chat.completions.with_raw_response.create(
            model="auto", messages=messages, extra_body={"conversation": "room"}
        )
        ids.append(raw.headers["X-Conversation-Id"])
        body = raw.parse().model_dump()
        assert body["conversation_id"] == ids[-1] and body["message_id"]
    assert ids[0] == ids[1] != ""


def test_nothing_is_kept_unless_it_is_asked_for(sdk: Sdk) -> None:
    client = sdk("offline")

    def listed() -> Any:
        url = str(client.base_url).replace("/v1/", "/conversations")
        return requests.get(url, headers={"Authorization": KEY}, timeout=5).json()

    before = listed()
    client.chat.completions.create(model="offline", messages=ASKS)
    assert listed() == before


def test_an_idempotency_key_asks_once(sdk: Sdk, api: OpenAIBackend) -> None:
    client = sdk("openai")
    header = {"Idempotency-Key": "k1"}
    texts = [
        client.chat.completions.create(
            model="tiny-1", messages=ASKS, extra_headers=header
        )
        .choices[0]
        .message.content
        for _ in range(2)
    ]
    assert texts[0] == texts[1] and len(api.completions) == 1


@pytest.mark.parametrize("upstream", ["offline", "chatgpt-web"])
def test_the_rest_of_the_api_is_not_there(sdk: Sdk, upstream: str) -> None:
    with pytest.raises(openai.NotFoundError) as found:
        sdk(upstream).embeddings.create(model="m", input="x")
    assert "OpenAI-compatible" in str(found.value)


def test_no_request_gives_a_page(sdk: Sdk) -> None:
    base = str(sdk("offline").base_url)
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    for body in (b"", b"[]", b"{", b'{"messages": 1}', b'{"messages": []}', b"\xff"):
        url = f"{base}chat/completions"
        answer = requests.post(url, body, headers=headers, timeout=5)
        assert answer.status_code == 400
        assert answer.json()["error"]["type"] == "invalid_request_error"
    for method, path, status in (
        ("GET", "chat/completions", 404),
        ("POST", "models", 404),
        ("GET", "nothing", 404),
        ("TRACE", "models", 405),
    ):
        answer = requests.request(method, f"{base}{path}", headers=headers, timeout=5)
        assert answer.status_code == status and answer.json()["error"]["message"]


def test_errors_have_all_fields() -> None:
    assert set(error("x")["error"]) == {"message", "type", "param", "code"}
