"""Errata: what an operator says, signed, of one record of the ledger log that nobody can read (S18).

A record that is no event stops the projection and every reader. An erratum names its place and its SHA-256, so that it
fits that record alone, and says why it may count as a rejection that changes nothing. It counts only under a key that
the reader trusts; `ledger.errata` decides, and leaves alone whatever can be read.

The signature is Ed25519 over length-prefixed fields, never over JSON.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from schemas.event_base import FROZEN, First, Name, TimeMs

ERRATA_MAX = 10_000
_HEAD = b"shiver erratum 1\n"

Hex32 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Hex64 = Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]


class Erratum(BaseModel):
    """One record that shall count as a rejection. Hashes, keys and signatures are lower-case hexadecimal."""

    model_config = FROZEN

    version: First = 1
    partition: Annotated[int, Field(ge=0, lt=2**31)]
    offset: Annotated[int, Field(ge=0, lt=2**63)]
    record_sha256: Hex32  # ledger.digest.record_sha256: of partition, offset, key and value
    reason: Name
    operator: Name
    at_ms: TimeMs
    public_key: Hex32
    signature: Hex64 = "0" * 128

    def signed_bytes(self) -> bytes:
        """What is signed: every field but the key and the signature, each with its length before it."""
        fields = (
            str(self.partition).encode(),
            str(self.offset).encode(),
            bytes.fromhex(self.record_sha256),
            self.reason.encode(),
            self.operator.encode(),
            str(self.at_ms).encode(),
        )
        return _HEAD + b"".join(b"%d:%b" % (len(field), field) for field in fields)


_FILE: TypeAdapter[tuple[Erratum, ...]] = TypeAdapter(Annotated[tuple[Erratum, ...], Field(max_length=ERRATA_MAX)])


class ErrataError(ValueError):
    """A key or a file of errata cannot be used. Its text is one line and never has a private key in it."""


def new_key() -> str:
    """A private key: 32 random bytes, in hexadecimal."""
    from nacl.signing import SigningKey

    return SigningKey.generate().encode().hex()


def public_key_of(private_key: str) -> str:
    """The public half. Raises ErrataError."""
    from nacl.signing import SigningKey

    return SigningKey(_seed(private_key)).verify_key.encode().hex()


def sign(erratum: Erratum, private_key: str) -> Erratum:
    """`erratum` with the signature, and the public key, of `private_key`. Raises ErrataError."""
    from nacl.signing import SigningKey

    key = SigningKey(_seed(private_key))
    named = erratum.model_copy(update={"public_key": key.verify_key.encode().hex()})
    return named.model_copy(update={"signature": key.sign(named.signed_bytes()).signature.hex()})


def is_signed(erratum: Erratum) -> bool:
    """Whether the signature is that of its own public key. Says nothing of trust."""
    from nacl.exceptions import BadSignatureError
    from nacl.signing import VerifyKey

    try:
        VerifyKey(bytes.fromhex(erratum.public_key)).verify(erratum.signed_bytes(), bytes.fromhex(erratum.signature))
    except BadSignatureError:
        return False
    return True


def dump_file(errata: Iterable[Erratum]) -> bytes:
    """A file of errata: a JSON list in the order of the log, the same bytes for the same errata."""
    by_place = {(e.partition, e.offset, e.record_sha256, e.public_key, e.signature): e for e in errata}
    return _FILE.dump_json(tuple(by_place[place] for place in sorted(by_place)), indent=1) + b"\n"


def load_file(data: bytes) -> tuple[Erratum, ...]:
    """The errata of a file, as they are: signatures are not looked at. Raises ErrataError."""
    try:
        return _FILE.validate_json(data)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "it"
        raise ErrataError(f"no list of errata: {place}: {first['msg']}") from None


def trusted_keys(text: str) -> frozenset[str]:
    """The public keys that SHRK_ERRATA_KEYS names, separated by commas. Raises ErrataError."""
    keys = [key.strip() for key in text.split(",") if key.strip()]
    for key in keys:
        if len(key) != 64 or not set(key) <= set("0123456789abcdef"):
            raise ErrataError(f"SHRK_ERRATA_KEYS: {key!r} is no public key of 64 hexadecimal digits")
    return frozenset(keys)


def _seed(private_key: str) -> bytes:
    try:
        seed = bytes.fromhex(private_key.strip())
    except ValueError:
        seed = b""
    if len(seed) != 32:
        raise ErrataError("a private key is 64 hexadecimal digits")
    return seed
