"""The tree of an epoch's payouts, hash for hash that of OpenZeppelin's StandardMerkleTree.

A leaf says what a provider is entitled to in all, up to an epoch, in one token on one chain. It is the ABI encoding of

    uint256 chain id, address contract, address token, bytes32 provider, address recipient, uint256 amount

hashed twice with keccak256, so that no leaf is ever an inner node. The leaves stand in the order of their hashes; an
inner node hashes its two children, the smaller first, so a proof needs no directions. The provider's id becomes
bytes32 as the keccak256 of its UTF-8 bytes: it stays the same when the recipient changes (C10). The amount counts the
token's smallest units. The root over no leaf is 32 zero bytes, which proves nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

EMPTY_ROOT = bytes(32)
NANO_DECIMALS = 9
_WORD = 32


class Leaf(NamedTuple):
    """What one provider may have been paid in one token, in all, by the end of an epoch."""

    chain_id: int
    contract: str
    token: str
    provider: str
    recipient: str
    amount: int  # in the token's smallest units

    def encoded(self) -> bytes:
        """Its ABI encoding."""
        return b"".join(
            (
                uint256(self.chain_id),
                address(self.contract),
                address(self.token),
                provider_bytes32(self.provider),
                address(self.recipient),
                uint256(self.amount),
            )
        )


def units_of(amount_nano: int, decimals: int) -> int:
    """An amount in a token's smallest units. What is below one of them is left out, and stays payable later."""
    if decimals >= NANO_DECIMALS:
        return amount_nano * 10 ** (decimals - NANO_DECIMALS)
    return amount_nano // 10 ** (NANO_DECIMALS - decimals)


def keccak256(data: bytes) -> bytes:
    """Ethereum's hash, which is not SHA3-256."""
    from eth_hash.auto import keccak  # when called: it takes 40 ms to import

    return keccak(data)


def uint256(number: int) -> bytes:
    """ABI. Raises OverflowError for what is no uint256."""
    return number.to_bytes(_WORD, "big")


def address(text: str) -> bytes:
    """ABI, of 0x and 40 hexadecimal digits. Raises ValueError for anything else."""
    data = bytes.fromhex(text.removeprefix("0x"))
    if len(data) != 20:
        raise ValueError(f"not an address: {text!r}")
    return bytes(_WORD - 20) + data


def provider_bytes32(provider: str) -> bytes:
    """A provider's id as the contract knows it."""
    return keccak256(provider.encode())


def leaf_hash(encoded: bytes) -> bytes:
    """Of a leaf's ABI encoding."""
    return keccak256(keccak256(encoded))


class StandardTree:
    """The tree over leaves, given by their ABI encodings. `root` is EMPTY_ROOT where there is none."""

    def __init__(self, encoded: Sequence[bytes]) -> None:
        hashes = [leaf_hash(data) for data in encoded]
        order = sorted(range(len(hashes)), key=lambda index: hashes[index])
        size = max(2 * len(hashes) - 1, 0)
        # As an array: the root first, the children of i at 2i + 1 and 2i + 2, the leaves last and from behind.
        self._nodes = [b""] * size
        self._place_of = [0] * len(hashes)
        for rank, index in enumerate(order):
            self._place_of[index] = size - 1 - rank
            self._nodes[size - 1 - rank] = hashes[index]
        for at in range(len(hashes) - 2, -1, -1):
            self._nodes[at] = _pair(self._nodes[2 * at + 1], self._nodes[2 * at + 2])

    @property
    def root(self) -> bytes:
        """32 bytes."""
        return self._nodes[0] if self._nodes else EMPTY_ROOT

    def proof(self, index: int) -> list[bytes]:
        """The way from the leaf that was given as the `index`-th to the root: `proves` takes it."""
        at = self._place_of[index]
        path = list[bytes]()
        while at:
            path.append(self._nodes[at + 1 if at % 2 else at - 1])
            at = (at - 1) // 2
        return path


def proves(root: bytes, encoded: bytes, proof: Sequence[bytes]) -> bool:
    """Whether the leaf stands in the tree with this root, as the contract checks it."""
    node = leaf_hash(encoded)
    for sibling in proof:
        node = _pair(node, sibling)
    return node == root


def _pair(a: bytes, b: bytes) -> bytes:
    return keccak256(a + b if a < b else b + a)
