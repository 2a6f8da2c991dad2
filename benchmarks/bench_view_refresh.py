"""Take changes into a stored aggregate, and read it as of now, beside what one does by hand."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count

from sqlalchemy import BigInteger, Engine, Integer, TableClause, func, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks.interleaving import Claim, Contestant
from datapatterns import DataLayer
from datapatterns.materialized_view import MaterializedView

CASES = ("refresh", "read as of now")
ROWS = 1_000_000
GROUPS = 10_000
CHANGES = 1_000
READS = 5


class Base(DeclarativeBase):
    """The tables of this benchmark."""


class Sale(Base):
    """One line of a receipt."""

    __tablename__ = "sale"

    sale_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    product_id: Mapped[int] = mapped_column(Integer)
    cents: Mapped[int] = mapped_column(BigInteger)


QUERY = select(
    Sale.product_id, func.count().label("lines"), func.sum(Sale.cents).label("cents")
).group_by(Sale.product_id)
SALES = MaterializedView("sales", QUERY)
OWN = "SELECT product_id, count(*) AS lines, sum(cents) AS cents FROM sale{} GROUP BY product_id"


@contextmanager
def claim(case: str) -> Iterator[Claim]:
    """10,000 groups of a million rows; each round writes a thousand rows that touch many groups."""
    with DataLayer.embedded() as layer:
        engine = layer.engine
        Base.metadata.create_all(engine)
        sales = Sales(engine)
        sales.fill()
        yield sales.refreshing() if case == "refresh" else sales.reading()


class Sales:
    """The table, and the view of it in three ways."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.ids = count(ROWS)

    def fill(self) -> None:
        with self.engine.begin() as conn:
            conn.execute(
                text(
                    f"INSERT INTO sale SELECT n, n % {GROUPS}, n % 977"
                    f" FROM generate_series(0, {ROWS - 1}) n"
                )
            )
            conn.execute(text(f"CREATE MATERIALIZED VIEW own AS {OWN.format('')}"))
            conn.execute(text("CREATE UNIQUE INDEX ON own (product_id)"))
            conn.execute(text(f"CREATE TABLE by_hand AS {OWN.format('')}"))
            conn.execute(text("CREATE UNIQUE INDEX ON by_hand (product_id)"))
            SALES.create(conn)
        with self.engine.begin() as conn:
            SALES.populate(conn)
        with self.engine.connect() as conn:
            conn.execution_options(isolation_level="AUTOCOMMIT").execute(text("VACUUM ANALYZE"))

    def refreshing(self) -> Claim:
        return Claim(
            f"{CHANGES} changes taken into a view of {ROWS} rows in {GROUPS} groups",
            "refreshes",
            [
                Contestant("view.refresh", "ours", self._ours, self.write),
                Contestant("an upsert of what was written", "limit", self._by_hand, self.write),
                Contestant("REFRESH CONCURRENTLY", "rival", self._own, self.write),
            ],
        )

    def reading(self) -> Claim:
        self.write()
        return Claim(
            f"{GROUPS} groups read with {CHANGES} changes pending",
            "reads",
            [
                Contestant("realtime", "ours", self._reading(SALES.realtime)),
                Contestant("what is stored", "limit", self._reading(SALES.table)),
            ],
        )

    def write(self) -> None:
        """Write rows of as many groups."""
        first = next(self.ids)
        with self.engine.begin() as conn:
            # So that the view has nothing else to take in.
            SALES.refresh(conn)
        with self.engine.begin() as conn:
            conn.execute(
                text(
                    f"INSERT INTO sale SELECT {first} + n, (n * 7) % {GROUPS}, n % 977"
                    f" FROM generate_series(0, {CHANGES - 1}) n"
                )
            )
        for _ in range(CHANGES - 1):
            next(self.ids)
        self.written = first

    def _ours(self) -> int:
        with self.engine.begin() as conn:
            SALES.refresh(conn)
        return 1

    def _by_hand(self) -> int:
        written = OWN.format(f" WHERE sale_id >= {self.written}")
        with self.engine.begin() as conn:
            conn.execute(
                text(
                    f"INSERT INTO by_hand AS v {written} ON CONFLICT (product_id) DO UPDATE"
                    " SET lines = v.lines + excluded.lines, cents = v.cents + excluded.cents"
                )
            )
        return 1

    def _own(self) -> int:
        with self.engine.begin() as conn:
            conn.execute(text("REFRESH MATERIALIZED VIEW CONCURRENTLY own"))
        return 1

    def _reading(self, relation: TableClause) -> Callable[[], int]:
        def run() -> int:
            for _ in range(READS):
                with self.engine.connect() as conn:
                    assert conn.execute(select(relation)).all()
            return READS

        return run
