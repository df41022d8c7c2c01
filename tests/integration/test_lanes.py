"""The ingress's reply topics and its mailer on a real broker, and on one that is stopped."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from confluent_kafka import Consumer, TopicPartition
from ledger_kit import new_id

from infra.kafka.broker import Broker
from infra.kafka.jars import ensure_jars
from infra.kafka.java import find_java
from infra.kafka.topics import create_topics
from infra.ports import free_port
from infra.process import LogFile, running
from ingress import lanes, mailer
from ingress.lanes import Lane, LanePool, make_lanes
from ingress.mailer import Mailer, MailFailed
from schemas import jobs, topics

#: Longer than anything here takes on a busy machine; nothing waits for it to pass.
AMPLE_S = 20.0
BLOCK = 3


class Pool(LanePool):
    """A pool of small blocks that notes what it announces, with how many lanes were free then."""

    def __init__(self, bootstrap: str) -> None:
        self.boot_id = f"i{os.urandom(5).hex()}"
        self.announced: list[tuple[int, int]] = []
        self.announce_error: Exception | None = None
        super().__init__(bootstrap, self.boot_id, self._note, lambda _: None)

    async def _note(self, made: int) -> None:
        self.announced.append((made, self.free))
        if self.announce_error is not None:
            raise self.announce_error

    async def take(self) -> Lane:
        lane = await self.lease(AMPLE_S)
        assert lane is not None
        return lane


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "BLOCK_LANES", BLOCK)
    monkeypatch.setattr(lanes, "POOL_MAX", BLOCK)
    monkeypatch.setattr(lanes, "FREE_LOW", 0)
    monkeypatch.setattr(lanes, "RETRY_S", 0.01)


@pytest.fixture
async def pool(kafka: str, small: None) -> AsyncIterator[Pool]:
    made = Pool(kafka)
    await made.start(BLOCK)
    yield made
    await made.stop()


@pytest.fixture
async def producer(kafka: str) -> AsyncIterator[AIOKafkaProducer]:
    async with AIOKafkaProducer(bootstrap_servers=kafka, linger_ms=0) as made:
        yield made


async def until(holds: Callable[[], Any]) -> None:
    async with asyncio.timeout(AMPLE_S):
        while not holds():
            await asyncio.sleep(0.01)


async def say(producer: AIOKafkaProducer, lane: Lane, *values: bytes) -> None:
    for value in values:
        await producer.send_and_wait(lane.topic, value)


async def hear(lane: Lane, count: int) -> list[bytes]:
    values: list[bytes] = []
    async with asyncio.timeout(AMPLE_S):
        while len(values) < count:
            values += await lane.read(AMPLE_S)
    return values


async def test_a_lane_belongs_to_one_lease(pool: Pool) -> None:
    leased = [await pool.take() for _ in range(BLOCK)]
    assert [lane.topic for lane in leased] == [topics.lane(pool.boot_id, n) for n in range(BLOCK)]
    assert await pool.lease(0.01) is None
    pool.release(leased[2])
    pool.release(leased[1])
    assert [await pool.take(), await pool.take()] == [leased[1], leased[2]]  # the lowest number first
    assert await pool.lease(0.01) is None


async def test_each_lane_hears_its_own_records_in_order(pool: Pool, producer: AIOKafkaProducer) -> None:
    leased = [await pool.take() for _ in range(BLOCK)]
    said = [[f"{lane.number}:{n}".encode() for n in range(50)] for lane in leased]
    await asyncio.gather(*(say(producer, lane, *values) for lane, values in zip(leased, said, strict=True)))
    assert list(await asyncio.gather(*(hear(lane, 50) for lane in leased))) == said


async def test_what_an_earlier_lease_has_read_is_not_seen_again(pool: Pool, producer: AIOKafkaProducer) -> None:
    lane = await pool.take()
    assert lane.first_offset == 0
    await say(producer, lane, b"a", b"b")
    await hear(lane, 2)
    pool.release(lane)
    assert await pool.take() is lane
    assert lane.first_offset == 2
    await say(producer, lane, b"c")
    assert await hear(lane, 1) == [b"c"]


async def test_what_a_lease_left_unread_is_not_the_next_one_s(pool: Pool, producer: AIOKafkaProducer) -> None:
    lane = await pool.take()
    await say(producer, lane, b"a", b"b")
    await until(lambda: lane.next_offset == 2)  # they have come, and nobody has read them
    pool.release(lane)
    assert await pool.take() is lane
    assert lane.first_offset == 2
    await say(producer, lane, b"c")
    assert await hear(lane, 1) == [b"c"]


async def test_late_records_come_to_the_next_lease_as_strays_and_block_nothing(
    pool: Pool, producer: AIOKafkaProducer
) -> None:
    """The tally knows them by their request id. They must lie behind `first_offset`: the expiry counts from there."""
    lane = await pool.take()
    await say(producer, lane, b"mine")
    await hear(lane, 1)
    pool.release(lane)
    await say(producer, lane, b"late", b"later")
    assert await pool.take() is lane
    assert lane.first_offset == 1
    await say(producer, lane, b"next")
    assert await hear(lane, 3) == [b"late", b"later", b"next"]


async def test_a_lane_without_a_lease_is_not_read(pool: Pool, producer: AIOKafkaProducer) -> None:
    """Else every fetch would list all lanes: three times the CPU, ten times the delay (measured)."""
    first, second = await pool.take(), await pool.take()
    pool.release(second)
    await say(producer, second, b"late")
    await say(producer, first, b"x")
    await hear(first, 1)
    since_s = time.time()
    await until(lambda: first.fetched_since(since_s))
    assert second.next_offset == 0
    assert not second.fetched_since(since_s)


async def test_read_waits_no_longer_than_told_and_can_be_woken(pool: Pool) -> None:
    lane = await pool.take()
    assert await lane.read(0) == []
    reading = asyncio.create_task(lane.read(AMPLE_S))
    await asyncio.sleep(0)
    lane.wake()
    async with asyncio.timeout(AMPLE_S / 2):
        assert await reading == []


async def test_the_pool_grows_ahead_and_announces_first(kafka: str, small: None, monkeypatch: Any) -> None:
    monkeypatch.setattr(lanes, "FREE_LOW", 1)
    monkeypatch.setattr(lanes, "POOL_MAX", 2 * BLOCK)
    pool = Pool(kafka)
    await pool.start(1)
    try:
        leased = [await pool.take(), await pool.take()]
        assert pool.made == BLOCK
        leased.append(await pool.take())  # the last one: more are wanted before anybody has to wait
        await until(lambda: pool.free == BLOCK)
        assert pool.announced == [(BLOCK, 0), (2 * BLOCK, 0)]
        leased += [await pool.take() for _ in range(BLOCK)]
        assert len({lane.topic for lane in leased}) == 2 * BLOCK
        assert await pool.lease(0.01) is None  # POOL_MAX
        assert pool.made == 2 * BLOCK
    finally:
        await pool.stop()


async def test_growth_that_fails_is_tried_again(kafka: str, small: None, monkeypatch: Any) -> None:
    monkeypatch.setattr(lanes, "POOL_MAX", 2 * BLOCK)
    pool = Pool(kafka)
    await pool.start(1)
    failures = [TimeoutError(), OSError()]

    def flaky(*arguments: Any) -> None:
        if failures:
            raise failures.pop()
        make_lanes(*arguments)

    monkeypatch.setattr(lanes, "make_lanes", flaky)
    try:
        for _ in range(BLOCK + 1):
            await pool.take()
        assert not failures
    finally:
        await pool.stop()


async def test_lanes_that_were_made_are_there_though_nobody_heard_of_them(
    kafka: str, small: None, monkeypatch: Any
) -> None:
    """A heartbeat that is not acked makes a node's first send slower. It must not cost a block of lanes."""
    monkeypatch.setattr(lanes, "POOL_MAX", 2 * BLOCK)
    pool = Pool(kafka)
    await pool.start(1)
    pool.announce_error = TimeoutError()
    try:
        leased = [await pool.take() for _ in range(2 * BLOCK)]
        assert len({lane.topic for lane in leased}) == 2 * BLOCK
    finally:
        await pool.stop()


