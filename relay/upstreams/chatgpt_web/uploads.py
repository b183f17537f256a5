"""The requests that upload files to ChatGPT, and the messages that have them. Pure.

Source: protocol notes, files. Each file takes three requests before the question: one that announces it and gets the
address of its storage, one that puts it there, one that says so. The text of a document is looked for until it is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, TypeAlias

import orjson

from relay.attachments import (
    MOST_FILES,
    TEXT,
    Attachment,
    from_part,
    parts_of,
)
from relay.domain import Message
from relay.errors import (
    BadRequest,
    RateLimited,
    Unreachable,
    UploadFailed,
    UpstreamCut,
    UpstreamError,
    UpstreamFailed,
    UpstreamRefused,
)
from relay.transports import Call
from relay.upstreams.chatgpt_web import failures
from relay.upstreams.chatgpt_web.body import Content, text_content
from relay.upstreams.chatgpt_web.storage import Storage
from relay.upstreams.http import Step, WholeResponse
from relay.upstreams.wording import parse_json
from relay.values import frozen

MOST_LOOKS = 30  # at a document that is being read
LOOK_SECONDS = 1.0
_DOCUMENTS = (
    "application/pdf",
    "application/msword",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    "application/vnd.openxmlformats-officedocument.presentationml.presentation",
    TEXT,
)
_FILE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")

#: makes a request with the account's credential: method, path below the base, body
MakeCall: TypeAlias = Callable[[str, str, bytes], Call]
Request: TypeAlias = Generator[Step, WholeResponse | None, dict[str, Any]]


@frozen
class Uploaded:
    """A file under the id that the upstream gave it."""

    id: str
    file: Attachment


def upload(
    messages: Sequence[Message], storage: Storage, call: MakeCall
) -> Generator[Step, WholeResponse | None, list[Content]]:
    """Upload the files of messages; the messages as the question has them.

    Of a long dialogue the newest MOST_FILES go up, and words stand for older ones. Raises BadRequest
    or TooLarge for a file that is none, before anything is sent.
    """
    read = _read_files(messages)
    contents = []
    for message, parts in zip(messages, read, strict=True):
        uploaded = []
        for file in parts.files:
            uploaded.append(Uploaded((yield from _upload(file, storage, call)), file))
        contents.append(_content(message, parts, uploaded))
    return contents


@frozen
class _Parts:
    """A message's texts and the files that are to be uploaded."""

    texts: tuple[str, ...]
    files: tuple[Attachment, ...]


def _read_files(messages: Sequence[Message]) -> list[_Parts]:
    left = MOST_FILES
    found: list[_Parts] = []
    for message in reversed(messages):
        parts = _parts(message, left, is_question=not found)
        left -= len(parts.files)
        found.append(parts)
    return found[::-1]


def _parts(message: Message, left: int, *, is_question: bool) -> _Parts:
    """The parts of a message, of which `left` files go up."""
    texts: list[str] = []
    files: list[Attachment] = []
    for at, part in enumerate(parts_of(message)):
        if part.get("type") == "text":
            texts.append(str(part.get("text") or ""))
            continue
        if len(files) >= left and is_question:
            raise BadRequest(
                f"There are more than {MOST_FILES} files: nothing was asked. Send fewer."
            )
        if len(files) >= left:
            texts.append("[an earlier file, which is not sent again]")
            continue
        file = from_part(part, f"content[{at}] of a message")
        if file.is_fenced:
            texts.append(file.fenced())
        else:
            files.append(file)
    return _Parts(tuple(texts or [message.text]), tuple(files))


def _content(message: Message, parts: _Parts, uploaded: list[Uploaded]) -> Content:
    if not message.payloads:
        return text_content(message.text)
    text = "\n\n".join(filter(None, parts.texts))
    pointers: list[Any] = [_pointer(each) for each in uploaded if each.file.is_image]
    content = text_content(text).content
    if pointers:
        texts = [text] if text else []
        content = {"content_type": "multimodal_text", "parts": [*pointers, *texts]}
    if not uploaded:
        return Content(content, {})
    return Content(content, {"attachments": [_attachment(each) for each in uploaded]})


