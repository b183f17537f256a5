"""The small session wrapper: posts a question to the reverse-proxy URL, and brings back what comes as one stream."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event as Flag
from typing import Any

import orjson

from relay import sse
from relay.accounts import Account, AccountPool, Attempts, is_jwt
from relay.domain import Question
from relay.errors import (
    BadRequest,
    Forbidden,
    OneAtATime,
    RelayError,
    Unauthorized,
    Unreachable,
    UpstreamCut,
    UpstreamFailed,
    UpstreamRefused,
)
from relay.transports import Call, Exchange, Head, Transport
from relay.upstreams.chatgpt_web import body, failures
from relay.upstreams.chatgpt_web.answer import is_answer
from relay.upstreams.chatgpt_web.body import Extras, Place
from relay.upstreams.chatgpt_web.classic import Continue, Poll, WebDecoder
from relay.upstreams.words import json_of, words_of

LONGEST_ERROR = 64 * 1024
LONGEST_TREE = 64 * 1024 * 1024
FETCH_SECONDS = 30.0
MOST_MISSES = 5


@dataclass(frozen=True)
class Backend:
    """A ChatGPT web backend and how to speak to it: what does not change from ask to ask."""

    transport: Transport
    places: tuple[Place, ...]
    pool: AccountPool
    allowed: tuple[str, ...] = ()
    path: str = "conversation"
    extras: Extras = Extras()
    retries: int = 3
    concurrency: int = 0
    patience: float = 120.0
    poll_seconds: float = 5.0

    def knows(self, token: str) -> bool:
        """Whether this may be an access token: ChatGPT's are JWTs, a reverse proxy may give out others."""
        return bool(self.allowed) or is_jwt(token)

    def account_of(self, token: str) -> Account:
        """The account of a caller's own token. Raises BadRequest for what is no access token."""
        if not self.knows(token):
            raise BadRequest(
                "That is no access token of ChatGPT's, where this conversation lives: leave it out."
            )
        return Account.of(token)

    def place_for(self, asked: str | None) -> Place:
        """The backend that a request goes to: the configured one, or the one that it names, if that is allowed."""
        if not asked:
            return (
                self.places[int(time.monotonic()) % len(self.places)]
                if len(self.places) > 1
                else self.places[0]
            )
        wanted = asked.strip()
        for entry in self.allowed:
            origin = entry.rstrip("/")
            if wanted == entry or (
                origin.count("/") == 2 and f"{wanted}/".startswith(f"{origin}/")
            ):
                try:
                    return body.place(wanted, self.path)
                except ValueError as error:
                    raise Forbidden(f"reverse_proxy cannot be used: {error}.") from None
        raise Forbidden(
            "That reverse_proxy does not stand in REVERSE_PROXY_ALLOW, so no token is sent there."
        )

    def attempts(self, question: Question) -> Attempts:
        """The accounts that may answer: the caller's own alone, the conversation's alone, or all in turn."""
        if question.token:
            own = self.account_of(question.token)
            return Attempts(AccountPool((own,)), (own,), 0)
        if not len(self.pool):
            raise Unauthorized(
                "This service has no access token of its own: send yours in the field access_token."
            )
        candidates = (
            self.pool.only(question.account)
            if question.account
            else self.pool.in_turn()
        )
        return Attempts(self.pool, candidates, self.retries)


