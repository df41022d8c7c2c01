"""Audit paths in the trees over the log (RFC 6962, section 2.1.1), from as few leaves as can be.

A path needs the leaves of the record's own block, those of the block that had begun at the cut, and of every other
block only its root. Where a block's root is not known, its leaves make it, one block at a time. `ledger.check_proof`
checks the paths and shares nothing with this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from ledger.block_tree import BLOCK_BITS
from ledger.merkle import Tree, root_of


class Blocks:
    """A partition's tree at a cut of `size` records, in blocks: leaves of those in `wanted` and of the last, roots of
    all others.

    `roots` are those of whole blocks that somebody has kept; none need be there. `add` takes the leaves of what `spans`
    says is still to be read.
    """

    def __init__(
        self, size: int, offsets: Iterable[int], roots: Mapping[int, bytes], block_bits: int = BLOCK_BITS
    ) -> None:
        self.size = size
        self._bits = block_bits
        self._whole = size >> block_bits
        self._wanted = {offset >> block_bits for offset in offsets}
        if self._whole << block_bits < size:
            self._wanted.add(self._whole)
        self._roots = {block: root for block, root in roots.items() if block < self._whole}
        self._leaves: dict[int, list[bytes]] = {}
        self._reading: list[bytes] = []

    def spans(self) -> list[tuple[int, int]]:
        """The offsets to read, first and next, by block and in order."""
        count = self._whole + (self._whole << self._bits < self.size)
        return [
            (block << self._bits, min(self.size, (block + 1) << self._bits))
            for block in range(count)
            if block in self._wanted or block not in self._roots
        ]

    def add(self, offset: int, leaf: bytes) -> None:
        """The leaf's hash of the record at `offset`: every one of every span, in order."""
        self._reading.append(leaf)
        block = offset >> self._bits
        if offset + 1 == min(self.size, (block + 1) << self._bits):
            leaves, self._reading = self._reading, []
            if block < self._whole:
                self._roots[block] = root_of(leaves)
            if block in self._wanted:
                self._leaves[block] = leaves

    def root(self) -> bytes:
        """The root at the cut."""
        return self._range(0, self.size)

    def path(self, offset: int) -> list[bytes]:
        """From the record at `offset`, which was among the offsets given, up to the root."""
        return audit_path(offset, self.size, self._range)

    def _range(self, first: int, following: int) -> bytes:
        """The root over a range that is a node of the tree."""
        block = first >> self._bits
        if following <= (block + 1) << self._bits:  # within one block
            if following - first == 1 << self._bits:
                return self._roots[block]
            begin = block << self._bits
            return root_of(self._leaves[block][first - begin : following - begin])
        upper, end = Tree(), following >> self._bits
        for whole in range(block, end):
            upper.add(self._roots[whole])
        rest = Tree()
        if end << self._bits < following:
            for leaf in self._leaves[end]:
                rest.add(leaf)
        return Tree(following - first, [*upper.subtrees, *rest.subtrees]).root()


def audit_path(index: int, size: int, range_root: Callable[[int, int], bytes]) -> list[bytes]:
    """The nodes beside the way from a leaf to the root, the lowest first.

    `range_root` gives the root over the leaves from one index up to, not with, another.
    """
    path = list[bytes]()
    first, following = 0, size
    while following - first > 1:
        middle = first + (1 << ((following - first - 1).bit_length() - 1))
        if index < middle:
            path.append(range_root(middle, following))
            following = middle
        else:
            path.append(range_root(first, middle))
            first = middle
    return path[::-1]
