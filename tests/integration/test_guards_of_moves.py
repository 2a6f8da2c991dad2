"""Each guard of a move has a test that fails without it."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import Self

import pytest
from sqlalchemy import URL, Connection, text
from sqlalchemy.exc import DBAPIError, OperationalError

from datapatterns.errors import MoveTakenOverError
from datapatterns.failpoints import armed
from datapatterns.sharding import Move, MoveProgress, ShardCluster
from datapatterns.testing import wait_until
from tests.fixtures.atomic import needs_prepared_transactions
from tests.fixtures.moving import bucket_rows, keys_in, put, states_of
from tests.fixtures.shard_model import households, sharded_shop

pytestmark = pytest.mark.postgres

BUCKET = 5
KEY, OTHER_KEY = keys_in(BUCKET, 2)
WRITE = text("UPDATE basket SET cents = 7 WHERE household_id = :key")
REFUSED = {"SD001", "40001"}


@pytest.fixture
def cluster(shard_urls: list[URL]) -> Iterator[ShardCluster]:
    with sharded_shop(shard_urls[:2]) as cluster:
        put(cluster, KEY, lines=2)
        put(cluster, OTHER_KEY, lines=1)
        yield cluster


@pytest.fixture
def source(cluster: ShardCluster) -> str:
    return cluster.router.map_of(households).owners[BUCKET]


@pytest.fixture
def target(source: str) -> str:
    return "s1" if source == "s0" else "s0"


@contextmanager
def moving(cluster: ShardCluster, target: str) -> Iterator[Future[Move]]:
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(cluster.move, households, BUCKET, to=target, clean_after_seconds=0)


def cents(cluster: ShardCluster, shard: str, key: int = KEY) -> int | None:
    with cluster.engines[shard].connect() as conn:
        found: int | None = conn.scalar(
            text("SELECT cents FROM basket WHERE household_id = :key"), {"key": key}
        )
    return found


def waits_for_the_fence(cluster: ShardCluster, shard: str) -> bool:
    with cluster.engines[shard].connect() as conn:
        return bool(
            conn.scalar(
                text(
                    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
                    " AND mode = 'ExclusiveLock'"
                )
            )
        )


def on_each(cluster: ShardCluster, *statements: str) -> None:
    for engine in cluster.engines.values():
        with engine.begin() as conn:
            for statement in statements:
                conn.execute(text(statement))


def started(conn: Connection) -> None:
    """Let a transaction see the world as it is now, until it ends."""
    conn.execute(text("SELECT count(*) FROM basket"))


# The fence ---------------------------------------------------------------------------------


def test_the_cut_waits_for_a_writer_past_the_library(
    cluster: ShardCluster, source: str, target: str
) -> None:
    with cluster.engines[source].connect() as late, HeldAt("move.captured") as captured:
        with moving(cluster, target) as move:
            captured.wait()
            late.execute(WRITE, {"key": KEY})
            captured.go_on()
            wait_until(lambda: move.done() or waits_for_the_fence(cluster, source))
            assert states_of(cluster, BUCKET)[source] == "owned"
            late.commit()
        assert move.result().state == "cleaned"

    assert cents(cluster, target) == 7


def test_the_cut_waits_for_a_prepared_transaction(
    cluster: ShardCluster, source: str, target: str, shard_urls: list[URL]
) -> None:
    needs_prepared_transactions(shard_urls[0])
    with cluster.engines[source].connect() as plain, HeldAt("move.captured") as captured:
        with moving(cluster, target) as move:
            captured.wait()
            plain.execute(WRITE, {"key": KEY})
            plain.exec_driver_sql("PREPARE TRANSACTION 'a branch'")
            plain.rollback()
            captured.go_on()
            wait_until(lambda: move.done() or waits_for_the_fence(cluster, source))
            assert states_of(cluster, BUCKET)[source] == "owned"
            ending = plain.execution_options(isolation_level="AUTOCOMMIT")
            ending.exec_driver_sql("COMMIT PREPARED 'a branch'")
        assert move.result().state == "cleaned"

    assert cents(cluster, target) == 7


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_a_writer_whose_snapshot_is_older_than_the_cut_is_refused(
    cluster: ShardCluster, source: str, target: str, level: str
) -> None:
    with cluster.engines[source].connect() as plain:
        conn = plain.execution_options(isolation_level=level)
        started(conn)
        # It holds no lock that triggers would have to wait for, once it has read.
        cluster.move(households, BUCKET, to=target, clean_after_seconds=0)

        with pytest.raises(DBAPIError) as refused:
            conn.execute(
                text("INSERT INTO basket (household_id, id) VALUES (:key, 9)"), {"key": KEY}
            )

    assert getattr(refused.value.orig, "sqlstate", None) in REFUSED
    assert bucket_rows(cluster, source, BUCKET) == (0, 0)


def test_what_is_written_after_the_last_round_is_brought_over_by_the_cut(
    cluster: ShardCluster, source: str, target: str
) -> None:
    def write(progress: MoveProgress) -> None:
        if progress.move.state == "cut":
            with cluster.engines[source].begin() as conn:
                conn.execute(WRITE, {"key": KEY})
                conn.execute(text("DELETE FROM line WHERE household_id = :k"), {"k": OTHER_KEY})

    cluster.move(households, BUCKET, to=target, clean_after_seconds=0, progress=write)

    assert cents(cluster, target) == 7
    assert bucket_rows(cluster, target, BUCKET) == (2, 2)


# The copy ----------------------------------------------------------------------------------


def test_triggers_of_the_application_do_not_change_what_is_moved(
    cluster: ShardCluster, target: str
) -> None:
    on_each(
        cluster,
        "CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN NEW.cents := 99; RETURN NEW; END'",
        "CREATE TRIGGER touch BEFORE INSERT ON basket FOR EACH ROW EXECUTE FUNCTION touch()",
    )

    cluster.move(households, BUCKET, to=target, clean_after_seconds=0)

    assert cents(cluster, target) is None


def test_values_whose_types_have_other_numbers_on_the_target_are_the_same(
    cluster: ShardCluster, target: str
) -> None:
    with cluster.engines[target].begin() as conn:
        conn.execute(text("CREATE TYPE filler AS ENUM ('x')"))
    on_each(
        cluster,
        "CREATE TYPE mood AS ENUM ('glad', 'sad')",
        "CREATE DOMAIN short AS text CHECK (length(VALUE) < 9)",
        "ALTER TABLE basket ADD mood mood DEFAULT 'sad', ADD moods mood[] DEFAULT '{glad,sad}',"
        " ADD told jsonb DEFAULT '{\"a\": 1}', ADD raw json DEFAULT '{}',"
        " ADD word short DEFAULT 'ß', ADD span interval DEFAULT '1 mon -2 days',"
        " ADD area box DEFAULT '(1,2),(3,4)', ADD f float4 DEFAULT 0.1,"
        " ADD twice int GENERATED ALWAYS AS (id * 2) STORED",
    )

    assert cluster.move(households, BUCKET, to=target, clean_after_seconds=0).state == "cleaned"
    assert bucket_rows(cluster, target, BUCKET) == (2, 3)


def test_two_rows_change_places_in_a_unique_column_while_they_move(
    cluster: ShardCluster, source: str, target: str
) -> None:
    on_each(cluster, "CREATE UNIQUE INDEX ON basket (household_id, code)")
    put(cluster, KEY, basket=2)
    swap = [
        "UPDATE basket SET code = 'a' WHERE household_id = :k AND id = 1",
        "UPDATE basket SET code = 'b' WHERE household_id = :k AND id = 2",
        "UPDATE basket SET code = NULL WHERE household_id = :k AND id = 1",
        "UPDATE basket SET code = 'a' WHERE household_id = :k AND id = 2",
        "UPDATE basket SET code = 'b' WHERE household_id = :k AND id = 1",
    ]

    def write(progress: MoveProgress) -> None:
        steps = {"copying": swap[:2], "catching_up": swap[2:]}.get(progress.move.state, ())
        with cluster.engines[source].begin() as conn:
            for step in steps:
                conn.execute(text(step), {"k": KEY})

    cluster.move(households, BUCKET, to=target, clean_after_seconds=0, progress=write)

    with cluster.engines[target].connect() as conn:
        found = conn.execute(text("SELECT id, code FROM basket WHERE code IS NOT NULL"))
        assert sorted(map(tuple, found)) == [(1, "b"), (2, "a")]


# The lease ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place", ["move.captured", "move.copied", "move.cut", "move.target-owns", "move.handed-over"]
)
def test_a_worker_that_wakes_up_late_changes_nothing(
    cluster: ShardCluster, source: str, target: str, place: str
) -> None:
    with HeldAt(place) as asleep, ThreadPoolExecutor(1) as pool:
        late = pool.submit(
            cluster.move,
            households,
            BUCKET,
            to=target,
            clean_after_seconds=0,
            lease_seconds=0.05,
        )
        asleep.wait()
        wait_until(lambda: not any(move.is_leased for move in cluster.moves()))
        cluster.resume_moves(clean_after_seconds=0)
        cluster.move(households, BUCKET, to=source, clean_after_seconds=0)
        put(cluster, KEY, basket=2)
        asleep.go_on()

        with pytest.raises(MoveTakenOverError):
            late.result()

    assert states_of(cluster, BUCKET) == {source: "owned", target: "cleaned"}
    assert bucket_rows(cluster, source, BUCKET) == (3, 3)
    cluster.router.refresh()
    assert cluster.router.map_of(households).owners[BUCKET] == source
    assert [move.state for move in cluster.moves(live=False)] == ["cleaned", "cleaned"]


def test_a_table_is_not_emptied_while_a_bucket_of_it_moves(
    cluster: ShardCluster, source: str, target: str
) -> None:
    refused = []

    def truncate(progress: MoveProgress) -> None:
        if progress.move.state == "copying":
            for shard in (source, target):
                with cluster.engines[shard].connect() as conn:
                    try:
                        conn.execute(text("TRUNCATE basket, line"))
                    except DBAPIError as error:
                        refused.append(getattr(error.orig, "sqlstate", None))

    cluster.move(households, BUCKET, to=target, clean_after_seconds=0, progress=truncate)

    assert refused == ["SD002", "SD002"]
    on_each(cluster, "TRUNCATE basket, line")


@pytest.mark.parametrize("shard", ["source", "target"])
def test_no_column_comes_between_the_look_at_the_tables_and_the_cut(
    cluster: ShardCluster, source: str, target: str, shard: str
) -> None:
    changed = {"source": source, "target": target}[shard]
    with HeldAt("move.drained") as drained, moving(cluster, target) as move:
        drained.wait()
        with cluster.engines[changed].connect() as conn:
            conn.execute(text("SET LOCAL lock_timeout = '50ms'"))
            with pytest.raises(OperationalError, match="lock timeout"):
                conn.execute(text("ALTER TABLE line ADD extra int DEFAULT 7"))
        drained.go_on()
        assert move.result().state == "cleaned"


class HeldAt:
    """Holds the thread that comes to a failpoint until it may go on."""

    def __init__(self, name: str) -> None:
        self._there, self._may_go = Event(), Event()
        self._armed = armed(name, self._hold)

    def __enter__(self) -> Self:
        self._armed.__enter__()
        return self

    def __exit__(self, *_error: object) -> None:
        self._may_go.set()
        self._armed.__exit__(None, None, None)

    def wait(self) -> None:
        assert self._there.wait(30)

    def go_on(self) -> None:
        self._may_go.set()

    def _hold(self) -> None:
        self._there.set()
        assert self._may_go.wait(60)
