"""Any API that speaks as OpenAI's does: chat/completions, streamed."""

from __future__ import annotations

from collections.abc import Sequence

from relay.accounts import (
    Account,
    AccountPool,
    Resting,
    is_chatgpt_token,
    is_openai_key,
)
from relay.domain import Caller, Model, Question
from relay.errors import BadRequest
from relay.settings import Settings
from relay.transports import Call
from relay.upstreams import Resources
from relay.upstreams.addresses import check_setting
from relay.upstreams.http import HttpSession, Limits, fetch
from relay.upstreams.listing import Models, list_with, parse_models
from relay.upstreams.openai import body
from relay.upstreams.openai.decoder import OpenAIDecoder
from relay.upstreams.openai.forward import OpenAIForwarder
from relay.upstreams.openai.procedure import API, KEYLESS, OpenAIProcedure


def open_upstream(settings: Settings, resources: Resources) -> OpenAI | None:
    """The API as the settings describe it; None where they name neither a key nor an address.

    Raises SettingsError for an address that cannot be used.
    """
    if not settings.openai_api_key and not settings.openai_base_url:
        return None
    if settings.openai_base_url:
        check_setting("OPENAI_BASE_URL", settings.openai_base_url)
    keys = Account.of_setting("OPENAI_API_KEY", settings.openai_api_key)
    api = API(
        transport=resources.transport,
        base=body.base(settings.openai_base_url or body.DEFAULT_BASE),
        pool=AccountPool(keys or (KEYLESS,)),
        model=settings.openai_model,
        extras=body.Extras(settings.openai_headers, settings.openai_body),
        retries=settings.retry_times,
        has_keys=bool(keys),
        limits=Limits(answer=settings.max_answer),
    )
    any_key = settings.allow_caller_tokens == "any"
    has_responses = settings.openai_responses == "true"
    if settings.openai_responses == "auto":
        has_responses = body.is_openai(api.base)
    return OpenAI(api, any_key, settings.read_timeout, has_responses)


class OpenAI:
    """Asks a model that stores nothing: the whole conversation goes with every question.

    Only OpenAI itself is known to check keys: another server may take any, so a caller's own is no
    pass to it. `any_key`: the operator says that this server checks them, whatever their form.
    `seconds`: the longest wait for its list of models. `has_responses`: see `Upstream`.
    """

    name = "openai"
    needs_client_key = True
    stores_conversations = False
    accepts_options = True
    accepts_files = True
    history = None
    gateway = None

    def __init__(
        self,
        api: API,
        any_key: bool = False,
        seconds: float = 60.0,
        has_responses: bool = False,
    ) -> None:
        self._api = api
        self._any_key = any_key
        self._seconds = seconds
        self.forwarder = OpenAIForwarder(api)
        self.has_responses = has_responses
        self.accepts_caller_tokens = any_key or body.is_openai(api.base)

    def recognizes(self, token: str) -> bool:
        if self._any_key:
            return not is_chatgpt_token(token)
        return is_openai_key(token)

    def listed_model(self, name: str) -> str:
        return name

    def resting(self) -> Sequence[Resting]:
        return self._api.pool.resting()

    def models(self, caller: Caller) -> Sequence[Model]:
        if caller.token:
            return self._list_models(_account_of(caller.token), own=True)
        accounts = self._api.pool.in_turn()[: self._api.retries + 1]
        return list_with(accounts, self._list_models)

    def _list_models(self, account: Account, own: bool = False) -> Models:
        """The models that one key may use. `own`: it is the caller's."""
        headers = body.headers(account.token, self._api.extras, "", own=own)
        call = Call("GET", f"{self._api.base}/models", headers)
        largest = self._api.limits.answer
        response = fetch(self._api.transport, call, self._seconds, largest)
        if response.status != 200:
            raise self._api.failure(response, own)
        return parse_models(response, self.name, "data", "id", "name")

    def ask(self, question: Question) -> tuple[HttpSession, OpenAIDecoder]:
        if question.token:
            _account_of(question.token)
        procedure = OpenAIProcedure(self._api, question)
        model = procedure.model or self._api.default.known
        session = HttpSession(
            self._api.transport,
            procedure,
            self._api.pool,
            self._api.attempts(question.token, model),
            self._api.limits,
        )
        return session, OpenAIDecoder(procedure.redact)


def _account_of(token: str) -> Account:
    """The account of a caller's own key. Raises BadRequest for a token of ChatGPT's."""
    account = Account.of(token)
    if account.name.startswith("account-"):
        raise BadRequest(
            "That is a token of an account, and this upstream takes API keys: leave it "
            "out."
        )
    return account
