"""Links to images in an ask, replaced by what they lead to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from relay import attachments
from relay.domain import Ask, Message
from relay.errors import BadRequest, Forbidden
from relay.web.incoming import Incoming

Payload = Mapping[str, Any]


def with_linked_files(incoming: Incoming, ask: Ask) -> Ask:
    """The ask with the images themselves in the place of links to them. Blocks.

    Raises Forbidden where links are not fetched, or not for this caller; BadRequest, or TooLarge.
    """
    messages = (*ask.preamble, ask.question)
    if not any(message.payloads for message in messages):
        return ask
    parts = [part for message in messages for part in attachments.parts_of(message)]
    links = {link for part in parts if (link := attachments.link_of(part))}
    if not links:
        return ask
    if len(links) > attachments.MOST_FILES:
        raise BadRequest(
            f"There are more than {attachments.MOST_FILES} links: nothing was asked. "
            "Send fewer."
        )
    if ask.caller.unverified:
        raise Forbidden(
            "Links are fetched for callers with a client key alone: send the image "
            "itself as a data URL."
        )
    found = _fetch(incoming, sorted(links))

    def replaced(part: Any) -> Any:
        return found.get(attachments.link_of(part), part)

    preamble = tuple(
        Message(message.role, message.text, _with(message.payloads, replaced))
        for message in ask.preamble
    )
    return replace(ask, preamble=preamble, payloads=_with(ask.payloads, replaced))


def _fetch(incoming: Incoming, links: list[str]) -> dict[str, dict[str, Any]]:
    """The files as parts, by their links; all together are no larger than one file may be."""
    left = attachments.LARGEST_FILE
    incoming.hold_memory(left)
    found = {}
    for link in links:
        file = incoming.service.linked_files.fetch(link, "An image", left)
        left -= file.size
        found[link] = file.part
    return found


def _with(
    payloads: tuple[Payload, ...], replaced: Callable[[Any], Any]
) -> tuple[Payload, ...]:
    """Payloads with the parts of their contents replaced."""
    return tuple(
        {**payload, "content": [replaced(part) for part in payload["content"]]}
        if isinstance(payload.get("content"), list)
        else payload
        for payload in payloads
    )
