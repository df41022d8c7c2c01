"""Checks a proof that `shrk ledger prove` made. This one file, Python's standard library and nothing else:

    python -I check_proof.py FILE [--log-root HEX] [--payout-root HEX]

A line for each check and a verdict; exit 0 where all hold, 1 where one does not. It shares no code with what writes the
log, its trees or the proofs: everything is made again here, from the definitions in infra/docs/proofs.md. No network,
no clock, and of the file nothing is believed that is not checked: `Refused` says the first thing that does not hold.
Amounts are integers in nano units (1e-9) of an asset.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import itertools
import json
import re
import sys
from collections.abc import Generator, Iterator
from typing import Any, NamedTuple, cast

FORMAT, VERSION = "shiver proof", 1
FILE_BYTES_MAX = 4 * 1024 * 1024
RECORDS_MAX, PARTITIONS_MAX, SEGMENTS_MAX, PRICES_MAX = 1000, 1024, 16, 9
AMOUNT_MAX, TOKENS_MAX, OFFSET_MAX, UINT256_MAX = 10**18, 10**9, 2**53, 2**256 - 1
SETTLEMENT_KEY = b"shiver:settlement"

#: What every proof says of itself, word by word.
WORDS = {
    "proves": [
        "The records stand in the log, each at its partition and offset, before the cut of the epoch whose log root is "
        "the one in this file; compare that root with the published one.",
        "The charge and its shares follow from the accept and the usage by the rules that the accept names.",
        "A payout leaf is in the tree whose payout root the epoch has. It states what a provider may have claimed in "
        "all by the end of that epoch, of which this request is a part at most.",
    ],
    "does_not_prove": [
        "That no other record of this request stands before these: whether they are those that counted, replaying the "
        "log tells (shrk ledger replay).",
        "That the number, time and digest of the epoch are as its record says: the roots do not cover them.",
        "That a cumulative amount contains this request's share, or that anything was paid: the first is for a replay, "
        "the second for the chain to tell.",
        "That tokens were delivered, or that a receipt's signature is good: that is the ingress's and the node's word.",
    ],
}
#: Who pays under `rules_version` 1, by how the request ended; a request that delivered nothing costs nobody anything.
PAID_BY = dict.fromkeys(
    ("stop", "length", "tool_calls", "client_gone", "node_died", "deadline", "error"), "the client"
) | {
    "owner_died": "platform:losses",
    **dict.fromkeys(("zero_tokens", "rejected", "no_node", "not_acked"), "nobody"),
}
SPLITS = {1: (100, 90)}  # by rules_version: one part in so many burns, so many per cent of the rest are the providers'

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,79}")
_UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_HASH = re.compile(r"[0-9a-f]{64}")
_BYTES32 = re.compile(r"0x[0-9a-f]{64}")
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}")
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,77}")
_INTEGER_DIGITS_MAX = 20

Fields = dict[str, object]


class Refused(Exception):
    """Something in the file does not hold. The text is one line for a person."""


class Record(NamedTuple):
    """A record of the log and the path from its leaf to its partition's root."""

    partition: int
    offset: int
    key: bytes
    value: bytes
    path: list[bytes]


class Closed(NamedTuple):
    """What `epoch.closed` says."""

    epoch: int
    cut: list[int]
    roots: list[str]
    heads: list[str]
    log_root: str
    payout_root: str
    terms: Fields | None


# --- reading: JSON without its traps, then fields of a known kind


