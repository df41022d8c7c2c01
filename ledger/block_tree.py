"""An RFC 6962 tree that also gives the roots of its blocks: perfect subtrees of 2**17 leaves.

A proof for one record then needs the records of its own block and a hash for each other block, not the whole log.
"""

from __future__ import annotations

from ledger.merkle import HASH_BYTES, Tree

BLOCK_BITS = 17
BLOCK_LEAVES = 1 << BLOCK_BITS


class BlockTree:
    """A `Tree` in two storeys: the whole blocks, and the block that has begun. `blocks` takes each that gets whole."""

    __slots__ = ("_bits", "_block", "_upper", "blocks")

    def __init__(self, size: int = 0, data: bytes = b"", *, block_bits: int = BLOCK_BITS) -> None:
        """Goes on from `size` leaves and what `dump` gave of them. Raises ValueError."""
        self._bits = block_bits
        whole = size >> block_bits
        split = whole.bit_count() * HASH_BYTES
        self._upper = Tree.load(whole, data[:split])
        self._block = Tree.load(size - (whole << block_bits), data[split:])
        self.blocks: list[tuple[int, bytes]] = []  # number and root

    @property
    def size(self) -> int:
        """Leaves so far."""
        return (self._upper.size << self._bits) + self._block.size

    def add(self, leaf: bytes) -> None:
        """One leaf more, by its hash."""
        block = self._block
        block.add(leaf)
        if block.size >> self._bits:
            root = block.root()
            self.blocks.append((self._upper.size, root))
            self._upper.add(root)
            self._block = Tree()

    def root(self) -> bytes:
        """The Merkle tree hash of all leaves so far."""
        return self.whole().root()

    def dump(self) -> bytes:
        """The perfect subtrees, as `Tree.dump` gives them."""
        return self._upper.dump() + self._block.dump()

    def whole(self) -> Tree:
        """The same tree in one storey, as of now."""
        return Tree(self.size, [*self._upper.subtrees, *self._block.subtrees])
