"""Answers that end early: at a stop sequence, or at a number of tokens. Pure.

For upstreams that know no such parameters. The text before the first stop sequence is the answer, and of it as much
as the tokens allow; where the pieces of the stream end makes no difference. All of it takes linear time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from relay.domain import Delta, Event, Finished, FinishReason, Restarted
from relay.errors import BadRequest, RelayError
from relay.upstreams import Decoder
from relay.values import frozen
from relay.window import tokens_of
from relay.wrapping import WrappingDecoder

TOKEN_OPTIONS = ("max_tokens", "max_completion_tokens")
#: the options that have an effect here
OPTIONS = ("stop", *TOKEN_OPTIONS)
MOST_STOPS = 4
LONGEST_STOP = 1000  # characters


@frozen
class AnswerLimits:
    """What ends an answer. `stops`: texts before which it ends. `tokens`: its estimated length; None: no limit."""

    stops: tuple[str, ...] = ()
    tokens: int | None = None


def limits_of(options: Mapping[str, Any]) -> AnswerLimits | None:
    """The limits among a caller's options; None where there are none. Raises BadRequest.

    Where both names for the number of tokens are used, the smaller one counts.
    """
    stops = _stops_of(options.get("stop"))
    given = [_tokens_of(name, options.get(name)) for name in TOKEN_OPTIONS]
    tokens = min((number for number in given if number is not None), default=None)
    if not stops and tokens is None:
        return None
    return AnswerLimits(stops, tokens)


def _stops_of(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    is_list = isinstance(stops, list) and len(stops) <= MOST_STOPS
    if not is_list or not all(_is_stop(stop) for stop in stops):
        raise BadRequest(
            f"The field stop must be a text, or a list of at most {MOST_STOPS} texts, "
            f"of 1 to {LONGEST_STOP} characters each."
        )
    return tuple(dict.fromkeys(stops))


def _is_stop(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= LONGEST_STOP


def _tokens_of(name: str, value: Any) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BadRequest(
            f"The field {name} must be a whole number, 1 or more; leave it out for no "
            "limit."
        )
    return value


class CuttingDecoder(WrappingDecoder):
    """A decoder that ends another one's answer at its limits. See `relay.upstreams.Decoder`.

    What may be the beginning of a stop sequence is held back until that is known.
    """

    def __init__(self, decoder: Decoder, limits: AnswerLimits) -> None:
        super().__init__(decoder)
        self._limits = limits
        self._is_over = False
        self._stops = _StopSearch(limits.stops)
        self._allowance = _Allowance(limits.tokens)

    def feed(self, piece: bytes) -> Iterator[Event]:
        return self._follow(lambda: self._decoder.feed(piece))

    def end(self) -> Iterator[Event]:
        return self._follow(self._decoder.end)

    def _follow(self, read: Callable[[], Iterable[Event]]) -> Iterator[Event]:
        if self._is_over:
            return
        try:
            for event in read():
                yield from self._follow_event(event)
                if self._is_over:
                    return
        except RelayError:
            yield from self._release(self._stops.end())
            if not self._is_over:
                raise

    def _follow_event(self, event: Event) -> Iterator[Event]:
        match event:
            case Delta(text):
                yield from self._release(self._stops.feed(text))
                if self._stops.found and not self._is_over:
                    yield self._finish("stop")
            case Finished():
                yield from self._release(self._stops.end())
                if not self._is_over:
                    self._is_over = True
                    yield event
            case Restarted():
                self._stops = _StopSearch(self._limits.stops)
                self._allowance = _Allowance(self._limits.tokens)
                yield event
            case _:
                yield event

    def _release(self, text: str) -> Iterator[Event]:
        """Text that is no stop sequence, as far as the tokens allow."""
        fitting = self._allowance.take(text)
        if fitting:
            yield Delta(text[:fitting])
        if fitting < len(text):
            yield self._finish("length")

    def _finish(self, reason: FinishReason) -> Finished:
        self._is_over = True
        return Finished(reason, message_id=self._decoder.message_id)


class _Allowance:
    """How much text a number of tokens allows; None: any."""

    def __init__(self, tokens: int | None) -> None:
        self._tokens = tokens
        self._ascii_characters = 0
        self._others = 0

    def take(self, text: str) -> int:
        """Count a text; how many of its characters fit. After one that does not fit, nothing is counted."""
        if self._tokens is None:
            return len(text)
        ascii_characters = len(text.encode("ascii", "ignore"))
        others = len(text) - ascii_characters
        if self._add(ascii_characters, others):
            return len(text)
        for at, character in enumerate(text):
            is_ascii = character.isascii()
            if not self._add(int(is_ascii), int(not is_ascii)):
                return at
        return len(text)

    def _add(self, ascii_characters: int, others: int) -> bool:
        """Count the characters, if they fit."""
        ascii_characters += self._ascii_characters
        others += self._others
        assert self._tokens is not None
        if tokens_of(ascii_characters, others) > self._tokens:
            return False
        self._ascii_characters = ascii_characters
        self._others = others
        return True


class _StopSearch:
    """Looks for the first of some texts to end in what it is fed. `found`: one did, and nothing more may be fed.

    It holds back the longest end of what it was fed that may begin one of the texts, which is therefore a beginning
    of that text.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._matchers = [_Matcher(stop) for stop in stops]
        self.found = False

    def feed(self, piece: str) -> str:
        """The text that is no part of a stop sequence, as far as this piece shows."""
        if not self._matchers:
            return piece
        longest = self._longest()
        held_text = longest.text
        held = longest.matched
        ends = [(matcher.feed(piece), matcher) for matcher in self._matchers]
        first = min(end for end, _ in ends)
        if first <= len(piece):
            self.found = True
            # of several that end at the same place the longest counts, so that nothing of it is given
            free = first - max(len(found.text) for end, found in ends if end == first)
        else:
            free = len(piece) - self._longest().matched
        return held_text[: min(held, held + free)] + piece[: max(0, free)]

    def end(self) -> str:
        """What was held back and is no stop sequence, because nothing follows."""
        if not self._matchers or self.found:
            return ""
        longest = self._longest()
        return longest.text[: longest.matched]

    def _longest(self) -> _Matcher:
        """The matcher of what is held back."""
        return max(self._matchers, key=lambda matcher: matcher.matched)


class _Matcher:
    """Looks for one text in what it is fed, as Knuth, Morris and Pratt do.

    `matched`: how much of it the end of what was fed may begin.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.matched = 0
        self._borders = _borders(text)

    def feed(self, piece: str) -> int:
        """Where the text ends in the piece, from 1 on; beyond the piece's end where it does not."""
        at = 0
        while at < len(piece):
            if not self.matched:
                at = piece.find(self.text[0], at)
                if at < 0:
                    break
            self._step(piece[at])
            at += 1
            if self.matched == len(self.text):
                return at
        return len(piece) + 1

    def _step(self, character: str) -> None:
        while self.matched and self.text[self.matched] != character:
            self.matched = self._borders[self.matched - 1]
        if self.text[self.matched] == character:
            self.matched += 1


def _borders(text: str) -> list[int]:
    """For each beginning of a text, the length of its longest other beginning that is its end too."""
    borders = [0]
    length = 0
    for character in text[1:]:
        while length and text[length] != character:
            length = borders[length - 1]
        if text[length] == character:
            length += 1
        borders.append(length)
    return borders
