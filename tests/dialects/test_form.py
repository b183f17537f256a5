"""Bodies as curl, browsers and the seeds' clients really send them."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, quote_plus

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.datastructures import MultiDict
from werkzeug.test import encode_multipart

from relay.dialects import form
from relay.domain import Caller, Delta, Finished, Message, Reply, Started
from relay.errors import BadRequest, RelayError, TooLarge, UnsupportedMediaType

URLENCODED = "application/x-www-form-urlencoded"
CALLER = Caller("owner", may_spend=True)
TEXT = 'line one\nline "two" & 100% a+b 你好\n'


def multipart(*fields: bytes) -> bytes:
    parts = b"".join(
        b"--B\r\nContent-Disposition: form-data; " + field + b"\r\n" for field in fields
    )
    return parts + b"--B--\r\n"


GOOD = [
    pytest.param(URLENCODED, b"prompt=hello", "hello", id="plain"),
    pytest.param(
        URLENCODED,
        b"prompt=hello world",
        "hello world",
        id="spaces-unescaped-but-whole",
    ),
    pytest.param(
        URLENCODED,
        "prompt=你好，世界".encode(),
        "你好，世界",
        id="utf-8-unescaped-but-whole",
    ),
    pytest.param(
        URLENCODED,
        b"prompt=I am 100% sure",
        "I am 100% sure",
        id="percent-unescaped-but-whole",
    ),
    pytest.param(URLENCODED, b"prompt=a+b%26c%0A", "a b&c\n", id="escaped"),
    pytest.param(
        URLENCODED,
        b"prompt=a%20b\n",
        "a b",
        id="escaped-from-a-file-with-its-last-line-end",
    ),
    pytest.param(
        URLENCODED,
        b"prompt=line%20one%0Aline%20%22two%22%20%26%20100%25%20a%2Bb%20%E4%BD%A0%E5%A5%BD%0A",
        TEXT,
        id="data-urlencode",
    ),
    pytest.param(
        f"{URLENCODED}; charset=gbk",
        b"prompt=%C4%E3%BA%C3",
        "你好",
        id="gbk-escaped-and-named",
    ),
    pytest.param(
        f"{URLENCODED}; charset=GB2312",
        b"prompt=\xc4\xe3\xba\xc3",
        "你好",
        id="gbk-raw-and-named",
    ),
    pytest.param(URLENCODED, b'{"prompt": "hi"}', "hi", id="json-under-curls-own-type"),
    pytest.param("application/json", orjson.dumps({"prompt": TEXT}), TEXT, id="json"),
    pytest.param(
        "application/json; charset=utf-8",
        b'\xef\xbb\xbf{"prompt":"hi"}',
        "hi",
        id="json-with-bom",
    ),
    pytest.param(
        "application/merge-patch+json", b'{"prompt":"hi"}', "hi", id="json-by-suffix"
    ),
    pytest.param("text/plain", TEXT.encode(), TEXT, id="text"),
    pytest.param(
        "text/plain; charset=gb18030",
        "你好".encode("gb18030"),
        "你好",
        id="text-in-gb18030",
    ),
    pytest.param(
        "text/plain",
        b'{"a": "json text"}',
        '{"a": "json text"}',
        id="text-that-looks-like-json",
    ),
    pytest.param(
        "text/plain;charset=UTF-8", b'{"msg": "hi"}', "hi", id="json-from-fetch"
    ),
    pytest.param("text/json", b'{"msg": "hi"}', "hi", id="json-under-another-type"),
    pytest.param("application/octet-stream", b"hello", "hello", id="octets"),
    pytest.param("", b"hello", "hello", id="no-type"),
    pytest.param("", b'{"msg": "hi"}', "hi", id="no-type-json"),
    pytest.param(
        "multipart/form-data; boundary=B",
        multipart(b'name="prompt"\r\n\r\n' + TEXT.encode()),
        TEXT,
        id="multipart",
    ),
    pytest.param(
        "multipart/form-data; boundary=B",
        multipart(
            b'name="prompt"; filename="f.txt"\r\nContent-Type: text/plain\r\n\r\nfrom a file'
        ),
        "from a file",
        id="multipart-file",
    ),
]
LOSSY = [
    pytest.param(b'prompt=100% & a+b "q" \xe4\xbd\xa0\xe5\xa5\xbd', id="bare-d"),
    pytest.param(b"prompt=fish&chips", id="bare-ampersand"),
    pytest.param(b"prompt=what is 1+1", id="bare-plus"),
    pytest.param(b"prompt=what does %20 mean", id="bare-escape"),
    pytest.param(b'line one\nline "two" & 100% a+b', id="data-binary-file"),
    pytest.param(b"prompt=a & b=c", id="bare-ampersand-with-equals"),
    pytest.param(b"prompt=one&prompt=two", id="twice"),
    pytest.param(b"two words=x", id="name-with-space"),
]


def ask_of(
    content_type: str, body: bytes, shape: form.Shape = form.SEND_MESSAGE
) -> str:
    return shape.ask(form.read(content_type, body), CALLER).prompt


@pytest.mark.parametrize(
    "shape", [form.SEND_MESSAGE, form.ASK], ids=["send_message", "ask"]
)
@pytest.mark.parametrize(("content_type", "body", "prompt"), GOOD)
def test_a_good_body_arrives_exactly(
    content_type: str, body: bytes, prompt: str, shape: form.Shape
) -> None:
    assert ask_of(content_type, body, shape) == prompt


@pytest.mark.parametrize("body", LOSSY)
def test_a_body_that_lost_something_is_refused_with_what_to_do(body: bytes) -> None:
    with pytest.raises(BadRequest, match="--data-urlencode"):
        ask_of(URLENCODED, body)


@pytest.mark.parametrize(
    ("content_type", "body", "error", "says"),
    [
        (URLENCODED, b"", BadRequest, "missing or empty"),
        (URLENCODED, b"prompt=", BadRequest, "missing or empty"),
        (URLENCODED, b"prompt=%20%0A", BadRequest, "missing or empty"),
        (URLENCODED, b"other=x", BadRequest, "missing or empty"),
        (URLENCODED, b"x=&" * 1000, TooLarge, "1000 fields"),
        (URLENCODED, b"prompt=%C4%E3", BadRequest, "charset=gb18030"),
        (URLENCODED, b"prompt=%00", BadRequest, "NUL"),
        (f"{URLENCODED}; charset=klingon", b"prompt=a", UnsupportedMediaType, "klingon"),
        (f"{URLENCODED}; charset=unicode_escape", b"prompt=a", UnsupportedMediaType, "unicode_escape"),
        ("application/json", b"", BadRequest, "missing or empty"),
        ("application/json", b"{", BadRequest, "not JSON"),
        ("application/json", b'{"prompt": "\xff"}', BadRequest, "not JSON"),
        ("application/json", b'{"prompt": "\\ud800"}', BadRequest, "not JSON"),
        ("application/json", b'{"prompt": NaN}', BadRequest, "not JSON"),
        ("application/json", b"[" * 100_000, BadRequest, "not JSON"),
        ("application/json", b"[1]", BadRequest, "JSON object"),
        ("application/json", b'"hi"', BadRequest, "JSON object"),
        ("application/json", b'{"prompt": 5}', BadRequest, "prompt must be text"),
        ("application/json", b'{"prompt": ["a"]}', BadRequest, "prompt must be text"),
        ("application/json", b'{"prompt": "a", "msg": "b"}', BadRequest, "differ"),
        ("application/json", b'{"prompt": "a", "timeout": "soon"}', BadRequest, "timeout"),
        ("application/json", b'{"prompt": "a", "timeout": -1}', BadRequest, "timeout"),
        ("application/json", b'{"prompt": "a", "timeout": true}', BadRequest, "timeout"),
        ("application/json", b'{"prompt": "a", "timeout": "inf"}', BadRequest, "timeout"),
        ("application/json", b'{"prompt": "a", "conversation_id": "../x"}', BadRequest, "no id"),
        ("application/json", b'{"prompt": "a", "conversation_id": {}}', BadRequest, "must be text"),
        ("application/xml", b"<prompt/>", UnsupportedMediaType, "application/xml"),
        ("multipart/form-data", b"prompt", BadRequest, "multipart"),
        ("multipart/form-data; boundary=B", b'--B\r\nContent-Disposition: form-data; name="prompt"\r\n\r\ncut',
         BadRequest, "cut short"),
        ("multipart/form-data; boundary=B", multipart(b'name="prompt"\r\n\r\n\xff'), BadRequest, "UTF-8"),
        ("multipart/form-data; boundary=B", multipart(*[b'name="x"\r\n\r\n'] * 1001), TooLarge, "1000 parts"),
    ],
)  # fmt: skip
def test_a_bad_body_is_refused_with_a_sentence(
    content_type: str, body: bytes, error: type[RelayError], says: str
) -> None:
    with pytest.raises(error, match=says):
        ask_of(content_type, body)


def test_all_fields_of_both_routes_are_understood() -> None:
    fields: dict[str, Any] = {
        "prompt": "hello", "prompt_prefix": "Say it in Chinese.", "prompt_suffix": " Now.", "timeout": "1500",
        "conversation_id": "WEB:6ab9dd70-d4a8-83ea", "parent_message_id": "p.1", "model": "m", "system": "s",
        "access_token": "t", "reverse_proxy": "https://proxy.example/api", "proxy": "", "unknown": [1],
    }  # fmt: skip
    ask = form.SEND_MESSAGE.ask(fields, CALLER)
    assert ask.prompt == "Say it in Chinese.\nhello Now."
    assert (ask.timeout, ask.model, ask.before) == (1.5, "m", (Message("system", "s"),))
    assert (ask.conversation_id, ask.parent_id) == ("WEB:6ab9dd70-d4a8-83ea", "p.1")
    assert ask.reverse_proxy == "https://proxy.example/api"


@pytest.mark.parametrize("empty", ["", None])
def test_an_empty_field_is_an_absent_one(empty: str | None) -> None:
    names = (
        "conversation_id",
        "parent_id",
        "timeout",
        "model",
        "system",
        "stream",
        "prompt_prefix",
        "reverse_proxy",
    )
    fields: dict[str, Any] = {"msg": "hello", **dict.fromkeys(names, empty)}
    ask = form.ASK.ask(fields, CALLER)
    assert (ask.conversation_id, ask.parent_id, ask.timeout, ask.model) == (
        None,
        None,
        None,
        None,
    )
    assert not form.flag_of(fields, "stream")


@pytest.mark.parametrize(
    ("value", "flag"),
    [
        ("true", True),
        (True, True),
        ("1", True),
        (1, True),
        ("False", False),
        (0, False),
        ("no", False),
    ],
)
def test_a_flag(value: object, flag: bool) -> None:
    assert form.flag_of({"stream": value}, "stream") is flag


@pytest.mark.parametrize("value", ["perhaps", 2, [], {}, 1.5])
def test_what_is_no_flag(value: object) -> None:
    with pytest.raises(BadRequest, match="true or false"):
        form.flag_of({"stream": value}, "stream")


def test_a_credential_in_the_url_is_refused() -> None:
    for name in ("access_token", "key", "Token", "password"):
        with pytest.raises(BadRequest, match="Never put"):
            form.read_query({name: ["x"]})
    assert form.read_query({"stream": ["true"], "prompt": ["no"], "other": ["x"]}) == {
        "stream": "true"
    }


@given(st.text(min_size=1).filter(str.strip).filter(lambda text: "\0" not in text))
def test_any_text_arrives_by_every_way(text: str) -> None:
    assert ask_of(URLENCODED, f"prompt={quote(text, safe='')}".encode()) == text
    assert ask_of(URLENCODED, f"x=1&prompt={quote_plus(text)}&stream=".encode()) == text
    assert ask_of("application/json", orjson.dumps({"prompt": text})) == text
    assert ask_of("text/plain", text.encode()) == text
    boundary, body = encode_multipart(
        MultiDict({"prompt": text}), boundary="a-boundary-of-its-own"
    )
    assert ask_of(f"multipart/form-data; boundary={boundary}", body) == text


@given(
    st.sampled_from(
        [
            "",
            URLENCODED,
            "application/json",
            "text/plain",
            "multipart/form-data; boundary=B",
        ]
    ),
    st.binary(max_size=200)
    | st.text('prompt=&%+{}":,[]-B\r\n 0a', max_size=80).map(str.encode),
)
def test_no_body_breaks_the_parser(content_type: str, body: bytes) -> None:
    for shape in (form.SEND_MESSAGE, form.ASK):
        try:
            assert ask_of(content_type, body, shape).strip()
        except RelayError as error:
            assert 400 <= error.status < 500 and len(error.message) > 20


REPLY = Reply("Hello, 你", "c1", "a1", "m", "stop")


def test_answers_have_exactly_the_documented_keys() -> None:
    assert form.SEND_MESSAGE.answer(REPLY) == {
        "text": "Hello, 你",
        "conversation_id": "c1",
        "parent_message_id": "a1",
    }
    told = form.ASK.answer(REPLY)
    assert told["code"] == 0
    assert {
        "message": "Hello, 你",
        "parent_id": "a1",
        "conversation_id": "c1",
    }.items() <= told["data"].items()


PRINTED = [
    pytest.param(
        form.Events(form.SEND_MESSAGE), b'data: {"text":"He\\nl"}\n\n', id="events"
    ),
    pytest.param(form.Raw(), b"He\nl", id="raw"),
]


@pytest.mark.parametrize(("printer", "wire"), PRINTED)
def test_a_batch_is_printed_as_one_piece(
    printer: form.Events | form.Raw, wire: bytes
) -> None:
    assert printer.print([Started("m"), Delta("He\n"), Delta(""), Delta("l")]) == wire
    assert printer.print([Started("m")]) == printer.print([Finished()]) == b""


def test_the_end_of_a_stream() -> None:
    events = form.Events(form.SEND_MESSAGE)
    done = b'event: done\ndata: {"text":"Hello, \xe4\xbd\xa0","conversation_id":"c1","parent_message_id":"a1"}\n\n'
    assert events.end(REPLY) == done
    assert (
        events.fail(BadRequest("No.")) == b'event: error\ndata: {"message":"No."}\n\n'
    )
    assert (form.Raw().end(REPLY), form.Raw().fail(BadRequest("No."))) == (b"", None)
