"""The part of the ExLlamaV2 engine that touches exllamav2, torch and tokenizers; nothing else imports them."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from workers.engines.base import EngineUnavailable, Facts, Generation, Sampling
from workers.engines.token_filter import TokenFilter, TokenTree
from workers.engines.vocabulary import Style, token_bytes

_PAGE_TOKENS = 256  # exllamav2's page; the cache is a multiple of it
_NO_PAGES_NOTE = (
    "no paged attention: it needs flash-attn >= 2.5.7 and an Ampere GPU or newer; "
    "generations run one at a time and share no prompts"
)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model on the GPU.

    Attributes:
        facts: what is true of it.
        table: bytes by id; empty for control tokens.
        tokenize: text and "read control tokens" to ids.
        new_generator: an asynchronous generator; call it on the loop that shall run it.
        new_job: generator, generation, budget, seed and filter (or None) to a running asynchronous job.
        unload: frees the GPU.
        end_ids: ids that end a turn.
        bos_ids: what the model wants before every text, nothing or its first token.
    """

    facts: Facts
    table: tuple[bytes, ...]
    tokenize: Callable[[str, bool], list[int]]
    new_generator: Callable[[], Any]
    new_job: Callable[[Any, Generation, int, int, TokenFilter | None], Any]
    unload: Callable[[], None]
    end_ids: tuple[int, ...] = ()
    bos_ids: tuple[int, ...] = ()
    tree: Callable[[], TokenTree] = field(init=False)

    def __post_init__(self) -> None:
        # Made when the first constraint asks for it: it takes a second for a large vocabulary.
        object.__setattr__(self, "tree", cache(lambda: TokenTree(self.table)))


@dataclass(frozen=True, slots=True)
class FolderFacts:
    """What the files of a model folder say, weights aside.

    Attributes:
        table: bytes by id; empty for control tokens.
        special_tokens: texts of the control tokens.
        end_ids: ids that end a turn.
        bos_text, eos_text: texts of these tokens, "" without one.
        weights_bytes: size of the safetensors files.
        bos_ids: the first token, where the tokenizer's configuration puts it before every text.
    """

    table: tuple[bytes, ...]
    special_tokens: tuple[str, ...]
    end_ids: tuple[int, ...]
    bos_text: str
    eos_text: str
    weights_bytes: int
    bos_ids: tuple[int, ...] = ()


def read_folder(folder: Path) -> FolderFacts:
    """Read a model folder. Raises EngineUnavailable, naming the file that is missing or broken."""
    weights_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if not weights_bytes:
        raise EngineUnavailable(f"{folder} holds no *.safetensors: give a folder with FP16 or EXL2 weights")
    config, tokenizer = _read_json(folder / "config.json"), _read_json(folder / "tokenizer.json")
    generation_file = folder / "generation_config.json"
    generation = _read_json(generation_file) if generation_file.is_file() else {}
    settings_file = folder / "tokenizer_config.json"
    settings = _read_json(settings_file) if settings_file.is_file() else {}
    try:
        told = _folder_facts(config, tokenizer, generation, weights_bytes)
        return replace(told, bos_ids=(int(config["bos_token_id"]),) if settings.get("add_bos_token") else ())
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EngineUnavailable(f"the model in {folder} is not described as expected: {error!r}") from error


def _folder_facts(
    config: dict[str, Any], tokenizer: dict[str, Any], generation: dict[str, Any], weights_bytes: int
) -> FolderFacts:
    style: Style = "byte-level" if '"ByteLevel"' in json.dumps(tokenizer.get("decoder")) else "sentencepiece"
    entries: dict[int, bytes] = {at: token_bytes(token, style) for token, at in tokenizer["model"]["vocab"].items()}
    texts = {at: token for token, at in tokenizer["model"]["vocab"].items()}
    special_tokens = []
    for added in tokenizer.get("added_tokens", ()):
        texts[added["id"]] = added["content"]
        entries[added["id"]] = b"" if added["special"] else added["content"].encode()
        if added["special"]:
            special_tokens.append(added["content"])
    # The head may be wider than the vocabulary (padded): such ids read as nothing.
    size = max(max(entries) + 1, int(config["vocab_size"]))
    ends = [generation.get("eos_token_id"), config.get("eos_token_id")]
    end_ids = {at for end in ends for at in (end if isinstance(end, list) else [end]) if isinstance(at, int)}
    if not end_ids:
        raise ValueError("neither config.json nor generation_config.json names eos_token_id")
    return FolderFacts(
        table=tuple(entries.get(at, b"") for at in range(size)),
        special_tokens=tuple(special_tokens),
        end_ids=tuple(sorted(end_ids)),
        bos_text=texts.get(config.get("bos_token_id", -1), ""),
        eos_text=texts.get(min(end_ids), ""),
        weights_bytes=weights_bytes,
    )


def load_model(folder: Path, slots: int, context_tokens: int | None) -> LoadedModel:
    """Load a folder onto the GPU; blocks. Raises EngineUnavailable."""
    told = read_folder(folder)
    try:
        return _load(folder, told, slots, context_tokens)
    except EngineUnavailable:
        raise
    except Exception as error:  # exllamav2 and torch raise anything from AssertionError to OutOfMemoryError
        raise EngineUnavailable(f"exllamav2 cannot load {folder.name}: {type(error).__name__}: {error}") from error


