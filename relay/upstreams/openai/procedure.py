"""The requests that one question to an OpenAI-compatible API takes. Pure.

One POST asks. Before it, where nobody names a model, the models are listed and the first is taken.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

from relay import sse
from relay.accounts import Account, AccountPool, Attempts
from relay.domain import Question
from relay.errors import RelayError, UpstreamCut, UpstreamError, UpstreamFailed
from relay.transports import Call, Transport
from relay.upstreams.http import Limits, Step, Steps, WholeResponse
from relay.upstreams.openai import body
from relay.upstreams.openai.body import Extras
from relay.upstreams.openai.failures import from_response, in_event
from relay.upstreams.wording import Secrets, parse_json
from relay.values import frozen

MODELS_SECONDS = 3600.0  # the first listed model stays the default for so long
KEYLESS = Account("keyless", "", label="A request without OPENAI_API_KEY")
_ONE_LINE = bytes.maketrans(b"\r\n", b"  ")  # what JSON has no other use for


@dataclass(slots=True)
class DefaultModel:
    """The first model that the server lists, for a while."""

    name: str = ""
    until: float = 0.0

    @property
    def known(self) -> str:
        return self.name if time.monotonic() < self.until else ""

    def learn(self, name: str) -> None:
        self.name = name
        self.until = time.monotonic() + MODELS_SECONDS


@frozen
class API:
    """An OpenAI-compatible API and how to reach it: what does not change from ask to ask.

    `model`: for asks that name none. `retries`: other keys tried after a refusal. `has_keys`: the
    server has keys of its own configured here.
    """

    transport: Transport
    base: str = body.DEFAULT_BASE
    pool: AccountPool = field(default_factory=lambda: AccountPool((KEYLESS,)))
    model: str = ""
    extras: Extras = Extras()
    retries: int = 3
    has_keys: bool = False
    limits: Limits = Limits()
    default: DefaultModel = field(default_factory=DefaultModel)

    def attempts(self, token: str | None, model: str) -> Attempts:
        """The keys that may be used: the caller's own alone, or all in turn. Limits are per key and model."""
        if token:
            own = Account.of(token)
            return Attempts(AccountPool((own,)), (own,), 0)
        return Attempts(self.pool, self.pool.in_turn(), self.retries, model)

    def failure(self, response: WholeResponse, own: bool) -> UpstreamError:
        """The failure that a response means. `own`: it was asked with the caller's own key."""
        return from_response(
            response.status,
            response.head.headers,
            response.redacted,
            url=response.call.url,
            sent_key=own or self.has_keys or bool(self.extras.headers),
        )


class OpenAIProcedure:
    """See `relay.upstreams.http.Procedure`."""

    def __init__(self, api: API, question: Question) -> None:
        self._api = api
        self._question = question
        self._own = bool(question.token)
        self.model = question.model or api.model
        self._secrets = Secrets()

    def redact(self, text: bytes) -> bytes:
        """An upstream's words without the key and the extra headers that it was sent."""
        return self._secrets.redact(text)

    def steps(self, account: Account) -> Steps:
        headers = body.headers(
            account.token,
            self._api.extras,
            self._question.request_id,
            own=self._own,
        )
        self._secrets = Secrets(headers)
        if not self.model and not self._own:
            self.model = self._api.default.known
        if not self.model:
            self.model = yield from self._first_listed(headers)
        yield Step(self._call(headers), asks=True, streams=True)

    def _call(self, headers: dict[str, str]) -> Call:
        """The request that asks. Nothing of it stays here while it is answered."""
        content = body.completion_body(
            self._question,
            self.model,
            self._api.extras,
            developer_role=body.is_openai(self._api.base),
        )
        kinds = {
            "Content-Type": "application/json",
            "Accept": "text/event-stream, application/json",
        }
        url = f"{self._api.base}/chat/completions"
        return Call("POST", url, headers | kinds, content)

    def _first_listed(
        self, headers: dict[str, str]
    ) -> Generator[Step, WholeResponse | None, str]:
        """The first model that the server lists. Another key is tried only where one may help."""
        call = Call("GET", f"{self._api.base}/models", dict(headers))
        try:
            response = yield Step(call)
            assert response is not None
            name = self._first_model(response)
        except UpstreamCut:
            raise _no_model(UpstreamFailed("it broke the connection")) from None
        except RelayError as error:
            if error.another_account_may_help:
                raise
            raise _no_model(error) from error
        if not self._own:
            self._api.default.learn(name)
        return name

    def decode_body(self, response: WholeResponse) -> bytes:
        """A server that does not stream sends one object with all choices: it is one event."""
        payload = parse_json(response.body)
        has_choices = isinstance(payload, dict) and bool(payload.get("choices"))
        is_answer = response.status == 200 and has_choices
        if is_answer and in_event(payload) is None:
            return sse.event(response.body.translate(_ONE_LINE))
        raise self._api.failure(response, self._own)

    def _first_model(self, response: WholeResponse) -> str:
        if response.status != 200:
            raise self._api.failure(response, self._own)
        payload = parse_json(response.body)
        models: Any = payload.get("data") if isinstance(payload, dict) else None
        first = models[0] if isinstance(models, list) and models else None
        name = first.get("id") if isinstance(first, dict) else None
        if not isinstance(name, str) or not name:
            raise UpstreamFailed("it lists none")
        return name


def _no_model(error: RelayError) -> UpstreamFailed:
    """The failure to find a model for an ask that names none."""
    return UpstreamFailed(
        "No model was named, and the upstream gives none "
        f"({error.message.rstrip('.')}). Send the field model, or set OPENAI_MODEL.",
        quoted=error.quoted,
    )
