"""`python -m workers`: one node, until SIGTERM."""

from __future__ import annotations

import logging
import os
import sys

import uvloop

from workers.bootstrap import run
from workers.config import BadConfig, NodeConfig


def main() -> int:
    """Exit status: 0 after a drain, 1 where it cannot go on, 2 for a bad configuration."""
    level = os.environ.get("SHRK_LOG_LEVEL", "INFO").upper()
    if level not in logging.getLevelNamesMapping():
        print(f"node: SHRK_LOG_LEVEL must be a level such as INFO, not {level!r}", file=sys.stderr)
        return 2
    logging.basicConfig(stream=sys.stderr, level=level, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    # aiokafka tells every refused connection and retry as an error; we say once that Kafka is away.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    try:
        return uvloop.run(run(NodeConfig.from_environment(os.environ)))
    except BadConfig as error:
        print(f"node: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
