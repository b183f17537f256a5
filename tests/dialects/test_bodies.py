"""Bodies as curl, browsers and the seeds' clients really send them."""

from __future__ import annotations

import gzip
from urllib.parse import quote, quote_plus, unquote_to_bytes

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.datastructures import MultiDict
from werkzeug.sansio.multipart import Data, Epilogue, Field, File, MultipartDecoder
from werkzeug.test import encode_multipart

from relay.dialects import bodies, form
from relay.dialects import multipart as parser
from relay.domain import Caller
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
    content_type: str, body: bytes, route: form.Route = form.SEND_MESSAGE
) -> str:
    return route.ask(bodies.read(content_type, body), CALLER).prompt


@pytest.mark.parametrize(
    "route", [form.SEND_MESSAGE, form.ASK], ids=["send_message", "ask"]
)
@pytest.mark.parametrize(("content_type", "body", "prompt"), GOOD)
def test_a_good_body_arrives_exactly(
    content_type: str, body: bytes, prompt: str, route: form.Route
) -> None:
    assert ask_of(content_type, body, route) == prompt


@pytest.mark.parametrize("body", LOSSY)
def test_a_body_that_lost_characters_is_refused_with_a_hint(body: bytes) -> None:
    with pytest.raises(BadRequest, match="--data-urlencode"):
        ask_of(URLENCODED, body)


@pytest.mark.parametrize(
    ("content_type", "body", "error", "message"),
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
        ("application/json", b'{"a":' + b"[" * 100 + b"]" * 100 + b"}", BadRequest, "nested"),
        ("application/json", b'{"a": [' + b"1," * 800_000 + b"1]}", TooLarge, "200000"),
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
        (URLENCODED, b"x" * 1001 + b"=1", BadRequest, "cut a field short"),
        ("text/plain" + ";" * 1100, b"hello", UnsupportedMediaType, "1024 characters"),
        ("application/xml", b"<prompt/>", UnsupportedMediaType, "application/xml"),
        ("application/json", gzip.compress(b'{"prompt": "a"}', mtime=0), UnsupportedMediaType, "gzip"),
        (URLENCODED, gzip.compress(b"prompt=a", mtime=0), UnsupportedMediaType, "gzip"),
        ("multipart/form-data", b"prompt", BadRequest, "multipart"),
        ("multipart/form-data; boundary=B", b'--B\r\nContent-Disposition: form-data; name="prompt"\r\n\r\ncut',
         BadRequest, "cut short"),
        ("multipart/form-data; boundary=B", multipart(b'name="prompt"\r\n\r\n\xff'), BadRequest, "UTF-8"),
        ("multipart/form-data; boundary=B", multipart(b'name="prompt"\r\nX: ' + b"x" * 8192 + b"\r\n\r\na"),
         TooLarge, "8192 bytes"),
        ("multipart/form-data; boundary=B", multipart(*[b'name="x"; y=' + b"x" * 900 + b"\r\n\r\n"] * 300),
         TooLarge, "262144 bytes"),
        ("multipart/form-data; boundary=B", b"--B\r\nX: y\r\n\r\na\r\n--B--", BadRequest, "broken"),
        ("multipart/form-data; boundary=B", b"--B\r\n\r\na\r\n--B--", BadRequest, "broken"),
        ("multipart/form-data; boundary=B", multipart(b'name="x"\r\n\r\na\r\n--Bx'), BadRequest, "broken"),
        ("multipart/form-data; boundary=" + "B" * 201, b"", BadRequest, "broken"),
        ("multipart/form-data; boundary=B", multipart(*[b'name="x"\r\n\r\n'] * 1001), TooLarge, "1000 parts"),
    ],
)  # fmt: skip
def test_a_bad_body_is_refused_with_a_sentence(
    content_type: str, body: bytes, error: type[RelayError], message: str
) -> None:
    with pytest.raises(error, match=message):
        ask_of(content_type, body)


NAMELESS = [b"hello", b"hello there", b"hello%20there", "你好".encode(), b"a & b", b"is 1 + 1 = 2?", b'"hi"', b"[1]"]  # fmt: skip


@pytest.mark.parametrize("body", NAMELESS)
def test_a_form_that_is_a_bare_text_has_no_field_name(body: bytes) -> None:
    """As curl -d and --data-urlencode send it; as text/plain it is the prompt."""
    with pytest.raises(BadRequest, match=r"no field name.*--data-urlencode 'prompt="):
        ask_of(URLENCODED, body)
    assert ask_of("text/plain", body) == body.decode()
    # what comes after a field was cut off from it
    with pytest.raises(BadRequest, match="cut a field short"):
        ask_of(URLENCODED, b"prompt=a&" + body)


def test_a_credential_in_the_url_is_refused() -> None:
    for name in ("access_token", "key", "Token", "password"):
        with pytest.raises(BadRequest, match="Never put"):
            bodies.read_query({name: ["x"]})
    assert bodies.read_query(
        {"stream": ["true"], "prompt": ["no"], "other": ["x"]}
    ) == {"stream": "true"}


@given(st.text(min_size=1).filter(str.strip).filter(lambda text: "\0" not in text))
def test_any_text_arrives_in_every_body_format(text: str) -> None:
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
    for route in (form.SEND_MESSAGE, form.ASK):
        try:
            assert ask_of(content_type, body, route).strip()
        except RelayError as error:
            assert 400 <= error.status < 500 and len(error.message) > 20


