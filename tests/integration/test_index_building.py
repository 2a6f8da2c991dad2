"""How the building of indexes ends: read, or failed with the reasons; and what is swept up."""

import pytest
from sqlalchemy import Engine

from datapatterns.errors import IndexFailedError, IndexNotReadyError
from datapatterns.index_table import Indexes, IndexTable
from datapatterns.index_table.finishing import begin_verifying
from tests.fixtures.commands import Run, rows
from tests.fixtures.empty_database import shown
from tests.fixtures.index_tables import (
    assert_agrees,
    backfill,
    build,
    customer,
    order_line,
    tables,
)
from tests.fixtures.index_tables import run as execute_in

pytestmark = pytest.mark.postgres

by_email = IndexTable("customer_by_email", on=[customer.c.email], unique=True)
by_product = IndexTable("line_by_product", on=[order_line.c.product_id])
by_product_later = IndexTable("line_by_product_later", on=[order_line.c.product_id], mode="async")
KEPT = pytest.mark.parametrize("index", [by_product, by_product_later], ids=["local", "async"])


@pytest.fixture(autouse=True)
def rows_from_before(engine: Engine) -> None:
    tables.create_all(engine)
    with engine.begin() as conn:
        execute_in(conn, "INSERT INTO order_line SELECT g, g, 'n' FROM generate_series(1, 20) g")
        execute_in(
            conn,
            "INSERT INTO customer"
            " VALUES (1, 1, 'ann'), (1, 2, 'bob'), (1, 3, 'ann'), (2, 1, 'ann')",
        )


def execute(engine: Engine, *statements: str) -> None:
    with engine.begin() as conn:
        for statement in statements:
            execute_in(conn, statement)


def create(engine: Engine, index: IndexTable) -> None:
    with engine.begin() as conn:
        index.create(conn)


def state(engine: Engine, index: IndexTable) -> str:
    with engine.connect() as conn:
        [report] = Indexes([index]).status(conn)
    return report.state


def test_two_rows_with_one_key_end_the_building_of_a_unique_index_and_are_named(
    engine: Engine,
) -> None:
    indexes = Indexes([by_email])
    create(engine, by_email)

    with pytest.raises(IndexFailedError, match="2 rows have a key that another row has") as failed:
        indexes.build(engine, chunk_rows=2)

    assert "datapatterns indexes conflicts customer_by_email" in str(failed.value)
    assert "ann" not in str(failed.value), "an error shows no values"
    with engine.connect() as conn:
        [report] = indexes.status(conn)
        assert report.state == "failed"
        assert report.problem is not None
        assert report.problem.startswith("2 rows without index row")
        conflicts = indexes.conflicts(conn, "customer_by_email")
        with pytest.raises(IndexNotReadyError, match="is failed; datapatterns indexes list"):
            by_email.lookup(conn, "ann")
        assert len(by_email.lookup(conn, "ann", miss="scan")) == 3
    assert [(c.key, c.primary_key, c.holder) for c in conflicts] == [
        ({"email": "ann"}, {"tenant_id": 1, "id": 3}, {"tenant_id": 1, "id": 1}),
        ({"email": "ann"}, {"tenant_id": 2, "id": 1}, {"tenant_id": 1, "id": 1}),
    ]


def test_one_that_has_failed_is_built_once_it_is_mended_and_retried(engine: Engine) -> None:
    indexes = Indexes([by_email])
    create(engine, by_email)
    with pytest.raises(IndexFailedError):
        indexes.build(engine)
    assert indexes.build(engine) == {}, "it is left alone until somebody says so"

    execute(
        engine,
        "DELETE FROM customer WHERE tenant_id = 1 AND id = 1",
        "UPDATE customer SET email = 'cid' WHERE tenant_id = 2",
    )
    assert indexes.retry(engine) == ["customer_by_email"]
    assert indexes.retry(engine) == []

    assert indexes.build(engine)["customer_by_email"].clean
    with engine.connect() as conn:
        assert assert_agrees(conn, by_email) == 3
        assert [row.id for row in by_email.lookup(conn, "ann")] == [3]
        assert indexes.conflicts(conn, "customer_by_email") == []


def test_one_that_was_not_mended_fails_again(engine: Engine) -> None:
    indexes = Indexes([by_email])
    create(engine, by_email)
    for _ in range(2):
        with pytest.raises(IndexFailedError):
            indexes.build(engine)
        indexes.retry(engine)


@KEPT
def test_what_somebody_wrote_into_it_is_gone_after_a_retry(
    engine: Engine, index: IndexTable
) -> None:
    indexes = Indexes([index])
    create(engine, index)
    backfill(engine, index)
    execute(
        engine,
        f"INSERT INTO datapatterns.{index.name} VALUES (1, 99)",  # noqa: S608
        f"DELETE FROM datapatterns.{index.name} WHERE id = 3",  # noqa: S608
    )
    with pytest.raises(IndexFailedError, match="1 rows without index row, 1 index rows without"):
        indexes.build(engine)

    indexes.retry(engine)

    assert indexes.build(engine)[index.name].clean
    with engine.connect() as conn:
        assert assert_agrees(conn, index) == 20


