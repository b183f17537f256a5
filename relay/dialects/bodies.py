"""Request bodies as fields: forms, JSON and plain text, under whatever type clients send them. Pure."""

from __future__ import annotations

import re
from binascii import a2b_qp
from collections.abc import Mapping
from typing import Any, TypeAlias

import orjson
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.http import parse_options_header
from werkzeug.sansio.multipart import (
    Data,
    Epilogue,
    Field,
    File,
    MultipartDecoder,
    NeedData,
)

from relay.errors import BadRequest, TooLarge, UnsupportedMediaType

Fields: TypeAlias = dict[str, Any]

MOST_PARTS = 1000
PLAIN_BODY = ""  # the name of the field that a body makes which is only a prompt
SECRETS = (
    "access_token",
    "password",
    "email",
    "key",
    "api_key",
    "token",
    "authorization",
)
QUERY_FIELDS = (
    "conversation_id",
    "conversationId",
    "parent_message_id",
    "parentMessageId",
    "parent_id",
    "model",
    "timeout",
    "stream",
    "format",
    "request_id",
)
HINT = "Send it with --data-urlencode, as in: curl --data-urlencode 'prompt=...' URL"
_CHARSETS = {
    **dict.fromkeys(("utf-8", "utf8", "us-ascii", "ascii"), "utf-8"),
    **dict.fromkeys(("gbk", "gb2312", "gb18030"), "gb18030"),
    **dict.fromkeys(("iso-8859-1", "latin1", "windows-1252"), "cp1252"),
    **{name: name for name in ("big5", "shift_jis", "euc-jp", "euc-kr")},
}
_LONE_PERCENT = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_CUT_NAME = re.compile(rb"[\s\"'\x80-\xff+]")
_UNESCAPED = re.compile(rb"[\s\"\x80-\xff]")
_ESCAPED = re.compile(rb"\+|%[0-9A-Fa-f]{2}")
_BOM = b"\xef\xbb\xbf"
_TEXT_TYPES = ("", "text/plain", "application/octet-stream")


def read(content_type: str, body: bytes) -> Fields:
    """The fields of a body; one that is only a prompt is the field PLAIN_BODY.

    Raises BadRequest, TooLarge or UnsupportedMediaType.
    """
    mimetype, options = parse_options_header(content_type)
    mimetype = mimetype.lower()
    charset = _charset(options.get("charset", "utf-8"))
    if mimetype == "application/json" or mimetype.endswith("+json"):
        return _json(body)
    if mimetype == "multipart/form-data":
        return _multipart(body, options.get("boundary", ""), charset)
    if _is_json_object(mimetype, body):
        return _json(body)
    if mimetype == "application/x-www-form-urlencoded":
        return _urlencoded(body, charset)
    if mimetype in _TEXT_TYPES:
        return {PLAIN_BODY: _text(body, charset, "The body")} if body else {}
    raise UnsupportedMediaType(
        f"This route does not read {mimetype}: send a form (curl --data-urlencode), "
        "JSON, or text/plain."
    )


def read_query(query: Mapping[str, list[str]]) -> Fields:
    """The fields of a query string: how and where, never a credential, because URLs are written to logs.

    Raises BadRequest.
    """
    for name in query:
        if name.lower() in SECRETS:
            raise BadRequest(
                f"Never put {name} into a URL: send it as a header or as a field of the "
                "body."
            )
    return {name: values[-1] for name, values in query.items() if name in QUERY_FIELDS}


def _is_json_object(mimetype: str, body: bytes) -> bool:
    """Whether a body is JSON under another type: curl -d says urlencoded, fetch() says text/plain."""
    if body.lstrip()[:1] != b"{":
        return False
    return mimetype != "text/plain" or _has_prompt(body)


