"""The pure core, row by row: outcomes and their precedence, who pays, the split, the house rule of purity."""

from __future__ import annotations

import ast
import itertools
from pathlib import Path
from typing import Any

import pytest

import ledger
from ledger.apply import step
from ledger.books import DAY_MS, Books
from ledger.decide import Decision
from ledger.digest import chain_link
from ledger.invariants import broken_by, broken_in, overdrawn
from ledger.money import NANO, cost_nano, format_amount
from ledger.outcomes import MEANINGS, Outcome
from ledger.rules import APPROVAL_ABOVE_NANO, TABLES, Pays, charge_nano, who_pays
from ledger.split import apportion, split
from schemas.events import (
    AdjustmentPosted,
    BalanceAsserted,
    Event,
    How,
    ModelPrice,
    RatePublished,
    RequestAccepted,
    RequestAdopted,
    RequestFailed,
    Segment,
    Unreadable,
    UsageRecorded,
    WalletCredited,
)
from schemas.ids import uuid7

T0 = 1_800_000_000_000
PRICE = ModelPrice(model="m", in_nano=1_000, out_nano=2_000)
SECOND = ModelPrice(model="fallback", in_nano=10, out_nano=20)
IDS = [uuid7(T0 + n, bytes([n]) * 10) for n in range(10)]
R = IDS[0]


def accept(rid: str = R, **more: Any) -> RequestAccepted:
    fields: dict[str, Any] = {
        "wallet": "w",
        "at_ms": T0,
        "key_id": "k",
        "owner": "boot-1",
        "rules_version": 1,
        "asset": "SHIVER",
        "prices": (PRICE, SECOND),
        "rate_nano_usd": 1,
        "cap_day": None,
        "hold_nano": 1_000_000,
        "payer": "wallet:w",
    }
    return RequestAccepted(request_id=rid, **(fields | more))


def adopt(epoch: int, rid: str = R, owner: str = "boot-2", wallet: str = "w", at_ms: int = T0) -> RequestAdopted:
    return RequestAdopted(wallet=wallet, at_ms=at_ms, request_id=rid, epoch=epoch, owner=owner)


def use(rid: str = R, tokens: int = 10, **more: Any) -> UsageRecorded:
    fields: dict[str, Any] = {
        "wallet": "w",
        "at_ms": T0,
        "epoch": 1,
        "how": How.STOP,
        "model": "m",
        "prompt_tokens": 5,
        "segments": (Segment(node="n", provider="p", attempt=1, tokens=tokens),),
    }
    return UsageRecorded(request_id=rid, **(fields | more))


def fail(rid: str = R, **more: Any) -> RequestFailed:
    fields: dict[str, Any] = {"wallet": "w", "at_ms": T0, "epoch": 1, "how": How.ERROR}
    return RequestFailed(request_id=rid, **(fields | more))


def credit(ref: str = "r", amount_nano: int = NANO, **more: Any) -> WalletCredited:
    fields: dict[str, Any] = {"wallet": "w", "at_ms": T0, "asset": "SHIVER", "reason": "grant", "operator": "o"}
    return WalletCredited(external_ref=ref, amount_nano=amount_nano, **(fields | more))


def adjust(ref: str = "r", amount_nano: int = -5, **more: Any) -> AdjustmentPosted:
    fields: dict[str, Any] = {"wallet": "w", "at_ms": T0, "asset": "SHIVER", "reason": "why", "operator": "o"}
    return AdjustmentPosted(external_ref=ref, amount_nano=amount_nano, **(fields | more))


def claim(amount_nano: int, **more: Any) -> BalanceAsserted:
    fields: dict[str, Any] = {"wallet": "w", "at_ms": T0, "asset": "SHIVER"}
    return BalanceAsserted(amount_nano=amount_nano, **(fields | more))


def rate(at_ms: int = T0) -> RatePublished:
    return RatePublished(at_ms=at_ms, asset="SHIVER", rate_nano_usd=1, source="s")


