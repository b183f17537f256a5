"""The one use case: a question goes to its upstream, and what was said is kept.

`Chat.open` begins a turn; the turn is then pushed: bytes from the upstream go in, bytes for the caller come out. `feed`
does no I/O; `end` and `fail` make one write to the store. Who reads, and where, is the driver's business.
"""

from __future__ import annotations

import hashlib
import logging
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from relay.domain import (
    Ask,
    Delta,
    Event,
    Finished,
    Question,
    Reasoning,
    Refusal,
    Remarks,
    Reply,
    Restarted,
    Started,
)
from relay.errors import (
    BadRequest,
    Blocked,
    Busy,
    Forbidden,
    KeyReused,
    NoConversation,
    OutcomeUnknown,
    Refused,
    RelayError,
    StoreFailed,
    Unauthorized,
    UpstreamCut,
    UpstreamFailed,
    UpstreamGone,
)
from relay.keeping import (
    LEASE_SECONDS,
    IndexKeeper,
    Keeper,
    Leases,
    NoKeeper,
    OwnKeeper,
)
from relay.store import Begun, Claim, Claimed, Opening, Store
from relay.window import within

log = logging.getLogger(__name__)

TITLE_LENGTH = 60


class Stream(Protocol):
    """Bytes on their way from an upstream. Raises only RelayError.

    `asked`: the question itself was sent; until then a model may be looked for, or an account waited for.
    """

    @property
    def asked(self) -> bool: ...

    def read(self, seconds: float) -> bytes | None:
        """What has arrived, at the latest after `seconds`: b"" at the end, None if nothing came."""

    def interrupt(self) -> None:
        """From another thread: make a read that is under way return or raise at once."""

    def close(self) -> None:
        """Let the connection go. May be called twice."""


class Decoder(Protocol):
    """An upstream's bytes as events: Started, any number of Delta, Finished. No I/O. Raises only RelayError.

    `started`: the upstream took the question, and said so. `settled`: all of the answer is there, and only the stream's
    own end is still to come.
    """

    @property
    def started(self) -> bool: ...

    @property
    def settled(self) -> bool: ...

    def feed(self, piece: bytes) -> list[Event]: ...

    def end(self) -> list[Event]:
        """The bytes are over: what was still held back. Raises UpstreamCut where the answer is not whole."""


class Printer(Protocol):
    """Events as a caller's dialect has them. No I/O."""

    keep_alive: bytes

    def print(self, batch: list[Event]) -> bytes: ...

    def end(self, reply: Reply) -> bytes: ...

    def fail(self, error: RelayError) -> bytes | None:
        """How a failure is told within an answer; None where the dialect has no way, so that the body is broken off."""


class Upstream(Protocol):
    """A way to a model.

    `protected`: it spends what is the operator's. `checks_tokens`: a caller's own credential replaces all of that, and
    is checked there. `keeps`: it keeps conversations itself, under ids of its own. `takes_options`: parameters for the
    model, and messages of more than text, mean something to it.
    """

    name: str
    protected: bool
    checks_tokens: bool
    keeps: bool
    takes_options: bool

    def knows(self, token: str) -> bool:
        """Whether a caller's credential looks like one for this upstream."""

    def ask(self, question: Question) -> tuple[Stream, Decoder]:
        """Send the question. Its status may come with the stream's first read. Raises only RelayError."""


