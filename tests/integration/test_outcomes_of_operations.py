"""Operations whose COMMIT was not answered are done again, and have been done once."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from uuid import UUID, uuid4

import pytest
from redis import Redis
from sqlalchemy import URL, Connection, Engine, insert, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from datapatterns import DataLayer, OutcomeUnknownError
from datapatterns.cache_aside import AsyncCache, Cache
from datapatterns.cqrs import Projections
from datapatterns.errors import CommitUnansweredError, ShardUnavailableError, VersionConflictError
from datapatterns.event_sourcing import (
    ANY,
    Aggregate,
    EventStore,
    ImportedEvent,
    NewEvent,
    StreamId,
    applies,
)
from datapatterns.index_table import IndexTable
from datapatterns.materialized_view import MaterializedView
from datapatterns.migrations import Migrations
from datapatterns.outcomes import Outcome, wait_for_outcome
from datapatterns.sharding import ShardCluster
from datapatterns.testing.faults import FaultProxy, Trap, armed
from datapatterns.transactions import transaction
from tests.fixtures.caches import (
    PATIENT,
    create_products,
    load_product,
    name_of,
    open_cache,
    rename,
)
from tests.fixtures.index_tables import assert_agrees, customer, tables
from tests.fixtures.lost_commits import Loss, Network
from tests.fixtures.read_models import (
    Dashboard,
    ItemScanned,
    SalesByProduct,
    append_all,
    create_tables,
    expected_sales,
    sales,
)
from tests.fixtures.shard_model import Basket, households
from tests.fixtures.view_tables import Base as ViewBase
from tests.fixtures.view_tables import weekly_sales

pytestmark = [pytest.mark.postgres, pytest.mark.chaos]

STORE = EventStore()
CART = StreamId("cart", "7")
SCANNED = [ItemScanned("apple", 30), ItemScanned("pear", 50), ItemScanned("apple", 40)]


def cart(engine: Engine) -> list[str]:
    with engine.connect() as conn:
        return [str(event.data["what"]) for event in STORE.read_stream(conn, CART)]


def put(what: str) -> NewEvent:
    return NewEvent("put", {"what": what})


# Events ------------------------------------------------------------------------------------


@pytest.mark.parametrize("others", [0, 1, 3], ids=lambda n: f"{n} by others meanwhile")
def test_an_append_is_repeated_with_the_same_ids_and_expected_version(
    engine: Engine, network: Network, far: Engine, loss: Loss, others: int
) -> None:
    with engine.begin() as conn:
        STORE.append(conn, CART, [put("bread")], expected_version=0)
    batch = [put("milk"), put("eggs")]

    def attempt(on: Engine) -> bool:
        with transaction(on, ids=[event.event_id for event in batch]) as conn:
            appended = STORE.append(conn, CART, batch, expected_version=1)
            assert appended.version == 3
            return appended.repeated

    loss.strike(network)
    with pytest.raises(OutcomeUnknownError) as raised:
        attempt(far)
    if loss.happens:
        for number in range(others):
            with engine.begin() as conn:
                STORE.append(conn, CART, [put(f"other {number}")], expected_version=3 + number)

    assert attempt(far) == loss.happens
    assert raised.value.ids == tuple(event.event_id for event in batch)
    rest = [f"other {number}" for number in range(others)] if loss.happens else []
    assert cart(engine) == ["bread", "milk", "eggs", *rest]


def test_another_writer_who_came_in_between_is_a_conflict_and_no_repetition(
    engine: Engine, network: Network, far: Engine
) -> None:
    milk = [put("milk")]
    Loss(happens=False).strike(network)
    with pytest.raises(OutcomeUnknownError), transaction(far) as conn:
        STORE.append(conn, CART, milk, expected_version=0)
    with engine.begin() as conn:
        STORE.append(conn, CART, [put("other")], expected_version=0)

    with pytest.raises(VersionConflictError), transaction(far) as conn:
        STORE.append(conn, CART, milk, expected_version=0)

    assert cart(engine) == ["other"]


def test_objects_are_recognised_by_the_ids_they_are_given(
    engine: Engine, network: Network, far: Engine, loss: Loss
) -> None:
    ids = [uuid4() for _ in SCANNED]

    def attempt() -> None:
        with transaction(far, ids=ids) as conn:
            STORE.append(conn, CART, SCANNED, expected_version=0, event_ids=ids)

    loss.strike(network)
    with pytest.raises(OutcomeUnknownError):
        attempt()
    attempt()

    with engine.connect() as conn:
        assert [event.event_id for event in STORE.read_stream(conn, CART)] == ids


@pytest.mark.parametrize("ids", [[], [uuid4()], [uuid4()] * 3])
def test_ids_that_are_not_one_for_each_event_are_refused(conn: Connection, ids: list[UUID]) -> None:
    with pytest.raises(ValueError, match="as many different ids"):
        STORE.append(conn, CART, SCANNED, expected_version=0, event_ids=ids)


class Till(Aggregate, category="till"):
    cents = 0

    @applies
    def _(self, e: ItemScanned) -> None:
        self.cents += e.cents


def test_an_aggregate_is_saved_again_and_has_happened_once(
    engine: Engine, network: Network, far: Engine, loss: Loss
) -> None:
    with engine.connect() as conn:
        till = STORE.load(conn, Till, "1")
    till.emit(ItemScanned("apple", 30))

    def attempt() -> None:
        with transaction(far) as conn:
            STORE.save(conn, till)

    loss.strike(network)
    with pytest.raises(OutcomeUnknownError):
        attempt()
    attempt()

    with engine.connect() as conn:
        assert STORE.load(conn, Till, "1").cents == 30


def test_a_traced_append_without_an_expected_version_can_be_asked_about(
    engine: Engine, network: Network, far: Engine, loss: Loss
) -> None:
    def attempt() -> None:
        with transaction(far, traced=True) as conn:
            STORE.append(conn, CART, [put("milk")], expected_version=ANY)

    loss.strike(network)
    with pytest.raises(OutcomeUnknownError) as raised:
        attempt()
    if wait_for_outcome(engine, raised.value, timeout_seconds=10) is Outcome.ABORTED:
        attempt()

    assert cart(engine) == ["milk"]


def test_an_imported_chunk_is_imported_once(
    engine: Engine, network: Network, far: Engine, loss: Loss
) -> None:
    chunk = [ImportedEvent(CART, put(what)) for what in ("bread", "milk")]

    def attempt() -> int:
        with transaction(far) as conn:
            return STORE.import_events(conn, chunk, source="tills", chunk=1)

    loss.strike(network)
    with pytest.raises(OutcomeUnknownError):
        attempt()

    assert attempt() == (0 if loss.happens else 2)
    assert cart(engine) == ["bread", "milk"]


# Read models -------------------------------------------------------------------------------


@pytest.fixture
def shop(engine: Engine) -> Engine:
    create_tables(engine)
    append_all(engine, STORE, SCANNED)
    return engine


EXPECTED = expected_sales([(scanned, "1") for scanned in SCANNED])


@contextmanager
def struck(loss: Loss, network: Network, failpoint: str | None) -> Iterator[None]:
    """Lose the answer to the first COMMIT after the failpoint, or to the very first."""
    traps: list[Trap] = []
    if failpoint is None:
        traps.append(loss.strike(network))
        yield
    else:
        with armed(failpoint, lambda: traps.append(loss.strike(network))):
            yield
    assert all(trap.has_fired for trap in traps)


@pytest.mark.parametrize(
    "failpoint", [None, "projection.page-applied", "projection.page-committed"]
)
def test_a_projection_goes_on_from_its_checkpoint(
    shop: Engine, network: Network, far: Engine, loss: Loss, failpoint: str | None
) -> None:
    projections = Projections(lease_seconds=0.2)

    with (
        struck(loss, network, failpoint),
        pytest.raises(CommitUnansweredError, match="run it again"),
    ):
        projections.run(far, SalesByProduct)
    projections.catch_up(far, SalesByProduct, timeout_seconds=30)

    assert sales(shop) == EXPECTED
    assert not projections.verify(shop, SalesByProduct).differences


@pytest.mark.redis
@pytest.mark.parametrize(
    "failpoint",
    [
        None,
        "projection.lease-claimed",
        "redis-projection.clearing",
        "redis-projection.page-applied",
    ],
)
def test_a_projection_into_redis_goes_on_from_the_checkpoint_in_redis(
    shop: Engine,
    network: Network,
    far: Engine,
    loss: Loss,
    failpoint: str | None,
    redis_client: Redis,
) -> None:
    projections = Projections(lease_seconds=0.2, redis=redis_client)

    with struck(loss, network, failpoint), pytest.raises(CommitUnansweredError):
        projections.run(far, Dashboard)
    projections.catch_up(far, Dashboard, timeout_seconds=30)

    assert not projections.verify(shop, Dashboard).differences
    assert projections.view(Dashboard).hash("cents_by_product") == {"apple": "70", "pear": "50"}


@pytest.mark.parametrize("failpoint", [None, "rebuild.rows-replaced", "rebuild.swapped"])
def test_a_rebuild_is_done_again(
    shop: Engine, network: Network, far: Engine, loss: Loss, failpoint: str | None
) -> None:
    projections = Projections(lease_seconds=0.2)
    projections.catch_up(shop, SalesByProduct)
    append_all(shop, STORE, SCANNED)

    with struck(loss, network, failpoint), pytest.raises(CommitUnansweredError):
        projections.rebuild(far, SalesByProduct)
    assert not projections.verify(shop, SalesByProduct).differences
    projections.rebuild(far, SalesByProduct)

    assert sales(shop) == expected_sales([(scanned, "1") for scanned in SCANNED * 2])


# Caches ------------------------------------------------------------------------------------


@pytest.fixture
def empty_redis_url(redis_url: str, redis_client: Redis) -> str:
    assert redis_client.dbsize() == 0
    return redis_url


def write(cache: Cache, far: Engine) -> None:
    with cache.writes(far) as conn:
        rename(conn, 1, "second")
        cache.invalidate_in(conn, 1)


@pytest.mark.redis
def test_what_may_have_been_written_is_forgotten_at_once(
    engine: Engine, network: Network, far: Engine, loss: Loss, redis_client: Redis
) -> None:
    create_products(engine)
    with open_cache(redis_client, engine) as cache:
        read = cache.cached(load_product)
        cache.relay()
        assert getattr(read(1), "name", None) == "first"

        loss.strike(network)
        with pytest.raises(OutcomeUnknownError, match="product"):
            write(cache, far)

        assert getattr(read(1), "name", None) == ("second" if loss.happens else "first")


@pytest.mark.redis
def test_asyncio_forgets_what_may_have_been_written_too(
    engine: Engine, network: Network, loss: Loss, empty_redis_url: str
) -> None:
    create_products(engine)

    async def scenario() -> str | None:
        near, far = create_async_engine(engine.url), create_async_engine(network.url)
        cache = AsyncCache(empty_redis_url, near, name="product", policy=PATIENT)

        async def load(conn: AsyncConnection) -> str | None:
            return await conn.run_sync(name_of, 1)

        await cache.relay()
        assert await cache.get_or_load(1, load, value_type=str) == "first"
        loss.strike(network)

        async def write() -> None:
            async with cache.writes(far) as conn:
                await conn.run_sync(rename, 1, "second")
                await conn.run_sync(cache.invalidate_in, 1)

        with pytest.raises(OutcomeUnknownError):
            await write()
        name = await cache.get_or_load(1, load, value_type=str)
        await cache.close()
        await near.dispose()
        await far.dispose()
        return name

    assert asyncio.run(scenario()) == ("second" if loss.happens else "first")


@pytest.mark.redis
def test_a_round_of_the_relay_is_run_again(
    engine: Engine, network: Network, far: Engine, loss: Loss, redis_client: Redis
) -> None:
    create_products(engine)
    with open_cache(redis_client, engine) as reader, open_cache(redis_client, far) as relay:
        read = reader.cached(load_product)
        relay.relay()
        assert getattr(read(1), "name", None) == "first"
        with engine.begin() as conn:
            rename(conn, 1, "second")
            reader.invalidate_in(conn, 1)

        loss.strike(network)
        with pytest.raises(CommitUnansweredError, match="relay"):
            relay.relay()
        relay.relay()

        assert getattr(read(1), "name", None) == "second"
        assert relay.relay().transactions == 0


# Indexes and views -------------------------------------------------------------------------


def repeat_until_answered(step: Callable[[], bool]) -> bool:
    try:
        return step()
    except OutcomeUnknownError:
        return step()


def test_a_chunk_of_a_backfill_that_was_not_answered_is_followed_by_the_next(
    engine: Engine, network: Network, far: Engine, loss: Loss
) -> None:
    tables.create_all(engine)
    index = IndexTable("by_email", on=[customer.c.email])
    with engine.begin() as conn:
        conn.execute(
            text(
                "INSERT INTO customer (tenant_id, id, email)"
                " SELECT 1, n, 'at' || n FROM generate_series(1, 10) AS n"
            )
        )

    def create() -> bool:
        with transaction(far) as conn:
            return index.create(conn)

    def backfill() -> bool:
        with transaction(far) as conn:
            return index.backfill(conn, limit=4).done

    loss.strike(network)
    repeat_until_answered(create)
    done = False
    while not done:
        loss.strike(network)
        done = repeat_until_answered(backfill)
    with engine.begin() as conn:
        index.activate(conn)

    with engine.connect() as conn:
        assert assert_agrees(conn, index) == 10


def test_a_refresh_that_was_not_answered_counts_no_change_twice(
    engine: Engine, network: Network, far: Engine, loss: Loss
) -> None:
    ViewBase.metadata.create_all(engine)
    view = MaterializedView("weekly_sales", weekly_sales())

    def committed(step: Callable[[Connection], object]) -> None:
        def attempt() -> bool:
            with transaction(far) as conn:
                step(conn)
            return True

        loss.strike(network)
        repeat_until_answered(attempt)

    committed(view.create)
    committed(view.populate)
    with engine.begin() as conn:
        conn.execute(text("INSERT INTO product VALUES (1, 'fruit')"))
        conn.execute(text("INSERT INTO line VALUES (1, 1, 1, 30, 1), (2, 1, 1, 40, 2)"))
    committed(view.refresh)
    with engine.begin() as conn:
        conn.execute(text("DELETE FROM line WHERE id = 1"))
    committed(view.refresh)

    with engine.connect() as conn:
        assert conn.scalar(select(view.c.cents)) == 40
        assert view.verify(conn) == []


# Shards and migrations ---------------------------------------------------------------------


@pytest.mark.parametrize("server", ["control", "s0", "s1"])
@pytest.mark.parametrize("failpoint", [None, "shard-map.recorded", "shard-map.shard-told"])
def test_the_shard_map_is_laid_out_again(
    shard_urls: list[URL], loss: Loss, failpoint: str | None, server: str
) -> None:
    control, *shards = shard_urls[:3]
    near = {"control": control, "s0": shards[0], "s1": shards[1]}
    with FaultProxy(near[server]) as network:
        urls = near | {server: network.url}

        def lay_out(urls: dict[str, URL]) -> None:
            at = {name: url for name, url in urls.items() if name != "control"}
            with ShardCluster(control=urls["control"], shards=at, groups=[households]) as cluster:
                cluster.create_map()
                buckets = [cluster.router.map_of(households).shard_of(key) for key in range(50)]
                assert set(buckets) == {"s0", "s1"}

        traps: list[Trap] = []

        def strike() -> None:
            traps.append(loss.strike(network))

        try:
            if failpoint is None:
                strike()
                lay_out(urls)
            else:
                with armed(failpoint, strike):
                    lay_out(urls)
        except (CommitUnansweredError, ShardUnavailableError):  # the latter of a greeting
            assert traps[0].has_fired
            lay_out(urls)
        else:
            assert not traps[0].has_fired  # nothing is committed there after this failpoint
        lay_out(near)


def test_a_bulk_load_is_not_repeated_by_those_who_retry_silent_shards(
    shard_urls: list[URL], loss: Loss
) -> None:
    with FaultProxy(shard_urls[1]) as network:
        shards = {"s0": network.url}
        with ShardCluster(control=shard_urls[0], shards=shards, groups=[households]) as cluster:
            cluster.create_map()
            Basket.metadata.create_all(cluster.engines["s0"])

            def load() -> None:
                with cluster.begin_bulk(households, "s0") as conn:
                    conn.execute(insert(Basket), [{"household_id": 1, "id": 1}])
                    loss.strike(network)

            def add() -> None:
                with cluster.on(households, household_id=2) as session, session.begin():
                    session.add(Basket(household_id=2, id=2))
                    session.flush()
                    loss.strike(network)

            with pytest.raises(OutcomeUnknownError, match="bulk load on s0"):
                load()
            with pytest.raises(OutcomeUnknownError):
                add()
            with cluster.session(scatter=True) as everywhere:
                found = everywhere.scalars(select(Basket.id)).all()
    assert sorted(found) == ([1, 2] if loss.happens else [])


def test_a_migration_finds_out_by_itself_whether_it_has_happened(
    empty_url: URL, loss: Loss
) -> None:
    ran: list[int] = []
    with FaultProxy(empty_url) as network:
        migrations = Migrations({"main": network.url})

        trap = loss.strike(network)
        migrations.upgrade(report=lambda _, steps: ran.append(len(steps)))
        assert trap.has_fired
        loss.strike(network)
        migrations.downgrade("base", report=lambda _, steps: ran.append(len(steps)))

    assert ran[0] == ran[1] > 5
    Migrations({"main": empty_url}).upgrade()
    Migrations({"main": empty_url}).check()


def test_commits_on_the_engines_of_a_layer_are_watched(
    network: Network, engine: Engine, loss: Loss
) -> None:
    with engine.begin() as conn:
        conn.execute(text("CREATE TABLE note (body text)"))
    with closing(DataLayer(network.url)) as layer:
        loss.strike(network)
        with pytest.raises(OutcomeUnknownError), layer.engine.begin() as conn:
            conn.execute(text("INSERT INTO note VALUES ('sync')"))

        async def write() -> None:
            async with layer.async_engine.begin() as conn:
                await conn.execute(text("INSERT INTO note VALUES ('async')"))

        async def refused() -> None:
            loss.strike(network)
            with pytest.raises(OutcomeUnknownError):
                await write()
            await layer.aclose()

        asyncio.run(refused())

    with engine.connect() as conn:
        found = list(conn.scalars(text("SELECT body FROM note ORDER BY 1")))
    assert found == (["async", "sync"] if loss.happens else [])
