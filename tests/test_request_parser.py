"""Heads and chunks as they arrive: what is read of them, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay import request_parser
from relay.request_parser import BrokenRequest, ChunkDecoder, parse_head, take_head

HOST = b"Host: localhost\r\n"


def head(*fields: bytes, line: bytes = b"POST /ask HTTP/1.1") -> bytes:
    return b"\r\n".join([line, *fields, b"", b""])


def test_what_a_head_says() -> None:
    request = parse_head(
        head(
            b"Host: localhost",
            b"X-One:  a b \t",
            b"x-one: \xe4",
            b"Empty:",
            b"Content-Length: 5 ",
            line=b"POST /ask?a=%20b HTTP/1.1",
        )
    )
    assert (request.method, request.target) == ("POST", b"/ask?a=%20b")
    assert (request.version, request.length, request.keeps_alive) == ("1.1", 5, True)
    assert request.fields == [
        (b"host", b"localhost"),
        (b"x-one", b"a b"),
        (b"x-one", b"\xe4"),
        (b"empty", b""),
        (b"content-length", b"5"),
    ]
    assert "localhost" not in repr(request), "what was sent may be secret"


@pytest.mark.parametrize(
    ("version", "fields", "keeps_alive"),
    [
        (b"1.1", [], True),
        (b"1.1", [b"Connection: Close"], False),
        (b"1.1", [b"Connection: upgrade", b"Connection: TE, close"], False),
        (b"1.0", [], False),
        (b"1.0", [b"Connection: Keep-Alive"], True),
        (b"1.0", [b"Connection: keep-alive, close"], False),
    ],
)
def test_whether_another_request_may_follow(
    version: bytes, fields: list[bytes], keeps_alive: bool
) -> None:
    request = parse_head(head(*fields, line=b"GET / HTTP/" + version))
    assert request.keeps_alive is keeps_alive


@pytest.mark.parametrize(
    "fields",
    [
        [b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c"],
        [b"Connection: upgrade"],
        [b"Connection: upgrade", b"Upgrade: websocket"],
    ],
)
def test_a_request_that_wants_an_upgrade_is_one_with_a_body(
    fields: list[bytes],
) -> None:
    request = parse_head(head(*fields, b"Content-Length: 3"))
    assert request.length == 3 and request.keeps_alive
    assert (b"connection", fields[0].partition(b": ")[2]) in request.fields


def test_letters_that_no_url_has_are_quoted_as_a_browser_would() -> None:
    line = "GET /a?q=日本&b=%C3%A4 HTTP/1.1".encode()
    assert parse_head(head(line=line)).target == b"/a?q=%E6%97%A5%E6%9C%AC&b=%C3%A4"


REFUSED = {
    "no-version": head(line=b"GET /"),
    "version-2": head(line=b"GET / HTTP/2.0"),
    "version-0.9": head(line=b"GET / HTTP/0.9"),
    "unknown-method": head(line=b"FETCH / HTTP/1.1"),
    "connect": head(line=b"CONNECT localhost:1 HTTP/1.1"),
    "absolute": head(line=b"GET http://localhost/ HTTP/1.1"),
    "asterisk": head(line=b"OPTIONS * HTTP/1.1"),
    "space-in-target": head(line=b"GET /a b HTTP/1.1"),
    "nul-in-target": head(line=b"GET /\0 HTTP/1.1"),
    "bare-lf": b"GET / HTTP/1.1\r\nX: y\nTransfer-Encoding: chunked\r\n\r\n",
    "bare-cr": head(b"X: y\rTransfer-Encoding: chunked"),
    "folded": head(b"X: y", b" z"),
    "space-before-colon": head(b"Content-Length : 5"),
    "no-colon": head(b"no field at all"),
    "no-name": head(b": x"),
    "control": head(b"X: \x01"),
    "two-hosts": head(b"Host: a", b"Host: a"),
    "two-lengths": head(b"Content-Length: 5", b"Content-Length: 5"),
    "listed-lengths": head(b"Content-Length: 5, 5"),
    "signed-length": head(b"Content-Length: +5"),
    "huge-length": head(b"Content-Length: 99999999999999999999999"),
    "length-and-chunks": head(b"Content-Length: 5", b"Transfer-Encoding: chunked"),
    "chunks-and-length": head(b"Transfer-Encoding: chunked", b"Content-Length: 5"),
    "two-encodings": head(*[b"Transfer-Encoding: chunked"] * 2),
    "gzip-chunked": head(b"Transfer-Encoding: gzip, chunked"),
    "xchunked": head(b"Transfer-Encoding: xchunked"),
    "chunked-1.0": head(b"Transfer-Encoding: chunked", line=b"POST / HTTP/1.0"),
    **{
        f"{name}-in-a-letters-line": head(line=b"GET /\xc3\xa9%cx HTTP/1.1" % sign)
        for name, sign in (("lf", b"\n"), ("cr", b"\r"), ("nul", b"\0"), ("tab", b"\t"))
    },
    "many-fields": head(*[b"X: y"] * (request_parser.MOST_FIELDS + 1)),
}


@pytest.mark.parametrize("sent", REFUSED.values(), ids=REFUSED)
def test_what_two_servers_could_read_differently_is_refused(sent: bytes) -> None:
    with pytest.raises(BrokenRequest, match=r"^[A-Z][ -~]+\.$"):
        parse_head(sent)


def test_names_are_remembered_so_they_are_short() -> None:
    longest = b"x" * request_parser.LONGEST_NAME
    assert parse_head(head(longest + b": a")).fields == [(longest, b"a")]
    with pytest.raises(BrokenRequest, match="name is too long"):
        parse_head(head(longest + b"x: a"))


def test_a_head_is_taken_once_it_is_whole_and_nothing_after_it() -> None:
    sent = head(b"Host: localhost")
    arrived = bytearray(b"\r\n\r\n")
    for byte in sent[:-1]:
        arrived.append(byte)
        assert take_head(arrived) is None
    arrived += sent[-1:] + b"the next"
    assert take_head(arrived) == sent
    assert arrived == b"the next"


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00",
        b"GET / HTTP/1.1\n",
        b"\n",
        b"GET /" + b"x" * request_parser.LARGEST_HEAD,
        head(*[b"X: " + b"y" * 8000] * 9),
    ],
    ids=["tls", "bare-lf", "lf", "long-line", "large"],
)
def test_what_will_be_no_head_is_not_waited_for(sent: bytes) -> None:
    with pytest.raises(BrokenRequest, match=r"^It"):
        take_head(bytearray(sent))


def test_tls_is_told_from_other_nonsense() -> None:
    for sent, reason in ((b"\x16\x03\x01\x02\0", "It is TLS"), (b"\x16", "no HTTP")):
        with pytest.raises(BrokenRequest, match=reason):
            take_head(bytearray(sent))


def decode(decoder: ChunkDecoder, pieces: list[bytes]) -> tuple[bytes, bytes]:
    """The body, and what is left after it."""
    arrived = bytearray()
    body = b""
    for piece in pieces:
        arrived += piece
        if not decoder.is_over:
            body += decoder.take(arrived)
    return body, bytes(arrived)


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.integers(1, 30))
def test_a_body_is_the_same_however_its_chunks_arrive(
    chunks: list[bytes], size: int
) -> None:
    sent = b"".join(b"%X;a=b\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    sent += b"0\r\nTrailer: x\r\n\r\nthe next"
    pieces = [sent[at : at + size] for at in range(0, len(sent), size)]
    decoder = ChunkDecoder()
    assert decode(decoder, pieces) == (b"".join(chunks), b"the next")
    assert decoder.is_over


BROKEN_CHUNKS = {
    "no-number": b"ZZ\r\nabc\r\n",
    "sign": b"+3\r\nabc\r\n",
    "prefix": b"0x3\r\nabc\r\n",
    "space": b"3 \r\nabc\r\n",
    "bare-lf": b"3\nabc\n",
    "too-long": b"3\r\nabcd\r\n",
    "huge": b"100000000000000000\r\nabc",
    "control-in-extension": b"3;\x01\r\nabc\r\n",
    "endless-extension": b"3;" + b"a" * 20_000,
    "no-trailer": b"0\r\nno trailer at all\r\n\r\n",
    "bare-lf-in-trailer": b"0\r\nX: y\n\nGET / HTTP/1.1\r\n\r\n",
    "endless-trailer": b"0\r\n" + b"X: y\r\n" * 20_000,
}


@pytest.mark.parametrize("sent", BROKEN_CHUNKS.values(), ids=BROKEN_CHUNKS)
@pytest.mark.parametrize("size", [100, 1_000_000])
def test_chunks_that_are_none_are_refused(sent: bytes, size: int) -> None:
    pieces = [sent[at : at + size] for at in range(0, len(sent), size)]
    with pytest.raises(BrokenRequest):
        decode(ChunkDecoder(), pieces)
