"""A read model that parks is the fold without the rows that wait; mended, it is the fold of all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, delete, text

from datapatterns.cqrs import Projections
from datapatterns.cqrs.running.segments import key_digest
from datapatterns.cqrs.tables import poison
from datapatterns.event_sourcing import EventStore
from tests.fixtures.effort import dear
from tests.fixtures.poisoned import (
    Base,
    Sales,
    Sold,
    contents,
    folded,
    nothing_refused,
    projection_of,
)
from tests.fixtures.read_models import append_all

pytestmark = pytest.mark.postgres

STORE = EventStore()
PROJECTIONS = Projections(STORE)
PARKS = projection_of("park", messages=True)
MENDED = projection_of("park", mended=True, messages=True)
SKIPS = projection_of("skip")
PRODUCTS = st.sampled_from(["milk", "bröd", "茶", "", "a'b%c:d"])
EVENTS = st.builds(
    Sold,
    st.lists(PRODUCTS, max_size=4),
    st.sampled_from([1, 2, 600_000]),  # two of which are more than the table allows
    st.lists(PRODUCTS, max_size=2),
)

BATCHES = st.lists(st.lists(EVENTS, min_size=1, max_size=6), min_size=1, max_size=5)


@pytest.fixture(scope="module")
def shop(module_engine: Engine) -> Engine:
    Base.metadata.create_all(module_engine)
    PROJECTIONS.catch_up(module_engine, PARKS)
    return module_engine


def start_again(engine: Engine, *, segments: int) -> None:
    with engine.begin() as conn:
        conn.execute(delete(Sales))
        for table in ("projection_parked", "projection_skipped", "projection_shard", "outbox"):
            conn.execute(text(f"DELETE FROM datapatterns.{table}"))  # noqa: S608 -- ours
        # The log of earlier examples stays; this one begins behind it.
        conn.execute(
            text(
                "INSERT INTO datapatterns.projection_shard (name, version, shard, mask, position)"
                " SELECT 'selling', 1, shard, CAST(:segments AS int) - 1, :mark"
                " FROM generate_series(0, CAST(:segments AS int) - 1) shard"
            ),
            {"mark": STORE.high_water_mark(conn), "segments": segments},
        )


def refusing(events: list[Sold]) -> tuple[dict[str, tuple[int, int]], dict[str, int]]:
    """Fold one event at a time, with what the handler refuses and what the table does."""
    cents: dict[str, int] = {}

    def refuses(one: Sold, product: str) -> bool:
        if product in one.bad or cents.get(product, 0) + one.cents >= 10**6:
            return True
        cents[product] = cents.get(product, 0) + one.cents
        return False

    return folded(events, refuses)


def waiting(engine: Engine) -> dict[bytes, int]:
    with engine.begin() as conn:
        parked = PROJECTIONS.parked(conn)
        counted = conn.scalar(text("SELECT sum(parked) FROM datapatterns.projection_shard"))
        assert sum(one.events for one in parked) == counted
        return {one.key_digest: one.events for one in parked}


def told(engine: Engine) -> dict[str, list[int]]:
    with engine.begin() as conn:
        rows = conn.scalars(text("SELECT payload FROM datapatterns.outbox ORDER BY id")).all()
    positions: dict[str, list[int]] = {}
    for row in rows:
        positions.setdefault(row["product"], []).append(row["position"])
    return positions


@dear
@given(BATCHES, st.data())
def test_what_is_parked_is_what_the_fold_refuses_and_its_later_events(
    shop: Engine, batches: list[list[Sold]], data: st.DataObject
) -> None:
    start_again(shop, segments=data.draw(st.sampled_from([1, 2, 4])))
    events: list[Sold] = []
    for batch in batches:
        append_all(shop, STORE, batch)
        events += batch
        PROJECTIONS.catch_up(shop, PARKS, page_events=data.draw(st.integers(1, 8)))
        if data.draw(st.booleans()):  # with nothing mended, nothing changes
            PROJECTIONS.retry(shop, PARKS, page_events=data.draw(st.integers(1, 3)))

        sales, refused = refusing(events)
        assert contents(shop) == sales
        assert waiting(shop) == {key_digest(product): n for product, n in refused.items()}
        assert {product: len(found) for product, found in told(shop).items()} == {
            product: number for product, (number, _) in sales.items()
        }

    with shop.begin() as conn:
        conn.execute(text("ALTER TABLE sales DROP CONSTRAINT affordable"))
    try:
        PROJECTIONS.retry(shop, MENDED, page_events=data.draw(st.integers(1, 3)))
        assert contents(shop) == folded(events, nothing_refused)[0]
        assert waiting(shop) == {}
        assert all(found == sorted(set(found)) for found in told(shop).values())
    finally:
        with shop.begin() as conn:
            conn.execute(delete(Sales))
            conn.execute(
                text("ALTER TABLE sales ADD CONSTRAINT affordable CHECK (cents < 1000000)")
            )


@dear
@given(BATCHES, st.integers(1, 8), st.integers(1, 20))
def test_what_is_skipped_is_left_out_of_its_row_alone(
    shop: Engine, batches: list[list[Sold]], page_events: int, attempts_max: int
) -> None:
    start_again(shop, segments=1)
    events = [one for batch in batches for one in batch]
    append_all(shop, STORE, events)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(poison, "ATTEMPTS_MAX", attempts_max)
        PROJECTIONS.catch_up(shop, SKIPS, page_events=page_events)

    sales: dict[str, tuple[int, int]] = {}
    skipped = 0
    for one in events:
        for product in dict.fromkeys(one.products):
            number, cents = sales.get(product, (0, 0))
            if product in one.bad or cents + one.cents >= 10**6:
                skipped += 1
            else:
                sales[product] = number + 1, cents + one.cents
    assert contents(shop) == sales
    with shop.begin() as conn:
        assert len(PROJECTIONS.skipped(conn)) == skipped
