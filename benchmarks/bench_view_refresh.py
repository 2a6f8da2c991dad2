"""Take ten new rows into a stored aggregate, beside PostgreSQL's own REFRESH."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count

from sqlalchemy import BigInteger, Engine, Integer, func, insert, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks.interleaving import Claim, Contestant
from datapatterns import DataLayer
from datapatterns.materialized_view import MaterializedView

ROWS = 300_000
CHANGES = 10
REFRESHES = 3


class Base(DeclarativeBase):
    """The tables of this benchmark."""


class Sale(Base):
    """One line of a receipt."""

    __tablename__ = "sale"

    sale_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    week: Mapped[int] = mapped_column(Integer)
    department: Mapped[int] = mapped_column(Integer)
    cents: Mapped[int] = mapped_column(BigInteger)


QUERY = select(
    Sale.week, Sale.department, func.count().label("lines"), func.sum(Sale.cents).label("cents")
).group_by(Sale.week, Sale.department)
WEEKLY = MaterializedView("weekly", QUERY)
OWN = "SELECT week, department, count(*), sum(cents) FROM sale GROUP BY week, department"


@contextmanager
def claim() -> Iterator[Claim]:
    """300,000 rows in 1,000 groups; each round writes ten rows, then refreshes."""
    with DataLayer.embedded() as layer:
        engine = layer.engine
        Base.metadata.create_all(engine)
        with engine.begin() as conn:
            conn.execute(
                text(
                    "INSERT INTO sale SELECT n, n % 50, n % 20, n % 977"
                    f" FROM generate_series(1, {ROWS}) n"
                )
            )
            conn.execute(text(f"CREATE MATERIALIZED VIEW own AS {OWN}"))
            conn.execute(text("CREATE UNIQUE INDEX ON own (week, department)"))
            WEEKLY.create(conn)
        with engine.begin() as conn:
            WEEKLY.populate(conn)
        with engine.connect() as conn:
            conn.execution_options(isolation_level="AUTOCOMMIT").execute(text("VACUUM ANALYZE"))
        numbers = count(ROWS + 1)
        yield Claim(
            "ten changes taken into a view of 300,000 rows",
            "refreshes",
            [
                Contestant("view.refresh", "ours", _ours(engine, numbers)),
                Contestant("REFRESH", "rival", _own(engine, numbers, "")),
                Contestant("REFRESH CONCURRENTLY", "rival", _own(engine, numbers, "CONCURRENTLY")),
            ],
        )


def _write(engine: Engine, numbers: Iterator[int]) -> None:
    rows = [
        {"sale_id": n, "week": n % 50, "department": n % 20, "cents": n % 977}
        for n in (next(numbers) for _ in range(CHANGES))
    ]
    with engine.begin() as conn:
        conn.execute(insert(Sale), rows)


def _ours(engine: Engine, numbers: Iterator[int]) -> Callable[[], int]:
    def run() -> int:
        for _ in range(REFRESHES):
            _write(engine, numbers)
            with engine.begin() as conn:
                WEEKLY.refresh(conn)
        return REFRESHES

    return run


def _own(engine: Engine, numbers: Iterator[int], how: str) -> Callable[[], int]:
    def run() -> int:
        for _ in range(REFRESHES):
            _write(engine, numbers)
            with engine.begin() as conn:
                conn.execute(text(f"REFRESH MATERIALIZED VIEW {how} own"))
        return REFRESHES

    return run
