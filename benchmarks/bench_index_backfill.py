"""Index a million rows from before, beside one INSERT .. SELECT; and how much room that takes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy import BigInteger, Column, Engine, MetaData, Table, Text, text

from benchmarks.interleaving import Claim, Contestant
from datapatterns import DataLayer
from datapatterns.index_table import IndexTable

ROWS = 1_000_000
CHUNK_ROWS = 50_000
CASES = ("local", "async")

_line = Table(
    "line",
    MetaData(),
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("product", BigInteger),
    Column("memo", Text),
)


@contextmanager
def claim(mode: str) -> Iterator[Claim]:
    """Chunks with a commit each, writers may go on; and one statement by hand."""
    index = IndexTable("line_by_product", on=[_line.c.product], mode=mode)  # type: ignore[arg-type]
    with DataLayer.embedded() as layer:
        engine = layer.engine
        _line.create(engine)
        with engine.begin() as conn:
            conn.execute(
                text(
                    "INSERT INTO line SELECT n, n % 100000, repeat('m', 80)"
                    f" FROM generate_series(1, {ROWS}) n"
                )
            )
        with engine.connect() as conn:
            conn.execution_options(isolation_level="AUTOCOMMIT").execute(text("VACUUM ANALYZE"))
        yield Claim(
            f"{ROWS:,} rows indexed, mode {mode}",
            "rows",
            [
                Contestant("chunks of the library", "ours", _ours(engine, index)),
                Contestant("one INSERT .. SELECT", "limit", _by_hand(engine)),
                Contestant("CREATE INDEX", "rival", _own(engine)),
            ],
        )
        _tell_sizes(engine)


def _ours(engine: Engine, index: IndexTable) -> Callable[[], int]:
    def run() -> int:
        with engine.begin() as conn:
            index.drop(conn)
        with engine.begin() as conn:
            index.create(conn)
        done = False
        while not done:
            with engine.begin() as conn:
                done = index.backfill(conn, limit=CHUNK_ROWS).done
        return ROWS

    return run


def _by_hand(engine: Engine) -> Callable[[], int]:
    def run() -> int:
        with engine.begin() as conn:
            conn.exec_driver_sql(
                "DROP TABLE IF EXISTS by_hand;"
                "CREATE TABLE by_hand (product bigint, id bigint, PRIMARY KEY (product, id));"
                "INSERT INTO by_hand SELECT product, id FROM line WHERE product IS NOT NULL;"
                "ANALYZE by_hand"
            )
        return ROWS

    return run


def _own(engine: Engine) -> Callable[[], int]:
    def run() -> int:
        with engine.begin() as conn:
            conn.exec_driver_sql(
                "DROP INDEX IF EXISTS line_product; CREATE INDEX line_product ON line (product)"
            )
        return ROWS

    return run


def _tell_sizes(engine: Engine) -> None:
    with engine.connect() as conn:
        sizes = conn.execute(
            text(
                "SELECT pg_total_relation_size('datapatterns.line_by_product'),"
                " pg_total_relation_size('by_hand'), pg_relation_size('line_product')"
            )
        ).one()
    ours, by_hand, own = (size / 2**20 for size in sizes)
    print(  # noqa: T201 -- a size is no rate
        f"index table {ours:.0f} MB, by hand {by_hand:.0f} MB, PostgreSQL's own index {own:.0f} MB:"
        f" {ours / own:.2f} times"
    )