class Session:
    """One question's stream: finds an account that answers, reads its answer, asks for the rest where there is one."""

    def __init__(
        self, backend: Backend, question: Question, decoder: WebDecoder
    ) -> None:
        self._backend = backend
        self._question = question
        self._decoder = decoder
        self._place = backend.place_for(question.reverse_proxy)
        self._attempts = backend.attempts(question)
        self._account = self._attempts.next()
        self._exchange: Exchange | None = None
        self._interrupted = Flag()
        self._parent = question.parent_id
        self._due = 0.0
        self._pause = 1.0
        self._patient_until = time.monotonic() + min(
            backend.patience, question.timeout or backend.patience
        )
        self.asked = False
        self._accepted = False
        self._first = b""
        self._next: Callable[[], Call] = self._turn
        self._holds = False
        self._misses = 0

    def read(self, seconds: float) -> bytes | None:
        """What has arrived. Refusals that another account, or a moment's patience, may mend are not told."""
        until = time.monotonic() + seconds
        while not self._interrupted.is_set():
            if (wait := self._due - time.monotonic()) > 0:
                self._interrupted.wait(min(wait, max(0.0, until - time.monotonic())))
                if self._due > until:
                    return None
                continue
            if isinstance(self._decoder.wants, Continue):
                self._follow(self._decoder.wants)
            try:
                if isinstance(self._decoder.wants, Poll):
                    return self._poll(self._decoder.wants)
                if not self._accepted and not self._accept(until):
                    if time.monotonic() >= until:
                        return None
                    continue
                piece, self._first = self._first, b""
                return piece or (
                    self._exchange.read(max(0.0, until - time.monotonic()))
                    if self._exchange
                    else b""
                )
            except UpstreamCut:
                if self._interrupted.is_set():
                    return b""
                raise
        return b""

    def _accept(self, until: float) -> bool:
        """Send, and wait for an answer that is a stream; False while there is none yet."""
        if self._exchange is None:
            if not self._admit():
                return False
            self._decoder.account = self._account
            call = self._next()
            self.asked = True
            self._exchange = self._backend.transport.send(call)
        try:
            head = self._exchange.head(max(0.0, until - time.monotonic()))
        except Unreachable as error:
            if self._interrupted.is_set():
                raise UpstreamCut() from None
            self._refused(error)
            return False
        if head is None:
            return False
        if (
            head.status == 200
            and "text/event-stream" in head.headers.get("content-type", "").lower()
        ):
            self._accepted = True
            return True
        first = self._exchange.read(max(0.0, until - time.monotonic()))
        if first is None:
            return False
        if head.status == 200 and first.startswith(
            (b"data:", b"event:", b":")
        ):  # a proxy that does not name the type
            self._accepted, self._first = True, first
            return True
        told = self._account.hidden_in(first + self._whole(LONGEST_ERROR))
        self._refused(failures.from_response(head.status, head.headers, told))
        return False

    def _admit(self) -> bool:
        """Whether the account may be asked now; with ACCOUNT_CONCURRENCY it may have enough to do."""
        if not self._holds:
            self._holds = self._backend.pool.take(
                self._account, self._backend.concurrency
            )
            if not self._holds:
                self._due = time.monotonic() + 0.1
        return self._holds

    def _refused(self, error: RelayError) -> None:
        """Wait, or go on with another account; raises the error where neither may help."""
        self._drop()
        if isinstance(error, OneAtATime):
            others = self._backend.pool.in_flight(self._account) > 0
            pause, self._pause = (
                (0.2, self._pause)
                if others
                else (self._pause, min(8.0, self._pause * 2))
            )
            self._due = time.monotonic() + pause
            if self._due >= self._patient_until:
                raise error
            self.asked = self._next != self._turn
            return
        self._attempts.refused(error)
        if self._next != self._turn:
            raise error  # the rest of an answer is at this account or nowhere
        self.asked = False
        self._account = self._attempts.next()

    def _drop(self) -> None:
        if self._exchange is not None:
            self._exchange.close()
        self._exchange, self._accepted = None, False
        if self._holds:
            self._backend.pool.leave(self._account)
        self._holds = False

    def _turn(self) -> Call:
        question = self._question
        if question.conversation_id and not self._parent:
            self._parent = self._newest(question.conversation_id)
        told = body.turn(question, self._parent, self._backend.extras)
        return Call("POST", self._place.turn, self._headers(stream=True), told)

    def _headers(self, stream: bool = False) -> dict[str, str]:
        own = bool(self._question.token)
        told = body.headers(
            self._account.token,
            self._backend.extras,
            self._question.request_id,
            own=own,
            stream=stream,
        )
        return told | ({"Content-Type": "application/json"} if stream else {})

    def _newest(self, conversation_id: str) -> str:
        """The message that a conversation's next question follows, where nobody here knows it."""
        current = self._tree(conversation_id).get("current_node")
        if not isinstance(current, str):
            raise UpstreamFailed(
                "The upstream shows a conversation without a newest message; send the parent id."
            )
        return current

    def _tree(self, conversation_id: str) -> dict[str, Any]:
        self._exchange = self._backend.transport.send(
            Call("GET", self._place.of(conversation_id), self._headers())
        )
        head = self._exchange.head(FETCH_SECONDS)
        told = self._whole(LONGEST_TREE) if head else b""
        if head and head.status != 200:
            told = self._account.hidden_in(told)
        self._exchange.close()
        self._exchange = None
        if head is None:
            raise UpstreamFailed("The upstream did not show the conversation in time.")
        return parsed_tree(head, told)

    def _whole(self, most: int) -> bytes:
        """A body that is no stream, up to `most` bytes."""
        assert self._exchange is not None
        until, told = time.monotonic() + FETCH_SECONDS, b""
        try:
            while (
                piece := self._exchange.read(max(0.0, until - time.monotonic()))
            ) and len(told) < most:
                told += piece
        except UpstreamCut:
            if self._interrupted.is_set():
                raise
        return told

    def _follow(self, wanted: Continue) -> None:
        self._drop()
        self._decoder.again()
        told = body.rest(
            self._question,
            wanted.conversation_id,
            wanted.parent_id,
            self._backend.extras,
        )
        self._next = lambda: Call(
            "POST", self._place.turn, self._headers(stream=True), told
        )

    def _poll(self, wanted: Poll) -> bytes | None:
        """Look for the answer in the conversation; as a classic stream, once it is there."""
        self._drop()
        self._due = time.monotonic() + self._backend.poll_seconds
        try:
            tree = self._tree(wanted.conversation_id)
        except (Unreachable, UpstreamCut, UpstreamRefused) as error:
            self._misses += 1  # looking again asks nothing twice
            refused = isinstance(error, UpstreamRefused) and error.status < 500
            if self._interrupted.is_set() or refused or self._misses > MOST_MISSES:
                raise
            return b": polling\n\n"
        self._misses = 0
        found, over = answers_to(tree, self._question.question_id)
        if over and not found:
            raise UpstreamFailed(
                "ChatGPT answered with what is no text (an image or a file): see it at chatgpt.com."
            )
        if found and found[-1].get("status") != "in_progress":
            self._decoder.again()
            events = [
                sse.event(
                    orjson.dumps(
                        {"message": message, "conversation_id": wanted.conversation_id}
                    )
                )
                for message in found
            ]
            self._next, self._due = _nothing_more, 0.0
            return b"".join([*events, sse.event(b"[DONE]")])
        return b": polling\n\n"

    def interrupt(self) -> None:
        self._interrupted.set()
        if (exchange := self._exchange) is not None:
            exchange.interrupt()

    def close(self) -> None:
        self._interrupted.set()
        self._drop()


