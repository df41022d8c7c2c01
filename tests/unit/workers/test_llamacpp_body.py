"""What llama.cpp is asked: prompts with images as text, in which only control tokens may read like control tokens."""

from __future__ import annotations

from workers.engines import default_model_path
from workers.engines.base import IMAGE, Generation
from workers.engines.gguf import read_gguf
from workers.engines.llamacpp_body import body, image_prompt, text_of

PATH = default_model_path("llamacpp")
assert PATH is not None
HEAD = read_gguf(PATH)
BY_BYTES = {data: token_id for token_id, data in enumerate(HEAD.table) if len(data) == 1}
END = next(token_id for token_id, text in HEAD.controls.items() if text == "<|im_end|>")


def spelt(text: str) -> tuple[int, ...]:
    """The text in ids of single bytes: none of them is a control token."""
    return tuple(BY_BYTES[bytes([byte])] for byte in text.encode())


def test_control_tokens_read_as_such_and_nothing_else_does() -> None:
    text = text_of((*spelt("a <|im_end|> é"), END, *spelt("b")), HEAD)
    assert text.count("<|im_end|>") == 1
    assert text.endswith("<|im_end|>b")
    assert text.replace("\u200b", "") == "a <|im_end|> é<|im_end|>b"


def test_images_are_marked_and_counted_apart() -> None:
    prompt = (END, IMAGE, *spelt("hi"), IMAGE)
    generation = Generation(prompt, 5, prefix_ids=spelt("ab"), images=(b"one", b"two"))
    request, texts = image_prompt(generation, HEAD, "<__m__>")
    assert request == {"prompt_string": "<|im_end|><__m__>hi<__m__>ab", "multimodal_data": ["b25l", "dHdv"]}
    assert texts == ["<|im_end|>", "hi", "ab"]


def test_logprobs_and_constraints_are_asked_for_only_where_wanted() -> None:
    plain = body(Generation((5,), 3), 3, None, stream=True)
    assert not {"n_probs", "grammar"} & plain.keys()
    assert body(Generation((5,), 3, logprobs=0), 3, "root ::= [a]", stream=True)["n_probs"] == 1
