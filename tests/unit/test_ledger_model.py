"""The core against a naive model that works every answer out from the whole log, and properties of the fold."""

from __future__ import annotations

import random
import subprocess
import sys
from fractions import Fraction
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ledger.apply import step
from ledger.books import DAY_MS, Books
from ledger.digest import digest
from ledger.invariants import broken_by, broken_in
from ledger.outcomes import Outcome
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
    RequestEvent,
    RequestFailed,
    Segment,
    UsageRecorded,
    WalletCredited,
)
from schemas.ids import uuid7, uuid7_ms

T0 = 1_800_000_000_000
WALLETS = ("a", "b")
ASSETS: dict[str, Any] = {"a": "SHIVER", "b": "USDC"}
LIMITS = {"a": 10_000 * 10**9, "b": 1_000 * 10**9}
PRICE = ModelPrice(model="m", in_nano=7, out_nano=13)
SLOW = (HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large)
QUICK = settings(max_examples=120, deadline=None, suppress_health_check=SLOW)


class Naive:
    """What the rules say, told from the list of applied events alone. Slow, and with no state to keep right."""

    def __init__(self) -> None:
        self.applied: list[Event] = []

    def outcome(self, event: Event) -> Outcome:
        if isinstance(event, WalletCredited):
            for old in self.applied:
                if isinstance(old, WalletCredited) and (old.wallet, old.external_ref) == (
                    event.wallet,
                    event.external_ref,
                ):
                    same = (old.asset, old.amount_nano) == (event.asset, event.amount_nano)
                    return Outcome.DUPLICATE if same else Outcome.CONFLICT
            return Outcome.APPLIED
        if isinstance(event, AdjustmentPosted):
            return self.adjustment(event)
        if isinstance(event, BalanceAsserted):
            return Outcome.APPLIED if event.amount_nano == self.has(event.wallet) else Outcome.ASSERTION_FAILED
        if isinstance(event, RatePublished):
            return Outcome.APPLIED
        life = [e for e in self.applied if isinstance(e, RequestEvent) and e.request_id == event.request_id]
        if life and not isinstance(life[-1], UsageRecorded | RequestFailed):
            return self.while_open(life, event)
        if uuid7_ms(event.request_id) < max((e.at_ms for e in self.applied), default=0) - DAY_MS:
            return Outcome.TOO_OLD
        if life:
            return Outcome.ALREADY_ENDED
        return Outcome.APPLIED if isinstance(event, RequestAccepted | RequestFailed) else Outcome.UNKNOWN_REQUEST

    def adjustment(self, event: AdjustmentPosted) -> Outcome:
        for old in self.applied:
            if isinstance(old, AdjustmentPosted) and (old.wallet, old.external_ref) == (
                event.wallet,
                event.external_ref,
            ):
                return Outcome.DUPLICATE if old.amount_nano == event.amount_nano else Outcome.CONFLICT
        alone = event.approver in (None, event.operator)
        return Outcome.NEEDS_APPROVAL if abs(event.amount_nano) > LIMITS[event.wallet] and alone else Outcome.APPLIED

    def has(self, wallet: str) -> int:
        """What a wallet must have, from the applied events alone."""
        got = sum(
            e.amount_nano
            for e in self.applied
            if isinstance(e, WalletCredited | AdjustmentPosted) and e.wallet == wallet
        )
        return got - self.spent().get(f"wallet:{wallet}", 0)

    def while_open(self, life: list[Any], event: Any) -> Outcome:
        accept, epoch = life[0], len(life)
        if event.wallet != accept.wallet:
            return Outcome.WRONG_WALLET
        if isinstance(event, RequestAccepted):
            return Outcome.DUPLICATE if event == accept else Outcome.CONFLICT
        wanted = epoch + 1 if isinstance(event, RequestAdopted) else epoch
        if event.epoch == wanted:
            return Outcome.APPLIED
        if event.epoch > wanted:
            return Outcome.NOT_NEXT_EPOCH
        if isinstance(event, RequestAdopted) and epoch > 1 and event.epoch == epoch and event.owner == life[-1].owner:
            return Outcome.DUPLICATE
        return Outcome.STALE_OWNER

    def spent(self) -> dict[str, int]:
        """What each payer paid, worked out from the applied ends."""
        out: dict[str, int] = {}
        for end in self.applied:
            if not isinstance(end, UsageRecorded):
                continue
            accept = next(e for e in self.applied if isinstance(e, RequestAccepted) and e.request_id == end.request_id)
            tokens = sum(s.tokens for s in end.segments)
            nothing = end.how in (How.ZERO_TOKENS, How.REJECTED, How.NO_NODE, How.NOT_ACKED) or not tokens
            payer = "platform:losses" if end.how is How.OWNER_DIED else accept.payer
            cost = 0 if nothing else min(accept.hold_nano, 7 * end.prompt_tokens + 13 * tokens)
            if cost:
                out[payer] = out.get(payer, 0) + cost
        return out


