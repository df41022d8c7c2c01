"""Who gets how much of a charge: 1 % burns, 90 % of the rest goes to the providers, the platform keeps what remains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

BURN_DIVISOR = 100
PROVIDERS_PERCENT = 90


class Shares(NamedTuple):
    """The parts of one charge, in nano units. `providers` runs beside the weights that were given."""

    burn: int
    providers: tuple[int, ...]
    platform: int


def split(charge_nano: int, weights: Sequence[int]) -> Shares:
    """The shares of `charge_nano`; they sum to it exactly.

    The providers' part is divided by `weights` (tokens delivered). Without any weight above zero it stays with the
    platform. Raises ValueError for a negative charge or weight.
    """
    if charge_nano < 0 or min(weights, default=0) < 0:
        raise ValueError("a charge and its weights are never negative")
    burn = charge_nano // BURN_DIVISOR
    rest = charge_nano - burn
    providers = apportion(rest * PROVIDERS_PERCENT // 100, weights)
    return Shares(burn, providers, rest - sum(providers))


def apportion(amount: int, weights: Sequence[int]) -> tuple[int, ...]:
    """`amount` in whole units by `weights`: the units that are left over go to the largest remainders, the earlier
    weight first where remainders are equal. All zero where no weight is above zero.
    """
    if len(weights) == 1:
        return (amount,) if weights[0] > 0 else (0,)
    total = sum(weights)
    if total == 0:
        return (0,) * len(weights)
    shares = [amount * weight // total for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda i: (-(amount * weights[i] % total), i))
    for i in by_remainder[: amount - sum(shares)]:
        shares[i] += 1
    return tuple(shares)
