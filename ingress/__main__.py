"""python -m ingress: serve on SHRK_HOST:SHRK_PORT (127.0.0.1:8080)."""

from __future__ import annotations

import asyncio
import logging
import os
import sys

import uvicorn
import uvloop

from ingress.app import create_app
from ingress.bootstrap import Ingress
from ingress.connection import Connection
from ingress.lanes import POOL_MAX, POOL_START
from schemas.settings import Settings

#: After SIGTERM streams may run to their end for SHRK_DRAIN_S; what is left then ends as if its client had gone.
DRAIN_S = "25"


async def serve() -> int:
    settings = Settings.from_environment()
    lanes = os.environ.get("SHRK_LANES", str(POOL_START))
    if not lanes.isdigit() or not 1 <= int(lanes) <= POOL_MAX:
        raise SystemExit(f"SHRK_LANES must be 1 to {POOL_MAX}, not {lanes!r}")
    drain_s = os.environ.get("SHRK_DRAIN_S", DRAIN_S)
    if not drain_s.isdigit():
        raise SystemExit(f"SHRK_DRAIN_S must be whole seconds, not {drain_s!r}")
    ingress = Ingress(settings, int(lanes))
    config = uvicorn.Config(
        create_app(ingress),
        host=os.environ.get("SHRK_HOST", "127.0.0.1"),
        port=int(os.environ.get("SHRK_PORT", "8080")),
        loop="none",
        http=Connection,
        ws="none",
        access_log=False,
        log_level="warning",
        timeout_graceful_shutdown=int(drain_s),
        timeout_keep_alive=75,
        server_header=False,
    )
    server = uvicorn.Server(config)
    fail = asyncio.create_task(_stop_when_failed(ingress, server))
    await server.serve()
    fail.cancel()
    return 1 if ingress.failed.is_set() or not server.started else 0


async def _stop_when_failed(ingress: Ingress, server: uvicorn.Server) -> None:
    await ingress.failed.wait()
    server.should_exit = True


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("aiokafka").setLevel(logging.WARNING)
    sys.exit(uvloop.run(serve()))


if __name__ == "__main__":
    main()
