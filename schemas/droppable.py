"""Which top-level parameters of a request an operator may let an alias drop. Elsewhere nothing is dropped.

Without such a parameter the answer is still a true one to what was asked, in full, at the same price: only its spelling
or its dice are the API's defaults, and the caller reads in x-shiver-ignored that they are. So these are not here, and
must not come: what is asked (messages, input, prompt, tools, images), for how much (max_tokens, n, best_of), what the
answer has to keep to (response_format, stop, logit_bias, tool_choice, dimensions, logprobs, echo), how it travels
(stream, stream_options), who may serve it (privacy_mode, allow_hosters, ...), and what is answered back (metadata).
"""

from __future__ import annotations

#: How the same numbers are written, and how a text is sampled.
EFFECTIVE = frozenset({"encoding_format", "temperature", "top_p", "frequency_penalty", "presence_penalty", "seed"})
#: Without an effect anyway; dropped, their values are not judged either.
IDLE = frozenset(
    {
        "moderation",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "reasoning",
        "reasoning_effort",
        "safety_identifier",
        "service_tier",
        "store",
        "truncation",
        "user",
        "verbosity",
        "web_search_options",
    }
)
DROPPABLE = EFFECTIVE | IDLE
