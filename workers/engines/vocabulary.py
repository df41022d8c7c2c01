"""Bytes of tokens, and text out of them: one way for every engine, so that the same ids always read the same."""

import codecs
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Literal, Protocol

Style = Literal["byte-level", "sentencepiece"]


@cache
def _byte_of_sign() -> dict[str, int]:
    """Byte-level BPE writes each byte as one printable sign: itself where printable, else the next from U+0100."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


def token_bytes(token: str, style: Style) -> bytes:
    """The bytes that a vocabulary entry stands for.

    Args:
        token: the entry as GGUF or tokenizer.json spells it.
        style: "byte-level" (GPT-2's alphabet) or "sentencepiece" (U+2581 is a space, <0x0A> is a byte).
    """
    if style == "byte-level":
        signs = _byte_of_sign()
        if all(sign in signs for sign in token):
            return bytes(signs[sign] for sign in token)
        return token.encode()  # an added token, spelt as it reads
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace("▁", " ").encode()


class Table(Protocol):
    """Bytes by id."""

    def __getitem__(self, token_id: int, /) -> bytes: ...


class TextAssembler:
    """Text of a growing sequence of ids; withholds the bytes of a character until it is complete.

    Args:
        table: bytes by id; empty for control tokens.
        prefix_ids: ids whose text is already out. A character they left incomplete comes with the first `feed`.
    """

    def __init__(self, table: Table, prefix_ids: Iterable[int] = ()) -> None:
        self._table = table
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.feed(prefix_ids)

    def feed(self, ids: Iterable[int]) -> str:
        """The text that these ids complete."""
        return self._decoder.decode(b"".join(self._table[token_id] for token_id in ids))

    @property
    def whole(self) -> bool:
        """No byte is withheld."""
        return not self._decoder.getstate()[0]

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that never became complete, else nothing."""
        return self._decoder.decode(b"", final=True)


def spellings(data: bytes, count: int, table: Sequence[bytes], by_bytes: dict[bytes, list[int]]) -> list[list[int]]:
    """Every way (two at most: the caller only needs to know whether there is one) to write bytes with `count` ids.

    Args:
        data: the bytes to spell.
        count: how many ids to spell them with.
        table: bytes by id.
        by_bytes: ids by bytes, the inverse of `table`.
    """
    longest = max((len(entry) for entry in table), default=0) if count else 0
    found: list[list[int]] = []

    def walk(at: int, ids: list[int]) -> None:
        left = count - len(ids)
        if len(found) == 2 or len(data) - at < left:
            return
        if left == 0:
            if at == len(data):
                found.append(ids)
            return
        for end in range(at + 1, min(len(data) - left + 1, at + longest) + 1):
            for token_id in by_bytes.get(data[at:end], ()):
                walk(end, [*ids, token_id])

    walk(0, [])
    return found