@given(
    st.binary(max_size=200) | st.text("%4aAg+\\=\r\n 0", max_size=60).map(str.encode)
)
def test_escapes_are_those_of_urllib(raw: bytes) -> None:
    assert bodies._unescape(raw) == unquote_to_bytes(raw.replace(b"+", b" "))


@given(
    st.binary(max_size=200)
    | st.text("%4aAg+\\=\r\n 0", max_size=60).map(str.encode)
    | st.text("%4a", max_size=60).map(str.encode)
)
def test_no_slice_cuts_an_escape(raw: bytes) -> None:
    for size in (3, 4, 7):
        slices = list(bodies._slices(raw, 0, len(raw), bodies._no_pause, size))
        assert b"".join(slices) == raw
        unescaped = b"".join(map(bodies._unescape_slice, slices))
        assert unescaped == unquote_to_bytes(raw.replace(b"+", b" "))


TREES = st.recursive(
    st.text('\\",[{:ab', max_size=12) | st.integers(0, 99),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text('\\",:', max_size=4), inner, max_size=3)
    ),
    max_leaves=20,
)


def marks_of(value: object) -> int:
    """Brackets, commas and colons outside of strings, by the value itself."""
    if isinstance(value, dict):
        inner = sum(map(marks_of, value.values()))
        return 1 + len(value) + max(0, len(value) - 1) + inner
    if isinstance(value, list):
        return 1 + max(0, len(value) - 1) + sum(map(marks_of, value))
    return 0


@given(TREES)
def test_commas_within_strings_do_not_count(value: object) -> None:
    text = orjson.dumps(value)
    for size in (1, 2, 5, 1000):
        assert bodies._count_marks(text, lambda: None, size) == marks_of(value)


def by_werkzeug(body: bytes, boundary: bytes) -> list[tuple[str, bytes]]:
    """The parts of a body as the decoder sees them whose place this parser takes."""
    decoder = MultipartDecoder(boundary)
    decoder.receive_data(body)
    decoder.receive_data(None)
    parts: list[tuple[str, bytes]] = []
    while not isinstance(event := decoder.next_event(), Epilogue):
        if isinstance(event, (Field, File)):
            parts.append((event.name, b""))
        elif isinstance(event, Data):
            name, content = parts.pop()
            parts.append((name, content + event.data))
    return parts


NAMES = st.text('abc"\\;= %22', min_size=1, max_size=8)
CONTENTS = st.binary(max_size=30) | st.text("\r\n-Bx", max_size=12).map(str.encode)


@given(
    st.lists(st.tuples(NAMES, st.booleans(), CONTENTS), max_size=4),
    st.sampled_from([b"", b"\r\n", b"a preamble\r\n"]),
    st.sampled_from([b"", b"\r\n", b" \r\nan epilogue"]),
    st.sampled_from([b"", b" \t"]),
)
def test_multipart_is_read_as_werkzeug_reads_it(
    fields: list[tuple[str, bool, bytes]], before: bytes, after: bytes, padding: bytes
) -> None:
    body = before
    for name, is_file, content in fields:
        quoted = name.replace("\\", "\\\\").replace('"', '\\"').encode()
        disposition = b'Content-Disposition: form-data; name="%s"' % quoted
        file = b'; filename="a; name=\\"x\\".txt"\r\nContent-Type: text/plain'
        headers = disposition + file * is_file
        content = content.replace(b"--B", b"")
        body += b"--B%s\r\n%s\r\n\r\n%s\r\n" % (padding, headers, content)
    body += b"--B--" + after
    parts = [
        (part.name, body[part.start : part.end]) for part in parser.parts(body, "B")
    ]
    assert parts == by_werkzeug(body, b"B")


@pytest.mark.parametrize(
    "headers",
    [
        b'content-disposition:form-data;name="prompt"',
        b"Content-Disposition: form-data; name=prompt",
        b"Content-Disposition: form-data;\r\n name=prompt",
        b"Content-Disposition: form-data; name*=utf-8''prom%70t",
        b"X: y\r\nContent-Type: text/plain\r\nContent-Disposition: form-data; name=prompt",
    ],
)
@pytest.mark.parametrize("line_end", [b"\r\n", b"\n"])
def test_headers_of_a_part_are_read_in_all_their_forms(
    headers: bytes, line_end: bytes
) -> None:
    body = b"--B\r\n" + headers + b"\r\n\r\na\r\nb\r\n--B--\r\n"
    body = body.replace(b"\r\n", line_end)
    text = ask_of("multipart/form-data; boundary=B", body)
    assert text == b"a\r\nb".replace(b"\r\n", line_end).decode()


@pytest.mark.parametrize("size", [bodies._SLICE - 20, bodies._SLICE, 3 * bodies._SLICE])
def test_a_long_form_arrives_exactly(size: int) -> None:
    text = ("%41 100% + = & 你好 " * (size // 20))[:size]
    for escaped in (quote(text, safe=""), quote_plus(text)):
        assert ask_of(URLENCODED, f"prompt={escaped}".encode()) == text
    lossy = ("a b" + "x" * size + "%20").encode()
    with pytest.raises(BadRequest, match="--data-urlencode"):
        ask_of(URLENCODED, b"prompt=" + lossy)
    lone = f"prompt=100% {'%x' * size}".encode()
    assert ask_of(URLENCODED, lone) == lone.removeprefix(b"prompt=").decode()