async def test_waiters_get_released_lanes_first_come_first_served(pool: Pool) -> None:
    leased = [await pool.take() for _ in range(BLOCK)]
    waiting = [asyncio.create_task(pool.lease(AMPLE_S)) for _ in range(2)]
    await asyncio.sleep(0)
    pool.release(leased[1])
    pool.release(leased[0])
    assert await asyncio.gather(*waiting) == [leased[1], leased[0]]
    assert pool.free == 0


async def test_a_lane_handed_to_a_waiter_is_read(pool: Pool, producer: AIOKafkaProducer) -> None:
    leased = [await pool.take() for _ in range(BLOCK)]
    waiting = asyncio.create_task(pool.take())
    await asyncio.sleep(0)
    pool.release(leased[0])
    lane = await waiting
    await say(producer, lane, b"x")
    assert await hear(lane, 1) == [b"x"]


@pytest.mark.parametrize("when", ["before", "in the same moment", "timed out"])
async def test_a_waiter_that_leaves_loses_no_lane(pool: Pool, when: str) -> None:
    leased = [await pool.take() for _ in range(BLOCK)]
    waiting = asyncio.create_task(pool.lease(0.01 if when == "timed out" else AMPLE_S))
    await asyncio.sleep(0)
    if when == "timed out":
        assert await waiting is None
    if when == "before":
        waiting.cancel()
        await asyncio.wait([waiting])
    pool.release(leased[0])
    waiting.cancel()  # in the same moment: the lane is its own, and it will never know
    await asyncio.wait([waiting])
    assert pool.free == 1
    assert await pool.take() is leased[0]


