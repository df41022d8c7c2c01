"""LiteLLM's proxy, in its own environment, in front of the upstream double.

As plain as it goes: one worker, one master key (it refuses to start without), no database, no callbacks, nothing
fetched from outside. Releases 1.82.7 and 1.82.8 were poisoned and must never be pinned. 1.106.0 and not a later 1.106,
since those need a certifi that the index did not have when the lock was made.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from pathlib import Path

from infra.bench import environments
from infra.bench.servers import http_probe
from infra.process import ChildSpec
from infra.state import write_private

# Its prices, its blog posts and its policies come out of the wheel in place of its repository.
_QUIET = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOCAL_BLOG_POSTS": "True",
    "LITELLM_LOCAL_POLICY_TEMPLATES": "True",
    "LITELLM_LOCAL_AUTOROUTER_PRESETS": "True",
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_LOG": "ERROR",
    "DO_NOT_TRACK": "1",
    "NO_PROXY": "127.0.0.1",
    "no_proxy": "127.0.0.1",
}


def new_key() -> str:
    """A master key for one run."""
    return f"sk-{secrets.token_urlsafe(32)}"


def config(model: str, upstream: str, key: str) -> dict[str, object]:
    """Its configuration: `model` is what `upstream` (a base URL without `/v1`) serves, `key` the master key."""
    return {
        "model_list": [
            {
                "model_name": model,
                "litellm_params": {"model": f"openai/{model}", "api_base": f"{upstream}/v1", "api_key": "none"},
            }
        ],
        "litellm_settings": {"num_retries": 0, "telemetry": False, "set_verbose": False},
        "general_settings": {"master_key": key},
    }


def spec(port: int, model: str, upstream: str, key: str, folder: Path, say: Callable[[str], None]) -> ChildSpec:
    """How to start it; its configuration is written to `folder`. Makes the environment where needed."""
    python = environments.ensure("litellm", say)
    path = folder / "litellm.yaml"
    write_private(path, json.dumps(config(model, upstream, key), indent=1))  # JSON is YAML
    argv = (str(python.with_name("litellm")), "--config", str(path), "--host", "127.0.0.1", "--port", str(port))
    return ChildSpec(
        name="litellm",
        argv=(*argv, "--num_workers", "1"),
        env=_QUIET,
        cwd=folder,
        probe=http_probe(f"http://127.0.0.1:{port}/health/readiness"),
        ready_timeout_s=90.0,
    )
