"""Partitions that come, are written to and go again before anybody has looked."""

import pytest
from sqlalchemy import Engine, text

from datapatterns.materialized_view import MaterializedView
from tests.fixtures.sales_in_partitions import BY_DAY, LOG, NAMED, lay_out, named, refreshed
from tests.fixtures.view_tables import create, differences, differences_now, run

pytestmark = pytest.mark.postgres

VIEWS = BY_DAY | {named: NAMED}
CREATE = "CREATE TABLE p PARTITION OF sale FOR VALUES FROM (40) TO (50)"
INSERT = "INSERT INTO sale VALUES (1, 41, 'a', 3)"
FILLED = ["CREATE TABLE p (LIKE sale)", "INSERT INTO p VALUES (1, 41, 'a', 3)"]
ATTACH = "ALTER TABLE sale ATTACH PARTITION p FOR VALUES FROM (40) TO (50)"
LEAVE = "ALTER TABLE sale DETACH PARTITION sale_0"
ELSEWHERE = "ALTER TABLE sale ATTACH PARTITION sale_0 FOR VALUES FROM (40) TO (50)"
BACK = "ALTER TABLE sale ATTACH PARTITION sale_0 FOR VALUES FROM (0) TO (10)"
DELETE = "DELETE FROM sale WHERE day = 41"
PASSING = {
    "created, filled, dropped": [CREATE, INSERT, "DROP TABLE p"],
    "attached full, emptied, dropped": [*FILLED, ATTACH, DELETE, "DROP TABLE p"],
    "the same, and the default is written to": [*FILLED, ATTACH, DELETE, "DROP TABLE p", INSERT],
    "attached full, updated, dropped": [
        *FILLED, ATTACH, "UPDATE sale SET cents = 9 WHERE day = 41", "DROP TABLE p",
    ],
    "a captured one, full, elsewhere and back": [
        LEAVE, "UPDATE sale_0 SET day = 41", ELSEWHERE, DELETE, LEAVE, BACK,
    ],
    "a captured one, filled elsewhere, and back": [
        LEAVE, "DELETE FROM sale_0", ELSEWHERE, INSERT, LEAVE, "DELETE FROM sale_0", BACK,
    ],
    "a captured one, written to by its own name elsewhere": [
        LEAVE, "DELETE FROM sale_0", ELSEWHERE, "INSERT INTO sale_0 VALUES (1, 41, 'a', 3)",
        LEAVE, "DELETE FROM sale_0", BACK,
    ],
    "one with partitions of its own": [
        f"{CREATE} PARTITION BY LIST (town)", "CREATE TABLE p_a PARTITION OF p DEFAULT", INSERT,
        "DROP TABLE p",
    ],
    "one below another": [
        "CREATE TABLE p PARTITION OF sale_1 FOR VALUES IN ('z')",
        "INSERT INTO sale VALUES (1, 11, 'z', 3)",
        "DROP TABLE p",
    ],
}  # fmt: skip


@pytest.fixture(params=VIEWS, ids=lambda view: view.name)
def view(request: pytest.FixtureRequest, engine: Engine) -> MaterializedView:
    view: MaterializedView = request.param
    lay_out(engine)
    run(engine, "DELETE FROM sale WHERE day > 39")
    create(engine, view)
    return view


@pytest.mark.parametrize("at_once", [False, True], ids=["", "one transaction"])
@pytest.mark.parametrize("statements", PASSING.values(), ids=PASSING)
def test_what_was_there_in_between_leaves_nothing_wrong(
    engine: Engine, view: MaterializedView, statements: list[str], *, at_once: bool
) -> None:
    for some in [statements] if at_once else [[each] for each in statements]:
        run(engine, *some)

    with engine.connect() as conn:
        assert differences_now(conn, view, VIEWS[view]) == 0
    report = refreshed(engine, view)
    assert differences(engine, view, VIEWS[view]) == 0, report


def test_a_writer_that_sees_an_older_moment_tells_as_well(
    engine: Engine, view: MaterializedView
) -> None:
    """Its rows go into the partition, which its snapshot does not show."""
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as writer:
        writer.execute(text("SELECT 1"))
        run(engine, CREATE)
        writer.execute(text(INSERT))
        writer.commit()
    run(engine, "DROP TABLE p")

    refreshed(engine, view)
    assert differences(engine, view, VIEWS[view]) == 0


def test_what_has_been_captured_again_is_told_of_no_more(
    engine: Engine, view: MaterializedView
) -> None:
    run(engine, CREATE)
    with engine.begin() as conn:
        LOG.recapture(conn)
    refreshed(engine, view)
    run(engine, INSERT)

    assert refreshed(engine, view).reason is None
    assert differences(engine, view, VIEWS[view]) == 0
    with engine.connect() as conn:
        [log] = conn.scalars(
            text("SELECT log_name FROM datapatterns.captured_table WHERE table_name = 'sale'")
        )
        marks = text(f"SELECT count(*) FROM datapatterns.{log} WHERE change_sign = 0")  # noqa: S608 -- ours
        assert conn.execute(marks).scalar_one() == 0


def test_who_captures_again_after_a_partition_went_locks_once(engine: Engine) -> None:
    lay_out(engine)
    view = next(iter(VIEWS))
    create(engine, view)
    run(engine, "DROP TABLE sale_2")
    for _ in range(2):
        with engine.begin() as conn:
            LOG.capture(conn, "sale", ["day", "cents"])
    run(engine, INSERT)

    refreshed(engine, view)
    assert differences(engine, view, VIEWS[view]) == 0
