"""Single fields of a request as values, with one sentence for each that is wrong. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from typing import Any

import orjson

from relay.dialects.bodies import PLAIN_BODY, Fields, parse_json
from relay.errors import BadRequest

LONGEST_TITLE = 200
LONGEST_SEARCH = 200
LONGEST_CONVERSATION_NAME = 128
ABSENT = ("", "undefined", "null")  # what JavaScript makes of an id that is not there
#: parameters for the model that a form may have -> whether a text is read as JSON where it is some
PARAMETERS = {
    "temperature": True,
    "top_p": True,
    "max_tokens": True,
    "max_completion_tokens": True,
    "seed": True,
    "stop": True,
    "n": True,
    "presence_penalty": True,
    "frequency_penalty": True,
    "logit_bias": True,
    "response_format": True,
    "metadata": True,
    "reasoning_effort": False,
    "verbosity": False,
    "service_tier": False,
    "user": False,
    "prompt_cache_key": False,
}
#: the largest value of each whole number of a query string
COUNTS = {"offset": 999_999_999, "limit": 1000}
_MAY_BE_TEXT = ("stop", "response_format")
_TRUE = ("true", "1", "yes", "on")
_FALSE = ("", "false", "0", "no", "off")
_KEY = re.compile(r"[!-~]{1,255}")
#: fields that say where an ask belongs or that it happens once: one that is misspelt changes the meaning of the ask
_PLACES = {
    name.replace("_", "").lower(): name
    for name in (
        "conversation",
        "conversation_id",
        "parent_id",
        "parent_message_id",
        "request_id",
    )
}
NEAR = 0.8  # of difflib's ratio
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")


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
    """An id; None where it is absent."""
    value = text_of(fields, name).strip()
    if value in ABSENT:
        return None
    if not _ID.fullmatch(value):
        raise BadRequest(
            f"The field {name} is no id. Send it as an earlier reply gave it."
        )
    return value


def _one_of(fields: Fields, names: tuple[str, ...]) -> str | None:
    """An id that several fields may have; they must not differ."""
    if fields.keys().isdisjoint(names):  # as it mostly is
        return None
    ids = {id_of(fields, name) for name in names} - {None}
    if len(ids) > 1:
        raise BadRequest(
            f"Two fields of the same meaning differ: send one of {', '.join(names)}."
        )
    return ids.pop() if ids else None


def conversation_of(fields: Fields) -> str | None:
    """The conversation's id, by any of its names."""
    return _one_of(fields, ("conversation_id", "conversationId"))


def conversation_name_of(fields: Fields) -> str | None:
    """The caller's own name for a conversation; None where there is none.

    An empty one is an error, because whoever sent it counts on it: a variable may not have been set.
    """
    if fields.get("conversation") is None:
        return None
    name = text_of(fields, "conversation").strip()
    is_text = name.isprintable() and name not in ABSENT
    if not is_text or len(name) > LONGEST_CONVERSATION_NAME:
        raise BadRequest(
            "The field conversation is a name of your own choosing for a conversation: 1 "
            f"to {LONGEST_CONVERSATION_NAME} printable characters."
        )
    if conversation_of(fields) is not None:
        raise BadRequest("Send one of conversation and conversation_id, not both.")
    return name


def parent_of(fields: Fields) -> str | None:
    """The parent's id, by any route's name for it."""
    return _one_of(fields, ("parent_message_id", "parent_id", "parentMessageId"))


def ignored_of(fields: Fields) -> tuple[str, ...]:
    """Fields that are understood and have no effect: the service chooses the ids of messages itself."""
    return ("messageId",) if fields.get("messageId") else ()


def unknown_of(fields: Fields, known: Collection[str]) -> tuple[str, ...]:
    """The fields that the route does not know, and that are not empty. Raises as `check_places` does."""
    check_places(fields, known)
    given = {name for name, value in fields.items() if value not in (None, "")}
    return tuple(sorted(given.difference(known, (PLAIN_BODY,))))


