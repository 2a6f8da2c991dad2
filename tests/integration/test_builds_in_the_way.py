"""What a build meets that is no matter of its rows: limits, rights, and those who end it."""

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import JSON, CheckConstraint, Engine, create_engine, event, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from datapatterns.cqrs import Projection, Projections, on
from datapatterns.errors import (
    LeaseLostError,
    MissingRightsError,
    ProjectionDefinitionError,
    PromotionRefusedError,
)
from datapatterns.event_sourcing import EventStore, RecordedEvent
from datapatterns.failpoints import armed
from tests.fixtures.read_models import (
    DoubledSales,
    ItemScanned,
    ProductSales,
    SalesByProduct,
    append_all,
    create_tables,
    sales,
)

pytestmark = pytest.mark.postgres

STORE = EventStore()
PROJECTIONS = Projections(STORE)


@pytest.fixture
def shop(engine: Engine) -> Engine:
    """Version 1 is live."""
    create_tables(engine)
    append_all(engine, STORE, [ItemScanned("milk", 10)] * 5 + [ItemScanned("tea", 1)])
    PROJECTIONS.catch_up(engine, SalesByProduct)
    return engine


def run_sql(engine: Engine, *statements: str) -> None:
    with engine.begin() as conn:
        for statement in statements:
            conn.exec_driver_sql(statement)


class Base(DeclarativeBase):
    pass


class TimelessSales(Base):
    __tablename__ = "product_sales"
    __table_args__ = (
        CheckConstraint(
            "current_setting('statement_timeout') = '0'"
            " AND coalesce(current_setting('transaction_timeout', true), '0') = '0'",
            "timeless",
        ),
    )
    product: Mapped[str] = mapped_column(primary_key=True)
    quantity: Mapped[int] = mapped_column(default=0)


class Timeless(Projection, into=TimelessSales, version=2, name="sales_by_product"):
    """Whose rows are taken by statements only that may take as long as they like."""

    @on(ItemScanned, key=lambda e, _: e.product)
    def _(self, row: TimelessSales, _e: ItemScanned, _meta: RecordedEvent) -> None:
        row.quantity += 1


LIMITS = ("statement_timeout", "idle_in_transaction_session_timeout", "transaction_timeout")


def limited_engine(engine: Engine) -> Engine:
    """Return one of a role that has every limit that its server knows."""
    with engine.connect() as conn:
        known = conn.scalars(text("SELECT name FROM pg_settings"))
        limits = [f"-c {name}=60000" for name in set(known) & set(LIMITS)]
    return create_engine(engine.url, connect_args={"options": " ".join(limits)})


def test_a_comparison_that_takes_long_is_not_ended_either(shop: Engine) -> None:
    limited, found = limited_engine(shop), list[tuple[object, ...]]()

    def look(_conn: object, cursor: Any, statement: str, *_: object) -> None:  # noqa: ANN401
        if "hash_record_extended" in statement:
            asked = "SELECT current_setting(name, true) FROM unnest(%s::text[]) AS name"
            found.extend(cursor.connection.execute(asked, [list(LIMITS)]))

    event.listen(limited, "before_cursor_execute", look)
    assert PROJECTIONS.verify(limited, SalesByProduct).matches
    limited.dispose()

    assert len(found) == 2 * len(LIMITS), "what is stored, and the replay"
    assert set(found) <= {("0",), (None,)}


def test_what_takes_long_is_not_ended_by_the_limit_for_everyday_queries(shop: Engine) -> None:
    run_sql(
        shop,
        "CREATE FUNCTION timeless(text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$BEGIN"
        " ASSERT current_setting('statement_timeout') = '0'; RETURN $1; END$$",
        "CREATE INDEX by_timeless ON product_sales (timeless(product))",
    )
    limited = limited_engine(shop)

    PROJECTIONS.rebuild(limited, Timeless, promote=False)

    with limited.connect() as conn:
        limit = conn.exec_driver_sql("SHOW statement_timeout").scalar()
    limited.dispose()
    assert limit == "1min"


class OtherBase(DeclarativeBase):
    pass


class JsonSales(OtherBase):
    __tablename__ = "product_sales"
    product: Mapped[str] = mapped_column(primary_key=True)
    cents: Mapped[str] = mapped_column(default="")
    last_basket: Mapped[list[str]] = mapped_column(JSON, default=list)


class WithOtherTypes(Projection, into=JsonSales, version=2, name="sales_by_product"):
    """Whose columns are called as those of the version before."""

    @on(ItemScanned, key=lambda e, _: e.product)
    def _(self, row: JsonSales, e: ItemScanned, meta: RecordedEvent) -> None:
        row.cents += f" {e.cents}"
        row.last_basket = [meta.stream.key]


