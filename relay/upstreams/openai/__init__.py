"""Any API that speaks as OpenAI's does: chat/completions, streamed."""

from __future__ import annotations

from relay.accounts import Account
from relay.domain import Question
from relay.errors import BadRequest
from relay.upstreams.openai.decoder import OpenAIDecoder
from relay.upstreams.openai.session import API, Session


class OpenAI:
    """Asks a model that keeps nothing: the whole conversation goes with every question.

    A server that has no keys checks none, so a caller's own is no pass to it. `any_key`: callers' own may look like
    anything, for the operator says that this is where they go.
    """

    name = "openai"
    protected = True
    keeps = False
    takes_options = True

    def __init__(self, api: API, any_key: bool = False) -> None:
        self._api = api
        self._any_key = any_key
        self.checks_tokens = api.has_keys

    def knows(self, token: str) -> bool:
        return self._any_key or token.startswith("sk-")

    def ask(self, question: Question) -> tuple[Session, OpenAIDecoder]:
        if question.token and Account.of(question.token).name.startswith("account-"):
            raise BadRequest(
                "That is a token of an account, and this upstream takes API keys: leave it out."
            )
        session = Session(self._api, question)
        return session, OpenAIDecoder(session.hidden_in)