def _has_prompt(body: bytes) -> bool:
    """Whether a text is a JSON object with a prompt."""
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError:
        return False
    if not isinstance(fields, dict):
        return False
    prompts = (fields.get("msg"), fields.get("prompt"))
    has_prompt = any(isinstance(prompt, str) for prompt in prompts)
    return has_prompt or isinstance(fields.get("messages"), list)


def _json(body: bytes) -> Fields:
    if not body.strip():
        return {}
    try:
        fields = orjson.loads(body.removeprefix(_BOM))
    except orjson.JSONDecodeError as error:
        raise BadRequest(
            f"The body is not JSON: {error}. A form needs no JSON: {HINT}"
        ) from None
    if not isinstance(fields, dict):
        raise BadRequest('The body must be a JSON object, as in {"prompt": "hello"}.')
    return fields


def _urlencoded(body: bytes, charset: str) -> Fields:
    if body.count(b"&") >= MOST_PARTS:
        raise TooLarge(
            f"The form has more than {MOST_PARTS} fields, or an unescaped text in one. "
            f"{HINT}"
        )
    fields: Fields = {}
    for pair in filter(None, body.rstrip(b"\r\n").split(b"&")):
        raw_name, equals, raw_value = pair.partition(b"=")
        if not equals or _CUT_NAME.search(raw_name):
            raise BadRequest(
                "An unescaped & or line cut a field short: nothing was asked. " + HINT
            )
        if _UNESCAPED.search(raw_value) and _ESCAPED.search(raw_value):
            raise BadRequest(
                "A field was sent unescaped, so its + or % would be lost: nothing was "
                f"asked. {HINT}"
            )
        name = _text(_unescape(raw_name), charset, "A field's name")
        value = _text(_unescape(raw_value), charset, f"The field {name[:40]}")
        _add(fields, name, value)
    return fields


def _unescape(raw: bytes) -> bytes:
    """Percent-escapes as bytes, in C: they are quoted-printable with another sign."""
    escaped = _LONE_PERCENT.sub(b"%25", raw.replace(b"+", b" "))
    return a2b_qp(escaped.replace(b"=", b"%3D").replace(b"%", b"="))


def _multipart(body: bytes, boundary: str, charset: str) -> Fields:
    fields: Fields = {}
    name = ""
    pieces: list[bytes] = []
    try:
        decoder = MultipartDecoder(boundary.encode("latin-1"), max_parts=MOST_PARTS)
        decoder.receive_data(body)
        decoder.receive_data(None)
        while not isinstance(event := decoder.next_event(), (Epilogue, NeedData)):
            if isinstance(event, (Field, File)):
                name = event.name or ""
                pieces = []
            elif isinstance(event, Data):
                pieces.append(event.data)
                if not event.more_data:
                    value = b"".join(pieces)
                    _add(fields, name, _text(value, charset, f"The field {name[:40]}"))
    except RequestEntityTooLarge:
        raise TooLarge(f"The form has more than {MOST_PARTS} parts.") from None
    except (ValueError, UnicodeEncodeError):
        raise BadRequest(
            "The multipart body is broken or cut short: nothing was asked. Send it "
            "again."
        ) from None
    return fields


def _add(fields: Fields, name: str, value: str) -> None:
    if name in fields and fields[name] != value:
        raise BadRequest(
            f"The field {name[:40]} was sent twice with different values. {HINT}"
        )
    fields[name] = value


def _charset(name: str) -> str:
    if name.lower() not in _CHARSETS:
        raise UnsupportedMediaType(
            f"The charset {name[:40]} is not known here: send UTF-8."
        )
    return _CHARSETS[name.lower()]


def _text(raw: bytes, charset: str, subject: str) -> str:
    try:
        return raw.decode(charset)
    except UnicodeDecodeError:
        name = "UTF-8" if charset == "utf-8" else charset
        raise BadRequest(
            f"{subject} is not {name}: nothing was asked. Send UTF-8, or name the "
            "encoding in the Content-Type, as in charset=gb18030."
        ) from None
