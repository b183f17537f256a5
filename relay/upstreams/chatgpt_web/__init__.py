"""The ChatGPT web backend, at a configurable reverse-proxy URL."""

from __future__ import annotations

from relay.domain import Question
from relay.upstreams.chatgpt_web.classic import WebDecoder
from relay.upstreams.chatgpt_web.session import Backend, Session


class ChatGPTWeb:
    """Asks ChatGPT, which keeps its conversations itself."""

    name = "chatgpt-web"
    checks_tokens = True
    keeps = True
    takes_options = False

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.protected = len(backend.pool) > 0

    def knows(self, token: str) -> bool:
        return self._backend.knows(token)

    def ask(self, question: Question) -> tuple[Session, WebDecoder]:
        known = frozenset(filter(None, (question.parent_id, question.question_id)))
        decoder = WebDecoder(question.conversation_id, known)
        return Session(self._backend, question, decoder), decoder
