"""The own routes' dialect: forms, JSON or plain text in; JSON, text or a stream out. Pure: values in, values out."""

from __future__ import annotations

import math
import re
from binascii import unhexlify
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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

from relay import sse
from relay.domain import Ask, Caller, Delta, Event, Message, Reasoning, Reply, Restarted
from relay.errors import BadRequest, RelayError, TooLarge, UnsupportedMediaType

Fields: TypeAlias = dict[str, Any]

MOST_PARTS = 1000
LONGEST_TITLE = 200
LONGEST_SEARCH = 200
PLAIN_BODY = (
    ""  # the name under which a body that is only a prompt stands among the fields
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
IN_QUERY = (
    "conversation_id",
    "parent_message_id",
    "parent_id",
    "model",
    "timeout",
    "stream",
    "format",
    "request_id",
)
#: parameters for the model that a form may carry; `text` stays text, anything else is read as JSON where it is some
PARAMETERS = {
    **dict.fromkeys(
        (
            "temperature",
            "top_p",
            "max_tokens",
            "max_completion_tokens",
            "seed",
            "stop",
            "n",
        ),
        "json",
    ),
    **dict.fromkeys(
        (
            "presence_penalty",
            "frequency_penalty",
            "logit_bias",
            "response_format",
            "metadata",
        ),
        "json",
    ),
    **dict.fromkeys(
        ("reasoning_effort", "verbosity", "service_tier", "user", "prompt_cache_key"),
        "text",
    ),
}
_KEY = re.compile(r"[!-~]{1,255}")
_CHARSETS = {
    **dict.fromkeys(("utf-8", "utf8", "us-ascii", "ascii"), "utf-8"),
    **dict.fromkeys(("gbk", "gb2312", "gb18030"), "gb18030"),
    **dict.fromkeys(("iso-8859-1", "latin1", "windows-1252"), "cp1252"),
    **{name: name for name in ("big5", "shift_jis", "euc-jp", "euc-kr")},
}
_ESCAPES = re.compile(rb"(?:%[0-9A-Fa-f]{2})+")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_HINT = "Send it with --data-urlencode, as in: curl --data-urlencode 'prompt=...' URL"


def read(content_type: str, body: bytes) -> Fields:
    """The fields of a body, whatever its form. A body that is only a prompt stands under PLAIN_BODY."""
    mimetype, options = parse_options_header(content_type)
    mimetype = mimetype.lower()
    charset = _charset(options.get("charset", "utf-8"))
    looks_like_json = body.lstrip()[:1] == b"{"
    if mimetype == "application/json" or mimetype.endswith("+json"):
        return _json(body)
    if mimetype == "multipart/form-data":
        return _multipart(body, options.get("boundary", ""), charset)
    if mimetype == "application/x-www-form-urlencoded":
        # curl -d '{...}' says urlencoded; clients of chatgpt-webapi send JSON under any type
        return _json(body) if looks_like_json else _urlencoded(body, charset)
    if looks_like_json and (mimetype != "text/plain" or _asks(body)):
        return _json(body)
    if mimetype in ("", "text/plain", "application/octet-stream"):
        return {PLAIN_BODY: _text(body, charset, "The body")} if body else {}
    raise UnsupportedMediaType(
        f"This route does not read {mimetype}: send a form (curl --data-urlencode), JSON, or text/plain."
    )


def read_query(query: Mapping[str, list[str]]) -> Fields:
    """The fields of a query string: what says how or where, never a credential, for URLs are written to logs."""
    for name in query:
        if name.lower() in SECRETS:
            raise BadRequest(
                f"Never put {name} into a URL: send it as a header or as a field of the body."
            )
    return {name: values[-1] for name, values in query.items() if name in IN_QUERY}


def _json(body: bytes) -> Fields:
    if not body.strip():
        return {}
    try:
        fields = orjson.loads(body.removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError as error:
        raise BadRequest(
            f"The body is not JSON: {error}. A form needs no JSON: {_HINT}"
        ) from None
    if not isinstance(fields, dict):
        raise BadRequest('The body must be a JSON object, as in {"prompt": "hello"}.')
    return fields


def _asks(body: bytes) -> bool:
    """Whether a text is a JSON object with a prompt, as fetch() sends it where nobody names a type."""
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError:
        return False
    return isinstance(fields, dict) and (
        any(isinstance(fields.get(name), str) for name in ("msg", "prompt"))
        or isinstance(fields.get("messages"), list)
    )


def _urlencoded(body: bytes, charset: str) -> Fields:
    if body.count(b"&") >= MOST_PARTS:
        raise TooLarge(
            f"The form has more than {MOST_PARTS} fields, or an unescaped text in one. {_HINT}"
        )
    fields: Fields = {}
    for pair in body.rstrip(b"\r\n").split(b"&"):
        if not pair:
            continue
        raw_name, equals, raw_value = pair.partition(b"=")
        if not equals or re.search(rb"[\s\"'\x80-\xff+]", raw_name):
            raise BadRequest(
                f"An unescaped & or line cut a field short: nothing was asked. {_HINT}"
            )
        if re.search(rb"[\s\"\x80-\xff]", raw_value) and re.search(
            rb"\+|%[0-9A-Fa-f]{2}", raw_value
        ):
            raise BadRequest(
                f"A field was sent unescaped, so its + or % would be lost: nothing was asked. {_HINT}"
            )
        name = _text(_unquoted(raw_name), charset, "A field's name")
        _add(
            fields, name, _text(_unquoted(raw_value), charset, f"The field {name[:40]}")
        )
    return fields


def _unquoted(raw: bytes) -> bytes:
    # a run at a time: seven times as fast as urllib's unquote_to_bytes on a text in Chinese
    return _ESCAPES.sub(
        lambda run: unhexlify(run[0].replace(b"%", b"")), raw.replace(b"+", b" ")
    )


def _multipart(body: bytes, boundary: str, charset: str) -> Fields:
    fields: Fields = {}
    name, pieces = "", list[bytes]()
    try:
        decoder = MultipartDecoder(boundary.encode("latin-1"), max_parts=MOST_PARTS)
        decoder.receive_data(body)
        decoder.receive_data(None)
        while not isinstance(event := decoder.next_event(), (Epilogue, NeedData)):
            if isinstance(event, (Field, File)):
                name, pieces = event.name or "", []
            elif isinstance(event, Data):
                pieces.append(event.data)
                if not event.more_data:
                    _add(
                        fields,
                        name,
                        _text(b"".join(pieces), charset, f"The field {name[:40]}"),
                    )
    except RequestEntityTooLarge:
        raise TooLarge(f"The form has more than {MOST_PARTS} parts.") from None
    except (ValueError, UnicodeEncodeError):
        raise BadRequest(
            "The multipart body is broken or cut short: nothing was asked. Send it again."
        ) from None
    return fields


def _add(fields: Fields, name: str, value: str) -> None:
    if name in fields and fields[name] != value:
        raise BadRequest(
            f"The field {name[:40]} was sent twice with different values. {_HINT}"
        )
    fields[name] = value


def _charset(name: str) -> str:
    if name.lower() not in _CHARSETS:
        raise UnsupportedMediaType(
            f"The charset {name[:40]} is not known here: send UTF-8."
        )
    return _CHARSETS[name.lower()]


def _text(raw: bytes, charset: str, what: str) -> str:
    try:
        return raw.decode(charset)
    except UnicodeDecodeError:
        said = "UTF-8" if charset == "utf-8" else charset
        raise BadRequest(
            f"{what} is not {said}: nothing was asked. Send UTF-8, or name the encoding in the Content-Type, "
            "as in charset=gb18030."
        ) from None


def text_of(fields: Fields, name: str) -> str:
    """A field as text; "" where it is absent, null or empty."""
    value = fields.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRequest(f"The field {name or 'prompt'} must be text.")
    if "\0" in value:
        raise BadRequest(
            f"The field {name or 'prompt'} holds a NUL character; text has none."
        )
    return value


def id_of(fields: Fields, name: str) -> str | None:
    value = text_of(fields, name).strip()
    if value and not _ID.fullmatch(value):
        raise BadRequest(
            f"The field {name} is no id. Send it as an earlier reply gave it."
        )
    return value or None


def flag_of(fields: Fields, name: str) -> bool:
    value = fields.get(name)
    word = (
        str(value).lower()
        if isinstance(value, (str, bool, int))
        else "?"
        if value is not None
        else ""
    )
    if word not in ("", "true", "false", "1", "0", "yes", "no", "on", "off"):
        raise BadRequest(f"The field {name} must be true or false.")
    return word in ("true", "1", "yes", "on")


def milliseconds_of(fields: Fields, name: str) -> float | None:
    """A time in milliseconds as seconds; None where it is absent or 0: the service's own clocks count."""
    value = fields.get(name)
    try:
        number = (
            float(value)
            if isinstance(value, (str, int, float)) and str(value).strip()
            else 0.0
        )
    except (ValueError, OverflowError):
        number = math.nan
    if isinstance(value, (bool, list, dict)) or not 0 <= number < math.inf:
        raise BadRequest(
            f"The field {name} must be a number of milliseconds, 0 for the service's own limit."
        )
    return number / 1000 or None


def count_of(value: str, name: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", value):
        raise BadRequest(f"{name} must be a whole number of at most nine digits.")
    return int(value)


def search_of(value: str) -> str:
    """What is searched for; empty where nothing is."""
    words = value.strip()
    if len(words) > LONGEST_SEARCH or "\0" in words:
        raise BadRequest(
            f"q must hold at most {LONGEST_SEARCH} characters, none of them NUL."
        )
    return words


def title_of(fields: Fields) -> str | None:
    """The title that was sent; None where there is none: the upstream may find one."""
    title = " ".join((text_of(fields, "title") or text_of(fields, PLAIN_BODY)).split())
    if len(title) > LONGEST_TITLE:
        raise BadRequest(
            f"The field title must hold at most {LONGEST_TITLE} characters."
        )
    return title or None


def parent_of(fields: Fields) -> str | None:
    """The parent's id, by either route's name for it."""
    parents = {id_of(fields, name) for name in ("parent_message_id", "parent_id")} - {
        None
    }
    if len(parents) > 1:
        raise BadRequest(
            "Two fields of the same meaning differ: send one prompt and one parent id."
        )
    return parents.pop() if parents else None


def key_of(fields: Fields, header: str | None) -> str | None:
    """The idempotency key: of the header, quoted or not, or of the field request_id.

    An empty one is an error, for whoever sent it counts on it.
    """
    field = (
        text_of(fields, "request_id").strip()
        if fields.get("request_id") is not None
        else None
    )
    keys = {header.strip().strip('"') if header is not None else None, field} - {None}
    if len(keys) > 1:
        raise BadRequest(
            "The header Idempotency-Key and the field request_id differ: send one of them."
        )
    key = keys.pop() if keys else None
    if key is not None and not _KEY.fullmatch(key):
        raise BadRequest(
            "An idempotency key is 1 to 255 ASCII characters without spaces: openssl rand -hex 16 makes one."
        )
    return key


def options_of(fields: Fields, *, known: bool = True) -> dict[str, Any]:
    """Parameters for the model among the fields: the known ones alone, or all of them."""
    found: dict[str, Any] = {}
    for name, value in fields.items():
        if value is None or value == "" or (known and name not in PARAMETERS):
            continue
        if isinstance(value, str) and PARAMETERS.get(name) == "json":
            try:
                value = orjson.loads(value)
            except orjson.JSONDecodeError:
                if name not in ("stop", "response_format"):
                    raise BadRequest(
                        f"The field {name} must be a number, or JSON."
                    ) from None
        found[name] = value
    return found


def joined(*parts: str) -> str:
    """Prefix, prompt and suffix as one text, each on its own line unless it brings its own white space."""
    text = ""
    for part in filter(None, parts):
        text += (
            part if not text or text[-1].isspace() or part[0].isspace() else "\n" + part
        )
    return text


@dataclass(frozen=True)
class Shape:
    """One own route's names for its fields, and its way to print answers and errors."""

    prompt: str
    parent: str
    answer: Callable[[Reply], dict[str, Any]]
    error: Callable[[RelayError], tuple[int, dict[str, Any]]]
    route: str

    def ask(self, fields: Fields, caller: Caller, key: str | None = None) -> Ask:
        """The ask that the fields make; the other route's names are understood too. Unknown fields are left alone.

        `key` is the header Idempotency-Key.
        """
        prompts = {text_of(fields, name) for name in (PLAIN_BODY, "prompt", "msg")} - {
            ""
        }
        if len(prompts) > 1:
            raise BadRequest(
                "Two fields of the same meaning differ: send one prompt and one parent id."
            )
        prompt = "".join(prompts)
        if not prompt.strip():
            raise BadRequest(
                f"The field {self.prompt} is missing or empty: nothing was asked. "
                f"Send it as in: curl --data-urlencode '{self.prompt}=hello' URL"
            )
        return Ask(
            prompt=joined(
                text_of(fields, "prompt_prefix"),
                prompt,
                text_of(fields, "prompt_suffix"),
            ),
            caller=caller,
            conversation_id=id_of(fields, "conversation_id"),
            parent_id=parent_of(fields),
            before=(Message("system", system),)
            if (system := text_of(fields, "system"))
            else (),
            model=text_of(fields, "model") or None,
            reverse_proxy=text_of(fields, "reverse_proxy") or None,
            timeout=milliseconds_of(fields, "timeout"),
            options=options_of(fields),
            key=key_of(fields, key),
            route=self.route,
        )


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
    """chatgpt-api's documented shape: 500 whatever happened; the rest is told in headers."""
    return 500, {"message": error.message}


def coded_error(error: RelayError) -> tuple[int, dict[str, Any]]:
    """chatgpt-webapi's shape, with the true status and room for what the log calls it."""
    return error.status, {
        "code": 1,
        "msg": error.message,
        "error": error.code,
        "source": error.source,
    }


SEND_MESSAGE = Shape(
    "prompt", "parent_message_id", _three_keys, message_error, "send_message"
)
ASK = Shape("msg", "parent_id", _coded, coded_error, "ask")


class Events:
    """A stream as server-sent events: pieces as {"text"}, then `done` with the route's whole answer, or `error`.

    What the model thinks comes apart from its answer, as events `reasoning`.
    """

    keep_alive = sse.KEEP_ALIVE

    def __init__(self, shape: Shape) -> None:
        self._shape = shape

    def print(self, batch: list[Event]) -> bytes:
        wire, text, thought = b"", "", ""
        for event in batch:
            if isinstance(event, Delta):
                text += event.text
            elif isinstance(event, Reasoning):
                thought += event.text
            elif isinstance(event, Restarted):
                wire, text = sse.event(b"{}", "restart"), ""
        wire += (
            sse.event(orjson.dumps({"text": thought}), "reasoning") if thought else b""
        )
        return wire + (sse.event(orjson.dumps({"text": text})) if text else b"")

    def end(self, reply: Reply) -> bytes:
        return sse.event(orjson.dumps(self._shape.answer(reply)), "done")

    def fail(self, error: RelayError) -> bytes:
        return sse.event(orjson.dumps(self._shape.error(error)[1]), "error")


def _raw(event: Event) -> str:
    match event:
        case Delta(text):
            return text
        case Restarted():
            return "\n\n"
    return ""


class Raw:
    """A stream as the text alone. It has no frames, so a failure can only break it off."""

    keep_alive = b""

    def print(self, batch: list[Event]) -> bytes:
        return "".join(_raw(event) for event in batch).encode()

    def end(self, reply: Reply) -> bytes:
        return b""

    def fail(self, error: RelayError) -> None:
        return None