@pytest.mark.parametrize(
    "made",
    [
        "CREATE INDEX other ON product_sales (abs(cents))",
        "CREATE INDEX other ON product_sales (product, (cents + 1))",
        "CREATE INDEX other ON product_sales (cents) WHERE cents > 0",
        "CREATE INDEX other ON product_sales (last_basket)",
        "CREATE INDEX other ON product_sales (last_basket text_pattern_ops)",
        'CREATE INDEX other ON product_sales (last_basket COLLATE "C")',
        "CREATE STATISTICS other ON product, last_basket FROM product_sales",
        "CREATE STATISTICS other ON product, quantity FROM product_sales",
    ],
)
def test_what_a_column_of_another_type_cannot_have_is_left_out(shop: Engine, made: str) -> None:
    run_sql(shop, made, "CREATE INDEX kept ON product_sales (lower(product))")

    PROJECTIONS.rebuild(shop, WithOtherTypes)

    with shop.connect() as conn:
        listed = "SELECT indexname FROM pg_indexes WHERE tablename = 'product_sales' ORDER BY 1"
        indexes = list(conn.scalars(text(listed)))
    assert indexes == ["kept", "product_sales_pkey"]


@pytest.mark.parametrize("step", ["build.begun", "build.segment-claimed", "build.folded"])
def test_a_build_ends_when_its_version_is_retired(shop: Engine, step: str) -> None:
    def retire() -> None:
        PROJECTIONS.retire(shop, DoubledSales)

    with armed(step, retire), pytest.raises(LeaseLostError):
        PROJECTIONS.rebuild(shop, DoubledSales)

    assert sales(shop)["milk"][0] == 5
    PROJECTIONS.rebuild(shop, DoubledSales)
    assert sales(shop)["milk"][0] == 10


@pytest.fixture
def owner(shop: Engine) -> Iterator[Engine]:
    """Who owns the table, and may do no more than read and write the library's."""
    run_sql(
        shop,
        "CREATE ROLE h13_owner LOGIN",
        "ALTER TABLE product_sales OWNER TO h13_owner",
        "GRANT USAGE ON SCHEMA datapatterns TO h13_owner",
        "GRANT ALL ON ALL TABLES IN SCHEMA datapatterns TO h13_owner",
        "GRANT ALL ON ALL SEQUENCES IN SCHEMA datapatterns TO h13_owner",
        "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
    )
    owner = create_engine(shop.url.set(username="h13_owner"))
    yield owner
    owner.dispose()
    run_sql(shop, "DROP OWNED BY h13_owner CASCADE", "DROP ROLE h13_owner")


def test_who_may_not_make_tables_is_told_so(shop: Engine, owner: Engine) -> None:
    with pytest.raises(MissingRightsError, match="schema public"):
        PROJECTIONS.rebuild(owner, DoubledSales)

    run_sql(shop, "GRANT CREATE ON SCHEMA public TO h13_owner")
    PROJECTIONS.rebuild(owner, DoubledSales, promote=False)
    run_sql(shop, "GRANT pg_read_all_stats TO h13_owner")
    PROJECTIONS.promote(owner, DoubledSales)
    assert sales(shop)["milk"][0] == 10


def test_a_name_that_somebody_else_has_taken_meanwhile_is_told(shop: Engine) -> None:
    PROJECTIONS.rebuild(shop, DoubledSales, promote=False)
    run_sql(
        shop,
        "ALTER INDEX product_sales_pkey RENAME TO product_sales_key",
        "CREATE TABLE product_sales_pkey ()",
    )

    with pytest.raises(PromotionRefusedError, match=r"product_sales_pkey is there .* rename it"):
        PROJECTIONS.promote(shop, DoubledSales)
    run_sql(shop, "DROP TABLE product_sales_pkey")
    PROJECTIONS.promote(shop, DoubledSales)

    assert sales(shop)["milk"][0] == 10


class NotThere(Base):
    __tablename__ = "never % created"
    product: Mapped[str] = mapped_column(primary_key=True)


class Further(Projection, into=(ProductSales, NotThere), version=2, name="sales_by_product"):
    @on(ItemScanned, key=lambda e, _: e.product, into=ProductSales)
    def _(self, row: ProductSales, _e: ItemScanned, _meta: RecordedEvent) -> None:
        row.quantity += 1

    @on(ItemScanned, key=lambda e, _: e.product, into=NotThere)
    def _(self, row: NotThere, _e: ItemScanned, _meta: RecordedEvent) -> None: ...


