"""Verify: what is compared, as of when, and whom it holds up."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import (
    JSON,
    Connection,
    Engine,
    Float,
    Numeric,
    Select,
    create_engine,
    event,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import BIT, JSONB, TIMESTAMP
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from datapatterns.cqrs import AnyProjection, Projection, ProjectionProgress, Projections, on
from datapatterns.cqrs.running.modes import read_mode
from datapatterns.cqrs.schema import ProjectionTables
from datapatterns.cqrs.tables import checksums
from datapatterns.cqrs.tables.differences import count_rows
from datapatterns.cqrs.tables.stored_rows import Suspects
from datapatterns.errors import (
    ProjectionDefinitionError,
    ProjectionVersionError,
    ReadModelBuildingError,
    ReadModelMovedError,
)
from datapatterns.event_sourcing import EventStore, RecordedEvent
from tests.fixtures.read_models import (
    ItemScanned,
    ProductSales,
    SalesByProduct,
    append_all,
    create_tables,
    sales,
)
from tests.fixtures.set_models import Base as SetBase
from tests.fixtures.set_models import TotalByProduct

pytestmark = pytest.mark.postgres

STORE = EventStore()
PROJECTIONS = Projections(STORE)
MOMENT = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
def shop(engine: Engine) -> Engine:
    create_tables(engine)
    append_all(engine, STORE, [ItemScanned(f"p{n}", n) for n in range(1, 21)] * 2)
    PROJECTIONS.catch_up(engine, SalesByProduct)
    return engine


@contextmanager
def when(engine: Engine, part: str, act: Callable[[], None]) -> Iterator[Engine]:
    """Give an engine that does ``act``, once, before it sends a statement with ``part``."""
    watched, acted = create_engine(engine.url), list[str]()

    def look(_conn: object, _cursor: object, statement: str, *_: object) -> None:
        if part in statement and not acted:
            acted.append(statement)
            with ThreadPoolExecutor(1) as somebody_else:
                somebody_else.submit(act).result()

    event.listen(watched, "before_cursor_execute", look)
    try:
        yield watched
    finally:
        watched.dispose()
    assert acted


def execute(engine: Engine, statement: str) -> None:
    with engine.begin() as conn:
        conn.execute(text(statement))


def test_a_report_says_what_was_compared(shop: Engine) -> None:
    pages: list[ProjectionProgress] = []

    found = PROJECTIONS.verify(shop, SalesByProduct, page_events=7, on_page=pages.append)

    assert (found.matches, found.position, found.rows, found.share) == (True, 40, 20, 1.0)
    assert (found.seed, found.parked, found.skipped) == (None, 0, 0)
    assert len(found.checksum) == 16
    assert sum(page.events for page in pages) == 40
    assert PROJECTIONS.verify(shop, SalesByProduct).checksum == found.checksum


def test_two_rows_that_swapped_a_value_are_found(shop: Engine) -> None:
    execute(shop, "UPDATE product_sales SET cents = 6 - cents WHERE product IN ('p1', 'p2')")

    found = PROJECTIONS.verify(shop, SalesByProduct)

    assert [one.key for one in found.differences] == [("p1",), ("p2",)]
    assert found.differences[0].table == "product_sales"


def test_only_so_many_differences_are_told(shop: Engine) -> None:
    execute(shop, "UPDATE product_sales SET cents = 0")

    found = PROJECTIONS.verify(shop, SalesByProduct, limit=3)

    assert [one.key[0] for one in found.differences] == ["p1", "p10", "p11"]


def test_rows_are_copied_only_where_checksums_differ(
    shop: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[int] = []
    take = Suspects.take

    def counting(
        self: Suspects, conn: Connection, source: Connection, table: type, rows: Select[Any]
    ) -> None:
        take(self, conn, source, table, rows)
        copied.append(count_rows(conn, self.models[table]))

    monkeypatch.setattr(Suspects, "take", counting)

    assert PROJECTIONS.verify(shop, SalesByProduct).matches
    assert copied == []

    execute(shop, "UPDATE product_sales SET cents = 0 WHERE product = 'p7'")
    assert len(PROJECTIONS.verify(shop, SalesByProduct).differences) == 1
    assert len(copied) == 1
    assert copied[0] < 20


def test_runners_go_on_while_rows_are_compared(shop: Engine) -> None:
    def scan() -> None:
        append_all(shop, STORE, [ItemScanned("p1", 1)])
        PROJECTIONS.catch_up(shop, SalesByProduct, timeout_seconds=20)

    with when(shop, "hash_record_extended", scan) as watched:
        found = PROJECTIONS.verify(watched, SalesByProduct)

    assert sales(shop)["p1"] == (3, 3, "1")
    assert (found.matches, found.position) == (True, 40)


def test_what_a_runner_did_before_the_snapshot_is_replayed_too(shop: Engine) -> None:
    def scan() -> None:
        append_all(shop, STORE, [ItemScanned("p1", 1)])
        PROJECTIONS.catch_up(shop, SalesByProduct)

    with when(shop, "LOCK TABLE", scan) as watched:
        found = PROJECTIONS.verify(watched, SalesByProduct)

    assert (found.matches, found.position) == (True, 41)


def test_segments_may_be_at_different_positions(shop: Engine) -> None:
    execute(
        shop,
        "UPDATE datapatterns.projection_shard SET mask = 3;"
        " INSERT INTO datapatterns.projection_shard (name, version, shard, mask, position)"
        " SELECT name, version, other, mask, position"
        " FROM datapatterns.projection_shard, generate_series(1, 3) other",
    )
    append_all(shop, STORE, [ItemScanned(f"p{n}", n) for n in range(1, 21)])
    execute(
        shop,
        "UPDATE datapatterns.projection_shard SET owner = 'somebody',"
        " lease_until = now() + interval '1 hour' WHERE shard IN (1, 2)",
    )
    PROJECTIONS.run(shop, SalesByProduct)

    found = PROJECTIONS.verify(shop, SalesByProduct)

    assert {row[0] for row in sales(shop).values()} == {2, 3}
    assert found.matches


@pytest.mark.parametrize("status", ["standby", "ready"])
def test_a_version_that_is_not_live_is_compared_in_its_own_table(shop: Engine, status: str) -> None:
    execute(shop, "ALTER TABLE product_sales RENAME TO product_sales__v1")
    with shop.begin() as conn:
        conn.execute(text("UPDATE datapatterns.projection SET status = :now"), {"now": status})

    assert PROJECTIONS.verify(shop, SalesByProduct).matches
    execute(shop, "UPDATE product_sales__v1 SET cents = 0 WHERE product = 'p3'")
    (difference,) = PROJECTIONS.verify(shop, SalesByProduct).differences

    assert (difference.key, difference.table) == (("p3",), "product_sales__v1")


def test_a_version_that_is_not_whole_is_not_compared(shop: Engine) -> None:
    execute(shop, "UPDATE datapatterns.projection SET status = 'building'")

    with pytest.raises(ReadModelBuildingError):
        PROJECTIONS.verify(shop, SalesByProduct)


def test_a_version_that_another_replaced_meanwhile_is_told(shop: Engine) -> None:
    def put_aside() -> None:
        execute(
            shop,
            "ALTER TABLE product_sales RENAME TO product_sales__v1;"
            " CREATE TABLE product_sales (LIKE product_sales__v1);"
            " UPDATE datapatterns.projection SET status = 'standby'",
        )

    with (
        when(shop, "LOCK TABLE", put_aside) as watched,
        pytest.raises(ReadModelMovedError) as moved,
    ):
        PROJECTIONS.verify(watched, SalesByProduct)

    assert "was live, and became standby" in str(moved.value)
    assert PROJECTIONS.verify(shop, SalesByProduct).matches


class Next(Projection, into=ProductSales, version=2, name="sales_by_product"):
    @on(ItemScanned, key=lambda e, _: e.product)
    def _(self, row: ProductSales, _e: ItemScanned, _meta: RecordedEvent) -> None:
        row.quantity += 2


def test_a_version_can_be_verified_before_and_after_it_is_promoted(shop: Engine) -> None:
    PROJECTIONS.rebuild(shop, Next, promote=False)
    ready = PROJECTIONS.verify(shop, Next)
    execute(shop, "UPDATE product_sales__v2 SET quantity = 0 WHERE product = 'p3'")
    spoiled = PROJECTIONS.verify(shop, Next, sample=1.0)
    execute(shop, "UPDATE product_sales__v2 SET quantity = 4 WHERE product = 'p3'")

    def promote() -> None:
        PROJECTIONS.promote(shop, Next)

    with (
        when(shop, "LOCK TABLE", promote) as watched,
        pytest.raises(ReadModelMovedError, match="was ready, and became live"),
    ):
        PROJECTIONS.verify(watched, Next)
    append_all(shop, STORE, [ItemScanned("p3", 3)])
    PROJECTIONS.catch_up(shop, Next)
    PROJECTIONS.catch_up(shop, SalesByProduct)

    assert (ready.matches, ready.rows) == (True, 20)
    assert [(one.table, one.key) for one in spoiled.differences] == [("product_sales__v2", ("p3",))]
    assert PROJECTIONS.verify(shop, Next).position == 41
    assert PROJECTIONS.verify(shop, Next).matches
    assert PROJECTIONS.verify(shop, SalesByProduct).matches


def test_tables_are_not_swapped_while_they_are_compared(shop: Engine) -> None:
    refused: list[str] = []

    def swap() -> None:
        try:
            execute(
                shop,
                "SET LOCAL lock_timeout = '50ms';"
                " ALTER TABLE product_sales RENAME TO product_sales__v1",
            )
        except Exception as error:  # noqa: BLE001 -- whatever it is, it is looked at below
            refused.append(str(error))

    with when(shop, "hash_record_extended", swap) as watched:
        assert PROJECTIONS.verify(watched, SalesByProduct).matches

    assert "lock timeout" in refused[0]


def test_a_switch_to_inline_meanwhile_is_told(
    shop: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[str | None] = []

    def read_and_switch(
        conn: Connection, tables: ProjectionTables, projection: type[AnyProjection]
    ) -> str | None:
        modes.append(read_mode(conn, tables, projection))
        if len(modes) == 2:  # at once before the snapshot
            PROJECTIONS.make_inline(shop, SalesByProduct)
        return modes[-1]

    monkeypatch.setattr("datapatterns.cqrs.tables.verifying.read_mode", read_and_switch)
    with pytest.raises(ReadModelMovedError, match="another way"):
        PROJECTIONS.verify(shop, SalesByProduct)

    assert PROJECTIONS.verify(shop, SalesByProduct).matches


def test_a_sample_is_chosen_anew_each_time_unless_its_seed_is_given(shop: Engine) -> None:
    found = PROJECTIONS.verify(shop, SalesByProduct, sample=0.5)
    again = PROJECTIONS.verify(shop, SalesByProduct, sample=0.5, seed=found.seed)
    others = {PROJECTIONS.verify(shop, SalesByProduct, sample=0.5).checksum for _ in range(3)}

    assert found.matches
    assert 0 < found.rows < 20
    assert (again.rows, again.checksum) == (found.rows, found.checksum)
    assert others - {found.checksum}


def test_a_sample_may_be_a_number_of_rows(shop: Engine) -> None:
    assert PROJECTIONS.verify(shop, SalesByProduct, sample=5).share == 0.25
    assert PROJECTIONS.verify(shop, SalesByProduct, sample=50).rows == 20


@pytest.mark.parametrize("sample", [0, -1, 0.0, -0.1, 1.1, float("nan")])
def test_what_is_no_sample_is_refused(shop: Engine, sample: float) -> None:
    with pytest.raises(ValueError, match="ask for"):
        PROJECTIONS.verify(shop, SalesByProduct, sample=sample)


def test_what_is_no_seed_is_refused(shop: Engine) -> None:
    with pytest.raises(ValueError, match="seed"):
        PROJECTIONS.verify(shop, SalesByProduct, sample=0.5, seed=-1)


def test_statements_cannot_be_verified_by_a_sample(shop: Engine) -> None:
    SetBase.metadata.create_all(shop)
    PROJECTIONS.catch_up(shop, TotalByProduct)

    with pytest.raises(ProjectionDefinitionError, match="verify all of it"):
        PROJECTIONS.verify(shop, TotalByProduct, sample=0.5)

    assert PROJECTIONS.verify(shop, TotalByProduct).matches
    execute(shop, "DELETE FROM product_total WHERE product = 'p9'")
    (difference,) = PROJECTIONS.verify(shop, TotalByProduct).differences
    assert (difference.key, difference.stored) == (("p9",), None)


def test_nothing_is_left_behind(shop: Engine) -> None:
    execute(shop, "UPDATE product_sales SET cents = 0")
    one = create_engine(shop.url, pool_size=2, max_overflow=0)
    for _ in range(2):
        PROJECTIONS.verify(one, SalesByProduct)
        PROJECTIONS.verify(one, SalesByProduct, sample=0.5)
    with one.connect() as first, one.connect() as second:
        left = [
            conn.scalar(text("SELECT count(*) FROM pg_class WHERE relpersistence = 't'"))
            for conn in (first, second)
        ]
    one.dispose()

    assert left == [0, 0]


class Base(DeclarativeBase):
    pass


class Kinds(Base):
    """A row of columns that can hold one value in several ways."""

    __tablename__ = 'kinds "of" 100% things: all'
    key: Mapped[Decimal] = mapped_column(Numeric, primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    amount: Mapped[Decimal | None] = mapped_column(Numeric)
    share: Mapped[float | None] = mapped_column(Float)
    at: Mapped[datetime | None] = mapped_column(TIMESTAMP(timezone=True))
    told: Mapped[Any] = mapped_column(JSON, default=None)
    known: Mapped[Any] = mapped_column(JSONB, default=None)
    nothing: Mapped[str | None]


class InKinds(Projection, into=Kinds, version=1):
    @on(ItemScanned, key=lambda e, _: (Decimal(e.cents), e.product))
    def _(self, row: Kinds, e: ItemScanned, _meta: RecordedEvent) -> None:
        row.amount = Decimal("1.0")
        row.share = float("nan") if e.cents % 2 else 0.0
        row.at = MOMENT
        row.told = row.known = {"a": 1, "b": [1.0, None]}


_SAID_OTHERWISE = """
UPDATE "kinds ""of"" 100%% things: all"
   SET key = key + 0.00, amount = 1.000, at = '2026-01-01 13:00+01',
       share = CASE share WHEN 0 THEN '-0' ELSE share END,
       told = '{"b": [1.0,  null], "a": 1}'
