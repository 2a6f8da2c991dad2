"""Moves beside what others do at the wrong moment, and of tables that are not everyday ones."""

from collections.abc import Iterator, Sequence
from contextlib import suppress

import pytest
from psycopg import sql
from sqlalchemy import URL, Connection, select, text
from sqlalchemy.exc import DBAPIError, OperationalError

from datapatterns.errors import ShardMapCorruptError
from datapatterns.failpoints import armed
from datapatterns.sharding import MoveProgress, ShardCluster
from datapatterns.sharding.maps import loading
from datapatterns.sharding.maps import router as routers
from datapatterns.sharding.moving import copying, cutting, draining
from datapatterns.sharding.moving.copying import TablePair
from datapatterns.sharding.moving.holding import Side
from datapatterns.sharding.moving.pacing import Pace
from tests.fixtures.atomic import Died
from tests.fixtures.moving import bucket_rows, keys_in, put, states_of
from tests.fixtures.shard_model import Basket, households, named, sharded_shop

pytestmark = pytest.mark.postgres

BUCKET = 5
KEY, OTHER_KEY = keys_in(BUCKET, 2)
NAMED = {"key": KEY, "bucket": BUCKET}


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


def die() -> None:
    raise Died


def on_each(cluster: ShardCluster, *statements: str) -> None:
    for shard in cluster.engines:
        on_one(cluster, shard, *statements)


def on_one(cluster: ShardCluster, shard: str, *statements: str) -> None:
    with cluster.engines[shard].begin() as conn:
        for statement in statements:
            conn.execute(text(statement), named_in(statement))


def values(cluster: ShardCluster, shard: str, statement: str) -> list[object]:
    with cluster.engines[shard].connect() as conn:
        return list(conn.scalars(text(statement), named_in(statement)))


def named_in(statement: str) -> dict[str, int]:
    return {name: value for name, value in NAMED.items() if f":{name}" in statement}


# What is arriving --------------------------------------------------------------------------


def test_nobody_changes_or_adds_rows_of_a_bucket_that_is_arriving(
    cluster: ShardCluster, target: str
) -> None:
    """A job that changes all rows of each shard, in a transaction that ends after the move."""
    on_each(cluster, "UPDATE basket SET cents = 10")
    refused: list[str | None] = []

    def work(progress: MoveProgress) -> None:
        if progress.move.state == "catching_up" and not refused:
            refused.append(sqlstate(job, "UPDATE basket SET cents = cents * 2"))
            refused.append(sqlstate(job, "INSERT INTO basket (household_id, id) VALUES (:key, 9)"))
        if progress.move.state == "handed_over":
            job.commit()

    with cluster.engines[target].connect() as job:
        moved = cluster.move(households, BUCKET, to=target, clean_after_seconds=0, progress=work)

    assert moved.state == "cleaned"
    assert refused == ["SD001", "SD001"]
    assert values(cluster, target, "SELECT cents FROM basket WHERE household_id = :key") == [10]
    # The triggers that refused it are gone.
    on_one(cluster, target, "UPDATE basket SET cents = 20")


def sqlstate(conn: Connection, statement: str) -> str | None:
    """Execute a statement that may be refused; what the transaction did before stays."""
    try:
        with conn.begin_nested():
            conn.execute(text(statement), named_in(statement))
    except DBAPIError as error:
        return getattr(error.orig, "sqlstate", None)
    return None


@pytest.mark.parametrize("locking", [False, True])
def test_a_read_of_the_whole_shard_shows_nothing_that_is_arriving(
    cluster: ShardCluster, target: str, *, locking: bool
) -> None:
    found: list[int] = []
    keys = select(Basket.household_id)

    def read(progress: MoveProgress) -> None:
        if progress.move.state == "catching_up":
            cluster.router.refresh()
            with cluster.session() as session:
                statement = keys.with_for_update() if locking else keys
                found.extend(session.scalars(statement, execution_options={"shard": target}))

    cluster.move(households, BUCKET, to=target, clean_after_seconds=0, progress=read)

    assert found == []


# Keys --------------------------------------------------------------------------------------


