"""A slice of one partition's records: read, folded, and as the rows that it comes to. Nothing here waits or writes.

Reading and folding take spans of a slice, so that whoever runs them can let others go on in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from typing import Any

import orjson

from ledger.apply import step
from ledger.books import Adjustment, Books, Credit, Request, wallet_account
from ledger.digest import chain_link, record_sha256
from ledger.errata import NO_ERRATA, Errata
from ledger.outcomes import Outcome
from schemas import topics
from schemas.events import (
    AdjustmentPosted,
    BalanceAsserted,
    Event,
    RequestEvent,
    UnreadableEvent,
    WalletCredited,
)

#: Records in a span: some 5 ms of work.
SPAN_RECORDS = 200


class ProjectionStopped(Exception):
    """The log cannot be applied from here: a person must look. Names topic, partition and offset."""


class Slice:
    """Records of one partition, ascending and without a gap, and what the fold makes of them.

    `read` every span, give the books what `request_ids` and the others name, then `fold` every span.
    """

    def __init__(self, partition: int, records: Sequence[Any], chain: bytes, errata: Errata = NO_ERRATA) -> None:
        self._errata = errata
        self.partition = partition
        self.records = records
        self.chain = chain  # head of the hash chain before the first record that is not read yet
        self.request_ids: dict[str, None] = {}
        self.credit_refs: dict[tuple[str, str], None] = {}
        self.adjustment_refs: dict[tuple[str, str], None] = {}
        self.asserted_accounts: dict[str, None] = {}
        self.entries: list[tuple[Any, ...]] = []
        self.rejections: list[tuple[Any, ...]] = []
        self.released: dict[str, tuple[str, int]] = {}  # the wallet, and what the admission's payer was charged
        self.changed: dict[str, Request] = {}
        self.credits: list[tuple[Any, ...]] = []
        self.adjustments: list[tuple[Any, ...]] = []
        self._events: list[tuple[Event, str | None]] = []  # the request that it is about

    def spans(self) -> Iterator[range]:
        """The whole slice, in parts."""
        for first in range(0, len(self.records), SPAN_RECORDS):
            yield range(first, min(first + SPAN_RECORDS, len(self.records)))

    def read(self, span: range) -> None:
        """Parse these records, note what the fold will ask the books for, hash them. Raises ProjectionStopped."""
        partition, chain = self.partition, self.chain
        for record in self.records[span.start : span.stop]:
            event = parsed(partition, record, self._errata)
            chain = chain_link(chain, partition, record.offset, record.key or b"", record.value or b"")
            request_id = None
            if isinstance(event, RequestEvent):
                request_id = event.request_id
                self.request_ids[request_id] = None
            elif isinstance(event, WalletCredited):
                self.credit_refs[event.wallet, event.external_ref] = None
            elif isinstance(event, AdjustmentPosted):
                self.adjustment_refs[event.wallet, event.external_ref] = None
            elif isinstance(event, BalanceAsserted):
                self.asserted_accounts[wallet_account(event.wallet)] = None
            self._events.append((event, request_id))
        self.chain = chain

    def fold(self, books: Books, span: range) -> None:
        """These events through the ledger's core; what comes out is collected."""
        partition = self.partition
        for at in span:
            event, request_id = self._events[at]
            offset = self.records[at].offset
            decision = step(books, event, offset)
            if decision.outcome is not Outcome.APPLIED:
                self.rejections.append((partition, offset, event.type, decision.outcome.value, request_id))
            for number, posting in enumerate(decision.postings):
                self.entries.append((partition, offset, number, *posting, request_id, event.at_ms))
            if request_id is not None:
                if decision.request is not None:
                    self.changed[request_id] = decision.request
                if decision.released_nano is not None:
                    # The first word counts: a later one may come when the end has become too old to be known.
                    self.released.setdefault(request_id, (event.key, decision.released_nano))
            elif decision.credit is not None and isinstance(event, WalletCredited):
                self.credits.append(_credit_row(event, decision.credit, partition))
            elif decision.adjustment is not None and isinstance(event, AdjustmentPosted):
                self.adjustments.append(_adjustment_row(event, decision.adjustment, partition))

    def last_sha256(self) -> bytes:
        """The fingerprint of the last record and its place."""
        return sha256_of(self.partition, self.records[-1])


def parsed(partition: int, record: Any, errata: Errata = NO_ERRATA) -> Event:
    """The event of one record, `Unreadable` where an erratum lets it pass.

    Raises ProjectionStopped where there is none, or it stands under another key.
    """
    try:
        return errata.event_of(partition, record.offset, record.key or b"", record.value or b"")
    except UnreadableEvent as error:
        raise ProjectionStopped(f"{topics.LEDGER} partition {partition} offset {record.offset}: {error}") from None


def sha256_of(partition: int, record: Any) -> bytes:
    """The fingerprint of a record and its place."""
    return record_sha256(partition, record.offset, record.key or b"", record.value or b"")


#: What is copied into each table.
COLUMNS: dict[str, tuple[str, ...]] = {
    "entries": ("partition", "offset", "posting", "account", "asset", "amount_nano", "request_id", "at_ms"),
    "requests": ("request_id", "partition", *Request._fields),
    "credits": ("wallet_id", "external_ref", "asset", "amount_nano", "partition", "offset"),
    "adjustments": (
        "wallet_id", "external_ref", "asset", "amount_nano", "reason", "operator", "approver", "partition", "offset",
    ),
    "rejections": ("partition", "offset", "type", "code", "request_id"),
}  # fmt: skip

_UPDATED = (
    "request_id", "status", "owner", "owner_epoch", "model", "ended_ms", "how", "prompt_tokens", "completion_tokens",
    "charge_nano", "payer_charge_nano", "clamped",
)  # fmt: skip
_UPDATED_AT = tuple(COLUMNS["requests"].index(name) for name in _UPDATED)
_PRICES, _CAP_DAY = Request._fields.index("prices"), Request._fields.index("cap_day")


def request_row(request_id: str, request: Request, partition: int) -> tuple[Any, ...]:
    """A row of requests."""
    day = request.cap_day
    return (
        request_id,
        partition,
        *request[:_PRICES],
        orjson.dumps([price.__dict__ for price in request.prices]).decode() if request.prices else None,
        *request[_PRICES + 1 : _CAP_DAY],
        None if day is None else date.fromisoformat(day),
        *request[_CAP_DAY + 1 :],
    )


def updated_columns(rows: Iterable[tuple[Any, ...]]) -> list[list[Any]]:
    """Of rows of requests what may change after the first, column by column, as update_requests.sql takes it."""
    chosen = list(rows)
    return [[row[place] for row in chosen] for place in _UPDATED_AT]


def _credit_row(event: WalletCredited, kept: Credit, partition: int) -> tuple[Any, ...]:
    return (event.wallet, event.external_ref, kept.asset, kept.amount_nano, partition, kept.offset)


def _adjustment_row(event: AdjustmentPosted, kept: Adjustment, partition: int) -> tuple[Any, ...]:
    *fields, offset = kept
    return (event.wallet, event.external_ref, *fields, partition, offset)
