"""What an ingress may ask of a node and what a node may answer: the forms, their limits, and the count over them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from schemas import ids, jobs, replies
from schemas.heartbeats import NodeHeartbeat, ServedModel
from schemas.jobs import Image, Job, JsonObject, JsonSchema, NamedTool, Sampling, Tool
from schemas.replies import ChoiceEnd, Claimed, Embedded, End, Tally, TokenLogprob, Tokens, ToolDelta, Verdict

REQUEST = ids.uuid7(1_795_000_000_000, b"0123456789")
BASE: dict[str, Any] = {"request_id": REQUEST, "attempt": 1, "nonce": "n" * 8}
HI = [{"role": "user", "content": "hi"}]
TOOL = Tool(name="get_weather", description="Weather", parameters={"type": "object"})


def job(**changes: Any) -> Job:
    fields: dict[str, Any] = {
        "request_id": REQUEST,
        "attempt": 1,
        "owner": "i1",
        "lane": "replies.i1.0",
        "model": "m",
        "messages": HI,
        "sampling": Sampling(),
        "max_tokens": 9,
        "expires_at_ms": 1,
        "deadline_at_ms": 2,
    }
    return Job(**(fields | changes))


GOOD: list[dict[str, Any]] = [
    {},
    {"tools": (TOOL,), "tool_choice": NamedTool(name="get_weather"), "parallel_tool_calls": False},
    {"tools": (TOOL,), "tool_choice": "required", "logprobs": 20, "n": 8},
    {"response_format": JsonObject()},
    {"response_format": JsonSchema(name="city", schema_={"type": "object"}, strict=True)},
    {"sampling": Sampling(logit_bias={5: -100, 7: 2.5})},
    {
        "images": (Image(media_type="image/png", data="aGk="),),
        "messages": [{"role": "user", "content": [{"type": "image", "index": 0}, {"type": "text", "text": "?"}]}],
    },
    {"task": "completion", "messages": [], "prompts": ("say",), "echo": True},
    {"task": "completion", "messages": [], "prompts": ((1, 2, 3),), "prefix_ids": (4,)},
    {"task": "embedding", "messages": [], "prompts": ("a", (1, 2)), "dimensions": 256},
]


@pytest.mark.parametrize("changes", GOOD, ids=range(len(GOOD)))
def test_a_job_comes_back_as_it_was_sent(changes: dict[str, Any]) -> None:
    letter = job(**changes)
    assert jobs.parse(jobs.dump(letter)) == letter


def test_a_job_of_before_is_read_as_a_chat() -> None:
    old = {name: value for name, value in json.loads(jobs.dump(job())).items() if name in {
        "kind", "request_id", "attempt", "owner", "lane", "model", "messages", "max_tokens", "expires_at_ms",
        "deadline_at_ms",
    }}  # fmt: skip
    letter = jobs.parse(json.dumps(old | {"sampling": {"temperature": 0.5}}).encode())
    assert isinstance(letter, Job)
    assert (letter.task, letter.n, letter.logprobs, letter.tools, letter.tool_choice) == ("chat", 1, None, (), "auto")


def test_a_schema_is_called_schema_in_json() -> None:
    written = json.loads(jobs.dump(job(response_format=JsonSchema(name="x", schema_={"type": "object"}))))
    assert written["response_format"]["schema"] == {"type": "object"}


BAD: list[dict[str, Any]] = [
    {"messages": []},
    {"prompts": ("and a chat",)},
    {"task": "completion"},
    {"task": "completion", "messages": [], "prompts": ("one", "two")},
    {"task": "completion", "messages": [], "prompts": ("one",), "tools": (TOOL,)},
    {"task": "completion", "messages": [], "prompts": ("one",), "response_format": JsonObject()},
    {"task": "completion", "messages": [], "prompts": ((),)},
    {"task": "completion", "messages": [], "prompts": ((-1,),)},
    {"task": "embedding", "messages": [], "prompts": ("a",), "n": 2},
    {"task": "embedding", "messages": [], "prompts": ("a",), "logprobs": 0},
    {"task": "embedding", "messages": [], "prompts": ("a",) * 2049},
    {"echo": True},
    {"dimensions": 4},
    {"n": 0},
    {"n": 9},
    {"n": 2, "prefix_ids": (1,)},
    {"logprobs": 21},
    {"logprobs": -1},
    {"tools": (TOOL, TOOL)},
    {"tool_choice": "required"},
    {"tools": (TOOL,), "tool_choice": NamedTool(name="other")},
    {"tools": ({"name": "a b"},)},
    {"sampling": {"logit_bias": {"5": 101}}},
    {"sampling": {"logit_bias": {"x": 1}}},
    {"sampling": {"logit_bias": {str(n): 1 for n in range(1025)}}},
    {"response_format": {"type": "xml"}},
    {"images": ({"media_type": "image/svg+xml", "data": "aGk="},)},
    {"images": ({"media_type": "image/png", "data": "a" * (jobs.IMAGE_CHARS_MAX + 1)},)},
    {"messages": HI * 2049},
    {"unknown": 1},
]


@pytest.mark.parametrize("changes", BAD, ids=range(len(BAD)))
def test_what_contradicts_itself_or_a_limit_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        job(**changes)


def test_a_job_that_is_refused_is_not_repeated() -> None:
    secret = json.loads(jobs.dump(job())) | {"task": "completion", "messages": [{"role": "user", "content": "SECRET"}]}
    with pytest.raises(jobs.UnreadableLetter) as caught:
        jobs.parse(json.dumps(secret).encode())
    assert "SECRET" not in str(caught.value)
    assert "value_error" in str(caught.value)


def count(*records: replies.Reply) -> Tally:
    tally = Tally(REQUEST, 1)
    assert [tally.add(replies.parse(replies.dump(record))) for record in records] == [Verdict.COUNTS] * len(records)
    return tally


def test_the_tokens_of_all_choices_count() -> None:
    tally = count(
        Claimed(**BASE, seq=0, prompt_tokens=12, image_tokens=16),
        Tokens(**BASE, seq=1, choice=1, ids=(1, 2), text="ab", text_bytes=2),
        Tokens(**BASE, seq=2, choice=0, ids=(3,), text="", text_bytes=0),
        ChoiceEnd(**BASE, seq=3, choice=1, finish="stop"),
        ChoiceEnd(**BASE, seq=4, choice=0, finish="tool_calls"),
        End(**BASE, seq=5, finish="tool_calls", completion_tokens=3),
    )
    assert (tally.prompt_tokens, tally.image_tokens, tally.completion_tokens) == (12, 16, 3)
    assert tally.terminal is not None


def test_an_embedding_delivers_the_tokens_of_its_inputs() -> None:
    tally = count(
        Claimed(**BASE, seq=0, prompt_tokens=9),
        Embedded(**BASE, seq=1, index=1, vector="AACAPw==", tokens=4),
        Embedded(**BASE, seq=2, index=0, vector="AACAPw==", tokens=5),
        End(**BASE, seq=3, finish="stop", completion_tokens=9),
    )
    assert (tally.prompt_tokens, tally.completion_tokens) == (9, 9)


def test_a_choices_end_is_not_the_end() -> None:
    tally = count(Claimed(**BASE, seq=0, prompt_tokens=1), ChoiceEnd(**BASE, seq=1, choice=0, finish="stop"))
    assert tally.terminal is None


def test_tokens_carry_logprobs_and_tool_calls() -> None:
    logprob = TokenLogprob(
        id=7, text="\ufffd", bytes=(0xC3,), logprob=-0.5, top=({"id": 8, "text": "a", "bytes": [97], "logprob": -9999},)
    )
    call = ToolDelta(index=0, id="call_" + "0a" * 12, name="get_weather")
    record = Tokens(**BASE, seq=0, ids=(7,), text="", text_bytes=0, logprobs=(logprob,), tool_calls=(call,))
    assert replies.parse(replies.dump(record)) == record


@pytest.mark.parametrize(
    "change",
    [
        {"choice": 8},
        {"ids": (-1,)},
        {"logprobs": ({"id": 1, "text": "", "bytes": [], "logprob": 0.1},)},
        {"logprobs": ({"id": 1, "text": "", "bytes": [], "logprob": float("-inf")},)},
        {"logprobs": ({"id": 1, "text": "", "bytes": [256], "logprob": -1},)},
        {"tool_calls": ({"index": 0, "id": "call_1"},)},
        {"tool_calls": ({"index": -1},)},
    ],
)
def test_tokens_have_limits(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Tokens(**(BASE | {"seq": 0, "ids": (), "text": "", "text_bytes": 0} | change))


def test_a_heartbeat_says_what_its_models_can() -> None:
    model = ServedModel(name="m", context_tokens=9)
    assert (model.modalities, model.tools) == (("text",), False)
    seeing = ServedModel(name="v", context_tokens=9, modalities=("text", "image"), tools=True)
    beat = NodeHeartbeat(
        node_id="n", provider_id="p", at_ms=1, version="1", engine="e", models=(model, seeing), slots=4,
        busy_by_owner={},
    )  # fmt: skip
    assert NodeHeartbeat.model_validate_json(beat.model_dump_json()) == beat
    with pytest.raises(ValidationError):
        ServedModel(name="m", context_tokens=9, modalities=())
