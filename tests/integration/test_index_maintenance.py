"""Every way to write to a table, and what is done to the table itself."""

import pytest
from sqlalchemy import (
    Boolean,
    Column,
    ColumnElement,
    Computed,
    Connection,
    Engine,
    Integer,
    MetaData,
    Table,
    Text,
    cast,
    collate,
    column,
    func,
    literal_column,
    text,
)
from sqlalchemy.exc import DBAPIError, NotSupportedError, ProgrammingError

from datapatterns.errors import IndexDefinitionError
from datapatterns.index_table import IndexTable
from tests.fixtures.index_tables import assert_agrees, build, customer, run, tables

pytestmark = pytest.mark.postgres

by_email = IndexTable("customer_by_email", on=[customer.c.email], unique=True)
by_name = IndexTable("customer_by_name", on=[customer.c.name], include=[customer.c.balance])


@pytest.fixture(autouse=True)
def indexed(engine: Engine) -> None:
    tables.create_all(engine)
    with engine.begin() as conn:
        run(
            conn,
            "INSERT INTO customer SELECT 1, g, 'm' || g, 'n' || g % 3, g"
            " FROM generate_series(1, 9) g",
        )
    build(engine, by_email)
    build(engine, by_name)


STATEMENTS = {
    "many rows": "INSERT INTO customer SELECT 2, g, 'x' || g, 'n' FROM generate_series(1, 99) g",
    "no row": "UPDATE customer SET name = 'x' WHERE false",
    "swap": "UPDATE customer a SET email = b.email FROM customer b"
    " WHERE a.id + b.id = 10 AND a.id <> 5",
    "shift of unique keys": "UPDATE customer SET email = 'm' || (id + 1)",
    "primary key": "UPDATE customer SET tenant_id = 9, id = id + 100",
    "upsert": "INSERT INTO customer VALUES (1, 1, 'other', 'up'), (1, 50, 'm50', 'new')"
    " ON CONFLICT (tenant_id, id) DO UPDATE SET email = excluded.email, name = excluded.name",
    "upsert of nothing": "INSERT INTO customer VALUES (1, 1, 'm1', 'x') ON CONFLICT DO NOTHING",
    "to null": "UPDATE customer SET email = NULL, name = NULL WHERE id < 5",
    "unrelated": "UPDATE customer SET balance = balance WHERE id < 5",
    "included": "UPDATE customer SET balance = NULL WHERE id < 5",
    "delete": "DELETE FROM customer WHERE id < 5",
    "truncate": "TRUNCATE customer",
    "several at once": "WITH gone AS (DELETE FROM customer WHERE id < 4 RETURNING id),"
    " moved AS (UPDATE customer SET name = 'moved' WHERE id > 6 RETURNING id)"
    " INSERT INTO customer SELECT 7, id, 'cte' || id, 'cte' FROM gone",
    "replica": "SET LOCAL session_replication_role = replica;"
    "INSERT INTO customer VALUES (3, 1, 'replica', 'r'); DELETE FROM customer WHERE id = 9",
    "key of one row": "UPDATE customer SET email = 'one', name = 'one' WHERE id = 4",
    "primary key of one row": "UPDATE customer SET id = 40 WHERE id = 4",
    "primary key and key of one row": "UPDATE customer SET id = 40, email = 'x' WHERE id = 4",
    "included of one row": "UPDATE customer SET balance = balance + 1 WHERE id = 4",
    "unrelated of one row": "UPDATE customer SET balance = balance WHERE id = 4",
    "one row to null and back": "UPDATE customer SET email = NULL, name = NULL WHERE id = 4;"
    "UPDATE customer SET balance = 4 WHERE id = 4;"
    "UPDATE customer SET email = 'm4', name = 'n' WHERE id = 4",
    "upsert of one row": "INSERT INTO customer VALUES (1, 4, 'up', 'up')"
    " ON CONFLICT (tenant_id, id) DO UPDATE SET email = excluded.email, name = excluded.name",
    "unicode": "UPDATE customer SET email = 'Ünïcødé 漢字 ' || id, name = repeat('é', 500)",
}


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
@pytest.mark.parametrize("statement", STATEMENTS.values(), ids=STATEMENTS.keys())
def test_no_statement_is_missed(engine: Engine, statement: str, level: str) -> None:
    with engine.connect().execution_options(isolation_level=level) as conn:
        conn.exec_driver_sql(statement)
        conn.commit()

    with engine.connect() as conn:
        assert_agrees(conn, by_email)
        assert_agrees(conn, by_name)


