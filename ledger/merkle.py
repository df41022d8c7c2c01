"""Merkle trees over the log, as RFC 6962 section 2.1 has them: one a partition, a leaf a record, in order of offsets.

A tree only grows, so its root at a cut commits to every record before it, and a short path proves that one record is
among them. `Tree` keeps no more than the roots of its perfect subtrees, one hash for each bit of its size.
`log_root` binds the trees and hash chains of all partitions at a cut into one hash, which `epoch.closed` carries.

Bytes that are hashed are length-prefixed fields, as in `ledger.digest`. `shrk ledger check-proof` checks the same
without any of this code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

#: The root of a tree without a leaf.
EMPTY_ROOT = hashlib.sha256().digest()
HASH_BYTES = 32


def record_bytes(partition: int, offset: int, key: bytes, value: bytes) -> bytes:
    """What a leaf says: one record and its place, in no way like any other."""
    return b"%d:%d:%d:%b%d:%b" % (partition, offset, len(key), key, len(value), value)


def leaf_hash(data: bytes) -> bytes:
    """Of what a leaf says. A leaf's hash is never that of an inner node."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Of two subtrees."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def record_leaf(partition: int, offset: int, key: bytes, value: bytes) -> bytes:
    """The hash of a record's leaf."""
    return hashlib.sha256(b"\x00%d:%d:%d:%b%d:%b" % (partition, offset, len(key), key, len(value), value)).digest()


class Tree:
    """A tree that leaves are added to. `subtrees` are the roots of its perfect subtrees, the largest first.

    `size` and `subtrees` are all there is to keep: `Tree(size, subtrees)` goes on from them. Raises ValueError where
    they do not belong together.
    """

    __slots__ = ("size", "subtrees")

    def __init__(self, size: int = 0, subtrees: Iterable[bytes] = ()) -> None:
        self.size = size
        self.subtrees = list(subtrees)
        if len(self.subtrees) != size.bit_count() or any(len(root) != HASH_BYTES for root in self.subtrees):
            raise ValueError(f"a tree of {size} leaves has {size.bit_count()} perfect subtrees, each with a hash")

    def add(self, leaf: bytes) -> None:
        """One leaf more, by its hash."""
        subtrees = self.subtrees
        size = self.size
        while size & 1:  # two perfect subtrees of one height are one of the next
            leaf = hashlib.sha256(b"\x01" + subtrees.pop() + leaf).digest()
            size >>= 1
        subtrees.append(leaf)
        self.size += 1

    def root(self) -> bytes:
        """The Merkle tree hash of all leaves so far."""
        if not self.subtrees:
            return EMPTY_ROOT
        root = self.subtrees[-1]
        for subtree in reversed(self.subtrees[:-1]):
            root = node_hash(subtree, root)
        return root

    def dump(self) -> bytes:
        """The subtrees, to be kept beside the size."""
        return b"".join(self.subtrees)

    @classmethod
    def load(cls, size: int, data: bytes) -> Tree:
        """What `dump` gave. Raises ValueError."""
        return cls(size, [data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES)])


def root_of(leaves: Sequence[bytes]) -> bytes:
    """The root over hashes of leaves."""
    tree = Tree()
    for leaf in leaves:
        tree.add(leaf)
    return tree.root()


def checkpoint_bytes(partition: int, size: int, root: bytes, head: bytes) -> bytes:
    """What a leaf of the log's tree says: a partition, how many records it has, their tree and their hash chain."""
    return b"shiver checkpoint 1\n%d:%d:%d:%b%d:%b" % (partition, size, len(root), root, len(head), head)


def log_root(sizes: Sequence[int], roots: Sequence[bytes], heads: Sequence[bytes]) -> bytes:
    """The root over the checkpoints of all partitions, from partition 0 on. `heads` has b"" where nothing stands."""
    return root_of(
        [
            leaf_hash(checkpoint_bytes(partition, *checkpoint))
            for partition, checkpoint in enumerate(zip(sizes, roots, heads, strict=True))
        ]
    )
