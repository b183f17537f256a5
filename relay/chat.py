"""The one use case: a question goes to its upstream, and the conversation is stored.

`Chat.open` opens a `Turn`: it decides which upstream is asked, with whose credential, and what is stored.
"""

from __future__ import annotations

import hashlib
import logging
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from enum import Enum
from typing import Any

import orjson

from relay import attachments, cutting
from relay.domain import (
    NO_ARRIVAL,
    Arrival,
    Ask,
    Caller,
    IdempotencyKey,
    KeyRecord,
    Message,
    Question,
    Remarks,
    joined,
    title_of,
)
from relay.downloads import Download, LinkingDecoder, Links
from relay.errors import (
    BadRequest,
    Busy,
    Forbidden,
    NoConversation,
    RelayError,
    StoreFailed,
    Unauthorized,
    UpstreamGone,
)
from relay.ids import new_id, new_ids
from relay.keeping import (
    DeferredKeeper,
    EphemeralKeeper,
    Keeper,
    LocalKeeper,
    RemoteKeeper,
    ReplayKeeper,
)
from relay.models import ModelCatalog
from relay.replay import ReplayedAnswer, raise_failure
from relay.store import OpenedTurn, Store, TurnRequest
from relay.turn import Printer, Turn, TurnContext
from relay.upkeep import LEASE_SECONDS, Leases, Waiters
from relay.upstreams import Decoder, Upstream
from relay.usage import Meter, UsageCounter
from relay.values import changed, frozen
from relay.window import Window, fit

log = logging.getLogger(__name__)


class Waiting(Enum):
    """What keeps an ask from being opened now."""

    CONVERSATION = "its conversation is being asked something else"
    SAME_ASK = "the same ask with a key is being answered"


@frozen
class Routing:
    """Where new conversations go.

    `default`: the name of the upstream of callers without a token; accounts that are added may change it.
    `explicit`: the operator named the upstream, so a credential that it cannot use is refused.
    `sole_owner`: there is one client key at most, so conversations that only an upstream knows of
    are that owner's.
    """

    default: Callable[[], str]
    explicit: bool = False
    sole_owner: bool = True

    @property
    def default_upstream(self) -> str:
        return self.default()

    def upstream_for(
        self, caller: Caller, upstreams: Mapping[str, Upstream]
    ) -> Upstream:
        """Where a new conversation of this caller goes: its own token leads to where such tokens are checked."""
        token = caller.token
        if token and not self.explicit:
            for upstream in upstreams.values():
                if upstream.accepts_caller_tokens and upstream.recognizes(token):
                    return upstream
        return upstreams[self.default_upstream]


@frozen
class PreparedAsk:
    """What is made of an ask once, however often it is tried.

    `upstream`: where a new conversation goes. `conversation_id`: the ask's own, or that of the
    conversation that it names. The ask itself is not held: one that nobody else holds has been given up.
    """

    request: TurnRequest
    upstream: Upstream
    conversation_id: str | None

    @property
    def begins_named(self) -> bool:
        """Another ask may begin the conversation of that name first."""
        return self.request.is_new and self.request.name is not None


