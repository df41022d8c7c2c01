"""LangChain's standard tests of a chat model, over langchain-openai. Runs in the suites' own environment.

With SUITE_SEES the tests of pictures run too, a user's and a tool's. They would fetch one from the internet: here the
same call hands out one of our own.
"""

from __future__ import annotations

import base64
import os
from typing import Any

import httpx
import pytest
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

SEES = os.environ.get("SUITE_SEES") == "1"
#: A PNG of one black pixel.
PICTURE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGNgYGAAAAAEAAH2FzhVAAAAAElFTkSuQmCC"
)


def _pictured(url: str, **_: Any) -> httpx.Response:
    assert url.endswith(".png"), f"no picture: {url}"
    return httpx.Response(200, content=PICTURE, request=httpx.Request("GET", url))


@pytest.fixture(autouse=True)
def _no_internet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(httpx, "get", _pictured)


class TestShiver(ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[ChatOpenAI]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "model": os.environ["SUITE_MODEL"],
            "base_url": os.environ["SUITE_URL"],
            "api_key": os.environ["SUITE_KEY"],
            "temperature": 0,
            "stream_usage": True,
        }

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_image_inputs(self) -> bool:
        return SEES

    @property
    def supports_image_tool_message(self) -> bool:
        return SEES

    @property
    def enable_vcr_tests(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def supports_model_override(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return os.environ["SUITE_MODEL_2"]
