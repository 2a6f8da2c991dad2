"""What columns hold comes back as it was given, whichever rows share a page; or it is refused."""

import enum
import uuid
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import (
    JSON,
    Column,
    Computed,
    Dialect,
    Engine,
    Enum,
    Float,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    String,
    Table,
    Text,
    Uuid,
    select,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, registry
from sqlalchemy.types import TypeDecorator, TypeEngine

from datapatterns.cqrs import Projection, Projections, on
from datapatterns.errors import ProjectionStoppedError
from datapatterns.event_sourcing import EventStore, RecordedEvent
from tests.fixtures.read_models import ItemScanned, append_all

STORE = EventStore()
PROJECTIONS = Projections(STORE)


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Code(TypeDecorator[str]):
    impl = String(3)
    cache_ok = True

    def process_bind_param(self, value: str | None, _dialect: Dialect) -> str | None:
        return None if value is None else value.upper()


def holding(engine: Engine, type_: TypeEngine[Any], values: list[Any]) -> type[Projection]:
    """Declare and create a table with one column; event number n puts the nth value into it."""

    class Base(DeclarativeBase):
        pass

    class Held(Base):
        __tablename__ = "held"
        product: Mapped[str] = mapped_column(Text, primary_key=True)
        value: Mapped[Any] = mapped_column(type_, nullable=True)

    class Holding(Projection, into=Held, version=1):
        @on(ItemScanned, key=lambda e, _: e.product)
        def _(self, row: Held, e: ItemScanned, _meta: RecordedEvent) -> None:
            row.value = values[e.cents]

    Base.metadata.create_all(engine)
    append_all(engine, STORE, [ItemScanned(f"p{n}", n) for n in range(len(values))])
    return Holding


@pytest.mark.parametrize(
    ("type_", "values"),
    [
        (JSON(), [{"a": [1]}, "text", [[1], [2]]]),
        (postgresql.JSON(), [{"a": [1]}, "text", None]),
        (postgresql.JSONB(), [[[1], [2]], {"a": None}]),
        (Enum(Colour, name="colour"), [Colour.RED, None, Colour.BLUE]),
        (LargeBinary(), [b"\0\xff{,}", None, b""]),
        (Uuid(), [uuid.UUID(int=1), None]),
        (Text(), ['{"a",\\}', "NULL", "", None, "null", "é\U0001f600'%s:x"]),
        (Code(), ["ABC", None]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, TypeEngine) else "",
)
def test_values_come_back_and_can_be_compared_and_rebuilt(
    engine: Engine, type_: TypeEngine[Any], values: list[Any]
) -> None:
    projection = holding(engine, type_, values)

    PROJECTIONS.catch_up(engine, projection)
    found = PROJECTIONS.verify(engine, projection)
    PROJECTIONS.rebuild(engine, projection)

    table: Any = projection.tables[0]
    with engine.begin() as conn:
        stored = conn.execute(select(table.value).order_by(table.product)).scalars().all()
    assert found.matches
    assert stored == values


@pytest.mark.parametrize(
    ("type_", "values"),
    [(Float(), [0.5, 0, 3, None]), (Numeric(10, 2), [Decimal("0.50"), 0, 3, 1.25, None])],
)
def test_an_integer_may_stand_beside_other_numbers(
    engine: Engine, type_: TypeEngine[Any], values: list[Any]
) -> None:
    projection = holding(engine, type_, values)

    PROJECTIONS.catch_up(engine, projection)

    table: Any = projection.tables[0]
    with engine.begin() as conn:
        stored = conn.execute(select(table.value).order_by(table.product)).scalars().all()
    assert stored == values
    assert PROJECTIONS.verify(engine, projection, page_events=1).matches


@pytest.mark.parametrize("type_", [String(3), Code()])
def test_text_that_is_too_long_is_not_cut(engine: Engine, type_: TypeEngine[Any]) -> None:
    projection = holding(engine, type_, ["ABC", "ABCD"])

    with pytest.raises(ProjectionStoppedError) as stopped:
        PROJECTIONS.catch_up(engine, projection)

    assert stopped.value.position == 2


def test_names_that_mean_something_elsewhere_are_only_names(engine: Engine) -> None:
    class Base(DeclarativeBase):
        pass

    class Odd(Base):
        __tablename__ = "odd:v2 50% {x} \"q'"
        product: Mapped[str] = mapped_column("pro:duct%s", Text, primary_key=True)
        number: Mapped[int] = mapped_column("num(b)er", Integer, default=0)
        twice: Mapped[int] = mapped_column(Computed('"num(b)er" * 2', persisted=True))

    class Odds(Projection, into=Odd, version=1):
        @on(ItemScanned, key=lambda e, _: e.product)
        def _(self, row: Odd, _e: ItemScanned, _meta: RecordedEvent) -> None:
            row.number += 1

    Base.metadata.create_all(engine)
    append_all(engine, STORE, [ItemScanned("milk", 1)] * 2)

    PROJECTIONS.catch_up(engine, Odds, page_events=1)
    PROJECTIONS.rebuild(engine, Odds)

    assert PROJECTIONS.verify(engine, Odds).matches
    with engine.begin() as conn:
        assert conn.execute(select(Odd.number, Odd.twice)).all() == [(2, 4)]


def test_columns_that_are_not_mapped_are_left_alone(engine: Engine) -> None:
    table = Table(
        "partly_mapped",
        MetaData(),
        Column("product", Text, primary_key=True),
        Column("number", Integer, default=0),
        Column("not_ours", Integer, server_default="7"),
    )

    class Partly:
        number: int

    registry().map_imperatively(Partly, table, exclude_properties=["not_ours"])

    class Parts(Projection, into=Partly, version=1):
        @on(ItemScanned, key=lambda e, _: e.product)
        def _(self, row: Partly, _e: ItemScanned, _meta: RecordedEvent) -> None:
            row.number += 1

    table.create(engine)
    append_all(engine, STORE, [ItemScanned("milk", 1)])

    PROJECTIONS.catch_up(engine, Parts)

    with engine.begin() as conn:
        assert conn.execute(select(table)).all() == [("milk", 1, 7)]


def test_a_schema_that_is_translated_can_be_rebuilt(engine: Engine) -> None:
    class Base(DeclarativeBase):
        pass

    class Tenant(Base):
        __tablename__ = "tenant_sales"
        __table_args__ = {"schema": "placeholder"}  # noqa: RUF012 -- as SQLAlchemy has it
        product: Mapped[str] = mapped_column(Text, primary_key=True)

    class Tenants(Projection, into=Tenant, version=1):
        @on(ItemScanned, key=lambda e, _: e.product)
        def _(self, _row: Tenant, _e: ItemScanned, _meta: RecordedEvent) -> None: ...

    translated = engine.execution_options(schema_translate_map={"placeholder": "public"})
    Base.metadata.create_all(translated)
    append_all(engine, STORE, [ItemScanned("milk", 1)])

    PROJECTIONS.catch_up(translated, Tenants)
    PROJECTIONS.rebuild(translated, Tenants)

    assert PROJECTIONS.verify(translated, Tenants).rows == 1