@KEPT
def test_whoever_finds_one_being_compared_takes_over(engine: Engine, index: IndexTable) -> None:
    create(engine, index)
    backfill(engine, index)
    with engine.begin() as conn:
        begin_verifying(conn, index.definition)
    assert state(engine, index) == "verifying"
    with engine.connect() as conn, pytest.raises(IndexNotReadyError, match="is verifying"):
        index.lookup(conn, 5)

    assert Indexes([index]).build(engine)[index.name].clean
    assert state(engine, index) == "ready"


def test_nothing_is_compared_before_all_rows_are_indexed(engine: Engine) -> None:
    create(engine, by_product)
    with engine.begin() as conn, pytest.raises(IndexNotReadyError):
        begin_verifying(conn, by_product.definition)


# -- sweeping --------------------------------------------------------------------------------------


def leave_orphans(engine: Engine, index: IndexTable) -> None:
    execute(
        engine,
        f"INSERT INTO datapatterns.{index.name} SELECT g, g + 1 FROM generate_series(1, 9) g",  # noqa: S608
    )


@KEPT
def test_index_rows_that_lead_nowhere_are_swept_up_in_chunks(
    engine: Engine, index: IndexTable
) -> None:
    build(engine, index)
    leave_orphans(engine, index)
    indexes = Indexes([index])

    counted = indexes.sweep(engine, dry_run=True)[index.name]
    swept = indexes.sweep(engine, chunk_rows=4)[index.name]

    assert (counted.orphaned, counted.removed) == (9, 0)
    assert (swept.orphaned, swept.removed) == (9, 9)
    assert indexes.sweep(engine)[index.name].removed == 0
    with engine.connect() as conn:
        assert assert_agrees(conn, index) == 20


@KEPT
def test_until_they_are_swept_up_nobody_is_shown_them(engine: Engine, index: IndexTable) -> None:
    build(engine, index)
    leave_orphans(engine, index)

    with engine.connect() as conn:
        assert [row.id for row in index.lookup(conn, 5)] == [5]
        assert [match.row.id for match in index.lookup_range(conn, 5)] == [5]


def test_sweeping_an_index_without_orphans_makes_no_writer_wait(engine: Engine) -> None:
    build(engine, by_product)
    with engine.connect() as writer:
        execute_in(writer, "UPDATE order_line SET product_id = 5 WHERE id = 6")
        assert Indexes([by_product]).sweep(engine)[by_product.name].removed == 0
        writer.rollback()


def test_a_sweep_does_not_take_what_is_pending_for_left_over(engine: Engine) -> None:
    build(engine, by_product_later)
    execute(engine, "DELETE FROM order_line WHERE id < 5")
    indexes = Indexes([by_product_later])

    assert indexes.sweep(engine, dry_run=True)[by_product_later.name].orphaned == 0
    assert indexes.sweep(engine)[by_product_later.name].removed == 0
    with engine.connect() as conn:
        assert assert_agrees(conn, by_product_later) == 16


# -- on the command line ---------------------------------------------------------------------------

APP = """
from datapatterns import DataLayer
from tests.integration.test_index_building import by_email

layer = DataLayer({url!r}, indexes=[by_email])
"""


@pytest.fixture
def app(
    engine: Engine, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("app")
    name = f"building_app_{folder.name}"
    (folder / f"{name}.py").write_text(APP.format(url=shown(engine.url)))
    monkeypatch.syspath_prepend(str(folder))
    return "--app", f"{name}:layer"


def test_people_see_why_an_index_has_failed_mend_that_and_retry(
    run: Run, engine: Engine, app: tuple[str, str]
) -> None:
    create(engine, by_email)

    failed = run("indexes", "backfill", *app)
    listed = run("indexes", "list", *app)
    conflicts = rows(run("indexes", "conflicts", "customer_by_email", *app, "--json"))

    assert failed.code == 5
    assert "datapatterns indexes retry customer_by_email" in failed.err
    assert "is failed (2 rows without index row" in listed.err
    assert [one["primary_key"] for one in conflicts] == ["tenant_id=1, id=3", "tenant_id=2, id=1"]
    execute(engine, "DELETE FROM customer WHERE email = 'ann' AND (tenant_id, id) <> (1, 1)")
    [told] = rows(run("indexes", "retry", *app, "--dry-run", "--json"))
    assert not told["retried"]
    assert state(engine, by_email) == "failed"
    [told] = rows(run("indexes", "retry", *app, "--json"))
    assert told["retried"]
    assert run("indexes", "backfill", *app).code == 0
    assert state(engine, by_email) == "ready"


def test_people_sweep_up_what_leads_nowhere(run: Run, engine: Engine, app: tuple[str, str]) -> None:
    execute(engine, "DELETE FROM customer WHERE id > 2 OR tenant_id = 2")
    build(engine, by_email)
    execute(engine, "INSERT INTO datapatterns.customer_by_email VALUES ('zoe', 9, 9)")

    [counted] = rows(run("indexes", "sweep", *app, "--dry-run", "--json"))
    [swept] = rows(run("indexes", "sweep", *app, "--json"))
    [again] = rows(run("indexes", "sweep", *app, "--json"))

    assert (counted["orphaned"], counted["removed"]) == (1, 0)
    assert (swept["orphaned"], swept["removed"]) == (1, 1)
    assert (again["orphaned"], again["removed"]) == (0, 0)
