"""Files by their content: types, measures, and what is refused before anything is sent."""

from __future__ import annotations

import base64
import time
import tracemalloc
import zlib

import pytest

from relay import attachments
from relay.domain import Message
from relay.errors import BadRequest, TooLarge
from tests.pictures import PDF, ZIP, data_url, file_part, image_part, png

JPEG = (
    b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
    b"\xff\xc0\x00\x0b\x08\x00\x05\x00\x07\x01\x01\x11\x00\xff\xd9"
)
GIF = b"GIF89a\x09\x00\x08\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff;"


@pytest.mark.parametrize(
    ("content", "media_type", "measures"),
    [
        (png(640, 480), "image/png", (640, 480)),
        (JPEG, "image/jpeg", (7, 5)),
        (GIF, "image/gif", (9, 8)),
        (PDF, "application/pdf", (0, 0)),
        (ZIP, "application/zip", (0, 0)),
        ("plain — 你好\n".encode(), "text/plain", (0, 0)),
        (b'{"a": 1}', "text/plain", (0, 0)),
        (bytes(range(256)), "application/octet-stream", (0, 0)),
        (b"text with \x00 in it", "application/octet-stream", (0, 0)),
        (b"a" * 10_000 + b"\xff", "application/octet-stream", (0, 0)),
    ],
)
def test_a_content_says_what_it_is_whatever_its_name_says(
    content: bytes, media_type: str, measures: tuple[int, int]
) -> None:
    by_bytes = attachments.from_bytes("a.exe", memoryview(content), "It")
    by_url = attachments.from_url("a.exe", data_url(content, "video/mp4"), "It")
    for file in (by_bytes, by_url):
        assert (file.media_type, file.size) == (media_type, len(content))
        assert (file.width, file.height) == measures
        assert b"".join(file.pieces()) == content


@pytest.mark.parametrize("size", [1, 2, 3, 48 * 1024 - 1, 48 * 1024, 48 * 1024 + 1])
def test_pieces_join_to_the_content_with_line_ends_and_without_padding_too(
    size: int,
) -> None:
    content = bytes(at % 251 + 1 for at in range(size))
    lines = base64.encodebytes(content).decode()
    for text in (lines, lines.replace("\n", ""), lines.rstrip("=\n")):
        file = attachments.from_url("a", text, "It")
        assert b"".join(file.pieces()) == content and file.size == size


@pytest.mark.parametrize(
    "url",
    [
        "data:image/png;base64,",
        "data:image/png;base64,AAAA*AAA",
        "data:image/png;base64,AAAAA",
        "data:image/png;base64,AA==AAAA",
        "data:image/png;base64,AAAA=",
        "data:image/png;base64,AAAé",
        "data:image/png,AAAA",
        "https://example.org/a.png",
        "file:///etc/passwd",
    ],
)
def test_what_is_no_base64_is_refused(url: str) -> None:
    with pytest.raises(BadRequest, match="^It "):
        attachments.from_url("a", url, "It")


def test_a_content_type_that_lies_is_recognised() -> None:
    for content, name in ((PDF, "application/pdf"), (b"<html>", "text/plain")):
        with pytest.raises(BadRequest, match=f"no image by its content .{name}"):
            attachments.from_part(image_part(content), "It")
        with pytest.raises(BadRequest, match="no image"):
            attachments.from_bytes("a.png", content, "It", is_image=True)
    assert attachments.from_part(file_part(png()), "It").is_image
    document = attachments.from_part(image_part(PDF, "application/pdf"), "It")
    assert document.part["type"] == "file", "as clients of chat2api send documents"


def test_a_decompression_bomb_costs_nothing() -> None:
    unpacked = zlib.compress(bytes(10_000_000), 9)
    bomb = png(30_000, 30_000).replace(b"IDAT", b"IDAT" + unpacked)
    tracemalloc.start()
    with pytest.raises(TooLarge, match="30000 x 30000 pixels"):
        attachments.from_part(image_part(bomb), "It")
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    allowed = attachments.from_bytes("a", png(9_999, 10_000), "It")
    assert allowed.width == 9_999


def test_a_header_without_end_is_not_read_for_long() -> None:
    endless = b"\xff\xd8" + b"\xff\xe0\x00\x02" * 3_000_000
    url = data_url(endless)
    started = time.process_time()
    with pytest.raises(BadRequest, match="header is broken"):
        attachments.from_url("a.jpg", url, "It")
    assert time.process_time() - started < 1


def test_a_large_file_is_refused_with_a_sentence() -> None:
    content = png(filling=20_000_000)
    for make in (
        lambda: attachments.from_bytes("a", content, "It"),
        lambda: attachments.from_part(image_part(content), "It"),
    ):
        with pytest.raises(TooLarge, match="larger than a file may be .16 MB"):
            make()


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("../../etc/pass wd.txt", "pass wd.txt"),
        ("C:\\a\\b.pdf", "b.pdf"),
        ('a"\r\nX: y.pdf', "a___X_ y.pdf"),
        ("图片.png", "图片.png"),
        ("..", "image.png"),
        ("", "image.png"),
        ("a" * 500 + ".png", "a" * 116 + ".png"),
    ],
)
def test_names_hold_nothing_that_could_be_mistaken(name: str, kept: str) -> None:
    assert attachments.from_bytes(name, png(), "It").name == kept


def test_a_text_is_fenced_by_what_does_not_stand_in_it() -> None:
    text = attachments.from_bytes("a.md", b"\xef\xbb\xbfone\n````\ntwo\n", "It")
    assert text.fenced() == "a.md:\n`````\none\n````\ntwo\n`````"
    asked = attachments.attached("hello", [text])
    assert asked == Message("user", f"hello\n\n{text.fenced()}")


def test_names_of_images_are_for_us_alone() -> None:
    image = attachments.from_bytes("x.png", png(), "It")
    [payload] = attachments.attached("hello", [image]).payloads
    assert payload["content"][1]["filename"] == "x.png"
    sent = attachments.without_names(payload)
    assert sent["content"][1] == image_part(png())
    assert sent["content"][0] == payload["content"][0]
