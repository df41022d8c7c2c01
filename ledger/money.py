"""Amounts: integers in nano units (1e-9) of an asset. No float comes near them, so nothing is ever rounded unseen.

A price of P per million tokens is P x 1000 nano a token, so that tokens times price is exact.
"""

from __future__ import annotations

from schemas.events import ModelPrice

NANO = 10**9


def cost_nano(price: ModelPrice, prompt_tokens: int, image_tokens: int, completion_tokens: int) -> int:
    """What these tokens cost at `price`, exactly. An image token counts as `image_factor` prompt tokens."""
    return price.in_nano * (prompt_tokens + price.image_factor * image_tokens) + price.out_nano * completion_tokens


def format_amount(amount_nano: int) -> str:
    """The exact decimal in whole units, without trailing zeros: 12_300_000 is "0.0123", -NANO is "-1"."""
    whole, fraction = divmod(abs(amount_nano), NANO)
    digits = f"{fraction:09}".rstrip("0")
    return f"{'-' if amount_nano < 0 else ''}{whole}{'.' + digits if digits else ''}"
