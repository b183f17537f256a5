"""What a dialect that knows text alone makes of an answer that is something else. Pure."""

from __future__ import annotations

from relay.domain import Reply
from relay.errors import Blocked, Refused, UpstreamFailed


def text_only(reply: Reply) -> None:
    """Raise for an answer that ended in good order and is no text: a refusal, a filter, a tool call."""
    if reply.refusal:
        raise Refused(
            f"The model refused to answer: {reply.refusal}", quoted=reply.refusal
        )
    if reply.finish_reason == "content_filter":
        raise Blocked("The upstream's content filter stopped the answer.")
    if reply.finish_reason == "tool_calls":
        raise UpstreamFailed(
            "The model asked for a tool to be called, which this route does not do: "
            "send none."
        )
    if not reply.text and reply.finish_reason == "length":
        raise UpstreamFailed(
            "The model's limit of tokens was spent before its answer began: allow it "
            "more."
        )
