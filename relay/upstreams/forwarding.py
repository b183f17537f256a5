"""What requests that pass as they are have in common: which paths, and which of their headers, go along. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import unquote

from relay.errors import BadRequest
from relay.transports import Headers

#: characters of a path and a query as RFC 3986 has them
_PLAIN = re.compile(r"[A-Za-z0-9_/-]*")
_PATH = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/?\[\]-]|%[0-9A-Fa-f]{2})*")


def check_path(path: str) -> None:
    """Raise BadRequest for a path that cannot be sent, or that would lead out of the API's base."""
    if _PLAIN.fullmatch(path):
        return
    if not _PATH.fullmatch(path) or _leaves_base(path):
        raise BadRequest("The path cannot be passed on to the upstream.")


def _leaves_base(path: str) -> bool:
    plain = unquote(path.partition("?")[0])
    return ".." in plain.split("/") or "\\" in plain


def chosen(
    headers: Headers, names: Iterable[str], known: Iterable[str]
) -> list[tuple[str, str]]:
    """The fields of these names, in lower case, but for those that are known already."""
    wanted = set(names) - set(known)
    return [(name, value) for name, value in headers.pairs if name.lower() in wanted]