class Chat:
    """Opens turns: decides which upstream is asked, with whose credential, and how much it is sent.

    `budget`: tokens of a conversation that go upstream at most; 0: all of them. `catalog`: what
    the names of models mean. `usage`: counts the asks. `links`: makes the addresses of files in answers.
    """

    def __init__(
        self,
        upstreams: Mapping[str, Upstream],
        routing: Routing,
        store: Store,
        leases: Leases,
        budget: int = 0,
        *,
        catalog: ModelCatalog | None = None,
        usage: UsageCounter | None = None,
        links: Links | None = None,
    ) -> None:
        self._usage = usage
        self._links = links or Links(lambda: uuid.uuid4().bytes)
        self._catalog = catalog or ModelCatalog()
        self._upstreams = upstreams
        self._routing = routing
        self._store = store
        self._leases = leases
        self._budget = budget
        self._waiters: Waiters[PreparedAsk, Waiting] = Waiters(leases)

    def open(
        self, ask: Ask, printer: Printer, arrival: Arrival = NO_ARRIVAL
    ) -> Turn | Waiting:
        """Store the question and open its stream; nothing is sent before that is read.

        While it waits for something, call it again with the same object. Raises Busy where too many
        wait already.
        """
        waiter = self._waiters.find(ask)
        if waiter is None:
            prepared = self._prepare(ask)
        elif not self._waiters.is_due(waiter):
            return waiter.waits_for
        elif waiter.prepared.begins_named:
            prepared = self._prepare(ask)
        else:
            prepared = waiter.prepared
        opened: Turn | Waiting | None = None
        try:
            opened = self._try(ask, prepared, printer, arrival)
        finally:
            if not isinstance(opened, Waiting):
                self._waiters.remove(ask)
        if isinstance(opened, Waiting):
            names = prepared.request.lease_names
            self._waiters.add(ask, names, prepared, opened)
        return opened

    def _prepare(self, ask: Ask) -> PreparedAsk:
        if ask.conversation_name is not None:
            ask = self._find_named(ask, ask.conversation_name)
        upstream = self._routing.upstream_for(ask.caller, self._upstreams)
        self._check(ask, upstream)
        self.note(ask.caller)
        request = self._turn_request(ask, upstream)
        return PreparedAsk(request, upstream, ask.conversation_id)

    def note(self, caller: Caller) -> None:
        """Note when a key's holder asked; of other callers nothing is known before the upstream accepts them."""
        if caller.unverified:
            return
        try:
            self._store.note_ask(caller.owner)
        except StoreFailed as error:
            log.warning("The time of an ask could not be noted: %s", error)

    def _find_named(self, ask: Ask, name: str) -> Ask:
        """The ask with the id of the conversation that it names; as it is where that is yet to begin."""
        row = self._store.find_named(_owner(ask), name)
        return ask if row is None else replace(ask, conversation_id=row.id)

    def _try(
        self, ask: Ask, prepared: PreparedAsk, printer: Printer, arrival: Arrival
    ) -> Turn | Waiting:
        """The turn, if its leases are free."""
        if ask.conversation_id != prepared.conversation_id:
            ask = replace(ask, conversation_id=prepared.conversation_id)
        request = prepared.request
        if request.idempotency_key is not None:
            holder = request.holder
            key = request.idempotency_key
            record = self._store.claim(key, holder, LEASE_SECONDS)
            if record.state != "mine":
                return _replay(record, request, ask, printer)
        opened = self._open_stored(ask, request, prepared.upstream)
        if opened is None:
            return Waiting.CONVERSATION
        keeper = self._keeper(ask, request, opened)
        turn = None
        try:
            turn = self._start(ask, opened, keeper, printer, arrival)
            return turn
        except RelayError as error:
            keeper.failed("", None, error, sent=False)
            raise
        finally:
            if turn is None:
                self._leases.drop(request.holder)

    def _check(self, ask: Ask, upstream: Upstream) -> None:
        """Raise for what cannot be asked, before anything is stored."""
        if ask.parent_id and not ask.conversation_id:
            raise BadRequest(
                "A parent id goes with the conversation_id of the same reply: send "
                "both, or neither."
            )
        if not ask.conversation_id:
            self._credential(ask, upstream)

    def _turn_request(self, ask: Ask, upstream: Upstream) -> TurnRequest:
        is_new = not ask.conversation_id
        may_adopt = bool(ask.caller.token) or self._routing.sole_owner
        key = _key(ask) if ask.idempotency_key else None
        # of what is not stored, only its question is ever named
        conversation_id, question_id, answer_id = (
            new_ids() if ask.keep else (new_id(),) * 3
        )
        return TurnRequest(
            conversation_id=ask.conversation_id or conversation_id,
            owner=_owner(ask),
            upstream=upstream.name,
            question_id=question_id,
            answer_id=answer_id,
            question=ask.question if is_new else _going_on(ask),
            title=title_of(ask.prompt) if ask.keep else "",
            is_new=is_new,
            parent_id=ask.parent_id,
            adopt=_begins_upstream(ask, upstream) and may_adopt,
            preamble=ask.preamble if is_new else (),
            idempotency_key=key,
            budget=self._budget,
            deferred=ask.caller.unverified,
            name=ask.conversation_name,
            echo=ask.echo,
        )

    def _open_stored(
        self, ask: Ask, request: TurnRequest, upstream: Upstream
    ) -> OpenedTurn | None:
        """Take the conversation's lease and read it; None while another turn has it."""
        opened: OpenedTurn | None = None
        try:
            if request.name is None or self._may_begin_named(ask, request, upstream):
                opened = self._open_anywhere(ask, request, upstream)
        finally:
            if opened is None and request.idempotency_key is not None:
                self._store.release(request)
        needs_leases = request.name is not None or request.idempotency_key is not None
        if opened is not None and (opened.is_leased or needs_leases):
            self._leases.hold(request.holder, request.lease_names)
        return opened

    def _open_anywhere(
        self, ask: Ask, request: TurnRequest, upstream: Upstream
    ) -> OpenedTurn | None:
        if ask.keep and not (request.is_new and _begins_upstream(ask, upstream)):
            return self._open_owned(ask.caller, request)
        return OpenedTurn(
            upstream.name,
            history=(*ask.path, *ask.preamble),
            remote=upstream.stores_conversations and not ask.keep_here,
            is_leased=False,
        )

    def _may_begin_named(
        self, ask: Ask, request: TurnRequest, upstream: Upstream
    ) -> bool:
        """Whether no other turn begins the conversation of this name now."""
        if not request.is_new:
            return True
        if request.deferred:  # nothing is written yet: what this process knows must do
            return self._leases.freed(request.conversation_leases) is None
        if _begins_upstream(ask, upstream):
            return self._store.hold_name(request, LEASE_SECONDS)
        return True

    def _open_owned(self, caller: Caller, request: TurnRequest) -> OpenedTurn | None:
        """Open the turn in a conversation of the caller's, also of one that is about to become the caller's."""
        try:
            return self._store.open_turn(request, LEASE_SECONDS)
        except NoConversation:
            if request.is_new or not self._take_over(caller, request.conversation_id):
                raise
        return self._store.open_turn(request, LEASE_SECONDS)

    def _take_over(self, caller: Caller, conversation_id: str) -> bool:
        """Make a conversation the caller's that an older version gave to the caller's whole workspace.

        Only its upstream can say whose it is: raises RelayError where that does not show it.
        """
        if caller.former_owner is None:
            return False
        row = self._store.find(conversation_id)
        if row is None or not row.remote or row.owner != caller.former_owner:
            return False
        upstream = self._upstreams.get(row.upstream)
        if upstream is None or upstream.history is None:
            return False
        upstream.history.read(caller, conversation_id, row.account)
        self._store.take_over(conversation_id, caller.former_owner, caller.owner)
        return True

    def _keeper(self, ask: Ask, request: TurnRequest, opened: OpenedTurn) -> Keeper:
        if not ask.keep:
            return EphemeralKeeper(self._store, self._leases, request)
        if opened.remote:
            return RemoteKeeper(self._store, self._leases, request, opened)
        if request.deferred:
            return DeferredKeeper(self._store, self._leases, request, opened)
        return LocalKeeper(self._store, self._leases, request)

    def _start(
        self,
        ask: Ask,
        opened: OpenedTurn,
        keeper: Keeper,
        printer: Printer,
        arrival: Arrival,
    ) -> Turn:
        """Record that the question is about to be sent, and open its stream."""
        upstream = self._upstream_of(ask, opened)
        window = self._window(ask, keeper.request.question, opened, upstream)
        limits = _answer_limits(ask, upstream)
        token = self._credential(ask, upstream)
        question = Question(
            window.messages,
            question_id=keeper.request.question_id,
            conversation_id=ask.conversation_id if opened.remote else None,
            parent_id=opened.parent_id if opened.remote else None,
            account=opened.account,
            model=self._model_for(ask, upstream, token),
            options=ask.options if upstream.accepts_options else {},
            reverse_proxy=ask.reverse_proxy,
            timeout=ask.timeout,
            token=token,
            may_spend=ask.caller.may_spend,
            keep=ask.keep and opened.remote,
            request_id=arrival.request_id,
        )
        self._record_dispatch(keeper.request)
        is_stored_here = ask.keep and not opened.remote
        context = TurnContext(
            keeper.request.conversation_id if is_stored_here else "",
            keeper.request.answer_id if is_stored_here else "",
            Remarks(opened.dropped + window.dropped, _ignored(ask, upstream)),
            ask.check,
            window.tokens,
            keeper.request.question_id,
            self._meter(ask, upstream, question.model),
        )
        stream, decoder = upstream.ask(question)
        if upstream.stores_conversations:
            own = bool(token)
            decoder = self._with_links(decoder, arrival, opened, keeper, own)
        if limits is not None:
            decoder = cutting.CuttingDecoder(decoder, limits)
        return Turn(stream, decoder, keeper, printer, context)

    def _model_for(self, ask: Ask, upstream: Upstream, token: str | None) -> str | None:
        """The name that the upstream has for the model. `token`: the credential that is used there."""
        payer = ask.caller
        if payer.token != token:
            payer = changed(payer, token=token)
        return self._catalog.name_for(upstream, payer, ask.model)

    def _meter(self, ask: Ask, upstream: Upstream, model: str | None) -> Meter | None:
        if self._usage is None:
            return None
        return self._usage.meter(ask.caller, upstream.name, model)

    def _with_links(
        self,
        decoder: Decoder,
        arrival: Arrival,
        opened: OpenedTurn,
        keeper: Keeper,
        own: bool,
    ) -> LinkingDecoder:
        """The decoder with addresses of the answer's files. `own`: they are at a caller's own account."""
        request = keeper.request
        is_kept_here = keeper.returns_ids and not opened.remote
        row = request.conversation_id if is_kept_here else ""
        place = Download(request.owner, opened.upstream, row=row, own=own)
        address = arrival.base_url()
        return LinkingDecoder(
            decoder, place, self._links, address, is_kept=keeper.returns_ids
        )

    def _upstream_of(self, ask: Ask, opened: OpenedTurn) -> Upstream:
        """Raises UpstreamGone, or BadRequest where it has a conversation that is to be stored here."""
        upstream = self._upstreams.get(opened.upstream)
        if upstream is None:
            raise UpstreamGone(
                f"This conversation lives at the upstream {opened.upstream}, which is "
                "not open any more. Leave conversation_id out to begin a new one."
            )
        if ask.keep_here and opened.remote:
            raise BadRequest(
                f"This conversation is stored at the upstream {upstream.name}, and not "
                "here: go on with it by chat completions, or leave it out."
            )
        return upstream

    def _window(
        self, ask: Ask, question: Message, opened: OpenedTurn, upstream: Upstream
    ) -> Window:
        """The messages that go upstream."""
        has_history_here = bool(ask.path) or (ask.keep and not opened.remote)
        messages = (*opened.history, question)
        if ask.instructions:
            messages = (Message("system", ask.instructions), *messages)
        window = fit(messages, self._budget if has_history_here else 0)
        if upstream.accepts_options or not any(m.payloads for m in window.messages):
            return window
        separated = tuple(m for each in window.messages for m in _separated(each))
        self._check_payloads(separated, upstream)
        return Window(separated, window.dropped, window.tokens)

    def _check_payloads(
        self, messages: tuple[Message, ...], upstream: Upstream
    ) -> None:
        """Raise BadRequest for what an upstream does not take that has no options."""
        payloads = [payload for message in messages for payload in message.payloads]
        if payloads and not upstream.accepts_files:
            raise BadRequest(
                f"The upstream {upstream.name} takes messages of text alone: no "
                f"images, files or tools. {self._ways_for_files()}"
            )
        if not all(map(attachments.has_files_alone, payloads)):
            raise BadRequest(
                f"The upstream {upstream.name} takes text, and images and files in "
                "messages of the user: no tools and no sound."
            )

    def _ways_for_files(self) -> str:
        """Which upstreams take files, as a sentence."""
        ways = [
            upstream.name
            for upstream in self._upstreams.values()
            if upstream.accepts_files
        ]
        return f"Images and files go to: {' or '.join(ways)}." if ways else ""

    def _record_dispatch(self, request: TurnRequest) -> None:
        """Store that an ask with a key is about to be sent; raises where that cannot be, so that it is not."""
        key = request.idempotency_key
        if key is not None and not self._store.dispatch(key, request.holder):
            raise Busy()  # we slept for longer than the lease, and another process asks it

    def _credential(self, ask: Ask, upstream: Upstream) -> str | None:
        """The caller's own token where it is to be used, None for the server's credentials.

        Raises where neither may be used.
        """
        if ask.reverse_proxy and not upstream.stores_conversations:
            raise Forbidden(
                f"The upstream {upstream.name} is reached by no reverse proxy: leave "
                "reverse_proxy out."
            )
        if ask.caller.token and upstream.accepts_caller_tokens:
            return ask.caller.token
        if not ask.caller.may_spend:
            raise Unauthorized(
                f"The upstream {upstream.name} takes no access token; it asks for a "
                "client key."
            )
        if ask.caller.token and (self._routing.explicit or ask.conversation_id):
            raise BadRequest(
                f"The upstream {upstream.name} takes no access token: leave "
                "access_token out."
            )
        return None


