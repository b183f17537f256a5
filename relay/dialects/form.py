"""The own routes' dialect: what their fields ask, and how answers, streams and errors are printed. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson

from relay import attachments, sse
from relay.attachments import Attachment
from relay.dialects import fields as read
from relay.dialects.bodies import FILE_FIELDS, PLAIN_BODY, Fields, FilePart
from relay.dialects.policy import text_only
from relay.domain import Ask, Caller, Delta, Event, Message, Reasoning, Reply, Restarted
from relay.errors import BadRequest, RelayError
from relay.values import frozen

#: every field of /send_message and /ask
FIELDS = {
    "access_token",
    "conversation",
    "conversationId",
    "conversation_id",
    "format",
    "messageId",
    "model",
    "msg",
    "parentMessageId",
    "parent_id",
    "parent_message_id",
    "prompt",
    "prompt_prefix",
    "prompt_suffix",
    "request_id",
    "reverse_proxy",
    "stream",
    "system",
    "timeout",
    *FILE_FIELDS,
    *read.PARAMETERS,
}


def join_parts(*parts: str) -> str:
    """Prefix, prompt and suffix as one text, each on its own line unless it brings its own white space."""
    text = ""
    for part in filter(None, parts):
        has_space = not text or text[-1].isspace() or part[0].isspace()
        text += part if has_space else f"\n{part}"
    return text


@frozen
class Route:
    """An own route: its name for the prompt, and how it prints answers and errors."""

    name: str
    prompt_field: str
    answer: Callable[[Reply], dict[str, Any]]
    error: Callable[[RelayError], tuple[int, dict[str, Any]]]

    def ask(
        self,
        fields: Fields,
        caller: Caller,
        key: str | None = None,
        files: Sequence[FilePart] = (),
    ) -> Ask:
        """The ask that the fields make; the other route's names are understood too.

        `key`: the header Idempotency-Key. `files`: those of a multipart body. Raises BadRequest, or
        TooLarge.
        """
        system = read.text_of(fields, "system")
        question = attachments.attached(self._prompt(fields), files_in(fields, files))
        return Ask(
            prompt=question.text,
            payloads=question.payloads,
            caller=caller,
            conversation_id=read.conversation_of(fields),
            conversation_name=read.conversation_name_of(fields),
            parent_id=read.parent_of(fields),
            preamble=(Message("system", system),) if system else (),
            model=read.text_of(fields, "model") or None,
            reverse_proxy=read.text_of(fields, "reverse_proxy") or None,
            timeout=read.milliseconds_of(fields, "timeout"),
            options=read.options_of(fields),
            idempotency_key=read.key_of(fields, key),
            route=self.name,
            ignored=(*read.ignored_of(fields), *read.unknown_of(fields, FIELDS)),
            check=text_only,
        )

    def _prompt(self, fields: Fields) -> str:
        names = (PLAIN_BODY, "prompt", "msg")
        prompts = {read.text_of(fields, name) for name in names} - {""}
        if len(prompts) > 1:
            raise BadRequest(
                "Two fields of the same meaning differ: send one prompt and one parent "
                "id."
            )
        prompt = "".join(prompts)
        if not prompt.strip():
            name = self.prompt_field
            read.check_places(fields, FIELDS, {"prompt": "prompt", "msg": "msg"})
            raise BadRequest(
                f"The field {name} is missing or empty: nothing was asked. Send it as "
                f"in: curl --data-urlencode '{name}=hello' URL"
            )
        prefix = read.text_of(fields, "prompt_prefix")
        suffix = read.text_of(fields, "prompt_suffix")
        return join_parts(prefix, prompt, suffix)


def files_in(
    fields: Fields, files: Sequence[FilePart]
) -> list[Attachment | Mapping[str, Any]]:
    """The files of a multipart body, and those that fields have as data URLs or as links to images.

    Raises BadRequest, or TooLarge.
    """
    values = [(name, fields[name]) for name in FILE_FIELDS if fields.get(name)]
    stated = [
        (name, value)
        for name, each in values
        for value in (each if isinstance(each, list) else [each])
    ]
    if len(files) + len(stated) > attachments.MOST_FILES:
        raise BadRequest(
            f"There are more than {attachments.MOST_FILES} files: nothing was asked. "
            "Send fewer."
        )
    found: list[Attachment | Mapping[str, Any]] = [
        attachments.from_bytes(
            file.name,
            file.content,
            f"The file in {file.field}",
            is_image=file.field.startswith("image"),
        )
        for file in files
    ]
    return [*found, *(_stated_file(name, value) for name, value in stated)]


def _stated_file(field: str, value: Any) -> Attachment | Mapping[str, Any]:
    """A file that a field has as text, or as OpenAI's API has one."""
    is_image = field.startswith("image")
    if isinstance(value, str) and is_image:
        part: dict[str, Any] = {"type": "image_url", "image_url": {"url": value}}
    elif isinstance(value, str):
        part = {"type": "file", "file": {"file_data": value}}
    elif isinstance(value, dict) and not is_image:
        part = {"type": "file", "file": value}
    else:
        raise BadRequest(
            f"The field {field} must be a file, as in: curl -F {field}=@PATH, or a data "
            "URL in base64."
        )
    if attachments.link_of(part):
        return part
    return attachments.from_part(part, f"The field {field}")


