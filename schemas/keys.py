"""API keys: `shvr_<tier>_<id><secret><checksum>`, all base62. The token of a session is the same, its tier is `ses`.

The id (12 characters) finds the row, the secret (27 characters, 160 bits) proves it, the checksum (6 characters of
CRC-32) lets a typo or a scanner's find be judged without a database. Only the id and the SHA-256 of the whole key are
ever stored; the key is shown once.
"""

from __future__ import annotations

import hashlib
import zlib
from typing import Literal, NamedTuple

Tier = Literal["dev", "pro", "ent"]
TIERS: tuple[Tier, ...] = ("dev", "pro", "ent")
#: What stands in a token that a browser may hold: it acts for a key and has that key's tier.
SESSION = "ses"
Kind = Tier | Literal["ses"]
KINDS: tuple[Kind, ...] = (*TIERS, SESSION)
ENTROPY_BYTES = 29  # 9 for the id, 20 for the secret

_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ID_CHARS, _SECRET_CHARS, _CHECK_CHARS = 12, 27, 6
_BODY_CHARS = _ID_CHARS + _SECRET_CHARS


class ApiKey(NamedTuple):
    """A well-formed key, or a session's token: what the database is asked with. Holding one proves nothing yet.

    `origin` is that of the page which sent a token, where a browser told it.
    """

    tier: Kind
    key_id: str
    sha256: bytes
    origin: str | None = None

    @property
    def is_session(self) -> bool:
        return self.tier == SESSION


def mint(tier: Kind, entropy: bytes) -> str:
    """A new key or token from `ENTROPY_BYTES` random bytes, which the caller draws from the system's secure source."""
    if len(entropy) != ENTROPY_BYTES:
        raise ValueError(f"a key needs {ENTROPY_BYTES} random bytes, got {len(entropy)}")
    body = _base62(entropy[:9], _ID_CHARS + 1)[-_ID_CHARS:] + _base62(entropy[9:], _SECRET_CHARS)
    stem = f"shvr_{tier}_{body}"
    return stem + _checksum(stem)


def parse(text: str) -> ApiKey | None:
    """The key's tier, id and hash, or None where it cannot be one of ours (prefix, length, alphabet, checksum)."""
    parts = text.split("_", 2)
    if len(text) > 80 or len(parts) != 3 or parts[0] != "shvr" or not text.isascii():
        return None
    tier, rest = parts[1], parts[2]
    stem, check = text[:-_CHECK_CHARS], text[-_CHECK_CHARS:]
    if tier not in KINDS or len(rest) != _BODY_CHARS + _CHECK_CHARS or not rest.isalnum() or check != _checksum(stem):
        return None
    return ApiKey(tier, rest[:_ID_CHARS], hashlib.sha256(text.encode()).digest())


def _checksum(stem: str) -> str:
    return _base62(zlib.crc32(stem.encode()).to_bytes(4, "big"), _CHECK_CHARS)


def _base62(data: bytes, width: int) -> str:
    number, digits = int.from_bytes(data, "big"), ""
    while number:
        number, digit = divmod(number, 62)
        digits = _DIGITS[digit] + digits
    return digits.rjust(width, "0")