def run(*many: Event, books: Books | None = None) -> tuple[Books, list[Decision]]:
    """Fold, with every invariant after every step and every rejection silent."""
    books = books or Books(0)
    decisions = list[Decision]()
    for offset, event in enumerate(many, books.next_offset):
        before = picture(books)
        decision = step(books, event, offset)
        failed = decision.outcome is Outcome.ASSERTION_FAILED
        assert broken_by(decision, event) == ([decision.contradiction] if failed else [])
        assert broken_in(books) == []
        if decision.outcome is not Outcome.APPLIED:
            assert picture(books) == before
        decisions.append(decision)
    return books, decisions


def picture(books: Books) -> object:
    """All that an event may change, but for the count of rejections and the place."""
    accounts = {key: (row.balance_nano, row.entries) for key, row in books.accounts.items()}
    return accounts, dict(books.requests), dict(books.credits), dict(books.adjustments), books.max_event_ms


def balances(books: Books) -> dict[str, int]:
    return {account: row.balance_nano for (account, _), row in books.accounts.items()}


LATER = credit("later", at_ms=T0 + 2 * DAY_MS)
LIMIT = APPROVAL_ABOVE_NANO["SHIVER"]

# name, what stands in the log before, the event, its outcome
OUTCOMES: list[tuple[str, list[Event], Event, Outcome]] = [
    ("credit", [], credit(), Outcome.APPLIED),
    ("credit again", [credit()], credit(), Outcome.DUPLICATE),
    ("credit again, told by another", [credit()], credit(operator="x", at_ms=T0 + 1), Outcome.DUPLICATE),
    ("credit of the same ref, other amount", [credit()], credit(amount_nano=1), Outcome.CONFLICT),
    ("credit of the same ref, other asset", [credit()], credit(asset="USDC"), Outcome.CONFLICT),
    ("the same ref of another wallet", [credit()], credit(wallet="v"), Outcome.APPLIED),
    ("accept", [], accept(), Outcome.APPLIED),
    ("accept again", [accept()], accept(), Outcome.DUPLICATE),
    ("accept again after an adoption", [accept(), adopt(2)], accept(), Outcome.DUPLICATE),
    ("accept with another hold", [accept()], accept(hold_nano=1), Outcome.CONFLICT),
    ("accept with another owner", [accept()], accept(owner="boot-9"), Outcome.CONFLICT),
    ("accept with other prices", [accept()], accept(prices=(PRICE,)), Outcome.CONFLICT),
    ("accept of unknown rules", [], accept(rules_version=2), Outcome.UNKNOWN_RULES),
    ("accept that another wallet pays", [], accept(payer="wallet:v"), Outcome.WRONG_PAYER),
    ("accept that the platform pays", [], accept(payer="platform"), Outcome.WRONG_PAYER),
    ("unknown rules before wrong payer", [], accept(rules_version=2, payer="burn"), Outcome.UNKNOWN_RULES),
    ("accept for the sandbox", [], accept(payer="platform:sandbox"), Outcome.APPLIED),
    ("c1: accept behind its failure", [fail(how=How.NOT_ACKED)], accept(), Outcome.ALREADY_ENDED),
    ("c2: accept of an ended id", [accept(), use()], accept(), Outcome.ALREADY_ENDED),
    ("already ended before unknown rules", [fail()], accept(rules_version=2), Outcome.ALREADY_ENDED),
    ("adopt", [accept()], adopt(2), Outcome.APPLIED),
    ("adopt again", [accept(), adopt(2)], adopt(2), Outcome.DUPLICATE),
    ("c3: adopt where another was first", [accept(), adopt(2)], adopt(2, owner="boot-3"), Outcome.STALE_OWNER),
    ("c3: adopt with a lower epoch", [accept(), adopt(2), adopt(3)], adopt(2), Outcome.STALE_OWNER),
    ("adopt with an epoch too far", [accept()], adopt(3), Outcome.NOT_NEXT_EPOCH),
    ("adopt an unknown id", [], adopt(2), Outcome.UNKNOWN_REQUEST),
    ("adopt an ended id", [accept(), use()], adopt(2), Outcome.ALREADY_ENDED),
    ("usage", [accept()], use(), Outcome.APPLIED),
    ("usage of a fallback", [accept()], use(model="fallback"), Outcome.APPLIED),
    ("usage of a model without a price", [accept()], use(model="x"), Outcome.UNKNOWN_MODEL),
    ("usage of an unknown id", [], use(), Outcome.UNKNOWN_REQUEST),
    ("c2: usage again", [accept(), use()], use(), Outcome.ALREADY_ENDED),
    ("c2: another end", [accept(), use()], fail(), Outcome.ALREADY_ENDED),
    ("c3: usage of the old owner", [accept(), adopt(2)], use(), Outcome.STALE_OWNER),
    ("c3: failure of the old owner", [accept(), adopt(2)], fail(), Outcome.STALE_OWNER),
    ("c3: stale owner before unknown model", [accept(), adopt(2)], use(model="x"), Outcome.STALE_OWNER),
    ("usage of an epoch to come", [accept()], use(epoch=2), Outcome.NOT_NEXT_EPOCH),
    ("usage of the new owner", [accept(), adopt(2)], use(epoch=2), Outcome.APPLIED),
    ("failure", [accept()], fail(), Outcome.APPLIED),
    ("c1: failure of an unknown id", [], fail(), Outcome.APPLIED),
    ("failure again", [fail()], fail(), Outcome.ALREADY_ENDED),
    ("wrong wallet", [accept()], use(wallet="v"), Outcome.WRONG_WALLET),
    ("wrong wallet before stale owner", [accept(), adopt(2)], use(wallet="v"), Outcome.WRONG_WALLET),
    ("wrong wallet before conflict", [accept()], accept(wallet="v", payer="wallet:v"), Outcome.WRONG_WALLET),
    ("too old: accept", [LATER], accept(), Outcome.TOO_OLD),
    ("too old: failure", [LATER], fail(), Outcome.TOO_OLD),
    ("too old: usage", [LATER], use(), Outcome.TOO_OLD),
    ("too old by the running maximum", [LATER, credit("back", at_ms=T0)], accept(), Outcome.TOO_OLD),
    ("too old before already ended", [accept(), use(), LATER], use(), Outcome.TOO_OLD),
    ("too old before unknown rules", [LATER], accept(rules_version=9), Outcome.TOO_OLD),
    ("not too old while it is open", [accept(), LATER], use(), Outcome.APPLIED),
    ("not too old at a day exactly", [credit("d", at_ms=T0 + DAY_MS)], accept(), Outcome.APPLIED),
    ("adjustment down", [], adjust(), Outcome.APPLIED),
    ("adjustment up", [], adjust(amount_nano=5), Outcome.APPLIED),
    ("adjustment again", [adjust()], adjust(), Outcome.DUPLICATE),
    ("adjustment again, told otherwise", [adjust()], adjust(operator="x", reason="y"), Outcome.DUPLICATE),
    ("adjustment of the same ref, other sign", [adjust()], adjust(amount_nano=5), Outcome.CONFLICT),
    ("adjustment of the same ref, other asset", [adjust()], adjust(asset="USDC"), Outcome.CONFLICT),
    ("adjustment of another wallet's ref", [adjust()], adjust(wallet="v"), Outcome.APPLIED),
    ("adjustment of a credit's ref", [credit()], adjust(amount_nano=NANO), Outcome.APPLIED),
    ("credit of an adjustment's ref", [adjust(amount_nano=NANO)], credit(), Outcome.APPLIED),
    ("adjustment at the limit", [], adjust(amount_nano=LIMIT), Outcome.APPLIED),
    ("adjustment above the limit", [], adjust(amount_nano=LIMIT + 1), Outcome.NEEDS_APPROVAL),
    ("adjustment below minus the limit", [], adjust(amount_nano=-LIMIT - 1), Outcome.NEEDS_APPROVAL),
    ("the limit is the asset's", [], adjust(amount_nano=LIMIT, asset="USDC"), Outcome.NEEDS_APPROVAL),
    ("approved by its own operator", [], adjust(amount_nano=LIMIT + 1, approver="o"), Outcome.NEEDS_APPROVAL),
    ("approved", [], adjust(amount_nano=LIMIT + 1, approver="p"), Outcome.APPLIED),
    (
        "approved the second time",
        [adjust(amount_nano=LIMIT + 1)],
        adjust(amount_nano=LIMIT + 1, approver="p"),
        Outcome.APPLIED,
    ),
    ("conflict before needs approval", [adjust(amount_nano=9)], adjust(amount_nano=LIMIT + 1), Outcome.CONFLICT),
    ("assertion of nothing", [], claim(0), Outcome.APPLIED),
    ("assertion", [credit(), adjust()], claim(NANO - 5), Outcome.APPLIED),
    ("assertion below zero", [adjust()], claim(-5), Outcome.APPLIED),
    ("assertion again", [credit(), claim(NANO)], claim(NANO), Outcome.APPLIED),
    ("assertion of too much", [credit()], claim(NANO + 1), Outcome.ASSERTION_FAILED),
    ("assertion of another asset", [credit()], claim(NANO, asset="USDC"), Outcome.ASSERTION_FAILED),
    ("assertion of another wallet", [credit()], claim(NANO, wallet="v"), Outcome.ASSERTION_FAILED),
    ("assertion behind its change", [credit(), accept(), use()], claim(NANO), Outcome.ASSERTION_FAILED),
    ("a failed assertion does not move time", [claim(1, at_ms=T0 + 9 * DAY_MS)], accept(), Outcome.APPLIED),
    ("an assertion moves time", [claim(0, at_ms=T0 + 9 * DAY_MS)], accept(), Outcome.TOO_OLD),
    ("another fact", [], rate(), Outcome.APPLIED),
    ("another fact again", [rate()], rate(), Outcome.APPLIED),
    ("another fact moves time", [rate(T0 + 9 * DAY_MS)], accept(), Outcome.TOO_OLD),
    ("no event, with an erratum", [accept()], Unreadable(), Outcome.UNREADABLE),
    ("a rejected event does not move time", [use(IDS[1], at_ms=T0 + 9 * DAY_MS)], accept(), Outcome.APPLIED),
]


