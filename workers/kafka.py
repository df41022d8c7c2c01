"""How a node's Kafka clients are made, connected and closed: with bounds that aiokafka itself does not set."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, ProducerClosed

log = logging.getLogger(__name__)

#: A broker that does not answer a request for this long is treated as away.
REQUEST_TIMEOUT_MS = 10_000
CONNECT_S_MAX = 15.0
RETRY_FIRST_S = 0.2
RETRY_S_MAX = 3.0
STOP_S_MAX = 2.0


class Client(Protocol):
    """A producer or a consumer."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


class Backoff:
    """Seconds to wait before the next try: doubling, to RETRY_S_MAX."""

    def __init__(self) -> None:
        self._next_s = RETRY_FIRST_S

    async def wait(self) -> None:
        await asyncio.sleep(self._next_s)
        self._next_s = min(RETRY_S_MAX, self._next_s * 2)


def producer(bootstrap: str, client_id: str, batch_bytes_max: int = 16_384) -> AIOKafkaProducer:
    """A producer that acks on all replicas and is idempotent, not started. Needs a running loop."""
    return AIOKafkaProducer(
        bootstrap_servers=bootstrap,
        client_id=client_id,
        acks="all",
        enable_idempotence=True,
        linger_ms=0,
        request_timeout_ms=REQUEST_TIMEOUT_MS,
        max_batch_size=batch_bytes_max,
    )


async def try_start(client: Client) -> Exception | None:
    """Connects, within CONNECT_S_MAX; what went wrong, or None. A client that did not start is closed."""
    try:
        async with asyncio.timeout(CONNECT_S_MAX):
            await client.start()
    except (KafkaError, OSError, TimeoutError) as error:
        await stop(client)
        return error
    except BaseException:
        await stop(client)
        raise
    return None


async def stop(client: Client) -> None:
    """Closes a client within about twice STOP_S_MAX. What a producer has not sent by then is dropped.

    `producer.stop()` flushes, and an idempotent producer never gives up a batch: without a broker it waits for ever.
    """
    stopping = asyncio.ensure_future(client.stop())
    done, _ = await asyncio.wait([stopping], timeout=STOP_S_MAX)
    if not done:
        if isinstance(client, AIOKafkaProducer):
            # No public call ends a flush: fail the batches, and the flush that waits for them goes on to close.
            client._message_accumulator.fail_all(ProducerClosed())
        else:
            stopping.cancel()
        await asyncio.wait([stopping], timeout=STOP_S_MAX)
    if not stopping.done():
        stopping.cancel()
        log.warning("a Kafka client did not close within %.0f s; left behind", 2 * STOP_S_MAX)
    elif not stopping.cancelled() and (error := stopping.exception()) is not None:
        log.info("a Kafka client closed with %s", type(error).__name__)
