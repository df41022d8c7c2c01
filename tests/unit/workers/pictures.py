"""Small pictures, for tests: plain colours as PNG files, written by hand."""

from __future__ import annotations

import struct
import zlib

COLOURS = {"red": (220, 40, 40), "green": (40, 160, 60), "blue": (40, 80, 210)}


def png(colour: str, size: int = 64) -> bytes:
    """A square of one colour."""
    rows = b"".join(b"\0" + bytes(COLOURS[colour]) * size for _ in range(size))
    head = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
