"""Statements under a specification: they are run over what is given, in every way to page it."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from sqlalchemy import Connection, Engine, Executable, FromClause, Table, func, select

from datapatterns.cqrs import SetProjection, StoredShape, upsert
from datapatterns.errors import ProjectionDefinitionError
from datapatterns.event_sourcing import EventTypes, Personal, StreamId
from datapatterns.testing import ProjectionSpec, SpecError
from tests.fixtures.read_models import DoorOpened, ItemScanned, ProductsMerged, ProductWithdrawn
from tests.fixtures.set_models import (
    BasketTotal,
    KeptProduct,
    ProductTotal,
    Shop,
    TotalByProduct,
    create_tables,
)

pytestmark = pytest.mark.postgres

Tables = Mapping[type, Table[Any]]


@pytest.fixture
def conn(engine: Engine) -> Iterator[Connection]:
    create_tables(engine)
    with engine.connect() as conn:
        yield conn


def test_statements_are_run_over_what_is_given(conn: Connection) -> None:
    ProjectionSpec(TotalByProduct, conn).given(
        ItemScanned("milk", 100),
        DoorOpened(),
        ItemScanned("it's 100% :milk", 2**40),
        ItemScanned("milk", 90),
    ).then_rows(
        {"product": "milk", "quantity": 2, "cents": 190},
        {"product": "it's 100% :milk", "quantity": 1, "cents": 2**40},
    )


def test_several_tables_and_streams(conn: Connection) -> None:
    spec = (
        ProjectionSpec(Shop, conn)
        .given(ItemScanned("milk", 1), ProductWithdrawn("milk"), ItemScanned("milk", 2))
        .given(ItemScanned("tea", 3), DoorOpened(), stream=StreamId("basket", "2"))
        .given(ProductsMerged(["milk"]), ProductWithdrawn("tea"))
    )

    spec.then_rows({"product": "milk", "quantity": 1}, into=KeptProduct)
    spec.then_rows(
        {"basket": "1", "cents": 3, "last_product": "milk", "doors": 0},
        {"basket": "2", "cents": 3, "last_product": "tea", "doors": 1},
        into=BasketTotal,
    )


class CountsRanges(SetProjection, into=ProductTotal, version=1, reads=(ItemScanned,)):
    """Wrong: another number of ranges gives other rows."""

    def statements(self, events: FromClause, tables: Tables) -> Executable | Iterable[Executable]:
        last = select(
            func.max(events.c.data["product"].as_string()).label("product"),
            func.count().label("quantity"),
        ).having(func.count() > 0)
        return upsert(tables[ProductTotal], last, put=["quantity"])


def test_what_depends_on_where_a_range_ends_is_found(conn: Connection) -> None:
    spec = ProjectionSpec(CountsRanges, conn).given(ItemScanned("milk", 1), ItemScanned("milk", 2))

    with pytest.raises(SpecError, match="a page for each event gives another read model"):
        spec.then_rows({"product": "milk", "quantity": 2})


def test_an_event_that_makes_a_statement_fail_is_told(conn: Connection) -> None:
    spec = ProjectionSpec(TotalByProduct, conn).given(ItemScanned("x" * 21, 1))

    with pytest.raises(SpecError, match="value too long"):
        spec.then_rows()


@dataclass(frozen=True, slots=True)
class Sent:
    customer: str
    product: Annotated[str, Personal(subject="customer")]


def test_an_event_that_no_statement_can_read_is_told(conn: Connection) -> None:
    types = EventTypes()
    types.event("spec.sent")(Sent)

    class Reads(SetProjection, into=ProductTotal, version=1, reads=(Sent,)):
        def statements(self, events: FromClause, tables: Tables) -> Executable:
            product = events.c.data["customer"].as_string().label("product")
            return upsert(tables[ProductTotal], select(product).distinct())

    class AsStored(Reads, into=ProductTotal, version=2, reads=(StoredShape("spec.sent"),)):
        pass

    with pytest.raises(SpecError, match="personal fields are encrypted"):
        ProjectionSpec(Reads, conn, types=types).given(Sent("7", "milk")).then_rows()
    ProjectionSpec(AsStored, conn, types=types).given(
        Sent("7", "milk"), Sent("7", "tea")
    ).then_rows({"product": "7", "quantity": 0})


def test_statements_that_could_not_be_run_are_refused_here_too(conn: Connection) -> None:
    class Writes(SetProjection, into=ProductTotal, version=1, reads=(ItemScanned,)):
        def statements(self, events: FromClause, _tables: Tables) -> Executable:
            product = events.c.data["product"].as_string().label("product")
            return upsert(ProductTotal.metadata.tables["product_total"], select(product))

    with pytest.raises((SpecError, ProjectionDefinitionError), match="by itself"):
        ProjectionSpec(Writes, conn).given(ItemScanned("milk", 1)).then_rows()
