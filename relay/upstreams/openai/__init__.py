"""Any API that speaks as OpenAI's does: chat/completions, streamed."""

from __future__ import annotations

from relay.accounts import Account
from relay.domain import Question
from relay.errors import BadRequest
from relay.upstreams.openai.decoder import OpenAIDecoder
from relay.upstreams.openai.session import API, Session


class OpenAI:
    """Asks a model that keeps nothing: the whole conversation goes with every question.

    A server that has no keys checks none, so a caller's own is no pass to it.
    """

    name = "openai"
    protected = True
    keeps = False
    takes_options = True

    def __init__(self, api: API) -> None:
        self._api = api
        self.checks_tokens = api.has_keys

    def knows(self, token: str) -> bool:
        return token.startswith("sk-")

    def ask(self, question: Question) -> tuple[Session, OpenAIDecoder]:
        if question.token and Account.of(question.token).name.startswith("account-"):
            raise BadRequest("That is a token of an account, and this upstream takes API keys: leave it out.")
        session = Session(self._api, question)
        return session, OpenAIDecoder(session.hidden_in)