def test_merge_is_not_missed(conn: Connection) -> None:
    if conn.dialect.server_version_info < (15,):  # type: ignore[operator]  # known once connected
        pytest.skip("MERGE came with PostgreSQL 15")

    run(
        conn,
        "MERGE INTO customer c USING (VALUES (1, 'z'), (2, NULL), (77, 'new')) v (id, email)"
        " ON c.id = v.id WHEN MATCHED AND v.email IS NULL THEN DELETE"
        " WHEN MATCHED THEN UPDATE SET email = v.email"
        " WHEN NOT MATCHED THEN INSERT VALUES (1, v.id, v.email, 'merged')",
    )

    assert assert_agrees(conn, by_email) == 9
    assert assert_agrees(conn, by_name) == 9


def test_copy_and_cascades_are_not_missed(engine: Engine) -> None:
    with engine.begin() as conn:
        run(conn, "CREATE TABLE tenant (tenant_id bigint PRIMARY KEY)")
        run(conn, "INSERT INTO tenant SELECT generate_series(1, 3)")
        run(
            conn,
            "ALTER TABLE customer ADD FOREIGN KEY (tenant_id) REFERENCES tenant"
            " ON DELETE CASCADE ON UPDATE CASCADE",
        )
    with engine.begin() as conn:
        cursor = conn.connection.cursor()
        with cursor.copy("COPY customer (tenant_id, id, email) FROM STDIN") as copy:
            for number in range(500):
                copy.write_row((2, number, f"copied {number}"))
    with engine.begin() as conn:
        assert assert_agrees(conn, by_email) == 509
        run(conn, "UPDATE tenant SET tenant_id = 8 WHERE tenant_id = 2")
        assert by_email.lookup(conn, "copied 7")[0].tenant_id == 8
        run(conn, "DELETE FROM tenant WHERE tenant_id = 1")
        assert assert_agrees(conn, by_email) == 500


def test_an_update_that_changes_no_index_row_writes_none(engine: Engine) -> None:
    with engine.begin() as conn:
        before = conn.execute(text("SELECT ctid FROM datapatterns.customer_by_email")).all()
        run(conn, "UPDATE customer SET balance = 0")

        after = conn.execute(text("SELECT ctid FROM datapatterns.customer_by_email")).all()
        assert after == before


def test_an_update_of_one_row_that_computes_the_same_index_row_writes_none(engine: Engine) -> None:
    by_lower = IndexTable(
        "customer_by_lower",
        on=[func.lower(customer.c.email)],
        unique=True,
        include=[customer.c.balance],
        where=customer.c.name != "hidden",
    )
    build(engine, by_lower)
    places = text("SELECT id, ctid FROM datapatterns.customer_by_lower WHERE id <> 6 ORDER BY id")
    with engine.begin() as conn:
        before = conn.execute(places).all()
        run(conn, "UPDATE customer SET email = upper(email) WHERE id = 4")
        run(conn, "UPDATE customer SET name = 'other' WHERE id = 4")
        run(conn, "UPDATE customer SET balance = balance WHERE id = 5")

        assert conn.execute(places).all() == before
        # As much as before, but written in another way.
        run(conn, "UPDATE customer SET balance = 6.00 WHERE id = 6")
        assert str(by_lower.lookup_range(conn, "m6")[0].entry.included["balance"]) == "6.00"
        run(conn, "UPDATE customer SET name = 'hidden' WHERE id = 6")
        assert assert_agrees(conn, by_lower) == 8
        run(conn, "UPDATE customer SET name = 'shown' WHERE id = 6")
        assert assert_agrees(conn, by_lower) == 9


def test_a_key_of_a_collation_of_its_own_is_kept_row_by_row(engine: Engine) -> None:
    metadata = MetaData()
    word = Table(
        "word",
        metadata,
        Column("spelling", Text(collation="C"), primary_key=True),
        Column("meaning", Text),
    )
    index = IndexTable(
        "word_by_meaning", on=[collate(func.lower(word.c.meaning), "POSIX"), word.c.spelling]
    )
    metadata.create_all(engine)
    build(engine, index)
    with engine.begin() as conn:
        run(conn, "INSERT INTO word VALUES ('a', 'A'), ('b', 'B')")
        run(conn, "UPDATE word SET meaning = 'É' WHERE spelling = 'a'")
        run(conn, "UPDATE word SET spelling = 'c' WHERE spelling = 'b'")
        assert [row.spelling for row in index.lookup(conn, "b", "c")] == ["c"]
        assert assert_agrees(conn, index) == 2


def test_columns_that_an_index_uses_cannot_be_dropped_or_retyped(engine: Engine) -> None:
    for change in (
        "DROP COLUMN email",
        "ALTER COLUMN email TYPE varchar(50)",
        "DROP COLUMN balance",
    ):
        with engine.connect() as conn, pytest.raises(DBAPIError, match=r"view|depend"):
            run(conn, f"ALTER TABLE customer {change}")
    with engine.connect() as conn, pytest.raises(DBAPIError, match="depend"):
        run(conn, "DROP TABLE customer")

    with engine.begin() as conn:
        run(conn, "ALTER TABLE customer ADD COLUMN later text DEFAULT 'x'")
        run(conn, "INSERT INTO customer VALUES (1, 99, 'm99', 'n', 0, 'y')")
        assert assert_agrees(conn, by_email) == 10


