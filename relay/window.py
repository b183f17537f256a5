"""How much of a conversation goes upstream: what fits a budget of tokens, the newest first. Pure.

Tokens are estimated, because tokenizers differ from model to model and their vocabularies are downloads: four ASCII
characters are one token, any other character is one, and a message costs four more. By OpenAI's published rules of
thumb this is high rather than low, so what fits here fits there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import field

import orjson

from relay.domain import SYSTEM_ROLES, AnswerSize, Message, Reply, ToolCall
from relay.values import frozen

PER_MESSAGE = 4


@frozen
class Window:
    """The messages that go upstream, how many were dropped, and the estimated tokens of those that go."""

    messages: tuple[Message, ...] = field(repr=False)
    dropped: int
    tokens: int


def estimate_tokens(message: Message) -> int:
    """What a message costs, with the calls of tools in it; of images and files nothing is counted."""
    cost = estimate_text(message.text) + PER_MESSAGE
    for payload in message.payloads:
        if calls := payload.get("tool_calls"):
            cost += estimate_text(orjson.dumps(calls).decode())
    return cost


def estimate_text(text: str) -> int:
    """What a text costs that is no message of its own."""
    if not text:
        return 0
    ascii_characters = _count_ascii(text)
    return tokens_of(ascii_characters, len(text) - ascii_characters)


def _count_ascii(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("ascii", "ignore"))


def estimate_answer(reply: Reply) -> AnswerSize:
    """What an answer costs."""
    if reply.size is not None:
        return reply.size
    answer = estimate_text(reply.text) + estimate_rest(reply.refusal, reply.tool_calls)
    return AnswerSize(estimate_text(reply.reasoning), answer)


def estimate_rest(refusal: str, tool_calls: Iterable[ToolCall]) -> int:
    """What an answer costs beside its text."""
    calls = "".join(call.name + call.arguments for call in tool_calls)
    return estimate_text(refusal + calls)


class TextCount:
    """The cost of a text that comes in pieces, which are not held."""

    __slots__ = ("_ascii", "_others")

    text = ""

    def __init__(self) -> None:
        self._ascii = 0
        self._others = 0

    def append(self, text: str) -> None:
        ascii_characters = _count_ascii(text)
        self._ascii += ascii_characters
        self._others += len(text) - ascii_characters

    @property
    def tokens(self) -> int:
        return tokens_of(self._ascii, self._others)


def tokens_of(ascii_characters: int, others: int) -> int:
    """What so many characters cost."""
    return -(-ascii_characters // 4) + others


def least_cost(length: int) -> int:
    """What a message of so many characters costs at least."""
    return -(-length // 4) + PER_MESSAGE


class Room:
    """Decides how much of a dialogue fits `tokens`, message by message, the newest first.

    `left`: tokens that are free. `in_whole_turns`: how many of the messages that fit belong to turns
    of which nothing is missing.
    """

    def __init__(self, tokens: int) -> None:
        self.left = tokens
        self.in_whole_turns = 0
        self._fitting = 0

    def take(self, message: Message) -> bool:
        """Whether the message, the next older one, fits too. After one that does not, nothing is taken."""
        cost = estimate_tokens(message)
        if cost > self.left:
            return False
        self.left -= cost
        self._fitting += 1
        if message.role == "user":
            self.in_whole_turns = self._fitting
        return True


def fit(messages: tuple[Message, ...], budget: int) -> Window:
    """What of the messages fits `budget` tokens (0: all of them): whole turns, the oldest dropped first.

    System prompts stay, and so does the last message, even where they alone are too much; that is
    for the upstream to refuse.
    """
    costs = [estimate_tokens(message) for message in messages]
    total = sum(costs)
    if not budget or total <= budget:
        return Window(messages, 0, total)
    stays = [message.role in SYSTEM_ROLES for message in messages]
    stays[-1] = True
    fixed = sum(cost for cost, stay in zip(costs, stays, strict=True) if stay)
    first = _first_that_fits(messages, stays, Room(budget - fixed))
    kept = [at for at in range(len(messages)) if stays[at] or at >= first]
    return Window(
        tuple(messages[at] for at in kept),
        len(messages) - len(kept),
        sum(costs[at] for at in kept),
    )


def _first_that_fits(
    messages: tuple[Message, ...], stays: list[bool], room: Room
) -> int:
    """Where the oldest turn begins that fits beside what stays."""
    first = len(messages)
    for at in range(len(messages) - 1, -1, -1):
        if stays[at]:
            continue
        if not room.take(messages[at]):
            return first
        if messages[at].role == "user":
            first = at
    return 0
