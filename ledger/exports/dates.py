"""UTC days and months of event times, by integers. No clock: `now` is nobody's business here."""

from __future__ import annotations

import re
from datetime import date

from ledger.books import DAY_MS

#: Beancount reads no year after 2999; a time this far ahead is a broken clock, and no date should hide it.
LAST_YEAR = 2900

_EPOCH = date(1970, 1, 1).toordinal()
END_MS = (date(LAST_YEAR + 1, 1, 1).toordinal() - _EPOCH) * DAY_MS
_MONTH = re.compile(r"(\d{4})-(\d{2})", re.ASCII)


def day_of(at_ms: int) -> int:
    """The UTC day of a time, as days since 1970-01-01."""
    return at_ms // DAY_MS


def iso_day(day: int) -> str:
    """2027-01-15."""
    return date.fromordinal(_EPOCH + day).isoformat()


def iso_time(at_ms: int) -> str:
    """2027-01-15T08:00:00.123Z."""
    seconds, ms = divmod(at_ms % DAY_MS, 1000)
    minutes, second = divmod(seconds, 60)
    hour, minute = divmod(minutes, 60)
    return f"{iso_day(day_of(at_ms))}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z"


def parse_day(text: str) -> int:
    """The day that YYYY-MM-DD names. Raises ValueError where there is none from 1970 to LAST_YEAR."""
    try:
        found = date.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or found.isoformat() != text:  # fromisoformat knows other ways to write a day, too
        raise ValueError(f"{text!r} is no day, as in 2027-01-31")
    _check_year(found.year)
    return found.toordinal() - _EPOCH


def month_ms(text: str) -> tuple[int, int]:
    """When the UTC month YYYY-MM begins and when the next one does. Raises ValueError as `parse_day` does."""
    match = _MONTH.fullmatch(text)
    if match is None or not 1 <= int(match[2]) <= 12:
        raise ValueError(f"{text!r} is no month, as in 2027-01")
    year, month = int(match[1]), int(match[2])
    _check_year(year)
    following = date(year + 1, 1, 1) if month == 12 else date(year, month + 1, 1)
    return (date(year, month, 1).toordinal() - _EPOCH) * DAY_MS, (following.toordinal() - _EPOCH) * DAY_MS


def _check_year(year: int) -> None:
    if not 1970 <= year <= LAST_YEAR:
        raise ValueError(f"the year {year} is not between 1970 and {LAST_YEAR}")
