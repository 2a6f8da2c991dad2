"""Processes with the map of before: right as long as both maps are, refused as soon as not."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest
from sqlalchemy import URL, delete, func, insert, select, text, update
from sqlalchemy.exc import OperationalError

from datapatterns.errors import MapChangeUnsettledError, StaleShardMapError
from datapatterns.failpoints import armed
from datapatterns.sharding import EntityGroup, Hash, Key, ShardCluster
from datapatterns.sharding.maps.ownership import claim_buckets
from tests.fixtures.changing_maps import (
    NOTES,
    days,
    move_by_hand,
    noted,
    read,
    shops,
    tenants,
    write,
)
from tests.fixtures.effort import THOROUGH
from tests.interleavings.guards import function_without

pytestmark = pytest.mark.postgres

NOTE = NOTES["tenant"]
MINE = NOTE.c.key == 7


@pytest.fixture
def cluster(shard_urls: list[URL]) -> Iterator[ShardCluster]:
    with noted(shard_urls[:3]) as cluster:
        write(cluster, tenants, 7)
        yield cluster


@pytest.fixture
def stale(cluster: ShardCluster, shard_urls: list[URL]) -> Iterator[ShardCluster]:
    """Another process, which has read the map and will not ask for a new one by itself."""
    assert cluster.router.map_of(tenants).epoch == 1
    with noted(shard_urls[:3], poll_seconds=3600, create=False) as stale:
        stale.router.map_of(tenants)
        yield stale


NEXT = {"s0": "s1", "s1": "s2", "s2": "s0"}


def isolate(cluster: ShardCluster) -> None:
    """Pin the tenant, and move it to another shard."""
    pinned = cluster.pin(tenants, 7)
    move_by_hand(cluster, tenants, pinned.gaining, NEXT[NEXT[pinned.shard]])


def far_away(cluster: ShardCluster) -> int:
    """A tenant on another shard than tenant 7 begins on, and another than it moves to."""
    shard_map = cluster.router.map_of(tenants)
    home = shard_map.owners[Hash(buckets=8).bucket(7)]
    return next(key for key in range(8, 99) if shard_map.shard_of(key) == NEXT[home])


# What an old map may not do --------------------------------------------------------------------


def plain_read(cluster: ShardCluster) -> object:
    return read(cluster, tenants, 7)


def locking_read(cluster: ShardCluster) -> object:
    with cluster.session() as session:
        return session.scalars(select(NOTE.c.id).where(MINE).with_for_update()).all()


def read_of_several(cluster: ShardCluster) -> object:
    # Whatever the shards own, they agree: nobody asks the one that has the tenant now.
    keys = [7, far_away(cluster)]
    with cluster.session() as session:
        return session.scalars(select(NOTE.c.id).where(NOTE.c.key.in_(keys))).all()


def read_of_all(cluster: ShardCluster) -> object:
    with cluster.session(scatter=True) as session:
        return session.scalars(select(NOTE.c.id)).all()


def pinned_read(cluster: ShardCluster) -> object:
    with cluster.on(tenants, key=7) as session:
        return session.scalars(select(NOTE.c.id).where(MINE)).all()


def update_of_rows(cluster: ShardCluster) -> object:
    with cluster.session() as session, session.begin():
        done: Any = session.execute(update(NOTE).where(MINE).values(said="changed"))
        return done.rowcount


def delete_of_rows(cluster: ShardCluster) -> object:
    with cluster.session() as session, session.begin():
        done: Any = session.execute(delete(NOTE).where(MINE))
        return done.rowcount


def insert_of_a_row(cluster: ShardCluster) -> object:
    write(cluster, tenants, 7, 2)
    return 1


def core_write(cluster: ShardCluster) -> object:
    with cluster.connect(tenants, key=7) as conn, conn.begin():
        done: Any = conn.execute(text("UPDATE tenant_note SET said = 'changed' WHERE key = 7"))
        return done.rowcount


def atomic_write(cluster: ShardCluster) -> object:
    with cluster.atomically() as work:
        conn = work.connect(tenants, key=7)
        return conn.execute(update(NOTE).where(MINE).values(said="changed")).rowcount


WAYS: list[Callable[[ShardCluster], object]] = [
    plain_read,
    locking_read,
    read_of_several,
    pinned_read,
    update_of_rows,
    delete_of_rows,
    insert_of_a_row,
    core_write,
    atomic_write,
]


@pytest.mark.parametrize("way", [*WAYS, read_of_all])
def test_an_old_map_is_refused_once_the_key_has_gone_and_right_when_repeated(
    cluster: ShardCluster, stale: ShardCluster, way: Callable[[ShardCluster], object]
) -> None:
    isolate(cluster)

    with pytest.raises(StaleShardMapError):
        way(stale)

    assert way(stale) in ([1], 1)


@pytest.mark.parametrize("way", [plain_read, core_write] if not THOROUGH else WAYS)
def test_an_old_map_is_refused_as_soon_as_its_bucket_could_go(
    cluster: ShardCluster, stale: ShardCluster, way: Callable[[ShardCluster], object]
) -> None:
    cluster.pin(tenants, 7)

    with pytest.raises(StaleShardMapError):
        way(stale)

    assert way(stale) in ([1], 1)


@pytest.mark.parametrize(
    "way", [plain_read, read_of_several, update_of_rows, insert_of_a_row, core_write]
)
def test_without_generations_an_old_map_would_find_nothing(
    cluster: ShardCluster, stale: ShardCluster, way: Callable[[ShardCluster], object]
) -> None:
    isolate(cluster)

    with ExitStack() as stack:
        monkeypatch = stack.enter_context(pytest.MonkeyPatch.context())
        if way in (plain_read, read_of_several):
            # Any generation is one that the reader knows.
            monkeypatch.setattr(
                "datapatterns.sharding.maps.shard_map.ShardMap.generations_of",
                lambda _, buckets: [2**31 - 1 for _ in buckets],
            )
        for engine in cluster.engines.values():
            guard = "AND held.generation <= coalesce(in_generations[1], 0);"
            stack.enter_context(
                function_without(engine, "datapatterns.claim_buckets", guard, instead=";")
            )
        found = way(stale)

    # It looked where the tenant had been, or wrote there.
    assert found in ([], 0, 1)
    if way is insert_of_a_row:
        assert read(cluster, tenants, 7) == [1]


def test_a_pinned_session_goes_on_with_the_new_map_in_its_next_transaction(
    cluster: ShardCluster, stale: ShardCluster
) -> None:
    with stale.on(tenants, key=7) as session:
        assert session.scalars(select(NOTE.c.id).where(MINE)).all() == [1]
        session.rollback()
        cluster.pin(tenants, 7)

        with pytest.raises(StaleShardMapError):
            session.scalars(select(NOTE.c.id).where(MINE))
        session.rollback()

        assert session.scalars(select(NOTE.c.id).where(MINE)).all() == [1]


def test_laying_out_the_map_again_does_not_mind_a_change_that_is_under_way(
    cluster: ShardCluster,
) -> None:
    with armed("map-change.applied", crash), pytest.raises(CrashError):
        cluster.pin(tenants, 7)

    cluster.create_map()

    assert not cluster.pin(tenants, 7).changed
    nothing_is_left_over(cluster)


def test_an_old_map_of_a_range_is_refused_after_the_merged_range_has_moved(
    cluster: ShardCluster, stale: ShardCluster
) -> None:
    write(cluster, days, 150)
    split = cluster.split_range(days, at=160)
    stale.router.refresh()
    assert read(stale, days, 170) == []
    write(stale, days, 170)

    cluster.merge_ranges(days, at=160)
    move_by_hand(cluster, days, 1, NEXT[split.shard])

    for day in (150, 170):
        with noted([e.url for e in cluster.engines.values()], create=False) as fresh:
            assert read(fresh, days, day) == [1]
    with pytest.raises(StaleShardMapError):
        read(stale, days, 170)
    assert read(stale, days, 170) == [1]


def test_an_old_map_of_a_directory_is_refused_after_a_key_was_assigned(
    cluster: ShardCluster, stale: ShardCluster
) -> None:
    shard_map = stale.router.map_of(shops)
    home = shard_map.strategy.bucket("corner")
    here = [b for b in shard_map.buckets_on(shard_map.shard_of("corner")) if b not in {home, 8}]
    write(cluster, shops, "corner")

    cluster.assign(shops, "corner", here[0])
    move_by_hand(cluster, shops, here[0], NEXT[shard_map.shard_of("corner")])

    with pytest.raises(StaleShardMapError):
        read(stale, shops, "corner")
    assert read(stale, shops, "corner") == [1]


# Both maps at once -----------------------------------------------------------------------------

STEPS = ["map-change.begun", "map-change.prepared", "map-change.applied", "map-change.settled"]


class CrashError(Exception):
    """As if the process had died."""


def crash() -> None:
    raise CrashError


CHANGES: dict[str, Callable[[ShardCluster], object]] = {
    "pin": lambda cluster: cluster.pin(tenants, 7),
    "unpin": lambda cluster: cluster.unpin(tenants, 9),
    "split": lambda cluster: cluster.split_range(days, at=150),
    "merge": lambda cluster: cluster.merge_ranges(days, at=160),
    "assign": lambda cluster: cluster.assign(shops, "corner", assignable(cluster)),
}


def assignable(cluster: ShardCluster) -> int:
    """The bucket that the corner shop is to be assigned to: on the same shard, and always one."""
    shard_map = cluster.router.map_of(shops)
    home = Hash(buckets=8).bucket("corner")
    return next(b for b in shard_map.buckets_on(shard_map.owners[home]) if b not in {home, 8})


EVERY_CRASH = [(step, change) for step in STEPS for change in CHANGES]
CRASHES = [(step, change) for step, change in EVERY_CRASH if change == "pin"] + [
    ("map-change.prepared", "unpin"),
    ("map-change.applied", "merge"),
    ("map-change.prepared", "split"),
    ("map-change.applied", "assign"),
]


def everything(cluster: ShardCluster) -> object:
    with cluster.session(scatter=True) as session:
        counts = [
            session.scalar(select(func.count()).select_from(NOTES[group.name]))
            for group in cluster.groups
        ]
    return (
        counts,
        [read(cluster, tenants, key) for key in (7, 9)],
        [read(cluster, days, day) for day in (155, 165)],
    )


@pytest.mark.parametrize(("step", "change"), CRASHES if not THOROUGH else EVERY_CRASH)
def test_wherever_a_change_stops_all_maps_are_right_and_the_next_one_finishes_it(
    cluster: ShardCluster, stale: ShardCluster, step: str, change: str
) -> None:
    cluster.pin(tenants, 9)
    cluster.split_range(days, at=160)
    stale.router.refresh()
    for day in (155, 165):
        write(cluster, days, day)
    write(cluster, tenants, 9)
    write(cluster, shops, "corner")
    before = everything(cluster)

    with armed(step, crash), pytest.raises(CrashError):
        CHANGES[change](cluster)

    cluster.router.refresh()
    assert everything(cluster) == before
    for number, there in enumerate((cluster, stale)):
        for group, key in ((tenants, 7), (tenants, 9), (days, 155), (days, 165), (shops, "corner")):
            refused = write_at_last(there, group, key, 10 + number)
            assert not refused or (step, there) == ("map-change.settled", stale)
    half = everything(cluster)
    assert everything(stale) == half
    # Somebody else comes along, who wants something of their own.
    stale.pin(tenants, 11)
    stale.split_range(days, at=10)
    stale.pin(shops, "another")
    CHANGES[change](cluster)
    assert everything(cluster) == half
    assert all(table.misplaced == 0 for shard in cluster.stats() for table in shard.tables)
    nothing_is_left_over(cluster)


def write_at_last(cluster: ShardCluster, group: EntityGroup, key: Key, number: int) -> int:
    """Write, once more if the map was old; return how often that was."""
    try:
        write(cluster, group, key, number)
    except StaleShardMapError:
        write(cluster, group, key, number)
        return 1
    return 0


def nothing_is_left_over(cluster: ShardCluster) -> None:
    with cluster.engines["s0"].connect() as conn:
        for table in ("map_change", "bucket_map WHERE changing"):
            assert conn.scalar(text(f"SELECT count(*) FROM datapatterns.{table}")) == 0  # noqa: S608
    for engine in cluster.engines.values():
        with engine.connect() as conn:
            unsettled = text("SELECT count(*) FROM datapatterns.bucket WHERE NOT settled")
            assert conn.scalar(unsettled) == 0


# Transactions that are under way ---------------------------------------------------------------


@pytest.fixture
def hurried(cluster: ShardCluster, monkeypatch: pytest.MonkeyPatch) -> ShardCluster:
    """It waits for nobody."""
    monkeypatch.setattr("datapatterns.sharding.cluster.SETTLE_SECONDS", 0.0)
    monkeypatch.setattr("datapatterns.sharding.maps.changing._LOCK_MS", 50)
    return cluster


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ"])
def test_a_change_is_not_settled_before_transactions_of_the_old_map_have_ended(
    hurried: ShardCluster, stale: ShardCluster, isolation: str
) -> None:
    shard_map = stale.router.map_of(tenants)
    with stale.engines[shard_map.shard_of(7)].connect() as conn:
        conn.execution_options(isolation_level=isolation)
        claim_buckets(conn, shard_map, [shard_map.strategy.bucket(7)])
        conn.execute(insert(NOTE).values(key=7, id=2))

        with pytest.raises(MapChangeUnsettledError, match="still use bucket"):
            hurried.pin(tenants, 7)

        # It is in use all the same, for both.
        assert hurried.router.map_of(tenants).strategy.bucket(7) == 8
        assert read(hurried, tenants, 7) == [1]
        conn.execute(insert(NOTE).values(key=7, id=3))
        conn.commit()

    assert not hurried.pin(tenants, 7).changed
    assert read(hurried, tenants, 7) == [1, 2, 3]
    with pytest.raises(StaleShardMapError):
        read(stale, tenants, 7)


def test_a_bulk_load_with_the_old_map_is_waited_for(
    hurried: ShardCluster, stale: ShardCluster
) -> None:
    shard = stale.router.map_of(tenants).shard_of(7)

    with stale.begin_bulk(tenants, shard) as conn:
        with pytest.raises(MapChangeUnsettledError):
            hurried.pin(tenants, 7)
        conn.execute(insert(NOTE).values(key=7, id=2))

    assert not hurried.pin(tenants, 7).changed
    with pytest.raises(StaleShardMapError), stale.begin_bulk(tenants, shard):
        pass
    assert read(hurried, tenants, 7) == [1, 2]


def test_a_snapshot_from_before_the_change_cannot_claim_after_it(
    cluster: ShardCluster, stale: ShardCluster
) -> None:
    shard_map = stale.router.map_of(tenants)
    engine = stale.engines[shard_map.shard_of(7)]
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as conn:
        conn.scalar(select(func.count()).select_from(NOTE))

        cluster.pin(tenants, 7)

        with pytest.raises(OperationalError, match="serialize"):
            claim_buckets(conn, shard_map, [shard_map.strategy.bucket(7)])


def test_without_the_fence_a_change_would_settle_under_a_transaction(
    hurried: ShardCluster, stale: ShardCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard_map = stale.router.map_of(tenants)
    monkeypatch.setattr(
        "datapatterns.sharding.maps.settling.library_function", lambda *_: text("1")
    )
    with closing(stale.engines[shard_map.shard_of(7)].connect()) as conn:
        claim_buckets(conn, shard_map, [shard_map.strategy.bucket(7)])

        assert hurried.pin(tenants, 7).changed
