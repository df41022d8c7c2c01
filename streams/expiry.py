"""Closes the requests whose ingress died, and removes its reply topics. One process of the network does it at a time.

A request that the log has as open is first adopted: `request.adopted` is appended and read back as applied and won, so
that a late end of the old owner no longer counts (C3). Then its lane is counted, and its end appended: what was
delivered is paid by the platform, never by a client that got no whole answer (C6). An admission whose accept never
reached the log is closed by `request.failed` behind it (C1). Nothing here removes an admission: only the projection
does, when it has read the end. So a crash between any two steps leaves work for the next sweep, and nothing twice.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time

import asyncpg
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError

from ledger.log import LedgerError, LedgerWriter
from schemas import jobs, replies, topics
from schemas.events import Event, How, RequestAdopted, RequestFailed, Segment, UsageRecorded
from schemas.locks import Lock
from schemas.settings import Settings
from streams.lanes import remove_dead_lanes
from streams.readiness import DATABASE_ERRORS, caught_up, log_ends

log = logging.getLogger(__name__)

SWEEP_S = 1.0
RETRY_S = 1.0
#: After a lease has run out: an ingress that is merely slow gets this much more.
LEASE_MARGIN_S = 2.0
#: T of the design (an ingress gives up on an accept after 5 s) and its margin.
UNACCEPTED_S = 15.0
ADOPTED_TIMEOUT_S = 15.0
ACK_TIMEOUT_S = 10.0
CANCEL_TIMEOUT_S = 3.0
LANE_TIMEOUT_S = 10.0
BATCH_MAX = 500
#: An end that was appended is not appended again for this long: the projection needs a moment to read it.
PATIENCE_S = 30.0

_ORPHANS = """
select a.*, w.partition, coalesce(r.owner_epoch, 1) as owner_epoch, r.request_id is not null as accepted,
       r.owner as request_owner,
       n.provider_id, floor(extract(epoch from clock_timestamp()) * 1000)::bigint as now_ms
from state.admissions a
join state.wallets w using (wallet_id)
left join state.ingresses i on i.boot_id = a.owner
left join derived.requests r on r.request_id = a.request_id and r.partition = w.partition
left join state.nodes n using (node_id)
where case when r.request_id is null then a.admitted_at < clock_timestamp() - $1::float8 * interval '1 second'
           else r.status = 'open' and (i.boot_id is null or i.left_at is not null
                or i.lease_until < clock_timestamp() - $2::float8 * interval '1 second') end
