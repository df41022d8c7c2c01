"""A limit as an operator writes it: a number, or `none`."""

from __future__ import annotations

import click


class _Limit(click.ParamType):
    name = "number|none"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        text = str(value)
        if text == "none":
            return text
        if not (text.isascii() and text.isdigit()) or len(text) > 18:
            self.fail(f"{text!r} is neither a number nor `none`", param, ctx)
        return int(text)


#: An int, or "none": click takes None for an option that was not given.
LIMIT = _Limit()