class Turn:
    """One question and its answer, pushed from outside."""

    def __init__(
        self,
        stream: Stream,
        decoder: Decoder,
        keeper: Keeper,
        printer: Printer,
        conversation_id: str = "",
        remarks: Remarks | None = None,
    ) -> None:
        self.stream = stream
        self.conversation_id = conversation_id
        self.remarks = remarks or Remarks()
        self.ended = False
        self.reply: Reply | None = None
        self._decoder = decoder
        self._keeper = keeper
        self._printer = printer
        self._started: Started | None = None
        self._noted = False
        self._model: str | None = None
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._refusal: list[str] = []
        self._finished: Finished | None = None

    @property
    def over(self) -> bool:
        """The answer is whole; what the upstream may still say is not waited for."""
        return self._finished is not None

    @property
    def started(self) -> bool:
        return self._started is not None

    @property
    def settled(self) -> bool:
        """All of the answer is there, though the upstream has not said that it is over."""
        return self._decoder.settled

    def feed(self, piece: bytes) -> bytes:
        """What the caller is told of this piece; nothing is kept yet."""
        return b"" if self.over else self._take(self._decoder.feed(piece))

    def _take(self, batch: list[Event]) -> bytes:
        told: list[Event] = []
        for event in batch:
            match event:
                case Started(model, conversation_id):
                    self._started, self._model = event, model
                    if conversation_id and self._keeper.shows_ids:
                        self.conversation_id = conversation_id
                case Restarted():
                    self._text.clear()
                case Delta(text):
                    self._text.append(text)
                case Reasoning(text):
                    self._reasoning.append(text)
                case Refusal(text):
                    self._refusal.append(text)
                case Finished():
                    self._finished = event
                    break
            told.append(event)
        return self._printer.print(told) if told else b""

    def begin(self) -> None:
        """Keep that the upstream took the question, once it has said so."""
        if self._started is not None and not self._noted:
            self._noted = True
            self._keeper.begun(self._started)

    def end(self) -> bytes:
        """The stream is over: keep the answer, and tell its end. Raises UpstreamCut, Refused ... if it has none."""
        rest = b"" if self.over else self._take(self._decoder.end())
        if self._finished is None:
            raise UpstreamCut()
        self.begin()
        text = "".join(self._text)
        self._check(text, self._finished.reason)
        ids = (
            self.conversation_id,
            self._finished.message_id or self._keeper.opening.answer_id,
        )
        reply = Reply(
            text,
            *(ids if self._keeper.shows_ids else ("", "")),
            model=self._finished.model or self._model,
            finish_reason=self._finished.reason,
            reasoning="".join(self._reasoning),
            usage=self._finished.usage,
            remarks=self.remarks,
        )
        self._keeper.whole(reply)
        self.reply, self.ended = reply, True
        return rest + self._printer.end(reply)

    def _check(self, text: str, reason: str) -> None:
        """What ended in good order is not an answer yet."""
        if self._refusal:
            raise Refused(f"The model refused to answer: {''.join(self._refusal)}")
        if reason == "content_filter":
            raise Blocked("The upstream's content filter stopped the answer.")
        if reason in ("tool_calls", "function_call"):
            raise UpstreamFailed(
                "The model asked for a tool to be called, which this route does not do: send none."
            )
        if not text and reason == "length":
            raise UpstreamFailed(
                "The model's limit of tokens was spent before its answer began: allow it more."
            )

    def fail(self, error: RelayError) -> bytes | None:
        """The turn failed: keep what came as a broken answer, and tell it; None: the body is to be broken off."""
        self.ended = True
        error.taken = (error.taken or self._decoder.started) and self.stream.asked
        try:
            if not self._keeper.broken("".join(self._text), self._model, error):
                self.conversation_id = ""
        except StoreFailed as failure:
            log.warning("A broken answer could not be kept: %s", failure)
        return self._printer.fail(error)

    def close(self) -> None:
        self.stream.close()


@dataclass(frozen=True)
class Choice:
    """Where new conversations go. `explicit`: the operator named the upstream, so what it cannot use is refused.

    `sole_owner`: there is one client key at most, so conversations that only an upstream knows of are that owner's.
    """

    upstream: str
    explicit: bool = False
    sole_owner: bool = True


class Kept:
    """An answer that was given before, as a stream and its decoder: told again in the format now asked for."""

    asked = started = settled = True

    def __init__(self, outcome: Mapping[str, Any]) -> None:
        self._outcome = outcome
        self._pieces = [b"kept"]

    def read(self, seconds: float) -> bytes:
        return self._pieces.pop() if self._pieces else b""

    def feed(self, piece: bytes) -> list[Event]:
        kept = self._outcome
        events: list[Event] = [Started(kept["model"], kept["conversation_id"] or None)]
        events += [Reasoning(kept["reasoning"])] if kept["reasoning"] else []
        events += [Delta(kept["text"])] if kept["text"] else []
        return [
            *events,
            Finished(
                kept["finish_reason"], kept["message_id"], kept["model"], kept["usage"]
            ),
        ]

    def end(self) -> list[Event]:
        return []

    def interrupt(self) -> None:
        self._pieces.clear()

    def close(self) -> None:
        self._pieces.clear()


