"""The checker of proofs: published vectors, what it says of a good proof, and everything that it must refuse."""

from __future__ import annotations

import ast
import base64
import copy
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from proofs_kit import CUMULATIVE, Log, P, b64, make_log, payout_tree, proof_of, sealed, three_requests
from test_ledger_merkle import INPUTS, ROOTS

from ledger import check_proof
from ledger.check_proof import (
    FILE_BYTES_MAX,
    PAID_BY,
    canonical,
    keccak256,
    leaf_of,
    partition_of,
    payout_leaf,
    payout_root_by_path,
    report,
    root_by_path,
)
from ledger.merkle import leaf_hash, root_of
from ledger.proofs import Blocks, audit_path
from ledger.rules import PAYERS, TABLES
from ledger.split import split
from schemas import topics
from schemas.event_base import RequestEvent

#: Keccak-256 as Ethereum's documents and the Keccak team's test files have it.
KECCAK = [
    ("", "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"),
    ("abc", "4e03657aea45a94fc7d47ba826c8d667c0d1e6e33a64a036ec44f58fa12d6c45"),
    ("The quick brown fox jumps over the lazy dog", "4d741b6f1eb29cb2a9b9911c82f56fa8d73b04959d3d9d222895df6c0b28aa15"),
    ("Transfer(address,address,uint256)", "ddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"),
]
#: Leaf, size and path, of the tree of eight leaves with which Certificate Transparency's projects test.
PATHS: list[tuple[int, int, list[str]]] = [
    (0, 1, []),
    (
        0,
        8,
        [
            "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
        ],
    ),
    (
        5,
        8,
        [
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ],
    ),
    (2, 3, ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"]),
    (
        1,
        5,
        [
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        ],
    ),
]


@pytest.fixture(scope="module")
def log() -> Log:
    return make_log(three_requests()[0], payout_root=payout_tree()[0])


@pytest.fixture(scope="module")
def proof(log: Log) -> bytes:
    return proof_of(log, three_requests()[1][0], payout_tree()[1])


@pytest.mark.parametrize(("text", "digest"), KECCAK)
def test_keccak_as_published(text: str, digest: str) -> None:
    assert keccak256(text.encode()).hex() == digest


def test_openzeppelins_readme_example_and_its_dump() -> None:
    pairs = [("11" * 20, 5 * 10**18), ("22" * 20, 25 * 10**17)]
    leaves = [payout_leaf([bytes.fromhex(a), n.to_bytes(32, "big")]) for a, n in pairs]
    root = "d4dee0beab2d53f2cc83e567171bd2820e49898130a22622b10ead383e90bd77"
    assert payout_root_by_path(leaves[0], leaves[1:]).hex() == root
    assert payout_root_by_path(leaves[1], leaves[:1]).hex() == root
    # "a" of the library's own six letters: dynamic ABI is offset, length, text.
    words = [(32).to_bytes(32, "big"), (1).to_bytes(32, "big"), b"a".ljust(32, b"\x00")]
    path = [
        "19ba6c6333e0e9a15bf67523e0676e2f23eb8e574092552d5e888c64a4bb3681",
        "03707d7802a71ca56a8ad8028da98c4f1dbec55b31b4a25d536b5309cc20eda9",
        "7b0c6cd04b82bfc0e250030a5d2690c52585e0cc6a4f3bc7909d7723b0236ece",
    ]
    found = payout_root_by_path(payout_leaf(words), [bytes.fromhex(node) for node in path])
    assert found.hex() == "23be0977360f08bb0bd7f709a7d543d2cd779c79c66d74e0441919871647de2b"


@pytest.mark.parametrize(("index", "size", "path"), PATHS)
def test_published_inclusion_proofs(index: int, size: int, path: list[str]) -> None:
    nodes = [bytes.fromhex(node) for node in path]
    leaves = [leaf_hash(data) for data in INPUTS[:size]]
    assert audit_path(index, size, lambda first, following: root_of(leaves[first:following])) == nodes
    assert root_by_path(leaf_of(INPUTS[index]), index, size, nodes) == bytes.fromhex(ROOTS[size])
    wrong = [(index + 1, size, nodes), (index ^ 2, size, nodes), (index, size * 2, nodes), (-1, size, nodes)]
    wrong += [(index, size, [*nodes, leaves[0]]), (index, size, [leaves[0], *nodes]), (index, size, nodes[:-1])]
    for other, count, bent in wrong if nodes else []:
        assert root_by_path(leaf_of(INPUTS[index]), other, count, bent) != bytes.fromhex(ROOTS[size])


@given(st.integers(1, 90), st.integers(0, 4), st.data())
def test_paths_from_blocks_lead_to_the_root(size: int, block_bits: int, data: st.DataObject) -> None:
    leaves = [leaf_hash(b"%d" % n) for n in range(size)]
    whole = range(size >> block_bits)
    kept = data.draw(st.sets(st.sampled_from(whole))) if whole else set[int]()
    roots = {b: root_of(leaves[b << block_bits : (b + 1) << block_bits]) for b in kept}
    offsets = data.draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=3))
    blocks = Blocks(size, offsets, roots, block_bits)
    read = 0
    for first, following in blocks.spans():
        for offset in range(first, following):
            blocks.add(offset, leaves[offset])
            read += 1
    assert blocks.root() == root_of(leaves)
    for offset in offsets:
        assert root_by_path(leaves[offset], offset, size, blocks.path(offset)) == blocks.root()
    assert read <= (len(offsets) + 1 + len(whole) - len(kept)) << block_bits


