"""The columns of some records in a row of one partition (ledger/columns.py), ready to be computed with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pyarrow  # pyright: ignore[reportMissingTypeStubs]
import pyarrow.compute  # pyright: ignore[reportMissingTypeStubs]

_arrow: Any = pyarrow  # ships no types
_do: Any = pyarrow.compute

ACCEPT, USAGE, FAILED, CREDIT, ASSERT = (
    "request.accepted",
    "usage.recorded",
    "request.failed",
    "wallet.credited",
    "balance.asserted",
)


def ints(column: Any, at: Any) -> list[int]:
    """The numbers in rows `at`, none of which is null."""
    return cast("list[int]", column.take(at).to_pylist())


def tuples(at: Any, *columns: Any) -> Iterator[tuple[int, ...]]:
    """Beside one another, the numbers of these columns in rows `at`, none of which is null."""
    return zip(*(ints(column, at) for column in columns), strict=True)


class Chunk:
    """The columns of a chunk, with words as numbers."""

    def __init__(self, columns: Any) -> None:
        self._columns = columns
        self._words: dict[str, list[str]] = {}

    def __getitem__(self, name: str) -> Any:
        column = self._columns.column(name)
        return column.indices if _arrow.types.is_dictionary(column.type) else column

    def words(self, name: str) -> list[str]:
        found = self._words.get(name)
        if found is None:
            found = cast("list[str]", self._columns.column(name).dictionary.to_pylist())
            self._words[name] = found
        return found

    def code(self, name: str, word: str) -> int:
        """The number of a word; one that no row has where the chunk has no such word."""
        words = self.words(name)
        return words.index(word) if word in words else -1

    def is_word(self, name: str, word: str) -> Any:
        return _do.equal(self[name], _arrow.scalar(self.code(name, word), _arrow.int32()))

    def mapped(self, name: str, numbers: list[int], at: Any) -> Any:
        """For the words in rows `at`, what `numbers` has for each."""
        table = _arrow.array(numbers or [0], _arrow.int64())
        return table.take(self[name].take(at))


def marked(count: int, *rows: Any) -> Any:
    """True in these rows of `count`, each of which is given once."""
    at = _arrow.concat_arrays([some.cast(_arrow.int64()) for some in rows])
    yes = _arrow.repeat(_arrow.scalar(True), len(at))
    return _do.fill_null(_do.scatter(yes, at, max_index=count - 1), False)