class KeptAlready:
    """Keeps nothing of an answer that is told again: it was kept when it was given."""

    def __init__(self, opening: Opening, shows_ids: bool) -> None:
        self.opening = opening
        self.shows_ids = shows_ids

    def begun(self, started: Started) -> None:
        pass

    def whole(self, reply: Reply) -> None:
        pass

    def broken(self, text: str, model: str | None, error: RelayError) -> bool:
        return True


class Chat:
    """Opens turns. Decides which upstream is asked, with whose credential, and how much of a conversation it is shown.

    `budget`: tokens of a conversation that go upstream at most; 0: all of them.
    """

    def __init__(
        self,
        upstreams: Mapping[str, Upstream],
        choice: Choice,
        store: Store,
        leases: Leases,
        budget: int = 0,
    ) -> None:
        self._upstreams = upstreams
        self._choice = choice
        self._store = store
        self._leases = leases
        self._budget = budget

    def open(self, ask: Ask, printer: Printer, request_id: str = "") -> Turn | None:
        """Keep the question and send it. None while the conversation, or the same ask with a key, is being answered."""
        if ask.parent_id and not ask.conversation_id:
            raise BadRequest(
                "A parent id goes with the conversation_id of the same reply: send both, or neither."
            )
        home = self._home(ask)
        if ask.keep and any(message.given for message in (*ask.before, ask.question)):
            raise BadRequest(
                "What is kept is text alone: images, files and tools go where nothing is to be kept."
            )
        if not ask.conversation_id:
            self._permit(ask, home)
        opening = _opening(
            ask,
            home.name,
            adopt=home.keeps and (bool(ask.caller.token) or self._choice.sole_owner),
        )
        if opening.claim is not None:
            found = self._store.claim(opening.claim, opening.holder, LEASE_SECONDS)
            if found.state != "mine":
                return _settled(found, opening, printer)
        begun = self._begin(ask, opening, home)
        if begun is None:
            return None
        keeper: Keeper = NoKeeper(self._store, self._leases, opening)
        if ask.keep:
            keeper = OwnKeeper(self._store, self._leases, opening)
            if begun.remote:
                keeper = IndexKeeper(self._store, self._leases, opening, begun)
        turn = None
        try:
            turn = self._send(ask, begun, keeper, printer, request_id)
        except RelayError as error:
            keeper.broken("", None, error)
            raise
        finally:
            if turn is None:
                self._leases.drop(opening.holder)
        return turn

    def _begin(self, ask: Ask, opening: Opening, home: Upstream) -> Begun | None:
        """Hold the conversation and learn what was said in it; None while another turn holds it."""
        begun: Begun | None = Begun(
            home.name, (*ask.before, ask.question), remote=home.keeps
        )
        if ask.keep and not (opening.new and home.keeps):
            begun = None
            try:
                begun = self._store.begin(opening, LEASE_SECONDS)
            finally:
                if begun is None and opening.claim is not None:
                    self._store.release(opening)
        if begun is not None and (
            opening.claim is not None or (ask.keep and not (opening.new and home.keeps))
        ):
            self._leases.hold(opening.holder)
        return begun

    def _home(self, ask: Ask) -> Upstream:
        """Where a new conversation of this caller goes: its own token leads to where such tokens are checked."""
        if ask.caller.token and not self._choice.explicit:
            for upstream in self._upstreams.values():
                if upstream.checks_tokens and upstream.knows(ask.caller.token):
                    return upstream
        return self._upstreams[self._choice.upstream]

    def _send(
        self, ask: Ask, begun: Begun, keeper: Keeper, printer: Printer, request_id: str
    ) -> Turn:
        opening, upstream = keeper.opening, self._upstreams.get(begun.upstream)
        if upstream is None:
            raise UpstreamGone(
                f"This conversation lives at the upstream {begun.upstream}, which is not open any more. "
                "Leave conversation_id out to begin a new one."
            )
        messages, dropped = (*begun.messages[:-1], ask.question), 0
        if self._budget and ask.keep and not begun.remote:
            messages, dropped = within(messages, self._budget)
        if not upstream.takes_options and any(message.given for message in messages):
            raise BadRequest(
                f"The upstream {upstream.name} takes messages of text alone: no images, files or tools."
            )
        question = Question(
            messages,
            question_id=opening.question_id,
            conversation_id=ask.conversation_id if begun.remote else None,
            parent_id=begun.parent,
            account=begun.account,
            model=ask.model,
            options=ask.options if upstream.takes_options else {},
            reverse_proxy=ask.reverse_proxy,
            timeout=ask.timeout,
            token=self._permit(ask, upstream),
            keep=ask.keep,
            request_id=request_id,
        )
        self._dispatch(opening)
        ignored = () if upstream.takes_options else tuple(ask.options)
        if ask.before and not opening.new:
            ignored += ("system",)
        remarks = Remarks(dropped, ignored)
        known = "" if begun.remote or not ask.keep else opening.conversation_id
        return Turn(*upstream.ask(question), keeper, printer, known, remarks)

    def _dispatch(self, opening: Opening) -> None:
        """Keep that an ask with a key is about to be sent; raises where that cannot be, so that it is not."""
        try:
            if opening.claim is not None and not self._store.dispatch(
                opening.claim, opening.holder
            ):
                raise Busy()  # we slept for longer than the lease, and another process asks it
        except StoreFailed as error:
            error.taken = False
            raise

    def _permit(self, ask: Ask, upstream: Upstream) -> str | None:
        """The caller's own credential where it is to be spent. Raises where neither it nor ours may be."""
        if ask.reverse_proxy and not upstream.keeps:
            raise Forbidden(
                f"The upstream {upstream.name} is reached by no reverse proxy: leave reverse_proxy out."
            )
        if ask.caller.token and upstream.checks_tokens:
            return ask.caller.token
        if not ask.caller.may_spend:
            raise Unauthorized(
                f"The upstream {upstream.name} takes no access token; it asks for a client key."
            )
        if ask.caller.token and self._choice.explicit:
            raise BadRequest(
                f"The upstream {upstream.name} takes no access token: leave access_token out."
            )
        return None


