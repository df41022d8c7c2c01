"""Waiting in line for something that is handed over: nothing is lost between the giver and a waiter that leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def turn(future: asyncio.Future[T], timeout_s: float, give_back: Callable[[T], None]) -> T | None:
    """What is put into `future`, or None after `timeout_s`.

    A cancelled waiter whose turn came in the same moment gives it back: nobody else would.
    """
    try:
        async with asyncio.timeout(timeout_s):
            return await future
    except TimeoutError:
        return future.result() if future.done() and not future.cancelled() else None
    except asyncio.CancelledError:
        if future.done() and not future.cancelled():
            give_back(future.result())
        raise
