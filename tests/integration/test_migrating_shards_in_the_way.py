"""Migrations of all shards among moves, long transactions, other migrations and dead shards."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest
from sqlalchemy import URL, Connection, create_engine, text

from datapatterns.clock import SystemClock
from datapatterns.errors import (
    AlembicEnvironmentError,
    MigrationBlockedError,
    ShardMigrationFailedError,
    ShardUnavailableError,
)
from datapatterns.failpoints import armed
from datapatterns.sharding import MigrationPace, ShardCluster, ShardMigrations, ShardRun
from datapatterns.sharding.migrating.lock import (
    keep_tables,
    locked_alone,
    migration_key,
    release_tables,
)
from tests.fixtures.shard_model import households, named, sharded_shop
from tests.fixtures.shop_revisions import (
    IN_PROCESS,
    ShopRevisions,
    cluster_of,
    sql_on,
    tables_on,
)

pytestmark = pytest.mark.postgres

ELSEWHERE = """
from alembic import context
from sqlalchemy import NullPool, create_engine

with create_engine({url!r}, poolclass=NullPool, isolation_level="AUTOCOMMIT").connect() as conn:
    context.configure(connection=conn)
    with context.begin_transaction():
        context.run_migrations()
"""
CONCURRENTLY = """
with op.get_context().autocommit_block():
    op.execute("CREATE INDEX CONCURRENTLY product_name ON product (name)")
