"""Write to a table whose changes are captured for a view, beside a bare table, in SQL alone.

Also beside the least trigger that logs changes, and beside keeping the view within the writer's
statement under its lock, which is what pg_ivm publishes of its way
(https://github.com/sraoss/pg_ivm); the extension itself is in no wheel.
"""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from sqlalchemy import (
    URL,
    BigInteger,
    Connection,
    Engine,
    Integer,
    create_engine,
    func,
    select,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks.interleaving import Claim, Contestant
from datapatterns import DataLayer
from datapatterns.embedded.accounts import server_account
from datapatterns.embedded.installation import postgres_programs
from datapatterns.materialized_view import MaterializedView
from datapatterns.migrations import Migrations

GROUPS = 10_000
WRITERS = 8
CASES = (1, 1_000)
"""Rows of one statement."""

STATEMENTS = {1: 6_400, 1_000: 160}
"""By all writers, in a round."""


class Base(DeclarativeBase):
    """The table of this benchmark."""


class Sale(Base):
    """One line of a receipt."""

    __tablename__ = "sale"

    sale_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    product: Mapped[int] = mapped_column(Integer)
    cents: Mapped[int] = mapped_column(BigInteger)


SOLD = MaterializedView(
    "sold",
    select(Sale.product, func.count().label("lines"), func.sum(Sale.cents).label("cents")).group_by(
        Sale.product
    ),
)
_LOGGED = """
CREATE TABLE delta (xid xid8 NOT NULL DEFAULT pg_current_xact_id(), product int, cents bigint);
CREATE FUNCTION log_delta() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO delta (product, cents) SELECT product, cents FROM new_rows; RETURN NULL; END $$;
CREATE TRIGGER log_delta AFTER INSERT ON sale REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION log_delta();
"""
_IMMEDIATE = """
CREATE TABLE kept (product int PRIMARY KEY, lines bigint, cents numeric);
CREATE FUNCTION lock_kept() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    LOCK TABLE kept IN EXCLUSIVE MODE; RETURN NULL; END $$;
CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO kept AS k SELECT product, count(*), sum(cents) FROM new_rows GROUP BY product
    ON CONFLICT (product) DO UPDATE
    SET lines = k.lines + excluded.lines, cents = k.cents + excluded.cents;
    RETURN NULL; END $$;
CREATE TRIGGER lock_kept BEFORE INSERT ON sale FOR EACH STATEMENT EXECUTE FUNCTION lock_kept();
CREATE TRIGGER keep AFTER INSERT ON sale REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION keep();
"""


@contextmanager
def claim(rows: int) -> Iterator[Claim]:
    """The same INSERT in four databases of one server."""
    with ExitStack() as stack:
        layer = stack.enter_context(DataLayer.embedded())
        folder = Path(stack.enter_context(TemporaryDirectory()))
        script = folder / "insert.sql"
        script.write_text(_insert(rows))
        made = {"captured": _capture, "bare": _nothing, "logged": _log, "immediate": _keep}
        clients = {
            name: _clients(_database(layer.engine, name, make), script, STATEMENTS[rows])
            for name, make in made.items()
        }
        yield Claim(
            f"INSERT of {rows:,} rows, {WRITERS} writers, a view of {GROUPS:,} groups",
            "statements",
            [
                Contestant("captured for a view", "ours", clients["captured"]),
                Contestant("bare table", "limit", clients["bare"]),
                Contestant("statement trigger into a delta table", "limit", clients["logged"]),
                Contestant("kept at once, under its lock", "rival", clients["immediate"]),
            ],
        )


def _insert(rows: int) -> str:
    if rows == 1:
        return (
            f"\\set product random(1, {GROUPS})\n"
            "INSERT INTO sale (product, cents) VALUES (:product, 149);\n"
        )
    return (
        "INSERT INTO sale (product, cents)"
        f" SELECT 1 + floor(random() * {GROUPS})::int, 149 FROM generate_series(1, {rows});\n"
    )


def _database(main: Engine, name: str, make: Callable[[Engine], None]) -> URL:
    with main.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.execute(text(f"CREATE DATABASE {name}"))
    url = main.url.set(database=name)
    Migrations({name: url}).upgrade()
    engine = create_engine(url)
    Base.metadata.create_all(engine)
    make(engine)
    engine.dispose()
    return url


def _capture(engine: Engine) -> None:
    with engine.begin() as conn:
        SOLD.create(conn)
    with engine.begin() as conn:
        SOLD.populate(conn)


def _nothing(engine: Engine) -> None:
    """Leave the table bare."""


def _log(engine: Engine) -> None:
    with engine.begin() as conn:
        _run(conn, _LOGGED)


def _keep(engine: Engine) -> None:
    with engine.begin() as conn:
        _run(conn, _IMMEDIATE)


def _run(conn: Connection, statements: str) -> None:
    conn.exec_driver_sql(statements)


def _clients(url: URL, script: Path, statements: int) -> Callable[[], int]:
    program = postgres_programs(server_account()).programs / "pgbench"
    each = statements // WRITERS
    command: list[str | Path] = [program, "--no-vacuum", "--protocol=prepared"]
    command += [f"--client={WRITERS}", "--jobs=2", f"--transactions={each}"]
    command += [f"--file={script}", f"--host={url.query['host']}", f"--port={url.query['port']}"]
    command += [f"--username={url.username}", str(url.database)]

    def run() -> int:
        subprocess.run(command, check=True, capture_output=True)  # noqa: S603 -- ours
        return each * WRITERS

    return run