class Lives(RuleBasedStateMachine):
    """Any order of events, by any number of owners, with duplicates and days passing."""

    def __init__(self) -> None:
        super().__init__()
        self.books = Books(0)
        self.naive = Naive()
        self.log: list[Event] = []
        self.ids: list[str] = []
        self.now_ms = T0
        self.rng = random.Random(7)

    def feed(self, event: Event) -> None:
        expected = self.naive.outcome(event)
        rejected = self.books.rejected
        decision = step(self.books, event, len(self.log))
        self.log.append(event)
        assert decision.outcome is expected, event
        failed = expected is Outcome.ASSERTION_FAILED
        assert broken_by(decision, event) == ([decision.contradiction] if failed else [])
        if expected is Outcome.APPLIED:
            self.naive.applied.append(event)
        assert self.books.rejected == rejected + (expected is not Outcome.APPLIED)

    @rule(wallet=st.sampled_from(WALLETS), ref=st.sampled_from("xyz"), amount=st.sampled_from([1, 10**9]))
    def credit(self, wallet: str, ref: str, amount: int) -> None:
        self.feed(
            WalletCredited(
                wallet=wallet, at_ms=self.now_ms, asset=ASSETS[wallet], amount_nano=amount, external_ref=ref,
                reason="grant", operator="o",
            )
        )  # fmt: skip

    @rule(
        wallet=st.sampled_from(WALLETS),
        ref=st.sampled_from("xy"),
        amount=st.sampled_from([-1, 10**9, 2 * 10**12, 10**14]),
        approver=st.sampled_from([None, "o", "p"]),
    )
    def adjust(self, wallet: str, ref: str, amount: int, approver: str | None) -> None:
        self.feed(
            AdjustmentPosted(
                wallet=wallet, at_ms=self.now_ms, asset=ASSETS[wallet], amount_nano=amount, reason="r", operator="o",
                external_ref=ref, approver=approver,
            )
        )  # fmt: skip

    @rule()
    def publish(self) -> None:
        self.feed(RatePublished(at_ms=self.now_ms, asset="USDC", rate_nano_usd=10**9, source="s"))

    @rule(wallet=st.sampled_from(WALLETS), off=st.sampled_from([0, 0, 1]))
    def claim(self, wallet: str, off: int) -> None:
        amount_nano = self.naive.has(wallet) + off
        self.feed(BalanceAsserted(wallet=wallet, at_ms=self.now_ms, asset=ASSETS[wallet], amount_nano=amount_nano))

    @rule(wallet=st.sampled_from(WALLETS), hold=st.sampled_from([0, 50, 10**6]), sandbox=st.booleans())
    def accept_new(self, wallet: str, hold: int, sandbox: bool) -> None:
        self.ids.append(uuid7(self.now_ms, self.rng.randbytes(10)))
        self.accept(-1, wallet, hold, sandbox)

    def accept(self, which: int, wallet: str, hold: int, sandbox: bool) -> None:
        self.feed(
            RequestAccepted(
                wallet=wallet, at_ms=self.now_ms, request_id=self.ids[which], key_id="k", owner="boot", rules_version=1,
                asset=ASSETS[wallet], prices=(PRICE,), rate_nano_usd=1, cap_day=None, hold_nano=hold,
                payer="platform:sandbox" if sandbox else f"wallet:{wallet}",
            )
        )  # fmt: skip

    @precondition(lambda self: self.log)
    @rule(data=st.data())
    def again(self, data: st.DataObject) -> None:
        self.feed(data.draw(st.sampled_from(self.log[-12:])))

    def aim(self, data: st.DataObject, wallet: str, epoch: int) -> tuple[str, str, int]:
        """Some id, and half of the time the wallet and the epoch that it has: else hardly an event would be applied."""
        rid = data.draw(st.sampled_from(self.ids[-4:]))
        known = self.books.requests.get(rid)
        if known is not None and data.draw(st.booleans()):
            return rid, known.wallet_id, known.owner_epoch
        return rid, wallet, epoch

    @precondition(lambda self: self.ids)
    @rule(data=st.data(), wallet=st.sampled_from(WALLETS), epoch=st.integers(1, 3), owner=st.sampled_from("pq"))
    def adopt(self, data: st.DataObject, wallet: str, epoch: int, owner: str) -> None:
        rid, wallet, epoch = self.aim(data, wallet, epoch)
        epoch += 1
        self.feed(RequestAdopted(wallet=wallet, at_ms=self.now_ms, request_id=rid, epoch=epoch, owner=owner))

    @precondition(lambda self: self.ids)
    @rule(
        data=st.data(),
        wallet=st.sampled_from(WALLETS),
        epoch=st.integers(1, 3),
        how=st.sampled_from(list(How)),
        tokens=st.lists(st.sampled_from([0, 1, 3, 1000]), min_size=1, max_size=3),
    )
    def use(self, data: st.DataObject, wallet: str, epoch: int, how: How, tokens: list[int]) -> None:
        rid, wallet, epoch = self.aim(data, wallet, epoch)
        segments = tuple(
            Segment(node=f"n{i}", provider=f"p{i % 2}", attempt=i + 1, tokens=n) for i, n in enumerate(tokens)
        )
        self.feed(
            UsageRecorded(
                wallet=wallet, at_ms=self.now_ms, request_id=rid, epoch=epoch,
                how=how, model="m", prompt_tokens=3, segments=segments,
            )
        )  # fmt: skip

    @rule(data=st.data(), wallet=st.sampled_from(WALLETS), epoch=st.integers(1, 3), unknown=st.booleans())
    def fail(self, data: st.DataObject, wallet: str, epoch: int, unknown: bool) -> None:
        if unknown or not self.ids:
            self.ids.append(uuid7(self.now_ms, self.rng.randbytes(10)))
        rid, wallet, epoch = self.aim(data, wallet, epoch)
        self.feed(RequestFailed(wallet=wallet, at_ms=self.now_ms, request_id=rid, epoch=epoch, how=How.ERROR))

    @precondition(lambda self: self.ids)
    @rule(data=st.data(), wallet=st.sampled_from(WALLETS), hold=st.sampled_from([0, 50]))
    def accept_known(self, data: st.DataObject, wallet: str, hold: int) -> None:
        self.accept(data.draw(st.integers(-min(3, len(self.ids)), -1)), wallet, hold, sandbox=False)

    @rule(ms=st.sampled_from([1, DAY_MS // 2, DAY_MS + 1, -DAY_MS - 1]))
    def wait(self, ms: int) -> None:
        self.now_ms += ms

    @rule()
    def forget(self) -> None:
        self.books.forget_ended()

    @invariant()
    def the_books_agree(self) -> None:
        assert broken_in(self.books) == []
        paid: dict[str, int] = {}
        for (account, _), row in self.books.accounts.items():
            if account in ("platform:sandbox", "platform:losses"):
                paid[account] = paid.get(account, 0) - row.balance_nano
        spent = self.naive.spent()
        assert paid == {k: v for k, v in spent.items() if k.startswith("platform:")}
        for wallet in WALLETS:
            assert self.books.balance_nano(f"wallet:{wallet}", ASSETS[wallet]) == self.naive.has(wallet)

    def teardown(self) -> None:
        again = Books(0)
        for offset, event in enumerate(self.log):
            step(again, event, offset)
        assert digest([again]) == digest([self.books])


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=200, stateful_step_count=50, deadline=None, suppress_health_check=SLOW)


@QUICK
@given(st.integers(0, 10**18), st.lists(st.integers(0, 10**9), min_size=1, max_size=16))
def test_split_is_exact_and_fair(charge: int, weights: list[int]) -> None:
    shares = split(charge, weights)
    assert shares.burn + sum(shares.providers) + shares.platform == charge
    assert shares.burn == charge // 100
    assert min(*shares.providers, shares.burn, shares.platform) >= 0
    total = sum(weights)
    pool = (charge - shares.burn) * 90 // 100 if total else 0
    assert sum(shares.providers) == pool
    for weight, share in zip(weights, shares.providers, strict=True):
        assert abs(share - (Fraction(pool * weight, total) if total else 0)) < 1
        assert weight or not share


@QUICK
@given(st.integers(0, 10**6), st.permutations([1, 2, 3, 5, 8]))
def test_apportion_favours_nobody_but_the_earlier_of_equals(amount: int, weights: list[int]) -> None:
    by_weight = dict(zip(weights, apportion(amount, weights), strict=True))
    fractions = {w: amount * w % 19 for w in weights}
    left = amount - sum(amount * w // 19 for w in weights)
    order = sorted(weights, key=lambda w: (-fractions[w], weights.index(w)))
    assert by_weight == {w: amount * w // 19 + (w in order[:left]) for w in weights}


def some_log(seed: int) -> dict[int, list[Event]]:
    rng = random.Random(seed)
    out: dict[int, list[Event]] = {p: [] for p in range(3)}
    for n in range(60):
        partition = rng.randrange(3)
        rid, wallet = uuid7(T0 + n, rng.randbytes(10)), f"w{partition}"
        accept = RequestAccepted(
            wallet=wallet, at_ms=T0 + n, request_id=rid, key_id="k", owner="boot", rules_version=1, asset="SHIVER",
            prices=(PRICE,), rate_nano_usd=1, cap_day=None, hold_nano=10**6, payer=f"wallet:{wallet}",
        )  # fmt: skip
        end = UsageRecorded(
            wallet=wallet, at_ms=T0 + n, request_id=rid, epoch=1, how=How.STOP, model="m", prompt_tokens=n,
            segments=(Segment(node="n", provider=f"p{n % 4}", attempt=1, tokens=n),),
        )  # fmt: skip
        out[partition] += [accept, end] if n % 5 else [accept]
    return out


def digest_of(seed: int, order: int) -> str:
    """The digest after folding the partitions in an interleaving drawn from `order`."""
    rng, logs = random.Random(order), some_log(seed)
    books = {p: Books(p) for p in logs}
    places = [p for p, log in logs.items() for _ in log]
    rng.shuffle(places)
    for partition in places:
        offset = books[partition].next_offset
        step(books[partition], logs[partition][offset], offset)
    return digest(rng.sample(list(books.values()), 3))


def test_s6_the_digest_is_the_same_under_any_interleaving() -> None:
    assert len({digest_of(1, order) for order in range(20)}) == 1
    assert digest_of(1, 0) != digest_of(2, 0)


def test_the_digest_is_the_same_under_any_hash_seed_and_locale() -> None:
    code = "import test_ledger_model as t; print(t.digest_of(1, 5))"
    paths = [p for p in sys.path if p]
    seen = set()
    for seed, locale in (("1", "C"), ("2", "tr_TR.UTF-8")):
        env = {"PYTHONHASHSEED": seed, "LC_ALL": locale, "PYTHONPATH": ":".join([*paths, __file__.rpartition("/")[0]])}
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=True
        )
        seen.add(done.stdout.strip())
    assert seen == {digest_of(1, 9)}