"""


def test_values_that_are_equal_for_the_server_have_one_checksum(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    Base.metadata.create_all(engine)
    append_all(engine, STORE, [ItemScanned("a", 1), ItemScanned("b", 2)])
    PROJECTIONS.catch_up(engine, InKinds)
    with engine.begin() as conn:
        conn.exec_driver_sql(_SAID_OTHERWISE)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the checksums differ")

    with monkeypatch.context() as patched:
        patched.setattr("datapatterns.cqrs.tables.comparing.find_differences", never)
        assert PROJECTIONS.verify(engine, InKinds).matches
        assert PROJECTIONS.verify(engine, InKinds, sample=1.0).matches

    with engine.begin() as conn:
        conn.execute(update(Kinds).where(Kinds.name == "a").values(nothing=""))
    for found in (
        PROJECTIONS.verify(engine, InKinds),
        PROJECTIONS.verify(engine, InKinds, sample=1.0),
    ):
        (difference,) = found.differences
        assert difference.key == (1, "a")
        assert difference.table == Kinds.__tablename__


class BitBase(DeclarativeBase):
    pass


class Flags(BitBase):
    __tablename__ = "flags"
    product: Mapped[str] = mapped_column(primary_key=True)
    flags: Mapped[str | None] = mapped_column(BIT(3))


class FlagsByProduct(Projection, into=Flags, version=1):
    @on(ItemScanned, key=lambda e, _: e.product)
    def _(self, row: Flags, _e: ItemScanned, _meta: RecordedEvent) -> None:
        row.flags = None


@pytest.mark.parametrize("sample", [None, 1.0])
def test_types_without_a_hash_are_compared_row_by_row(engine: Engine, sample: float | None) -> None:
    BitBase.metadata.create_all(engine)
    append_all(engine, STORE, [ItemScanned("a", 1), ItemScanned("b", 2)])
    PROJECTIONS.catch_up(engine, FlagsByProduct)

    found = PROJECTIONS.verify(engine, FlagsByProduct, sample=sample)
    assert (found.matches, found.rows, found.checksum) == (True, 2, "")

    execute(engine, "UPDATE flags SET flags = B'101' WHERE product = 'b'")
    (difference,) = PROJECTIONS.verify(engine, FlagsByProduct, sample=sample).differences
    assert difference.key == ("b",)


def test_another_type_than_the_mapping_says_is_no_difference(shop: Engine) -> None:
    execute(shop, "ALTER TABLE product_sales ALTER cents TYPE numeric(20, 2)")

    assert PROJECTIONS.verify(shop, SalesByProduct).matches
    execute(shop, "UPDATE product_sales SET cents = cents + 0.01 WHERE product = 'p5'")
    assert [d.key for d in PROJECTIONS.verify(shop, SalesByProduct).differences] == [("p5",)]


def test_buckets_are_a_power_of_two() -> None:
    assert checksums.BUCKETS.bit_count() == 1


def test_another_version_is_not_compared_with(shop: Engine) -> None:
    with pytest.raises(ProjectionVersionError):
        PROJECTIONS.verify(shop, Next)