@given(st.binary(max_size=40), st.integers(1, 1024))
def test_the_partition_of_a_key_is_kafkas(key: bytes, partitions: int) -> None:
    assert partition_of(key, partitions) == topics.partition_of(key, partitions)


def test_the_checkers_own_rules_are_those_of_the_books() -> None:
    assert {how.value: PAYERS[pays] for how, pays in TABLES[1].items()} == PAID_BY
    assert set(check_proof.SPLITS) == set(TABLES)


@given(st.integers(0, 10**18), st.lists(st.integers(0, 10**9), min_size=1, max_size=16))
def test_the_checkers_own_split_is_that_of_the_books(charge: int, weights: list[int]) -> None:
    burn, parts, platform = check_proof._shares(charge, weights, *check_proof.SPLITS[1])
    assert (burn, tuple(parts), platform) == split(charge, weights)


def test_a_good_proof_says_what_it_proves(log: Log, proof: bytes) -> None:
    lines, holds = report(proof, log.event.log_root, log.event.payout_root)
    assert holds, lines
    text = "\n".join(lines)
    # 7 x 1,000,000 + 20 x 2,000,001; 1 % of it; 90 % of the rest by 10, 3 and 7 tokens
    assert "7 prompt, 0 image and 20 completion tokens, ended by stop" in text
    assert "the charge is 0.04700002 SHIVER (47000020 nano), paid by wallet:" in text
    assert "burn 470000, provider gpu-1 35595465, provider Gpu_2 6281553, platform 4653002" in text
    assert f"provider gpu-1 may have claimed {CUMULATIVE['gpu-1']} units" in text
    assert "2 times adopted" in text
    assert lines[-1] == "verdict: it holds"
    assert report(proof, None, None)[0][-1] == "verdict: it holds, if that log root is the published one"
    assert sum(line.startswith("ok    record ") for line in lines) == 4


def test_requests_of_every_kind(log: Log) -> None:
    for request_id in three_requests()[1]:
        lines, holds = report(proof_of(log, request_id, []), log.event.log_root, None)
        assert holds, lines
    assert "clamped to its hold from" in "\n".join(lines)
    assert any(line.startswith("--    provider Gpu_2: the file has no payout leaf") for line in lines)


@pytest.mark.parametrize("root", ["log", "payout"])
def test_another_published_root_is_refused(log: Log, proof: bytes, root: str) -> None:
    other = "0" * 64
    lines, holds = report(proof, *((other, None) if root == "log" else (None, "0x" + other)))
    assert not holds
    assert "is not the one that was given" in lines[-2]


