"""chat2api's document tried whole: each request of it, and what its users' scripts send, before a running service."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
import requests

from tests.chatgpt_backend import Backend
from tests.conftest import running
from tests.oauth_server import OAuthServer
from tests.pictures import image_part, png
from tests.processes import Service, curl
from tests.tokens import jwt

Serve = Callable[..., Service]
KEY = "an-invented-secret-1"
TOKEN = jwt(sub="their-own")
BODY = """{
     "model": "gpt-3.5-turbo",
     "messages": [{"role": "user", "content": "Say this is a test!"}],
     "stream": true
   }"""


@pytest.fixture
def oauth() -> Iterator[OAuthServer]:
    yield from running(OAuthServer())


@pytest.fixture
def start(serve: Serve, backend: Backend) -> Serve:
    """A service with a compose file's variables of chat2api's, as they are."""

    def begin(**environ: str) -> Service:
        known = {"CHATGPT_BASE_URL": backend.url, "RETRY_TIMES": "3"}
        return serve("pywsgi", **{**known, **environ})

    return begin


def client_of(service: Service, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{service.url}/v1", api_key=key, max_retries=0)


def say(client: openai.OpenAI, **options: Any) -> Any:
    question = {"role": "user", "content": options.pop("content", "hello")}
    model = options.pop("model", "gpt-3.5-turbo")
    return client.chat.completions.create(model=model, messages=[question], **options)


def test_its_curl_line_as_it_stands(start: Serve, backend: Backend) -> None:
    service = start(API_PREFIX="your_prefix", AUTHORIZATION=KEY)
    printed = curl(
        "--location",
        f"{service.url}/your_prefix/v1/chat/completions",
        "--header",
        "Content-Type: application/json",
        "--header",
        f"Authorization: Bearer {TOKEN}",
        "--data",
        BODY,
    ).stdout
    assert printed.count("chat.completion.chunk") > 1
    assert printed.rstrip().endswith("data: [DONE]")
    [turn] = backend.turns
    assert turn.headers["authorization"] == f"Bearer {TOKEN}"
    assert turn.body["history_and_training_disabled"] is True


def test_without_a_token_it_is_asked_without_an_account(
    start: Serve, backend: Backend
) -> None:
    backend.anonymous = True
    service = start(UPSTREAM="chatgpt-web", AUTHORIZATION=KEY)
    assert say(client_of(service, KEY)).choices[0].message.content
    assert "authorization" not in backend.turns[0].headers
    url = f"{service.url}/v1/chat/completions"
    refused = requests.post(url, data=BODY, timeout=10)
    assert refused.status_code == 401, "an open relay is what nobody wants by accident"
    assert "client key" in refused.json()["error"]["message"]


def test_a_refresh_token_as_the_key(
    start: Serve, backend: Backend, oauth: OAuthServer
) -> None:
    service = start(AUTHORIZATION=KEY, OAUTH_TOKEN_URL=oauth.url)
    client = client_of(service, oauth.sign_in("ann"))
    for _ in range(2):
        assert say(client).choices[0].message.content
    assert len(oauth.asked) == 1
    shown = {
        turn.headers["authorization"].removeprefix("Bearer ") for turn in backend.turns
    }
    assert shown <= set(oauth.granted)


def test_a_secret_of_authorization_spends_the_pool(
    start: Serve, backend: Backend
) -> None:
    service = start(AUTHORIZATION=f"owner:{KEY}", UPSTREAM="auto")
    tokens = "\n".join(jwt(sub=f"pooled-{number}") for number in range(2))
    added = requests.post(
        f"{service.url}/tokens/upload",
        data={"text": f"# mine\n{tokens}\n"},
        auth=("", KEY),
        timeout=10,
    )
    assert added.json() == {"status": "success", "tokens_count": 2}
    for _ in range(2):
        assert say(client_of(service, KEY)).choices[0].message.content
    assert len({turn.headers["authorization"] for turn in backend.turns}) == 2


def test_a_team_account_a_gpt_and_an_image(start: Serve, backend: Backend) -> None:
    service = start(AUTHORIZATION=KEY)
    client = client_of(service, f"{TOKEN},0b0d3f1e-1111-4222-8333-444455556666")
    parts = [{"type": "text", "text": "What is this?"}, image_part(png(9, 8))]
    answer = say(client, model="gpt-4-gizmo-g-AbC123xyz", content=parts)
    assert answer.choices[0].message.content
    [turn] = backend.turns
    assert turn.headers["chatgpt-account-id"] == "0b0d3f1e-1111-4222-8333-444455556666"
    assert turn.body["conversation_mode"]["gizmo_id"] == "g-AbC123xyz"
    assert turn.body["messages"][0]["content"]["content_type"] == "multimodal_text"
    assert [known["content"] for known in backend.files.values()] == [png(9, 8)]


def test_history_that_is_not_disabled_gives_the_conversations_id(
    start: Serve, backend: Backend
) -> None:
    service = start(AUTHORIZATION=KEY, HISTORY_DISABLED="false")
    client = client_of(service, TOKEN)
    first = say(client).to_dict()
    named = {"conversation_id": first["conversation_id"]}
    second = say(client, extra_body=named).to_dict()
    assert second["conversation_id"] == first["conversation_id"]
    assert backend.turns[1].body["conversation_id"] == first["conversation_id"]


def test_its_page_is_a_text_here(start: Serve) -> None:
    answer = requests.get(start(AUTHORIZATION=KEY).url, timeout=10)
    assert answer.status_code == 200 and "works" in answer.text
