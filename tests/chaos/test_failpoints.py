"""A worker dies at each dangerous moment; whoever comes next ends where it would have ended."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from redis import Redis
from sqlalchemy import URL, Engine, text

from datapatterns.cache_aside import Cache
from datapatterns.cqrs import Outbox, Projections
from datapatterns.embedded.processes import process_table, servers_in
from datapatterns.errors import ReadModelBuildingError, SegmentsBusyError, StreamArchivedError
from datapatterns.event_sourcing import (
    NEW_STREAM,
    Archive,
    FileAnchor,
    HashChain,
    NewEvent,
)
from datapatterns.failpoints import FAILPOINTS
from datapatterns.materialized_view import MaterializedView
from datapatterns.sharding import ShardCluster
from datapatterns.testing import FailpointNotReachedError, wait_until
from datapatterns.testing.faults import run_until_failpoint as run_anew_until_failpoint
from tests.fixtures import doomed_workers as workers
from tests.fixtures.caches import create_products, load_product, open_cache, rename
from tests.fixtures.doomed_handovers import HANDING_OVER
from tests.fixtures.doomed_referrers import LETTING_GO, REFERRING
from tests.fixtures.doomed_servers import start_servers
from tests.fixtures.empty_database import CreateDatabase
from tests.fixtures.forked_workers import run_until_failpoint
from tests.fixtures.orders import Place, Receipt, Shop, create_receipts, receipts
from tests.fixtures.owners import StartOwner, owner_environment
from tests.fixtures.poisoned import Base as Selling
from tests.fixtures.poisoned import Sold, contents, projection_of
from tests.fixtures.read_models import (
    Dashboard,
    ItemScanned,
    SalesByProduct,
    append_all,
    create_tables,
    expected_sales,
    sales,
)
from tests.fixtures.shard_model import households
from tests.fixtures.view_tables import Base as ViewBase
from tests.fixtures.view_tables import largest_lines

pytestmark = [pytest.mark.postgres, pytest.mark.chaos]

Death = tuple[str, int]
"""A failpoint, and at which visit."""

PROJECTING: list[Death] = [
    ("projection.lease-claimed", 1),
    ("projection.page-applied", 2),
    ("projection.page-committed", 1),
]
MERGING: list[Death] = [("segments.held-level", 1), ("projection.page-applied", 1)]
SWITCHING: list[Death] = [("projection.mode-set", 1)]
REBUILDING: list[Death] = [
    ("rebuild.leases-taken", 1),
    ("rebuild.replayed", 1),
    ("rebuild.rows-replaced", 1),
    ("rebuild.swapped", 1),
]
RETRYING: list[Death] = [
    ("retry.lease-taken", 1),
    ("retry.applied", 1),
    ("retry.applied", 2),
    ("retry.committed", 1),
]
PASSING_ON: list[Death] = [("messages.published", 1)]
PROJECTING_INTO_REDIS: list[Death] = [
    ("redis-projection.build-confirmed", 1),
    ("redis-projection.clearing", 1),
    ("redis-projection.page-read", 2),
    ("redis-projection.page-applied", 1),
    ("redis-projection.page-applied", 2),
]
REBUILDING_IN_REDIS: list[Death] = [
    ("redis-rebuild.begun", 1),
    ("redis-projection.clearing", 1),
    ("redis-projection.page-applied", 1),
]
SKIPPING_IN_REDIS: list[Death] = [("redis-projection.skip-noted", 1)]
READING_A_CACHE: list[Death] = [("cache.lease-granted", 1), ("cache.value-loaded", 1)]
WRITING_PAST_A_CACHE: list[Death] = [("cache.write-committed", 1)]
RELAYING: list[Death] = [("relay.sent", 1), ("relay.committed", 1)]
RELAYING_TO_A_STRANGER: list[Death] = [("relay.mark-removed", 1), ("relay.committed", 1)]
IMPORTING: list[Death] = [("import.streams-claimed", 1)]
EXECUTING: list[Death] = [("command.result-noted", 1), ("command.committed", 1)]
ARCHIVING: list[Death] = [("archive.moved", 1), ("archive.moved", 2)]
SEALING: list[Death] = [("chain.hashed", 1), ("chain.hashed", 2), ("chain.sealed", 1)]
COPYING: list[Death] = [
    ("copy.page-appended", 1),
    ("copy.page-appended", 2),
    ("copy.source-locked", 1),
]
CREATING_A_VIEW: list[Death] = [("view.tables-captured", 1)]
REFRESHING: list[Death] = [("view.rows-written", 1)]
SWITCHING_A_VIEW: list[Death] = [("view.switched", 1)]
LAYING_OUT_SHARDS: list[Death] = [
    ("shard-map.recorded", 1),
    ("shard-map.shard-told", 1),
    ("shard-map.shard-told", 2),
]
MIGRATING: list[Death] = [
    ("migration.begun", 1),
    ("migration.revised", 1),
    ("migration.revised", 2),
]
MIGRATING_BETWEEN: list[Death] = [("migration.committed", 1), ("migration.committed", 2)]
STARTING_SERVERS: list[Death] = [
    ("embedded.folder-made", 1),
    ("embedded.cache-begun", 1),
    ("embedded.data-begun", 1),
    ("embedded.process-started", 1),
    ("embedded.process-started", 2),
]

DEATHS = [
    PROJECTING,
    MERGING,
    SWITCHING,
    REBUILDING,
    RETRYING,
    PASSING_ON,
    workers.BUILDING,
    workers.RETIRING_IN_REDIS,
    PROJECTING_INTO_REDIS,
    REBUILDING_IN_REDIS,
    SKIPPING_IN_REDIS,
    READING_A_CACHE,
    WRITING_PAST_A_CACHE,
    workers.FENCING,
    RELAYING,
    RELAYING_TO_A_STRANGER,
    IMPORTING,
    EXECUTING,
    ARCHIVING,
    SEALING,
    COPYING,
    workers.KEEPING_INDEXES,
    CREATING_A_VIEW,
    REFRESHING,
    SWITCHING_A_VIEW,
    LAYING_OUT_SHARDS,
    workers.WRITING_TOGETHER,
    workers.CLAIMING_KEYS,
    HANDING_OVER,
    REFERRING,
    LETTING_GO,
    workers.BUILDING_INDEXES,
    workers.MENDING_INDEXES,
    workers.SWEEPING_INDEXES,
    workers.DROPPING_INDEXES,
    workers.MOVING,
    workers.CHANGING_A_MAP,
    MIGRATING,
    MIGRATING_BETWEEN,
    workers.MIGRATING_SHARDS,
    STARTING_SERVERS,
]

SCANNED = [ItemScanned("apple", 30), ItemScanned("pear", 50), ItemScanned("apple", 40)]


def written(url: URL) -> str:
    return url.render_as_string(hide_password=False)


def test_a_worker_dies_at_every_failpoint_in_one_of_these_tests() -> None:
    assert {failpoint for group in DEATHS for failpoint, _ in group} == set(FAILPOINTS)


# Read models -------------------------------------------------------------------------------


@pytest.fixture
def shop(engine: Engine) -> Engine:
    create_tables(engine)
    append_all(engine, workers.STORE, SCANNED)
    return engine


def test_a_worker_that_did_not_die_where_it_should_fails_the_test() -> None:
    with pytest.raises(FailpointNotReachedError, match=r"'relay.sent'.*the worker ended with 0"):
        run_until_failpoint(workers.migrations_of, "relay.sent")
    with pytest.raises(FailpointNotReachedError, match="there is no database to migrate"):
        run_until_failpoint(workers.migrate, "relay.sent")


@pytest.mark.parametrize(("failpoint", "visit"), PROJECTING)
def test_the_next_runner_of_a_projection_applies_each_event_once(
    shop: Engine, failpoint: str, visit: int
) -> None:
    run_until_failpoint(workers.project, failpoint, written(shop.url), visit=visit)

    workers.projections().catch_up(shop, SalesByProduct, timeout_seconds=30)

    assert sales(shop) == expected_sales([(scanned, "1") for scanned in SCANNED])
    assert not workers.projections().verify(shop, SalesByProduct).differences


@pytest.mark.parametrize(("failpoint", "visit"), RETRYING)
def test_whoever_retries_next_applies_each_parked_event_once(
    engine: Engine, failpoint: str, visit: int
) -> None:
    Selling.metadata.create_all(engine)
    events = [Sold(["milk"], 1, ["milk"]), Sold(["milk", "tea"], 2, [])]
    append_all(engine, workers.STORE, events)
    projections = workers.projections()
    projections.catch_up(engine, projection_of("park", messages=True))

    run_until_failpoint(workers.retry, failpoint, written(engine.url), visit=visit)
    # The dead one's lease stands, but not in the way of who takes it.
    projections.retry(engine, workers.MENDED)

    assert contents(engine) == {"milk": (2, 3), "tea": (1, 2)}
    with engine.begin() as conn:
        assert projections.parked(conn) == []
        told = Outbox().take(conn)
    assert sorted((m.payload["product"], m.position) for m in told) == [
        ("milk", 1),
        ("milk", 2),
        ("tea", 2),
    ]


@pytest.mark.parametrize(("failpoint", "visit"), PASSING_ON)
def test_what_a_relay_has_published_before_it_died_is_published_again(
    engine: Engine, tmp_path: Path, failpoint: str, visit: int
) -> None:
    Selling.metadata.create_all(engine)
    append_all(engine, workers.STORE, [Sold(["milk"], 1, [])])
    workers.projections().catch_up(engine, projection_of("stop", messages=True))
    published = tmp_path / "published"

    run_until_failpoint(
        workers.pass_on, failpoint, written(engine.url), str(published), visit=visit
    )
    workers.pass_on(written(engine.url), str(published))

    first, again = published.read_text().split()
    assert first == again


@pytest.mark.parametrize(("failpoint", "visit"), SWITCHING)
def test_a_projection_whose_switch_died_is_kept_as_before(
    shop: Engine, failpoint: str, visit: int
) -> None:
    run_until_failpoint(workers.keep_inline, failpoint, written(shop.url), visit=visit)

    append_all(shop, workers.STORE, SCANNED)  # by a writer that does not keep it
    workers.projections().catch_up(shop, SalesByProduct)

    assert sales(shop) == expected_sales((event, "1") for event in 2 * SCANNED)


@pytest.mark.parametrize(("failpoint", "visit"), MERGING)
def test_segments_whose_merge_died_are_merged_later_and_lose_nothing(
    shop: Engine, failpoint: str, visit: int
) -> None:
    projections = workers.projections()
    projections.catch_up(shop, SalesByProduct)
    projections.split(shop, SalesByProduct)
    append_all(shop, workers.STORE, SCANNED)
    with shop.begin() as conn:  # somebody else is busy with the second
        conn.execute(
            text(
                "UPDATE datapatterns.projection_shard SET owner = 'busy',"
                " lease_until = now() + interval '1 h' WHERE shard = 1"
            )
        )
    projections.run(shop, SalesByProduct)
    run_until_failpoint(workers.merge_segments, failpoint, written(shop.url), visit=visit)

    def merged() -> bool:
        with suppress(SegmentsBusyError):  # until what held them level has lapsed
            return projections.merge(shop, SalesByProduct) == 1
        return False

    wait_until(merged, deadline_seconds=30)
    assert sales(shop) == expected_sales([(scanned, "1") for scanned in SCANNED * 2])
    assert not projections.verify(shop, SalesByProduct).differences


@pytest.mark.parametrize(("failpoint", "visit"), REBUILDING)
def test_a_rebuild_that_died_leaves_the_old_rows_or_the_new_ones(
    shop: Engine, failpoint: str, visit: int
) -> None:
    projections = workers.projections()
    projections.catch_up(shop, SalesByProduct)
    with shop.begin() as conn:  # damage, for the rebuild to mend
        conn.execute(text("UPDATE product_sales SET cents = 1"))
    damaged = sales(shop)

    run_until_failpoint(workers.rebuild, failpoint, written(shop.url), visit=visit)

    right = expected_sales([(scanned, "1") for scanned in SCANNED])
    assert sales(shop) == (right if failpoint == "rebuild.swapped" else damaged)
    append_all(shop, workers.STORE, SCANNED)
    projections.rebuild(shop, SalesByProduct)
    assert sales(shop) == expected_sales([(scanned, "1") for scanned in SCANNED * 2])
    assert not projections.verify(shop, SalesByProduct).differences


@pytest.mark.redis
@pytest.mark.parametrize(("failpoint", "visit"), PROJECTING_INTO_REDIS)
def test_the_next_runner_of_a_projection_into_redis_applies_each_event_once(
    shop: Engine, redis_client: Redis, redis_url: str, failpoint: str, visit: int
) -> None:
    arguments = written(shop.url), redis_url
    run_until_failpoint(workers.project_into_redis, failpoint, *arguments, visit=visit)

    assert_dashboard_comes_right(shop, redis_client)


@pytest.mark.redis
@pytest.mark.parametrize(("failpoint", "visit"), REBUILDING_IN_REDIS)
def test_a_rebuild_in_redis_that_died_is_gone_on_with_and_never_shows_a_part(
    shop: Engine, redis_client: Redis, redis_url: str, failpoint: str, visit: int
) -> None:
    projections = workers.projections(redis_url)
    projections.catch_up(shop, Dashboard)
    arguments = written(shop.url), redis_url
    run_until_failpoint(workers.rebuild_in_redis, failpoint, *arguments, visit=visit)

    if failpoint != "redis-rebuild.begun":
        with pytest.raises(ReadModelBuildingError):
            projections.view(Dashboard).hash("cents_by_product")
    assert_dashboard_comes_right(shop, redis_client)


def assert_dashboard_comes_right(shop: Engine, redis_client: Redis) -> None:
    projections = Projections(redis=redis_client)
    projections.catch_up(shop, Dashboard, timeout_seconds=30)
    assert projections.view(Dashboard).hash("cents_by_product") == {"apple": "70", "pear": "50"}
    assert not projections.verify(shop, Dashboard).differences


# Caches ------------------------------------------------------------------------------------


@pytest.fixture
def cache(engine: Engine, redis_client: Redis) -> Iterator[Cache]:
    """A cache before products that are all called "first", with its relay run once."""
    create_products(engine)
    with open_cache(redis_client, engine, workers.IMPATIENT) as cache:
        cache.relay()
        yield cache


def name_of(cache: Cache) -> str:
    product = cache.cached(load_product)(1)
    assert product is not None
    return product.name


@pytest.mark.redis
@pytest.mark.parametrize(("failpoint", "visit"), SKIPPING_IN_REDIS)
def test_what_a_runner_was_about_to_skip_is_skipped_by_the_next_one_once(
    engine: Engine, redis_client: Redis, redis_url: str, failpoint: str, visit: int
) -> None:
    append_all(engine, workers.STORE, [Sold(["milk"], 1, ["milk"]), Sold(["milk"], 1, [])])
    arguments = written(engine.url), redis_url

    run_until_failpoint(workers.skip_in_redis, failpoint, *arguments, visit=visit)

    projections = Projections(lease_seconds=workers.LEASE_SECONDS, redis=redis_client)
    projections.catch_up(engine, workers.Skipping, timeout_seconds=30)
    assert projections.view(workers.Skipping).hash("sold") == {"milk": "1"}
    with engine.begin() as conn:
        assert [one.position for one in projections.skipped(conn)] == [1]


@pytest.mark.parametrize(("failpoint", "visit"), READING_A_CACHE)
def test_a_reader_that_died_with_the_lease_keeps_nobody_from_the_value(
    engine: Engine, cache: Cache, redis_url: str, failpoint: str, visit: int
) -> None:
    arguments = written(engine.url), redis_url
    run_until_failpoint(workers.read_cached, failpoint, *arguments, visit=visit)

    with cache.writes() as conn:
        rename(conn, 1, "second")
        cache.invalidate_in(conn, 1)

    assert name_of(cache) == "second"
    assert cache.stats().loads == 1


@pytest.mark.redis
@pytest.mark.parametrize(("failpoint", "visit"), WRITING_PAST_A_CACHE)
def test_a_write_whose_writer_died_before_it_told_redis_is_told_by_the_relay(
    engine: Engine, cache: Cache, redis_url: str, failpoint: str, visit: int
) -> None:
    read = cache.cached(load_product)
    assert getattr(read(1), "name", None) == "first"
    arguments = written(engine.url), redis_url
    run_until_failpoint(workers.write_cached, failpoint, *arguments, visit=visit)
    assert getattr(read(1), "name", None) == "first"  # as old as the relay's last round

    assert cache.relay().entries == 1

    assert getattr(read(1), "name", None) == "second"


@pytest.mark.redis
@pytest.mark.parametrize(("failpoint", "visit"), RELAYING)
def test_a_relay_that_died_has_lost_no_invalidation(
    engine: Engine, cache: Cache, redis_url: str, failpoint: str, visit: int
) -> None:
    read = cache.cached(load_product)
    assert getattr(read(1), "name", None) == "first"
    with engine.begin() as conn:
        rename(conn, 1, "second")
        cache.invalidate_in(conn, 1)
    run_until_failpoint(workers.relay, failpoint, written(engine.url), redis_url, visit=visit)

    assert getattr(read(1), "name", None) == "second"
    assert cache.relay().transactions == (1 if failpoint == "relay.sent" else 0)
    assert getattr(read(1), "name", None) == "second"


@pytest.mark.redis
@pytest.mark.parametrize(("failpoint", "visit"), RELAYING_TO_A_STRANGER)
def test_a_relay_that_died_before_a_strange_server_leaves_it_unvouched_for(
    engine: Engine, cache: Cache, redis_url: str, failpoint: str, visit: int
) -> None:
    read = cache.cached(load_product)
    assert getattr(read(1), "name", None) == "first"
    with engine.begin() as conn:
        rename(conn, 1, "second")  # nobody says so: only a new generation forgets it
        conn.execute(text("UPDATE datapatterns.cache_target SET identity = 'another server'"))
    run_until_failpoint(workers.relay, failpoint, written(engine.url), redis_url, visit=visit)

    report = cache.relay()

    assert report.has_new_generation == (failpoint == "relay.mark-removed")
    assert getattr(read(1), "name", None) == "second"


# Rows and events ---------------------------------------------------------------------------


@pytest.mark.parametrize(("failpoint", "visit"), IMPORTING)
def test_a_chunk_whose_import_died_is_imported_whole(
    engine: Engine, failpoint: str, visit: int
) -> None:
    run_until_failpoint(workers.import_chunk, failpoint, written(engine.url), visit=visit)

    with engine.begin() as conn:
        imported = workers.STORE.import_events(conn, workers.CHUNK, source="tills", chunk=1)

    with engine.connect() as conn:
        events = workers.STORE.read_stream(conn, workers.CART)
        assert imported == 2
        assert [event.version for event in events] == [1, 2]


@pytest.mark.parametrize(("failpoint", "visit"), EXECUTING)
def test_a_command_whose_executor_died_is_executed_once(
    engine: Engine, failpoint: str, visit: int
) -> None:
    create_receipts(engine)
    run_until_failpoint(workers.place_order, failpoint, written(engine.url), visit=visit)

    again = Shop().commands.execute(engine, Place("a"), idempotency_key="k")

    assert again.repeated == (failpoint == "command.committed")
    assert again.value == Receipt("a", 1)
    assert receipts(engine) == [("a", 1)]


@pytest.mark.parametrize(("failpoint", "visit"), ARCHIVING)
def test_a_stream_whose_move_died_is_moved_whole(
    engine: Engine, failpoint: str, visit: int
) -> None:
    append_all(engine, workers.STORE, [*SCANNED, *SCANNED])
    with engine.begin() as conn:
        kept = workers.STORE.read_log(conn).events
        Archive(workers.STORE).stop(conn, kept[0].stream)
    run_until_failpoint(workers.archive, failpoint, written(engine.url), visit=visit)

    workers.archive(written(engine.url))

    with engine.connect() as conn:
        archived = conn.scalar(text("SELECT count(*) FROM datapatterns.event_archive"))
        left = conn.scalar(text("SELECT count(*) FROM datapatterns.event"))
    assert (archived, left) == (len(kept), 0)


@pytest.mark.parametrize(("failpoint", "visit"), SEALING)
def test_a_chain_whose_sealer_died_goes_on_and_reaches_its_anchor(
    engine: Engine, tmp_path: Path, failpoint: str, visit: int
) -> None:
    append_all(engine, workers.STORE, [*SCANNED, *SCANNED])
    at = (written(engine.url), str(tmp_path / "anchor.jsonl"))
    run_until_failpoint(workers.seal, failpoint, *at, visit=visit)

    workers.seal(*at)

    with engine.begin() as conn:
        report = HashChain(workers.STORE, FileAnchor(at[1])).verify(conn)
    assert report.intact
    assert (report.segments, report.anchored, report.events) == (3, 3, 6)


@pytest.mark.parametrize(("failpoint", "visit"), COPYING)
def test_a_copy_of_a_stream_that_died_is_gone_on_with(
    engine: Engine, failpoint: str, visit: int
) -> None:
    put = [NewEvent("put", {"what": what}) for what in ("bread", "milk")]
    with engine.begin() as conn:
        workers.STORE.append(conn, workers.CART, put, expected_version=NEW_STREAM)
    run_until_failpoint(workers.copy_cart, failpoint, written(engine.url), visit=visit)
    with engine.begin() as conn:  # nothing is ended before the copy is whole
        workers.STORE.append(conn, workers.CART, [NewEvent("left", {})], expected_version=2)

    workers.copy_cart(written(engine.url))

    with engine.begin() as conn:
        copied = workers.STORE.read_stream(conn, workers.CART_COPY.target)
        assert [event.event_type for event in copied] == ["put", "put", "left"]
        with pytest.raises(StreamArchivedError):
            workers.STORE.append(conn, workers.CART, put, expected_version=3)


@pytest.mark.parametrize(("failpoint", "visit"), CREATING_A_VIEW)
def test_a_view_whose_creation_died_is_created(engine: Engine, failpoint: str, visit: int) -> None:
    ViewBase.metadata.create_all(engine)
    run_until_failpoint(workers.create_view, failpoint, written(engine.url), visit=visit)

    workers.create_view(written(engine.url))
    with engine.begin() as conn:
        workers.VIEW.populate(conn)

    for step in (workers.add_lines, workers.VIEW.refresh):
        with engine.begin() as conn:
            step(conn)
    assert_view_is_right(engine, cents=70)


@pytest.mark.parametrize(("failpoint", "visit"), REFRESHING)
def test_a_refresh_that_died_has_counted_nothing(
    engine: Engine, failpoint: str, visit: int
) -> None:
    ViewBase.metadata.create_all(engine)
    for step in (workers.VIEW.create, workers.VIEW.populate, workers.add_lines):
        with engine.begin() as conn:
            step(conn)
    run_until_failpoint(workers.refresh_view, failpoint, written(engine.url), visit=visit)

    with engine.begin() as conn:
        report = workers.VIEW.refresh(conn)

    assert report is not None
    assert report.rows_changed == 1
    assert_view_is_right(engine, cents=70)


@pytest.mark.parametrize(("failpoint", "visit"), SWITCHING_A_VIEW)
def test_a_version_that_died_on_the_way_takes_the_place_later(
    engine: Engine, failpoint: str, visit: int
) -> None:
    ViewBase.metadata.create_all(engine)
    old = MaterializedView(workers.VIEW.name, largest_lines())
    for step in (old.create, old.populate, workers.add_lines, old.refresh, workers.replace_view):
        with engine.begin() as conn:
            step(conn)
    workers.refresh_view(written(engine.url))
    run_until_failpoint(workers.refresh_view, failpoint, written(engine.url), visit=visit)
    with engine.connect() as conn:
        assert conn.scalar(text("SELECT max(largest) FROM datapatterns.weekly_sales")) is not None

    workers.refresh_view(written(engine.url))

    assert_view_is_right(engine, cents=70)


def assert_view_is_right(engine: Engine, *, cents: int) -> None:
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as conn:
        assert workers.VIEW.verify(conn) == []
        assert conn.scalar(text("SELECT sum(cents) FROM datapatterns.weekly_sales")) == cents


# Shards, migrations, servers ---------------------------------------------------------------


@pytest.mark.parametrize(("failpoint", "visit"), LAYING_OUT_SHARDS)
def test_a_shard_map_that_was_half_laid_out_is_completed(
    shard_urls: list[URL], failpoint: str, visit: int
) -> None:
    urls = [written(url) for url in shard_urls[:3]]
    run_until_failpoint(workers.lay_out_shards, failpoint, *urls, visit=visit)

    workers.lay_out_shards(*urls)

    named = {"s0": urls[1], "s1": urls[2]}
    with ShardCluster(control=urls[0], shards=named, groups=[households]) as cluster:
        shards = {cluster.router.map_of(households).shard_of(key) for key in range(50)}
        for shard in named:
            with cluster.begin_bulk(households, shard) as conn:
                assert conn.scalar(text("SELECT 1")) == 1
    assert shards == set(named)


@pytest.mark.parametrize(("failpoint", "visit"), MIGRATING)
def test_a_migration_that_died_has_changed_nothing(
    new_empty_url: CreateDatabase, failpoint: str, visit: int
) -> None:
    urls = [written(new_empty_url()) for _ in range(2)]
    migrations = workers.migrations_of(*urls)
    run_until_failpoint(workers.migrate, failpoint, *urls, visit=visit)

    revisions = [found.revision for found in migrations.status().values()]
    assert [revision is not None for revision in revisions] == [visit > 1, False]
    migrations.upgrade()
    migrations.check()


@pytest.mark.parametrize(("failpoint", "visit"), MIGRATING_BETWEEN)
def test_migrations_go_on_with_the_databases_that_are_left(
    new_empty_url: CreateDatabase, failpoint: str, visit: int
) -> None:
    urls = [written(new_empty_url()) for _ in range(2)]
    migrations = workers.migrations_of(*urls)
    run_until_failpoint(workers.migrate, failpoint, *urls, visit=visit)

    ran: dict[str, int] = {}
    migrations.upgrade(report=lambda name, steps: ran.update({name: len(steps)}))

    assert [bool(steps) for steps in ran.values()] == [False, visit == 1]
    migrations.check()


@pytest.mark.parametrize(("failpoint", "visit"), STARTING_SERVERS)
def test_servers_whose_start_died_are_swept_away_by_the_next_start(
    playground: Path, start_owner: StartOwner, failpoint: str, visit: int
) -> None:
    environment = owner_environment(playground)
    if failpoint == "embedded.cache-begun":
        environment["DATAPATTERNS_CACHE_DIR"] = str(playground / "cache")
    run_anew_until_failpoint(start_servers, failpoint, visit=visit, environment=environment)
    left = set(servers_in(playground))
    # A child that a server has just forked looks like it until it has a title of its own.
    parents = {process.pid: process.parent for process in process_table()}
    begun = {pid for pid in left if parents.get(pid) not in left}
    assert len(begun) == (visit if failpoint == "embedded.process-started" else 0)

    owner = start_owner(environment=environment)

    assert set(servers_in(playground)) == set(owner.pids)
    assert not left & set(owner.pids)
    assert owner.leave() == 0
    assert servers_in(playground) == []


@pytest.mark.parametrize(
    ("failpoint", "visit"), [("embedded.data-begun", 1), ("embedded.process-started", 1)]
)
def test_a_folder_whose_first_start_died_is_taken_over(
    playground: Path, start_owner: StartOwner, failpoint: str, visit: int
) -> None:
    kept = str(playground / "kept")
    environment = owner_environment(playground)
    run_anew_until_failpoint(start_servers, failpoint, kept, visit=visit, environment=environment)

    owner = start_owner(data_dir=kept, environment=environment)

    assert set(servers_in(playground)) == set(owner.pids)
    assert owner.leave() == 0
