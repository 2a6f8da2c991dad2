"""What a projection in SQL may say of itself, and what its usual statement is made of."""

from collections.abc import Callable
from types import new_class
from typing import Any

import pytest
from sqlalchemy import (
    BigInteger,
    Column,
    Executable,
    FromClause,
    MetaData,
    Select,
    Table,
    Text,
    column,
    func,
    select,
    table,
)
from sqlalchemy.dialects import postgresql

from datapatterns.cqrs import SetProjection, on, upsert
from datapatterns.errors import ProjectionDefinitionError
from tests.fixtures.read_models import ItemScanned, ProductSales

SALES = Table(
    "sales",
    MetaData(),
    Column("shop", Text, primary_key=True),
    Column("product", Text, primary_key=True),
    Column("cents", BigInteger),
    Column("last", Text),
)
EVENTS = table("events", column("shop"), column("product"), column("cents"))
SUMS = select(EVENTS.c.shop, EVENTS.c.product, func.sum(EVENTS.c.cents).label("cents")).group_by(
    EVENTS.c.shop, EVENTS.c.product
)


def declared(*, without: bool = False, **options: Any) -> type[SetProjection]:  # noqa: ANN401 -- what may be wrong
    def statements(_self: object, _events: FromClause, _tables: object) -> list[Executable]:
        return []

    body = {} if without else {"statements": statements}
    wanted = {"into": ProductSales, "version": 1, "reads": (ItemScanned,), **options}
    made: type[SetProjection] = new_class(
        "Sales", (SetProjection,), wanted, lambda ns: ns.update(body)
    )
    return made


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "parks": ({"on_poison": "park"}, "none can be parked"),
    "an unknown policy": ({"on_poison": "cry"}, "one of stop, park, skip"),
    "reads nothing": ({"reads": ()}, "say what it reads"),
    "reads a name": ({"reads": ("item.scanned",)}, "StoredShape values"),
    "no tables": ({"into": ()}, "at least one"),
    "a table twice": ({"into": (ProductSales, ProductSales)}, "each table once"),
    "no version": ({"version": 0}, "count the version from 1"),
    "no statements": ({"without": True}, "declare its method statements"),
    "a name that is none": ({"name": "Sales!"}, "1 to 63"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_declaration_that_cannot_work_is_refused(case: str) -> None:
    options, told = WRONG[case]

    with pytest.raises(ProjectionDefinitionError, match=told):
        declared(**options)


def test_it_has_no_handlers() -> None:
    with pytest.raises(ProjectionDefinitionError, match="its statements are all that it does"):

        class Mixed(SetProjection, into=ProductSales, version=1, reads=(ItemScanned,)):
            def statements(self, _events: FromClause, _tables: object) -> list[Executable]:
                return []

            @on(ItemScanned, key=lambda e, _: e.product)
            def _(self, _row: object, _e: ItemScanned, _meta: object) -> None:
                """Never runs."""


def test_it_is_split_only_if_the_order_of_streams_does_not_matter() -> None:
    assert not declared().is_splittable
    assert declared(additive=True).is_splittable
    assert declared(reads=[ItemScanned]).reads == (ItemScanned,)
    assert (declared().name, declared().page_events) == ("sales", 10_000)


def sql(statement: Executable) -> str:
    compiled = statement.compile(dialect=postgresql.dialect())  # type: ignore[attr-defined, no-untyped-call] # SQLAlchemy's own
    return " ".join(str(compiled).split())


def test_rows_are_added_to_in_the_order_of_their_keys() -> None:
    written = sql(upsert(SALES, SUMS, add=["cents"]))

    assert "ORDER BY page.shop, page.product ON CONFLICT (shop, product) DO UPDATE" in written
    assert "SET cents = coalesce(sales.cents + excluded.cents, sales.cents, excluded.cents)" in (
        written
    )
    assert "last" not in written


def test_rows_are_replaced_or_only_begun() -> None:
    assert sql(upsert(SALES, SUMS, put=["cents"])).endswith("SET cents = excluded.cents")
    assert sql(upsert(SALES, SUMS)).endswith("ON CONFLICT (shop, product) DO NOTHING")


KEYLESS = Table("keyless", MetaData(), Column("n", BigInteger))
REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "no key": (lambda: upsert(KEYLESS, select(column("n"))), "no primary key"),
    "a strange column": (lambda: upsert(SALES, SUMS.add_columns(column("x"))), "no column 'x'"),
    "a part of the key is missing": (
        lambda: upsert(SALES, select(EVENTS.c.shop)),
        "no column 'product'",
    ),
    "what to add is missing": (lambda: upsert(SALES, SUMS, add=["last"]), "no column 'last'"),
    "added and put": (lambda: upsert(SALES, SUMS, add=["cents"], put=["cents"]), "named twice"),
    "the key": (lambda: upsert(SALES, SUMS, put=["shop"]), "key does not change"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_upsert_that_cannot_be_is_refused(case: str) -> None:
    make, told = REFUSED[case]

    with pytest.raises(ValueError, match=told):
        make()


def test_rows_of_a_union_can_be_upserted_too() -> None:
    one: Select[Any] = select(EVENTS.c.shop, EVENTS.c.product)

    assert "UNION" in sql(upsert(SALES, one.union(one)))
