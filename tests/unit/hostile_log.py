"""Logs that nobody would write: every kind of event, doubled, stray, late, too old, too large, in any order."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from ledger.apply import step
from ledger.books import DAY_MS, Books, wallet_account
from schemas.events import (
    AdjustmentPosted,
    BalanceAsserted,
    Event,
    How,
    KeyIssued,
    ModelPrice,
    PayoutFailed,
    RatePublished,
    RequestAccepted,
    RequestAdopted,
    RequestFailed,
    SandboxFunded,
    Segment,
    UsageRecorded,
    WalletCredited,
)
from schemas.ids import uuid7

T0 = 1_800_000_000_000
PRICES = [
    (ModelPrice(model="m", in_nano=7, out_nano=13),),
    (ModelPrice(model="m", in_nano=7, out_nano=13), ModelPrice(model="f", in_nano=1, out_nano=2, image_factor=5)),
    (ModelPrice(model="f", in_nano=3, out_nano=0), ModelPrice(model="f", in_nano=5, out_nano=5)),
    (ModelPrice(model="m", in_nano=10**18, out_nano=10**18, image_factor=100),),
    (ModelPrice(model="m", in_nano=1 << 25, out_nano=1 << 25, image_factor=100),),
    (ModelPrice(model="m", in_nano=10**18 - 1, out_nano=0),),
    (ModelPrice(model="m", in_nano=0, out_nano=10**18 - 1),),
]
HOLDS = [0, 1, 99, 100, 10**6, 1 << 42, (1 << 42) + 1, 10**18]
COUNTS = [0, 0, 1, 2, 99, 10**9]
STEPS_MS = [0, 0, 0, 1, 1_000, 3_600_000, DAY_MS - 1, DAY_MS, DAY_MS + 1]


class Hostile:
    """Draws one event after the other. It folds what it drew, so that assertions can be right."""

    def __init__(self, rng: random.Random, calm: float) -> None:
        """`calm` is the part of events that are of an undisturbed life."""
        self.rng = rng
        self.calm = calm
        self.now_ms = T0
        self.books = Books(0)
        self.log: list[Event] = []
        self.ids: list[str] = []
        self.waiting: list[UsageRecorded | RequestFailed] = []
        self.ended: list[UsageRecorded | RequestFailed] = []

    def event(self) -> Event:
        """The next one of the log."""
        rng = self.rng
        if self.log and rng.random() < 0.05 * (1 - self.calm):
            event = rng.choice(self.log)
        elif rng.random() < self.calm:
            event = self._calm()
        else:
            event = rng.choice((self._accept, self._end, self._end, self._adopt, self._other))()
            if rng.random() < 0.2:
                self.now_ms += rng.choice(STEPS_MS)
        self.now_ms += rng.choice((0, 0, 1, -1))
        step(self.books, event, len(self.log))
        self.log.append(event)
        return event

    def _calm(self) -> Event:
        """Of a whole life: an accept, later its end. Some have one thing wrong with them, some come twice."""
        rng = self.rng
        if self.waiting and rng.random() < 0.6:
            end = self.waiting.pop(rng.randrange(len(self.waiting)))
            self.ended.append(end)
            return end
        if self.ended and rng.random() < 0.05:
            end = rng.choice(self.ended[-20:])
            self.waiting.append(end)
            return next(
                e for e in self.log if isinstance(e, RequestAccepted) and e.request_id[-12:] == end.request_id[-12:]
            )
        wrong = rng.randrange(13) if rng.random() < 0.5 * (1 - self.calm) + 0.02 else -1
        entropy, wallet, hold_nano, prices = rng.randbytes(10), rng.choice("ab"), 10**6, PRICES[0]
        born_ms = self.now_ms - (rng.choice((DAY_MS - 1, DAY_MS, DAY_MS + 1, DAY_MS + 2)) if wrong == 0 else 0)
        if wrong == 1:
            hold_nano, prices = rng.choice(HOLDS), PRICES[4]
        if wrong == 2:
            hold_nano, prices = rng.choice(HOLDS), rng.choice(PRICES)
        accept = self._accept(
            uuid7(born_ms, entropy), wallet, rng.choice(("wallet:c", "d")) if wrong == 3 else "",
            prices, hold_nano, 2 if wrong == 4 else 1,
        )  # fmt: skip
        if wrong == 5:
            wallet = "c"
        rid = uuid7(born_ms + 1, entropy) if wrong == 6 else accept.request_id
        epoch = 2 if wrong == 7 else 1
        if rng.random() < 0.1:
            self.waiting.append(self._failed(wallet, rid, epoch))
            return accept
        many = rng.choice((2, 3)) if wrong == 8 else 1
        tokens = rng.choice(COUNTS) if wrong in (1, 9) else rng.choice((5, 700))
        segments = tuple(self._segment(tokens) for _ in range(many))
        model = "x" if wrong == 10 else accept.prices[-1].model
        self.waiting.append(self._usage(wallet, rid, epoch, model, segments))
        return accept

    def _id(self) -> str:
        rng = self.rng
        if not self.ids or rng.random() < 0.2:
            made = uuid7(self.now_ms - rng.choice((0, 0, 0, *STEPS_MS)), rng.randbytes(10))
            # Another id with the same lower half, at times.
            self.ids.append(uuid7(self.now_ms, bytes(10)) if rng.random() < 0.3 else made)
        if self.waiting and rng.random() < 0.2:
            return rng.choice(self.waiting).request_id
        return rng.choice(self.ids[-6:])

    def _accept(self, *chosen: Any) -> RequestAccepted:
        rng = self.rng
        rid, wallet, payer, prices, hold_nano, rules = chosen or (
            self._id(), rng.choice("ab"), rng.choice(("", "", "platform:sandbox", "wallet:c", "platform:losses", "d")),
            rng.choice(PRICES), rng.choice(HOLDS), rng.choice((1, 1, 1, 1, 2)),
        )  # fmt: skip
        return RequestAccepted(
            wallet=wallet, at_ms=self._at_ms(), request_id=rid, key_id="k", owner="boot", rules_version=rules,
            asset=rng.choice(("SHIVER", "SHIVER", "USDC")), prices=prices, rate_nano_usd=1, cap_day=None,
            hold_nano=hold_nano, payer=payer or f"wallet:{wallet}",
        )  # fmt: skip

    def _end(self) -> Event:
        rng = self.rng
        wallet, rid, epoch = rng.choice("aab"), self._id(), rng.choice((1, 1, 1, 2, 3))
        if rng.random() < 0.3:
            return self._failed(wallet, rid, epoch)
        segments = tuple(self._segment(rng.choice(COUNTS)) for _ in range(rng.choice((1, 1, 1, 2, 3))))
        return self._usage(wallet, rid, epoch, rng.choice(("m", "m", "f", "x")), segments)

    def _usage(self, wallet: str, rid: str, epoch: int, model: str, segments: tuple[Segment, ...]) -> UsageRecorded:
        return UsageRecorded(
            wallet=wallet, at_ms=self._at_ms(), request_id=rid, epoch=epoch, how=self.rng.choice(list(How)),
            model=model, prompt_tokens=self.rng.choice(COUNTS), image_tokens=self.rng.choice(COUNTS),
            segments=segments,
        )  # fmt: skip

    def _segment(self, tokens: int) -> Segment:
        return Segment(node="n", provider=self.rng.choice(("p", "q", "r")), attempt=1, tokens=tokens)

    def _failed(self, wallet: str, rid: str, epoch: int) -> RequestFailed:
        how = self.rng.choice(list(How))
        return RequestFailed(wallet=wallet, at_ms=self._at_ms(), request_id=rid, epoch=epoch, how=how)

    def _adopt(self) -> Event:
        epoch, owner = self.rng.choice((2, 2, 3)), self.rng.choice(("x", "y"))
        return RequestAdopted(
            wallet=self.rng.choice("aab"), at_ms=self._at_ms(), request_id=self._id(), epoch=epoch, owner=owner
        )

    def _other(self) -> Event:
        rng, at_ms = self.rng, self._at_ms()
        wallet, asset = rng.choice("ab"), rng.choice(("SHIVER", "USDC"))
        amount_nano, ref = rng.choice((1, 10**9, 10**18)), rng.choice(("r", "s", str(rng.random())))
        common: dict[str, Any] = {"wallet": wallet, "at_ms": at_ms, "asset": asset}
        choice = rng.randrange(8)
        if choice <= 1:
            return WalletCredited(**common, amount_nano=amount_nano, external_ref=ref, reason="grant", operator="o")
        if choice == 2:
            approver = rng.choice((None, "o", "p"))
            return AdjustmentPosted(
                **common, amount_nano=-amount_nano, external_ref=ref, reason="r", operator="o", approver=approver
            )
        if choice <= 5:
            has_nano = self.books.balance_nano(wallet_account(wallet), asset)
            has_nano = max(-(2**63) + 2, min(has_nano, 2**63 - 2))
            return BalanceAsserted(**common, amount_nano=has_nano + rng.choice((0, 0, 1)))
        if choice == 6:
            return KeyIssued(wallet=wallet, at_ms=at_ms, key_id="k", tier="dev", operator="o")
        return rng.choice(
            (
                RatePublished(at_ms=at_ms, asset="SHIVER", rate_nano_usd=1, source="\u00e9"),
                PayoutFailed(at_ms=at_ms, payout="p", transaction=None, reason="r"),
                SandboxFunded(at_ms=at_ms, asset="SHIVER", amount_nano=1, reason="r", operator="o", external_ref="e"),
            )
        )

    def _at_ms(self) -> int:
        return max(0, self.now_ms + self.rng.choice((0, 0, 0, 0, -1, 1, -DAY_MS)))


def hostile_log(seed: int, count: int, calm: float = 0.3) -> Iterator[Event]:
    """`count` events, the same for the same seed."""
    drawn = Hostile(random.Random(seed), calm)
    return (drawn.event() for _ in range(count))
