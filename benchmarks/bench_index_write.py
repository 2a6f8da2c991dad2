"""Write to a table with index tables of mode local and async, beside triggers by hand and none.

Once with a commit for each statement, as applications do, and once in a loop of the server in one
transaction, where neither a client nor a commit hides what triggers cost.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy import BigInteger, Column, Engine, MetaData, Table, Text, text

from benchmarks.interleaving import Claim, Contestant
from datapatterns import DataLayer
from datapatterns.index_table import Indexes, IndexTable

ROWS = 1_000_000
STATEMENTS = 3_000
COMMITS = 300
CASES = ((1, True), (3, True), (1, False), (3, False))
"""How many index tables, and whether each statement is committed."""

KEYS = ("product", "shop", "cashier")

# What people write: the old index rows go, the new ones come. Nothing is compared, and neither
# NULLs, TRUNCATE, replication, triggers of the application nor REPEATABLE READ are thought of.
_BY_HAND = """
CREATE TABLE {table}_{key} ({key} bigint, id bigint, PRIMARY KEY ({key}, id));
INSERT INTO {table}_{key} SELECT {key}, id FROM {table};
CREATE FUNCTION keep_{table}_{key}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF TG_OP <> 'INSERT' THEN
        DELETE FROM {table}_{key} i USING old_rows o WHERE (i.{key}, i.id) = (o.{key}, o.id);
    END IF;
    IF TG_OP <> 'DELETE' THEN
        INSERT INTO {table}_{key} SELECT {key}, id FROM new_rows;
    END IF;
    RETURN NULL; END $$;
CREATE TRIGGER {key}_i AFTER INSERT ON {table} REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION keep_{table}_{key}();
CREATE TRIGGER {key}_u AFTER UPDATE ON {table} REFERENCING OLD TABLE AS old_rows
    NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION keep_{table}_{key}();
CREATE TRIGGER {key}_d AFTER DELETE ON {table} REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION keep_{table}_{key}();
"""
_WRITE = """
DO $$ DECLARE k bigint := {first}; BEGIN
    FOR n IN 1..{statements} / 3 LOOP
        k := k + 1;
        INSERT INTO {table} VALUES (k, n, n, n, 'memo');
        UPDATE {table} SET product = product + 1, shop = shop + 1, cashier = cashier + 1
        WHERE id = k;
        DELETE FROM {table} WHERE id = k;
    END LOOP;
END $$
"""


@contextmanager
def claim(case: tuple[int, bool]) -> Iterator[Claim]:
    """The same statements on four tables of one server."""
    indexes, commits = case
    keys = KEYS[:indexes]
    writing = _committing if commits else _writing
    how = "each committed" if commits else "in a loop of the server"
    with DataLayer.embedded() as layer:
        engine = layer.engine
        for name in ("kept", "later", "by_hand", "bare"):
            _fill(engine, name)
        _index(engine, "kept", keys, "local")
        _index(engine, "later", keys, "async")
        with engine.begin() as conn:
            for key in keys:
                conn.exec_driver_sql(_BY_HAND.format(table="by_hand", key=key))
        with engine.connect() as conn:
            conn.execution_options(isolation_level="AUTOCOMMIT").execute(text("VACUUM ANALYZE"))
        yield Claim(
            f"statements of one row on {ROWS:,}, {indexes} index tables, {how}",
            "statements",
            [
                Contestant("mode local", "ours", writing(engine, "kept")),
                Contestant("triggers by hand", "limit", writing(engine, "by_hand")),
                Contestant("mode async, its writers", "rival", writing(engine, "later")),
                Contestant("no index table", "limit", writing(engine, "bare")),
            ],
        )


def _fill(engine: Engine, name: str) -> None:
    columns = [Column("id", BigInteger, primary_key=True, autoincrement=False)]
    columns += [Column(key, BigInteger) for key in KEYS]
    made = Table(name, MetaData(), *columns, Column("memo", Text))
    made.create(engine)
    with engine.begin() as conn:
        conn.execute(
            text(
                f"INSERT INTO {name} SELECT n, n % 100000, n % 10000, n % 1000, 'memo'"
                f" FROM generate_series(1, {ROWS}) n"
            )
        )


def _index(engine: Engine, name: str, keys: tuple[str, ...], mode: str) -> None:
    base = Table(name, MetaData(), autoload_with=engine)
    declared = [
        IndexTable(f"{name}_by_{key}", on=[base.c[key]], mode=mode)  # type: ignore[arg-type]
        for key in keys
    ]
    for index in declared:
        with engine.begin() as conn:
            index.create(conn)
    Indexes(declared).build(engine, chunk_rows=ROWS)


def _writing(engine: Engine, table: str) -> Callable[[], int]:
    statement = _WRITE.format(table=table, first=ROWS, statements=STATEMENTS)

    def run() -> int:
        with engine.begin() as conn:
            conn.exec_driver_sql(statement)
        return STATEMENTS

    return run


def _committing(engine: Engine, table: str) -> Callable[[], int]:
    row = {"id": ROWS + 1}
    statements = [
        text(f"INSERT INTO {table} VALUES (:id, 1, 1, 1, 'memo')"),
        text(
            f"UPDATE {table} SET product = product + 1, shop = shop + 1, cashier = cashier + 1"
            " WHERE id = :id"
        ),
        text(f"DELETE FROM {table} WHERE id = :id"),
    ]
    times = COMMITS // 3

    def run() -> int:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
            for _ in range(times):
                for statement in statements:
                    conn.execute(statement, row)
        return 3 * times

    return run
