"""LangChain's standard tests of a chat model, over langchain-openai. Runs in the suites' own environment."""

from __future__ import annotations

import os
from typing import Any

from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests


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
            "max_tokens": int(os.environ.get("SUITE_MAX_TOKENS", "100")),  # 100 is the suite's own
            "stream_usage": True,
        }

    @property
    def supports_json_mode(self) -> bool:
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
