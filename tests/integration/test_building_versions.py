"""A version is built beside the live one: whole, alike in all but its rows, and by any manner."""

from collections.abc import Sequence
from typing import Any, TypedDict

import pytest
from sqlalchemy import (
    JSON,
    CheckConstraint,
    Engine,
    ForeignKey,
    Index,
    MetaData,
    Numeric,
    String,
    UniqueConstraint,
    inspect,
    select,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from datapatterns.cqrs import DELETE, Projection, Projections, on
from datapatterns.cqrs.building.beginning import ShadowBuild
from datapatterns.cqrs.building.building_progress import BuildProgress
from datapatterns.errors import (
    LeaseLostError,
    ProjectionDefinitionError,
    ProjectionStoppedError,
    ProjectionVersionError,
)
from datapatterns.event_sourcing import EventStore, RecordedEvent
from datapatterns.failpoints import armed
from tests.fixtures.read_models import (
    DoubledSales,
    ItemScanned,
    ProductSales,
    ProductWithdrawn,
    SalesByProduct,
    append_all,
    create_tables,
    expected_sales,
    sales,
)


class Manner(TypedDict, total=False):
    workers: int
    rows_max: int
    page_events: int


STORE = EventStore()
PROJECTIONS = Projections(STORE)


@pytest.fixture
def shop(engine: Engine) -> Engine:
    create_tables(engine)
    append_all(engine, STORE, [ItemScanned("milk", 10)] * 5 + [ItemScanned("tea", 1)])
    PROJECTIONS.catch_up(engine, SalesByProduct)
    return engine


def statuses(engine: Engine) -> dict[int, str]:
    with engine.begin() as conn:
        return {status.version: status.status for status in PROJECTIONS.status(conn)}


def rows(engine: Engine, statement: str) -> list[tuple[Any, ...]]:
    with engine.begin() as conn:
        return [tuple(row) for row in conn.exec_driver_sql(statement)]


def run_sql(engine: Engine, *statements: str) -> None:
    with engine.begin() as conn:
        for statement in statements:
            conn.exec_driver_sql(statement)


def test_a_version_that_is_not_promoted_follows_the_log_beside_the_live_one(shop: Engine) -> None:
    before = sales(shop)
    PROJECTIONS.rebuild(shop, DoubledSales, promote=False)
    append_all(shop, STORE, [ItemScanned("milk", 10)])
    PROJECTIONS.catch_up(shop, DoubledSales)

    assert sales(shop) == before
    assert statuses(shop) == {1: "live", 2: "ready"}
    found = PROJECTIONS.verify(shop, DoubledSales)
    assert (found.matches, found.position) == (True, 7)
    assert rows(shop, "SELECT quantity FROM product_sales__v2 WHERE product = 'milk'") == [(12,)]
    with shop.begin() as conn:
        assert PROJECTIONS.position(conn, DoubledSales) is None, "nobody can read it yet"


def test_verify_finds_what_is_wrong_before_it_is_promoted(shop: Engine) -> None:
    PROJECTIONS.rebuild(shop, DoubledSales, promote=False)
    run_sql(shop, "UPDATE product_sales__v2 SET cents = 7 WHERE product = 'tea'")

    (difference,) = PROJECTIONS.verify(shop, DoubledSales).differences

    assert difference.key == ("tea",)
    assert difference.table == "product_sales__v2"


@pytest.mark.parametrize(
    "manner",
    [Manner(), {"workers": 3}, {"rows_max": 2}, {"workers": 2, "rows_max": 1}, {"page_events": 1}],
    ids=str,
)
def test_every_manner_of_building_gives_what_a_replay_gives(shop: Engine, manner: Manner) -> None:
    log: list[object] = []
    for number in range(40):
        log.append(ItemScanned(f"p{number % 7}", number))
        if number % 9 == 8:
            log.append(ProductWithdrawn(f"p{number % 5}"))
    append_all(shop, STORE, log)

    class Again(SalesByProduct, into=ProductSales, version=3, name="sales_by_product"):
        pass

    PROJECTIONS.rebuild(shop, Again, **manner)

    told = [ItemScanned("milk", 10)] * 5 + [ItemScanned("tea", 1), *log]
    assert sales(shop) == expected_sales([(happened, "1") for happened in told])
    assert PROJECTIONS.verify(shop, Again).matches


def test_an_empty_log_is_built_and_promoted_too(engine: Engine) -> None:
    create_tables(engine)
    PROJECTIONS.catch_up(engine, SalesByProduct)

    done = PROJECTIONS.rebuild(engine, DoubledSales, workers=2)

    assert (done.events, done.position) == (0, 0)
    assert statuses(engine) == {1: "standby", 2: "live"}
    append_all(engine, STORE, [ItemScanned("milk", 10)])
    PROJECTIONS.catch_up(engine, DoubledSales)
    assert sales(engine) == {"milk": (2, 20, "1")}


def test_a_log_that_gives_no_row_is_built_and_promoted_too(shop: Engine) -> None:
    class Nothing(Projection, into=ProductSales, version=2, name="sales_by_product"):
        @on(ItemScanned, key=lambda e, _: e.product)
        def _(self, _row: ProductSales, _e: ItemScanned, _meta: RecordedEvent) -> object:
            return DELETE

    PROJECTIONS.rebuild(shop, Nothing)

    assert sales(shop) == {}


def test_progress_is_told_with_rate_and_time_left(shop: Engine) -> None:
    told: list[BuildProgress] = []

    PROJECTIONS.rebuild(shop, DoubledSales, page_events=2, on_progress=told.append)

    assert [progress.events for progress in told] == [2, 4, 6]
    assert [progress.share for progress in told] == [2 / 6, 4 / 6, 1.0]
    assert told[-1].seconds_left == 0
    assert all(progress.events_per_second > 0 for progress in told)


def test_progress_in_place_is_told_as_well(shop: Engine) -> None:
    told: list[BuildProgress] = []

    PROJECTIONS.rebuild(shop, SalesByProduct, page_events=2, on_progress=told.append)

    assert [progress.events for progress in told] == [2, 4, 6]
    assert [progress.share for progress in told] == [2 / 6, 4 / 6, 1.0]


# What cannot be built ------------------------------------------------------------------------


def test_a_handler_that_fails_names_the_event_and_changes_nothing(shop: Engine) -> None:
    class Picky(Projection, into=ProductSales, version=2, name="sales_by_product"):
        @on(ItemScanned, key=lambda e, _: e.product)
        def _(self, _row: ProductSales, e: ItemScanned, _meta: RecordedEvent) -> None:
            if e.product == "tea":
                raise LookupError(e.product)

    before = sales(shop)
    with pytest.raises(ProjectionStoppedError) as stopped:
        PROJECTIONS.rebuild(shop, Picky, page_events=4)

    assert stopped.value.position == 6
    assert sales(shop) == before
    assert statuses(shop) == {1: "live", 2: "building"}
    PROJECTIONS.rebuild(shop, DoubledSales)  # mended
    assert sales(shop)["tea"] == (2, 2, "1")


def test_a_table_that_refuses_a_row_names_the_event_and_changes_nothing(shop: Engine) -> None:
    class Indebted(Projection, into=ProductSales, version=2, name="sales_by_product"):
        @on(ItemScanned, key=lambda e, _: e.product)
        def _(self, row: ProductSales, e: ItemScanned, _meta: RecordedEvent) -> None:
            row.cents -= 1 if e.product == "tea" else 0

    before = sales(shop)
    with pytest.raises(ProjectionStoppedError, match="not_negative") as stopped:
        PROJECTIONS.rebuild(shop, Indebted)

    assert stopped.value.position == 6
    assert sales(shop) == before


def test_a_policy_for_poison_goes_for_builds_as_well(shop: Engine) -> None:
    class Skipping(
        Projection, into=ProductSales, version=2, name="sales_by_product", on_poison="skip"
    ):
        @on(ItemScanned, key=lambda e, _: e.product)
        def _(self, row: ProductSales, e: ItemScanned, _meta: RecordedEvent) -> None:
            if e.product == "tea":
                raise LookupError(e.product)
            row.quantity += 1

    PROJECTIONS.rebuild(shop, Skipping)

    assert sales(shop) == {"milk": (5, 0, None)}


def test_of_two_who_build_the_later_one_wins(shop: Engine) -> None:
    def build_too(_progress: BuildProgress) -> None:
        PROJECTIONS.rebuild(shop, DoubledSales, promote=False)

    with pytest.raises(LeaseLostError):
        PROJECTIONS.rebuild(shop, DoubledSales, on_progress=build_too)

    assert statuses(shop) == {1: "live", 2: "ready"}
    assert PROJECTIONS.verify(shop, DoubledSales).matches


def test_who_finishes_does_not_take_the_empty_tables_of_another_for_built(shop: Engine) -> None:
    def begin_anew() -> None:
        with shop.begin() as conn:
            ShadowBuild(STORE.schema, DoubledSales).begin(conn, segments=1)

    with armed("build.segments-built", begin_anew), pytest.raises(LeaseLostError):
        PROJECTIONS.rebuild(shop, DoubledSales)

    assert statuses(shop) == {1: "live", 2: "building"}
    assert sales(shop)["milk"][0] == 5


def test_a_table_that_has_the_name_by_chance_is_left_alone(shop: Engine) -> None:
    run_sql(shop, "CREATE TABLE product_sales__v2 AS SELECT 'mine' AS whose")

    with pytest.raises(ProjectionDefinitionError, match="product_sales__v2"):
        PROJECTIONS.rebuild(shop, DoubledSales)

    assert rows(shop, "SELECT whose FROM product_sales__v2") == [("mine",)]


def test_a_partitioned_table_cannot_be_swapped(engine: Engine) -> None:
    run_sql(
        engine,
        "CREATE TABLE product_sales (product varchar(20) PRIMARY KEY, quantity int NOT NULL,"
        " cents bigint NOT NULL, last_basket text) PARTITION BY HASH (product)",
        "CREATE TABLE product_sales_0 PARTITION OF product_sales"
        " FOR VALUES WITH (MODULUS 1, REMAINDER 0)",
    )
    append_all(engine, STORE, [ItemScanned("milk", 10)])
    PROJECTIONS.catch_up(engine, SalesByProduct)

    with pytest.raises(ProjectionDefinitionError, match="partitioned"):
        PROJECTIONS.rebuild(engine, DoubledSales)
    PROJECTIONS.rebuild(engine, SalesByProduct)  # in place, as ever

    assert sales(engine) == {"milk": (1, 10, "1")}


def test_what_is_half_built_nobody_runs(shop: Engine) -> None:
    def run_it(_progress: BuildProgress) -> None:
        with pytest.raises(ProjectionVersionError):
            PROJECTIONS.run(shop, DoubledSales)
        with pytest.raises(ProjectionVersionError):
            PROJECTIONS.verify(shop, DoubledSales)

    PROJECTIONS.rebuild(shop, DoubledSales, on_progress=run_it)

    assert sales(shop)["milk"][0] == 10


# Tables of all kinds --------------------------------------------------------------------------


class Old(DeclarativeBase):
    metadata = MetaData(schema='Odd "%(s)s: schema')


class New(DeclarativeBase):
    metadata = MetaData(schema=Old.metadata.schema)


ODD = 'Sales "per" %(day)s: €' + "x" * 37


class OldDepartment(Old):
    __tablename__ = "department"
    number: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(default="?", unique=True)


class OldSales(Old):
    __tablename__ = ODD
    department: Mapped[int] = mapped_column(ForeignKey(OldDepartment.number), primary_key=True)
    product: Mapped[str] = mapped_column("Product : %", primary_key=True)
    quantity: Mapped[int] = mapped_column(default=0, index=True)
    dropped: Mapped[int] = mapped_column(default=0)


class NewDepartment(New):
    __tablename__ = "department"
    number: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(default="?", unique=True)
    latest: Mapped[dict[str, Any] | None] = mapped_column(JSON)


class NewSales(New):
    __tablename__ = ODD
    __table_args__ = (
        CheckConstraint("amount >= 0", "amount_is_positive"),
        UniqueConstraint("Product : %", "department"),
        Index("ix_of_the_new", "amount", postgresql_where=text("amount > 5")),
    )
    department: Mapped[int] = mapped_column(
        ForeignKey(NewDepartment.number, ondelete="CASCADE"), primary_key=True
    )
    product: Mapped[str] = mapped_column("Product : %", primary_key=True)
    amount: Mapped[Any] = mapped_column(Numeric(12, 2), default=0, index=True)
    note: Mapped[str | None] = mapped_column(String(40))


class OldSummary(Projection, into=(OldDepartment, OldSales), version=1, name="summary"):
    @on(ItemScanned, into=OldDepartment, key=lambda e, _: len(e.product))
    def _(self, row: OldDepartment, _e: ItemScanned, _meta: RecordedEvent) -> None:
        row.name = f"department {row.number}"

    @on(ItemScanned, into=OldSales, key=lambda e, _: (len(e.product), e.product))
    def _(self, row: OldSales, _e: ItemScanned, _meta: RecordedEvent) -> None:
        row.quantity += 1


class NewSummary(Projection, into=(NewDepartment, NewSales), version=2, name="summary"):
    @on(ItemScanned, into=NewDepartment, key=lambda e, _: len(e.product))
    def _(self, row: NewDepartment, e: ItemScanned, _meta: RecordedEvent) -> None:
        row.name = f"department {row.number}"
        row.latest = {"product": e.product, "é": [None, 1.5]}

    @on(ItemScanned, into=NewSales, key=lambda e, _: (len(e.product), e.product))
    def _(self, row: NewSales, e: ItemScanned, _meta: RecordedEvent) -> None:
        row.amount += e.cents
        row.note = "tab\tand \\ and \n and €"


@pytest.fixture
def summary(engine: Engine) -> Engine:
    schema = engine.dialect.identifier_preparer.quote(str(Old.metadata.schema))
    with engine.begin() as conn:
        conn.exec_driver_sql(f"CREATE SCHEMA {schema}")
    Old.metadata.create_all(engine)
    with engine.begin() as conn:
        conn.exec_driver_sql(f"GRANT USAGE ON SCHEMA {schema} TO PUBLIC")
        conn.exec_driver_sql(f"GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO PUBLIC")
    append_all(engine, STORE, [ItemScanned("milk", 10), ItemScanned("tea", 3)] * 3)
    PROJECTIONS.catch_up(engine, OldSummary)
    return engine


def structure(engine: Engine, base: type[DeclarativeBase]) -> dict[str, object]:
    """Return all that has a name, as PostgreSQL tells it."""
    looked = inspect(engine)
    schema = base.metadata.schema
    return {
        table: (
            looked.get_pk_constraint(table, schema),
            sorted(map(str, looked.get_foreign_keys(table, schema))),
            sorted(map(str, looked.get_indexes(table, schema))),
            sorted(map(str, looked.get_unique_constraints(table, schema))),
            sorted(map(str, looked.get_check_constraints(table, schema))),
            [str(column) for column in looked.get_columns(table, schema)],
        )
        for table in sorted(str(table.name) for table in base.metadata.tables.values())
    }


@pytest.mark.parametrize("manner", [{}, {"workers": 2, "rows_max": 1}], ids=str)
def test_tables_with_other_columns_take_the_place_whatever_they_are_called(
    summary: Engine, manner: Manner
) -> None:
    PROJECTIONS.rebuild(summary, NewSummary, **manner)

    with summary.begin() as conn:
        amounts = conn.execute(
            select(NewSales.product, NewSales.amount, NewSales.note).order_by(NewSales.product)
        ).all()
        milk = select(NewDepartment.latest).where(NewDepartment.number == len("milk"))
        latest = conn.scalar(milk)
    assert [tuple(row) for row in amounts] == [
        ("milk", 30, "tab\tand \\ and \n and €"),
        ("tea", 9, "tab\tand \\ and \n and €"),
    ]
    assert latest == {"product": "milk", "é": [None, 1.5]}
    assert PROJECTIONS.verify(summary, NewSummary).matches
    assert PROJECTIONS.verify(summary, OldSummary).matches


def test_the_live_tables_are_what_create_all_would_have_made(summary: Engine) -> None:
    before = structure(summary, Old)
    PROJECTIONS.rebuild(summary, NewSummary)
    promoted = structure(summary, New)
    PROJECTIONS.rollback(summary, OldSummary)
    after = structure(summary, Old)
    PROJECTIONS.retire(summary, NewSummary)
    with summary.begin() as conn:
        Old.metadata.drop_all(conn)
        New.metadata.create_all(conn)
    made = structure(summary, New)

    assert after == before
    assert promoted == made


def test_versions_go_to_and_fro(summary: Engine) -> None:
    for _ in range(2):
        append_all(summary, STORE, [ItemScanned("salt", 2)])
        PROJECTIONS.catch_up(summary, OldSummary)
        PROJECTIONS.rebuild(summary, NewSummary)
        PROJECTIONS.rollback(summary, OldSummary)
        PROJECTIONS.promote(summary, NewSummary)
        PROJECTIONS.rollback(summary, OldSummary)
        with summary.begin() as conn:
            counted = conn.scalars(select(OldSales.quantity).order_by(OldSales.product)).all()
        assert sum(counted) == len(_log(summary))
        assert PROJECTIONS.verify(summary, OldSummary).matches
        assert PROJECTIONS.verify(summary, NewSummary).matches


def _log(engine: Engine) -> Sequence[RecordedEvent]:
    with engine.begin() as conn:
        return STORE.read_log(conn, limit=1_000).events
