"""Readers whose snapshot is older than their lease beside writers, and Redis that forgets."""

from collections.abc import Callable
from functools import partial

import pytest
from redis import Redis
from sqlalchemy import literal, select

from datapatterns.cache_aside import Cache, older_snapshots
from datapatterns.cache_aside.milestones import Survey
from datapatterns.cache_aside.steps import Writers
from datapatterns.change_log.snapshots import Snapshot
from datapatterns.testing.interleaving import Explorer, Fault, InterleavingError
from tests.fixtures.caches import rename
from tests.fixtures.effort import THOROUGH
from tests.interleavings.designs.design import Tasks
from tests.interleavings.processes import Processes, closes_nothing, explore, without

pytestmark = [pytest.mark.postgres, pytest.mark.redis]

LEVELS = ["REPEATABLE READ", "SERIALIZABLE"]
STALE = "cached is 'old', the row says 'new'"


@pytest.fixture(autouse=True)
def _counted_here(redis_client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let evictions be counted where a test can make some."""
    redis_client.set("evicted", 0)
    without(
        monkeypatch, redis_client, "SURVEY", "told('stats', 'evicted_keys')",
        instead="(redis.call('GET', 'evicted') or '0')",
    )  # fmt: skip


def meeting(
    processes: Processes,
    level: str,
    *,
    write: Callable[[Processes, Cache], None] = Processes.write,
    evicted: str = "",
) -> Tasks:
    reader, writer = processes.begin()
    tasks: dict[str, Callable[[], object]] = {
        "reader": partial(processes.read_in, level, reader),
        "writer": partial(write, processes, writer),
    }
    if evicted:
        tasks["eviction"] = partial(processes.evict, evicted)
    return tasks


@pytest.mark.parametrize("level", LEVELS)
def test_what_an_older_snapshot_shows_is_not_stored_after_a_write(
    level: str, explorer: Explorer, processes: Processes
) -> None:
    filled = processes.filled
    explore(
        explorer,
        partial(meeting, processes, level),
        invariant=processes.is_absent_or_equal,
    )
    assert processes.filled > filled  # what is new enough is stored


def test_a_lease_alone_stores_what_an_older_snapshot_shows(
    explorer: Explorer, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Survey, "admits", lambda *_: True)

    with pytest.raises(InterleavingError, match=STALE):
        explorer.explore(
            partial(meeting, processes, LEVELS[0]), invariant=processes.is_absent_or_equal
        )


def test_of_two_writers_the_one_with_the_lower_id_may_commit_last(
    explorer: Explorer, processes: Processes
) -> None:
    explore(
        explorer,
        partial(meeting, processes, LEVELS[0], write=Processes.write_late),
        invariant=processes.is_absent_or_equal,
        schedules=20,
    )


def test_the_greatest_writer_is_not_enough(
    explorer: Explorer, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def admits(survey: Survey, seen: Snapshot, writers: Writers) -> bool:
        return original(survey, seen, frozenset([max(writers)]) if writers else writers)

    original = Survey.admits
    monkeypatch.setattr(Survey, "admits", admits)

    with pytest.raises(InterleavingError, match="cached is 'new', the row says 'newer'"):
        explorer.explore(
            partial(meeting, processes, LEVELS[0], write=Processes.write_late),
            invariant=processes.is_absent_or_equal,
        )


def test_what_a_writer_took_back_does_not_matter(explorer: Explorer, processes: Processes) -> None:
    write = Processes.write_after_a_savepoint
    explore(
        explorer,
        partial(meeting, processes, LEVELS[0], write=write),
        invariant=processes.is_absent_or_equal,
        preemptions=1,
    )


@pytest.mark.parametrize("evicted", ["value", "lease", "writers", "fences", "milestones", "server"])
def test_redis_may_forget_any_of_it_at_any_moment(
    evicted: str, explorer: Explorer, processes: Processes
) -> None:
    explore(
        explorer,
        partial(meeting, processes, LEVELS[0], evicted=evicted),
        invariant=processes.is_absent_or_equal,
        preemptions=1,
    )


def test_writers_that_were_evicted_unnoticed_admit_an_older_snapshot(
    explorer: Explorer,
    processes: Processes,
    redis_client: Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted = "(redis.call('GET', 'evicted') or '0')"
    without(monkeypatch, redis_client, "SURVEY", counted, instead="'0'")

    with pytest.raises(InterleavingError, match=STALE):
        explorer.explore(
            partial(meeting, processes, LEVELS[0], evicted="writers"),
            invariant=processes.is_absent_or_equal,
        )


def test_redis_may_be_flushed_at_any_moment(explorer: Explorer, processes: Processes) -> None:
    def flushed() -> Tasks:
        tasks = meeting(processes, LEVELS[0])
        return {**tasks, "operator": processes.flush}

    explore(
        explorer,
        flushed,
        invariant=processes.is_absent_or_equal_once_relayed,
        preemptions=1,
    )


@closes_nothing
def test_a_writer_may_die_anywhere_beside_an_older_snapshot(
    explorer: Explorer, processes: Processes
) -> None:
    explore(
        explorer,
        partial(meeting, processes, LEVELS[0]),
        invariant=processes.is_absent_or_equal_once_relayed,
        preemptions=1,
        crash_at=lambda gate: gate.task == "writer",
        faults=list(Fault) if THOROUGH else [Fault.CRASH],
    )


# -- Tags ------------------------------------------------------------------------------------------


@pytest.fixture
def tagged(start: Callable[..., Processes]) -> Processes:
    """Caches whose writers name a tag, not the entry."""
    return start(tags=["shelf"])


@pytest.mark.parametrize("level", LEVELS)
def test_what_an_older_snapshot_shows_is_not_stored_under_a_newer_stamp(
    level: str, explorer: Explorer, tagged: Processes
) -> None:
    explore(
        explorer,
        partial(meeting, tagged, level),
        invariant=tagged.is_absent_or_equal,
    )


def test_stamps_without_writers_serve_what_an_older_snapshot_shows(
    explorer: Explorer,
    tagged: Processes,
    redis_client: Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = "ARGV[2] == '0' and {} or redis.call('ZRANGE', KEYS[i + 1], 0, ARGV[2])"
    without(monkeypatch, redis_client, "STAMP", told, instead="{}")

    with pytest.raises(InterleavingError, match=STALE):
        explorer.explore(partial(meeting, tagged, LEVELS[0]), invariant=tagged.is_absent_or_equal)


# -- Own writes that nobody was told of ------------------------------------------------------------


def changing_its_mind(processes: Processes) -> Tasks:
    cache, writer = processes.begin()

    def hesitate() -> None:
        with processes.snapshot() as conn:
            savepoint = conn.begin_nested()
            rename(conn, 1, "never was")
            processes.read(cache, conn)
            savepoint.rollback()
            conn.rollback()

    return {"hesitant": hesitate, "reader": partial(processes.read, writer)}


def test_what_a_transaction_wrote_unnoticed_and_took_back_is_not_stored(
    explorer: Explorer, processes: Processes
) -> None:
    explore(
        explorer,
        partial(changing_its_mind, processes),
        invariant=processes.is_absent_or_equal,
        preemptions=1,
    )


def test_without_asking_for_its_id_a_transactions_own_write_is_stored(
    explorer: Explorer, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot, is_standby, has_not_written, *others = older_snapshots._look.selected_columns  # noqa: SLF001
    assert "pg_current_xact_id_if_assigned" in str(has_not_written)
    unguarded = select(snapshot, is_standby, literal(True), *others)
    monkeypatch.setattr(older_snapshots, "_look", unguarded)

    with pytest.raises(InterleavingError, match="cached is 'never was'"):
        explorer.explore(
            partial(changing_its_mind, processes), invariant=processes.is_absent_or_equal
        )