async def test_lanes_that_exist_already_are_no_error(kafka: str, pool: Pool) -> None:
    """Growth that failed half way begins again at the same number."""
    await asyncio.to_thread(make_lanes, kafka, pool.boot_id, BLOCK - 1, 2)


@pytest.fixture(scope="module")
def own_broker(scratch: Path) -> Iterator[tuple[str, int]]:
    """Bootstrap and process id of a broker that a test may stop."""
    broker = Broker(scratch / "lanes-kafka", ensure_jars(), find_java())
    broker.prepare()
    with running(broker.spec(), LogFile(scratch / "lanes-kafka.log")) as process:
        yield broker.bootstrap, process.pid


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def test_silence_proves_nothing_while_the_broker_is_away_s11(own_broker: tuple[str, int], small: None) -> None:
    bootstrap, pid = own_broker
    pool = Pool(bootstrap)
    await pool.start(1)
    try:
        lane = await pool.take()
        since_s = time.time()
        await until(lambda: lane.fetched_since(since_s))  # a living broker's silence is silence, without any record
        with stopped(pid):
            since_s = time.time() + 0.3  # answers that were under way are in by then
            while time.time() < since_s + 1:
                assert not lane.fetched_since(since_s)
                await asyncio.sleep(0.02)
        await until(lambda: lane.fetched_since(since_s))
    finally:
        await pool.stop()


def letter() -> jobs.Cancel:
    return jobs.Cancel(request_id=new_id(), attempt=1)


def mailbox_of(bootstrap: str, node: str, count: int) -> list[tuple[bytes, jobs.Letter]]:
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "t", "enable.auto.commit": False, "log_level": 0})
    try:
        consumer.assign([TopicPartition(topics.mailbox(node), 0, 0)])
        messages = consumer.consume(count, AMPLE_S)
        return [(message.key(), jobs.parse(message.value())) for message in messages]
    finally:
        consumer.close()


@pytest.fixture
def node(kafka: str) -> str:
    name = f"n{os.urandom(4).hex()}"
    create_topics(kafka, [topics.mailbox_topic(name)])
    return name


@contextlib.asynccontextmanager
async def mailing(bootstrap: str) -> AsyncIterator[Mailer]:
    made = Mailer(bootstrap)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


