"""The requests that one question to ChatGPT takes. Pure.

One POST asks, and its stream is the answer. Before it, a conversation whose newest message nobody
knows here is looked up, and files are uploaded. After it, the decoder may want more: the rest of
an answer that stopped for its length (one more POST), or an answer that was handed off (the
conversation is looked up until the answer stands in it). Looking up asks nothing, so it is repeated where it fails.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, TypeAlias

import orjson

from relay import shown, sse
from relay.accounts import Account
from relay.domain import Question
from relay.errors import (
    Challenged,
    OneAtATime,
    TokenRejected,
    Unreachable,
    UpstreamCut,
    UpstreamFailed,
    UpstreamRefused,
)
from relay.shown import part_of
from relay.upstreams.chatgpt_web import body, failures, uploads
from relay.upstreams.chatgpt_web.answer import is_answer
from relay.upstreams.chatgpt_web.backend import Backend, is_anonymous
from relay.upstreams.chatgpt_web.body import Place
from relay.upstreams.chatgpt_web.classic import Continue, Poll, WebDecoder
from relay.upstreams.chatgpt_web.gateways import (
    GatewayCall,
    user_agent_of,
    with_headers,
)
from relay.upstreams.chatgpt_web.models import ModelChoice
from relay.upstreams.chatgpt_web.sentinel import Flow, Preflight
from relay.upstreams.chatgpt_web.storage import UPLOAD_SECONDS, Storage
from relay.upstreams.http import Step, Steps, WholeResponse, Yielded
from relay.upstreams.wording import Secrets, error_text, parse_json

MOST_MISSES = 5
NO_ANONYMOUS = (
    "ChatGPT does not answer this server without an account: set ACCESS_TOKEN, or send "
    "an access token of yours."
)
SIGN_OF_LIFE = (
    b": polling\n\n"  # a comment: the decoder leaves it out, the silence clock does not
)

Tree: TypeAlias = dict[str, Any]
Lookup: TypeAlias = Generator[Yielded, WholeResponse | None, Tree]


class WebProcedure:
    """See `relay.upstreams.http.Procedure`, and `StreamFollower` there."""

    def __init__(
        self,
        backend: Backend,
        question: Question,
        decoder: WebDecoder,
        choice: ModelChoice,
    ) -> None:
        self._backend = backend
        self._question = question
        self._decoder = decoder
        self._places = backend.places_for(question.reverse_proxy)
        self._body = b""  # that asks; an open stream does not hold it
        self._choice = choice
        self.model = backend.limited_model(choice)

    def steps(self, account: Account) -> Steps:
        is_own = bool(self._question.token)
        if is_own:
            self._backend.check_challenged(account)
        try:
            yield from self._steps(account)
        except TokenRejected:
            if is_anonymous(account):
                raise UpstreamRefused(NO_ANONYMOUS, status=403) from None
            raise
        except Challenged as error:
            if is_own and error.retry_after:
                self._backend.note_challenged(account)
            raise

    def _steps(self, account: Account) -> Steps:
        self._decoder.account = account
        parent = self._question.parent_id
        if self._question.conversation_id and not parent:
            tree = yield from self._look_up(account, self._question.conversation_id)
            parent = _newest(tree)
        self._body = yield from self._question_body(account, parent)
        yield from self._ask(account)
        while (wanted := self._decoder.wants) is not None:
            if isinstance(wanted, Continue):
                yield from self._continue(account, wanted)
            else:
                yield from self._poll(account, wanted)

    def _question_body(
        self, account: Account, parent: str | None
    ) -> Generator[Step, WholeResponse | None, bytes]:
        """The body that asks, once its files are uploaded."""
        messages = self._question.messages
        if not any(message.payloads for message in messages):
            return body.question_body(
                self._question, self._choice, parent, self._backend.extras
            )
        contents = yield from uploads.upload(
            messages,
            Storage(tuple(place.base for place in self._places), self._upload_seconds),
            lambda method, path, content: self._call(
                account, method, lambda place: f"{place.base}/{path}", content
            ),
        )
        return body.question_body(
            self._question, self._choice, parent, self._backend.extras, contents
        )

    @property
    def _upload_seconds(self) -> float:
        """The longest time for one file: beyond that of the answer's first byte nobody waits for it."""
        asked = self._question.timeout or UPLOAD_SECONDS
        return min(UPLOAD_SECONDS, self._backend.limits.patience, asked)

    def decode_body(self, response: WholeResponse) -> bytes:
        raise failures.from_response(
            response.status, response.head.headers, response.redacted
        )

    def _call(
        self,
        account: Account,
        method: str,
        address: Callable[[Place], str],
        content: bytes = b"",
        *,
        stream: bool = False,
    ) -> GatewayCall:
        return self._backend.call(
            account,
            method,
            address,
            content,
            own=bool(self._question.token),
            places=self._places,
            request_id=self._question.request_id,
            stream=stream,
        )

    def _ask(self, account: Account) -> Steps:
        """The POST that asks, after what the backend wants before it; anew where the account was busy."""
        while True:
            headers = yield from self._prepare(account)
            try:
                yield self._question_step(account, headers)
                return
            except OneAtATime:
                if not headers:
                    raise

    def _question_step(self, account: Account, headers: dict[str, str]) -> Step:
        """The step that asks. `headers`: those that had to be asked for first."""
        call = self._call(account, "POST", _turn, self._body, stream=True)
        turn = with_headers(call, headers)
        # out of the answer's errors
        secrets = Secrets(*(each.headers for each in (turn, *turn.others)))
        self._decoder.redact = secrets.redact
        return Step(
            turn,
            asks=True,
            streams=True,
            follower=self,
            single_use=bool(headers),
        )

    def begin(self) -> None:
        self._body = b""

    @property
    def is_enough(self) -> bool:
        return self._decoder.wants is not None

    @property
    def repeated(self) -> int:
        return self._decoder.repeated

    def _prepare(self, account: Account) -> Flow:
        """The headers of a question that must be asked for first."""
        rules = self._backend.preflight
        if rules is None or self._question.reverse_proxy:
            return {}
        preflight = Preflight(
            rules,
            lambda path, content: self._call(
                account, "POST", lambda place: f"{place.base}/{path}", content
            ),
            user_agent_of(self._call(account, "POST", _turn)),
            self._backend.memory,
            may_spend=self._question.may_spend,
        )
        return (yield from preflight.steps())

    def _continue(self, account: Account, wanted: Continue) -> Steps:
        """The request for the rest of an answer."""
        self._decoder.again()
        self._body = body.continuation_body(
            self._question,
            self._choice,
            wanted.conversation_id,
            wanted.parent_id,
            self._backend.extras,
        )
        yield from self._ask(account)

    def _look_up(
        self, account: Account, conversation_id: str, pause: float = 0.0
    ) -> Lookup:
        """Get a conversation with all its messages."""
        call = self._call(account, "GET", lambda place: place.of(conversation_id))
        response = yield Step(call, pause=pause)
        assert response is not None
        return parse_tree(response)

    def _poll(self, account: Account, wanted: Poll) -> Steps:
        """Look for the answer in the conversation until it is complete there; then it is decoded as a stream."""
        misses = 0
        pause = 0.0
        while True:
            try:
                tree = yield from self._look_up(account, wanted.conversation_id, pause)
            except (Unreachable, UpstreamCut, UpstreamRefused) as error:
                misses += 1
                if _is_refusal(error) or misses > MOST_MISSES:
                    raise
            else:
                misses = 0
                answers = complete_answers(tree, self._question.question_id)
                if answers:
                    self._decoder.again()
                    yield _as_stream(wanted.conversation_id, answers)
                    return
            yield SIGN_OF_LIFE
            pause = self._backend.poll_seconds


