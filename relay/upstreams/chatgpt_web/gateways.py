"""Several ways to the same ChatGPT: a request goes to the next one where a gateway cannot be reached."""

from __future__ import annotations

from dataclasses import field
from threading import Event as Flag

from relay.errors import Unreachable
from relay.transports import Call, Exchange, Head, Transport
from relay.upstreams.chatgpt_web.cookies import CookieCall
from relay.upstreams.chatgpt_web.recent import Recent
from relay.values import changed, frozen

OUTAGE_SECONDS = 30.0  # for so long a gateway that was not reached is tried last
MISSING_SECONDS = 600.0  # for so long a route that a gateway does not have is not tried


@frozen
class GatewayCall(CookieCall):
    """A request to the gateway at `base`. `others`: the same to those that are tried where it is not reached."""

    base: str = ""
    others: tuple[GatewayCall, ...] = field(default=(), repr=False)


def with_headers(call: GatewayCall, headers: dict[str, str]) -> GatewayCall:
    """The same request, with these headers too, to each of its gateways."""
    if not headers:
        return call
    others = tuple(with_headers(each, headers) for each in call.others)
    return changed(call, headers={**call.headers, **headers}, others=others)


def user_agent_of(call: GatewayCall) -> str:
    """What the request says as its user agent."""
    names = {name.lower(): name for name in call.headers}
    return call.headers[names["user-agent"]]


@frozen
class GatewayMemory:
    """What is known of the gateways: the bases that were not reached, and the URLs that they do not have."""

    outages: Recent = field(default_factory=lambda: Recent(OUTAGE_SECONDS))
    missing: Recent = field(default_factory=lambda: Recent(MISSING_SECONDS))

    def in_order(self, call: GatewayCall) -> list[GatewayCall]:
        """The request to each of its gateways, those last that were not reached."""
        calls = (call, *call.others)
        return sorted(calls, key=lambda each: self.outages.has(each.base))

    def is_missing(self, call: GatewayCall) -> bool:
        """Whether the gateway that is tried first is known not to have the route."""
        return self.missing.has(self.in_order(call)[0].url)

    def note_missing(self, call: GatewayCall) -> None:
        """The gateway that answered just now does not have the route."""
        self.missing.note(self.in_order(call)[0].url)


class FailoverTransport:
    """Another transport, which tries a request's gateways in turn. See `relay.transports.Transport`.

    Only where nothing was sent, and where the body can be sent once more.
    """

    def __init__(self, transport: Transport, memory: GatewayMemory) -> None:
        self._transport = transport
        self._memory = memory

    def send(self, call: Call) -> Exchange:
        if not isinstance(call, GatewayCall) or not call.others:
            return self._transport.send(call)
        calls = self._memory.in_order(call)
        if not isinstance(call.body, bytes):
            calls = calls[:1]
        return FailoverExchange(self._transport, calls, self._memory.outages)

    def close(self) -> None:
        self._transport.close()


class FailoverExchange:
    """See `relay.transports.Exchange`."""

    def __init__(
        self, transport: Transport, calls: list[GatewayCall], outages: Recent
    ) -> None:
        self._transport = transport
        self._outages = outages
        self._interrupted = Flag()
        self._call, *self._others = calls
        self._exchange = transport.send(self._call)

    def head(self, seconds: float) -> Head | None:
        try:
            head = self._exchange.head(seconds)
        except Unreachable:
            if self._interrupted.is_set():
                raise
            self._outages.note(self._call.base)
            if not self._others:
                raise
            self._send_to_next()
            return None
        if head is not None:
            self._outages.forget(self._call.base)
        return head

    def _send_to_next(self) -> None:
        self._exchange.close()
        self._call = self._others.pop(0)
        self._exchange = self._transport.send(self._call)
        if self._interrupted.is_set():  # it came before there was this exchange
            self._exchange.interrupt()

    @property
    def awaited(self) -> int | None:
        return self._exchange.awaited

    def read(self, seconds: float) -> bytes | None:
        return self._exchange.read(seconds)

    def interrupt(self) -> None:
        self._interrupted.set()
        self._exchange.interrupt()

    def close(self) -> None:
        self._exchange.close()
