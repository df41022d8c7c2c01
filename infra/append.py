"""Appends operator's events to the ledger log: few, one at a time, acknowledged by all replicas before it returns."""

from __future__ import annotations

import asyncio
import logging

from infra.accounts import Append
from infra.errors import Unreachable
from schemas.events import Event

_TIMEOUT_S = 15.0
_SILENT = logging.NullHandler()


def appending(kafka: str, ledger_partitions: int) -> Append:
    """An `append` for `accounts.credit`. It raises Unreachable if the log does not acknowledge within 15 s; the event
    may have been appended all the same, and repeating it is harmless.
    """

    async def append(event: Event) -> None:
        # Imported when called: `shrk` is to answer --help at once.
        from ledger.log import LedgerUnavailable, LedgerWriter

        # Where nobody has set up logging they would write to stderr beside our one line.
        for name in ("aiokafka", "ledger"):
            logging.getLogger(name).addHandler(_SILENT)
        writer = LedgerWriter(kafka, ledger_partitions, client_id="shrk")
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                await writer.start()
                await writer.append(event)
        except (LedgerUnavailable, TimeoutError) as error:
            why = str(error) or f"the ledger log at {kafka} gave no acknowledgement within {_TIMEOUT_S:g} s"
            raise Unreachable(f"{why}; it is safe to repeat") from error
        finally:
            await writer.stop(timeout_s=0)

    return append
