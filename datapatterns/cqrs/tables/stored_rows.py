"""The rows of a read model as one snapshot sees them, and what of them is worth a closer look.

Rows and checkpoints are committed together, so every snapshot sees rows that fit the checkpoints
in it. Nobody who writes is held up for it.
"""

from collections.abc import Callable, Collection, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Column, Connection, CreateTableAs, Engine, MetaData, Select, Table, select
from sqlalchemy.schema import CreateTable, DropTable

from datapatterns.cqrs.tables.checksums import is_in_buckets
from datapatterns.cqrs.tables.read_model import ReadModel, ReadModels
from datapatterns.cqrs.tables.row_statements import send, upsert_statement
from datapatterns.cqrs.tables.targets import quoted_table
from datapatterns.sql.long_statements import allow_long_statements
from datapatterns.sql.sending import send_blocks
from datapatterns.transactions import reading, resuming

_KEYS_AT_ONCE: Final = 10_000
_IDENTIFIER_BYTES_MAX: Final = 63


@dataclass(frozen=True, slots=True)
class Suspects:
    """Temporary tables of one connection for stored rows that are to be compared there.

    They have the very types of the stored ones, whatever the mapping says.
    """

    models: ReadModels

    def take(self, conn: Connection, source: Connection, table: type, rows: Select[Any]) -> None:
        """Copy ``rows``, which ``source`` sees, in the transaction of ``conn``."""
        mine = self.models[table].table
        # A temporary table there, too: COPY takes no parameters.
        source.execute(CreateTableAs(rows, mine.name, temporary=True))
        name = conn.dialect.identifier_preparer.quote(mine.name)
        send_blocks(conn, f"COPY pg_temp.{name} FROM STDIN (FORMAT binary)", _copied(source, name))


def _copied(source: Connection, name: str) -> Iterator[bytes]:
    driver: Any = source.connection.driver_connection
    with (
        driver.cursor() as cursor,
        cursor.copy(f"COPY pg_temp.{name} TO STDOUT (FORMAT binary)") as out,
    ):
        for block in out:
            yield bytes(block)


@contextmanager
def suspected(conn: Connection, models: ReadModels) -> Iterator[Suspects]:
    """Give tables for rows of ``models``; they go at the end, or with the connection."""
    tables = Suspects(
        {table: _suspects(number, model) for number, (table, model) in enumerate(models.items())}
    )
    this = "a comparison of read models"
    with resuming(conn, this):
        for table, model in models.items():
            none = select(*model.columns).limit(0)
            name = tables.models[table].table.name
            conn.execute(CreateTableAs(none, name, temporary=True))
    try:
        yield tables
    finally:
        if not conn.invalidated:
            with resuming(conn, this):
                for model in tables.models.values():
                    conn.execute(DropTable(model.table))


def _suspects(number: int, model: ReadModel) -> ReadModel:
    return model.in_table(_temporary(f"stored{number}_of_{model.name}", model.columns))


def _temporary(name: str, columns: Collection[Column[Any]]) -> Table:
    copies = [
        Column(c.name, c.type, primary_key=c.primary_key, autoincrement=False) for c in columns
    ]
    short = name.encode()[:_IDENTIFIER_BYTES_MAX].decode(errors="ignore")
    return Table(short, MetaData(), *copies, schema="pg_temp", prefixes=["TEMPORARY"])


@contextmanager
def one_snapshot(engine: Engine, models: ReadModels) -> Iterator[Connection]:
    """Give a connection that sees one moment: that of the first query.

    Nobody can swap the tables from before that moment on; to write them goes on.
    """
    with engine.connect() as conn, reading(_repeatable(conn)):
        allow_long_statements(conn)
        # LOCK takes no snapshot. A name means what the catalogue says now, not what it said then:
        # without it, a promotion could put other rows under the names of those looked at.
        names = ", ".join(quoted_table(conn, model.table) for model in models.values())
        conn.exec_driver_sql(f"LOCK TABLE {names} IN ACCESS SHARE MODE")
        yield conn


def _repeatable(conn: Connection) -> Connection:
    return conn.execution_options(isolation_level="REPEATABLE READ")


def rows_in_buckets(model: ReadModel, buckets: Collection[int] | None) -> Select[Any]:
    """Return what selects the stored rows of these buckets; of all, if None."""
    rows = select(*model.columns)
    return rows if buckets is None else rows.where(is_in_buckets(model, buckets))


def rows_in_sample(
    conn: Connection, model: ReadModel, takes: Callable[[Hashable], bool], *, name: str
) -> Select[Any]:
    """Return what selects the stored rows whose keys ``takes`` takes.

    They are read by the client, as only Python knows their hash, and put into a temporary table.
    """
    key = model.key_columns
    keys = _temporary(name, key)
    conn.execute(CreateTable(keys))
    columns = tuple(keys.c[c.name] for c in key)
    found = conn.execute(select(*key), execution_options={"stream_results": True})
    for partition in found.partitions(_KEYS_AT_ONCE):
        taken = [tuple(row) for row in partition if takes(_key(row))]
        if taken:
            statement = upsert_statement(keys, columns, len(columns))
            send(conn, statement, columns, zip(*taken, strict=True))
    pairs = (a == b for a, b in zip(key, columns, strict=True))
    return select(*model.columns).where(*pairs)


def _key(row: Any) -> Hashable:  # noqa: ANN401 -- a row of keys
    return row[0] if len(row) == 1 else tuple(row)
