"""python -m streams: the projection, readiness, expiry and epochs, until SIGTERM."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys

import faust

from schemas.settings import Settings
from streams.app import Streams
from streams.epoch_schedule import EpochSettings


def main() -> None:
    settings = Settings.from_environment()
    epochs = EpochSettings.from_environment()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("aiokafka").setLevel(logging.WARNING)
    asyncio.set_event_loop(asyncio.new_event_loop())
    streams = Streams(settings, epochs)
    # `-l crit` kills a Faust worker at its start, so its level is error; ours is set above.
    worker = faust.Worker(
        streams.app, loglevel="error", logfile=None, quiet=True, redirect_stdouts=False, override_logging=False
    )
    _collect_less()
    try:
        worker.execute_from_commandline()
    finally:
        streams.last_word()


def _collect_less() -> None:
    """From here on nothing is looked through for cycles but by `Streams`, now and then."""
    gc.collect()
    gc.freeze()
    gc.disable()


if __name__ == "__main__":
    main()
