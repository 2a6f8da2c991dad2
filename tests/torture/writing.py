"""Writers: many small transactions in all the ways that the store offers, killed at any time."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from uuid import UUID

from sqlalchemy import URL, Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from datapatterns.errors import VersionConflictError
from datapatterns.event_sourcing import ANY, EventStore, Expected, NewEvent, StreamEvents, StreamId
from tests.torture.ledger import Ledger
from tests.torture.persisting import connected, found_stored, insist, is_deadlock, overlap
from tests.torture.plan import CATEGORY, HOT_STREAMS, WRITERS_NAME

STORE = EventStore()

_VERSION = text(
    "SELECT version FROM datapatterns.stream WHERE tenant = '' AND category = :category"
    " AND key = :key"
)
_UNRELATED = text("INSERT INTO torture_other VALUES (1)")


@dataclass(frozen=True, slots=True)
class Append:
    """What goes to one stream."""

    stream: StreamId
    events: list[NewEvent]
    expected_version: int | Expected

    @property
    def ids(self) -> list[UUID]:
        """The ids of the events."""
        return [event.event_id for event in self.events]

    def wanted(self) -> StreamEvents:
        """Return it as the store takes several."""
        return StreamEvents(self.stream, self.events, self.expected_version, event_ids=self.ids)

    def send(self, conn: Connection) -> bool:
        """Append; return whether it was there before."""
        return STORE.append(
            conn,
            self.stream,
            self.events,
            expected_version=self.expected_version,
            event_ids=self.ids,
        ).repeated


def new_events(chance: Random, count: int) -> list[NewEvent]:
    """Return events, a fifth of the batches with a tag."""
    tags = (f"about:{chance.randrange(20)}",) if chance.random() < 0.2 else ()
    return [
        NewEvent("torture.happened", {"n": n}, event_id=new_id(chance), tags=tags)
        for n in range(count)
    ]


def new_id(chance: Random) -> UUID:
    """Return an id that the seed decides."""
    return UUID(int=chance.getrandbits(128), version=4)


def hot_streams(chance: Random, count: int) -> list[StreamId]:
    """Return some of the streams where writers meet, in the order to lock them in."""
    keys = chance.sample(range(HOT_STREAMS), count)
    return sorted(StreamId(CATEGORY, f"hot-{key}") for key in keys)


def write(url: URL, *, seed: int, events: int) -> Ledger:
    """Write until so many events are acknowledged; return what became of all of them."""
    chance, ledger = Random(seed), Ledger()  # noqa: S311 -- reproducible, not secret
    with connected(url, WRITERS_NAME) as engine:
        while ledger.count < events:
            _transact(engine, chance, ledger)
    return ledger


def _transact(engine: Engine, chance: Random, ledger: Ledger) -> None:
    done: list[Append] = []
    committing = False
    try:
        with engine.connect() as conn:
            try:
                if chance.random() < 0.2:
                    conn.execute(_UNRELATED)  # a transaction id long before the first position
                for step in _steps(conn, chance):
                    done += _take(conn, chance, step, ledger)
                if chance.random() < 0.15:
                    overlap(conn, positions=chance.randrange(100), seconds_max=0.02)
                committing = chance.random() < 0.9
                if committing:
                    conn.commit()
            except DBAPIError:
                conn.rollback()
                raise
    except DBAPIError as error:
        ledger.deadlocks += is_deadlock(error)
        if committing:
            _find_out(engine, done, ledger)
            return
        insist(lambda: _answers(engine))
    _note(ledger, done, stored=committing)


def _steps(conn: Connection, chance: Random) -> list[list[Append]]:
    """Return what to append, and what of it in one call."""
    appends = [
        Append(
            stream,
            new_events(chance, chance.choice([1, 1, 2, 7, 40])),
            ANY if chance.random() < 0.4 else _version(conn, stream),
        )
        for stream in hot_streams(chance, chance.choice([1, 1, 1, 2, 3]))
    ]
    if chance.random() < 0.5:
        return [appends]
    return [[append] for append in appends]


def _version(conn: Connection, stream: StreamId) -> int:
    return conn.scalar(_VERSION, {"category": stream.category, "key": stream.key}) or 0


def _take(
    conn: Connection, chance: Random, step: Sequence[Append], ledger: Ledger
) -> Sequence[Append]:
    """Append; return what the transaction holds of it."""
    undone = chance.random() < 0.1
    savepoint = conn.begin_nested() if undone else None
    try:
        if len(step) > 1 or chance.random() < 0.1:
            STORE.append_to_streams(conn, [append.wanted() for append in step])
        else:
            step[0].send(conn)
    except VersionConflictError:  # another writer was first, and nothing of this call is there
        undone = True
    if savepoint is not None:
        savepoint.rollback()
    if undone:
        _note(ledger, step, stored=False)
        return []
    return step


def _find_out(engine: Engine, done: Sequence[Append], ledger: Ledger) -> None:
    ledger.retried += 1
    stored, repeated = found_stored(engine, lambda conn: [append.send(conn) for append in done])
    ledger.repeated += repeated
    _note(ledger, done, stored=stored)


def _note(ledger: Ledger, appends: Sequence[Append], *, stored: bool) -> None:
    for append in appends:
        ledger.note(append.ids, stored=stored)


def _answers(engine: Engine) -> bool:
    with engine.connect() as conn:
        conn.execute(text("SELECT 1"))
    return True