async def post_when_back(made: Mailer, node: str, to_post: jobs.Letter) -> None:
    async with asyncio.timeout(AMPLE_S):
        while True:
            with contextlib.suppress(MailFailed):
                return await made.post(node, to_post)
            await asyncio.sleep(0.02)


async def test_letters_arrive_in_order_under_their_request(kafka: str, node: str) -> None:
    letters = [letter() for _ in range(5)]
    async with mailing(kafka) as made:
        for one in letters:
            await made.post(node, one)
    found = await asyncio.to_thread(mailbox_of, kafka, node, 5)
    assert found == [(one.request_id.encode(), one) for one in letters]


async def test_a_letter_of_eight_mib_is_taken(kafka: str, node: str) -> None:
    """What an ingress admits must travel the whole path: topic, broker and producer."""
    text = "x" * (topics.JOB_BYTES_MAX - 4096)
    job = jobs.Job(
        request_id=new_id(),
        attempt=1,
        owner="b",
        lane="l",
        model="m",
        messages=[{"role": "user", "content": text}],
        sampling=jobs.Sampling(),
        max_tokens=1,
        expires_at_ms=0,
        deadline_at_ms=0,
    )
    async with mailing(kafka) as made:
        await made.post(node, job)


async def test_a_missing_mailbox_fails_within_its_bound_and_others_go_on_c8(
    kafka: str, node: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mailer, "SEND_TIMEOUT_S", 1.0)
    sent = letter()
    async with mailing(kafka) as made:
        async with asyncio.timeout(AMPLE_S):
            with pytest.raises(MailFailed):
                await made.post("nobody", letter())
        await post_when_back(made, node, sent)
    assert await asyncio.to_thread(mailbox_of, kafka, node, 1) == [(sent.request_id.encode(), sent)]


async def test_a_broker_that_is_away_fails_the_letter_and_the_next_producer_delivers_c8(
    own_broker: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped for longer than a send may take: the producer's batch has failed, and its sequence is of no more use."""
    bootstrap, pid = own_broker
    monkeypatch.setattr(mailer, "SEND_TIMEOUT_S", 1.0)
    monkeypatch.setattr(mailer, "STOP_TIMEOUT_S", 0.5)
    create_topics(bootstrap, [topics.mailbox_topic("n")])
    first, lost, last = letter(), letter(), letter()
    async with mailing(bootstrap) as made:
        await made.post("n", first)
        with stopped(pid):
            with pytest.raises(MailFailed):
                await made.post("n", lost)
            with pytest.raises(MailFailed, match="is being replaced"):
                await made.post("n", lost)
        await post_when_back(made, "n", last)
    found = [one for _, one in await asyncio.to_thread(mailbox_of, bootstrap, "n", 2)]
    # What had no ack may have arrived, in its place; a cancelled future does not unsend.
    assert found[0] == first
    assert found[1] in (lost, last)


async def test_a_mailer_that_cannot_start_leaves_nothing_open(recwarn: pytest.WarningsRecorder) -> None:
    """It is tried every half second for as long as the broker is away."""
    warnings.simplefilter("always")
    made = Mailer(f"127.0.0.1:{free_port()}")
    with pytest.raises(KafkaError):
        await made.start()
    await made.stop()
    del made
    gc.collect()
    assert [str(warning.message) for warning in recwarn if "Unclosed" in str(warning.message)] == []


async def test_a_mailer_stopped_while_the_broker_is_away_leaves_nothing_running(
    own_broker: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    bootstrap, pid = own_broker
    monkeypatch.setattr(mailer, "SEND_TIMEOUT_S", 0.5)
    monkeypatch.setattr(mailer, "STOP_TIMEOUT_S", 0.5)
    create_topics(bootstrap, [topics.mailbox_topic("n")])
    before = asyncio.all_tasks()
    async with mailing(bootstrap) as made:
        await made.post("n", letter())
        with stopped(pid):
            with pytest.raises(MailFailed):
                await made.post("n", letter())
            await made.stop()
            await until(lambda: asyncio.all_tasks() == before)
