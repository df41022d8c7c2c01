"""Request ids are UUIDv7 (RFC 9562): time-ordered, and their time bounds how long an ended id must be remembered.

A provider is known to callers by a UUID, its hoster id.
"""

from __future__ import annotations

import uuid

_PROVIDERS = uuid.UUID("5b3c6f2e-8f0e-4b57-9a1d-0d6f6a5c7e21")


def uuid7(now_ms: int, entropy: bytes) -> str:
    """A UUIDv7 of `now_ms` (Unix milliseconds) and 10 random bytes."""
    value = (now_ms & (1 << 48) - 1) << 80 | int.from_bytes(entropy[:10], "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(uuid.UUID(int=value))


def uuid7_ms(request_id: str) -> int:
    """The Unix milliseconds in a UUIDv7 in its usual text form."""
    return int(request_id[:8] + request_id[9:13], 16)


def hoster_id(provider_id: str) -> str:
    """The provider's id where that is a UUID, in its usual form; else the one that is always made of its name."""
    try:
        return str(uuid.UUID(provider_id))
    except ValueError:
        return str(uuid.uuid5(_PROVIDERS, provider_id))
