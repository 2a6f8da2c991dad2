"""Bulk imports by COPY among the writers, and transactions in two phases that stay open."""

from collections.abc import Sequence
from contextlib import suppress
from random import Random

from sqlalchemy import URL, Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from datapatterns.event_sourcing import ANY, ImportedEvent, StreamId
from tests.torture.ledger import Ledger
from tests.torture.persisting import connected, found_stored, insist, overlap
from tests.torture.plan import CATEGORY, UNFENCED_IMPORT
from tests.torture.writing import STORE, Append, hot_streams, new_events

_IS_PREPARED = text("SELECT EXISTS (SELECT FROM pg_prepared_xacts WHERE gid = :gid)")


def import_chunks(url: URL, *, seed: int, events: int) -> Ledger:
    """Import chunks until so many events are acknowledged."""
    chance, ledger, chunk = Random(seed), Ledger(), 0  # noqa: S311 -- reproducible, not secret
    with connected(url, "torture-importer", options=f"-c {UNFENCED_IMPORT}=on") as engine:
        while ledger.count < events:
            chunk += 1
            _import_chunk(engine, chance, ledger, source=f"source-{seed}", chunk=chunk)
    return ledger


def _import_chunk(
    engine: Engine, chance: Random, ledger: Ledger, *, source: str, chunk: int
) -> None:
    streams = [StreamId(CATEGORY, f"{source}-{chunk}-{n}") for n in range(20)]
    streams += hot_streams(chance, 2)
    events = [
        ImportedEvent(streams[n % len(streams)], event)
        for n, event in enumerate(new_events(chance, 300))
    ]
    committing = chance.random() < 0.8

    def attempt() -> bool:
        with engine.connect() as conn:
            STORE.import_events(conn, events, source=source, chunk=chunk)
            overlap(conn, positions=chance.randrange(50, 200), seconds_max=0.04)
            if committing:
                conn.commit()
        return committing

    # A chunk that was committed is recognised by its number, so trying again is finding out.
    ids = [event.event.event_id for event in events]  # type: ignore[attr-defined] # NewEvents
    ledger.note(ids, stored=insist(attempt))
    with engine.connect() as conn, suppress(DBAPIError):
        overlap(conn, positions=300, seconds_max=0.02)  # not all imports before all the rest


def prepare(url: URL, *, seed: int, events: int) -> Ledger:
    """Append in prepared transactions, which stay open for a while and outlive crashes."""
    chance, ledger, number = Random(seed), Ledger(), 0  # noqa: S311 -- reproducible, not secret
    with (
        connected(url, "torture-preparer") as engine,
        connected(url, "torture-decider") as plain,
    ):
        decider = plain.execution_options(isolation_level="AUTOCOMMIT")
        while ledger.count < events:
            number += 1
            appends = [
                Append(stream, new_events(chance, 2), ANY) for stream in hot_streams(chance, 2)
            ]
            stored = _in_two_phases(engine, decider, appends, f"torture-{seed}-{number}", chance)
            for append in appends:
                ledger.note(append.ids, stored=stored)
    return ledger


def _in_two_phases(
    engine: Engine, decider: Engine, appends: Sequence[Append], gid: str, chance: Random
) -> bool:
    try:
        with engine.connect() as conn:
            for append in appends:
                append.send(conn)
            conn.exec_driver_sql(f"PREPARE TRANSACTION '{gid}'")
            conn.commit()
    except DBAPIError:
        if not insist(lambda: _is_prepared(decider, gid)):
            return False
    stay = chance.randrange(50, 500)
    insist(lambda: _stay_open(decider, positions=stay))
    committing = chance.random() < 0.7
    insist(lambda: _decide(decider, gid, "COMMIT" if committing else "ROLLBACK"))
    if committing:  # found out as by anybody who does not know the outcome
        _, repeated = found_stored(decider, lambda conn: [append.send(conn) for append in appends])
        assert repeated, f"{gid} was committed and is not there"
    return committing


def _is_prepared(decider: Engine, gid: str) -> bool:
    with decider.connect() as conn:
        return bool(conn.scalar(_IS_PREPARED, {"gid": gid}))


def _stay_open(decider: Engine, *, positions: int) -> bool:
    with decider.connect() as conn:
        overlap(conn, positions=positions, seconds_max=0.12)
    return True


def _decide(decider: Engine, gid: str, verdict: str) -> bool:
    with decider.connect() as conn:
        if conn.scalar(_IS_PREPARED, {"gid": gid}):
            conn.exec_driver_sql(f"{verdict} PREPARED '{gid}'")
    return True


def end_prepared(conn: Connection) -> None:
    """Roll back what a run that failed has left, in autocommit mode."""
    for gid in conn.scalars(text("SELECT gid FROM pg_prepared_xacts")).all():
        conn.exec_driver_sql(f"ROLLBACK PREPARED '{gid}'")
