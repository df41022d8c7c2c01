"""The contracts: keys, ids, partitions, events as they stand in the log, and the counting of replies."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
from aiokafka.partitioner import murmur2 as kafka_murmur2
from hypothesis import given
from hypothesis import strategies as st

from schemas import events, ids, keys, replies, topics
from schemas.facts import Terms, Token
from schemas.past import PAST
from schemas.replies import Alive, Claimed, End, Tally, Tokens, Verdict

REQUEST = ids.uuid7(1_795_000_000_000, b"0123456789")
NONCE = "n" * 8
SHA256 = "a1" * 32
HASH = "0x" + SHA256
ADDRESS = "0x" + "Ab" * 20
TOKEN = {"asset": "SHIVER", "token": ADDRESS, "decimals": 18}
TERMS = {"chain_id": 8453, "contract": ADDRESS, "tokens": [TOKEN]}


@given(st.binary(max_size=70))
def test_partition_is_kafkas_own(key: bytes) -> None:
    assert topics.murmur2(key) == kafka_murmur2(key) & 0xFFFFFFFF
    assert 0 <= topics.partition_of(key, 8) < 8


def test_lane_names_its_ingress() -> None:
    assert topics.lane_boot_id(topics.lane("i1ab", 17)) == "i1ab"
    for wrong in ("jobs.n1", "replies.x", "replies..3", "replies.x.y"):
        with pytest.raises(ValueError, match="not a lane"):
            topics.lane_boot_id(wrong)


@pytest.mark.parametrize("tier", keys.KINDS)
def test_a_minted_key_parses_and_any_changed_character_does_not(tier: keys.Tier) -> None:
    text = keys.mint(tier, bytes(range(29)))
    parsed = keys.parse(text)
    assert parsed is not None
    assert (parsed.tier, len(parsed.key_id), len(parsed.sha256)) == (tier, 12, 32)
    for place in range(len(text)):
        changed = text[:place] + ("A" if text[place] != "A" else "B") + text[place + 1 :]
        assert keys.parse(changed) is None, place


@pytest.mark.parametrize(
    "text", ["", "sk-abc", "shvr_dev_", "shvr_xxx_" + "a" * 45, "shvr_dev_" + "é" * 45, "s" * 9000]
)
def test_what_is_no_key(text: str) -> None:
    assert keys.parse(text) is None


def test_a_token_of_a_session_is_no_key_and_a_key_is_none() -> None:
    """What is cut out of one and put together as the other has another checksum."""
    token = keys.mint(keys.SESSION, bytes(range(29)))
    assert token.startswith("shvr_ses_")
    parsed = keys.parse(token)
    assert parsed is not None
    assert parsed.is_session
    assert "ses" not in keys.TIERS
    for tier in keys.TIERS:
        assert keys.parse(token.replace("_ses_", f"_{tier}_")) is None
        key = keys.parse(keys.mint(tier, bytes(range(29))))
        assert key is not None
        assert not key.is_session
        assert key.sha256 != parsed.sha256


@given(st.integers(0, 2**48 - 1), st.binary(min_size=10, max_size=10))
def test_uuid7_keeps_its_time_and_its_form(now_ms: int, entropy: bytes) -> None:
    request_id = ids.uuid7(now_ms, entropy)
    assert ids.uuid7_ms(request_id) == now_ms
    assert events.RequestFailed(wallet="w", at_ms=0, request_id=request_id, epoch=1, how=events.How.ERROR)


GOLDEN = {
    b'{"version":1,"wallet":"w1","at_ms":5,"type":"wallet.credited","asset":"SHIVER","amount_nano":7,'
    b'"external_ref":"r","reason":"top_up","operator":"o"}': events.WalletCredited(
        wallet="w1", at_ms=5, asset="SHIVER", amount_nano=7, external_ref="r", reason="top_up", operator="o"
    ),
    b'{"version":1,"wallet":"w1","at_ms":5,"type":"request.accepted","request_id":"%(id)s","key_id":"k","owner":"i1",'
    b'"rules_version":1,"asset":"SHIVER","prices":[{"model":"m","in_nano":1,"out_nano":2,"image_factor":2}],'
    b'"rate_nano_usd":3,"cap_day":null,"hold_nano":9,"payer":"wallet:w1"}': events.RequestAccepted(
        wallet="w1", at_ms=5, request_id=REQUEST, key_id="k", owner="i1", rules_version=1, asset="SHIVER",
        prices=(events.ModelPrice(model="m", in_nano=1, out_nano=2),), rate_nano_usd=3, cap_day=None, hold_nano=9,
        payer="wallet:w1",
    ),
    b'{"version":1,"wallet":"w1","at_ms":5,"type":"request.adopted","request_id":"%(id)s","epoch":2,"owner":"e"}':
    events.RequestAdopted(wallet="w1", at_ms=5, request_id=REQUEST, epoch=2, owner="e"),
    b'{"version":1,"wallet":"w1","at_ms":5,"type":"usage.recorded","request_id":"%(id)s","epoch":1,"how":"stop",'
    b'"model":"m","prompt_tokens":3,"image_tokens":0,"segments":[{"node":"n","provider":"p","attempt":1,"tokens":4,'
    b'"receipt":null}]}': events.UsageRecorded(
        wallet="w1", at_ms=5, request_id=REQUEST, epoch=1, how=events.How.STOP, model="m", prompt_tokens=3,
        segments=(events.Segment(node="n", provider="p", attempt=1, tokens=4),),
    ),
    b'{"version":1,"wallet":"w1","at_ms":5,"type":"request.failed","request_id":"%(id)s","epoch":1,"how":"no_node",'
    b'"detail":""}': events.RequestFailed(wallet="w1", at_ms=5, request_id=REQUEST, epoch=1, how=events.How.NO_NODE),
    b'{"version":1,"wallet":"w1","at_ms":5,"type":"adjustment.posted","asset":"USDC","amount_nano":-7,"reason":"twice",'
    b'"operator":"o","external_ref":"r","approver":null}': events.AdjustmentPosted(
        wallet="w1", at_ms=5, asset="USDC", amount_nano=-7, reason="twice", operator="o", external_ref="r"
    ),
    b'{"version":1,"wallet":"w1","at_ms":5,"type":"balance.asserted","asset":"SHIVER","amount_nano":-7}':
    events.BalanceAsserted(wallet="w1", at_ms=5, asset="SHIVER", amount_nano=-7),
    b'{"version":1,"wallet":"w1","at_ms":5,"type":"key.issued","key_id":"k","tier":"pro","operator":"o"}':
    events.KeyIssued(wallet="w1", at_ms=5, key_id="k", tier="pro", operator="o"),
    b'{"version":1,"wallet":"w1","at_ms":5,"type":"key.revoked","key_id":"k","operator":"o"}':
    events.KeyRevoked(wallet="w1", at_ms=5, key_id="k", operator="o"),
    b'{"version":1,"at_ms":5,"type":"rate.published","asset":"SHIVER","rate_nano_usd":3,"source":"s"}':
    events.RatePublished(at_ms=5, asset="SHIVER", rate_nano_usd=3, source="s"),
    b'{"version":1,"at_ms":5,"type":"price.published","asset":"SHIVER","price":{"model":"m","in_nano":1,"out_nano":2,'
    b'"image_factor":2}}': events.PricePublished(
        at_ms=5, asset="SHIVER", price=events.ModelPrice(model="m", in_nano=1, out_nano=2)
    ),
    b'{"version":1,"at_ms":5,"type":"provider.registered","provider":"p","name":"P","recipient":"%(address)s"}':
    events.ProviderRegistered(at_ms=5, provider="p", name="P", recipient=ADDRESS),
    b'{"version":1,"at_ms":5,"type":"node.online","node":"n","provider":"p"}':
    events.NodeOnline(at_ms=5, node="n", provider="p"),
    b'{"version":1,"at_ms":5,"type":"node.offline","node":"n","provider":"p","why":"lost"}':
    events.NodeOffline(at_ms=5, node="n", provider="p", why="lost"),
    b'{"version":1,"at_ms":5,"type":"sandbox.funded","asset":"USDC","amount_nano":7,"reason":"beta","operator":"o",'
    b'"external_ref":"r","approver":null}': events.SandboxFunded(
        at_ms=5, asset="USDC", amount_nano=7, reason="beta", operator="o", external_ref="r"
    ),
    b'{"version":2,"at_ms":5,"type":"epoch.closed","epoch":1,"cut":[3,0],"heads":["%(sha256)s",""],'
    b'"roots":["%(sha256)s","%(sha256)s"],"log_root":"%(sha256)s","digest":"%(sha256)s","terms":{"chain_id":8453,'
    b'"contract":"%(address)s","tokens":[{"asset":"SHIVER","token":"%(address)s","decimals":18}]},'
    b'"payout_root":"%(hash)s"}': events.EpochClosed(
        at_ms=5, epoch=1, cut=(3, 0), heads=(SHA256, ""), roots=(SHA256, SHA256), log_root=SHA256, digest=SHA256,
        terms=Terms(chain_id=8453, contract=ADDRESS, tokens=(Token(asset="SHIVER", token=ADDRESS, decimals=18),)),
        payout_root=HASH,
    ),
    b'{"version":1,"at_ms":5,"type":"payout.planned","payout":"1:p","epoch":1,"provider":"p","asset":"USDC",'
    b'"recipient":"%(address)s","entitled_nano":9,"amount_nano":4,"chain_id":1}': events.PayoutPlanned(
        at_ms=5, payout="1:p", epoch=1, provider="p", asset="USDC", recipient=ADDRESS, entitled_nano=9, amount_nano=4,
        chain_id=1,
    ),
    b'{"version":1,"at_ms":5,"type":"payout.signed","payout":"1:p","nonce":0,"transaction":"%(hash)s","raw":"0x02f8"}':
    events.PayoutSigned(at_ms=5, payout="1:p", nonce=0, transaction=HASH, raw="0x02f8"),
    b'{"version":1,"at_ms":5,"type":"payout.submitted","payout":"1:p","transaction":"%(hash)s"}':
    events.PayoutSubmitted(at_ms=5, payout="1:p", transaction=HASH),
    b'{"version":1,"at_ms":5,"type":"payout.confirmed","payout":"1:p","transaction":"%(hash)s","block":"%(hash)s",'
    b'"block_number":7,"amount_nano":4}': events.PayoutConfirmed(
        at_ms=5, payout="1:p", transaction=HASH, block=HASH, block_number=7, amount_nano=4
    ),
    b'{"version":1,"at_ms":5,"type":"payout.failed","payout":"1:p","transaction":null,"reason":"r"}':
    events.PayoutFailed(at_ms=5, payout="1:p", transaction=None, reason="r"),
    b'{"version":1,"at_ms":5,"type":"payout.reorged","payout":"1:p","transaction":"%(hash)s","block":"%(hash)s",'
    b'"block_number":7}': events.PayoutReorged(at_ms=5, payout="1:p", transaction=HASH, block=HASH, block_number=7),
    b'{"version":1,"at_ms":5,"type":"burn.settled","epoch":1,"amount_nano":4,"transaction":"%(hash)s",'
    b'"block":"%(hash)s","block_number":7}': events.BurnSettled(
        at_ms=5, epoch=1, amount_nano=4, transaction=HASH, block=HASH, block_number=7
    ),
}  # fmt: skip


def golden_bytes(golden: bytes) -> bytes:
    """With the long values in their places."""
    for name, value in (("id", REQUEST), ("hash", HASH), ("address", ADDRESS), ("sha256", SHA256)):
        golden = golden.replace(b"%(" + name.encode() + b")s", value.encode())
    return golden


KEYS = {
    "rate.published": "asset:SHIVER",
    "price.published": "model:m",
    "provider.registered": "provider:p",
    "node.online": "node:n",
    "node.offline": "node:n",
    "sandbox.funded": topics.SETTLEMENT_KEY,
    "epoch.closed": topics.SETTLEMENT_KEY,
    "payout.planned": topics.SETTLEMENT_KEY,
    "payout.signed": topics.SETTLEMENT_KEY,
    "payout.submitted": topics.SETTLEMENT_KEY,
    "payout.confirmed": topics.SETTLEMENT_KEY,
    "payout.failed": topics.SETTLEMENT_KEY,
    "payout.reorged": topics.SETTLEMENT_KEY,
    "burn.settled": topics.SETTLEMENT_KEY,
}


@pytest.mark.parametrize("event", GOLDEN.values(), ids=lambda e: e.type)
def test_the_key_is_the_wallet_or_what_the_fact_is_about(event: events.Event) -> None:
    assert event.key == KEYS.get(event.type, "w1")


@pytest.mark.parametrize(
    "change",
    [
        {"cut": (3,)},
        {"cut": (3, 1)},
        {"cut": (0, 0)},
        {"cut": ()},
        {"cut": (-1, 0)},
        {"heads": (SHA256.upper(), "")},
        {"digest": HASH},
        {"payout_root": SHA256},
        {"epoch": 0},
        {"roots": (SHA256,)},
        {"roots": ()},
        {"log_root": ""},
        {"terms": TERMS | {"tokens": [TOKEN, TOKEN | {"decimals": 6}]}},
        {"terms": TERMS | {"tokens": [TOKEN | {"decimals": 37}]}},
        {"terms": TERMS | {"chain_id": 0}},
    ],
)
def test_an_epoch_that_contradicts_itself_is_refused(change: dict[str, Any]) -> None:
    fields = {"epoch": 1, "cut": (3, 0), "heads": (SHA256, ""), "roots": (SHA256, SHA256), "log_root": SHA256}
    fields |= {"digest": SHA256, "payout_root": HASH, "terms": None}
    assert events.EpochClosed(at_ms=5, **fields)
    with pytest.raises(ValueError, match="validation error"):
        events.EpochClosed(at_ms=5, **fields | change)


#: What was written by earlier versions, and what it is read as. Never change or remove one of these.
PAST_GOLDEN = {
    b'{"version":1,"at_ms":5,"type":"epoch.closed","epoch":1,"cut":[3,0],"heads":["%(sha256)s",""],'
    b'"digest":"%(sha256)s","payout_root":"%(hash)s"}': events.EpochClosed(
        at_ms=5, epoch=1, cut=(3, 0), heads=(SHA256, ""), roots=(), log_root="", digest=SHA256, terms=None,
        payout_root=HASH,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("golden", "event"), PAST_GOLDEN.items())
def test_an_older_version_is_read_as_todays(golden: bytes, event: events.Event) -> None:
    golden = golden_bytes(golden)
    assert events.parse(golden) == event
    assert events.parse(events.dump(event)) == event
    for old, new in ((b'"at_ms"', b'"extra":1,"at_ms"'), (b'"epoch":1', b'"epoch":0'), (b"[3,0]", b"[3]")):
        with pytest.raises(events.UnreadableEvent):
            events.parse(golden.replace(old, new))
    with pytest.raises(events.UnreadableEvent):
        events.parse(golden.replace(b'"version":1', b'"version":3'))


def test_every_past_version_has_golden_bytes() -> None:
    assert {(json.loads(golden)["type"], json.loads(golden)["version"]) for golden in PAST_GOLDEN} == set(PAST)


@pytest.mark.parametrize(("golden", "event"), GOLDEN.items())
def test_golden_bytes_of_every_version_are_read_and_written_for_ever(golden: bytes, event: events.Event) -> None:
    golden = golden_bytes(golden)
    assert events.dump(event) == golden
    assert events.parse(golden) == event


@pytest.mark.parametrize(
    "change",
    [
        (b'"version":1', b'"version":2'),
        (b'"type":"wallet.credited"', b'"type":"wallet.emptied"'),
        (b'"amount_nano":7', b'"amount_nano":7.0'),
        (b'"amount_nano":7', b'"amount_nano":"7"'),
        (b'"amount_nano":7', b'"amount_nano":0'),
        (b'"amount_nano":7', b'"amount_nano":1000000000000000001'),
        (b'"operator":"o"', b'"operator":"o","extra":"SECRET"'),
        (b'"asset":"SHIVER"', b'"asset":"EUR"'),
        (b"{", b"["),
    ],
)
def test_an_event_that_is_not_known_exactly_is_refused_and_not_repeated(change: tuple[bytes, bytes]) -> None:
    with pytest.raises(events.UnreadableEvent) as caught:
        events.parse(next(iter(GOLDEN)).replace(*change, 1))
    assert "SECRET" not in str(caught.value)


def test_every_type_of_event_has_golden_bytes() -> None:
    assert {type(event) for event in GOLDEN.values()} == set(get_args(get_args(events.Written)[0]))


@pytest.mark.parametrize(("golden", "event"), GOLDEN.items())
def test_no_event_takes_a_field_that_it_does_not_name(golden: bytes, event: events.Event) -> None:
    golden = golden_bytes(golden)
    with pytest.raises(events.UnreadableEvent, match="extra_forbidden"):
        events.parse(golden[:-1] + b',"extra":1}')


def test_an_adjustment_of_nothing_is_refused() -> None:
    fields = {"wallet": "w", "at_ms": 0, "asset": "USDC", "reason": "r", "operator": "o", "external_ref": "x"}
    for amount_nano in (0, events.AMOUNT_NANO_MAX + 1, -events.AMOUNT_NANO_MAX - 1):
        with pytest.raises(ValueError, match="amount_nano"):
            events.AdjustmentPosted(**fields, amount_nano=amount_nano)


def _records(nonce: str = NONCE, attempt: int = 1) -> list[replies.Reply]:
    base = {"request_id": REQUEST, "attempt": attempt, "nonce": nonce}
    return [
        Claimed(**base, seq=0, prompt_tokens=12),
        Tokens(**base, seq=1, ids=(1, 2), text="ab", text_bytes=2),
        Alive(**base, seq=2),
        Tokens(**base, seq=3, ids=(3,), text="c", text_bytes=3),
        End(**base, seq=4, finish="stop", completion_tokens=3),
    ]


def test_tally_counts_one_attempt() -> None:
    tally = Tally(REQUEST, 1)
    assert [tally.add(replies.parse(replies.dump(r))) for r in _records()] == [Verdict.COUNTS] * 5
    assert (tally.prompt_tokens, tally.completion_tokens) == (12, 3)
    assert isinstance(tally.terminal, End)


def test_tally_binds_the_first_claim_and_ignores_a_second_c4() -> None:
    tally = Tally(REQUEST, 1)
    tally.add(_records()[0])
    assert tally.add(_records(nonce="other-nonce")[0]) is Verdict.STRAY
    assert tally.add(_records(nonce="other-nonce")[1]) is Verdict.STRAY
    assert tally.add(_records()[1]) is Verdict.COUNTS


def test_tally_names_a_gap_ignores_repeats_and_other_attempts() -> None:
    tally = Tally(REQUEST, 1)
    claimed, first, _, third, _ = _records()
    assert tally.add(first) is Verdict.GAP
    assert tally.add(claimed) is Verdict.COUNTS
    assert tally.add(claimed) is Verdict.STRAY
    assert tally.add(_records(attempt=2)[1]) is Verdict.STRAY
    assert tally.add(third) is Verdict.GAP
    assert tally.completion_tokens == 0


def test_nothing_counts_after_the_end() -> None:
    tally = Tally(REQUEST, 1)
    for record in _records():
        tally.add(record)
    late = Tokens(request_id=REQUEST, attempt=1, nonce=NONCE, seq=5, ids=(9,), text="x", text_bytes=4)
    assert tally.add(late) is Verdict.STRAY
    assert tally.completion_tokens == 3


def test_a_record_that_cannot_be_read_does_not_repeat_its_content() -> None:
    with pytest.raises(replies.UnreadableReply) as caught:
        replies.parse(b'{"kind":"tokens","text":"a secret answer"}')
    assert "secret" not in str(caught.value)
