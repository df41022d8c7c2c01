"""PostgreSQL's advisory locks, by which the processes of a network agree on who does what. The numbers are for ever:
processes of two versions, side by side in an update, must mean the same lock by the same number."""

from __future__ import annotations

from enum import IntEnum


class Lock(IntEnum):
    """All that are used on our database. Whoever takes one names it from here."""

    #: Migrations run one after the other. Held by the session, polled for up to a minute.
    MIGRATE = 0x5368_6976
    #: One process closes the requests of dead ingresses: two would adopt each request twice. Held while it lives.
    EXPIRY = 7_311_803
    #: One process closes epochs by the clock; any number may close one, so this only saves the work of being second.
    EPOCH_SCHEDULE = 7_311_804
    #: Whoever writes the rows of an epoch looks first which is the last: nobody writes in between. Until the commit.
    EPOCH_ROWS = 7_311_805
    #: One rebuild at a time: it drops and makes `derived_next`. Tried once, never waited for.
    REBUILD = 7_311_808