@pytest.mark.parametrize(
    ("before", "event", "outcome"), [row[1:] for row in OUTCOMES], ids=[row[0] for row in OUTCOMES]
)
def test_outcome(before: list[Event], event: Event, outcome: Outcome) -> None:
    books, decisions = run(*before, event)
    assert decisions[-1].outcome is outcome
    assert books.next_offset == len(before) + 1


def test_every_outcome_is_hit_and_explained() -> None:
    assert {row[3] for row in OUTCOMES} == set(Outcome) == set(MEANINGS)


# How a request ended, and who pays where tokens were delivered. The design's table, written out a second time.
BILLING = {
    How.STOP: "wallet:w",
    How.LENGTH: "wallet:w",
    How.TOOL_CALLS: "wallet:w",
    How.CLIENT_GONE: "wallet:w",
    How.NODE_DIED: "wallet:w",
    How.DEADLINE: "wallet:w",
    How.ERROR: "wallet:w",
    How.OWNER_DIED: "platform:losses",
    How.ZERO_TOKENS: None,
    How.REJECTED: None,
    How.NO_NODE: None,
    How.NOT_ACKED: None,
}


@pytest.mark.parametrize("how", list(How))
def test_c6_billing_table(how: How) -> None:
    books, decisions = run(accept(), use(how=how))
    cost = 5 * 1_000 + 10 * 2_000
    payers = {account: nano for account, nano in balances(books).items() if nano < 0}
    assert payers == ({} if BILLING[how] is None else {BILLING[how]: -cost})
    by_client = cost if BILLING[how] == "wallet:w" else 0
    assert decisions[-1].released_nano == by_client
    assert charge_nano(PRICE, use(how=how), 1_000_000) == by_client