def test_a_table_that_nobody_has_created_is_named(shop: Engine) -> None:
    with pytest.raises(ProjectionDefinitionError, match=r"never % created.* create it"):
        PROJECTIONS.rebuild(shop, Further)


SAME = "s" * 60  # with all that follows it is cut


class LongA(Base):
    __tablename__ = f"{SAME}_a"
    product: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(default=0)


class LongB(Base):
    __tablename__ = f"{SAME}_b"
    product: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(default=0)


class OfA(Projection, into=LongA, version=1):
    @on(ItemScanned, key=lambda e, _: e.product)
    def _(self, row: LongA, _e: ItemScanned, _meta: RecordedEvent) -> None:
        row.number += 1


class OfB(Projection, into=LongB, version=1):
    @on(ItemScanned, key=lambda e, _: e.product)
    def _(self, row: LongB, _e: ItemScanned, _meta: RecordedEvent) -> None:
        row.number += 1


class OfBoth(Projection, into=(LongA, LongB), version=1):
    @on(ItemScanned, key=lambda e, _: e.product, into=LongA)
    def _(self, row: LongA, _e: ItemScanned, _meta: RecordedEvent) -> None:
        row.number += 1

    @on(ItemScanned, key=lambda e, _: e.product, into=LongB)
    def _(self, row: LongB, _e: ItemScanned, _meta: RecordedEvent) -> None:
        row.number += 1


class OfA2(OfA, into=LongA, version=2, name="of_a"):
    pass


class OfB2(OfB, into=LongB, version=2, name="of_b"):
    pass


class OfBoth2(OfBoth, into=(LongA, LongB), version=2, name="of_both"):
    pass


def keys_of_long_tables(engine: Engine) -> list[tuple[str, str]]:
    with engine.begin() as conn:
        rows = conn.exec_driver_sql(
            "SELECT indrelid::regclass::text, indexrelid::regclass::text FROM pg_index"
            " WHERE indrelid IN (%s::regclass, %s::regclass) ORDER BY 1",
            (f"{SAME}_a", f"{SAME}_b"),
        )
        return [(table, key) for table, key in rows]


@pytest.mark.parametrize("versions", [[(OfBoth, OfBoth2)], [(OfA, OfA2), (OfB, OfB2)]])
def test_keys_of_two_tables_that_would_be_called_the_same_are_told_apart(
    engine: Engine, versions: list[tuple[type[Projection], type[Projection]]]
) -> None:
    with engine.begin() as conn:
        for mapped in (LongA, LongB):
            mapped.__table__.create(conn)  # type: ignore[attr-defined] # it is a table
    append_all(engine, STORE, [ItemScanned("milk", 10)])
    before = keys_of_long_tables(engine)

    for first, second in versions:
        PROJECTIONS.catch_up(engine, first)
        PROJECTIONS.rebuild(engine, second)
        promoted = keys_of_long_tables(engine)
        PROJECTIONS.rollback(engine, first)
        back = keys_of_long_tables(engine)
        PROJECTIONS.promote(engine, second)

        assert promoted == back == keys_of_long_tables(engine) == before


class Checked(Base):
    __tablename__ = "c" * 59
    __table_args__ = (
        CheckConstraint("number > 0"),
        CheckConstraint("number < 1000"),
        CheckConstraint("number <> 7 OR product <> 'tea'"),
        CheckConstraint("number <> 8 OR product <> 'tea'"),
    )
    product: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(default=0)


class OfChecked(Projection, into=Checked, version=1):
    @on(ItemScanned, key=lambda e, _: e.product)
    def _(self, row: Checked, _e: ItemScanned, _meta: RecordedEvent) -> None:
        row.number += 1


class OfChecked2(OfChecked, into=Checked, version=2, name="of_checked"):
    pass


def test_constraints_that_nobody_has_named_are_called_as_before(engine: Engine) -> None:
    with engine.begin() as conn:
        Checked.__table__.create(conn)  # type: ignore[attr-defined] # it is a table
    append_all(engine, STORE, [ItemScanned("milk", 10)])
    PROJECTIONS.catch_up(engine, OfChecked)

    def constraints() -> list[str]:
        with engine.begin() as conn:
            names = conn.exec_driver_sql(
                "SELECT conname FROM pg_constraint WHERE conrelid = %s::regclass ORDER BY 1",
                (Checked.__tablename__,),
            )
            return list(names.scalars())

    before = constraints()
    PROJECTIONS.rebuild(engine, OfChecked2)

    assert constraints() == before