def _pointer(uploaded: Uploaded) -> dict[str, Any]:
    scheme = "sediment" if uploaded.id.startswith("file_") else "file-service"
    return {
        "content_type": "image_asset_pointer",
        "asset_pointer": f"{scheme}://{uploaded.id}",
        "size_bytes": uploaded.file.size,
        "width": uploaded.file.width,
        "height": uploaded.file.height,
    }


def _attachment(uploaded: Uploaded) -> dict[str, Any]:
    file = uploaded.file
    return {
        "id": uploaded.id,
        "name": file.name,
        "size": file.size,
        "mime_type": file.media_type,
        **_measures(file),
    }


def _measures(file: Attachment) -> dict[str, Any]:
    return {"width": file.width, "height": file.height} if file.is_image else {}


def _use_case(file: Attachment) -> str:
    if file.is_image:
        return "multimodal"
    return "my_files" if file.media_type in _DOCUMENTS else "ace_upload"


def _upload(
    file: Attachment, storage: Storage, call: MakeCall
) -> Generator[Step, WholeResponse | None, str]:
    """Upload a file; its id."""
    announced = {
        "file_name": file.name,
        "file_size": file.size,
        "use_case": _use_case(file),
        "timezone_offset_min": 0,
        "mime_type": file.media_type,
        "reset_rate_limits": False,
        **_measures(file),
    }
    content = orjson.dumps(announced)
    answer = yield from _ask(Step(call("POST", "files", content)))
    file_id, address = answer.get("file_id"), answer.get("upload_url")
    is_id = isinstance(file_id, str) and _FILE_ID.fullmatch(file_id)
    if not is_id or not isinstance(address, str):
        raise UploadFailed("The upstream names no place for the file.")
    yield from _store(storage.put(file, address))
    path = f"files/{file_id}"
    yield from _ask(Step(call("POST", f"{path}/uploaded", b"{}")))
    if _use_case(file) == "my_files":
        yield from _await_index(path, call)
    return str(file_id)


def _ask(step: Step) -> Request:
    """A request about a file, and what it is answered. Nothing was asked yet, whatever fails.

    What another account may help with is raised as it is.
    """
    try:
        response = yield step
    except Unreachable:
        raise
    except (UpstreamCut, UpstreamFailed) as error:
        raise _failed(error) from None
    assert response is not None
    payload = parse_json(response.body)
    is_error = isinstance(payload, dict) and payload.get("status") == "error"
    if response.status in (200, 201) and isinstance(payload, dict) and not is_error:
        return payload
    raise _refusal(response)


def _refusal(response: WholeResponse) -> UpstreamError:
    """What a response refuses. A limit of uploads is none of asks, so no account rests for it."""
    error = failures.from_response(
        response.status, response.head.headers, response.redacted
    )
    if isinstance(error, RateLimited):
        return RateLimited(error.message, quoted=error.quoted)
    if isinstance(error, UpstreamRefused) and not error.may_have_been_sent:
        return error
    return _failed(error)


def _failed(error: UpstreamError) -> UploadFailed:
    return UploadFailed(
        f"A file could not be uploaded, so nothing was asked: {error.message}",
        quoted=error.quoted,
    )


def _store(call: Call) -> Generator[Step, WholeResponse | None, None]:
    """Put a file into its storage, which is no account's: no other one helps."""
    try:
        response = yield Step(call)
    except (UpstreamCut, UpstreamFailed) as error:
        raise _failed(error) from None
    assert response is not None
    if response.status not in (200, 201):
        raise UploadFailed(
            "A file could not be uploaded, so nothing was asked: its storage answered "
            f"{response.status}."
        )


def _await_index(
    path: str, call: MakeCall
) -> Generator[Step, WholeResponse | None, None]:
    """Wait until a document is read, where the upstream says how far that is. Beyond MOST_LOOKS it is asked anyway."""
    for look in range(MOST_LOOKS):
        pause = LOOK_SECONDS if look else 0.0
        try:
            found = yield from _ask(Step(call("GET", path, b""), pause=pause))
        except UpstreamRefused:
            return  # not every backend shows files
        status = _index_status(found)
        if status == "failed":
            raise UploadFailed(
                "The upstream cannot read the document, so nothing was asked: send its "
                "text instead."
            )
        if status in ("", "success"):
            return


def _index_status(found: Mapping[str, Any]) -> str:
    status = found.get("retrieval_index_status")
    return status if isinstance(status, str) else ""