def load(data: bytes, what: str) -> Fields:
    """A JSON object: no duplicate names, no float, NaN or huge number. Raises Refused."""
    try:
        found: object = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_without_duplicates,
            parse_int=_integer,
            parse_float=_no_number,
            parse_constant=_no_number,
        )
        json.dumps(found, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except RecursionError:
        raise Refused(f"{what} is nested too deeply") from None
    except ValueError as error:
        why = str(error) if isinstance(error, _Trap) else "it cannot be read"
        raise Refused(f"{what} is no JSON object of ours: {why}") from None
    return _fields(found, what)


class _Trap(ValueError):
    """What JSON allows, or Python's reader does, and a proof must not have."""


def _without_duplicates(pairs: list[tuple[str, Any]]) -> Fields:
    found: Fields = dict(pairs)
    if len(found) != len(pairs):
        raise _Trap("a name stands in it twice")
    return found


def _integer(text: str) -> int:
    if len(text) > _INTEGER_DIGITS_MAX:
        raise _Trap("a number in it is too long")
    return int(text)


def _no_number(_: str) -> int:
    raise _Trap("a number in it is no integer")


def _fields(value: object, what: str) -> Fields:
    if not isinstance(value, dict):
        raise Refused(f"{what} is no object")
    return cast("Fields", value)


def _only(fields: Fields, what: str, names: str, optional: str = "") -> None:
    """Exactly these names, some of which may be missing. Raises Refused."""
    wanted, may = set(names.split()), set(optional.split())
    if not wanted <= set(fields) <= wanted | may:
        wrong = sorted((wanted - set(fields)) | (set(fields) - wanted - may))
        raise Refused(f"{what} has other fields than it must have: {', '.join(wrong)[:100]!a}")


def _int(fields: Fields, name: str, low: int, high: int) -> int:
    value = fields[name]
    if type(value) is not int or not low <= value <= high:
        raise Refused(f"{name} is no integer from {low} to {high}")
    return value


def _is_version(fields: Fields, version: int) -> bool:
    found = fields.get("version")
    return type(found) is int and found == version  # True is 1 in Python


def _str(fields: Fields, name: str, pattern: re.Pattern[str] | None = None, longest: int = 200) -> str:
    value = fields[name]
    if not isinstance(value, str) or (pattern is None and len(value) > longest):
        raise Refused(f"{name} is no text of at most {longest} characters")
    if pattern is not None and not pattern.fullmatch(value):
        raise Refused(f"{name} is not as it must be written")
    return value


def _list(fields: Fields, name: str, longest: int) -> list[object]:
    value = fields[name]
    if not isinstance(value, list):
        raise Refused(f"{name} is no list")
    found = cast("list[object]", value)
    if len(found) > longest:
        raise Refused(f"{name} is longer than {longest}")
    return found


def _base64(fields: Fields, name: str) -> bytes:
    text = _str(fields, name, longest=FILE_BYTES_MAX)
    try:
        found = base64.b64decode(text.encode(), validate=True)
    except ValueError:
        found = None
    if found is None or base64.b64encode(found).decode() != text:  # the same bytes in one way only
        raise Refused(f"{name} is no base64")
    return found


def _hashes(fields: Fields, name: str, longest: int, pattern: re.Pattern[str] = _HASH) -> list[bytes]:
    found = list[bytes]()
    for text in _list(fields, name, longest):
        if not isinstance(text, str) or not pattern.fullmatch(text):
            raise Refused(f"{name} has something that is no hash")
        found.append(bytes.fromhex(text.removeprefix("0x")))
    return found


def _sized(data: bytes) -> bytes:
    return b"%d:%b" % (len(data), data)


# --- the log: leaves, paths, roots (RFC 6962), and where a key belongs


def leaf_of(data: bytes) -> bytes:
    """The hash of a leaf."""
    return hashlib.sha256(b"\x00" + data).digest()


def parent_of(left: bytes, right: bytes) -> bytes:
    """The hash of an inner node."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def root_by_path(leaf: bytes, index: int, size: int, path: list[bytes]) -> bytes | None:
    """Where `path` leads from a leaf's hash in a tree of `size` leaves; None where it is too short or too long."""
    if not 0 <= index < size:
        return None
    place, last = index, size - 1
    for node in path:
        if last == 0:
            return None
        if place % 2 or place == last:
            leaf = parent_of(node, leaf)
            while place and place % 2 == 0:  # a subtree without a right neighbour rises
                place, last = place // 2, last // 2
        else:
            leaf = parent_of(leaf, node)
        place, last = place // 2, last // 2
    return None if last else leaf


def root_over(leaves: list[bytes]) -> bytes:
    """The root over hashes of leaves, of which there is one at least."""
    if len(leaves) == 1:
        return leaves[0]
    half = 1 << ((len(leaves) - 1).bit_length() - 1)
    return parent_of(root_over(leaves[:half]), root_over(leaves[half:]))


def partition_of(key: bytes, partitions: int) -> int:
    """Where Kafka's default partitioner puts a key (murmur2)."""
    m, mask = 0x5BD1E995, 0xFFFFFFFF
    h = 0x9747B28C ^ len(key)
    whole = len(key) // 4 * 4
    for at in range(0, whole, 4):
        k = int.from_bytes(key[at : at + 4], "little") * m & mask
        h = (h * m ^ (k ^ k >> 24) * m) & mask
    if rest := key[whole:]:
        h = (h ^ int.from_bytes(rest, "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    return ((h ^ h >> 15) & 0x7FFFFFFF) % partitions


# --- the chain: Keccak-256, the ABI's words, OpenZeppelin's tree


def keccak256(data: bytes) -> bytes:
    """The hash of Ethereum, which is not SHA3-256: the padding differs."""
    rate, mask = 136, 2**64 - 1
    padded = bytearray(data + b"\x01" + bytes(-(len(data) + 1) % rate))
    padded[-1] |= 0x80
    state = [0] * 25  # lane (x, y) at x + 5 * y
    for at in range(0, len(padded), rate):
        for lane in range(rate // 8):
            state[lane] ^= int.from_bytes(padded[at + 8 * lane : at + 8 * lane + 8], "little")
        register = 1
        for _ in range(24):
            column = [state[x] ^ state[x + 5] ^ state[x + 10] ^ state[x + 15] ^ state[x + 20] for x in range(5)]
            turned = [(c << 1 | c >> 63) & mask for c in column]
            state = [lane ^ column[(i + 4) % 5] ^ turned[(i + 1) % 5] for i, lane in enumerate(state)]
            x, y, moved = 1, 0, state[1]
            for step in range(24):
                x, y = y, (2 * x + 3 * y) % 5
                by = (step + 1) * (step + 2) // 2 % 64
                moved, state[x + 5 * y] = state[x + 5 * y], (moved << by | moved >> (64 - by)) & mask
            rows = [state[i : i + 5] for i in range(0, 25, 5)]
            state = [row[x] ^ (~row[(x + 1) % 5] & row[(x + 2) % 5]) for row in rows for x in range(5)]
            for bit in range(7):
                register = (register << 1) ^ (register >> 7) * 0x171
                if register & 2:
                    state[0] ^= 1 << (2**bit - 1)
    return b"".join(lane.to_bytes(8, "little") for lane in state[: 32 // 8])


def payout_leaf(words: list[bytes]) -> bytes:
    """The leaf of OpenZeppelin's standard tree over ABI words of 32 bytes: hashed twice, so that it is no node."""
    return keccak256(keccak256(b"".join(word.rjust(32, b"\x00") for word in words)))


def payout_root_by_path(leaf: bytes, path: list[bytes]) -> bytes:
    """Where `path` leads; the smaller of two nodes stands on the left."""
    for node in path:
        leaf = keccak256(min(leaf, node) + max(leaf, node))
    return leaf


# --- the checks, in order


def check(data: bytes, log_root: str | None = None, payout_root: str | None = None) -> Iterator[str]:
    """The lines of a good proof. Raises Refused at the first thing that does not hold."""
    body = _body(data)
    yield "ok    the file is whole: canonical JSON with its own hash"
    closed = _closed(_fields(body["closed"], "closed"))
    if closed.epoch != _int(body, "epoch", 1, 10**9):
        raise Refused(f"the epoch's record is of epoch {closed.epoch}")
    yield f"ok    epoch {closed.epoch} was closed over {len(closed.cut)} partitions with {sum(closed.cut)} records"
    yield _log_root(closed, log_root)
    records = _records(body)
    for record in records:
        yield _stands(record, closed)
    events = [_event(record) for record in records]
    request_id = _str(body, "request_id", _UUID7)
    yield _life(request_id, records, events)
    earned, asset = yield from _money(events)
    yield from _payouts(body, closed, earned, asset, payout_root)


def _body(data: bytes) -> Fields:
    if len(data) > FILE_BYTES_MAX:
        raise Refused(f"a proof has at most {FILE_BYTES_MAX} bytes")
    body = load(data, "the file")
    if body.get("format") != FORMAT:
        raise Refused(f"its format is not {FORMAT!r}")
    if not _is_version(body, VERSION):
        raise Refused(f"its version is not {VERSION}, the one that this checker knows")
    _only(body, "the file", "closed epoch format payouts records request_id sha256 version words")
    said = _str(body, "sha256", _HASH)
    unsigned = {name: value for name, value in body.items() if name != "sha256"}
    if canonical(body) != data or hashlib.sha256(canonical(unsigned)).hexdigest() != said:
        raise Refused("it was altered: its bytes are not the canonical ones, or not those of its own hash")
    if body["words"] != WORDS:
        raise Refused("its words are not those of a proof")
    return body


def canonical(body: Fields) -> bytes:
    """The one way in which a proof is written."""
    return json.dumps(body, sort_keys=True, indent=1).encode() + b"\n"


def _closed(fields: Fields) -> Closed:
    _only(fields, "closed", "partition offset key value")
    event = load(_base64(fields, "value"), "the epoch's record")
    names = "version at_ms type epoch cut heads roots log_root digest terms payout_root"
    _only(event, "the epoch's record", names)
    if event["type"] != "epoch.closed" or not _is_version(event, 2):
        raise Refused("the epoch's record is no epoch.closed of version 2")
    cut = list[int]()
    for offset in _list(event, "cut", PARTITIONS_MAX):
        cut.append(_int({"cut": offset}, "cut", 0, OFFSET_MAX))
    roots = [root.hex() for root in _hashes(event, "roots", PARTITIONS_MAX)]
    heads = [_str({"heads": head}, "heads", longest=64) for head in _list(event, "heads", PARTITIONS_MAX)]
    if not cut or not len(cut) == len(roots) == len(heads):
        raise Refused("the epoch's record has no root and head for each partition")
    for head, offset in zip(heads, cut, strict=True):
        if bool(head) != bool(offset) or (head and not _HASH.fullmatch(head)):
            raise Refused("a head of the epoch's record is none")
    key, partition = _base64(fields, "key"), _int(fields, "partition", 0, len(cut) - 1)
    if key != SETTLEMENT_KEY or partition != partition_of(key, len(cut)):
        raise Refused("the epoch's record is not under the key of settlements, or not in its partition")
    if _int(fields, "offset", 0, OFFSET_MAX) < cut[partition]:
        raise Refused("the epoch's record stands before its own cut")
    _int(event, "at_ms", 0, OFFSET_MAX)
    _str(event, "digest", _HASH)
    return Closed(
        _int(event, "epoch", 1, 10**9),
        cut,
        roots,
        heads,
        _str(event, "log_root", _HASH),
        _str(event, "payout_root", _BYTES32),
        None if event["terms"] is None else _fields(event["terms"], "terms"),
    )


def _log_root(closed: Closed, published: str | None) -> str:
    leaves = list[bytes]()
    for partition, (size, root, head) in enumerate(zip(closed.cut, closed.roots, closed.heads, strict=True)):
        place = b"shiver checkpoint 1\n%d:%d:" % (partition, size)
        leaves.append(leaf_of(place + _sized(bytes.fromhex(root)) + _sized(bytes.fromhex(head))))
    if root_over(leaves).hex() != closed.log_root:
        raise Refused("the epoch's log root is not the one over its partitions' sizes, roots and heads")
    return "ok    the log root is the one over all partitions' " + _published(
        "trees and chains", closed.log_root, published
    )


def _published(of: str, root: str, published: str | None) -> str:
    """The end of a line about a root: whether it is the one that the caller has from elsewhere. Raises Refused."""
    if published is None:
        return f"{of}; is it the published one? {root}"
    if published.lower().removeprefix("0x") != root.removeprefix("0x"):
        raise Refused(f"the root in the file, {root}, is not the one that was given")
    return f"{of}, and the one that was given: {root}"


def _records(body: Fields) -> list[Record]:
    found = list[Record]()
    for item in _list(body, "records", RECORDS_MAX):
        fields = _fields(item, "a record")
        _only(fields, "a record", "partition offset key value path")
        found.append(
            Record(
                _int(fields, "partition", 0, PARTITIONS_MAX - 1),
                _int(fields, "offset", 0, OFFSET_MAX),
                _base64(fields, "key"),
                _base64(fields, "value"),
                _hashes(fields, "path", 64),
            )
        )
    if not found:
        raise Refused("it has no records")
    if len({record.partition for record in found}) > 1:
        raise Refused("its records are of several partitions")
    if any(a.offset >= b.offset for a, b in itertools.pairwise(found)):
        raise Refused("its records are not in the order of the log")
    return found


def _stands(record: Record, closed: Closed) -> str:
    partition, offset, key, value, path = record
    place = f"{partition}/{offset}"
    if partition != partition_of(key, len(closed.cut)):
        raise Refused(f"record {place}: its key belongs into another partition")
    size, root = closed.cut[partition], closed.roots[partition]
    leaf = leaf_of(b"%d:%d:" % (partition, offset) + _sized(key) + _sized(value))
    led = root_by_path(leaf, offset, size, path)
    if led is None or led.hex() != root:
        raise Refused(f"record {place}: its path does not lead to the root of partition {partition} at the cut {size}")
    return f"ok    record {place} is a leaf of partition {partition}'s tree of {size}: {len(path)} hashes to its root"


_COMMON = "version wallet at_ms type request_id"


def _event(record: Record) -> Fields:
    event = load(record.value, f"record {record.partition}/{record.offset}")
    if not _is_version(event, 1) or event.get("wallet") != record.key.decode("utf-8", "replace"):
        raise Refused(f"record {record.partition}/{record.offset} is not version 1 of an event of its key's wallet")
    return event


def _life(request_id: str, records: list[Record], events: list[Fields]) -> str:
    """The records are one request's: an accept, adoptions in their order, one end by the last owner."""
    for event in events:
        if event.get("request_id") != request_id or event.get("wallet") != events[0]["wallet"]:
            raise Refused(f"a record is not of request {request_id} and its wallet")
    kinds = [event.get("type") for event in events]
    end = kinds[-1]
    if end not in ("usage.recorded", "request.failed"):
        raise Refused("the last record does not end the request")
    wallet, place = _str(events[0], "wallet", _ID), f"{records[-1].partition}/{records[-1].offset}"
    if kinds == ["request.failed"]:
        _only(events[0], "the end", f"{_COMMON} epoch how", "detail")
        return f"ok    request {request_id} of wallet {wallet} was closed at {place} and never began"
    if kinds[0] != "request.accepted" or any(kind != "request.adopted" for kind in kinds[1:-1]):
        raise Refused("the records are not an accept, adoptions and an end, in this order")
    for epoch, event in enumerate(events[1:-1], 2):
        _only(event, "an adoption", f"{_COMMON} epoch owner")
        if _int(event, "epoch", 2, 10**6) != epoch:
            raise Refused("the adoptions do not follow one another")
    if _int(events[-1], "epoch", 1, 10**6) != len(events) - 1:
        raise Refused("the end is not by the last owner")
    return f"ok    request {request_id} of wallet {wallet}: accepted, {len(events) - 2} times adopted, ended at {place}"


def _money(events: list[Fields]) -> Generator[str, None, tuple[dict[str, int], str]]:
    """Says the charge and its shares. Returns what each provider got, and of what asset."""
    end = events[-1]
    how = _str(end, "how")
    if how not in PAID_BY:
        raise Refused("how is none of the ways in which a request ends")
    if end["type"] == "request.failed":
        _only(end, "the end", f"{_COMMON} epoch how", "detail")
        yield f"ok    it ended by {how} without usage: nobody pays anything"
        return {}, ""
    accept = events[0]
    _only(
        accept, "the accept", f"{_COMMON} key_id owner rules_version asset prices rate_nano_usd cap_day hold_nano payer"
    )
    _only(end, "the usage", f"{_COMMON} epoch how model prompt_tokens segments", "image_tokens")
    rules, hold, asset = (
        _int(accept, "rules_version", 1, 1000),
        _int(accept, "hold_nano", 0, AMOUNT_MAX),
        accept["asset"],
    )
    if rules not in SPLITS:
        raise Refused(f"this checker does not know the rules of version {rules}")
    if asset not in ("SHIVER", "USDC"):
        raise Refused("asset is none that we know")
    payer = _str(accept, "payer")
    if payer not in (f"wallet:{accept['wallet']}", "platform:sandbox"):
        raise Refused("the payer of the accept may not pay for it")
    segments = _segments(end)
    model, prompt, image = _str(end, "model"), _int(end, "prompt_tokens", 0, TOKENS_MAX), 0
    if "image_tokens" in end:
        image = _int(end, "image_tokens", 0, TOKENS_MAX)
    in_nano, out_nano, factor = _price(accept, model)
    delivered = sum(tokens for _, tokens in segments)
    pays = PAID_BY[how] if delivered else "nobody"
    cost = in_nano * (prompt + factor * image) + out_nano * delivered
    charge = 0 if pays == "nobody" else min(cost, hold)
    yield f"ok    {model!a}: {prompt} prompt, {image} image and {delivered} completion tokens, ended by {how}"
    clamped = f", clamped to its hold from {cost} nano" if charge and charge < cost else ""
    by = payer if pays == "the client" else pays
    yield f"ok    the charge is {_amount(charge)} {asset} ({charge} nano){clamped}, paid by {by}"
    burn, providers, platform = _shares(charge, [tokens for _, tokens in segments], *SPLITS[rules])
    earned: dict[str, int] = {}
    for (provider, _), share in zip(segments, providers, strict=True):
        earned[provider] = earned.get(provider, 0) + share
    shares = "".join(f", provider {provider} {share}" for provider, share in earned.items())
    yield f"ok    its shares in nano: burn {burn}{shares}, platform {platform}"
    return {provider: share for provider, share in earned.items() if share}, asset


def _segments(usage: Fields) -> list[tuple[str, int]]:
    found = list[tuple[str, int]]()
    for item in _list(usage, "segments", SEGMENTS_MAX):
        segment = _fields(item, "a segment")
        _only(segment, "a segment", "node provider attempt tokens", "receipt")
        _str(segment, "node", _ID)
        _int(segment, "attempt", 1, SEGMENTS_MAX)
        if segment.get("receipt") is not None:
            _str(segment, "receipt", longest=FILE_BYTES_MAX)
        found.append((_str(segment, "provider", _ID), _int(segment, "tokens", 0, TOKENS_MAX)))
    if not found:
        raise Refused("the usage has no segment")
    return found


def _price(accept: Fields, model: str) -> tuple[int, int, int]:
    """What the first accepted price of the model says: nano a prompt and a completion token, and the image factor."""
    for item in _list(accept, "prices", PRICES_MAX):
        price = _fields(item, "a price")
        _only(price, "a price", "model in_nano out_nano", "image_factor")
        if price["model"] == model:
            factor = _int(price, "image_factor", 1, 100) if "image_factor" in price else 2
            return _int(price, "in_nano", 0, AMOUNT_MAX), _int(price, "out_nano", 0, AMOUNT_MAX), factor
    raise Refused("the usage is of a model that the accept has no price for")


def _shares(charge: int, weights: list[int], burn_divisor: int, percent: int) -> tuple[int, list[int], int]:
    """Burn, each segment's part and the platform's. Units left over go to the largest remainders, the first first."""
    burn = charge // burn_divisor
    whole, total = (charge - burn) * percent // 100, sum(weights)
    parts = [whole * weight // total if total else 0 for weight in weights]
    remainders = sorted((-(whole * weight % total), i) for i, weight in enumerate(weights)) if total else []
    for _, i in remainders[: whole - sum(parts)]:
        parts[i] += 1
    return burn, parts, charge - burn - sum(parts)


def _amount(nano: int) -> str:
    whole, rest = divmod(nano, 10**9)
    return f"{whole}.{rest:09}".rstrip("0").rstrip(".")


def _payouts(body: Fields, closed: Closed, earned: dict[str, int], asset: str, published: str | None) -> Iterator[str]:
    items = _list(body, "payouts", SEGMENTS_MAX)
    if published is not None:
        yield "ok    the payout root is the epoch's" + _published("", closed.payout_root, published)
    seen = list[str]()
    for item in items:
        fields = _fields(item, "a payout")
        _only(fields, "a payout", "provider recipient cumulative path")
        provider = _str(fields, "provider", _ID)
        if provider not in earned or (seen and provider <= seen[-1]):
            raise Refused(f"a payout of {provider} is not of a provider whom the request paid, or out of order")
        seen.append(provider)
        contract, chain_id, token = _terms(closed.terms, asset)
        cumulative = int(_str(fields, "cumulative", _DECIMAL))
        if cumulative > UINT256_MAX:
            raise Refused("a cumulative amount is above 256 bits")
        leaf = payout_leaf(
            [
                chain_id.to_bytes(32, "big"),
                contract,
                token,
                provider_word(provider),
                bytes.fromhex(_str(fields, "recipient", _ADDRESS)[2:]),
                cumulative.to_bytes(32, "big"),
            ]
        )
        path = _hashes(fields, "path", 64, _BYTES32)
        if payout_root_by_path(leaf, path).hex() != closed.payout_root[2:]:
            raise Refused(f"the payout leaf of {provider} does not lead to the epoch's payout root")
        yield (
            f"ok    provider {provider} may have claimed {cumulative} units of token 0x{token.hex()} in all, on chain "
            f"{chain_id}: {len(path)} hashes to the payout root {closed.payout_root}"
        )
    for provider in earned:
        if provider not in seen:
            yield f"--    provider {provider}: the file has no payout leaf, so nothing is said of its payout"


def _terms(terms: Fields | None, asset: str) -> tuple[bytes, int, bytes]:
    """Contract, chain id, and the asset's token. Raises Refused."""
    if terms is None:
        raise Refused("the file has a payout, but the epoch says nowhere where it is paid")
    _only(terms, "terms", "chain_id contract tokens")
    found = list[Fields]()
    for item in _list(terms, "tokens", 8):
        token = _fields(item, "a token")
        _only(token, "a token", "asset token decimals")
        found += [token] if token["asset"] == asset else []
    if len(found) != 1:
        raise Refused(f"the epoch has not one token for {asset}")
    contract = bytes.fromhex(_str(terms, "contract", _ADDRESS)[2:])
    token = bytes.fromhex(_str(found[0], "token", _ADDRESS)[2:])
    return contract, _int(terms, "chain_id", 1, OFFSET_MAX), token


def provider_word(provider: str) -> bytes:
    """A provider's id in a leaf."""
    return keccak256(provider.encode())


def report(data: bytes, log_root: str | None, payout_root: str | None) -> tuple[list[str], bool]:
    """All lines, the verdict the last, and whether the proof holds."""
    lines = list[str]()
    try:
        for line in check(data, log_root, payout_root):
            lines.append(line)
    except Refused as refusal:
        return [*lines, f"FAIL  {refusal}", "verdict: refused"], False
    if log_root is None:
        return [*lines, "verdict: it holds, if that log root is the published one"], True
    return [*lines, "verdict: it holds"], True


def main(arguments: list[str]) -> int:
    """What running this file does."""
    parser = argparse.ArgumentParser(description="Checks a proof that shrk ledger prove made.")
    parser.add_argument("file", help="the proof")
    parser.add_argument("--log-root", metavar="HEX", help="the epoch's log root as it was published")
    parser.add_argument("--payout-root", metavar="HEX", help="the epoch's payout root as it is on chain")
    told = parser.parse_args(arguments)
    try:
        with open(told.file, "rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        print(f"{told.file}: {error.strerror}", file=sys.stderr)
        return 1
    lines, holds = report(data, told.log_root, told.payout_root)
    print("\n".join(lines))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
