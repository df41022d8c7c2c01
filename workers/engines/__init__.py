"""Engines by name. `base.py` is the file to read first; libraries are imported only when their engine is made."""

from pathlib import Path

from workers.engines.base import Engine, EngineUnavailable

NAMES = ("llamacpp", "exllamav2", "double")


def default_model_path(name: str) -> Path | None:
    """Where shark-mini, the model that ships with the package, lies for this engine; None for the double."""
    folder = Path(__file__).resolve().parent.parent / "models" / "shark-mini"
    return {"llamacpp": folder / "shark-mini.gguf", "exllamav2": folder / "hf"}.get(name)


def create(
    name: str, model_path: Path | None = None, *, slots: int | None = None, context_tokens: int | None = None
) -> Engine:
    """An engine, not loaded yet.

    Args:
        name: one of NAMES.
        model_path: a GGUF file (llamacpp) or a folder with FP16 or EXL2 weights (exllamav2); shark-mini without one.
        slots: generations at once; the engine's own default without one.
        context_tokens: context of one generation; the model's own without one.

    Raises: EngineUnavailable for an unknown name or a missing model.
    """
    path = model_path or default_model_path(name)
    if name == "double":
        from workers.engines.double import DoubleEngine

        return DoubleEngine.from_environment(slots=slots, context_tokens=context_tokens)
    if path is not None and not path.exists():
        raise EngineUnavailable(f"no model at {path}: give the path of a model this engine can read")
    if name == "llamacpp" and path is not None:
        from workers.engines.llamacpp import LlamaCppEngine

        return LlamaCppEngine(path, slots=slots or 4, context_tokens=context_tokens)
    if name == "exllamav2" and path is not None:
        from workers.engines.exllamav2 import ExLlamaV2Engine

        return ExLlamaV2Engine(path, slots=slots or 16, context_tokens=context_tokens)
    raise EngineUnavailable(f"there is no engine {name!r}; choose one of {', '.join(NAMES)}")
