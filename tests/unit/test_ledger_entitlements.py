"""Entitlements: cumulative, monotone, the sandbox's out of its budget alone; the same in any interleaving."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from test_ledger_core import T0, accept, credit, run, use

from ledger.block_tree import BlockTree
from ledger.books import Posting
from ledger.decide import Decision
from ledger.entitlements import Earned, Entitlement, Funds, Key, earnings_of, entitle
from ledger.epochs import EpochFold, counts, differences, payable_faults
from ledger.merkle import Tree, leaf_hash
from ledger.money import NANO
from ledger.outcomes import Outcome
from ledger.payout_tree import EMPTY_ROOT, units_of
from ledger.rules import LOSSES, SANDBOX
from schemas.events import EpochClosed, ProviderRegistered, SandboxFunded, Segment, dump
from schemas.facts import Terms, Token

TERMS = Terms(
    chain_id=5,
    contract="0x" + "c0" * 20,
    tokens=(
        Token(asset="SHIVER", token="0x" + "51" * 20, decimals=18),
        Token(asset="USDC", token="0x" + "0d" * 20, decimals=6),
    ),
)
P, Q, R = ("p", "SHIVER"), ("q", "SHIVER"), ("r", "SHIVER")


def fund(amount_nano: int = 100, ref: str = "a", **more: Any) -> SandboxFunded:
    fields: dict[str, Any] = {"at_ms": T0, "asset": "SHIVER", "reason": "why", "operator": "ann"} | more
    return SandboxFunded(amount_nano=amount_nano, external_ref=ref, **fields)


def register(provider: str = "p", recipient: str | None = "0x" + "aa" * 20) -> ProviderRegistered:
    return ProviderRegistered(at_ms=T0, provider=provider, name=provider, recipient=recipient)


# What the sandbox pays --------------------------------------------------------------------------------------------


def test_the_payer_is_the_first_posting_of_the_record() -> None:
    segments = tuple(
        Segment(node=n, provider=p, attempt=i, tokens=5) for i, (n, p) in enumerate([("a", "p"), ("b", "q")], 1)
    )
    for payer, share in ((SANDBOX, 1), ("wallet:w", 0)):
        _, (_, done) = run(accept(payer=payer), use(segments=segments))
        for (provider, asset), nano, sandbox in earnings_of(done.postings):
            assert (provider in "pq", asset) == (True, "SHIVER")
            assert nano > 0
            assert sandbox == nano * share
    assert earnings_of([Posting(LOSSES, "USDC", -9), Posting("provider:a:b", "USDC", 9)]) == [(("a:b", "USDC"), 9, 0)]
    assert earnings_of(run(credit())[1][0].postings) == []


def test_without_a_budget_the_sandbox_pays_nobody() -> None:
    now = entitle({}, {P: Earned(100, 60)}, {})
    assert now == {P: Entitlement(100, 60, 0, 40, 0)}
    assert now[P].sandbox_waiting_nano == 60


def test_the_budget_is_shared_by_what_is_unpaid_and_its_rest_is_kept() -> None:
    earned = {P: Earned(30, 30), Q: Earned(60, 60), R: Earned(11, 10)}
    first = entitle({}, earned, {"SHIVER": 50, "USDC": 10**9})
    assert [first[key].sandbox_payable_nano for key in (P, Q, R)] == [15, 30, 5]
    assert first[R].entitled_nano == 6
    second = entitle(first, earned, {"SHIVER": 51})
    # Of one unit more the largest remainder has it: 30 of the 50 that are unpaid are q's.
    assert [second[key].sandbox_payable_nano for key in (P, Q, R)] == [15, 31, 5]
    last = entitle(second, earned, {"SHIVER": 10**6})
    assert [last[key].sandbox_payable_nano for key in (P, Q, R)] == [30, 60, 10]
    later = entitle(last, {**earned, P: Earned(40, 40)}, {"SHIVER": 10**6})
    assert later[P].sandbox_payable_nano == 40


def test_equal_remainders_go_by_the_provider_id() -> None:
    earned = {key: Earned(1, 1) for key in (R, Q, P)}
    assert [entitle({}, earned, {"SHIVER": 2})[key].sandbox_payable_nano for key in (P, Q, R)] == [1, 1, 0]


# Never less than before (S15) -------------------------------------------------------------------------------------


def test_a_fall_opens_a_debt_that_later_earnings_make_good() -> None:
    first = entitle({}, {P: Earned(100, 0)}, {})
    fallen = entitle(first, {P: Earned(70, 0)}, {})
    assert fallen == {P: Entitlement(70, 0, 0, 100, 30)}
    assert entitle(fallen, {P: Earned(90, 0)}, {})[P] == Entitlement(90, 0, 0, 100, 10)
    assert entitle(fallen, {P: Earned(120, 0)}, {})[P] == Entitlement(120, 0, 0, 120, 0)


def test_what_the_sandbox_takes_back_is_a_debt_too_and_its_budget_is_spent() -> None:
    first = entitle({}, {P: Earned(100, 100)}, {"SHIVER": 100})
    fallen = entitle(first, {P: Earned(40, 40), Q: Earned(9, 9)}, {"SHIVER": 100})
    assert fallen[P] == Entitlement(40, 40, 100, 100, 60)
    assert fallen[Q].entitled_nano == 0


keys = st.tuples(st.sampled_from("pqr"), st.sampled_from(["SHIVER", "USDC"]))
moves = st.lists(st.tuples(keys, st.integers(-500, 2000), st.booleans()), max_size=12)


@settings(deadline=None)
@given(st.lists(st.tuples(moves, st.integers(0, 3000)), min_size=1, max_size=6))
def test_entitlements_are_monotone_and_within_what_was_earned_and_funded(
    many: list[tuple[list[tuple[Key, int, bool]], int]],
) -> None:
    earned: dict[Key, Earned] = {}
    before: dict[Key, Entitlement] = {}
    budget = 0
    for steps, more in many:
        for key, nano, sandbox in steps:
            earned[key] = earned.get(key, Earned()).plus(nano, nano if sandbox else 0)
        budget += more
        funded = {"SHIVER": budget, "USDC": budget // 2}
        now = entitle(before, dict(reversed(earned.items())), funded)
        assert now == entitle(before, earned, funded)
        for key, e in now.items():
            was = before.get(key, Entitlement())
            assert e.entitled_nano >= was.entitled_nano
            assert e.sandbox_payable_nano >= was.sandbox_payable_nano
            assert e.debt_nano >= 0
            payable = e.earned_nano - e.sandbox_earned_nano + min(e.sandbox_payable_nano, e.sandbox_earned_nano)
            assert e.entitled_nano - e.debt_nano == payable
        for asset, limit in funded.items():
            given_nano = sum(e.sandbox_payable_nano for key, e in now.items() if key[1] == asset)
            assert given_nano <= limit
            if any(e.sandbox_waiting_nano for key, e in now.items() if key[1] == asset):
                assert given_nano == limit  # nothing is held back while somebody waits
        before = now


# The budget --------------------------------------------------------------------------------------------------------


def test_a_reference_counts_once_and_a_large_budget_needs_another_person() -> None:
    funds = Funds()
    large = 10_000 * NANO + 1
    told = [
        (fund(), "counted"),
        (fund(at_ms=T0 + 1, operator="bob"), "duplicate"),
        (fund(101), "conflict"),
        (fund(asset="USDC"), "conflict"),
        (fund(large, "b"), "needs_approval"),
        (fund(large, "b", approver="ann"), "needs_approval"),
        (fund(large, "b", approver="bob"), "counted"),
        (fund(10_000 * NANO, "c"), "counted"),
    ]
    for offset, (event, verdict) in enumerate(told):
        taken = funds.take(event, 3, offset)
        assert (taken.verdict, taken.partition, taken.offset) == (verdict, 3, offset)
    assert funds.funded_nano == {"SHIVER": 100 + large + 10_000 * NANO}


# The fold ----------------------------------------------------------------------------------------------------------


def applied(*postings: Posting) -> Decision:
    return Decision(Outcome.APPLIED, postings)


def test_who_has_a_leaf_and_who_waits_for_what() -> None:
    fold = EpochFold(1)
    amounts = {"p": 1_999, "q": 999, "r": 5_000, "s": 5_000}
    for provider, nano in amounts.items():
        fold.decided(applied(Posting("wallet:w", "USDC", -nano), Posting(f"provider:{provider}", "USDC", nano)))
    fold.decided(applied(Posting(SANDBOX, "SHIVER", -5), Posting("provider:p", "SHIVER", 5)))
    for event in (register("p", "0x" + "11" * 20), register("p"), register("q"), register("s"), register("s", None)):
        fold.fact(event, 0, 0)
    closing = fold.closing(TERMS)
    waits = {provider: closing.payouts[provider, "USDC"].waits for provider in amounts}
    assert waits == {
        "p": "",
        "q": "less than the token's smallest unit",
        "r": "no recipient is registered",
        "s": "no recipient is registered",
    }
    assert closing.payouts["p", "SHIVER"].waits == "nothing is payable"
    (leaf,) = closing.leaves
    assert (leaf.recipient, leaf.amount, leaf.provider) == ("0x" + "aa" * 20, 1, "p")
    assert payable_faults({}, closing, TERMS) == []
    # The remainder of 999 is not lost: one nano more makes the second unit.
    fold.close(closing)
    fold.decided(applied(Posting("wallet:w", "USDC", -1), Posting("provider:p", "USDC", 1)))
    fold.fact(register("q", "0x" + "22" * 20), 0, 0)
    fold.decided(applied(Posting("wallet:w", "USDC", -1), Posting("provider:q", "USDC", 1)))
    assert {leaf.provider: leaf.amount for leaf in fold.closing(TERMS).leaves} == {"p": 2, "q": 1}
    without = fold.closing(TERMS.model_copy(update={"tokens": TERMS.tokens[:1]}))
    assert without.payouts["p", "USDC"].waits == "no token pays this asset"
    assert without.payout_root == "0x" + EMPTY_ROOT.hex()


def test_faults_of_an_epoch_are_seen() -> None:
    fold = EpochFold(1)
    fold.earn(("p", "SHIVER"), 10, 0)
    fold.fact(register(), 0, 0)
    closing = fold.closing(TERMS)
    assert payable_faults({("p", "SHIVER"): Entitlement(9, 0, 0, 11, 0)}, closing, TERMS) != []
    assert payable_faults({("q", "SHIVER"): Entitlement(1, 0, 0, 1, 0)}, closing, TERMS) != []
    short = closing._replace(leaves=tuple(leaf._replace(amount=leaf.amount - 1) for leaf in closing.leaves))
    (wrong,) = payable_faults({}, short, TERMS)
    assert "the leaves sum to" in wrong


def test_only_the_first_of_the_next_number_counts() -> None:
    def closed(epoch: int, *cut: int) -> EpochClosed:
        return EpochClosed(
            at_ms=T0, epoch=epoch, cut=cut, heads=tuple("a" * 64 if n else "" for n in cut), roots=(), log_root="",
            digest="b" * 64, terms=None, payout_root="0x" + "0" * 64,
        )  # fmt: skip

    first = closed(1, 3, 4)
    assert counts(None, first, 0, 3, 2)
    assert not counts(None, first, 0, 2, 2)  # its cut reaches past it
    assert not counts(None, first, 0, 9, 3)  # another number of partitions
    assert not counts(None, closed(2, 3, 4), 0, 9, 2)
    assert not counts(first, first, 0, 9, 2)
    assert not counts(first, closed(2, 3, 3), 0, 9, 2)
    assert counts(first, closed(2, 3, 4), 0, 9, 2)
    assert not counts(first, closed(3, 3, 4), 0, 9, 2)


EARNED = (Posting("provider:q", "SHIVER", 40), Posting("provider:p", "SHIVER", 30))
RECORDS: list[tuple[str, Any]] = [
    ("e", applied(Posting("wallet:w", "SHIVER", -50), Posting("provider:p", "SHIVER", 50))),
    (
        "e",
        applied(
            Posting(SANDBOX, "SHIVER", -70), Posting("provider:q", "SHIVER", 40), Posting("provider:p", "SHIVER", 30)
        ),
    ),
    ("f", register("p")),
    ("f", register("q")),
    ("f", register("p", "0x" + "bb" * 20)),
    ("f", fund(33)),
    ("f", fund(34)),
    ("e", applied(Posting("wallet:w", "USDC", -5000), Posting("provider:q", "USDC", 5000))),
]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 7)), max_size=25), st.randoms(use_true_random=False))
def test_any_interleaving_of_the_partitions_makes_the_same_epoch(rows: list[tuple[int, int]], rng: Any) -> None:
    partitions: list[list[int]] = [[], [], []]
    for partition, number in rows:
        # Facts of one subject stand in one partition.
        kind, what = RECORDS[number]
        home = partition if kind == "e" else 0 if isinstance(what, SandboxFunded) else len(what.provider)
        partitions[home].append(number)

    def fold_of(order: list[int]) -> Any:
        fold, at = EpochFold(3), [0, 0, 0]
        for partition in order:
            kind, what = RECORDS[partitions[partition][at[partition]]]
            value = dump(what) if kind == "f" else repr(what).encode()
            fold.leaf(partition, at[partition], b"k", value)
            if kind == "f":
                fold.fact(what, partition, at[partition])
            else:
                fold.decided(what)
            at[partition] += 1
        return fold.closing(TERMS), fold.new_records

    order = [partition for partition, numbers in enumerate(partitions) for _ in numbers]
    straight = fold_of(order)
    rng.shuffle(order)
    assert fold_of(order) == straight
    closing = straight[0]
    decimals = {token.asset: token.decimals for token in TERMS.tokens}
    assert sum(leaf.amount for leaf in closing.leaves) == sum(
        units_of(e.entitled_nano, decimals[key[1]])
        for key, e in closing.entitlements.items()
        if not closing.payouts[key].waits
    )


def test_an_event_that_says_otherwise_than_the_log_is_named_by_the_field() -> None:
    fold = EpochFold(2)
    fold.leaf(1, 0, b"k", b"v")
    closing = fold.closing(TERMS)
    heads = ("", "a" * 64)
    event = EpochClosed(
        at_ms=T0, epoch=1, cut=closing.cut, heads=heads, roots=closing.roots, log_root=closing.log_root(heads),
        digest="b" * 64, terms=TERMS, payout_root=closing.payout_root,
    )  # fmt: skip
    assert differences(event, closing, heads, "b" * 64) == []
    for name, value in {
        "heads": ("", "c" * 64),
        "roots": (closing.roots[1], closing.roots[1]),
        "log_root": "c" * 64,
        "digest": "c" * 64,
        "payout_root": "0x" + "c" * 64,
    }.items():
        wrong = differences(event.model_copy(update={name: value}), closing, heads, "b" * 64)
        assert [what.split(" ")[0].rstrip(":") for what in wrong] == [name]
    assert differences(event.model_copy(update={"digest": "c" * 64}), closing, heads) == []
    old = event.model_copy(update={"roots": (), "log_root": "", "terms": None, "payout_root": "0x" + "c" * 64})
    assert differences(old, closing, heads) == []


# Blocks of the log's trees -----------------------------------------------------------------------------------------


@given(st.integers(0, 70), st.integers(0, 70), st.integers(0, 4))
def test_a_tree_in_two_storeys_is_the_tree(first: int, more: int, bits: int) -> None:
    leaves = [leaf_hash(b"%d" % n) for n in range(first + more)]
    one, two = Tree(), BlockTree(block_bits=bits)
    for leaf in leaves[:first]:
        one.add(leaf)
        two.add(leaf)
    blocks = two.blocks
    two = BlockTree(two.size, two.dump(), block_bits=bits)  # as the next epoch goes on
    for leaf in leaves[first:]:
        one.add(leaf)
        two.add(leaf)
    assert (two.size, two.root(), two.dump()) == (one.size, one.root(), one.dump())
    blocks = blocks + two.blocks
    assert [number for number, _ in blocks] == list(range((first + more) >> bits))
    for number, root in blocks:
        part = Tree()
        for leaf in leaves[number << bits : (number + 1) << bits]:
            part.add(leaf)
        assert part.root() == root