def _turn(place: Place) -> str:
    return place.turn


def _is_refusal(error: Exception) -> bool:
    return isinstance(error, UpstreamRefused) and error.status < 500


def _as_stream(conversation_id: str, messages: list[dict[str, Any]]) -> bytes:
    """Messages as the classic stream would have them."""
    payloads = (
        {"message": message, "conversation_id": conversation_id} for message in messages
    )
    try:
        events = [sse.event(orjson.dumps(payload)) for payload in payloads]
    except orjson.JSONEncodeError:
        raise UpstreamFailed("The upstream nests an answer too deep.") from None
    return b"".join([*events, sse.event(b"[DONE]")])


def _newest(tree: Tree) -> str:
    """The message that a conversation's next question follows."""
    current = tree.get("current_node")
    if not isinstance(current, str):
        raise UpstreamFailed(
            "The upstream shows a conversation without a newest message; send the "
            "parent id."
        )
    return current


def parse_tree(response: WholeResponse) -> Tree:
    """A conversation as the backend shows it. Raises what the answer says where it is none."""
    payload = parse_json(response.body)
    if response.status == 200 and isinstance(payload, dict) and "mapping" in payload:
        return payload
    if response.status in (404, 405) and not error_text(payload)[0]:
        raise UpstreamRefused(
            "The upstream does not show conversations: a reverse proxy may pass on the "
            "asking alone.",
            status=response.status,
        )
    raise failures.from_response(
        response.status, response.head.headers, response.redacted
    )


def complete_answers(tree: Tree, question_id: str) -> list[dict[str, Any]]:
    """The messages that answer a question, in their order; none while more of them is to come.

    Raises UpstreamFailed where the turn is over and has neither a text nor an image.
    """
    messages = messages_below(tree, question_id)
    answers = list(filter(is_answer, messages))
    has_image = any(map(shown.images_of, messages))
    over = any(map(_ends_turn, messages))
    if over and not answers and not has_image:
        raise UpstreamFailed(
            "ChatGPT answered with what is no text (a sound or a document): see it at "
            "chatgpt.com."
        )
    if answers and answers[-1].get("status") == "in_progress":
        return []
    is_made = _is_made(tree, messages)
    if not has_image and is_made is not None:
        return messages if over and is_made else []
    return messages if answers or over or is_made else []


def _ends_turn(message: dict[str, Any]) -> bool:
    return message.get("end_turn") is True


def _is_made(tree: Tree, messages: list[dict[str, Any]]) -> bool | None:
    """Whether an image that is made beside the stream is there; None where none is made.

    Its task is over once its outcome waits to be read.
    """
    if not any(map(shown.awaits_image, messages)):
        return None
    return tree.get("async_status") in (None, "UNREAD")


def messages_below(tree: Tree, question_id: str) -> list[dict[str, Any]]:
    """The messages in a tree that descend from a question and are no others' questions, in their order."""
    messages = [node.get("message") for _, node in _descendants(tree, question_id)]
    return [
        message
        for message in messages
        if isinstance(message, dict)
        and message.get("id") != question_id
        and part_of(message, "author").get("role") in ("assistant", "tool")
    ]


def _descendants(tree: Tree, root: str) -> Generator[tuple[str, Tree], None, None]:
    """A node and all below it, depth first; each once, whatever the upstream links."""
    mapping = tree.get("mapping")
    if not isinstance(mapping, dict):
        return
    waiting = [root]
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        node = mapping.get(name)
        if name in seen or not isinstance(node, dict):
            continue
        seen.add(name)
        yield name, node
        children = node.get("children")
        if isinstance(children, list):
            waiting += [child for child in reversed(children) if isinstance(child, str)]