@pytest.mark.parametrize("how", list(How))
def test_c6_nothing_is_paid_where_nothing_was_delivered(how: How) -> None:
    for end in (use(how=how, tokens=0), fail(how=how)):
        books, decisions = run(accept(), end)
        assert balances(books) == {}
        assert decisions[-1].released_nano == 0
    assert who_pays(1, how, 0) is Pays.NOBODY


def test_every_version_of_the_rules_has_every_how() -> None:
    assert all(set(table) == set(How) for table in TABLES.values())


def test_c6_two_nodes_are_paid_for_their_part_and_the_client_pays_once() -> None:
    segments = (
        Segment(node="a", provider="p", attempt=1, tokens=3),
        Segment(node="b", provider="q", attempt=2, tokens=7),
    )
    books, _ = run(accept(), use(segments=segments))
    assert balances(books) == {
        "wallet:w": -25_000,
        "burn": 250,
        "provider:p": 6_683,  # 22_275 x 3 / 10 = 6682.5, and x 7 / 10 = 15592.5: equal remainders, the earlier first
        "provider:q": 15_592,
        "platform": 2_475,
    }


def test_two_segments_of_one_provider_are_one_posting() -> None:
    segments = tuple(Segment(node=f"n{n}", provider="p", attempt=n, tokens=1) for n in (1, 2, 3))
    _, decisions = run(accept(), use(segments=segments))
    assert [p.account for p in decisions[-1].postings] == ["wallet:w", "burn", "provider:p", "platform"]


