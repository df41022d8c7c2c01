"""llama.cpp's own HTTP server out of the xllamacpp wheel, with the settings of our llama.cpp engine.

python -m infra.bench.engine_server PORT SLOTS
"""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

import xllamacpp

import workers

MODEL = Path(workers.__file__).parent / "models" / "shark-mini" / "shark-mini.gguf"
CONTEXT_TOKENS = 1024


def parameters(port: int, slots: int) -> xllamacpp.CommonParams:
    """As workers/engines/llamacpp.py loads a small model, but on a TCP port."""
    params = xllamacpp.CommonParams()
    params.model.path = str(MODEL)
    params.n_parallel = slots
    params.n_ctx = slots * CONTEXT_TOKENS
    params.kv_unified = False
    params.fit_params = False
    params.n_batch = 512
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_ram_mib = 0
    params.cache_idle_slots = False
    params.warmup = False
    params.verbosity = -1
    params.hostnames = ["127.0.0.1"]
    params.port = port
    # Its HTTP server keeps one thread for each connection that is open, the one for /health included.
    params.n_threads_http = slots + 4
    params.ui = params.endpoint_slots = params.endpoint_props = params.endpoint_metrics = False
    return params


def main() -> None:
    """Serves until it is ended."""
    asked = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: asked.set())
    server = xllamacpp.Server(parameters(int(sys.argv[1]), int(sys.argv[2])))
    print(f"serving on {server.listening_address}", flush=True)
    asked.wait()


if __name__ == "__main__":
    main()
