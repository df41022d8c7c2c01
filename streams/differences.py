"""Compares schema derived with a copy of it that was made anew from the log: every row of every table, in one pass.

Both sides are read in the order of the primary key as text, by cursors of one transaction each, so two snapshots at the
same place of the log can be compared while the projection goes on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, NamedTuple

LIVE = "derived"
NEXT = "derived_next"
#: Shown and kept of each table; all are counted.
SHOWN_MAX = 20
_CURSOR_ROWS = 2_000


class Difference(NamedTuple):
    """A row that is not the same in both: as text, None where a side has none."""

    table: str
    key: str
    live: str | None
    rebuilt: str | None

    def __str__(self) -> str:
        live = "no such row" if self.live is None else self.live
        rebuilt = "none" if self.rebuilt is None else self.rebuilt
        return f"derived.{self.table} {self.key}: it has {live}, the log says {rebuilt}"


class Differences:
    """How many rows differ, and the first of each table."""

    def __init__(self) -> None:
        self.rows = 0  # compared
        self.count = 0
        self.shown: list[Difference] = []
        self.of_table: dict[str, int] = {}

    def add(self, difference: Difference) -> None:
        """Counts one more."""
        self.count += 1
        nth = self.of_table[difference.table] = self.of_table.get(difference.table, 0) + 1
        if nth <= SHOWN_MAX:
            self.shown.append(difference)


class Since(NamedTuple):
    """What may have changed since an earlier comparison: rows of records from `next` on, and these requests."""

    next: Mapping[int, int]
    request_ids: Sequence[str]


class Table(NamedTuple):
    """A table and the columns of its key; of all columns where it has no primary key."""

    name: str
    key: tuple[str, ...]
    columns: tuple[str, ...]


async def tables_of(db: Any, schema: str) -> list[Table]:
    """The tables of a schema, by name."""
    rows = await db.fetch(
        "select c.relname::text as name,"
        " array(select a.attname::text from pg_index i, unnest(i.indkey::int2[]) with ordinality k (attnum, nth)"
        "  join pg_attribute a on a.attrelid = c.oid and a.attnum = k.attnum"
        "  where i.indrelid = c.oid and i.indrelid = a.attrelid and i.indisprimary order by k.nth) as key,"
        " array(select a.attname::text from pg_attribute a where a.attrelid = c.oid and a.attnum > 0"
        "  and not a.attisdropped order by a.attnum) as columns"
        " from pg_class c join pg_namespace n on n.oid = c.relnamespace"
        " where n.nspname = $1 and c.relkind = 'r' order by 1",
        schema,
    )
    return [Table(r["name"], tuple(r["key"] or r["columns"]), tuple(r["columns"])) for r in rows]


async def compare(found: Differences, live: Any, rebuilt: Any, table: Table, since: Since | None = None) -> None:
    """Adds to `found` what differs in one table. Both connections are inside a transaction; they may be the same."""
    ours = _rows(live, LIVE, table, since)
    theirs = _rows(rebuilt, NEXT, table, since)
    one, other = await anext(ours, None), await anext(theirs, None)
    while one is not None or other is not None:
        found.rows += 1
        if other is None or (one is not None and one[0] < other[0]):
            assert one is not None
            found.add(Difference(table.name, one[0], one[1], None))
            one = await anext(ours, None)
        elif one is None or other[0] < one[0]:
            found.add(Difference(table.name, other[0], None, other[1]))
            other = await anext(theirs, None)
        else:
            if one[1] != other[1]:
                found.add(Difference(table.name, one[0], one[1], other[1]))
            one, other = await anext(ours, None), await anext(theirs, None)


async def _rows(db: Any, schema: str, table: Table, since: Since | None) -> AsyncIterator[tuple[str, str]]:
    """(key, row) in the order of the key's bytes, which is that of Python's strings: "C", whatever the database has."""
    key = ", ".join(f't."{column}"::text' for column in table.key)
    where, arguments = _where(schema, table, since)
    sql = (
        f'select array[{key}]::text as key, t::text as row from "{schema}"."{table.name}" t {where}'
        f' order by array[{key}]::text collate "C"'
    )
    async for row in db.cursor(sql, *arguments, prefetch=_CURSOR_ROWS):
        yield row["key"], row["row"]


def _where(schema: str, table: Table, since: Since | None) -> tuple[str, list[Any]]:
    if table.name == "offsets":
        return "where t.next > 0", []  # a partition that was never read is as good as none
    if since is None:
        return "", []
    cuts = "join unnest($1::int[], $2::bigint[]) as s (p, cut) on"
    arguments = [list(since.next), list(since.next.values())]
    if {"partition", "offset"} <= set(table.columns):
        return f'{cuts} t.partition = s.p and t."offset" >= s.cut', arguments
    if table.name == "accounts":  # those that an entry has moved
        moved = f'{schema}.entries e {cuts} e.partition = s.p and e."offset" >= s.cut'
        chosen = f"(t.partition, t.account, t.asset) in (select e.partition, e.account, e.asset from {moved})"
        return f"where {chosen}", arguments
    if "request_id" in table.columns:
        return "where t.request_id = any ($1::uuid[])", [list(since.request_ids)]
    return "", []