def _load(folder: Path, told: FolderFacts, wanted_slots: int, context_tokens: int | None) -> LoadedModel:
    import exllamav2
    import torch
    from exllamav2 import attn
    from exllamav2.generator import ExLlamaV2DynamicGeneratorAsync, ExLlamaV2DynamicJobAsync, ExLlamaV2Sampler
    from exllamav2.generator.filters import ExLlamaV2Filter

    config = exllamav2.ExLlamaV2Config(str(folder))
    context = min(context_tokens or config.max_seq_len, config.max_seq_len)
    config.max_seq_len = context
    # Both are multiples of a page, as paged prefill demands, and small enough for a cancel to be heard soon.
    config.max_input_len = min(config.max_input_len, max(_PAGE_TOKENS, context // _PAGE_TOKENS * _PAGE_TOKENS))
    paged = bool(attn.has_flash_attn_with_paged) and not config.no_flash_attn
    slots = wanted_slots if paged else 1
    pages = -(-context // _PAGE_TOKENS) * slots
    model = exllamav2.ExLlamaV2(config)
    cache = exllamav2.ExLlamaV2Cache(model, max_seq_len=pages * _PAGE_TOKENS, lazy=True)
    model.load_autosplit(cache)
    tokenizer = exllamav2.ExLlamaV2Tokenizer(config)

    def new_generator() -> Any:
        return ExLlamaV2DynamicGeneratorAsync(
            model=model, cache=cache, tokenizer=tokenizer, max_batch_size=slots, max_q_size=1, paged=paged
        )

    class GrammarFilter(ExLlamaV2Filter):
        """A TokenFilter as the library wants it. Works while the GPU does."""

        def __init__(self, follower: TokenFilter) -> None:
            super().__init__(model, tokenizer)
            self._follower = follower

        def begin(self, prefix_str: str) -> None:
            self._follower.restart()

        def feed(self, token: Any) -> None:
            self._follower.feed(int(token))

        def next(self) -> tuple[list[int], set[int]]:
            return self._follower.allowed(), set()

        def use_background_worker(self) -> bool:
            return True

    def new_job(generator: Any, generation: Generation, budget: int, seed: int, follower: TokenFilter | None) -> Any:
        settings = ExLlamaV2Sampler.Settings(**sampler_settings(generation.sampling))
        if generation.sampling.logit_bias:
            width = config.vocab_size + -config.vocab_size % 32
            settings.token_bias = torch.zeros((width,), dtype=torch.float)
            for token_id, bias in generation.sampling.logit_bias.items():
                settings.token_bias[token_id] = bias
        return ExLlamaV2DynamicJobAsync(
            generator,
            input_ids=torch.tensor([[*generation.prompt_ids, *generation.prefix_ids]], dtype=torch.long),
            max_new_tokens=budget,
            gen_settings=settings,
            seed=seed,
            stop_conditions=list(told.end_ids),
            filters=[] if follower is None else [GrammarFilter(follower)],
        )

    def unload() -> None:
        model.unload()
        torch.cuda.empty_cache()

    facts = Facts(
        engine="exllamav2",
        model=folder.parent.name if folder.name == "hf" else folder.name,
        context_tokens=context,
        vocabulary_size=min(len(told.table), config.vocab_size),
        slots=slots,
        batches=paged,
        weights_bytes=told.weights_bytes,
        special_tokens=told.special_tokens,
        bos_text=told.bos_text,
        eos_text=told.eos_text,
        tells_logprobs=False,  # what its sampler tells is of after temperature and penalties
        notes=() if paged else (_NO_PAGES_NOTE,),
    )
    return LoadedModel(
        facts, told.table, make_tokenizer(folder), new_generator, new_job, unload, told.end_ids, told.bos_ids
    )


def sampler_settings(sampling: Sampling) -> dict[str, Any]:
    """Arguments of exllamav2's sampler settings; each default of its own that would change the output is set."""
    greedy = sampling.temperature == 0
    return {
        "temperature": 1.0 if greedy else sampling.temperature,
        "top_k": 1 if greedy else sampling.top_k,
        "top_p": 0.0 if greedy else sampling.top_p,
        "min_p": 0.0,
        "token_repetition_penalty": 1.0,
        "token_repetition_range": -1,
        "token_frequency_penalty": sampling.frequency_penalty,
        "token_presence_penalty": sampling.presence_penalty,
    }


def make_tokenizer(folder: Path) -> Callable[[str, bool], list[int]]:
    """A tokenizer of a folder's tokenizer.json, nothing added at either end."""
    from tokenizers import Tokenizer

    path = str(folder / "tokenizer.json")
    reading, blind = Tokenizer.from_file(path), Tokenizer.from_file(path)
    blind.encode_special_tokens = True  # that is: encode their texts as text

    def tokenize(text: str, special: bool) -> list[int]:
        ids: list[int] = (reading if special else blind).encode(text, add_special_tokens=False).ids
        return ids

    return tokenize


def _read_json(path: Path) -> dict[str, Any]:
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise EngineUnavailable(f"{path.parent} has no {path.name}") from error
    except (OSError, ValueError) as error:
        raise EngineUnavailable(f"{path} cannot be read: {error}") from error
    if not isinstance(loaded, dict):
        raise EngineUnavailable(f"{path} is not a JSON object")
    return loaded
