"""Any API that speaks as OpenAI's does: chat/completions, streamed."""

from __future__ import annotations

from collections.abc import Sequence

from relay.accounts import Account, AccountPool, Resting
from relay.domain import Question
from relay.errors import BadRequest
from relay.settings import Settings
from relay.transports import Transport
from relay.upstreams.http import HttpSession
from relay.upstreams.openai import body
from relay.upstreams.openai.decoder import OpenAIDecoder
from relay.upstreams.openai.procedure import API, KEYLESS, OpenAIProcedure


def open_upstream(settings: Settings, transport: Transport) -> OpenAI | None:
    """The API as the settings describe it; None where they name neither a key nor an address."""
    if not settings.openai_api_key and not settings.openai_base_url:
        return None
    keys = tuple(Account.of(key) for key in settings.openai_api_key)
    api = API(
        transport=transport,
        base=body.base(settings.openai_base_url or body.DEFAULT_BASE),
        pool=AccountPool(keys or (KEYLESS,)),
        model=settings.openai_model,
        extras=body.Extras(settings.openai_headers, settings.openai_body),
        retries=settings.retry_times,
        has_keys=bool(keys),
    )
    return OpenAI(api, any_key=settings.upstream == "openai")


class OpenAI:
    """Asks a model that stores nothing: the whole conversation goes with every question.

    A server without keys checks none, so a caller's own is no pass to it. `any_key`: callers' own
    keys may have any form, because the operator named this upstream.
    """

    name = "openai"
    needs_client_key = True
    stores_conversations = False
    accepts_options = True
    history = None

    def __init__(self, api: API, any_key: bool = False) -> None:
        self._api = api
        self._any_key = any_key
        self.accepts_caller_tokens = api.has_keys

    def recognizes(self, token: str) -> bool:
        is_openai_key = token.startswith("sk-") and not token.startswith("sk-ant-")
        return self._any_key or is_openai_key

    def resting(self) -> Sequence[Resting]:
        return self._api.pool.resting()

    def ask(self, question: Question) -> tuple[HttpSession, OpenAIDecoder]:
        if question.token and Account.of(question.token).name.startswith("account-"):
            raise BadRequest(
                "That is a token of an account, and this upstream takes API keys: leave "
                "it out."
            )
        procedure = OpenAIProcedure(self._api, question)
        session = HttpSession(
            self._api.transport,
            procedure,
            self._api.pool,
            self._api.attempts(question),
        )
        return session, OpenAIDecoder(procedure.redact)
