"""Which records of the log count as unreadable: those that cannot be read, and have an erratum that counts.

An erratum counts if its key is trusted, its signature is right, and its hash is that of the record in its place. It
never touches a record that can be read. Everything else leaves the stop where it is, and says why.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ledger.digest import record_sha256
from schemas.errata import Erratum, is_signed
from schemas.events import Event, Unreadable, UnreadableEvent, parse

_UNREADABLE = Unreadable()


class Errata:
    """Errata by their place, signatures checked once."""

    def __init__(self, errata: Iterable[Erratum] = (), trusted: frozenset[str] = frozenset()) -> None:
        self._good: dict[tuple[int, int], list[Erratum]] = {}
        self._bad: dict[tuple[int, int], list[str]] = {}
        for erratum in errata:
            place = (erratum.partition, erratum.offset)
            if wrong := fault(erratum, trusted):
                self._bad.setdefault(place, []).append(wrong)
            else:
                self._good.setdefault(place, []).append(erratum)

    def covers(self, partition: int, offset: int, key: bytes, value: bytes) -> bool:
        """Whether this record is unreadable and an erratum that counts says so."""
        if (partition, offset) not in self._good or why_unreadable(key, value) is None:
            return False
        sha256 = record_sha256(partition, offset, key, value).hex()
        return any(erratum.record_sha256 == sha256 for erratum in self._good[partition, offset])

    def before(self, ends: Mapping[int, int]) -> list[Erratum]:
        """Those that count, for records before `ends`."""
        return [e for (p, offset), found in sorted(self._good.items()) if offset < ends.get(p, 0) for e in found]

    def why_not(self, partition: int, offset: int) -> str:
        """Why what there is for this place does not count; begins with a semicolon, empty where there is nothing."""
        bad = list(self._bad.get((partition, offset), ()))
        if (partition, offset) in self._good:
            bad.append("it is for another record (its SHA-256 is not this one's)")
        return "".join(f"; an erratum does not count: {wrong}" for wrong in bad)

    def event_of(self, partition: int, offset: int, key: bytes, value: bytes) -> Event:
        """The event in a record, or `Unreadable` where an erratum lets it pass.

        Raises UnreadableEvent, whose text says what is wrong with the record and with errata for it.
        """
        try:
            event = parse(value)
        except UnreadableEvent as error:
            wrong = str(error)
        else:
            if event.key.encode() == key:
                return event
            wrong = _OTHER_KEY
        if self.covers(partition, offset, key, value):
            return _UNREADABLE
        raise UnreadableEvent(wrong + self.why_not(partition, offset))


_OTHER_KEY = "its key is not its event's"
NO_ERRATA = Errata()


def fault(erratum: Erratum, trusted: frozenset[str]) -> str:
    """Why an erratum cannot count for any record; empty where it can."""
    if erratum.public_key not in trusted:
        return f"its key {erratum.public_key} is not in SHRK_ERRATA_KEYS"
    if not is_signed(erratum):
        return "its signature is wrong"
    return ""


def why_unreadable(key: bytes, value: bytes) -> str | None:
    """What is wrong with a record; None where it can be read."""
    try:
        event = parse(value)
    except UnreadableEvent as error:
        return str(error)
    return None if event.key.encode() == key else _OTHER_KEY
