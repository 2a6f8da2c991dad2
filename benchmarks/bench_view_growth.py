"""How the price of a refresh, and of a read as of now, grows: with changes, groups and tables."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, Engine, Integer, Select, func, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks.interleaving import Claim, Contestant
from datapatterns import DataLayer
from datapatterns.materialized_view import MaterializedView

ROWS = 300_000
PRODUCTS = 30_000


class Case(NamedTuple):
    """How much there is of what the price depends on.

    Attributes:
        changes: Rows written before each refresh.
        groups: Rows of the view.
        tables: How many the query joins.
        aggregate: ``sum`` is kept by counting, ``max`` by recomputing groups.
    """

    changes: int = 1_000
    groups: int = 1_000
    tables: int = 1
    aggregate: str = "sum"

    def __str__(self) -> str:
        """Return the case for a title."""
        return (
            f"{self.changes:,} changes, {self.groups:,} groups, {self.tables} tables,"
            f" {self.aggregate}"
        )


CASES = (
    *(Case(changes=number) for number in (1, 100, 1_000, 10_000)),
    *(Case(groups=number) for number in (10, 30_000)),
    *(Case(tables=number) for number in (2, 3)),
    *(Case(changes=number, aggregate="max") for number in (1, 100, 1_000)),
)


class Base(DeclarativeBase):
    """The tables of this benchmark."""


class Sale(Base):
    """One line of a receipt."""

    __tablename__ = "sale"

    sale_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    product_id: Mapped[int] = mapped_column(Integer, index=True)
    bucket: Mapped[int] = mapped_column(Integer, index=True)
    cents: Mapped[int] = mapped_column(BigInteger)


class Product(Base):
    """What is sold."""

    __tablename__ = "product"

    product_id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    maker_id: Mapped[int] = mapped_column(Integer, index=True)


class Maker(Base):
    """Who makes it."""

    __tablename__ = "maker"

    maker_id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)


@contextmanager
def claim(case: Case) -> Iterator[Claim]:
    """The same tables; what differs is named in the case."""
    with DataLayer.embedded() as layer:
        sales = Sales(layer.engine, case)
        sales.fill()
        yield Claim(
            f"{case}: of {ROWS:,} rows",
            "runs",
            [
                Contestant("the query", "limit", sales.ask(sales.query), sales.write),
                Contestant("view.refresh", "ours", sales.refresh, sales.write),
                Contestant(
                    "read as of now", "limit", sales.ask(select(sales.view.realtime)), sales.write
                ),
            ],
        )


class Sales:
    """The tables, and a view of them."""

    def __init__(self, engine: Engine, case: Case) -> None:
        self.engine = engine
        self.case = case
        self.query = _query(case)
        self.view = MaterializedView("sales", self.query)
        self.ids = count(ROWS, case.changes)

    def fill(self) -> None:
        Base.metadata.create_all(self.engine)
        with self.engine.begin() as conn:
            for statement in (
                f"INSERT INTO maker SELECT generate_series(0, {PRODUCTS // 10 - 1})",
                f"INSERT INTO product SELECT n, n / 10 FROM generate_series(0, {PRODUCTS - 1}) n",
                self._rows(0, ROWS),
            ):
                conn.execute(text(statement))
            self.view.create(conn)
        with self.engine.begin() as conn:
            self.view.populate(conn)
        with self.engine.connect() as conn:
            conn.execution_options(isolation_level="AUTOCOMMIT").execute(text("VACUUM ANALYZE"))

    def write(self) -> None:
        """Write so many rows; what was written before is taken in first."""
        self.refresh()
        with self.engine.begin() as conn:
            conn.execute(text(self._rows(next(self.ids), self.case.changes)))

    def refresh(self) -> int:
        with self.engine.begin() as conn:
            self.view.refresh(conn)
        return 1

    def ask(self, query: Select[*tuple[Any, ...]]) -> Callable[[], int]:
        def run() -> int:
            with self.engine.connect() as conn:
                assert conn.execute(query).all()
            return 1

        return run

    def _rows(self, first: int, number: int) -> str:
        spread = "n::bigint * 7919 %"
        return (
            f"INSERT INTO sale SELECT n, {spread} {PRODUCTS}, {spread} {self.case.groups}, n % 977"
            f" FROM generate_series({first}, {first + number - 1}) n"
        )


def _query(case: Case) -> Select[*tuple[Any, ...]]:
    value = {"sum": func.sum(Sale.cents), "max": func.max(Sale.cents)}[case.aggregate]
    query = select(Sale.bucket, func.count().label("lines"), value.label("cents"))
    if case.tables > 1:
        query = query.join(Product, Product.product_id == Sale.product_id)
    if case.tables > 2:
        query = query.join(Maker, Maker.maker_id == Product.maker_id)
    return query.group_by(Sale.bucket)