def check_places(
    fields: Iterable[str],
    known: Collection[str],
    meant: Mapping[str, str] = _PLACES,
) -> None:
    """Raise BadRequest for an unknown field that nearly has the name of one that says where an ask belongs.

    `meant`: the fields that may be meant, by their names in lower-case letters.
    """
    for name in fields:
        if name in known or len(name) > LONGEST_CONVERSATION_NAME:
            continue
        plain = re.sub("[^a-z]", "", name.lower())
        near = get_close_matches(plain, meant, 1, NEAR)
        if near:
            raise BadRequest(
                f"There is no field {name}: {meant[near[0]]} was probably meant. "
                "Nothing was asked.",
                quoted=name,
            )


def flag_of(fields: Fields, name: str) -> bool:
    value = fields.get(name)
    if value is None:
        return False
    word = str(value).lower() if isinstance(value, (str, bool, int)) else "?"
    if word not in _TRUE + _FALSE:
        raise BadRequest(f"The field {name} must be true or false.")
    return word in _TRUE


def milliseconds_of(fields: Fields, name: str) -> float | None:
    """A time in milliseconds as seconds; None where it is absent or 0: the service's own clocks count."""
    value = fields.get(name)
    if value is None or value == "":
        return None
    number = math.nan
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        try:
            number = float(value) if str(value).strip() else 0.0
        except (ValueError, OverflowError):
            pass
    if not 0 <= number < math.inf:
        raise BadRequest(
            f"The field {name} must be a number of milliseconds, 0 for the service's "
            "own limit."
        )
    return number / 1000 or None


def count_of(value: str, name: str, most: int | None = None) -> int:
    """A whole number of a query string. `most`: where that is not what its name has in COUNTS."""
    most = COUNTS[name] if most is None else most
    if not re.fullmatch(r"[0-9]{1,9}", value) or int(value) > most:
        raise BadRequest(f"{name} must be a whole number, and at most {most}.")
    return int(value)


def search_of(value: str) -> str:
    """What is searched for; "" where nothing is."""
    words = value.strip()
    if len(words) > LONGEST_SEARCH or "\0" in words:
        raise BadRequest(
            f"q must hold at most {LONGEST_SEARCH} characters, none of them NUL."
        )
    return words


def title_of(fields: Fields) -> str | None:
    """The title that was sent; None where there is none: the upstream may find one."""
    text = text_of(fields, "title") or text_of(fields, PLAIN_BODY)
    title = " ".join(text.split())
    if len(title) > LONGEST_TITLE:
        raise BadRequest(
            f"The field title must hold at most {LONGEST_TITLE} characters."
        )
    return title or None


def key_of(fields: Fields, header: str | None) -> str | None:
    """The idempotency key: of the header Idempotency-Key, quoted or not, or of the field request_id.

    An empty one is an error, because whoever sent it counts on it.
    """
    keys: set[str] = set()
    if header is not None:
        keys.add(header.strip().strip('"'))
    if fields.get("request_id") is not None:
        keys.add(text_of(fields, "request_id").strip())
    if len(keys) > 1:
        raise BadRequest(
            "The header Idempotency-Key and the field request_id differ: send one of "
            "them."
        )
    key = keys.pop() if keys else None
    if key is not None and not _KEY.fullmatch(key):
        raise BadRequest(
            "An idempotency key is 1 to 255 ASCII characters without spaces: openssl "
            "rand -hex 16 makes one."
        )
    return key


def options_of(fields: Fields, *, known_only: bool = True) -> dict[str, Any]:
    """Parameters for the model among the fields: the known ones alone, or all of them."""
    options: dict[str, Any] = {}
    for name, value in fields.items():
        if value is None or value == "":
            continue
        if known_only and name not in PARAMETERS:
            continue
        if isinstance(value, str) and PARAMETERS.get(name):
            value = _json_or_text(name, value)
        options[name] = value
    return options


def _json_or_text(name: str, value: str) -> Any:
    try:
        found = parse_json(value)
    except orjson.JSONDecodeError:
        if name not in _MAY_BE_TEXT:
            raise BadRequest(f"The field {name} must be a number, or JSON.") from None
        return value
    if name == "stop" and isinstance(found, (int, float)):
        return value  # what looks like a number is a text all the same
    return found