"""
PATIENT = replace(IN_PROCESS, lock_seconds=0.05, patience_seconds=60, turn_seconds=60)


class Waking(SystemClock):
    """A clock whose first pause lets go of what is in the way."""

    def __init__(self) -> None:
        self.in_the_way = ExitStack()
        self.pauses = 0

    def sleep(self, seconds: float) -> None:
        self.pauses += 1
        self.in_the_way.close()
        super().sleep(min(seconds, 0.01))


@pytest.fixture
def shop(tmp_path: Path) -> ShopRevisions:
    shop = ShopRevisions(tmp_path)
    shop.write("CREATE TABLE product (id bigint PRIMARY KEY, name text)")
    return shop


@pytest.fixture
def urls(shard_urls: list[URL]) -> list[URL]:
    return shard_urls[:3]


@pytest.fixture
def cluster(urls: list[URL], shop: ShopRevisions) -> Iterator[ShardCluster]:
    with cluster_of(urls, shop) as cluster:
        yield cluster


@contextmanager
def session_on(url: URL) -> Iterator[Connection]:
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as conn:
            yield conn
    finally:
        engine.dispose()


@contextmanager
def tables_kept(conn: Connection) -> Iterator[None]:
    keep_tables(conn)
    yield
    release_tables(conn)


@contextmanager
def in_use(url: URL, table: str) -> Iterator[None]:
    """A long transaction that has read a table."""
    engine = create_engine(url)
    try:
        with engine.connect() as conn:
            conn.exec_driver_sql(f"LOCK TABLE {table} IN ACCESS SHARE MODE")
            yield
            conn.rollback()
    finally:
        engine.dispose()


def states(cluster: ShardCluster) -> dict[str, str]:
    return {run.shard: run.state for run in cluster.migrations.last_run()}


# Moves --------------------------------------------------------------------------------------


def test_a_shard_whose_bucket_moves_is_not_migrated(cluster: ShardCluster, urls: list[URL]) -> None:
    with session_on(urls[1]) as mover:
        with (
            tables_kept(mover),
            pytest.raises(MigrationBlockedError, match=r"'s1'.*a bucket is being moved"),
        ):
            cluster.migrations.upgrade(pace=IN_PROCESS)

        assert states(cluster) == {"s0": "done", "s1": "blocked", "s2": "pending"}
        assert tables_on(urls[1]) == set()

        cluster.migrations.upgrade(pace=IN_PROCESS)
    assert states(cluster) == dict.fromkeys(["s0", "s1", "s2"], "done")


def test_a_bucket_is_not_moved_while_its_shard_is_migrated(
    cluster: ShardCluster, urls: list[URL]
) -> None:
    refused: list[str] = []

    def move() -> None:
        with session_on(urls[0]) as mover:
            try:
                with tables_kept(mover):
                    pass
            except MigrationBlockedError as error:
                refused.append(str(error))

    with armed("shard-migration.locked", move):
        cluster.migrations.upgrade(pace=IN_PROCESS)

    assert len(refused) == 1
    assert "another migration is under way" in refused[0]


def test_two_moves_of_a_shard_do_not_exclude_each_other(urls: list[URL]) -> None:
    with session_on(urls[0]) as one, session_on(urls[0]) as other:
        with tables_kept(one), tables_kept(other):
            pass
        with locked_alone(one, migration_key("datapatterns"), wait_seconds=0):
            pass


@pytest.mark.parametrize("failpoint", ["move.captured", "move.copied", "move.cut"])
def test_a_real_move_keeps_its_two_shards_from_being_migrated_also_when_its_worker_has_died(
    shard_urls: list[URL], shop: ShopRevisions, failpoint: str
) -> None:
    shop.rewrite("r1", "CREATE TABLE further (id bigint)")
    said: list[str] = []
    migrations = ShardMigrations(
        shard_urls[0], named(shard_urls[:3]), shop.environment(), clock=SystemClock()
    )

    def migrate() -> None:
        with suppress(MigrationBlockedError):
            migrations.upgrade(pace=IN_PROCESS)
        said.extend(run.error or run.state for run in migrations.last_run())

    def migrate_and_die() -> None:
        migrate()
        raise KeyboardInterrupt

    with sharded_shop(shard_urls[:3]) as cluster:
        bucket = cluster.router.map_of(households).buckets_on("s1")[0]
        with armed(failpoint, migrate_and_die), suppress(KeyboardInterrupt):
            cluster.move(households, bucket, to="s2", clean_after_seconds=0)
        migrate()
        [moved] = cluster.resume_moves(clean_after_seconds=0)
        migrate()

    told = f"bucket {bucket} is being moved; let the move end, or resume or abort it"
    assert said == ["done", told, "pending"] * 2 + ["done"] * 3
    assert moved.state == "cleaned"


# Locks --------------------------------------------------------------------------------------


def test_a_table_in_use_is_given_up_soon_and_tried_again(
    cluster: ShardCluster, shop: ShopRevisions, urls: list[URL]
) -> None:
    cluster.migrations.upgrade(pace=IN_PROCESS)
    shop.write("ALTER TABLE product ADD more int")
    clock = Waking()
    clock.in_the_way.enter_context(in_use(urls[1], "product"))
    migrations = replace(cluster.migrations, clock=clock)

    migrations.upgrade(pace=PATIENT)

    assert clock.pauses == 1
    assert states(cluster) == dict.fromkeys(["s0", "s1", "s2"], "done")


def test_a_table_in_use_for_too_long_stops_the_run_and_nothing_waits_behind_it(
    cluster: ShardCluster, shop: ShopRevisions, urls: list[URL]
) -> None:
    cluster.migrations.upgrade(pace=IN_PROCESS)
    shop.write("ALTER TABLE product ADD more int")

    with in_use(urls[1], "product"):
        with pytest.raises(MigrationBlockedError, match=r"'s1'.*lock timeout"):
            cluster.migrations.upgrade(pace=IN_PROCESS)

        assert states(cluster) == {"s0": "done", "s1": "blocked", "s2": "pending"}
        sql_on(urls[1], "SET lock_timeout = '1s'; INSERT INTO product VALUES (1)")


def test_a_limit_of_the_role_does_not_cut_a_migration_short(
    cluster: ShardCluster, shop: ShopRevisions, urls: list[URL]
) -> None:
    name = urls[0].database
    sql_on(urls[0], f"ALTER ROLE CURRENT_USER IN DATABASE {name} SET statement_timeout = '20ms'")
    shop.write("SELECT pg_sleep(0.1)")

    cluster.migrations.upgrade(pace=IN_PROCESS)

    assert states(cluster)["s0"] == "done"


# Indexes that are built concurrently --------------------------------------------------------


def test_an_index_is_built_concurrently_while_another_migration_waits_for_its_turn(
    cluster: ShardCluster, shop: ShopRevisions
) -> None:
    """Whoever waits must hold no snapshot: the build would wait for it, and it for the build."""
    shop.write(CONCURRENTLY)
    waiting = Event()

    class Telling(SystemClock):
        def sleep(self, seconds: float) -> None:
            waiting.set()
            super().sleep(seconds)

    other = replace(cluster.migrations, clock=Telling())
    with ThreadPoolExecutor(1) as pool:
        second: list[Future[tuple[ShardRun, ...]]] = []

        def begin_another() -> None:
            second.append(pool.submit(other.upgrade, pace=PATIENT))
            assert waiting.wait(30)

        with armed("shard-migration.locked", begin_another):
            first = cluster.migrations.upgrade(pace=PATIENT)
        again = second[0].result(timeout=60)

    assert {run.state for run in first} == {run.state for run in again} == {"done"}
    assert {run.attempts for run in again} == {0}
    assert all(each.is_sound for each in cluster.migrations.status())


def test_an_index_that_is_left_half_built_stops_the_run(
    cluster: ShardCluster, shop: ShopRevisions, urls: list[URL]
) -> None:
    cluster.migrations.upgrade(pace=IN_PROCESS)
    sql_on(urls[0], "INSERT INTO product VALUES (1, 'tea'), (2, 'tea')")
    shop.write(CONCURRENTLY.replace("INDEX", "UNIQUE INDEX").replace("LY p", "LY IF NOT EXISTS p"))

    with pytest.raises(ShardMigrationFailedError, match="could not create unique index"):
        cluster.migrations.upgrade(pace=IN_PROCESS)
    # Now PostgreSQL takes the ruin for the index.
    with pytest.raises(ShardMigrationFailedError, match=r"DROP INDEX CONCURRENTLY public.prod"):
        cluster.migrations.upgrade(pace=IN_PROCESS)

    assert states(cluster) == {"s0": "failed", "s1": "pending", "s2": "pending"}


# Two at once, and servers that are away -----------------------------------------------------


def test_who_may_not_wait_for_another_run_is_told(cluster: ShardCluster) -> None:
    refused: list[str] = []

    def begin_another() -> None:
        try:
            cluster.migrations.upgrade(pace=IN_PROCESS)
        except MigrationBlockedError as error:
            refused.append(str(error))

    with armed("shard-migration.locked", begin_another):
        cluster.migrations.upgrade(pace=IN_PROCESS)

    assert len(refused) == 1
    assert "another migration is under way" in refused[0]


def test_a_shard_that_is_away_stops_the_run_before_anything_is_changed(
    urls: list[URL], shop: ShopRevisions
) -> None:
    away = urls[2].set(host="127.0.0.1", port=1, query={})
    with cluster_of([*urls[:2], away], shop) as cluster:
        with pytest.raises(ShardUnavailableError, match="'s2'"):
            cluster.migrations.upgrade(pace=IN_PROCESS)

        assert tables_on(urls[0]) == set()

        cluster.migrations.upgrade(pace=replace(IN_PROCESS, skip_unavailable=True))
        assert states(cluster) == {"s0": "done", "s1": "done", "s2": "unavailable"}

    with cluster_of(urls, shop) as cluster:  # it is back
        cluster.migrations.upgrade(pace=IN_PROCESS)
        assert states(cluster) == dict.fromkeys(["s0", "s1", "s2"], "done")


def test_an_env_that_finds_its_database_elsewhere_is_stopped_before_it_changes_anything(
    urls: list[URL], shop: ShopRevisions, tmp_path: Path
) -> None:
    shown = urls[2].render_as_string(hide_password=False)
    (tmp_path / "migrations" / "env.py").write_text(ELSEWHERE.format(url=shown))

    with (
        cluster_of(urls[:2], shop) as cluster,
        pytest.raises(ShardMigrationFailedError, match="another database than that of shard 's0'"),
    ):
        cluster.migrations.upgrade(pace=IN_PROCESS)

    assert tables_on(urls[2]) == set()
    with session_on(urls[2]) as conn:
        assert conn.scalar(text("SELECT to_regclass('alembic_version')")) is None


def test_two_names_for_one_shard_are_refused(urls: list[URL], shop: ShopRevisions) -> None:
    with cluster_of(urls, shop) as cluster:
        cluster.create_map()
    with (
        cluster_of([urls[0], urls[0]], shop) as cluster,
        pytest.raises(ShardMigrationFailedError, match="shard 's1' says that it is 's0'"),
    ):
        cluster.migrations.upgrade(pace=IN_PROCESS)


@pytest.mark.parametrize(
    ("revision", "told"), [("r9", "Can't locate"), ("+1", "counts steps"), ("head-1", "counts")]
)
def test_a_revision_that_is_misspelt_or_relative_changes_nothing(
    cluster: ShardCluster, revision: str, told: str
) -> None:
    with pytest.raises(AlembicEnvironmentError, match=told):
        cluster.migrations.upgrade(revision, pace=IN_PROCESS)

    assert cluster.migrations.last_run() == ()


def test_a_count_of_its_own_must_be_declared(
    urls: list[URL], shop: ShopRevisions, tmp_path: Path
) -> None:
    env = tmp_path / "migrations" / "env.py"
    env.write_text(env.read_text().replace("connection=conn", 'connection=conn, version_table="v"'))

    with cluster_of(urls, shop) as cluster:
        with pytest.raises(ShardMigrationFailedError, match=r"env.py counts in v; say so"):
            cluster.migrations.upgrade(pace=IN_PROCESS)

        environment = replace(shop.environment(), version_table="v")
        replace(cluster.migrations, environment=environment).upgrade(pace=IN_PROCESS)

    assert all("product" in tables_on(url) for url in urls)


def test_it_needs_a_canary_that_exists_and_time_that_is_not_negative(
    cluster: ShardCluster,
) -> None:
    with pytest.raises(Exception, match="no shard 's9'"):
        cluster.migrations.upgrade(pace=MigrationPace(canary="s9"))
    with pytest.raises(Exception, match="at least one"):
        MigrationPace(parallel=0)
    with pytest.raises(Exception, match="negative"):
        MigrationPace(lock_seconds=-1)
