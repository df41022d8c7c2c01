"""Request ids are UUIDv7 (RFC 9562): time-ordered, and their time bounds how long an ended id must be remembered."""

from __future__ import annotations

import uuid


def uuid7(now_ms: int, entropy: bytes) -> str:
    """A UUIDv7 of `now_ms` (Unix milliseconds) and 10 random bytes."""
    value = (now_ms & (1 << 48) - 1) << 80 | int.from_bytes(entropy[:10], "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(uuid.UUID(int=value))


def uuid7_ms(request_id: str) -> int:
    """The Unix milliseconds in a UUIDv7 in its usual text form."""
    return int(request_id[:8] + request_id[9:13], 16)