def test_s9_a_charge_above_its_hold_is_clamped_and_marked() -> None:
    books, decisions = run(accept(hold_nano=24_999), use())
    request = decisions[-1].request
    assert request is not None
    assert (request.charge_nano, request.clamped) == (24_999, True)
    assert balances(books)["wallet:w"] == -24_999
    exact = run(accept(hold_nano=25_000), use())[1][-1].request
    assert exact is not None
    assert (exact.charge_nano, exact.clamped) == (25_000, False)


def test_the_sandbox_pays_for_free_keys() -> None:
    books, decisions = run(accept(payer="platform:sandbox"), use())
    assert balances(books)["platform:sandbox"] == -25_000
    assert decisions[-1].released_nano == 25_000


def test_s6_forgetting_ended_ids_changes_no_outcome() -> None:
    log: list[Event] = [accept(), use(), accept(IDS[1]), fail(IDS[1]), accept(IDS[2]), LATER]
    probes: list[Event] = [
        *itertools.chain.from_iterable([accept(i), use(i), fail(i), adopt(2, i)] for i in (R, IDS[1], IDS[3])),
        use(IDS[2]),
    ]
    kept, _ = run(*log)
    forgot, _ = run(*log)
    assert forgot.forget_ended() == 2
    assert IDS[2] in forgot.requests  # still open
    assert [d.outcome for d in run(*probes, books=kept)[1]] == [d.outcome for d in run(*probes, books=forgot)[1]]


def test_s6_an_ended_id_is_remembered_until_it_is_too_old() -> None:
    books, _ = run(accept(), use(), rate(T0 + DAY_MS))
    assert books.forget_ended() == 0
    assert run(use(), books=books)[1][-1].outcome is Outcome.ALREADY_ENDED


def test_c1_whoever_is_closed_gives_its_admission_back() -> None:
    assert run(fail())[1][-1].released_nano == 0
    assert run(accept(), use(), use())[1][-1].released_nano == 25_000
    assert run(LATER, fail())[1][-1].released_nano == 0
    for still_open in (run(accept())[1], run(accept(), adopt(2), use())[1], run(accept(), use(wallet="v"))[1]):
        assert still_open[-1].released_nano is None
    assert run(accept(), use(), fail(wallet="v"))[1][-1].released_nano is None


