"""View = fold of the events, whatever the batches, the pages, the restarts and the losses."""

from collections.abc import Iterator
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis
from sqlalchemy import Connection, Engine, delete, text

from datapatterns.cqrs import Projections, RedisChanges
from datapatterns.cqrs.in_redis.redis_content import RedisContent
from datapatterns.cqrs.in_redis.redis_keys import Place
from datapatterns.cqrs.running.leasing import claim, release
from datapatterns.cqrs.running.progress import longest_prefix
from datapatterns.cqrs.running.registering import register
from datapatterns.cqrs.schema import projection_tables
from datapatterns.cqrs.tables.table_runner import TableRunner
from datapatterns.event_sourcing import EventStore
from tests.fixtures.read_models import (
    Dashboard,
    DoorOpened,
    ItemScanned,
    ProductSales,
    ProductsMerged,
    ProductWithdrawn,
    SalesByProduct,
    append_all,
    create_tables,
    expected_sales,
    sales,
)

STORE = EventStore()
TABLES = projection_tables(STORE.schema)

PRODUCTS = st.sampled_from(["milk", "bröd", "茶", ""])
EVENTS = st.one_of(
    st.builds(ItemScanned, PRODUCTS, st.integers(0, 10**12)),
    st.builds(ProductWithdrawn, PRODUCTS),
    st.builds(ProductsMerged, st.lists(PRODUCTS, max_size=3)),
    st.builds(DoorOpened),
)
BATCHES = st.lists(
    st.tuples(st.lists(EVENTS, min_size=1, max_size=8), st.sampled_from(["a", "b"])),
    min_size=1,
    max_size=6,
)


@pytest.fixture(scope="module")
def shop(module_engine: Engine) -> Engine:
    create_tables(module_engine)
    return module_engine


def start_again(engine: Engine) -> None:
    with engine.begin() as conn:
        conn.execute(delete(ProductSales))
        conn.execute(text("DELETE FROM datapatterns.projection_shard"))
        conn.execute(text("DELETE FROM datapatterns.projection"))
        register(conn, TABLES, SalesByProduct, empty=True)
        # The log of earlier examples stays; this one begins behind it.
        conn.execute(
            text("UPDATE datapatterns.projection_shard SET position = :p"),
            {"p": STORE.high_water_mark(conn)},
        )


def run_page(conn: Connection, *, page_events: int) -> None:
    """Do what a runner does that is started for each page anew."""
    with conn.begin():
        (lease,) = claim(conn, TABLES, SalesByProduct, owner=uuid4().hex, seconds=60)
    lease, _ = TableRunner(STORE, SalesByProduct, page_events).page(conn, lease)
    with conn.begin():
        release(conn, TABLES, lease)


@given(BATCHES, st.data())
def test_a_table_is_the_fold_of_the_events_up_to_its_checkpoint(
    shop: Engine, batches: list[tuple[list[object], str]], data: st.DataObject
) -> None:
    start_again(shop)
    log: list[tuple[object, str]] = []
    with shop.connect() as conn:
        for events, basket in batches:
            append_all(shop, STORE, events, basket=basket)
            log += [(happened, basket) for happened in events]
            for _ in range(data.draw(st.integers(0, 2), label="pages")):
                run_page(conn, page_events=data.draw(st.integers(1, 9), label="page_events"))

    Projections(STORE).catch_up(shop, SalesByProduct, page_events=5)

    assert sales(shop) == expected_sales(log)


@pytest.fixture(scope="module")
def client(redis_url: str) -> Iterator[Redis]:
    with Redis.from_url(redis_url) as client:
        client.flushdb()
        yield client


def forget_everything(engine: Engine, client: Redis) -> None:
    # What is lost is read from the beginning: a log that kept growing would make a thousand
    # examples cost a thousand times a thousand.
    with engine.begin() as conn:
        conn.execute(text("SET LOCAL session_replication_role = replica"))  # not append-only
        conn.execute(text("TRUNCATE datapatterns.event, datapatterns.stream"))
        conn.execute(text("DELETE FROM datapatterns.projection_shard"))
        conn.execute(text("DELETE FROM datapatterns.projection"))
    client.flushdb()


@given(BATCHES, st.data())
def test_redis_is_the_fold_of_the_events_whatever_it_loses(
    shop: Engine, client: Redis, batches: list[tuple[list[object], str]], data: st.DataObject
) -> None:
    forget_everything(shop, client)
    projections = Projections(STORE, redis=client)
    older: list[dict[bytes, bytes]] = [{}]
    for events, basket in batches:
        append_all(shop, STORE, events, basket=basket)
        page_events = data.draw(st.integers(1, 9), label="page_events")
        projections.run(shop, Dashboard, pages_max=2, page_events=page_events)
        older.append({key: client.dump(key) or b"" for key in client.scan_iter()})
        if data.draw(st.integers(0, 3), label="lose") == 0:
            back = data.draw(st.sampled_from(older), label="what comes back")
            client.flushdb()
            for key, value in back.items():
                client.restore(key, 0, value)

    projections.catch_up(shop, Dashboard)

    assert projections.verify(shop, Dashboard).differences == []


CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["increment", "put", "remove", "add_score", "set_score", "remove_member"]),
        st.sampled_from(["x", "y"]),
        st.integers(-100, 100),
    ),
    max_size=30,
)


def carry_out(model: dict[Place, int], change: tuple[str, str, int]) -> None:
    kind, field, amount = change
    place = Place("hash" if kind in {"increment", "put", "remove"} else "zset", "s", field)
    if kind in {"remove", "remove_member"}:
        model.pop(place, None)
    elif kind in {"put", "set_score"}:
        model[place] = amount
    else:
        model[place] = model.get(place, 0) + amount


@given(CHANGES, st.lists(st.integers(1, 10), max_size=10))
def test_merged_changes_are_the_same_as_one_after_the_other(
    script: list[tuple[str, str, int]], sizes: list[int]
) -> None:
    model: dict[Place, int] = {}
    for change in script:
        carry_out(model, change)

    content = RedisContent()
    rest = list(script)
    for size in [*sizes, len(script) + 1]:
        page, rest = rest[:size], rest[size:]
        changes = RedisChanges()
        for kind, field, amount in page:
            arguments = () if kind.startswith("remove") else (amount,)
            getattr(changes, kind)("s", field, *arguments)
        content.take(changes.resolved(content.stored(changes.additions())))

    assert {place: int(value) for place, value in content.places().items()} == model


@given(st.integers(1, 10_000), st.data())
def test_halving_finds_the_event_that_fails(length: int, data: st.DataObject) -> None:
    poison = data.draw(st.integers(0, length - 1))
    attempts: list[int] = []

    def attempt(prefix: int) -> Exception | None:
        attempts.append(prefix)
        return ValueError(prefix) if prefix > poison else None

    applicable, error = longest_prefix(length, attempt)

    assert applicable == poison
    assert isinstance(error, ValueError)
    assert error.args == (poison + 1,)
    assert len(attempts) <= length.bit_length() + 2
