"""Payout trees are OpenZeppelin's, hash for hash."""

from __future__ import annotations

import pytest
from eth_abi.abi import encode
from hypothesis import given
from hypothesis import strategies as st

from ledger.payout_tree import (
    EMPTY_ROOT,
    Leaf,
    StandardTree,
    address,
    keccak256,
    leaf_hash,
    proves,
    provider_bytes32,
    uint256,
    units_of,
)

# The example in the README of @openzeppelin/merkle-tree, and the root that it prints.
PUBLISHED = [("0x" + "1" * 40, 5 * 10**18), ("0x" + "2" * 40, 25 * 10**17)]
PUBLISHED_ROOT = "d4dee0beab2d53f2cc83e567171bd2820e49898130a22622b10ead383e90bd77"
TYPES = ["uint256", "address", "address", "bytes32", "address", "uint256"]

leaves = st.builds(
    Leaf,
    st.integers(1, 2**53),
    *(st.binary(min_size=20, max_size=20).map(lambda b: "0x" + b.hex()) for _ in range(2)),
    st.text("abcdefghij-._:", min_size=1, max_size=80),
    st.binary(min_size=20, max_size=20).map(lambda b: "0x" + b.hex()),
    st.integers(1, 2**200),
)


def test_the_published_vector() -> None:
    encoded = [address(recipient) + uint256(amount) for recipient, amount in PUBLISHED]
    tree = StandardTree(encoded)
    assert tree.root.hex() == PUBLISHED_ROOT
    assert tree.proof(0) == [leaf_hash(encoded[1])]
    assert tree.proof(1) == [leaf_hash(encoded[0])]


def test_keccak_is_ethereums() -> None:
    assert keccak256(b"").hex() == "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"


@given(leaves)
def test_a_leaf_is_the_abi_encoding(leaf: Leaf) -> None:
    fields = [leaf.chain_id, leaf.contract, leaf.token, provider_bytes32(leaf.provider), leaf.recipient, leaf.amount]
    assert leaf.encoded() == encode(TYPES, fields)


@given(st.lists(leaves, max_size=40, unique=True), st.randoms(use_true_random=False))
def test_every_leaf_is_proven_and_no_other_and_order_is_nothing(many: list[Leaf], rng: object) -> None:
    encoded = [leaf.encoded() for leaf in many]
    tree = StandardTree(encoded)
    shuffled = list(encoded)
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    assert StandardTree(shuffled).root == tree.root
    for index, data in enumerate(encoded):
        assert proves(tree.root, data, tree.proof(index))
        other = many[index]._replace(amount=many[index].amount + 1).encoded()
        assert not proves(tree.root, other, tree.proof(index))
    if len(many) > 1:
        assert not proves(tree.root, encoded[0], tree.proof(1))


def test_no_leaf_has_a_root_that_proves_nothing() -> None:
    assert StandardTree([]).root == EMPTY_ROOT == bytes(32)


@pytest.mark.parametrize(
    ("nano", "decimals", "units"),
    [(1, 18, 10**9), (1_999, 6, 1), (999, 6, 0), (7, 9, 7), (10**9, 0, 1), (10**9 - 1, 0, 0)],
)
def test_units_leave_what_is_below_the_smallest(nano: int, decimals: int, units: int) -> None:
    assert units_of(nano, decimals) == units


@pytest.mark.parametrize("text", ["0x12", "", "0x" + "g" * 40, "0x" + "1" * 42])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"address|hexadecimal"):
        address(text)
