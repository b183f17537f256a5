"""Files that ChatGPT made: where they are asked for, and what is answered. Pure.

Source: protocol notes, files, download.
"""

from __future__ import annotations

from urllib.parse import quote

from relay.domain import RemoteFile
from relay.errors import NoFile
from relay.upstreams.chatgpt_web import body
from relay.upstreams.http import WholeResponse
from relay.upstreams.wording import parse_json

LONGEST_NAME = 200
SANDBOX = "sandbox:"


def paths_of(file: RemoteFile, conversation_id: str) -> tuple[str, ...]:
    """Where a file's address is asked for below the backend's base, the likeliest first. Raises NoFile."""
    scheme, _, name = file.pointer.partition("://")
    identifier = quote(name, safe="")
    by_id = f"files/download/{identifier}?post_id=&inline=false"
    if file.pointer.startswith(SANDBOX) and conversation_id:
        sandbox = quote(file.pointer.removeprefix(SANDBOX), safe="")
        message = quote(file.message_id, safe="")
        query = f"message_id={message}&sandbox_path={sandbox}"
        return (f"{_conversation(conversation_id)}/interpreter/download?{query}",)
    if scheme == "file-service":
        return f"files/{identifier}/download", by_id
    if scheme == "sediment" and conversation_id:
        there = _conversation(conversation_id)
        return f"{there}/attachment/{identifier}/download", by_id
    if scheme == "sediment":
        return (by_id,)
    raise NoFile()


def _conversation(conversation_id: str) -> str:
    return f"conversation/{body.conversation_path(conversation_id)}"


def address_in(response: WholeResponse) -> str | None:
    """The address that an answer gives; None where it says that there is no such file."""
    payload = parse_json(response.body)
    address = payload.get("download_url") if isinstance(payload, dict) else None
    return address if response.status == 200 and isinstance(address, str) else None


def is_missing(response: WholeResponse) -> bool:
    """Whether there is no such file at this path: by the status, or by what a 200 says."""
    payload = parse_json(response.body)
    is_error = isinstance(payload, dict) and payload.get("status") == "error"
    return response.status in (404, 405, 410) or (response.status == 200 and is_error)


def name_in(response: WholeResponse, file: RemoteFile) -> str:
    """What a file is called."""
    payload = parse_json(response.body)
    name = payload.get("file_name") if isinstance(payload, dict) else None
    if not isinstance(name, str) or not name:
        name = file.pointer if file.pointer.startswith(SANDBOX) else ""
    return name.replace("\\", "/").rpartition("/")[2][:LONGEST_NAME]
