"""What a server that only allows reading refuses has a name of ours, and its connections go."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from datapatterns import DataLayer
from datapatterns.aio import in_transaction
from datapatterns.cqrs import Projections
from datapatterns.errors import ReadOnlyServerError
from datapatterns.event_sourcing import ANY, EventStore, EventWriter, NewEvent, Retry, StreamId
from datapatterns.testing import Databases
from datapatterns.transactions import transaction, watch_commits
from tests.fixtures.lost_commits import Loss, Network
from tests.fixtures.orders import (
    Execute,
    Place,
    Receipt,
    Shop,
    create_receipts,
    receipts,
    recorded,
    store,
    taken_of,
)
from tests.fixtures.read_models import (
    DoubledSales,
    ItemScanned,
    SalesByProduct,
    append_all,
    create_tables,
)

pytestmark = pytest.mark.postgres

events = EventStore()
EGGS = StreamId("stock", "egg")


def fence(engine: Engine, *, on: bool = True) -> None:
    """Let all later sessions of the database only read, as whoever fences an old primary does.

    Earlier ones, such as that of ``engine``, go on writing.
    """
    with engine.begin() as conn:
        name = conn.dialect.identifier_preparer.quote(engine.url.database or "")
        conn.execute(text(f"ALTER DATABASE {name} SET default_transaction_read_only = {on}"))


@pytest.fixture
def fenced(engine: Engine) -> Iterator[Engine]:
    """The database, whose tables are there, by an engine that nothing of ours has prepared."""
    create_tables(engine)
    fence(engine)
    fenced = create_engine(engine.url)
    yield fenced
    fenced.dispose()


def append_one(conn: Connection) -> object:
    return store.append(conn, EGGS, [NewEvent("a", {})], expected_version=ANY)


# What is said --------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, "key"])
def test_a_command_is_refused_once_with_what_to_do(
    engine: Engine, fenced: Engine, shop: Shop, execute: Execute, key: str | None
) -> None:
    """And it is not tried again, however often it might be."""
    with pytest.raises(ReadOnlyServerError, match="target_session_attrs=read-write") as refused:
        execute(Place("a"), at=fenced, idempotency_key=key, retry=Retry(attempts=50))

    assert refused.value.reason == "default_transaction_read_only is on"
    assert isinstance(refused.value.__cause__, DBAPIError)
    assert len(shop.decided) <= 1
    assert (receipts(engine), taken_of(engine), recorded(engine)) == ([], [], [])


@pytest.mark.parametrize(
    "write",
    [
        lambda projections, engine: projections.run(engine, SalesByProduct),
        lambda projections, engine: projections.catch_up(engine, SalesByProduct),
        lambda projections, engine: projections.rebuild(engine, DoubledSales),
        lambda projections, engine: projections.promote(engine, DoubledSales),
        lambda projections, engine: projections.retire(engine, DoubledSales),
        lambda projections, engine: projections.retry(engine, SalesByProduct),
        lambda projections, engine: projections.make_inline(engine, SalesByProduct),
    ],
    ids=["run", "catch-up", "rebuild", "promote", "retire", "retry", "make-inline"],
)
def test_so_is_what_moves_read_models_on(
    engine: Engine, write: Callable[[Projections, Engine], object]
) -> None:
    create_tables(engine)
    projections = Projections(events)
    append_all(engine, events, [ItemScanned("milk", 1)])
    projections.catch_up(engine, SalesByProduct)
    projections.rebuild(engine, DoubledSales, promote=False)
    with engine.begin() as conn:
        conn.execute(text("UPDATE datapatterns.projection_shard SET parked = 1"))
    append_all(engine, events, [ItemScanned("milk", 1)])
    fence(engine)
    fenced = create_engine(engine.url)

    with pytest.raises(ReadOnlyServerError):
        write(projections, fenced)
    fenced.dispose()


def test_so_is_an_append_in_a_transaction_on_an_engine_of_a_layer(fenced: Engine) -> None:
    with (
        DataLayer(fenced.url) as layer,
        pytest.raises(ReadOnlyServerError),
        layer.engine.begin() as conn,
    ):
        append_one(conn)


def test_so_is_one_of_an_async_engine(fenced: Engine) -> None:
    async def attempt() -> None:
        far = create_async_engine(fenced.url)
        try:
            await in_transaction(far, append_one)
        finally:
            await far.dispose()

    with pytest.raises(ReadOnlyServerError):
        asyncio.run(attempt())


@pytest.mark.parametrize("watched", [False, True])
def test_a_transaction_that_was_begun_to_read_keeps_its_words_and_its_connection(
    engine: Engine, *, watched: bool
) -> None:
    reading = create_engine(engine.url, execution_options={"postgresql_readonly": True})
    if watched:
        watch_commits(reading)
    sessions: list[int] = []

    def attempt(conn: Connection) -> None:
        sessions.append(conn.execute(text("SELECT pg_backend_pid()")).scalar_one())
        conn.execute(text("SET TRANSACTION READ ONLY"))
        append_one(conn)

    for by in (reading, reading, engine):
        with pytest.raises(DBAPIError, match="read-only transaction"), transaction(by) as conn:
            attempt(conn)

    assert sessions[0] == sessions[1]
    reading.dispose()


# After a failover ----------------------------------------------------------------------------


@contextmanager
def stale(old: Engine, new: Engine) -> Iterator[tuple[Engine, Callable[[], None]]]:
    """Give an engine whose pool leads to the old primary, and what lets new ones lead to another.

    As an address does that is given to another server.
    """
    fence(old)
    place = [old.url.database]
    engine = create_engine(old.url, pool_size=3, pool_pre_ping=True)
    lead(engine, place)
    pooled = [engine.connect() for _ in range(3)]
    for conn in pooled:
        conn.close()

    def fail_over() -> None:
        place[0] = new.url.database

    try:
        yield engine, fail_over
    finally:
        engine.dispose()


def lead(engine: Engine, place: list[str | None]) -> None:
    @event.listens_for(engine, "do_connect")
    def connecting(_dialect: object, _record: object, _: object, how: dict[str, object]) -> None:
        how["dbname"] = place[0]


@pytest.fixture
def promoted(databases: Databases) -> Iterator[Engine]:
    """What is the primary now."""
    with databases.lend() as url:
        engine = create_engine(url)
        create_receipts(engine)
        yield engine
        engine.dispose()


@pytest.mark.parametrize("watched", [False, True])
def test_the_next_command_reaches_the_new_primary_whatever_the_pool_has_kept(
    engine: Engine, promoted: Engine, shop: Shop, *, watched: bool
) -> None:
    with stale(engine, promoted) as (pool, fail_over):
        if watched:
            watch_commits(pool)
        fail_over()

        with pytest.raises(ReadOnlyServerError):
            shop.commands.execute(pool, Place("a"))
        held = [shop.commands.execute(pool, Place(order)) for order in "bcd"]

    assert [done.attempts for done in held] == [1, 1, 1]
    assert receipts(promoted) == [("b", 1), ("c", 2), ("d", 3)]


def test_so_does_the_next_of_an_async_engine(engine: Engine, promoted: Engine, shop: Shop) -> None:
    fence(engine)
    place = [engine.url.database]

    async def attempts() -> None:
        far = create_async_engine(engine.url, pool_size=2)
        lead(far.sync_engine, place)
        async with far.connect() as one, far.connect() as other:
            for conn in (one, other):
                await conn.execute(text("SELECT 1"))
        place[0] = promoted.url.database
        try:
            with pytest.raises(ReadOnlyServerError):
                await shop.commands.execute_async(far, Place("a"))
            await shop.commands.execute_async(far, Place("b"))
        finally:
            await far.dispose()

    asyncio.run(attempts())

    assert receipts(promoted) == [("b", 1)]


def test_a_writer_that_holds_a_connection_lets_it_go(engine: Engine, promoted: Engine) -> None:
    def append(writer: EventWriter) -> int:
        return writer.append(EGGS, [NewEvent("a", {})], expected_version=ANY).version

    with stale(engine, promoted) as (pool, fail_over), EventWriter(store, pool) as writer:
        fail_over()
        for _ in range(3):  # as many as the pool has; it takes them one by one
            with pytest.raises(ReadOnlyServerError):
                append(writer)

        assert append(writer) == 1


def test_an_old_primary_says_nothing_of_a_commit_that_was_not_answered(
    engine: Engine, network: Network, far: Engine, shop: Shop
) -> None:
    """So whoever is the primary is asked, by new connections, until one can tell."""
    shop.commands.execute(far, Place("a"))
    fence(engine)
    connections: list[object] = []

    @event.listens_for(far, "connect")
    def connected(_driver: object, record: object) -> None:
        connections.append(record)
        if len(connections) == 2:  # it may read only, as the one before; the next may write
            fence(engine, on=False)

    Loss(happens=True).strike(network)
    done = shop.commands.execute(far, Place("b"), idempotency_key="k")

    assert (done.value, done.attempts, len(connections)) == (Receipt("b", 2), 4, 3)
    assert receipts(engine) == [("a", 1), ("b", 2)]
    assert shop.decided == ["a", "b"]
