"""What llama.cpp's /completion is asked, from a generation. Pure."""

import base64
from collections.abc import Sequence
from typing import Any

from workers.engines.base import IMAGE, Generation, GenerationInvalid, constraint_after, engine_seed
from workers.engines.gguf import GgufHead
from workers.engines.vocabulary import TextAssembler

#: Put into a text that reads like a control token and is none, where it has to pass as text: it shows nothing.
_BREAK = "\u200b"


def constraint_rest(generation: Generation, table: Sequence[bytes]) -> str | None:
    """What may still be said after the prefix, in llama.cpp's notation; "" for nothing, None for anything.

    Raises: GenerationInvalid where the prefix does not fit, or ends inside a character.
    """
    if generation.constraint is None:
        return None
    assembler = TextAssembler(table)
    text = assembler.feed(generation.prefix_ids)
    if not assembler.whole:
        raise GenerationInvalid("a constrained generation cannot go on from inside a character")
    matcher = constraint_after(generation.constraint, text)
    return "" if matcher.done else matcher.rest().gbnf()


def body(generation: Generation, new_tokens: int, grammar: str | None, *, stream: bool) -> dict[str, Any]:
    """The request, without images.

    Args:
        generation: what is asked for.
        new_tokens: how many ids may come.
        grammar: what the constraint still lets through.
        stream: whether ids come one by one.
    """
    sampling = generation.sampling
    request = {
        "prompt": [*generation.prompt_ids, *generation.prefix_ids],
        "n_predict": new_tokens,
        "stream": stream,
        "verbose": True,  # the only way to ids through the in-process object
        "return_tokens": True,
        "return_progress": stream,  # gives the callback a word in prefill, so that a cancel is heard there
        "cache_prompt": True,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": 0.0,
        "repeat_penalty": 1.0,
        "repeat_last_n": len(generation.prompt_ids) + len(generation.prefix_ids) + new_tokens,
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "logit_bias": [[token_id, bias] for token_id, bias in sampling.logit_bias.items()],
        "seed": engine_seed(generation),
    }
    if generation.logprobs is not None:
        request["n_probs"] = max(1, generation.logprobs)  # with 0 it tells nothing, not even of the id itself
    if grammar is not None:
        request["grammar"] = grammar
    return request


def image_prompt(generation: Generation, head: GgufHead, marker: str) -> tuple[dict[str, Any], list[str]]:
    """The prompt as text with marks for images, as llama.cpp wants it then; and its stretches of text.

    Args:
        generation: has images.
        head: of the model.
        marker: what this server reads as an image; drawn at its start, so nobody else can write it.
    """
    stretches = [[]]
    for token_id in (*generation.prompt_ids, *generation.prefix_ids):
        if token_id == IMAGE:
            stretches.append([])
        else:
            stretches[-1].append(token_id)
    texts = [text_of(ids, head) for ids in stretches]
    if head.adds_bos and head.bos_text:
        texts[0] = texts[0].removeprefix(head.bos_text)  # it puts one there itself
    images = [base64.b64encode(image).decode() for image in generation.images]
    return {"prompt_string": marker.join(texts), "multimodal_data": images}, texts


def text_of(ids: Sequence[int], head: GgufHead) -> str:
    """The text of ids. llama.cpp tokenises it again and reads control tokens: it must find those that are some only."""
    parts: list[str] = []
    plain: list[int] = []
    for token_id in (*ids, None):
        if token_id is not None and token_id not in head.controls:
            plain.append(token_id)
            continue
        if plain:
            text = b"".join(head.table[one] for one in plain).decode("utf-8", errors="replace")
            for token in head.special_tokens:
                text = text.replace(token, token[0] + _BREAK + token[1:])
            parts.append(text)
            plain = []
        if token_id is not None:
            parts.append(head.controls[token_id])
    return "".join(parts)
