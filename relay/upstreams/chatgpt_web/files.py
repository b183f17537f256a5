"""Files that ChatGPT made: where they are asked for, and which addresses are followed. Pure.

Source: protocol notes, files, download.
"""

from __future__ import annotations

import re
from urllib.parse import quote, urljoin, urlsplit

from relay.domain import RemoteFile
from relay.errors import NoFile, UpstreamFailed
from relay.transports import Call
from relay.upstreams.chatgpt_web import body
from relay.upstreams.chatgpt_web.cookies import origin_of
from relay.upstreams.http import WholeResponse
from relay.upstreams.wording import parse_json

LONGEST_ADDRESS = 8 * 1024
LONGEST_NAME = 200
_HEADERS = {"Accept": "*/*", "Accept-Encoding": "identity"}
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


def call_for(address: str, base: str) -> Call:
    """The request for a file's bytes: without the account's token, and without its cookies.

    Raises UpstreamFailed for an address that is not followed.
    """
    refused = UpstreamFailed(
        "The upstream named an address for the file that is not followed: it must be "
        "https, or the upstream's own."
    )
    if len(address) > LONGEST_ADDRESS or not re.fullmatch("[!-~]+", address):
        raise refused
    try:
        url = urljoin(f"{base}/", address)
        parts = urlsplit(url)
        is_usable = bool(parts.hostname) and parts.port != 0 and not parts.username
    except ValueError:
        raise refused from None
    is_safe = parts.scheme == "https" or origin_of(url) == origin_of(base)
    if not is_usable or not is_safe:
        raise refused
    return Call("GET", parts._replace(fragment="").geturl(), _HEADERS, unpack=False)


def is_own_host(address: str, base: str) -> bool:
    """Whether an address is at the backend's own host, which need not be a public one."""
    try:
        return urlsplit(address).hostname == urlsplit(base).hostname
    except ValueError:
        return False
