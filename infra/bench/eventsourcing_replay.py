"""Runs in an environment that has the `eventsourcing` library and nothing of ours: how fast it replays as many events.

As its documents show it: an application on SQLite, its notification log selected in pages, each notification turned
back into its domain event, and a fold over them into one balance a wallet. Filling is not counted. Prints one line of
JSON: seconds, events, balances, their sum.

python eventsourcing_replay.py EVENTS FOLDER
"""

import json
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from uuid import UUID, uuid4

from eventsourcing.application import Application
from eventsourcing.domain import Aggregate

WALLETS = 2_000
PAGE = 5_000


class Wallet(Aggregate):
    class Moved(Aggregate.Event):
        amount_nano: int
        external_ref: str


def events(count: int):
    wallets = [uuid4() for _ in range(min(WALLETS, count))]
    now = datetime.now(tz=timezone.utc)  # noqa: UP017
    for number in range(count):
        yield Wallet.Moved(
            originator_id=wallets[number % len(wallets)],
            originator_version=1 + number // len(wallets),
            timestamp=now,
            amount_nano=number,
            external_ref=f"reference-{number}",
        )


def main(count: int, folder: Path) -> None:
    app = Application(
        env={"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": str(folder / "eventsourcing.sqlite")}
    )
    page = []
    for number, event in enumerate(events(count), 1):
        page.append(app.mapper.to_stored_event(event))
        if len(page) == PAGE or number == count:
            app.recorder.insert_events(page)
            page = []
    began_s, seen, start = time.perf_counter(), 0, 1
    balances: dict[UUID, int] = {}
    while notifications := app.recorder.select_notifications(start=start, limit=PAGE):
        for notification in notifications:
            event = app.mapper.to_domain_event(notification)
            balances[event.originator_id] = balances.get(event.originator_id, 0) + event.amount_nano
        seen += len(notifications)
        start = notifications[-1].id + 1
    seconds = time.perf_counter() - began_s
    print(json.dumps({"seconds": seconds, "events": seen, "sum": sum(balances.values())}))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
