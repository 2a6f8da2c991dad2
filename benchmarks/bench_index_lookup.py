"""Look rows up by another column, beside PostgreSQL's own index and beside a scan."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy import BigInteger, Connection, Integer, Text, bindparam, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks.interleaving import Claim, Contestant
from datapatterns import DataLayer
from datapatterns.index_table import IndexTable

ROWS = 1_000_000
KEYS = 100_000
LOOKUPS = 200


class Base(DeclarativeBase):
    """The tables of this benchmark."""


class Line(Base):
    """A line of a receipt; both columns hold the same, one has an index of PostgreSQL's own."""

    __tablename__ = "line"

    line_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    product_id: Mapped[int] = mapped_column(BigInteger)
    indexed_id: Mapped[int] = mapped_column(BigInteger, index=True)
    memo: Mapped[str] = mapped_column(Text)


BY_PRODUCT = IndexTable("line_by_product", on=[Line.product_id])


@contextmanager
def claim() -> Iterator[Claim]:
    """Ten rows for each key, all in memory; statements are put together once."""
    with DataLayer.embedded() as layer:
        engine = layer.engine
        Base.metadata.create_all(engine)
        with engine.begin() as conn:
            BY_PRODUCT.create(conn)
            conn.execute(
                text(
                    f"INSERT INTO line SELECT n, n % {KEYS}, n % {KEYS}, repeat('m', 80)"
                    f" FROM generate_series(1, {ROWS}) n"
                )
            )
        done = False
        while not done:
            with engine.begin() as conn:
                done = BY_PRODUCT.backfill(conn, limit=ROWS).done
        with engine.begin() as conn:
            BY_PRODUCT.activate(conn)
        with engine.connect() as conn:
            conn.execution_options(isolation_level="AUTOCOMMIT").execute(text("VACUUM ANALYZE"))
        with engine.connect() as conn:
            yield Claim(
                f"ten rows of one key out of {ROWS:,}",
                "look-ups",
                [
                    Contestant("index.lookup", "ours", _ours(conn)),
                    Contestant("PostgreSQL's own index", "limit", _own(conn)),
                    Contestant("scan", "rival", _scan(conn)),
                ],
            )


def _ours(conn: Connection) -> Callable[[], int]:
    def run() -> int:
        for key in range(LOOKUPS):
            assert len(BY_PRODUCT.lookup(conn, key * 7)) == ROWS // KEYS
        return LOOKUPS

    return run


def _own(conn: Connection) -> Callable[[], int]:
    wanted = bindparam("wanted", type_=BigInteger)
    # As a look-up answers: by the primary key, and not without end.
    statement = (
        select(*Line.__table__.columns)
        .where(Line.indexed_id == wanted)
        .order_by(Line.line_id)
        .limit(bindparam("row_limit", type_=Integer))
    )

    def run() -> int:
        for key in range(LOOKUPS):
            rows = conn.execute(statement, {"wanted": key * 7, "row_limit": 1_000}).all()
            assert len(rows) == ROWS // KEYS
        return LOOKUPS

    return run


def _scan(conn: Connection) -> Callable[[], int]:
    wanted = bindparam("wanted", type_=BigInteger)
    statement = select(*Line.__table__.columns).where(Line.product_id == wanted)
    lookups = max(1, LOOKUPS // 50)

    def run() -> int:
        for key in range(lookups):
            rows = conn.execute(statement, {"wanted": key * 7}).all()
            assert len(rows) == ROWS // KEYS
        return lookups

    return run
