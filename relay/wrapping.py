"""What decoders share that stand around another one and change its events."""

from __future__ import annotations

from relay.upstreams import Decoder


class WrappingDecoder:
    """Says of the answer what the decoder within says. See `relay.upstreams.Decoder`."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    @property
    def started(self) -> bool:
        return self._decoder.started

    @property
    def complete(self) -> bool:
        return self._decoder.complete

    @property
    def message_id(self) -> str | None:
        return self._decoder.message_id
