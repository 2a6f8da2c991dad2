"""Stop, move, bring back, compact, purge and seal, in any order, against a dict of lists.

Somebody else reads everything meanwhile, at any isolation level, and never sees an event twice or
a hole between two.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from threading import Event as Flag

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Connection, Engine, create_engine, text

from datapatterns.errors import (
    EventGapError,
    PurgeRefusedError,
    StreamArchivedError,
    VersionConflictError,
)
from datapatterns.event_sourcing import (
    ANY,
    Aggregate,
    Archive,
    EventStore,
    EventTypes,
    HashChain,
    NewEvent,
    StreamId,
    applies,
)
from datapatterns.testing import wait_until
from tests.fixtures.effort import dear

store = EventStore()
archive = Archive(store)
chain = HashChain(store)
ENOUGH_SECONDS = 60

types = EventTypes()
typed = EventStore(types=types)


@types.event("thing.happened")
@dataclass(frozen=True)
class Happened:
    n: int


@types.event("thing.summed")
@dataclass(frozen=True)
class Summed:
    n: int
    past: list[int]


class Things(Aggregate, category="s"):
    """Remembers all numbers; a summary says all that came before."""

    seen: list[int]

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.seen = []

    @applies
    def happened(self, e: Happened) -> None:
        self.seen.append(e.n)

    @applies
    def summed(self, e: Summed) -> None:
        self.seen = [*e.past, e.n]


keys = st.sampled_from(["1", "2", "3"])
sizes = st.integers(1, 4)


@dataclass
class Kept:
    """What the model knows of a stream: its events, and where they are by right."""

    events: list[int] = field(default_factory=list)
    first: int = 1
    stopped: bool = False
    purged: int = 0

    @property
    def there(self) -> list[int]:
        return self.events[self.purged :]


ALL = text(
    "SELECT split_part(s.key, '/', 2), e.version, CAST(e.data ->> 'n' AS int)"
    " FROM datapatterns.event_all AS e"
    " JOIN datapatterns.stream AS s ON s.id = e.stream_id WHERE split_part(s.key, '/', 1) = :run"
    " ORDER BY 1, 2"
)
LOADED = text(
    "SELECT e.version FROM datapatterns.stream AS s JOIN datapatterns.event AS e"
    " ON e.stream_id = s.id AND e.version >= s.first_version"
    " WHERE s.key = :run || '/' || :key ORDER BY 1"
)


class Keeping(RuleBasedStateMachine):
    engine: Engine
    runs = 0
    number = 0

    @initialize(isolation=st.sampled_from(["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]))
    def begin(self, isolation: str) -> None:
        Keeping.runs += 1
        self.run = str(Keeping.runs)
        self.model: dict[str, Kept] = {}
        self.done = Flag()
        self.pool = ThreadPoolExecutor(1)
        self.reads = 0
        self.reader: Future[None] = self.pool.submit(self._read_on, isolation)

    def _read_on(self, isolation: str) -> None:
        engine = create_engine(self.engine.url, isolation_level=isolation)
        while not self.done.is_set():
            with engine.begin() as conn:
                for _ in range(2):
                    rows = conn.execute(ALL, {"run": self.run}).all()
                    for key, events in groupby(rows, key=lambda row: row[0]):
                        versions = [version for _, version, _ in events]
                        whole = list(range(versions[0], versions[-1] + 1))
                        assert versions == whole, (key, versions)
                    self.reads += 1
        engine.dispose()

    def _stream(self, key: str) -> StreamId:
        return StreamId("s", f"{self.run}/{key}")

    def _next(self) -> NewEvent:
        Keeping.number += 1
        return NewEvent("thing.happened", {"n": Keeping.number})

    @rule(key=keys, count=sizes)
    def append(self, key: str, count: int) -> None:
        kept = self.model.setdefault(key, Kept())
        events = [self._next() for _ in range(count)]
        with self.engine.begin() as conn:
            if kept.stopped:
                with pytest.raises(StreamArchivedError):
                    store.append(conn, self._stream(key), events, expected_version=ANY)
                return
            version = len(kept.events)
            store.append(conn, self._stream(key), events, expected_version=version)
        kept.events += [event.data["n"] for event in events]

    @rule(key=keys)
    def stop(self, key: str) -> None:
        kept = self.model.get(key)
        with self.engine.begin() as conn:
            if kept is None:
                with pytest.raises(VersionConflictError):
                    archive.stop(conn, self._stream(key))
                return
            assert archive.stop(conn, self._stream(key)) == len(kept.events)
        kept.stopped = True

    @rule(key=keys, size=sizes, commits=st.booleans())
    def move(self, key: str, size: int, *, commits: bool) -> None:
        with self.engine.connect() as conn:
            archive.move(conn, self._stream(key), limit=size)
            (conn.commit if commits else conn.rollback)()

    @rule()
    def move_everything(self) -> None:
        archive.move_all(self.engine, limit=3)

    @precondition(lambda self: any(kept.stopped for kept in self.model.values()))
    @rule(choice=st.data(), size=sizes)
    def restore(self, choice: st.DataObject, size: int) -> None:
        key = choice.draw(st.sampled_from([k for k, kept in self.model.items() if kept.stopped]))
        kept = self.model[key]
        with self.engine.begin() as conn:
            if archive.restore(conn, self._stream(key), limit=size):
                kept.stopped = False
                loaded = list(conn.scalars(LOADED, {"run": self.run, "key": key}))
                assert loaded == list(range(kept.first, len(kept.events) + 1))

    @rule(key=keys)
    def compact(self, key: str) -> None:
        kept = self.model.get(key)
        if kept is None or kept.stopped:
            return
        Keeping.number += 1
        summary = NewEvent("thing.summed", {"n": Keeping.number, "past": kept.events})
        with self.engine.begin() as conn:
            version = len(kept.events)
            appended = archive.compact(conn, self._stream(key), summary, expected_version=version)
        kept.events.append(summary.data["n"])
        kept.first = appended.version

    @rule(key=keys, through=st.integers(1, 12))
    def purge(self, key: str, through: int) -> None:
        kept = self.model.get(key)
        if kept is None or not kept.purged < through <= len(kept.events):
            return
        stream = self._stream(key)
        with self.engine.begin() as conn:
            before = self._in_archive(conn, key)
            try:
                exported = archive.export(conn, stream, through_version=through, write=len)
                archive.purge(conn, stream, exported, reason="old")
            except PurgeRefusedError:
                sealed = self._sealed(conn, key, through)
                wanted = set(range(kept.purged + 1, through + 1))
                assert through >= kept.first or not wanted <= before or not sealed
                return
        assert through < kept.first
        kept.purged = through

    def _in_archive(self, conn: Connection, key: str) -> set[int]:
        rows = conn.scalars(
            text(
                "SELECT e.version FROM datapatterns.event_archive AS e JOIN datapatterns.stream"
                " AS s ON s.id = e.stream_id WHERE s.key = :run || '/' || :key"
            ),
            {"run": self.run, "key": key},
        )
        return set(rows)

    def _sealed(self, conn: Connection, key: str, through: int) -> bool:
        return bool(
            conn.scalar(
                text(
                    "SELECT coalesce(max(g.last_position), 9999999) >= (SELECT max(e.position) FROM"
                    " datapatterns.event_all AS e JOIN datapatterns.stream AS s ON s.id ="
                    " e.stream_id WHERE s.key = :run || '/' || :key AND e.version <= :v)"
                    " FROM datapatterns.event_seal AS g"
                ),
                {"run": self.run, "key": key, "v": through},
            )
        )

    @rule(limit=st.integers(1, 5))
    def seal(self, limit: int) -> None:
        with self.engine.begin() as conn:
            chain.seal(conn, limit=limit)

    @invariant()
    def everything_is_there_once(self) -> None:
        with self.engine.connect() as conn:
            rows = conn.execute(ALL, {"run": self.run}).all()
        assert [tuple(row) for row in rows] == list(self._expected())

    def _expected(self) -> Iterator[tuple[str, int, int]]:
        for key, kept in sorted(self.model.items()):
            for version, number in enumerate(kept.there, kept.purged + 1):
                yield key, version, number

    @invariant()
    def loads_are_those_of_the_model(self) -> None:
        with self.engine.connect() as conn:
            for key, kept in self.model.items():
                name = self._stream(key).key
                for version in range(1, len(kept.events) + 1):
                    if version < kept.first and kept.purged:
                        with pytest.raises(EventGapError):
                            typed.load(conn, Things, name, version=version)
                        continue
                    loaded = typed.load(conn, Things, name, version=version)
                    assert (loaded.version, loaded.seen) == (version, kept.events[:version])
                latest = typed.load(conn, Things, name)
                assert (latest.version, latest.seen) == (len(kept.events), kept.events)

    @invariant()
    def what_a_load_of_an_open_stream_needs_is_in_one_table(self) -> None:
        with self.engine.connect() as conn:
            for key, kept in self.model.items():
                if kept.stopped:
                    continue
                loaded = list(conn.scalars(LOADED, {"run": self.run, "key": key}))
                assert loaded == list(range(kept.first, len(kept.events) + 1))

    def teardown(self) -> None:
        if not hasattr(self, "pool"):
            return
        wait_until(lambda: self.reads > 0 or self.reader.done(), deadline_seconds=ENOUGH_SECONDS)
        self.done.set()
        self.reader.result(ENOUGH_SECONDS)
        assert self.reads > 0
        self.pool.shutdown()
        with self.engine.begin() as conn:
            assert chain.verify(conn).intact


def test_keeping_loses_no_event(module_engine: Engine) -> None:
    class Machine(Keeping):
        engine = module_engine

    run_state_machine_as_test(Machine, settings=settings(dear, stateful_step_count=30))
