"""How much of a conversation goes upstream: what fits a budget of tokens, the newest first. Pure.

Tokens are estimated, for tokenizers differ from model to model and their vocabularies are downloads: four ASCII
characters are one token, any other character is one, and a message costs four more. Measured against OpenAI's published
rules of thumb this is high rather than low, so that what fits here fits there.
"""

from __future__ import annotations

from relay.domain import Message

PER_MESSAGE = 4


def tokens(message: Message) -> int:
    """What a message costs, estimated."""
    plain = len(message.text.encode("ascii", "ignore"))
    return -(-plain // 4) + len(message.text) - plain + PER_MESSAGE


def within(
    messages: tuple[Message, ...], budget: int
) -> tuple[tuple[Message, ...], int]:
    """What of the messages fits, and how many were dropped: whole turns, the oldest first.

    System prompts stay, and so does the last message, even if they alone are too much; that is for the upstream to say.
    """
    fixed = [message.role in ("system", "developer") for message in messages]
    fixed[-1] = True
    left = budget - sum(
        tokens(message) for message, stays in zip(messages, fixed, strict=True) if stays
    )
    first = len(messages)  # the oldest turn that fits begins here
    for at in range(len(messages) - 1, -1, -1):
        if fixed[at]:
            continue
        left -= tokens(messages[at])
        if left < 0:
            break
        if messages[at].role == "user":
            first = at
    else:
        first = 0
    kept = tuple(
        message for at, message in enumerate(messages) if fixed[at] or at >= first
    )
    return kept, len(messages) - len(kept)