def test_a_renamed_column_stops_writers_loudly_until_it_is_called_back(engine: Engine) -> None:
    with engine.begin() as conn:
        run(conn, "ALTER TABLE customer RENAME COLUMN email TO mail")
    with engine.connect() as conn, pytest.raises(ProgrammingError, match="email"):
        run(conn, "UPDATE customer SET mail = 'x' WHERE id = 1")

    with engine.begin() as conn:
        run(conn, "ALTER TABLE customer RENAME COLUMN mail TO email")
        run(conn, "UPDATE customer SET email = 'x' WHERE id = 1")
        assert assert_agrees(conn, by_email) == 9


def test_an_index_can_be_dropped_after_its_table(engine: Engine) -> None:
    with engine.begin() as conn:
        run(conn, "DROP TABLE customer CASCADE")
        assert by_email.drop(conn)
        assert by_name.drop(conn)

        left = conn.execute(
            text("SELECT relname FROM pg_class WHERE relname LIKE '%customer_by%'")
        ).all()
        assert not left
    with engine.connect() as conn, pytest.raises(IndexDefinitionError, match="no table customer"):
        by_email.create(conn)


def test_dropping_an_index_never_drops_a_table_of_the_library(engine: Engine) -> None:
    impostor = IndexTable("index_backfill", on=[customer.c.email])

    with engine.begin() as conn:
        assert not impostor.drop(conn)
        with pytest.raises(IndexDefinitionError, match="already exists"):
            impostor.create(conn)
        assert by_email.lookup(conn, "m1")


def test_names_may_need_quotes(engine: Engine) -> None:
    metadata = MetaData(schema='Weird "Schema"')
    strange = Table(
        'Tablé % "x" :y',
        metadata,
        Column("Id", Integer, primary_key=True),
        Column('Käy % "q" :z', Text, key="key"),
        Column("ü" * 31, Text, key="long"),
        Column("select", Boolean),
    )
    index = IndexTable(
        "Nämé \"' % :x", on=[strange.c.key], include=[strange.c.long], where=strange.c.select
    )
    with engine.begin() as conn:
        run(conn, 'CREATE SCHEMA "Weird ""Schema"""')
        metadata.create_all(conn)
        conn.execute(strange.insert().values(Id=1, key="a", long="b", select=True))
    build(engine, index)

    with engine.begin() as conn:
        conn.execute(strange.insert().values(Id=2, key="a", long="c", select=True))
        conn.execute(strange.insert().values(Id=3, key="a", long="c", select=False))
        assert [row.Id for row in index.lookup(conn, "a")] == [1, 2]
        assert [len(rows) for rows in index.lookup_many(conn, ["a", "b"]).values()] == [2, 0]
        assert [match.row.Id for match in index.lookup_range(conn, low="a")] == [1, 2]
        assert assert_agrees(conn, index) == 2


def refused(engine: Engine, ddl: str, index: IndexTable, advice: str) -> None:
    with engine.begin() as conn:
        conn.exec_driver_sql(ddl)
        with pytest.raises(IndexDefinitionError, match=advice):
            index.create(conn)
        # The transaction goes on and nothing is left behind.
        assert not index.drop(conn)
        left = text("SELECT count(*) FROM pg_class WHERE relname LIKE :name || '%'")
        assert not conn.scalar(left, {"name": index.name})


thing = Table("thing", MetaData(), Column("id", Integer, primary_key=True), Column("k", Text))
by_k = IndexTable("thing_by_k", on=[thing.c.k])
BASE = "id int PRIMARY KEY, k text"


@pytest.mark.parametrize(
    ("ddl", "advice"),
    [
        (f"CREATE TABLE thing ({BASE}) PARTITION BY HASH (id)", "partitioned"),
        (f"CREATE TABLE thing ({BASE}); CREATE TABLE c () INHERITS (thing)", "inherited"),
        (f"CREATE UNLOGGED TABLE thing ({BASE})", "unlogged"),
        (f"CREATE TEMP TABLE thing ({BASE})", "temporary"),
        (f"CREATE TABLE thing ({BASE}); ALTER TABLE thing ENABLE ROW LEVEL SECURITY", "row-level"),
        ("CREATE TABLE thing (id int, k text)", "make them agree"),
        ("CREATE TABLE thing (id int PRIMARY KEY DEFERRABLE, k text)", "not deferrable"),
        ("CREATE VIEW thing AS SELECT 1 AS id, 'x' AS k", "only a table"),
        ("CREATE TABLE thing (id int PRIMARY KEY)", "does not exist"),
        ("CREATE TABLE thing (id int PRIMARY KEY, k json)", "json"),
    ],
)
def test_a_table_that_could_not_be_kept_right_is_refused(
    engine: Engine, ddl: str, advice: str
) -> None:
    refused(engine, ddl, by_k, advice)


