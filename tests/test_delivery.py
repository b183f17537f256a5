"""The loop that reads an upstream: clocks, keep-alives, a caller that leaves, failures in every phase."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

import pytest

from relay.chat import Chat, Routing
from relay.delivery import Clocks, DirectDelivery, Silent
from relay.dialects import form
from relay.domain import Ask, Caller, Node
from relay.errors import (
    Busy,
    CallerLeft,
    InternalError,
    RateLimited,
    RelayError,
    StoreFailed,
    UpstreamCut,
    UpstreamFailed,
    UpstreamRefused,
    UpstreamTimeout,
)
from relay.store import Store
from relay.turn import Printer
from relay.upkeep import Leases
from tests.scripted import Scripted, Wait
from tests.waiting import wait_for

ON_BOTH = True

OWNER = Caller("owner", may_spend=True)
FAST = Clocks(first_byte=0.3, silence=0.2, total=1.0, keep_alive=0.05)


@pytest.fixture
def deliver(store: Store) -> Callable[..., DirectDelivery]:
    def make(
        upstream: Scripted,
        printer: Printer | None = None,
        clocks: Clocks = FAST,
        **more: Any,
    ) -> DirectDelivery:
        chat = Chat(
            {upstream.name: upstream},
            Routing(lambda: upstream.name),
            store,
            Leases(store.renew),
        )
        printer, timeout = printer or Silent(), more.pop("timeout", None)
        return DirectDelivery(
            lambda: chat.open(Ask("Hi", OWNER, **more), printer),
            printer,
            clocks,
            timeout,
        )

    return make


EVENTS = form.Events(form.SEND_MESSAGE)


def newest_nodes(store: Store) -> list[Node]:
    rows = store.list("owner", 0, 10)
    return [store.get("owner", row.id).nodes[-1] for row in rows]


def statuses(store: Store) -> list[str]:
    return [node.status for node in newest_nodes(store)]


def test_a_whole_reply(deliver: Callable[..., DirectDelivery], store: Store) -> None:
    upstream = Scripted()
    delivery = deliver(upstream)
    assert delivery.reply().text == "Hello"
    delivery.close()
    assert (
        delivery.outcome == "whole"
        and upstream.streams[0].closed
        and statuses(store) == ["whole"]
    )


def test_a_stream_is_delivered_piece_by_piece(
    deliver: Callable[..., DirectDelivery],
) -> None:
    pieces = list(deliver(Scripted(b"S|", b"Hel|", b"lo|F|"), EVENTS).stream())
    assert pieces[0] == b": keep-alive\n\n", "the head leaves with the first event"
    assert pieces[1] == b'data: {"text":"Hel"}\n\n'
    assert pieces[2].startswith(b'data: {"text":"lo"}\n\nevent: done'), (
        "the end goes out with what came last"
    )
    assert len(pieces) == 3


def test_the_last_words_are_delivered_before_the_failure_to_store_them(
    deliver: Callable[..., DirectDelivery],
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*arguments: object) -> NoReturn:
        raise StoreFailed("The disk is full.")

    monkeypatch.setattr(store, "complete_turn", fail)
    delivery = deliver(Scripted(b"S|Hel|", b"lo|F|"), EVENTS)
    pieces = list(delivery.stream())
    assert pieces[:2] == [b'data: {"text":"Hel"}\n\n', b'data: {"text":"lo"}\n\n']
    assert pieces[2].startswith(b"event: error") and len(pieces) == 3
    assert delivery.outcome == "store_failed"


PHASES = [
    pytest.param([RateLimited("Slow.")], RateLimited, "", id="at-once"),
    pytest.param(
        [Wait(0.01), UpstreamRefused("No.", status=503)],
        UpstreamRefused,
        "",
        id="with-the-status",
    ),
    pytest.param([Wait(9)], UpstreamTimeout, "", id="silent-before-the-first-byte"),
    pytest.param(
        [b"S|", Wait(9)], UpstreamTimeout, "", id="silent-before-the-first-word"
    ),
    pytest.param(
        [b"S|Hel|", Wait(9)], UpstreamTimeout, "Hel", id="silent-in-the-middle"
    ),
    pytest.param([b"S|Hel|"], UpstreamCut, "Hel", id="cut"),
    pytest.param([], UpstreamCut, "", id="nothing"),
    pytest.param([b"S|Hel|", RuntimeError("a bug")], InternalError, "Hel", id="a-bug"),
]


@pytest.mark.parametrize(("script", "error", "text"), PHASES)
def test_a_plain_answer_is_never_half(
    deliver: Callable[..., DirectDelivery],
    script: list[Any],
    error: type[RelayError],
    text: str,
    store: Store,
) -> None:
    upstream = Scripted(*script)
    upstream.script = script
    delivery = deliver(upstream)
    with pytest.raises(error):
        delivery.reply()
    delivery.close()
    assert delivery.outcome == error.code
    assert all(stream.closed for stream in upstream.streams)
    stored = [(node.status, node.text) for node in newest_nodes(store)]
    assert stored == ([] if error is RateLimited else [("broken", text)])


@pytest.mark.parametrize(("script", "error", "text"), PHASES)
def test_a_stream_fails_with_its_status_or_with_an_error_event(
    deliver: Callable[..., DirectDelivery],
    script: list[Any],
    error: type[RelayError],
    text: str,
) -> None:
    upstream = Scripted(*script)
    upstream.script = script
    delivery = deliver(upstream, EVENTS, Clocks(0.2, 0.2, 1.0, keep_alive=0.5))
    if not script or not isinstance(script[0], bytes):
        with pytest.raises(error):
            delivery.stream()
        return
    wire = b"".join(delivery.stream())
    assert (b'{"text":"%s"}' % text.encode() in wire) is bool(text)
    assert wire.count(b"event: error\n") == 1 and b"event: done" not in wire


GARBAGE = b"S|Hel|lo |you|?|never|"


def test_what_came_before_an_error_in_one_packet_reaches_the_caller(
    deliver: Callable[..., DirectDelivery], store: Store
) -> None:
    wire = b"".join(deliver(Scripted(GARBAGE), EVENTS).stream())
    assert wire.startswith(b'data: {"text":"Hello you"}\n\nevent: error\n')
    pieces = deliver(Scripted(GARBAGE), form.Raw()).stream()
    assert next(pieces) == b"Hello you"
    with pytest.raises(BrokenPipeError):
        next(pieces)
    assert [node.text for node in newest_nodes(store)] == ["Hello you"] * 2


def test_an_error_right_after_the_start_has_its_true_status(
    deliver: Callable[..., DirectDelivery],
) -> None:
    with pytest.raises(UpstreamFailed):
        deliver(Scripted(b"S|?|"), EVENTS).stream()


def test_a_raw_stream_that_fails_is_broken_off(
    deliver: Callable[..., DirectDelivery],
) -> None:
    pieces = deliver(Scripted(b"S|Hel|"), form.Raw()).stream()
    assert next(pieces) == b"Hel"
    with pytest.raises(BrokenPipeError) as broken:
        next(pieces)
    assert broken.value.errno == errno.EPIPE


def test_silence_is_filled_with_keep_alives(
    deliver: Callable[..., DirectDelivery],
) -> None:
    clocks = Clocks(first_byte=5, silence=5, total=5, keep_alive=0.05)
    delivery = deliver(Scripted(Wait(1.5), b"S|", Wait(0.18), b"Hi|F|"), EVENTS, clocks)
    began = time.monotonic()
    pieces = delivery.stream()
    assert next(pieces) == b": keep-alive\n\n" and time.monotonic() - began < 1.5, (
        "the status waits only so long"
    )
    rest = list(pieces)
    assert rest.count(b": keep-alive\n\n") >= 4
    assert rest[-1].startswith(b'data: {"text":"Hi"}\n\n')


def test_upstream_pings_without_an_event_are_still_silence_to_the_caller(
    deliver: Callable[..., DirectDelivery],
) -> None:
    clocks = Clocks(first_byte=5, silence=5, total=5, keep_alive=0.05)
    pings: list[Any] = [step for _ in range(10) for step in (Wait(0.02), b"x")]
    wire = list(deliver(Scripted(b"S|", *pings, b"|F|"), EVENTS, clocks).stream())
    assert wire.count(b": keep-alive\n\n") >= 3


def test_the_total_clock_ends_an_endless_answer(
    deliver: Callable[..., DirectDelivery],
) -> None:
    clocks = Clocks(first_byte=5, silence=5, total=0.2)
    endless: list[Any] = [
        b"S|",
        *(step for _ in range(100) for step in (Wait(0.02), b"x|")),
    ]
    with pytest.raises(UpstreamTimeout, match=r"within 0\.2 s"):
        deliver(Scripted(*endless), clocks=clocks).reply()


def test_a_callers_timeout_can_only_shorten(
    deliver: Callable[..., DirectDelivery],
) -> None:
    assert deliver(Scripted(), timeout=0.05).seconds == 0.05
    assert deliver(Scripted(), timeout=9000).seconds == FAST.total
    with pytest.raises(UpstreamTimeout, match=r"within 0\.05 s"):
        deliver(Scripted(Wait(9)), timeout=0.05).reply()


def test_the_next_turn_waits_for_the_one_before_and_gives_up_in_time(
    deliver: Callable[..., DirectDelivery],
) -> None:
    upstream = Scripted(b"S|", Wait(0.15), b"Hello|F|")
    first = deliver(Scripted())
    conversation = first.reply().conversation_id
    running = deliver(upstream, conversation_id=conversation)
    thread = threading.Thread(target=running.reply)
    thread.start()
    wait_for(lambda: upstream.asked)
    with pytest.raises(Busy):
        deliver(Scripted(), conversation_id=conversation, timeout=0.05).reply()
    assert deliver(Scripted(), conversation_id=conversation).reply().text == "Hello"
    thread.join(5)


LEAVING = [
    pytest.param([Wait(30)], id="before-the-first-byte"),
    pytest.param([b"S|", Wait(30)], id="before-the-first-word"),
    pytest.param([b"S|Hel|", Wait(30)], id="in-the-middle"),
]


@pytest.mark.parametrize(
    "printer", [Silent(), EVENTS, form.Raw()], ids=["plain", "events", "raw"]
)
@pytest.mark.parametrize("script", LEAVING)
def test_a_caller_that_leaves_ends_the_upstreams_work(
    deliver: Callable[..., DirectDelivery],
    script: list[Any],
    printer: Printer,
    store: Store,
) -> None:
    upstream = Scripted(*script)
    delivery = deliver(upstream, printer, Clocks())
    done = threading.Event()

    def read() -> None:
        try:
            if isinstance(printer, Silent):
                delivery.reply()
            else:
                list(delivery.stream())
        except (CallerLeft, BrokenPipeError):
            pass
        finally:
            delivery.close()
            done.set()

    threading.Thread(target=read).start()
    wait_for(lambda: upstream.streams and upstream.streams[0].waits)
    delivery.leave()
    assert done.wait(1)
    assert (
        upstream.streams[0].closed
        and delivery.outcome == "caller_left"
        and statuses(store) == ["broken"]
    )


def test_a_caller_that_leaves_while_its_conversation_is_busy(
    deliver: Callable[..., DirectDelivery],
) -> None:
    conversation = deliver(Scripted()).reply().conversation_id
    holder = deliver(
        Scripted(b"S|", Wait(30)), EVENTS, Clocks(), conversation_id=conversation
    )
    pieces = holder.stream()
    waiting = deliver(
        upstream := Scripted(), conversation_id=conversation, clocks=Clocks()
    )
    threading.Timer(0.1, waiting.leave).start()
    with pytest.raises(CallerLeft):
        waiting.reply()
    assert upstream.asked == []
    pieces.close()  # type: ignore[attr-defined]
    holder.close()


def test_a_body_that_nobody_reads_to_its_end_closes_the_upstream(
    deliver: Callable[..., DirectDelivery], store: Store
) -> None:
    upstream = Scripted(b"S|", b"Hel|", b"lo|F|")
    delivery = deliver(upstream, EVENTS)
    next(delivery.stream())
    delivery.close()
    assert upstream.streams[0].closed and statuses(store) == ["broken"]


def test_what_comes_after_the_end_is_not_read(
    deliver: Callable[..., DirectDelivery],
) -> None:
    upstream = Scripted(b"S|Hi|F|", Wait(30), b"never|")
    began = time.monotonic()
    assert deliver(upstream, clocks=Clocks()).reply().text == "Hi"
    assert time.monotonic() - began < 5
