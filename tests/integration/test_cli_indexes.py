"""`datapatterns indexes`: from created to read, compared, mended."""

from pathlib import Path

import pytest
from sqlalchemy import URL, Engine, create_engine, event

from datapatterns.errors import IndexUndeclaredError
from datapatterns.index_table import Indexes, IndexTable
from tests.fixtures.commands import Run, rows
from tests.fixtures.empty_database import shown
from tests.fixtures.index_tables import customer, order_line, tables
from tests.fixtures.index_tables import run as execute

pytestmark = pytest.mark.postgres

APP = """
from datapatterns import DataLayer
from datapatterns.index_table import IndexTable
from tests.fixtures.index_tables import customer, order_line

by_email = IndexTable("customer_by_email", on=[customer.c.email], unique=True)
by_product = IndexTable("line_by_product", on=[order_line.c.product_id], mode="async")
layer = DataLayer({main!r}, shards={{"s1": {shard!r}}}, indexes=[by_email, by_product])
"""
BY_EMAIL = IndexTable("customer_by_email", on=[customer.c.email], unique=True)
BY_PRODUCT = IndexTable("line_by_product", on=[order_line.c.product_id], mode="async")
ROWS = 25


@pytest.fixture
def app(
    database_url: URL,
    shard_urls: list[URL],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[str, str]:
    name = f"indexes_app_{tmp_path.name}"
    text = APP.format(main=shown(database_url), shard=shown(shard_urls[0]))
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "--app", f"{name}:layer"


@pytest.fixture
def customers(engine: Engine) -> Engine:
    """Rows of before, and an index that was created after them."""
    customer.create(engine)
    with engine.begin() as conn:
        execute(
            conn,
            "INSERT INTO customer SELECT 1, n, 'c' || n, 'C' FROM generate_series(1, :rows) n",
            rows=ROWS,
        )
        BY_EMAIL.create(conn)
    return engine


@pytest.mark.usefixtures("customers")
def test_people_see_how_each_index_stands_and_what_to_do(
    run: Run,
    shard_urls: list[URL],
    app: tuple[str, str],
) -> None:
    shard = create_engine(shard_urls[0])
    tables.create_all(shard)
    shard.dispose()

    ran = run("indexes", "list", *app, "--json")
    told = run("indexes", "list", *app)

    states = {(one["name"], one["database"]): one["state"] for one in rows(ran)}
    assert states == {
        ("customer_by_email", "main"): "building",
        ("customer_by_email", "s1"): "missing",
        ("line_by_product", "s1"): "missing",
    }
    assert "datapatterns indexes backfill customer_by_email" in told.err
    assert "create() it in a migration" in told.err


def test_a_backfill_indexes_what_was_there_in_chunks_and_lets_it_be_read(
    run: Run, customers: Engine, app: tuple[str, str]
) -> None:
    would = run("indexes", "backfill", *app, "--dry-run", "--json")
    with customers.connect() as conn:
        assert Indexes([BY_EMAIL]).status(conn)[0].state == "building"

    ran = run("indexes", "backfill", *app, "--chunk-rows", "10", "--json")

    assert [one["done"] for one in rows(would)] == [False]
    assert rows(ran) == [
        {"name": "customer_by_email", "database": "main", "rows": ROWS, "done": True}
    ]
    with customers.connect() as conn:
        assert BY_EMAIL.lookup(conn, "c7")[0].id == 7
    assert "are read already" in run("indexes", "backfill", *app).err


def test_a_backfill_goes_on_where_another_has_ended(customers: Engine) -> None:
    with customers.begin() as conn:
        BY_EMAIL.backfill(conn, limit=20)
    seen = []

    Indexes([BY_EMAIL]).build(
        customers, chunk_rows=10, on_chunk=lambda _, progress: seen.append(progress.rows_done)
    )

    assert seen == [ROWS]


def test_each_chunk_is_a_transaction_of_its_own(customers: Engine) -> None:
    commits: list[object] = []
    event.listen(customers, "commit", commits.append)

    Indexes([BY_EMAIL]).build(customers, chunk_rows=10)

    assert len(commits) >= ROWS // 10 + 2  # and that which lets it be read


def test_what_differs_is_told_with_exit_code_5_and_mended(
    run: Run, customers: Engine, app: tuple[str, str]
) -> None:
    Indexes([BY_EMAIL]).build(customers)
    with customers.begin() as conn:
        execute(conn, "DELETE FROM datapatterns.customer_by_email WHERE email = 'c3'")

    ran = run("indexes", "verify", *app)
    would = run("indexes", "repair", *app, "--dry-run")
    still = run("indexes", "verify", *app, "--json")
    mended = run("indexes", "repair", "customer_by_email", *app)

    assert (ran.code, would.code, still.code, mended.code) == (5, 0, 5, 0)
    assert "c3" in ran.out
    assert "datapatterns indexes repair customer_by_email" in ran.err
    assert run("indexes", "verify", *app).code == 0


@pytest.mark.usefixtures("customers")
@pytest.mark.parametrize("command", ["verify", "repair"])
def test_an_index_that_is_being_built_is_no_damage(
    run: Run, app: tuple[str, str], command: str
) -> None:
    ran = run("indexes", command, *app)

    assert ran.code == 0
    assert "customer_by_email in main is left out: building" in ran.err
    assert run("indexes", "backfill", *app).code == 0
    assert run("indexes", command, *app, "--json").code == 0


@pytest.mark.usefixtures("customers")
def test_an_index_says_how_it_is_kept(run: Run, app: tuple[str, str]) -> None:
    ran = run("indexes", "explain", "line_by_product", *app, "--json")

    [by_product] = rows(ran)
    assert (by_product["mode"], by_product["chosen_because"]) == ("async", None)
    [by_email] = rows(run("indexes", "explain", "customer_by_email", *app, "--json"))
    assert by_email["mode"] == "local"
    assert by_email["chosen_because"] == "rows and index rows are in one database"


def test_people_see_how_far_an_index_is_behind_and_a_worker_catches_up(
    run: Run, engine: Engine, app: tuple[str, str]
) -> None:
    order_line.create(engine)
    with engine.begin() as conn:
        BY_PRODUCT.create(conn)
    assert run("indexes", "backfill", "line_by_product", *app).code == 0
    with engine.begin() as conn:
        execute(conn, "INSERT INTO order_line VALUES (1, 1, 'a'), (2, 1, 'b')")

    [behind] = rows(run("indexes", "lag", *app, "--json"))
    assert run("worker", "--until-caught-up", *app).code == 0
    [caught_up] = rows(run("indexes", "lag", *app, "--json"))

    assert (behind["name"], behind["database"]) == ("line_by_product", "main")
    assert (behind["pending_rows"], behind["must_rebuild"], behind["state"]) == (2, False, "ready")
    assert behind["behind_seconds"] > 0
    assert (caught_up["pending_rows"], caught_up["behind_seconds"]) == (0, 0.0)
    with engine.connect() as conn:
        assert [row.id for row in BY_PRODUCT.lookup(conn, 1)] == [1, 2]


@pytest.mark.usefixtures("customers")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("list", "nobody"), "it is not declared; those that are: customer_by_email"),
        (("verify", "--database", "s9"), "there is no 's9'; those that are: main, s1"),
    ],
)
def test_a_wrong_name_is_refused_with_those_that_are(
    run: Run, app: tuple[str, str], arguments: tuple[str, ...], said: str
) -> None:
    ran = run("indexes", *arguments, *app)

    assert ran.code == 2
    assert said in " ".join(ran.err.split())


def test_an_app_without_indexes_is_told_so(run: Run, at: tuple[str, str]) -> None:
    ran = run("indexes", "list", *at)

    assert ran.code == 2
    assert "DataLayer(indexes=[...])" in ran.err


def test_two_indexes_of_one_name_are_refused() -> None:
    twin = IndexTable("customer_by_email", on=[order_line.c.note])
    elsewhere = IndexTable("elsewhere", on=[order_line.c.note], schema="other")

    with pytest.raises(IndexUndeclaredError, match="two are declared"):
        Indexes([BY_EMAIL, twin])
    with pytest.raises(IndexUndeclaredError, match="in schema 'other'"):
        Indexes([elsewhere])
