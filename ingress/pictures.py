"""Judges an image by its bytes: what it is, how large it is, and that a decoder will not swell on it.

The heads of four formats are read here, in plain Python, rather than by an image library: a library decodes, and its
decoder is what a hostile file aims at; all we need is the type and two numbers. A PNG is written anew from its
essential chunks, since its others may hold compressed text of any size, and its pixels are inflated once, thrown away
as they come, to see that they are as many as its head says.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from schemas.jobs import ImageType

SIDE_MAX = 8192
PIXELS_MAX = 16_777_216
#: A progressive JPEG is decoded once for each scan.
SCANS_MAX = 64
#: The side of the smallest patch that vision models cut images into, and the most tokens of models with a fixed number.
PATCH_SIDE = 14
FIXED_TOKENS_MAX = 2880
_INFLATE_BYTES = 1 << 20


class NoPicture(ValueError):
    """Not an image that is taken; the text says why, in words for the caller."""


class Picture(NamedTuple):
    media_type: ImageType
    width: int
    height: int
    data: bytes


def bound_tokens(picture: Picture) -> int:
    """No fewer tokens than a vision model makes of it."""
    patches = -(-picture.width // PATCH_SIDE) * -(-picture.height // PATCH_SIDE)
    return max(FIXED_TOKENS_MAX, patches + 2 * PATCH_SIDE)


def vet(data: bytes) -> Picture:
    """The picture, safe to hand on. Raises NoPicture. Takes up to half a second of CPU for the largest PNG."""
    try:
        picture = _read(data)
    except (struct.error, IndexError):
        raise NoPicture("the image is cut off") from None
    if not 1 <= picture.width <= SIDE_MAX or not 1 <= picture.height <= SIDE_MAX:
        raise NoPicture(f"an image has 1 to {SIDE_MAX} pixels a side")
    if picture.width * picture.height > PIXELS_MAX:
        raise NoPicture(f"an image has at most {PIXELS_MAX} pixels")
    if picture.media_type == "image/png":
        return picture._replace(data=_essential_png(data))
    if picture.media_type == "image/jpeg" and data.count(b"\xff\xda") > SCANS_MAX:
        raise NoPicture("the JPEG has too many scans")
    return picture


def _read(data: bytes) -> Picture:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        if data[12:16] != b"IHDR":
            raise NoPicture("the PNG has no head")
        return Picture("image/png", *struct.unpack(">II", data[16:24]), data)
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return Picture("image/gif", *struct.unpack("<HH", data[6:10]), data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return Picture("image/webp", *_webp_size(data), data)
    if data.startswith(b"\xff\xd8\xff"):
        return Picture("image/jpeg", *_jpeg_size(data), data)
    raise NoPicture("it is no PNG, JPEG, GIF or WebP")


def _webp_size(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8L" and data[20] == 0x2F:
        (bits,) = struct.unpack("<I", data[21:25])
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack("<HH", data[26:30])
        return width & 0x3FFF, height & 0x3FFF
    raise NoPicture("the WebP has no head")


def _jpeg_size(data: bytes) -> tuple[int, int]:
    at = 2
    while True:
        while data[at] == 0xFF and data[at + 1] == 0xFF:  # fill bytes
            at += 1
        if data[at] != 0xFF:
            raise NoPicture("the JPEG is malformed")
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return width, height
        if marker in (0xD9, 0xDA):
            raise NoPicture("the JPEG has no size")
        (length,) = struct.unpack(">H", data[at + 2 : at + 4])
        at += 2 + max(length, 2)


_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_ESSENTIAL = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})


def _essential_png(data: bytes) -> bytes:
    """The PNG without what no model sees. Raises NoPicture where its pixels are not as many as its head says."""
    width, height, depth, colours, compression, filters, interlace = struct.unpack(">IIBBBBB", data[16:29])
    if colours not in _CHANNELS or depth not in (1, 2, 4, 8, 16) or compression or filters or interlace > 1:
        raise NoPicture("the PNG's head is malformed")
    bits = depth * _CHANNELS[colours]
    rows = height if not interlace else 2 * height + 8  # at most: the seven passes of interlacing
    limit = rows * (1 + (width * bits + 7) // 8) + 8 * rows
    inflater = zlib.decompressobj()
    kept, size, at, ended = [data[:8]], 0, 8, False
    while at < len(data) and not ended:
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, end = data[at + 4 : at + 8], at + 12 + length
        if end > len(data):
            raise NoPicture("the image is cut off")
        if kind in _ESSENTIAL:
            kept.append(data[at:end])
        if kind == b"IDAT":
            size = _inflate(inflater, data[at + 8 : end - 4], size, limit)
        ended, at = kind == b"IEND", end
    if not ended or not size:
        raise NoPicture("the image is cut off")
    return b"".join(kept)


def _inflate(inflater: zlib._Decompress, packed: bytes, size: int, limit: int) -> int:
    try:
        while packed and not inflater.eof:
            size += len(inflater.decompress(packed, _INFLATE_BYTES))
            if size > limit:
                raise NoPicture("the PNG holds more than its size says")
            packed = inflater.unconsumed_tail
    except zlib.error:
        raise NoPicture("the PNG's pixels are malformed") from None
    return size
