"""Trees over the log: the published vectors of RFC 6962's own implementations, and the definition, word by word."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.merkle import Tree, leaf_hash, log_root, node_hash, record_bytes, record_leaf, root_of

#: The eight leaves and the roots over the first n of them that the Certificate Transparency projects test with.
INPUTS = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


@pytest.mark.parametrize("size", range(9))
def test_published_roots(size: int) -> None:
    assert root_of([leaf_hash(data) for data in INPUTS[:size]]).hex() == ROOTS[size]


def defined(leaves: list[bytes]) -> bytes:
    """RFC 6962, section 2.1, read aloud: split at the largest power of two below the number of leaves."""
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return leaf_hash(leaves[0])
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return node_hash(defined(leaves[:k]), defined(leaves[k:]))


@given(st.lists(st.binary(max_size=40), max_size=70), st.integers(0, 70))
def test_a_tree_is_the_one_of_the_definition_wherever_it_was_put_down(leaves: list[bytes], cut: int) -> None:
    tree = Tree()
    for data in leaves[:cut]:
        tree.add(leaf_hash(data))
    tree = Tree.load(tree.size, tree.dump())
    for data in leaves[cut:]:
        tree.add(leaf_hash(data))
    assert tree.size == len(leaves)
    assert tree.root() == defined(leaves)


@pytest.mark.parametrize(("size", "dump"), [(1, b""), (3, b"x" * 32), (2, b"x" * 31), (0, b"x" * 32)])
def test_what_is_no_tree(size: int, dump: bytes) -> None:
    with pytest.raises(ValueError, match="perfect subtrees"):
        Tree.load(size, dump)


def test_a_record_is_not_another_with_the_border_moved() -> None:
    assert record_leaf(3, 45, b"key", b"value") == leaf_hash(record_bytes(3, 45, b"key", b"value"))
    places = [
        (3, 45, b"ke", b"yvalue"),
        (34, 5, b"key", b"value"),
        (3, 45, b"", b"keyvalue"),
        (3, 45, b"keyvalue", b""),
    ]
    assert len({record_bytes(*place) for place in [(3, 45, b"key", b"value"), *places]}) == 5


def test_the_logs_root_knows_every_part_of_every_checkpoint() -> None:
    roots, heads = [b"r" * 32, b"s" * 32], [b"h" * 32, b""]
    known = {
        log_root([5, 0], roots, heads),
        log_root([5, 1], roots, heads),
        log_root([6, 0], roots, heads),
        log_root([5, 0], roots[::-1], heads),
        log_root([5, 0], roots, heads[::-1]),
    }
    assert len(known) == 5