def test_a_key_under_which_different_strings_are_equal_is_refused(engine: Engine) -> None:
    loose = (
        "CREATE COLLATION loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
    )
    try:
        with engine.begin() as conn:
            run(conn, loose)
    except NotSupportedError:
        pytest.skip("this server was built without ICU, so it has no such collations")

    ddl = "CREATE TABLE thing (id int PRIMARY KEY, k text COLLATE loose)"
    refused(engine, ddl, by_k, "collation")


def test_an_expression_that_is_not_immutable_is_refused(engine: Engine) -> None:
    index = IndexTable("thing_by_random", on=[func.concat(thing.c.k, func.now())])

    refused(engine, f"CREATE TABLE thing ({BASE})", index, "IMMUTABLE")


def test_a_predicate_that_is_not_immutable_is_refused(engine: Engine) -> None:
    index = IndexTable(
        "thing_by_now", on=[thing.c.k], where=func.now() > thing.c.k.op("::")(text("timestamptz"))
    )

    refused(engine, f"CREATE TABLE thing ({BASE})", index, "IMMUTABLE")


def test_a_function_that_the_trigger_would_not_find_is_refused(engine: Engine) -> None:
    index = IndexTable("thing_by_own", on=[func.own_lower(thing.c.k)])

    refused(
        engine,
        f"CREATE TABLE thing ({BASE}); CREATE FUNCTION own_lower(text) RETURNS text"
        " IMMUTABLE LANGUAGE sql AS 'SELECT lower($1)'",
        index,
        "own_lower",
    )


def test_an_expression_that_would_mean_something_else_to_the_trigger_is_refused(
    engine: Engine,
) -> None:
    for_bob = IndexTable("for_bob", on=[customer.c.name], where=customer.c.email == "Bob")
    with engine.begin() as conn:
        by_email.drop(conn)
        run(conn, "CREATE EXTENSION citext; ALTER TABLE customer ALTER email TYPE citext")

        with pytest.raises(IndexDefinitionError, match="doesn't search"):
            for_bob.create(conn)

        as_text = cast(customer.c.email, Text) == "Bob"
        assert IndexTable("for_bob", on=[customer.c.name], where=as_text).create(conn)


@pytest.mark.parametrize("predicate", [literal_column("email").is_not(None), column("email") > "a"])
def test_a_name_that_is_no_column_of_the_table_is_refused(
    conn: Connection, predicate: ColumnElement[bool]
) -> None:
    with pytest.raises(IndexDefinitionError, match="ambiguous"):
        IndexTable("nameless", on=[customer.c.email], where=predicate).create(conn)


def test_blanks_at_the_end_are_a_change(engine: Engine) -> None:
    by_id = IndexTable("customer_by_id", on=[customer.c.id], include=[customer.c.name])
    with engine.begin() as conn:
        by_name.drop(conn)
        run(conn, "ALTER TABLE customer ALTER name TYPE bpchar")
    build(engine, by_id)

    with engine.begin() as conn:
        run(conn, "UPDATE customer SET name = name || '   ' WHERE id < 5")
        run(conn, "UPDATE customer SET name = 'x   ' WHERE id = 6")
        run(conn, "UPDATE customer SET name = 'x' WHERE id = 6")
        assert_agrees(conn, by_id)


def test_virtual_generated_columns_are_refused_and_stored_ones_kept(engine: Engine) -> None:
    metadata = MetaData()
    generated = Table(
        "generated",
        metadata,
        Column("id", Integer, primary_key=True),
        Column("twice", Integer, Computed("id * 2", persisted=True)),
    )
    index = IndexTable("by_twice", on=[generated.c.twice])
    metadata.create_all(engine)
    build(engine, index)
    with engine.begin() as conn:
        run(conn, "INSERT INTO generated VALUES (1), (2)")
        run(conn, "UPDATE generated SET id = 3 WHERE id = 1")
        assert [row.id for row in index.lookup(conn, 6)] == [3]
        assert assert_agrees(conn, index) == 2
        if conn.dialect.server_version_info < (18,):  # type: ignore[operator]  # known by now
            return
    virtual = IndexTable("thing_by_k", on=[thing.c.k])
    refused(
        engine,
        "CREATE TABLE thing (id int PRIMARY KEY, k text GENERATED ALWAYS AS ('x') VIRTUAL)",
        virtual,
        "STORED",
    )
