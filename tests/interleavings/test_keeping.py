"""Whoever archives, compacts or seals, appends and loads beside it are right at every moment."""

from dataclasses import dataclass
from uuid import uuid4

import pytest
from sqlalchemy import Engine, text

from datapatterns.errors import EventGapError, StreamArchivedError, VersionConflictError
from datapatterns.event_sourcing import (
    ANY,
    Aggregate,
    Archive,
    EventStore,
    EventTypes,
    HashChain,
    StreamId,
    applies,
)
from datapatterns.testing.interleaving import Explorer, InterleavingError, Outcome
from tests.fixtures.effort import THOROUGH, at_most
from tests.interleavings.designs.design import Tasks
from tests.interleavings.guards import function_without

pytestmark = pytest.mark.postgres

BEGUN = 2
PREEMPTIONS = 3 if THOROUGH else 2

types = EventTypes()
store = EventStore(types=types)
archive = Archive(store)
chain = HashChain(store)


@types.event("kept.counted")
@dataclass(frozen=True, slots=True)
class Counted:
    n: int


@types.event("kept.carried")
@dataclass(frozen=True, slots=True)
class Carried:
    n: int


class Count(Aggregate, category="kept"):
    total = 0

    @applies
    def counted(self, e: Counted) -> None:
        self.total += e.n

    @applies
    def carried(self, e: Carried) -> None:
        self.total = e.n


class Scene:
    """A stream of some events, and what is done to it."""

    def __init__(self, plain: Engine, gated: Engine) -> None:
        self._plain, self._gated = plain, gated
        self.stream = StreamId("kept", "none yet")

    def prepare(self) -> None:
        self.stream = StreamId("kept", uuid4().hex)
        with self._plain.begin() as conn:
            store.append(conn, self.stream, [Counted(5)] * BEGUN, expected_version=0)

    def append(self) -> None:
        with self._gated.begin() as conn:
            store.append(conn, self.stream, [Counted(5)], expected_version=ANY)

    def compact(self) -> None:
        with self._gated.begin() as conn:
            count = store.load(conn, Count, self.stream.key)
            summary = Carried(count.total)
            archive.compact(conn, self.stream, summary, expected_version=count.version)
        self.move()

    def stop(self) -> None:
        with self._gated.begin() as conn:
            archive.stop(conn, self.stream)
        self.move()

    def move(self) -> None:
        with self._gated.begin() as conn:
            archive.move(conn, self.stream, limit=1)

    def restore(self) -> None:
        for _ in range(2):
            with self._gated.begin() as conn:
                archive.restore(conn, self.stream, limit=1)

    def load(self) -> tuple[int, int]:
        with self._gated.begin() as conn:
            count = store.load(conn, Count, self.stream.key)
        return count.version, count.total

    def seal(self) -> None:
        with self._gated.begin() as conn:
            chain.seal(conn, limit=100)

    def is_right(self, outcome: Outcome) -> None:
        """Compare the loads with a fold of what is there in the end, each version once."""
        with self._plain.begin() as conn:
            rows = conn.execute(
                text(
                    "SELECT e.version, t.name, CAST(e.data ->> 'n' AS int)"
                    " FROM datapatterns.event_all AS e JOIN datapatterns.stream AS s"
                    " ON s.id = e.stream_id JOIN datapatterns.event_type AS t ON t.id = e.type_id"
                    " WHERE s.key = :key ORDER BY 1"
                ),
                {"key": self.stream.key},
            ).all()
            totals = {0: 0}
            for place, (version, name, n) in enumerate(rows, 1):
                assert version == place, f"the versions are {[row[0] for row in rows]}"
                totals[version] = n if name == "kept.carried" else totals[version - 1] + n
            for version in range(BEGUN, len(rows) + 1):
                found = store.load(conn, Count, self.stream.key, version=version)
                assert found.total == totals[version], f"version {version} has {found.total}"
        for name, result in outcome.results.items():
            if name.startswith("load"):
                version, total = result
                is_right = version >= BEGUN and totals[version] == total
                assert is_right, f"a load saw {total} at version {version}"
        for name, error in outcome.errors.items():
            assert not name.startswith("load"), f"a load failed: {error}"


@pytest.fixture
def scene(plain: Engine, gated: Engine) -> Scene:
    return Scene(plain, gated)


def explore(explorer: Explorer, scene: Scene, *acts: str, limit: int = 150) -> None:
    def meet() -> Tasks:
        scene.prepare()
        return {act: getattr(scene, act) for act in acts}

    explored = explorer.explore(
        meet,
        invariant=scene.is_right,
        max_preemptions=PREEMPTIONS,
        max_schedules=at_most(limit),
        allowed_errors=(VersionConflictError, StreamArchivedError, EventGapError),
    )
    assert explored.schedules > 10


def test_a_compaction_beside_an_append_and_a_load(explorer: Explorer, scene: Scene) -> None:
    explore(explorer, scene, "compact", "append", "load")


def test_two_compactions_at_once(explorer: Explorer, scene: Scene) -> None:
    def meet() -> Tasks:
        scene.prepare()
        return {"one": scene.compact, "two": scene.compact, "load": scene.load}

    explorer.explore(
        meet,
        invariant=scene.is_right,
        max_preemptions=PREEMPTIONS,
        max_schedules=at_most(100),
        allowed_errors=(VersionConflictError,),
    )


def test_a_stream_that_stops_beside_an_append_and_a_load(explorer: Explorer, scene: Scene) -> None:
    explore(explorer, scene, "stop", "append", "load")


def test_a_restoration_beside_a_move_and_a_load(explorer: Explorer, scene: Scene) -> None:
    explore(explorer, scene, "stop", "restore", "load")


def test_a_load_that_reads_one_table_only_would_miss_what_moved(
    explorer: Explorer, scene: Scene, plain: Engine
) -> None:
    """The control."""
    its_events = " AS e\n             WHERE e.stream_id = ids[i]"
    with (
        function_without(
            plain,
            "datapatterns.load_streams",
            f"datapatterns.event_all{its_events}",
            instead=f"datapatterns.event{its_events}",
        ),
        pytest.raises((InterleavingError, EventGapError), match=r"a load saw|lacks version"),
    ):
        explore(explorer, scene, "stop", "append", "load")


def test_a_seal_beside_an_append_and_a_move(
    explorer: Explorer, scene: Scene, plain: Engine
) -> None:
    explore(explorer, scene, "seal", "append", "compact", limit=100)
    with plain.begin() as conn:
        assert chain.verify(conn).intact
