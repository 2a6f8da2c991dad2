"""A verification finds exactly the rows that are not what the log says, of those it looks at."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis
from sqlalchemy import Connection, Engine, delete, insert, text, update

from datapatterns.cqrs import Projections
from datapatterns.cqrs.tables.sampling import Sample
from datapatterns.event_sourcing import EventStore
from tests.fixtures.read_models import (
    Dashboard,
    ItemScanned,
    ProductSales,
    SalesByProduct,
    append_all,
    create_tables,
    sales,
)

STORE = EventStore()
PROJECTIONS = Projections(STORE)
PRODUCTS = [f"p{n}" for n in range(40)]

KEYS = st.sampled_from([*PRODUCTS, "nobody", "nothing", "🥛"])
SHARES = st.one_of(st.none(), st.floats(0.05, 1.0))


@pytest.fixture(scope="module")
def shop(module_engine: Engine) -> Engine:
    create_tables(module_engine)
    append_all(
        module_engine, STORE, [ItemScanned(p, n) for n, p in enumerate(PRODUCTS * 3, start=1)]
    )
    PROJECTIONS.catch_up(module_engine, SalesByProduct)
    return module_engine


@pytest.fixture(scope="module")
def right(shop: Engine) -> dict[str, tuple[int, int, str | None]]:
    return sales(shop)


def change(conn: Connection, key: str, cents: int) -> None:
    """Change, delete or make the row of a key."""
    row = ProductSales.product == key
    if cents == 0:
        conn.execute(delete(ProductSales).where(row))
    elif not conn.execute(update(ProductSales).where(row).values(cents=cents)).rowcount:
        conn.execute(insert(ProductSales).values(product=key, quantity=1, cents=cents))


def swap(conn: Connection, left: str, right: str) -> None:
    """Let two rows have each other's sums."""
    conn.execute(
        text(
            "UPDATE product_sales mine SET cents = theirs.cents FROM product_sales theirs"
            " WHERE (mine.product, theirs.product) IN ((:a, :b), (:b, :a))"
        ),
        {"a": left, "b": right},
    )


def restore(conn: Connection, right: dict[str, tuple[int, int, str | None]]) -> None:
    conn.execute(delete(ProductSales))
    names = ("product", "quantity", "cents", "last_basket")
    rows = [dict(zip(names, (key, *row), strict=True)) for key, row in right.items()]
    conn.execute(insert(ProductSales), rows)


@given(
    changes=st.dictionaries(KEYS, st.integers(0, 200), max_size=6),
    swapped=st.lists(st.sampled_from(PRODUCTS), min_size=2, max_size=2, unique=True),
    sample=SHARES,
    seed=st.integers(0, 2**32 - 1),
)
def test_a_table(
    shop: Engine,
    right: dict[str, tuple[int, int, str | None]],
    changes: dict[str, int],
    swapped: list[str],
    sample: float | None,
    seed: int,
) -> None:
    with shop.begin() as conn:
        restore(conn, right)
        swap(conn, *swapped)
        for key, cents in changes.items():
            change(conn, key, cents)
    now = sales(shop)
    differing = {key for key in now.keys() | right.keys() if now.get(key) != right.get(key)}

    found = PROJECTIONS.verify(shop, SalesByProduct, sample=sample, seed=seed, limit=100)

    taken = {key for key in [*PRODUCTS, *now] if sample is None or Sample(sample, seed).takes(key)}
    assert {one.key[0] for one in found.differences} == differing & taken
    assert found.rows == len(right.keys() & taken)
    assert found.share == (sample or 1.0)


@pytest.fixture(scope="module")
def client(redis_url: str) -> Iterator[Redis]:
    with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture(scope="module")
def board(shop: Engine, client: Redis) -> Projections:
    projections = Projections(STORE, redis=client, redis_prefix="verifying")
    projections.catch_up(shop, Dashboard)
    return projections


@given(
    changed=st.dictionaries(st.sampled_from(PRODUCTS), st.integers(1_000, 2_000), max_size=5),
    sample=SHARES,
    seed=st.integers(0, 2**32 - 1),
)
def test_a_read_model_in_redis(
    shop: Engine,
    board: Projections,
    client: Redis,
    changed: dict[str, int],
    sample: float | None,
    seed: int,
) -> None:
    key = "{verifying:dashboard:v1}:hash:cents_by_product"
    for product, cents in changed.items():
        client.hset(key, product, str(cents))

    found = board.verify(shop, Dashboard, sample=sample, seed=seed, limit=100)

    for product in changed:
        client.hset(key, product, str(3 * PRODUCTS.index(product) + 123))
    taken = {
        product
        for product in changed
        if sample is None or Sample(sample, seed).takes(("hash", "cents_by_product", product))
    }
    assert {one.key[2] for one in found.differences} == taken
