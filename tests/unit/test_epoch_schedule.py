"""When an epoch is due, and the settings of epochs."""

from __future__ import annotations

import pytest

from streams.epoch_schedule import EpochSettings, due

HOUR, DAY = 3_600_000, 86_400_000


@pytest.mark.parametrize(
    ("interval_ms", "since_ms", "now_ms", "wanted"),
    [
        (HOUR, 5 * HOUR, 6 * HOUR - 1, False),
        (HOUR, 6 * HOUR - 1, 6 * HOUR, True),
        (HOUR, 5 * HOUR, 50 * HOUR, True),
        (DAY, DAY - 1, DAY, True),
        (DAY, DAY, 2 * DAY - 1, False),
        (HOUR, 7 * HOUR, 6 * HOUR, False),  # a clock that went back
        (HOUR, None, 6 * HOUR, False),
        (0, 0, 6 * HOUR, False),
    ],
)
def test_due(interval_ms: int, since_ms: int | None, now_ms: int, wanted: bool) -> None:
    assert due(interval_ms, since_ms, now_ms) is wanted


def test_defaults_and_settings() -> None:
    plain = EpochSettings.from_environment({})
    assert plain.interval_ms == HOUR
    assert plain.terms.chain_id == 31337
    assert [(token.asset, token.decimals) for token in plain.terms.tokens] == [("SHIVER", 18), ("USDC", 6)]
    told = EpochSettings.from_environment(
        {"SHRK_EPOCH_INTERVAL": "day", "SHRK_CHAIN_ID": "1", "SHRK_TOKEN_USDC": "0x" + "0D" * 20}
    )
    assert (told.interval_ms, told.terms.chain_id, told.terms.tokens[1].token) == (DAY, 1, "0x" + "0D" * 20)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SHRK_EPOCH_INTERVAL", "minute"),
        ("SHRK_CHAIN_ID", "0"),
        ("SHRK_CHAIN_ID", "one"),
        ("SHRK_SETTLEMENT_CONTRACT", "0x12"),
        ("SHRK_TOKEN_SHIVER", "51" * 20),
    ],
)
def test_a_wrong_setting_is_one_line(name: str, value: str) -> None:
    with pytest.raises(SystemExit, match=f"{name} must be"):
        EpochSettings.from_environment({name: value})
