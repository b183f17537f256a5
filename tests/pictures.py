"""Files that tests send: small ones that are what they seem, and some that are not."""

from __future__ import annotations

import base64
import struct
import zlib

PDF = (
    b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\ntrailer\n<<>>\n%%EOF\n"
    + bytes(range(256))
)
ZIP = b"PK\x05\x06" + bytes(18)


def png(width: int = 3, height: int = 2, filling: int = 0) -> bytes:
    """A picture, with so many bytes that mean nothing in it."""
    measures = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0" * (width + 1) * min(height, 64))
    chunks = [
        (b"IHDR", measures),
        (b"teSt", bytes(filling)),
        (b"IDAT", pixels),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data))
        + kind
        + data
        + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def data_url(content: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def image_part(content: bytes, media_type: str = "image/png") -> dict[str, object]:
    url = data_url(content, media_type)
    return {"type": "image_url", "image_url": {"url": url}}


def file_part(content: bytes, name: str = "notes.pdf") -> dict[str, object]:
    data = data_url(content, "application/pdf")
    return {"type": "file", "file": {"filename": name, "file_data": data}}