def _settled(found: Claimed, opening: Opening, printer: Printer) -> Turn | None:
    """An ask with a key that is not to be asked now. Raises what became of it where that is no answer."""
    told = found.outcome
    match found.state:
        case "done":
            kept, shows_ids = Kept(told), bool(told["conversation_id"])
            where = told["conversation_id"], Remarks(replayed=True)
            return Turn(kept, kept, KeptAlready(opening, shows_ids), printer, *where)
        case "refused":
            raise (Refused if told["code"] == Refused.code else Blocked)(
                told["message"]
            )
        case "unknown":
            raise OutcomeUnknown(
                f"{OutcomeUnknown.message} {told.get('message', '')} Take a new key to ask anew.".replace(
                    "  ", " "
                )
            )
        case "other":
            raise KeyReused()
        case "gone":
            raise NoConversation(
                "The answer to this request was deleted with its conversation."
            )
    return None


def _opening(ask: Ask, upstream: str, adopt: bool) -> Opening:
    new = not ask.conversation_id
    return Opening(
        conversation_id=ask.conversation_id or str(uuid.uuid4()),
        owner=ask.caller.owner,
        upstream=upstream,
        question_id=str(uuid.uuid4()),
        answer_id=str(uuid.uuid4()),
        prompt=ask.prompt,
        parent=ask.parent_id,
        title=_title(ask.prompt),
        new=new,
        adopt=adopt,
        before=ask.before if new else (),
        claim=Claim(ask.caller.proven, ask.key, _fingerprint(ask)) if ask.key else None,
    )


def _fingerprint(ask: Ask) -> str:
    """What makes two asks the same: all that is asked, and where; not how the answer is to be told."""
    said = [
        [message.role, message.text, message.given]
        for message in (*ask.before, ask.question)
    ]
    where = [
        ask.route,
        ask.conversation_id,
        ask.parent_id,
        ask.model,
        ask.reverse_proxy,
        ask.keep,
    ]
    try:
        told = orjson.dumps(
            [said, where, dict(ask.options)], option=orjson.OPT_SORT_KEYS
        )
    except orjson.JSONEncodeError:
        raise BadRequest("The question is nested too deeply to be asked.") from None
    return hashlib.sha256(told).hexdigest()


def _title(prompt: str) -> str:
    """The prompt's first words, on one line."""
    line = " ".join(prompt[: 10 * TITLE_LENGTH].split()) or "New chat"
    return (
        line if len(line) <= TITLE_LENGTH else line[: TITLE_LENGTH - 1].rstrip() + "…"
    )
