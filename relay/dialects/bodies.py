"""Request bodies as fields: forms, JSON and plain text, under whatever type clients send them. Pure."""

from __future__ import annotations

import re
from binascii import a2b_qp
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import orjson
from werkzeug.http import parse_options_header

from relay.dialects import multipart
from relay.errors import BadRequest, TooLarge, UnsupportedMediaType

Fields: TypeAlias = dict[str, Any]
Pause: TypeAlias = Callable[[], object]

MOST_PAIRS = 1000
LONGEST_CONTENT_TYPE = 1024
LONGEST_NAME = 1000
#: JSON up to this size may have any structure; a larger one at most MOST_MARKS brackets, commas and colons
SMALL_JSON = 1024 * 1024
MOST_MARKS = 200_000
DEEPEST_JSON = 100
PLAIN_BODY = ""  # the name of the field that a body makes which is only a prompt
#: fields that have files: as parts with a file name, or as data URLs
FILE_FIELDS = tuple(
    name + ending
    for name in ("image", "images", "file", "files")
    for ending in ("", "[]")
)
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
    "conversation",
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
NO_NAME = (
    "The form begins with a text that has no field name: nothing was asked. " + HINT
)
_CHARSETS = {
    **dict.fromkeys(("utf-8", "utf8", "us-ascii", "ascii"), "utf-8"),
    **dict.fromkeys(("gbk", "gb2312", "gb18030"), "gb18030"),
    **dict.fromkeys(("iso-8859-1", "latin1", "windows-1252"), "cp1252"),
    **{name: name for name in ("big5", "shift_jis", "euc-jp", "euc-kr")},
}
_CUT_NAME = re.compile(rb"[\s\"'\x80-\xff+]")
_UNESCAPED = b' \t\n\r\f\v"' + bytes(range(0x80, 0x100))
_SLICE = 256 * 1024
#: each byte as its class: a hexadecimal digit (0), % (itself), any other (x)
_HEX_DIGITS = b"0123456789abcdefABCDEF"
_CLASSES = b"".join(
    b"0" if byte in _HEX_DIGITS else bytes((byte,)) if byte == ord("%") else b"x"
    for byte in range(256)
)
#: the bits in which % and = differ, and a table that keeps them alone
_FLIP = ord("%") ^ ord("=")
_FLIPS_ALONE = bytes(byte if byte == _FLIP else 0 for byte in range(256))
_MARKS = (b"[", b"{", b",", b":")
_GZIP = b"\x1f\x8b"  # the beginning of such a file, and of no text
_BOM = b"\xef\xbb\xbf"
_TEXT_TYPES = ("", "text/plain", "application/octet-stream")


class FilePart(NamedTuple):
    """A file of a multipart body: the field's name, the file's own, and its content within the body."""

    field: str
    name: str
    content: memoryview


def _no_pause() -> None:
    """For a caller that has nothing else to do meanwhile."""


def read(
    content_type: str,
    body: bytes,
    pause: Pause = _no_pause,
    files: list[FilePart] | None = None,
) -> Fields:
    """The fields of a body; one that is only a prompt is the field PLAIN_BODY.

    `files`: gets the files in the fields FILE_FIELDS, which are read as text where it is None. Takes
    linear time, and at most about four times the body's memory. `pause` is called now and then: a
    large body takes a while. Raises BadRequest, TooLarge or UnsupportedMediaType.
    """
    _check_readable(content_type, body)
    mimetype = content_type.strip().lower()
    options: Mapping[str, str] = {}
    if ";" in mimetype:
        mimetype, options = parse_options_header(content_type)
        mimetype = mimetype.lower()
    charset = _charset(options.get("charset", "utf-8"))
    if mimetype == "application/json" or mimetype.endswith("+json"):
        return _json(body, pause)
    if mimetype == "multipart/form-data":
        boundary = options.get("boundary", "")
        return _multipart(body, boundary, charset, pause, files)
    if _is_json_object(mimetype, body, pause):
        return _json(body, pause)
    if mimetype == "application/x-www-form-urlencoded":
        return _urlencoded(body, charset, pause)
    if mimetype in _TEXT_TYPES:
        return {PLAIN_BODY: _text(body, charset, "The body")} if body else {}
    raise UnsupportedMediaType(
        f"This route does not read {mimetype[:80]}: send a form (curl "
        "--data-urlencode), JSON, or text/plain.",
        quoted=mimetype[:80],
    )