order by a.request_id limit $3
"""


async def watch(settings: Settings) -> None:
    """For ever: hold the lock, sweep. Errors of Kafka or PostgreSQL end the lock and are tried again."""
    while True:
        try:
            await _hold_and_sweep(settings)
        except (*DATABASE_ERRORS, KafkaError, LedgerError) as error:
            log.warning("expiry is interrupted, trying again: %r", error)
        await asyncio.sleep(RETRY_S)


async def _hold_and_sweep(settings: Settings) -> None:
    db = await asyncpg.connect(
        settings.database_url, timeout=5, command_timeout=10, server_settings={"application_name": "shiver-expiry"}
    )
    try:
        while not await db.fetchval("select pg_try_advisory_lock($1)", Lock.EXPIRY):
            await asyncio.sleep(SWEEP_S)
        expiry = Expiry(settings, db)
        await expiry.start()
        try:
            while True:
                await expiry.sweep()
                await asyncio.sleep(SWEEP_S)
        finally:
            await expiry.stop()
    finally:
        await db.close(timeout=3)


class Expiry:
    """One holder of the lock. `sweep()` does what is due now."""

    def __init__(self, settings: Settings, db: asyncpg.Connection) -> None:
        self._settings = settings
        self._db = db
        self._name = f"expiry:{os.urandom(6).hex()}"
        self._ended_s: dict[str, float] = {}
        self._writer = LedgerWriter(settings.kafka, settings.ledger_partitions, client_id="shiver-expiry")
        self._mail = AIOKafkaProducer(bootstrap_servers=settings.kafka, acks="all", enable_idempotence=True)

    async def start(self) -> None:
        await self._writer.start()
        await asyncio.wait_for(self._mail.start(), 10)

    async def stop(self) -> None:
        await self._writer.stop(timeout_s=2)
        await asyncio.wait_for(self._mail.stop(), 3)

    async def sweep(self) -> int:
        """Close what is orphaned; returns how many requests were ended."""
        horizon_s = time.monotonic() - PATIENCE_S
        self._ended_s = {key: at_s for key, at_s in self._ended_s.items() if at_s > horizon_s}
        rows = await self._db.fetch(_ORPHANS, UNACCEPTED_S, LEASE_MARGIN_S, BATCH_MAX)
        due = [row for row in rows if str(row["request_id"]) not in self._ended_s]
        unaccepted = [row for row in due if not row["accepted"]]
        if unaccepted:
            await self._close_unaccepted(unaccepted)
        for row in due:
            if row["accepted"]:
                try:
                    await self._close_orphan(row)
                except (KafkaError, TimeoutError) as error:  # this one waits for the next sweep, the others need not
                    log.warning("request %s is not closed yet: %r", row["request_id"], error)
        await remove_dead_lanes(self._db, self._settings.kafka)
        return len(due)

    async def _close_unaccepted(self, rows: list[asyncpg.Record]) -> None:
        """The log has no accept of these, unless the projection lags: so let it catch up, and look again (C1)."""
        ends = await log_ends(self._settings)
        async with asyncio.timeout(ADOPTED_TIMEOUT_S):
            while not await caught_up(self._db, ends):
                await asyncio.sleep(0.1)
        known = await self._db.fetch(
            "select request_id from derived.requests where request_id = any ($1)", [row["request_id"] for row in rows]
        )
        seen = {row["request_id"] for row in known}
        for row in rows:
            if row["request_id"] not in seen:
                await self._append(row, _failed(row, How.NOT_ACKED, epoch=1))

    async def _close_orphan(self, row: asyncpg.Record) -> None:
        request_id = str(row["request_id"])
        epoch = row["owner_epoch"]
        if row["request_owner"] != self._name:  # else it is ours since an earlier sweep
            epoch += 1
            adopted = RequestAdopted(
                wallet=row["wallet_id"], at_ms=row["now_ms"], request_id=request_id, epoch=epoch, owner=self._name
            )
            await asyncio.wait_for(asyncio.shield(self._writer.append(adopted)), ACK_TIMEOUT_S)
            if not await self._won(request_id, epoch):
                log.warning("request %s: its adoption did not win; left alone", request_id)
                return
        await self._cancel(row)
        tally = await self._count(row)
        if tally is None or not tally.completion_tokens or row["provider_id"] is None:
            end: Event = _failed(row, How.OWNER_DIED, epoch)
        else:
            end = UsageRecorded(
                wallet=row["wallet_id"],
                at_ms=row["now_ms"],
                request_id=request_id,
                epoch=epoch,
                how=How.OWNER_DIED,
                model=row["model"],
                prompt_tokens=tally.prompt_tokens or 0,
                image_tokens=tally.image_tokens,
                segments=(
                    Segment(
                        node=row["node_id"],
                        provider=row["provider_id"],
                        attempt=tally.attempt,
                        tokens=tally.completion_tokens,
                    ),
                ),
            )
        await self._append(row, end)

    async def _won(self, request_id: str, epoch: int) -> bool:
        """Has the projection applied our adoption? False where another owner or an end was first."""
        until_s = time.monotonic() + ADOPTED_TIMEOUT_S
        while time.monotonic() < until_s:
            row = await self._db.fetchrow(
                "select status, owner, owner_epoch from derived.requests where request_id = $1", request_id
            )
            if row is None or row["status"] != "open" or row["owner_epoch"] > epoch:
                return False
            if row["owner_epoch"] == epoch:
                return row["owner"] == self._name
            await asyncio.sleep(0.05)
        raise TimeoutError("the projection does not read what was appended")

    async def _append(self, row: asyncpg.Record, end: Event) -> None:
        await asyncio.wait_for(asyncio.shield(self._writer.append(end)), ACK_TIMEOUT_S)
        self._ended_s[str(row["request_id"])] = time.monotonic()
        log.info("request %s of %s is closed: %s", row["request_id"], row["owner"], end.type)

    async def _cancel(self, row: asyncpg.Record) -> None:
        """Ask the node to stop. What it makes nevertheless is not counted any more, so nothing waits for this."""
        if row["provider_id"] is None:
            return
        letter = jobs.Cancel(request_id=str(row["request_id"]), attempt=row["attempt"])
        mailbox = topics.mailbox(row["node_id"])
        try:
            async with asyncio.timeout(CANCEL_TIMEOUT_S):
                # A producer that is given a missing topic asks for it without a pause, for ever.
                if mailbox not in (await self._mail.client.fetch_all_metadata()).topics():
                    log.warning("request %s: node %s has no mailbox any more", row["request_id"], row["node_id"])
                    return
                await self._mail.send_and_wait(mailbox, jobs.dump(letter), letter.request_id.encode())
        except (KafkaError, TimeoutError) as error:
            log.warning("request %s: no cancel sent to %s: %r", row["request_id"], row["node_id"], error)

    async def _count(self, row: asyncpg.Record) -> replies.Tally | None:
        """What the lane holds of the request, from its first offset to its end now; None where there is no lane."""
        if not row["lane"]:
            return None
        tally = replies.Tally(str(row["request_id"]), row["attempt"])
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self._settings.kafka, enable_auto_commit=False, auto_offset_reset="earliest"
        )
        try:
            async with asyncio.timeout(LANE_TIMEOUT_S):
                await consumer.start()
                if row["lane"] not in await consumer.topics():
                    return None
                place = TopicPartition(row["lane"], 0)
                consumer.assign([place])
                consumer.seek(place, row["lane_offset"])
                end = (await consumer.end_offsets([place]))[place]
                # Records may have outlived their retention; waiting for those would stop every sweep here.
                at = max(row["lane_offset"], (await consumer.beginning_offsets([place]))[place])
                while at < end:
                    for record in (await consumer.getmany(place, timeout_ms=500)).get(place, []):
                        at = record.offset + 1
                        if not _counts(tally, record.value or b""):
                            return tally
        finally:
            await asyncio.wait_for(consumer.stop(), 3)
        return tally


def _counts(tally: replies.Tally, value: bytes) -> bool:
    """Add a record; False where a gap ends what can be counted. A record that cannot be read is nobody's."""
    try:
        return tally.add(replies.parse(value)) is not replies.Verdict.GAP
    except replies.UnreadableReply:
        return True


def _failed(row: asyncpg.Record, how: How, epoch: int) -> RequestFailed:
    return RequestFailed(
        wallet=row["wallet_id"], at_ms=row["now_ms"], request_id=str(row["request_id"]), epoch=epoch, how=how
    )