def _three_keys(reply: Reply) -> dict[str, Any]:
    return {
        "text": reply.text,
        "conversation_id": reply.conversation_id,
        "parent_message_id": reply.message_id,
    }


def _coded(reply: Reply) -> dict[str, Any]:
    data: dict[str, Any] = {
        "author": {"role": "assistant", "name": None, "metadata": {}},
        "message": reply.text,
        "conversation_id": reply.conversation_id,
        "parent_id": reply.message_id,
        "model": reply.model,
        "finish_details": reply.finish_reason,
        "end_turn": True,
        "recipient": "all",
        "citations": [],
        "reasoning": reply.reasoning or None,
        "usage": reply.usage,
    }
    return {"code": 0, "data": data}


def message_error(error: RelayError) -> tuple[int, dict[str, Any]]:
    """chatgpt-api's documented shape: 500 whatever happened; headers have the rest."""
    return 500, {"message": error.message}


def coded_error(error: RelayError) -> tuple[int, dict[str, Any]]:
    """chatgpt-webapi's shape, with the true status, the error's code and its source."""
    return error.status, {
        "code": 1,
        "msg": error.message,
        "error": error.code,
        "source": error.source,
    }


SEND_MESSAGE = Route("send_message", "prompt", _three_keys, message_error)
ASK = Route("ask", "msg", _coded, coded_error)


class Events:
    """A stream as server-sent events: pieces as {"text"}, then `done` with the route's whole answer, or `error`.

    The model's reasoning comes apart from its answer, as events `reasoning`.
    """

    keep_alive = sse.KEEP_ALIVE
    needs_text = True

    def __init__(self, route: Route) -> None:
        self._route = route

    def print(self, batch: list[Event]) -> bytes:
        restart = b""
        text = ""
        reasoning = ""
        for event in batch:
            if isinstance(event, Delta):
                text += event.text
            elif isinstance(event, Reasoning):
                reasoning += event.text
            elif isinstance(event, Restarted):
                restart = sse.event(b"{}", "restart")
                text = ""
        thought = _piece(reasoning, "reasoning") if reasoning else b""
        return restart + thought + (_piece(text) if text else b"")

    def end(self, reply: Reply) -> bytes:
        return sse.event(orjson.dumps(self._route.answer(reply)), "done")

    def fail(self, error: RelayError) -> bytes:
        return sse.event(orjson.dumps(self._route.error(error)[1]), "error")


def _piece(text: str, name: str = "") -> bytes:
    return sse.event(orjson.dumps({"text": text}), name)


class Raw:
    """A stream as the text alone, with a line end. It has no frames, so a failure can only abort it."""

    keep_alive = b""
    needs_text = True

    def __init__(self) -> None:
        self._last = ""

    def print(self, batch: list[Event]) -> bytes:
        text = "".join(_raw_text(event) for event in batch)
        self._last = text[-1:] or self._last
        return text.encode()

    def end(self, reply: Reply) -> bytes:
        return b"" if self._last == "\n" else b"\n"

    def fail(self, error: RelayError) -> None:
        return None


def _raw_text(event: Event) -> str:
    match event:
        case Delta(text):
            return text
        case Restarted():
            return "\n\n"
    return ""
