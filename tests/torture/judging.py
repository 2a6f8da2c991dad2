"""What must be true when all is over: of every reader, of every stream, of every event."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy import Connection, Engine, text

from tests.torture.bystanders import Watched
from tests.torture.ledger import Ledger, ids_in
from tests.torture.tailing import RECORD, Reading, packed

_STORED = text(
    "SELECT e.position, s.key, e.version, e.event_id FROM datapatterns.event_all e"
    " JOIN datapatterns.stream s ON s.id = e.stream_id ORDER BY e.position"
)
OUT_OF_ORDER: Final = "events before their predecessor, by position or by time"
_IN_STREAMS: Final = {
    "streams whose version is not the number of their events": (
        "SELECT count(*) FROM datapatterns.stream s WHERE (s.version, s.version) IS DISTINCT FROM"
        " (SELECT (count(*), max(e.version)) FROM datapatterns.event_all e"
        "   WHERE e.stream_id = s.id)"
    ),
    OUT_OF_ORDER: (
        "SELECT count(*) FROM (SELECT position, at, lag(position) OVER stream AS position_before,"
        " lag(at) OVER stream AS at_before FROM datapatterns.event_all"
        " WINDOW stream AS (PARTITION BY stream_id ORDER BY version)) e"
        " WHERE position < position_before OR at < at_before"
    ),
    "tags without their event, or the other way round": (
        "SELECT count(*) FROM datapatterns.event_tag t FULL JOIN (SELECT position, unnest(tags)"
        " AS tag FROM datapatterns.event_all) e ON e.position = t.position AND e.tag = t.tag"
        " WHERE e.position IS NULL OR t.position IS NULL"
    ),
}


@dataclass(slots=True)
class Report:
    """What happened, and what of it must not.

    Attributes:
        broken: How often each promise was broken; empty if none was.
        skipped: How many events each reader was not given.
    """

    events: int
    retried: int
    repeated: int
    rolled_back: int
    deadlocks: int
    watched: Watched
    went_back: int
    skipped: list[int] = field(default_factory=list)
    broken: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        lags = sorted(self.watched.lags) or [0.0]
        return (
            f"{self.events:,} events, {len(self.skipped)} readers skipped {self.skipped};"
            f" {self.rolled_back:,} events rolled back, {self.deadlocks} deadlocks,"
            f" {self.retried} commits of unknown outcome of which {self.repeated} had happened;"
            f" readers went back {self.went_back} times,"
            f" the raw mark {self.watched.stepped_back} times in {len(lags):,} samples;"
            f" its lag: {1e3 * lags[len(lags) // 2]:.0f} ms in the middle,"
            f" {1e3 * lags[-1]:.0f} ms at most; broken: {self.broken or 'nothing'}"
        )


def judge(engine: Engine, ledger: Ledger, readings: Sequence[Reading], watched: Watched) -> Report:
    """Compare what is stored with what everybody was told."""
    with engine.connect() as conn:
        stored = _stored(conn)
        broken = {name: conn.scalar(text(sql)) or 0 for name, sql in _IN_STREAMS.items()}
    report = Report(
        len(stored) // RECORD.size,
        ledger.retried,
        ledger.repeated,
        len(ledger.lost) // 16,
        ledger.deadlocks,
        watched,
        sum(reading.went_back for reading in readings),
    )
    broken |= _of_writers(ledger, [RECORD.unpack(one)[2] for one in _records(stored)])
    for number, reading in enumerate(readings):
        of_reader = _of_reader(bytes(stored), reading.seen)
        report.skipped.append(of_reader["skipped"])
        broken |= {f"{what} by reader {number}": count for what, count in of_reader.items()}
    report.broken = {what: count for what, count in broken.items() if count}
    return report


def _stored(conn: Connection) -> bytearray:
    stored = bytearray()
    rows = conn.execution_options(yield_per=10_000).execute(_STORED)
    for position, key, version, event_id in rows:
        stored += packed(position, key, version, event_id)
    return stored


def _of_writers(ledger: Ledger, ids: list[bytes]) -> dict[str, int]:
    there, acknowledged, lost = set(ids), ids_in(ledger.stored), ids_in(ledger.lost)
    return {
        "events stored twice": len(ids) - len(there),
        "events acknowledged twice": len(acknowledged) - len(set(acknowledged)),
        "acknowledged events that are not there": len(set(acknowledged) - there),
        "events that are there though rolled back": len(there.intersection(lost)),
        "events that nobody appended": len(there.difference(acknowledged, lost)),
    }


def _of_reader(stored: bytes, seen: bytes) -> dict[str, int]:
    if seen == stored:
        return {"skipped": 0, "given twice": 0, "invented": 0, "given in another order": 0}
    given, there = _records(seen), set(_records(stored))
    once = set(given)
    ordered = [record for record in _records(stored) if record in once]
    return {
        "skipped": len(there - once),
        "given twice": len(given) - len(once),
        "invented": len(once - there),
        "given in another order": sum(map(_differ, ordered, given)),
    }


def _differ(one: bytes, other: bytes) -> bool:
    return one != other


def _records(packed_records: bytes | bytearray) -> list[bytes]:
    size = RECORD.size
    return [bytes(packed_records[at : at + size]) for at in range(0, len(packed_records), size)]