def _nothing_more() -> Call:
    raise UpstreamCut()


def parsed_tree(head: Head, told: bytes) -> dict[str, Any]:
    """A conversation as the backend shows it. Raises what the answer says where it is none."""
    shown = json_of(told)
    if head.status == 200 and isinstance(shown, dict) and "mapping" in shown:
        return shown
    error = failures.from_response(head.status, head.headers, told)
    if head.status in (404, 405) and not words_of(shown)[0]:
        raise UpstreamRefused(
            "The upstream does not show conversations: a reverse proxy may pass on the asking alone.",
            status=head.status,
        )
    raise error


def answers_to(
    tree: dict[str, Any], question_id: str
) -> tuple[list[dict[str, Any]], bool]:
    """The answers in a tree that descend from a question, oldest first; and whether its turn is over."""
    mapping = tree.get("mapping")
    found: list[dict[str, Any]] = []
    over = False
    waiting, seen = [question_id], set[str]()
    while isinstance(mapping, dict) and waiting:
        name = waiting.pop()
        node = mapping.get(name)
        if name in seen or not isinstance(node, dict):
            continue
        seen.add(name)
        message = node.get("message")
        if isinstance(message, dict):
            over = over or (name != question_id and message.get("end_turn") is True)
            if is_answer(message):
                found.append(message)
        waiting.extend(
            child
            for child in reversed(node.get("children") or [])
            if isinstance(child, str)
        )
    return found, over