def _check_readable(content_type: str, body: bytes) -> None:
    """Raises UnsupportedMediaType."""
    if body.startswith(_GZIP):
        raise UnsupportedMediaType(
            "The body is compressed (gzip), which is not read here: send it as it is."
        )
    if len(content_type) > LONGEST_CONTENT_TYPE:
        raise UnsupportedMediaType(
            f"The Content-Type has more than {LONGEST_CONTENT_TYPE} characters."
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


def _is_json_object(mimetype: str, body: bytes, pause: Pause) -> bool:
    """Whether a body is JSON under another type: curl -d says urlencoded, fetch() says text/plain."""
    if body.lstrip()[:1] != b"{":
        return False
    return mimetype != "text/plain" or _has_prompt(body, pause)


def _has_prompt(body: bytes, pause: Pause) -> bool:
    """Whether a text is a JSON object with a prompt."""
    try:
        fields = parse_json(body, pause)
    except (orjson.JSONDecodeError, BadRequest, TooLarge):
        return False
    if not isinstance(fields, dict):
        return False
    prompts = (fields.get("msg"), fields.get("prompt"))
    has_prompt = any(isinstance(prompt, str) for prompt in prompts)
    return has_prompt or isinstance(fields.get("messages"), list)


def _json(body: bytes, pause: Pause) -> Fields:
    if not body or body.isspace():
        return {}
    try:
        fields = parse_json(body.removeprefix(_BOM), pause)
    except orjson.JSONDecodeError as error:
        raise BadRequest(
            f"The body is not JSON: {error}. Where the route takes a form, that needs "
            f"none: {HINT}"
        ) from None
    if not isinstance(fields, dict):
        raise BadRequest('The body must be a JSON object, as in {"prompt": "hello"}.')
    return fields


def parse_json(text: str | bytes, pause: Pause = _no_pause) -> Any:
    """JSON as Python's values, within bounds: a value takes up to 100 times the memory of its text.

    Raises JSONDecodeError; TooLarge for too many values in a large text; BadRequest for lists and
    objects that are nested too deep: what is printed as JSON again must not be.
    """
    if len(text) > SMALL_JSON:
        raw = text.encode() if isinstance(text, str) else text
        if _count_marks(raw, pause) > MOST_MARKS:
            raise TooLarge(
                f"The JSON has more than {MOST_MARKS} brackets, commas and colons "
                "outside of its texts."
            )
        pause()
    value = orjson.loads(text)
    if _may_be_deep(text) and _is_deeper_than(DEEPEST_JSON, value):
        raise BadRequest(
            f"The JSON is nested more than {DEEPEST_JSON} levels deep: nothing was "
            "asked."
        )
    return value


def _count_marks(raw: bytes, pause: Pause, slice_size: int = _SLICE) -> int:
    """The brackets, commas and colons of a JSON text outside of its strings; beyond MOST_MARKS it need not be exact.

    Slice by slice: the first half of an escape that is cut in two is carried into the next one.
    """
    marks = 0
    in_string = False
    carried = b""
    for start in range(0, len(raw), slice_size):
        part = carried + raw[start : start + slice_size]
        part = part.replace(rb"\\", b"")
        carried = b"\\" if part.endswith(b"\\") else b""
        texts = part.removesuffix(carried).replace(rb"\"", b"").split(b'"')
        outside_of_strings = b"".join(texts[in_string::2])
        marks += sum(outside_of_strings.count(mark) for mark in _MARKS)
        if marks > MOST_MARKS:
            break
        in_string ^= len(texts) % 2 == 0
        pause()
    return marks


def _may_be_deep(text: str | bytes) -> bool:
    """Whether a JSON text has so many brackets that lists and objects may be nested too deep: most have not."""
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return raw.count(b"[") + raw.count(b"{") > DEEPEST_JSON


def _is_deeper_than(most: int, value: Any) -> bool:
    """Whether lists and objects are nested deeper; level by level, because recursion has a limit of its own."""
    level = [value]
    for _ in range(most):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
        if not below:
            return False
        level = below
    return any(isinstance(item, (dict, list)) for item in level)


def _urlencoded(body: bytes, charset: str, pause: Pause) -> Fields:
    if body.count(b"&") >= MOST_PAIRS:
        raise TooLarge(
            f"The form has more than {MOST_PAIRS} fields, or an unescaped text in one. "
            f"{HINT}"
        )
    fields: Fields = {}
    for start, equals, end in _pairs(body):
        name = body[start : min(equals, start + LONGEST_NAME)]
        has_no_name = equals == end or _CUT_NAME.search(name) is not None
        if has_no_name and not fields:
            raise BadRequest(NO_NAME)
        if has_no_name or equals - start > LONGEST_NAME:
            raise BadRequest(
                "An unescaped & or line cut a field short: nothing was asked. " + HINT
            )
        if _is_lossy(body, equals + 1, end, pause):
            raise BadRequest(
                "A field was sent unescaped, so its + or % would be lost: nothing was "
                f"asked. {HINT}"
            )
        field = _text(_unescape(name), charset, "A field's name")
        value = _unescape(body, equals + 1, end, pause)
        _add(fields, field, _value(value, charset, field))
    return fields


def _pairs(body: bytes) -> Iterator[tuple[int, int, int]]:
    """Where each pair of a form starts, has its "=" and ends; without one, "=" is at the end.

    Positions, because slices would be copies of a body that may be large.
    """
    last = len(body.rstrip(b"\r\n"))
    start = 0
    while start < last:
        end = body.find(b"&", start, last)
        if end < 0:
            end = last
        equals = body.find(b"=", start, end)
        if equals < 0:
            equals = end
        if start < end:
            yield start, equals, end
        start = end + 1


def _slices(
    raw: bytes, start: int, end: int, pause: Pause, slice_size: int = _SLICE
) -> Iterator[bytes]:
    """The bytes from `start` to `end` in slices that cut no escape in two, with a pause between two of them."""
    while start < end:
        cut = min(start + slice_size, end)
        if cut < end:
            percent = raw.rfind(b"%", cut - 2, cut)
            if percent >= 0:
                cut = percent
        yield raw[start:cut]
        start = cut
        if start < end:
            pause()


def _is_lossy(raw: bytes, start: int, end: int, pause: Pause) -> bool:
    """Whether a value has both what is only in unescaped text and what only escaping makes."""
    is_unescaped = False
    is_escaped = False
    for part in _slices(raw, start, end, pause):
        # translate deletes, and so compares a whole slice at the speed of C
        is_unescaped |= len(part.translate(None, _UNESCAPED)) < len(part)
        is_escaped |= b"+" in part or b"%00" in part.translate(_CLASSES)
        if is_unescaped and is_escaped:
            return True
    return False


def _unescape(
    raw: bytes, start: int = 0, end: int | None = None, pause: Pause = _no_pause
) -> bytearray:
    """What is between `start` and `end` without its percent-escapes."""
    unescaped = bytearray()
    for part in _slices(raw, start, len(raw) if end is None else end, pause):
        unescaped += _unescape_slice(part)
    return unescaped


def _unescape_slice(raw: bytes) -> bytes:
    """Percent-escapes as bytes, in C whatever they are: they are quoted-printable with another sign.

    Only a % with two digits is an escape; each of these, and no other %, becomes the sign "=".
    """
    raw = raw.replace(b"+", b" ")
    classes = raw.translate(_CLASSES)
    escapes = classes.count(b"%00")
    if not escapes:
        return raw
    if b"=" in raw:
        raw = raw.replace(b"=", b"%3D")
        classes = raw.translate(_CLASSES)
        escapes = classes.count(b"%00")
    if escapes == raw.count(b"%"):
        return a2b_qp(raw.replace(b"%", b"="))
    marked = classes.replace(b"%00", bytes((_FLIP, 0, 0))).translate(_FLIPS_ALONE)
    flipped = int.from_bytes(raw, "little") ^ int.from_bytes(marked, "little")
    return a2b_qp(flipped.to_bytes(len(raw), "little"))


def _multipart(
    body: bytes,
    boundary: str,
    charset: str,
    pause: Pause,
    files: list[FilePart] | None,
) -> Fields:
    fields: Fields = {}
    for part in multipart.parts(body, boundary):
        is_file = part.filename is not None and part.name in FILE_FIELDS
        if files is not None and is_file:
            content = memoryview(body)[part.start : part.end]
            if (
                part.filename or content
            ):  # a page's form sends a part where no file was chosen
                files.append(FilePart(part.name, part.filename or "", content))
            continue
        value = body[part.start : part.end]
        _add(fields, part.name, _value(value, charset, part.name))
        pause()
    return fields


def _add(fields: Fields, name: str, value: str) -> None:
    if name in fields and fields[name] != value:
        raise BadRequest(
            f"The field {name[:40]} was sent twice with different values. {HINT}",
            quoted=name[:40],
        )
    fields[name] = value


def _charset(name: str) -> str:
    if name.lower() not in _CHARSETS:
        raise UnsupportedMediaType(
            f"The charset {name[:40]} is not known here: send UTF-8.",
            quoted=name[:40],
        )
    return _CHARSETS[name.lower()]


def _value(raw: bytes | bytearray, charset: str, field: str) -> str:
    """A field's value as text. Raises BadRequest."""
    name = field[:40]
    return _text(raw, charset, f"The field {name}", quoted=name)


def _text(
    raw: bytes | bytearray, charset: str, subject: str, *, quoted: str = ""
) -> str:
    """Bytes as text. `subject`: what they are, `quoted`: what of that a caller wrote. Raises BadRequest."""
    try:
        return raw.decode(charset)
    except UnicodeDecodeError:
        name = "UTF-8" if charset == "utf-8" else charset
        raise BadRequest(
            f"{subject} is not {name}: nothing was asked. Send UTF-8, or name the "
            "encoding in the Content-Type, as in charset=gb18030.",
            quoted=quoted,
        ) from None
