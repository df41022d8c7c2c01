"""Parameters that an alias drops: taken out before the request is read, named, and refused where that is asked for."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from ingress import dropping
from ingress.app import V1
from ingress.chat import Asked
from ingress.dialects import openai, openai_embeddings
from ingress.dialects.openai import ChatRequest
from ingress.dialects.openai_completions import CompletionRequest
from ingress.dialects.openai_embeddings import EmbeddingRequest
from ingress.dialects.openai_responses import ResponsesRequest
from ingress.dialects.shadow import InferenceRequest
from ingress.dialects.shreyansh import ShreyanshRequest
from schemas.droppable import DROPPABLE, EFFECTIVE
from schemas.errors import ApiError
from tests.unit.v1_kit import KEY, ScriptedCore, app

DROPS = {"other": frozenset({"encoding_format", "temperature", "user"})}
CHAT: dict[str, Any] = {"model": "other", "messages": [{"role": "user", "content": "hi"}]}


def parse(headers: Mapping[str, str] | None = None, **changes: Any) -> Asked:
    return dropping.parse(openai, json.dumps({**CHAT, **changes}).encode(), headers or {}, DROPS)


@pytest.mark.parametrize(
    "form", [ChatRequest, CompletionRequest, EmbeddingRequest, ResponsesRequest, ShreyanshRequest, InferenceRequest]
)
def test_what_may_be_dropped_has_no_effect_or_one_that_was_chosen_with_care(form: Any) -> None:
    """A field that is given an effect later must not stay droppable by oversight."""
    droppable = DROPPABLE & form.model_fields.keys()
    assert droppable - EFFECTIVE <= getattr(form, "IDLE", {}).keys()
    assert not [name for name in droppable if form.model_fields[name].is_required()]


def test_what_falsifies_the_answer_or_the_money_is_not_droppable() -> None:
    needed = """messages model input prompt instructions tools functions tool_choice function_call parallel_tool_calls
        max_tokens max_completion_tokens max_output_tokens n best_of stop logit_bias response_format text stream
        stream_options logprobs top_logprobs echo suffix dimensions modalities audio include metadata background
        previous_response_id conversation tier privacy_mode trusted_only max_latency_ms fallback_models allow_hosters
        deny_hosters"""
    assert not DROPPABLE & set(needed.split())


def test_dropped_parameters_have_no_effect_and_are_named_before_all_others() -> None:
    asked = parse(temperature=0.1, top_p=0.5, user="u", store=True)
    assert (asked.chat.sampling.temperature, asked.chat.sampling.top_p) == (0.7, 0.5)
    assert asked.ignored == ("temperature", "user", "store")
    assert parse(model="m", temperature=0.1).chat.sampling.temperature == 0.1


def test_a_value_that_would_be_refused_is_dropped_too_and_null_is_nothing() -> None:
    asked = parse(temperature={"very": "hot"}, user=None)
    assert (asked.chat.sampling.temperature, asked.ignored) == (0.7, ("temperature",))
    for body in ({"temperature": 3, "model": "m"}, {"temperature": 3, "top_p": 3}, {"messages": 5}):
        with pytest.raises(ApiError) as caught:
            parse(**body)
        assert caught.value.code == "invalid_request"


@pytest.mark.parametrize("value", [0.1, {"very": "hot"}])
def test_in_strict_mode_it_is_refused_by_name(value: Any) -> None:
    with pytest.raises(ApiError) as caught:
        parse({"x-shiver-strict": "1"}, temperature=value)
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "temperature")
    assert parse({"x-shiver-strict": "1"}, temperature=None).ignored == ()


@pytest.mark.parametrize(
    ("body", "code"),
    [(b"", "invalid_json"), (b"{", "invalid_json"), (b"\xff\xfe{}", "invalid_json"), (b"[]", "invalid_request"),
     (b"{}", "invalid_request"), (b'{"model": ["other"]}', "invalid_request"), (b"[" * 9999, "invalid_json")],
)  # fmt: skip
def test_what_is_no_request_is_refused_as_ever(body: bytes, code: str) -> None:
    with pytest.raises(ApiError) as caught:
        dropping.parse(openai, body, {}, DROPS)
    assert caught.value.code == code


def test_all_that_stays_stays_to_the_digit() -> None:
    schema = {"type": "object", "properties": {"n": {"maximum": 2**63 - 1, "minimum": 0.1, "const": "🦈 \u2028"}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    asked = parse(tools=[tool], temperature=1)
    assert asked.chat.tools[0].parameters == schema
    assert type(asked.chat.tools[0].parameters["properties"]["n"]["maximum"]) is int  # type: ignore[index]


def test_other_names_are_read_once_whatever_aliases_drop() -> None:
    class Counting:
        read = 0

        def parse(self, body: bytes, headers: Mapping[str, str]) -> Asked:
            self.read += 1
            return openai.parse(body, headers)

    dialect = Counting()
    body = json.dumps({**CHAT, "model": "m"}).encode()
    dropping.parse(dialect, body, {}, DROPS)
    assert dialect.read == 1
    dropping.parse(dialect, json.dumps(CHAT).encode(), {}, DROPS)
    assert dialect.read == 3


def test_every_call_of_v1_takes_the_name_from_its_form() -> None:
    own = {"/v1/completions": {"prompt": "x"}, "/v1/embeddings": {"input": "x"}, "/v1/responses": {"input": "x"}}
    for path, dialect in V1.items():
        body = json.dumps({"model": "other", "user": "u", **own.get(path, CHAT)}).encode()
        assert dropping.parse(dialect, body, {}, DROPS).ignored == ("user",)


async def test_an_embedding_whose_client_asks_for_base64_by_itself() -> None:
    core = ScriptedCore("m", "embed")
    core.offers = core.offers._replace(aliases={"plain": "embed", "other": "embed"}, drops=DROPS)
    vector = base64.b64encode(struct.pack("<2f", 0.6, 0.8)).decode()
    transport = httpx.ASGITransport(app(core))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:

        async def ask(model: str, **headers: str) -> httpx.Response:
            body = {"model": model, "input": "hi", "encoding_format": "base64"}
            return await http.post("/v1/embeddings", json=body, headers={"authorization": f"Bearer {KEY}", **headers})

        for model in ("embed", "plain"):
            response = await ask(model)
            assert response.json()["data"][0]["embedding"] == vector
            assert "x-shiver-ignored" not in response.headers
        response = await ask("other")
        assert response.json()["data"][0]["embedding"] == pytest.approx([0.6, 0.8])
        assert response.headers["x-shiver-ignored"] == "encoding_format"
        refused = await ask("other", **{"x-shiver-strict": "1"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "encoding_format")
    assert len(core.requests) == 3


def test_the_answer_s_writer_is_that_of_the_request_without_it() -> None:
    body = json.dumps({"model": "other", "input": "hi", "encoding_format": "hex"}).encode()
    asked = dropping.parse(openai_embeddings, body, {}, DROPS)
    assert asked.ignored == ("encoding_format",)
