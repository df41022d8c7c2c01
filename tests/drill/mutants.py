"""Bugs that somebody could make, each with the tests that must fail for it.

Pure ones need no server; those that do stand in `SERVED`. Every selected test must fail, so that the table also says
which test guards which rule. Text that is no longer found exactly once fails the drill: a mutant must be kept true.
"""

from __future__ import annotations

from typing import NamedTuple

CORE = "tests/unit/test_ledger_core.py"
ERRATA = "tests/unit/test_ledger_errata.py"
WRITER = "tests/unit/test_ledger_writer.py"
PROJECTION = "tests/integration/test_projection.py"
ADMISSION = "tests/integration/test_admission_sql.py"
REBUILD = "tests/integration/test_rebuild.py"
EXPIRY = "tests/integration/test_expiry.py"
ADMIT = "infra/migrations/0009_sessions_and_limits.sql"
SETTLE = "infra/migrations/0003_admission.sql"


class Mutant(NamedTuple):
    """`old` stands exactly once in `file`; with `new` in its place each of `tests` must fail (any of its cases)."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def _mutant(name: str, file: str, old: str, new: str, *tests: str) -> Mutant:
    return Mutant(name, file, old, new, tests)


PURE: tuple[Mutant, ...] = (
    _mutant(
        "a credit counts each time that it is read",
        "ledger/decide.py",
        "before = books.credits.get((event.wallet, event.external_ref))",
        "before = None",
        f"{CORE}::test_outcome",
    ),
    _mutant(
        "a credit's reference is not the wallet's own",
        "ledger/decide.py",
        "before = books.credits.get((event.wallet, event.external_ref))",
        "before = next((c for (_, ref), c in books.credits.items() if ref == event.external_ref), None)",
        f"{CORE}::test_outcome",
    ),
    _mutant(
        "a token too few is charged",
        "ledger/money.py",
        "price.out_nano * completion_tokens",
        "price.out_nano * (completion_tokens - 1)",
        f"{CORE}::test_c6_billing_table",
        f"{CORE}::test_image_tokens_cost_a_factor_of_prompt_tokens",
    ),
    _mutant(
        "an image token costs as much as another",
        "ledger/money.py",
        "price.image_factor * image_tokens",
        "image_tokens",
        f"{CORE}::test_image_tokens_cost_a_factor_of_prompt_tokens",
    ),
    _mutant(
        "an end of an old owner counts",
        "ledger/decide.py",
        "    if event.epoch < request.owner_epoch:\n        return _STALE_OWNER\n",
        "",
        f"{CORE}::test_outcome",
    ),
    _mutant(
        "an adoption may skip an epoch",
        "ledger/decide.py",
        "if event.epoch == request.owner_epoch + 1:",
        "if event.epoch > request.owner_epoch:",
        f"{CORE}::test_outcome",
    ),
    _mutant(
        "a hold is given back twice",
        "ledger/apply.py",
        "_hold(books, before, -before.hold_nano)",
        "_hold(books, before, -2 * before.hold_nano)",
        f"{CORE}::test_c6_billing_table",
        "tests/unit/test_ledger_invariants.py::test_holds_follow_open_requests",
    ),
    _mutant(
        "an event of another wallet frees an admission",
        "ledger/decide.py",
        "released = request.payer_charge_nano if request.wallet_id == event.wallet else None",
        "released = request.payer_charge_nano",
        f"{CORE}::test_c1_whoever_is_closed_gives_its_admission_back",
    ),
    _mutant(
        "the wallet of an event is not looked at",
        "ledger/decide.py",
        "        if request.wallet_id != event.wallet:\n            return _WRONG_WALLET\n",
        "",
        f"{CORE}::test_outcome",
    ),
    _mutant(
        "the limit itself needs a second person",
        "ledger/rules.py",
        "if abs(event.amount_nano) <= APPROVAL_ABOVE_NANO[event.asset]:",
        "if abs(event.amount_nano) < APPROVAL_ABOVE_NANO[event.asset]:",
        f"{CORE}::test_outcome",
    ),
    _mutant(
        "who corrects may approve it too",
        "ledger/rules.py",
        "return event.approver is not None and event.approver != event.operator",
        "return event.approver is not None",
        f"{CORE}::test_outcome",
    ),
    _mutant(
        "the burn and the platform's share are swapped",
        "ledger/split.py",
        "return Shares(burn, providers, rest - sum(providers))",
        "return Shares(rest - sum(providers), providers, burn)",
        f"{CORE}::test_split_by_hand",
        "tests/unit/test_ledger_golden.py",
    ),
    _mutant(
        "the burn is rounded up",
        "ledger/split.py",
        "burn = charge_nano // BURN_DIVISOR",
        "burn = -(-charge_nano // BURN_DIVISOR)",
        f"{CORE}::test_split_by_hand",
    ),
    _mutant(
        "the left-over unit goes to the last of equals",
        "ledger/split.py",
        "(-(amount * weights[i] % total), i)",
        "(-(amount * weights[i] % total), -i)",
        f"{CORE}::test_split_by_hand",
    ),
    _mutant(
        "a charge may pass its hold",
        "ledger/decide.py",
        "charge = request.hold_nano if clamped else cost",
        "charge = cost",
        f"{CORE}::test_s9_a_charge_above_its_hold_is_clamped_and_marked",
    ),
    _mutant(
        "the client pays for what its dead ingress had",
        "ledger/rules.py",
        "How.OWNER_DIED: Pays.LOSSES,",
        "How.OWNER_DIED: Pays.CLIENT,",
        f"{CORE}::test_c6_billing_table",
    ),
    _mutant(
        "a request without a token is charged for its prompt",
        "ledger/rules.py",
        "return TABLES[rules_version][how] if delivered > 0 else Pays.NOBODY",
        "return TABLES[rules_version][how]",
        f"{CORE}::test_c6_nothing_is_paid_where_nothing_was_delivered",
    ),
    _mutant(
        "ids are remembered for two days, and too_old is not said",
        "ledger/decide.py",
        "if uuid7_ms(event.request_id) < books.max_event_ms - DAY_MS:",
        "if uuid7_ms(event.request_id) < books.max_event_ms - 2 * DAY_MS:",
        f"{CORE}::test_outcome",
    ),
    _mutant(
        "ids are forgotten before they are too old",
        "ledger/books.py",
        "horizon_ms = self.max_event_ms - DAY_MS",
        "horizon_ms = self.max_event_ms",
        f"{CORE}::test_s6_an_ended_id_is_remembered_until_it_is_too_old",
    ),
    _mutant(
        "a rejected event moves the time",
        "ledger/apply.py",
        "        books.rejected += 1\n        return\n",
        "        books.rejected += 1\n        books.max_event_ms = event.at_ms\n        return\n",
        f"{CORE}::test_outcome",
    ),
    _mutant(
        "the digest leaves out how many were rejected",
        "ledger/digest.py",
        '_line("partition", partition, next_offset, max_event_ms, rejected)',
        '_line("partition", partition, next_offset, max_event_ms)',
        "tests/unit/test_ledger_golden.py",
    ),
    _mutant(
        "a link of the chain does not know its place",
        "ledger/digest.py",
        "(len(head), head, partition, offset, len(key)",
        "(len(head), head, 0, 0, len(key)",
        f"{CORE}::test_the_chain_tells_places_and_fields_apart",
    ),
    _mutant(
        "a leaf of the tree may be an inner node",
        "ledger/merkle.py",
        'hashlib.sha256(b"\\x00" + data)',
        'hashlib.sha256(b"\\x01" + data)',
        "tests/unit/test_ledger_merkle.py",
    ),
    _mutant(
        "events that are appended again change their order",
        "ledger/log.py",
        "extendleft(reversed(batch.items))",
        "extendleft(batch.items)",
        f"{WRITER}::test_c8_any_failure_replaces_the_producer_and_keeps_the_order",
    ),
    _mutant(
        "a late answer of a producer that was replaced counts",
        "ledger/log.py",
        "if generation != self._generation:",
        "if False:",
        f"{WRITER}::test_c8_any_failure_replaces_the_producer_and_keeps_the_order",
    ),
    _mutant(
        "an erratum of anybody counts",
        "ledger/errata.py",
        "if erratum.public_key not in trusted:",
        "if False:",
        f"{ERRATA}::test_one_that_does_not_count_leaves_the_stop_and_says_why",
    ),
    _mutant(
        "an erratum's signature is not looked at",
        "ledger/errata.py",
        "if not is_signed(erratum):",
        "if False:",
        f"{ERRATA}::test_one_that_does_not_count_leaves_the_stop_and_says_why",
    ),
    _mutant(
        "an erratum counts for whatever stands in its place",
        "ledger/errata.py",
        "return any(erratum.record_sha256 == sha256 for erratum in self._good[partition, offset])",
        "return bool(sha256)",
        f"{ERRATA}::test_one_that_does_not_count_leaves_the_stop_and_says_why",
    ),
    _mutant(
        "an erratum covers a record that can be read",
        "ledger/errata.py",
        "(partition, offset) not in self._good or why_unreadable(key, value) is None",
        "(partition, offset) not in self._good",
        f"{ERRATA}::test_what_can_be_read_is_never_touched",
        f"{ERRATA}::test_a_misplaced_record_passes_only_if_it_cannot_be_read",
    ),
    _mutant(
        "the reason is not under an erratum's signature",
        "schemas/errata.py",
        "            self.reason.encode(),\n",
        "",
        f"{ERRATA}::test_every_field_is_under_the_signature",
    ),
)

SERVED: tuple[Mutant, ...] = (
    _mutant(
        "the offset is written without the entries",
        "streams/projection.py",
        '        await self._copy(db, "entries", part.entries)\n',
        "",
        f"{PROJECTION}::test_the_rows_are_what_the_fold_says",
    ),
    _mutant(
        "a slice commits statement by statement",
        "streams/projection.py",
        "            async with db.transaction():\n                place",
        "            if True:\n                place",
        f"{PROJECTION}::test_two_workers_on_one_partition_apply_each_record_once",
    ),
    _mutant(
        "a gap is not seen",
        "streams/projection.py",
        "if record.offset != expected:",
        "if False:",
        f"{PROJECTION}::test_c9_a_gap_stops_loudly_and_applies_nothing",
    ),
    _mutant(
        "what was applied is not compared with what comes again",
        "streams/projection.py",
        'sha256_of(partition, record) != place["last_sha256"]',
        "False",
        f"{PROJECTION}::test_c9_another_record_under_an_applied_offset_stops",
    ),
    _mutant(
        "a misplaced key is applied",
        "streams/projection.py",
        'if cached_partition_of(record.key or b"", self._partitions) != partition and',
        "if False and",
        f"{PROJECTION}::test_a_key_in_a_wrong_partition_or_not_the_wallet_stops",
    ),
    _mutant(
        "an end gives no hold back",
        "streams/projection.py",
        "if part.released and self._schema == DERIVED:",
        "if False:",
        f"{PROJECTION}::test_c1_only_the_projection_removes_an_admission",
    ),
    _mutant(
        "books made anew give live holds back",
        "streams/projection.py",
        "if part.released and self._schema == DERIVED:",
        "if part.released:",
        f"{PROJECTION}::test_in_another_schema_it_makes_the_same_books_and_touches_nothing_else",
    ),
    _mutant(
        "a wallet frees the hold of another",
        ADMIT,
        "where a.request_id = e.request_id and a.wallet_id = e.wallet_id",
        "where a.request_id = e.request_id",
        f"{ADMISSION}::test_release_skips_what_is_unknown_or_of_another_wallet",
    ),
    _mutant(
        "one request more than the cap",
        ADMIT,
        "if k.open_requests >= k.open_max then",
        "if k.open_requests > k.open_max then",
        f"{ADMISSION}::test_refusals_come_in_their_order_and_take_nothing",
    ),
    _mutant(
        "admission does not look at what is held",
        ADMIT,
        "coalesce(sum(c.balance_nano), 0) - w.held_nano, 9",
        "coalesce(sum(c.balance_nano), 0), 9",
        f"{ADMISSION}::test_concurrent_admits_cannot_overspend_a_balance_s2",
    ),
    _mutant(
        "a fraction of a nano dollar is free",
        SETTLE,
        "$$ select least(ceil(amount_nano",
        "$$ select least(floor(amount_nano",
        f"{ADMISSION}::test_a_sandbox_counts_fractions_of_a_nano_dollar_as_whole_ones",
    ),
    _mutant(
        "a slot is freed twice",
        SETTLE,
        "if not found or not a.slot or a_charge_nano > a.hold_nano then",
        "if not found or a_charge_nano > a.hold_nano then",
        f"{ADMISSION}::test_settle_changes_nothing_twice_unknown_or_above_the_hold_s9",
    ),
    _mutant(
        "an ingress without a lease admits",
        ADMIT,
        "i.boot_id = a_owner and i.lease_until > clock_timestamp()",
        "i.boot_id = a_owner",
        f"{ADMISSION}::test_an_ingress_without_a_living_lease_admits_nothing_c3",
    ),
    _mutant(
        "a rebuild swaps whatever it found",
        "streams/rebuild.py",
        "if found.count and not self._options.accept_differences:",
        "if False:",
        f"{REBUILD}::test_damage_is_named_and_mended_only_if_asked",
    ),
    _mutant(
        "a rebuild forgets the requests that are open",
        "infra/migrations/0008_rebuild.sql",
        "where r.status = 'open'\n        on conflict",
        "where false\n        on conflict",
        f"{REBUILD}::test_admissions_are_kept_made_again_and_let_go",
    ),
    _mutant(
        "a rebuild leaves the admissions of ended requests",
        "infra/migrations/0008_rebuild.sql",
        "r.wallet_id = a.wallet_id and r.status <> 'open';",
        "r.wallet_id = a.wallet_id and false;",
        f"{REBUILD}::test_admissions_are_kept_made_again_and_let_go",
    ),
    _mutant(
        "a rebuild loses the names of indexes",
        "streams/rebuild_sql/make.sql",
        "including all excluding indexes",
        "including all",
        f"{REBUILD}::test_it_gives_the_same_rows_in_the_same_tables",
    ),
    _mutant(
        "a log made anew is read on",
        "streams/starts.py",
        'if row["topic_id"] != topic_id:',
        "if False:",
        f"{REBUILD}::test_c9_a_log_made_anew_is_a_difference_and_another_count_of_partitions_refused",
    ),
    _mutant(
        "an adoption is not read back",
        "streams/expiry.py",
        "            if not await self._won(request_id, epoch):",
        "            if False:",
        f"{EXPIRY}::test_c3_an_adoption_that_did_not_win_is_followed_by_nothing",
    ),
    _mutant(
        "a request without an accept is closed though the books lag",
        "streams/expiry.py",
        "            while not await caught_up(self._db, ends):\n                await asyncio.sleep(0.1)\n",
        "            pass\n",
        f"{EXPIRY}::test_c1_an_accept_that_the_projection_has_not_read_yet_is_not_failed",
    ),
)