def test_image_tokens_cost_a_factor_of_prompt_tokens() -> None:
    assert cost_nano(PRICE, 10, 5, 3) == (10 + 2 * 5) * 1_000 + 3 * 2_000


@pytest.mark.parametrize(
    ("nano", "text"),
    [(0, "0"), (1, "0.000000001"), (12_300_000, "0.0123"), (NANO, "1"), (-NANO, "-1"), (-1, "-0.000000001")],
)
def test_amounts_are_exact_decimals(nano: int, text: str) -> None:
    assert format_amount(nano) == text


def test_split_by_hand() -> None:
    assert split(100, [1]) == (1, (89,), 10)
    assert split(99, [1]) == (0, (89,), 10)
    assert split(1, [1]) == (0, (0,), 1)
    assert split(1000, [0, 0]) == (10, (0, 0), 990)
    assert apportion(10, [1, 1, 1]) == (4, 3, 3)
    with pytest.raises(ValueError, match="never negative"):
        split(-1, [1])


def test_invariants_see_what_is_wrong() -> None:
    _, decisions = run(accept(), use())
    good = decisions[-1]
    assert broken_by(good._replace(postings=good.postings[:-1]))
    assert broken_by(good._replace(outcome=Outcome.DUPLICATE))
    assert good.request is not None
    assert broken_by(good._replace(request=good.request._replace(hold_nano=1)))
    books, _ = run(credit(), accept(), use())
    books.accounts["burn", "SHIVER"].balance_nano += 1
    books.opened_count += 1
    assert len(broken_in(books)) == 2
    assert overdrawn([run(accept(), use())[0]]) == [("wallet:w", "SHIVER", -25_000)]


def test_the_chain_tells_places_and_fields_apart() -> None:
    links = {
        chain_link(b"", 0, 1, b"a", b"bc"),
        chain_link(b"", 0, 1, b"ab", b"c"),
        chain_link(b"", 1, 0, b"a", b"bc"),
        chain_link(b"", 0, 11, b"a", b"bc"),
        chain_link(b"x", 0, 1, b"a", b"bc"),
    }
    assert len(links) == 5


SHELLS = {
    "log.py", "reader.py", "replay.py", "compare.py", "archive.py", "parquet.py", "columns.py", "bulk.py",
    "kafka_fold.py", "verify.py", "console.py", "spool.py", "epoch_log.py", "verify_epochs.py",
    "commands.py", "commands_rules.py", "commands_archive.py", "commands_exports.py",
    "commands_errata.py", "errata_store.py",
    "check_proof.py", "prove.py", "commands_proofs.py", "source.py", "parquet_export.py",
}  # fmt: skip
# eth_hash is keccak256 and nothing else.
ALLOWED = {
    "__future__",
    "collections",
    "enum",
    "eth_hash",
    "functools",
    "hashlib",
    "json",
    "orjson",
    "typing",
    "ledger",
    "schemas",
}


@pytest.mark.parametrize("path", sorted(Path(ledger.__file__).parent.glob("*.py")), ids=lambda p: p.name)
def test_the_core_is_pure(path: Path) -> None:
    """No I/O, clock, random, logging, Kafka or Faust; no float and no true division; no shell behind the back."""
    if path.name in SHELLS:
        return
    for node in ast.walk(ast.parse(path.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for name in names:
            assert name.partition(".")[0] in ALLOWED, f"{path.name} imports {name}"
            assert f"{name.removeprefix('ledger.')}.py" not in SHELLS, f"{path.name} imports a shell: {name}"
        assert not (isinstance(node, ast.Constant) and isinstance(node.value, float)), f"a float in {path.name}"
        assert not (isinstance(node, ast.Name) and node.id in ("float", "open", "print", "id", "hash")), path.name
        assert not (isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Div)), path.name
