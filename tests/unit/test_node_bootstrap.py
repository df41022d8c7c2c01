"""What a node loads for the names that it is told, and what it says of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from workers.bootstrap import load
from workers.config import BadConfig, NodeConfig
from workers.engines import default_model_path
from workers.engines.double import DoubleEngine


def config(models: str, engine: str = "double") -> NodeConfig:
    return NodeConfig.from_environment(
        {
            "SHRK_KAFKA": "k:1",
            "SHRK_NODE_ID": "n",
            "SHRK_PROVIDER_ID": "p",
            "SHRK_ENGINE": engine,
            "SHRK_MODELS": models,
            "SHRK_SLOTS": "2",
        }
    )


async def test_names_of_the_same_weights_share_one_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    loads: list[DoubleEngine] = []
    plain = DoubleEngine.load

    async def counted(self: DoubleEngine) -> None:
        loads.append(self)
        await plain(self)

    monkeypatch.setattr(DoubleEngine, "load", counted)
    models = await load(config(f"a,b,c={tmp_path}/x,d={tmp_path}/y/../x,e={tmp_path}/z"))
    assert list(models) == ["a", "b", "c", "d", "e"]
    assert models["a"] is models["b"] is not models["c"]
    assert models["c"] is models["d"] is not models["e"]
    assert len(loads) == 3
    assert models["a"].slots.total == 2
    assert models["a"].modalities == ("text", "image", "embedding")
    assert models["a"].form is not None


async def test_a_model_of_vectors_bounds_nobody_and_chats_with_nobody() -> None:
    path = default_model_path("llamacpp")
    assert path is not None
    models = await load(config(f"chat,vectors={path.with_name('shark-embed-mini.gguf')}", "llamacpp"))
    try:
        vectors = models["vectors"]
        assert (vectors.modalities, vectors.form, vectors.template) == (("embedding",), None, None)
        assert (vectors.engine.facts.slots, vectors.slots.total, models["chat"].slots.total) == (1, 2, 2)
    finally:
        for served in models.values():
            await served.engine.unload()


async def test_what_cannot_be_loaded_unloads_what_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"no model")
    unloaded: list[str] = []
    from workers.engines.llamacpp import LlamaCppEngine

    plain = LlamaCppEngine.unload

    async def counted(self: LlamaCppEngine) -> None:
        unloaded.append("one")
        await plain(self)

    monkeypatch.setattr(LlamaCppEngine, "unload", counted)
    with pytest.raises(BadConfig, match=r"model b on engine llamacpp: broken\.gguf"):
        await load(config(f"a,b={tmp_path}/broken.gguf", "llamacpp"))
    assert unloaded == ["one"]