def test_columns_that_an_index_only_includes_are_no_part_of_the_key(
    cluster: ShardCluster, source: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_each(
        cluster,
        "ALTER TABLE line DROP CONSTRAINT line_pkey, ADD COLUMN note int",
        "ALTER TABLE line ADD PRIMARY KEY (household_id, basket_id, number) INCLUDE (note)",
    )
    compare_before = cutting._compare_before  # noqa: SLF001 -- what is behind it comes later

    def write_after(here: Side, there: Side, tables: Sequence[TablePair], pace: Pace) -> int:
        rows = compare_before(here, there, tables, pace)
        on_one(
            cluster,
            source,
            "UPDATE line SET quantity = 77 WHERE household_id = :key AND number = 0",
            "DELETE FROM line WHERE household_id = :key AND number = 1",
        )
        return rows

    monkeypatch.setattr(cutting, "ROWS_COMPARED_AT_ONCE", 0)
    monkeypatch.setattr(cutting, "_compare_before", write_after)
    cluster.move(households, BUCKET, to=target, clean_after_seconds=0)

    assert values(cluster, target, "SELECT quantity FROM line WHERE household_id = :key") == [77]


RENAMED = [
    "UPDATE basket SET code = 'a' WHERE household_id = :key AND id = 1",
    "UPDATE basket SET code = 'b' WHERE household_id = :key AND id = 2",
    "UPDATE basket SET code = NULL WHERE household_id = :key AND id = 1",
    "UPDATE basket SET code = 'a' WHERE household_id = :key AND id = 2",
    "UPDATE basket SET code = 'b' WHERE household_id = :key AND id = 1",
]


def test_two_rows_change_places_although_their_changes_come_in_two_rounds(
    cluster: ShardCluster, source: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draining, "KEYS_MAX", 1)
    on_each(cluster, "CREATE UNIQUE INDEX ON basket (household_id, code)")
    put(cluster, KEY, basket=2)
    on_one(cluster, source, *RENAMED[:2])

    def swap(progress: MoveProgress) -> None:
        if progress.move.state == "catching_up" and not swapped:
            swapped.append(True)
            on_one(cluster, source, *RENAMED[2:])

    swapped: list[bool] = []
    cluster.move(households, BUCKET, to=target, clean_after_seconds=0, progress=swap)

    ordered = "SELECT code FROM basket WHERE household_id = :key ORDER BY id"
    assert values(cluster, target, ordered) == ["b", "a"]


# Whoever comes after -----------------------------------------------------------------------


def test_a_move_whose_undoing_died_is_begun_anew(
    cluster: ShardCluster, source: str, target: str
) -> None:
    def die_late(progress: MoveProgress) -> None:
        if progress.move.state == "catching_up":
            raise Died

    with suppress(Died):
        cluster.move(households, BUCKET, to=target, progress=die_late)
    with armed("move.batch-cleaned", die), suppress(Died):
        cluster.abort_move(households, BUCKET)
    assert [move.state for move in cluster.moves()] == ["capturing"]

    [ended] = cluster.resume_moves(clean_after_seconds=0)

    assert ended.state == "cleaned"
    assert bucket_rows(cluster, target, BUCKET) == (2, 3)
    assert states_of(cluster, BUCKET) == {source: "cleaned", target: "owned"}


def test_nothing_moves_by_an_old_map_because_the_newest_could_not_be_read(
    cluster: ShardCluster,
    target: str,
    shard_urls: list[URL],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the map before the pin, rows of the pinned key would be cleaned away at the source."""
    urls = shard_urls[:2]
    with ShardCluster(
        control=urls[0], shards=named(urls), groups=[households], poll_seconds=1_000
    ) as late:
        assert late.router.map_of(households).strategy.bucket(KEY) == BUCKET
        cluster.pin(households, KEY)
        with armed("move.planned", die), suppress(Died):
            cluster.move(households, BUCKET, to=target)
        load_maps, answers = loading.load_maps, iter([False])

        def load_but_once(*args: object, **options: object) -> object:
            if not next(answers, True):
                raise OperationalError("SELECT", {}, Exception("too many clients already"))
            return load_maps(*args, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(routers, "load_maps", load_but_once)
        with pytest.raises(OperationalError, match="too many clients"):
            late.resume_moves(clean_after_seconds=0)
        [moved] = late.resume_moves(clean_after_seconds=0)

    assert moved.state == "cleaned"
    cluster.router.refresh()
    with cluster.session() as session:
        assert session.get(Basket, (KEY, 1)) is not None
        assert session.get(Basket, (OTHER_KEY, 1)) is not None


@pytest.mark.parametrize(
    ("held", "found"), [("cleaned", "incoming"), ("cleaned", "cleaned"), ("moved", "incoming")]
)
def test_a_map_from_a_backup_makes_no_second_owner(
    cluster: ShardCluster, source: str, target: str, held: str, found: str
) -> None:
    """The bucket has left the source since, for a third shard."""
    on_one(
        cluster,
        source,
        *{
            "moved": ["UPDATE datapatterns.bucket SET state = 'moved' WHERE bucket = :bucket"],
            "cleaned": ["UPDATE datapatterns.bucket SET state = 'cleaned' WHERE bucket = :bucket"],
        }[held],
    )
    on_one(
        cluster,
        target,
        "INSERT INTO datapatterns.bucket (group_id, bucket, state, epoch)"
        " SELECT DISTINCT group_id, :bucket, 'cleaned', 1 FROM datapatterns.bucket",
        *{
            "incoming": ["UPDATE datapatterns.bucket SET state = 'incoming' WHERE bucket = :bucket"]
        }.get(found, ()),
    )

    with pytest.raises(ShardMapCorruptError, match="restored"):
        cluster.move(households, BUCKET, to=target)

    assert states_of(cluster, BUCKET) == {source: held, target: found}
    cluster.router.refresh()
    assert cluster.router.map_of(households).owners[BUCKET] == source
    abandoned = cluster.abort_move(households, BUCKET)
    assert abandoned is None or abandoned.state == "aborted"


def test_a_source_from_a_backup_is_not_copied_over_what_has_been_written_since(
    cluster: ShardCluster, source: str, target: str
) -> None:
    with armed("move.handed-over", die), suppress(Died):
        cluster.move(households, BUCKET, to=target, clean_after_seconds=0)
    on_one(cluster, source, "UPDATE datapatterns.bucket SET state = 'owned' WHERE bucket = :bucket")

    for attempt in (cluster.resume_moves, lambda: cluster.abort_move(households, BUCKET)):
        with pytest.raises(ShardMapCorruptError, match="restored"):
            attempt()

    assert [move.state for move in cluster.moves()] == ["handed_over"]
    assert states_of(cluster, BUCKET) == {source: "owned", target: "owned"}


SLOW_DELETE = sql.SQL("SELECT pg_sleep(0.3); DELETE FROM {table} AS {row} WHERE {in_bucket}")

# Settings of roles -------------------------------------------------------------------------


def test_a_role_that_may_not_idle_in_transactions_may_move(
    cluster: ShardCluster, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One shard is idle while the other one works."""
    for engine in cluster.engines.values():
        with engine.begin() as conn:
            database = str(engine.url.database)
            conn.exec_driver_sql(
                f"ALTER DATABASE {database} SET idle_in_transaction_session_timeout = '100ms'"
            )
        engine.dispose()
    monkeypatch.setattr(
        copying,
        "_DELETE",
        SLOW_DELETE,
    )

    assert cluster.move(households, BUCKET, to=target, clean_after_seconds=0).state == "cleaned"


# Rows of all kinds -------------------------------------------------------------------------


def test_rows_that_are_no_jsonb_are_written_while_they_move(
    cluster: ShardCluster, source: str, target: str
) -> None:
    on_each(cluster, "ALTER TABLE basket ADD told json")
    write = r"""UPDATE basket SET told = '{"a": "\u0000"}' WHERE household_id = :key"""

    def work(progress: MoveProgress) -> None:
        if progress.move.state == "catching_up":
            on_one(cluster, source, write)

    cluster.move(households, BUCKET, to=target, clean_after_seconds=0, progress=work)

    told = values(cluster, target, "SELECT told::text FROM basket WHERE household_id = :key")
    assert told == [r'{"a": "\u0000"}']


def test_a_transaction_that_does_not_see_the_bucket_truncates_nothing_of_it(
    cluster: ShardCluster, target: str
) -> None:
    refused: list[str | None] = []
    with cluster.engines[target].connect() as plain:
        job = plain.execution_options(isolation_level="REPEATABLE READ")
        job.execute(text("SELECT count(*) FROM basket"))

        def truncate(progress: MoveProgress) -> None:
            if progress.move.state == "cut" and not refused:
                refused.append(sqlstate(job, "TRUNCATE basket, line"))
                job.commit()

        cluster.move(households, BUCKET, to=target, clean_after_seconds=0, progress=truncate)

    assert refused == ["SD002"]
    assert bucket_rows(cluster, target, BUCKET) == (2, 3)
