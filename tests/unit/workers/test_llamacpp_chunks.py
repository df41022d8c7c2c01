"""llama.cpp's stream leaves out ids inside a character: the reader finds them, or asks for a replay."""

from typing import Any

import pytest

from workers.engines.base import EngineCrashed
from workers.engines.llamacpp_calls import ChunkReader, Step, Vocabulary
from workers.engines.vocabulary import TextAssembler, token_bytes

# 0 end, 1 "a", 2 and 3 the two bytes of é, 4.. the bytes of a fish, alone and in pairs.
TABLE = [b"", b"a", b"\xc3", b"\xa9", b"\xf0", b"\x9f", b"\xa6", b"\x88", b"\xf0\x9f", b"\x9f\xa6"]


def reader() -> ChunkReader:
    return ChunkReader(Vocabulary(TABLE))


def chunk(count: int, token_id: int, content: str) -> dict[str, Any]:
    return {"choices": [], "__verbose": {"tokens_predicted": count, "tokens": [token_id], "content": content}}


def end(count: int, stop_type: str) -> dict[str, Any]:
    return {"__verbose": {"tokens_predicted": count, "tokens": [], "content": "", "stop": True, "stop_type": stop_type}}


def test_progress_brings_no_ids() -> None:
    placeholder = {"prompt_progress": {}, "__verbose": {"tokens": [0], "tokens_predicted": 0, "content": ""}}
    assert reader().read(placeholder) == Step()


def test_a_gap_with_one_spelling_is_filled() -> None:
    reading = reader()
    assert reading.read(chunk(1, 1, "a")) == Step((1,))
    assert reading.read(chunk(3, 3, "é")) == Step((2, 3))


def test_a_gap_with_two_spellings_is_replayed() -> None:
    reading = reader()
    assert reading.read(chunk(1, 1, "a")) == Step((1,))
    assert reading.read(chunk(4, 7, "🦈")) == Step(lost=True)  # [f09f][a6] or [f0][9fa6]
    assert reading.sampled == 4
    assert reading.recovered({"__verbose": {"tokens": [1, 4, 9, 7]}}) == Step((4, 9, 7))


@pytest.mark.parametrize(
    ("stop_type", "replay", "step"),
    [("limit", [1, 2], Step((2,), "length")), ("eos", [1, 2, 0], Step((2,), "stop"))],
)
def test_an_end_inside_a_character_is_replayed(stop_type: str, replay: list[int], step: Step) -> None:
    reading = reader()
    reading.read(chunk(1, 1, "a"))
    assert reading.read(end(len(replay), stop_type)).lost
    assert reading.recovered({"__verbose": {"tokens": replay}}) == step


def test_a_replay_that_went_another_way_is_an_error() -> None:
    reading = reader()
    reading.read(chunk(1, 1, "a"))
    reading.read(end(2, "limit"))
    with pytest.raises(EngineCrashed):
        reading.recovered({"__verbose": {"tokens": [3, 2]}})


def test_the_end_of_turn_is_held_until_it_is_known_as_such() -> None:
    reading = reader()
    assert reading.read(chunk(1, 0, "")) == Step()
    assert reading.read(end(1, "eos")) == Step((), "stop")
    reading = reader()
    assert reading.read(chunk(1, 0, "")) == Step()
    assert reading.read(chunk(2, 1, "a")) == Step((0, 1))
    reading = reader()
    assert reading.read(chunk(1, 0, "")) == Step()
    assert reading.read(end(1, "limit")) == Step((0,), "length")


def test_token_bytes_of_both_styles() -> None:
    assert token_bytes("Ġhé", "byte-level") == b" h\xe9"
    assert token_bytes("<|added|>", "byte-level") == b"<|added|>"
    assert token_bytes("▁hi", "sentencepiece") == b" hi"
    assert token_bytes("<0xE2>", "sentencepiece") == b"\xe2"


def test_text_goes_on_behind_a_prefix_that_broke_off_inside_a_character() -> None:
    text = TextAssembler(TABLE, [1, 2])
    assert text.feed([3]) == "é"
    assert text.feed([2]) == ""
    assert text.flush() == "\ufffd"