def test_every_byte_matters(log: Log, proof: bytes) -> None:
    """Whoever changes a byte, and nothing else, is found by the file's own hash."""
    for at in range(0, len(proof), 7):
        for bit in (1, 64):
            bent = proof[:at] + bytes([proof[at] ^ bit]) + proof[at + 1 :]
            assert not report(bent, None, None)[1], at
    assert not report(proof[:-1], None, None)[1]
    assert not report(proof + b"\n", None, None)[1]


def leaves_of(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every value that is no container, and where it is."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield place, value
        return
    for name, item in items:
        yield from leaves_of(item, (*place, name))


def bent(value: Any) -> list[Any]:
    """Other values of the same kind."""
    if isinstance(value, int):
        return [value + 1, value - 1]
    if isinstance(value, str) and value:
        at = len(value) // 2
        digit = "1" if value[at] == "0" else "0"
        return [value[:at] + digit + value[at + 1 :], value[:-1] + ("1" if value[-1] == "0" else "0"), value[1:], ""]
    return [1, "x"]


def put(body: Any, place: tuple[Any, ...], value: Any) -> Any:
    body = copy.deepcopy(body)
    at = body
    for name in place[:-1]:
        at = at[name]
    at[place[-1]] = value
    return body


def refused(data: bytes, log: Log) -> bool:
    lines, holds = report(data, log.event.log_root, log.event.payout_root)
    assert holds != lines[-2].startswith("FAIL")
    return not holds


def test_every_field_matters_even_where_the_files_own_hash_is_made_again(log: Log, proof: bytes) -> None:
    body = json.loads(proof)
    passed = set[tuple[Any, ...]]()
    for place, value in leaves_of(body):
        if place == ("sha256",):
            continue
        for other in bent(value):
            if not refused(sealed(put(body, place, other)), log):
                passed.add(place)
    # Nothing is said of where exactly behind its cut the epoch's own record stands.
    assert passed == {("closed", "offset")}


def test_every_byte_of_a_record_matters(log: Log, proof: bytes) -> None:
    body = json.loads(proof)
    for number, record in enumerate(body["records"]):
        for name in ("key", "value"):
            data = base64.b64decode(record[name])
            for at in range(0, len(data), 3):
                other = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
                assert refused(sealed(put(body, ("records", number, name), b64(other))), log)


def test_every_field_of_the_epoch_matters_but_those_that_the_words_except(log: Log, proof: bytes) -> None:
    body = json.loads(proof)
    event = json.loads(base64.b64decode(body["closed"]["value"]))
    passed = set[Any]()
    for place, value in leaves_of(event):
        for other in bent(value):
            value_bent = json.dumps(put(event, place, other), separators=(",", ":")).encode()
            if not refused(sealed(put(body, ("closed", "value"), b64(value_bent))), log):
                passed.add(place)
    # Neither root covers these. The decimals of a token are no part of a leaf.
    assert passed == {("at_ms",), ("digest",), ("terms", "tokens", 0, "decimals")}


RESHAPED: dict[str, Callable[[dict[str, Any]], object]] = {
    "records in another order": lambda body: body["records"].reverse(),
    "a record twice": lambda body: body["records"].insert(1, body["records"][0]),
    "no accept": lambda body: body["records"].pop(0),
    "an adoption left out": lambda body: body["records"].pop(1),
    "no end": lambda body: body["records"].pop(),
    "no records": lambda body: body["records"].clear(),
    "a node less": lambda body: body["records"][0]["path"].pop(),
    "a node more": lambda body: body["records"][0]["path"].append("00" * 32),
    "nodes swapped": lambda body: body["records"][0]["path"].reverse(),
    "another's path": lambda body: body["records"][0].update(path=body["records"][1]["path"]),
    "payouts in another order": lambda body: body["payouts"].reverse(),
    "a payout twice": lambda body: body["payouts"].append(body["payouts"][1]),
    "a payout of a stranger": lambda body: body["payouts"][0].update(provider="x"),
    "a node of a payout less": lambda body: body["payouts"][0]["path"].pop(),
    "another's payout path": lambda body: body["payouts"][0].update(path=body["payouts"][1]["path"]),
    "a field more": lambda body: body.update(more=1),
    "a field of a record more": lambda body: body["records"][0].update(more=1),
    "a field less": lambda body: body.pop("payouts"),
    "other words": lambda body: body["words"]["proves"].append("That it was paid."),
    "another version": lambda body: body.update(version=2),
    "another format": lambda body: body.update(format="other"),
    "a true one": lambda body: body.update(version=True),
}


@pytest.mark.parametrize("change", RESHAPED.values(), ids=RESHAPED)
def test_what_is_put_together_otherwise_is_refused(
    log: Log, proof: bytes, change: Callable[[dict[str, Any]], object]
) -> None:
    body = json.loads(proof)
    change(body)
    assert refused(sealed(body), log)


def test_a_proof_of_one_request_is_none_of_another(log: Log) -> None:
    ids = three_requests()[1]
    one, other = (json.loads(proof_of(log, request_id, [])) for request_id in ids[:2])
    assert refused(sealed({**one, "request_id": ids[1]}), log)
    assert refused(sealed({**one, "records": other["records"]}), log)
    mixed = sorted([*one["records"][:1], *other["records"][1:]], key=lambda record: record["offset"])
    assert refused(sealed({**one, "records": mixed}), log)
    assert refused(sealed({**other, "records": mixed}), log)


def test_a_proof_of_another_log_is_refused(proof: bytes) -> None:
    events, _ = three_requests()
    other = make_log([*events, events[0]], payout_root=payout_tree()[0])
    lines, holds = report(proof, other.event.log_root, None)
    assert not holds
    assert "is not the one that was given" in lines[-2]


HOSTILE: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"{",
    "a list": b"[]",
    "a number": b"1",
    "bytes": b"\xff\xfe",
    "deep": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "NaN": b'{"format": NaN}',
    "a float": b'{"version": 1.0}',
    "an exponent": b'{"version": 1e999}',
    "a huge number": b'{"version": ' + b"9" * 5000 + b"}",
    "a name twice": b'{"format": "shiver proof", "format": "shiver proof"}',
    "half a pair": b'{"format": "\\ud800"}',
    "too large": b" " * (FILE_BYTES_MAX + 1),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_give_one_line(data: bytes) -> None:
    lines, holds = report(data, None, None)
    assert not holds
    assert len(lines) == 2
    assert lines[0].startswith("FAIL  ")
    assert "\n" not in lines[0]
    assert len(lines[0]) < 300


WRONG_KINDS: list[Any] = [None, True, -1, 10**19, 2**63, "", "x", "9" * 100, "é", [], [[]], {}, {"a": 1}]


def test_wrong_kinds_in_every_place_are_refused(log: Log, proof: bytes) -> None:
    """Also those that no JSON text of a proof would have; nothing but Refused is ever raised."""
    body = json.loads(proof)
    places = [place for place, _ in leaves_of(body)]
    places += [("closed",), ("records",), ("payouts",), ("words",), ("records", 0), ("payouts", 0)]
    for place in places:
        if place[-1] == "sha256":
            continue
        for value in WRONG_KINDS:
            assert refused(sealed(put(body, place, value)), log) or (place, value) == (("payouts",), [])


def test_hostile_records_that_are_in_the_log_are_refused_or_harmless() -> None:
    """A log whose writer is no friend: every path is right, and what the records say is not."""
    events, ids = three_requests()
    values = [b"", b"{", b"[]", b'{"a":NaN}', b"[" * 50_000, b'{"version":1,"wallet":{}}', b"\xff", b'{"a":1,"a":1}']
    good = make_log(events)
    records = good.of(ids[0])
    places = [(r.partition, r.offset) for r in records]
    held = set[str]()
    for record in records:
        told = json.loads(record.value)
        nonsense = [("whole", value) for value in values]
        nonsense += [(str(place[-1]), dump(put(told, place, k))) for place, _ in leaves_of(told) for k in WRONG_KINDS]
        for name, value in nonsense:
            log = make_log(events, instead={record.value: value})
            lines, holds = report(proof_of(log, ids[0], [], places=places), log.event.log_root, None)
            assert holds or lines[-2].startswith("FAIL  ")
            held |= {name} if holds else set()
    # What neither the charge nor any line depends on; and another legal id is as good as the one that was there.
    assert held == {"at_ms", "key_id", "owner", "rate_nano_usd", "cap_day", "receipt", "node", "provider"}


def test_records_that_stand_in_an_order_in_which_they_do_not_count_are_refused() -> None:
    """All of them are in the log, but the end came before the accept."""
    events, ids = three_requests()
    mine = [event for event in events if isinstance(event, RequestEvent) and event.request_id == ids[1]]
    others = [event for event in events if event not in mine]
    log = make_log([*others, *reversed(mine)])
    end, accept = log.of(ids[1])
    assert end.offset < accept.offset
    places = [(accept.partition, accept.offset), (end.partition, end.offset)]
    lines, holds = report(proof_of(log, ids[1], [], places=places), log.event.log_root, None)
    assert not holds
    assert "are not in the order of the log" in lines[-2]


def test_a_record_with_a_name_twice_is_refused() -> None:
    """One reader may take the first and another the last."""
    events, ids = three_requests()
    good = make_log(events)
    accept = good.of(ids[1])[0]
    twice = accept.value.replace(b'"hold_nano":', b'"hold_nano":1,"hold_nano":')
    log = make_log(events, instead={accept.value: twice})
    lines, holds = report(
        proof_of(log, ids[1], [], places=[(r.partition, r.offset) for r in good.of(ids[1])]), log.event.log_root, None
    )
    assert not holds
    assert "a name stands in it twice" in lines[-2]


def test_base64_has_one_form(log: Log) -> None:
    body = json.loads(proof_of(log, three_requests()[1][2], []))
    text = body["records"][0]["key"]
    assert text.endswith("=")
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    last = text.rstrip("=")[-1]
    other = text.replace(last + "=", digits[digits.index(last) + 1] + "=")
    assert base64.b64decode(other) == base64.b64decode(text)
    assert refused(sealed(put(body, ("records", 0, "key"), other)), log)


def dump(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


# --- on its own


def test_it_imports_nothing_but_the_standard_library() -> None:
    tree = ast.parse(Path(check_proof.__file__).read_text())
    names = set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names.add(node.module or "")
        assert not (isinstance(node, ast.Constant) and isinstance(node.value, float))
        assert not (isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Div))
    assert {name.partition(".")[0] for name in names} <= set(sys.stdlib_module_names)


def test_it_runs_alone_from_an_empty_folder(log: Log, proof: bytes, tmp_path: Path) -> None:
    alone = tmp_path / "check_proof.py"
    alone.write_bytes(Path(check_proof.__file__).read_bytes())
    (tmp_path / "proof.json").write_bytes(proof)
    (tmp_path / "bent.json").write_bytes(proof.replace(b"shiver proof", b"shiver prooF"))

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-I", "-W", "error", str(alone), *arguments]
        return subprocess.run(command, cwd=tmp_path, env={}, capture_output=True, text=True, check=False, timeout=60)

    good = run("proof.json", "--log-root", log.event.log_root, "--payout-root", log.event.payout_root)
    assert (good.returncode, good.stderr) == (0, "")
    assert good.stdout.splitlines()[-1] == "verdict: it holds"
    assert run("proof.json", "--log-root", "00" * 32).returncode == 1
    bad = run("bent.json")
    assert (bad.returncode, bad.stderr) == (1, "")
    assert bad.stdout.splitlines() == ["FAIL  its format is not 'shiver proof'", "verdict: refused"]
    missing = run("none.json")
    assert (missing.returncode, missing.stdout) == (1, "")
    assert missing.stderr == "none.json: No such file or directory\n"


def test_its_kit_has_requests_in_one_partition(log: Log) -> None:
    """The drills above need two requests whose records could be exchanged."""
    ids = three_requests()[1]
    assert len({log.of(request_id)[0].partition for request_id in ids[:2]}) == 1
    assert len(log.event.cut) == P
    assert canonical(json.loads(proof_of(log, ids[0], []))) == proof_of(log, ids[0], [])