def _owner(ask: Ask) -> str:
    """Whose the conversation is. What a token claims opens nothing that no upstream will guard."""
    return ask.caller.verified_owner if ask.keep_here else ask.caller.owner


def _begins_upstream(ask: Ask, upstream: Upstream) -> bool:
    """Whether a new conversation would be one that its upstream stores."""
    return upstream.stores_conversations and not ask.keep_here


def _going_on(ask: Ask) -> Message:
    """The question of a conversation that goes on."""
    if not ask.keep_here:
        return ask.question
    return joined((*ask.preamble, ask.question))


def _separated(message: Message) -> tuple[Message, ...]:
    """The messages that were sent as one, where each is text, or text and files."""
    separated = []
    for payload in message.payloads:
        is_plain = set(payload) == {"role", "content"}
        if is_plain and type(payload["content"]) is str:
            separated.append(Message(payload["role"], payload["content"]))
        elif attachments.has_files_alone(payload):
            text = attachments.text_of(payload)
            separated.append(Message(payload["role"], text, (payload,)))
        else:
            return (message,)
    return tuple(separated) or (message,)


def _answer_limits(ask: Ask, upstream: Upstream) -> cutting.AnswerLimits | None:
    """What ends the answer of an upstream that knows no such options. Raises BadRequest."""
    if upstream.accepts_options or not ask.options:
        return None
    return cutting.limits_of(ask.options)


