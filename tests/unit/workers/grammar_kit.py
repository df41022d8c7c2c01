"""Texts out of grammars, for tests: random ones that end."""

from __future__ import annotations

import random

from workers.engines.grammar import Grammar, Matcher


def say(grammar: Grammar, seed: int, loose_chars: int = 60) -> str:
    """A whole text of the grammar: any choice at first, then the shortest way to the end."""
    draw, matcher, text = random.Random(seed), Matcher(grammar), ""
    while not matcher.done:
        choices = matcher.choices()
        if matcher.accepts and (len(text) > loose_chars or draw.random() < 0.2):
            break
        least = min(after for _, after in choices)
        if len(text) > loose_chars:
            choices = [one for one in choices if one[1] == least]
        low, high = draw.choice(draw.choice(choices)[0].ranges)
        char = chr(draw.choice((low, high, draw.randint(low, high), min(high, low + draw.randint(0, 90)))))
        assert matcher.feed(char)
        text += char
    assert matcher.accepts
    return text


def takes(grammar: Grammar, text: str) -> bool:
    """Whether the text is one of the grammar's, whole."""
    matcher = Matcher(grammar)
    return matcher.feed(text) and matcher.accepts
