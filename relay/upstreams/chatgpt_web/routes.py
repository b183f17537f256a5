"""Requests that go another way than those to ChatGPT: files to their storage, those to the operator's services."""

from __future__ import annotations

from collections.abc import Mapping

from relay.transports import Call, Exchange, Transport


class RoutedTransport:
    """Another transport, but for the kinds of calls in `routes`. See `relay.transports.Transport`."""

    def __init__(
        self, transport: Transport, routes: Mapping[type[Call], Transport]
    ) -> None:
        self._transport = transport
        self._routes = routes

    def send(self, call: Call) -> Exchange:
        return self._routes.get(type(call), self._transport).send(call)

    def close(self) -> None:
        for transport in (self._transport, *self._routes.values()):
            transport.close()