def _ignored(ask: Ask, upstream: Upstream) -> tuple[str, ...]:
    """The parameters that have no effect on this answer."""
    ignored = ask.ignored
    if ask.options and not upstream.accepts_options:
        ignored += tuple(name for name in ask.options if name not in cutting.OPTIONS)
    if ask.preamble and ask.conversation_id and not ask.keep_here:
        ignored += ("system",)
    return ignored


def _replay(
    record: KeyRecord, request: TurnRequest, ask: Ask, printer: Printer
) -> Turn | Waiting:
    """The recorded answer as a turn, once it is there. Raises a recorded failure."""
    if record.state == "running":
        return Waiting.SAME_ASK
    raise_failure(record)
    answer = ReplayedAnswer(record)
    conversation_id = str(record.outcome["conversation_id"])
    keeper = ReplayKeeper(request, returns_ids=bool(conversation_id))
    answer_id = str(record.outcome["message_id"])
    context = TurnContext(conversation_id, answer_id, Remarks(replayed=True), ask.check)
    return Turn(answer, answer, keeper, printer, context)


def _key(ask: Ask) -> IdempotencyKey:
    """The ask's key as it is stored: of an unverified caller nothing but hashes."""
    name = str(ask.idempotency_key)
    if ask.caller.unverified:
        name = hashlib.sha256(name.encode()).hexdigest()
    return IdempotencyKey(ask.caller.verified_owner, name, _fingerprint(ask))


def _fingerprint(ask: Ask) -> str:
    """What makes two asks the same: all that is asked; not the format of the answer, and no ids.

    A caller that repeats an ask may have learnt the ids meanwhile. Raises BadRequest for options
    that are nested too deeply.
    """
    messages = [
        [message.role, message.text, _only_or_all(message.payloads)]
        for message in (*ask.preamble, ask.question)
    ]
    place = [
        ask.route,
        ask.conversation_name,
        ask.model,
        ask.reverse_proxy,
        ask.keep,
    ]
    if ask.instructions:
        place.append(ask.instructions)
    try:
        content = orjson.dumps(
            [messages, place, dict(ask.options)], option=orjson.OPT_SORT_KEYS
        )
    except orjson.JSONEncodeError:
        raise BadRequest("The question is nested too deeply to be asked.") from None
    return hashlib.sha256(content).hexdigest()


def _only_or_all(values: tuple[Any, ...]) -> Any:
    """The value itself where it is the only one, None where there is none: as keys were recorded by older versions."""
    return values if len(values) > 1 else next(iter(values), None)
