"""Whoever works on a view is killed at each step: it was nothing or all, and the next one goes on.

A step is a round trip to the server, whatever sends it: statements, savepoints, COMMIT.
"""

import logging
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, Text, cast, func, select, text

from datapatterns.change_log import ChangeLog, Snapshot
from datapatterns.change_log.consuming import advance_consumer
from datapatterns.errors import ViewChangedError, ViewMissingError, ViewNotPopulatedError
from datapatterns.materialized_view import Full, MaterializedView, Strategy, refreshing
from datapatterns.materialized_view.replacing import replace_view
from datapatterns.testing import wait_until
from datapatterns.testing.interleaving import (
    Exploration,
    Explorer,
    Fault,
    Gate,
    InterleavingError,
    Outcome,
)
from tests.fixtures.effort import THOROUGH
from tests.fixtures.view_tables import (
    AnySelect,
    Line,
    Product,
    create,
    create_tables,
    largest_lines,
    run,
    verify,
    weekly_sales,
)
from tests.interleavings.designs.design import Tasks, is_commit

logger = logging.getLogger(__name__)

pytestmark = pytest.mark.postgres


def positive_sales() -> AnySelect:
    return weekly_sales().where(Line.cents > 0)


def products() -> AnySelect:
    return select(Product.department, func.count().label("products")).group_by(Product.department)


COUNTED = MaterializedView("sales", weekly_sales())
GROUPED = MaterializedView("sales", largest_lines())
REBUILT = MaterializedView("sales", weekly_sales(), maintain=Full())
SAME_COLUMNS = MaterializedView("sales", positive_sales())
OTHER_COLUMNS = MaterializedView("sales", products())
QUERIES = {
    COUNTED: weekly_sales(),
    GROUPED: largest_lines(),
    REBUILT: weekly_sales(),
    SAME_COLUMNS: positive_sales(),
    OTHER_COLUMNS: products(),
}
HELD = text(
    "SELECT count(*) FROM pg_locks WHERE pid <> pg_backend_pid() AND locktype <> 'virtualxid'"
    " AND (database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    " OR locktype IN ('transactionid', 'advisory'))"
)
LEFT = text(
    "SELECT 'relation ' || relname FROM pg_class"
    " WHERE relname LIKE 'sales%' AND relkind IN ('v', 'r')"
    " UNION ALL SELECT 'view ' || name FROM datapatterns.materialized_view"
    " UNION ALL SELECT 'consumer ' || name FROM datapatterns.change_consumer"
    " UNION ALL SELECT 'captured table' FROM datapatterns.captured_table"
)
SHOWN = text("SELECT s::text FROM datapatterns.sales AS s")

LEFT_OF_ONE = 6
"""Three plain views, a table, and one row each of view and consumer; beside captured tables."""

Step = Callable[[Engine], None]
Rows = list[str] | None


@dataclass(frozen=True)
class Deed:
    """What somebody is killed at.

    Attributes:
        act: What is done; and then done again, by the next one.
        old: The view before, with changes pending.
        new: The view after.
        prepare: What comes in between.
        empties: Readers may find the view empty, or not there, meanwhile.
    """

    act: Step
    old: MaterializedView | None
    new: MaterializedView | None
    prepare: Step = lambda _: None
    empties: bool = False


def refresh(engine: Engine, view: MaterializedView) -> None:
    with engine.begin() as conn:
        view.refresh(conn)


def rebuild(engine: Engine, view: MaterializedView) -> None:
    with engine.begin() as conn:
        view.rebuild(conn)


def drop(engine: Engine) -> None:
    with engine.begin() as conn:
        COUNTED.drop(conn)


def collect(engine: Engine) -> None:
    with engine.begin() as conn:
        ChangeLog().collect_garbage(conn)
    refresh(engine, COUNTED)


def rebase(engine: Engine) -> None:
    """Begin the log anew, as in another server."""
    with engine.begin() as conn:
        ChangeLog().rebase(conn)
    rebuild(engine, COUNTED)


def replace(engine: Engine, view: MaterializedView, *, at_once: bool = False) -> None:
    """Migrate to ``view``, populate it, and let it take the old one's place."""
    definition = view.definition
    blueprint = definition.blueprint(definition.candidates[0])
    with engine.begin() as conn:
        replace_view(conn, definition.names, blueprint, at_once=at_once)
    rebuild(engine, view)
    refresh(engine, view)


def truncate(engine: Engine) -> None:
    run(engine, "TRUNCATE line", "INSERT INTO line VALUES (9, 9, 1, 9, 9)")


def stand_upon(engine: Engine) -> None:
    run(
        engine,
        "DROP VIEW IF EXISTS upon",
        "CREATE VIEW upon AS SELECT 1 AS one FROM datapatterns.sales",
    )


DEEDS = {
    "refresh by counting": Deed(partial(refresh, view=COUNTED), COUNTED, COUNTED),
    "refresh of groups": Deed(partial(refresh, view=GROUPED), GROUPED, GROUPED),
    "refresh by rebuilding": Deed(partial(refresh, view=REBUILT), REBUILT, REBUILT),
    "refresh by counting after TRUNCATE": Deed(
        partial(refresh, view=COUNTED), COUNTED, COUNTED, truncate
    ),
    "refresh of groups after TRUNCATE": Deed(
        partial(refresh, view=GROUPED), GROUPED, GROUPED, truncate
    ),
    "rebuild what is counted": Deed(partial(rebuild, view=COUNTED), COUNTED, COUNTED),
    "rebuild groups": Deed(partial(rebuild, view=GROUPED), GROUPED, GROUPED),
    "rebuild": Deed(partial(rebuild, view=REBUILT), REBUILT, REBUILT),
    "create, and populate by counting": Deed(
        lambda engine: create(engine, COUNTED), None, COUNTED, empties=True
    ),
    "create, and populate groups": Deed(
        lambda engine: create(engine, GROUPED), None, GROUPED, empties=True
    ),
    "drop": Deed(drop, COUNTED, None),
    "collect garbage": Deed(collect, COUNTED, COUNTED),
    "rebase": Deed(rebase, COUNTED, COUNTED),
    "replace by the same columns": Deed(partial(replace, view=SAME_COLUMNS), COUNTED, SAME_COLUMNS),
    "replace by other columns, below a view": Deed(
        partial(replace, view=OTHER_COLUMNS), COUNTED, OTHER_COLUMNS, stand_upon
    ),
    "replace at once": Deed(
        partial(replace, view=SAME_COLUMNS, at_once=True), COUNTED, SAME_COLUMNS, empties=True
    ),
}
STEP_BY_STEP_EVERY_DAY = {"refresh by counting", "refresh of groups"}
"""The rest at COMMIT only; all in ``make torture``."""


@pytest.fixture(scope="module", autouse=True)
def _tables(plain: Engine) -> Iterator[None]:
    with plain.begin() as conn:
        create_tables(conn)
    yield
    forget(plain)


def forget(plain: Engine) -> None:
    run(plain, "DROP VIEW IF EXISTS upon")
    drop(plain)


def begin(plain: Engine, deed: Deed) -> None:
    """Begin a schedule: one of three lines is not shown by the view yet, and another is no more."""
    forget(plain)
    run(
        plain,
        "DELETE FROM line",
        "DELETE FROM product",
        "INSERT INTO product VALUES (1, 'dairy'), (2, NULL)",
        "INSERT INTO line VALUES (1, 1, 1, 100, 1), (2, 2, 2, -5, 1)",
    )
    if deed.old is not None:
        create(plain, deed.old)
    deed.prepare(plain)
    run(
        plain,
        "INSERT INTO line VALUES (3, 1, 1, 50, 1)",
        "UPDATE line SET product_id = 1 WHERE id = 2",
    )


def nothing_is_held(plain: Engine) -> None:
    """Wait until the server has noticed that its client is no more, and see that it lets go."""
    with plain.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        wait_until(lambda: conn.scalar(HELD) == 0)


def shown(plain: Engine) -> Rows:
    """Return what readers see, or None if there is no view."""
    with plain.connect() as conn:
        if conn.scalar(select(func.to_regclass("datapatterns.sales"))) is None:
            return None
        return sorted(conn.scalars(SHOWN))


def wanted(plain: Engine, deed: Deed) -> Rows:
    """Return what they are to see in the end."""
    if deed.new is None:
        return None
    query = QUERIES[deed.new].subquery("wanted")
    with plain.connect() as conn:
        return sorted(conn.scalars(select(cast(func.row(*query.c), Text))))


def is_right_if_it_is_there(plain: Engine, view: MaterializedView) -> None:
    """Compare what is stored and pending with the query, if there is such a version."""
    try:
        wrong = verify(plain, view)
    except (ViewChangedError, ViewMissingError, ViewNotPopulatedError):
        return
    assert wrong == [], "what is stored and pending differs from the query"


def left(plain: Engine) -> list[str]:
    """Return all that is there because of the view."""
    with plain.connect() as conn:
        return sorted(conn.scalars(LEFT))


def explore(
    deed: Deed,
    explorer: Explorer,
    gated: Engine,
    plain: Engine,
    *,
    kill_at: Callable[[Gate], bool] = lambda _: True,
    faults: Collection[Fault] = (Fault.REQUEST_LOST,),
) -> Exploration:
    """Kill whoever does it at each step, and look at what that leaves."""
    before: Rows = None

    def meet() -> Tasks:
        nonlocal before
        begin(plain, deed)
        before = shown(plain)
        return {"worker": partial(deed.act, gated)}

    def nothing_or_all(_outcome: Outcome) -> None:
        nothing_is_held(plain)
        allowed = [before, wanted(plain, deed), *([[], None] if deed.empties else [])]
        found = shown(plain)
        assert found in allowed, f"readers see {found}"
        for view in (deed.old, deed.new):
            if view is not None:
                is_right_if_it_is_there(plain, view)
        deed.act(plain)
        assert shown(plain) == wanted(plain, deed), "what the next one does comes to something else"
        if deed.new is None:
            assert left(plain) == []
            return
        assert verify(plain, deed.new) == []
        assert len(set(left(plain)) - {"captured table"}) == LEFT_OF_ONE

    return explorer.explore(meet, invariant=nothing_or_all, crash_at=kill_at, faults=faults)


@pytest.mark.parametrize("name", DEEDS)
def test_whoever_is_killed_leaves_nothing_half_done(
    name: str, explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    step_by_step = THOROUGH or name in STEP_BY_STEP_EVERY_DAY

    explored = explore(
        DEEDS[name],
        explorer,
        gated,
        plain,
        kill_at=lambda gate: step_by_step or is_commit(gate),
        faults=[*Fault] if THOROUGH else [Fault.REQUEST_LOST],
    )

    assert explored.exhausted
    logger.info("%s: %d deaths", name, explored.schedules - 1)


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        ("refresh by counting", Strategy.COUNTING),
        ("refresh of groups", Strategy.GROUPS),
        ("refresh by rebuilding", Strategy.REBUILD),
        ("refresh by counting after TRUNCATE", Strategy.REBUILD),
        ("refresh of groups after TRUNCATE", Strategy.REBUILD),
    ],
)
def test_a_refresh_is_of_the_kind_that_it_is_called(
    plain: Engine, name: str, strategy: Strategy
) -> None:
    deed = DEEDS[name]
    assert deed.old is not None
    begin(plain, deed)

    with plain.begin() as conn:
        report = deed.old.refresh(conn)

    assert report is not None
    assert report.strategy is strategy


def test_rows_and_consumer_that_are_committed_apart_are_found(
    explorer: Explorer, gated: Engine, plain: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def commit_and_advance(
        conn: Connection,
        name: str,
        read: Snapshot,
        *,
        schema: str,
        **more: Any,  # noqa: ANN401 -- passed on as it came
    ) -> bool:
        conn.exec_driver_sql("COMMIT; BEGIN")
        return advance_consumer(conn, name, read, schema=schema, **more)

    monkeypatch.setattr(refreshing, "advance_consumer", commit_and_advance)
    with pytest.raises(InterleavingError, match="stored and pending"):
        explore(DEEDS["refresh by counting"], explorer, gated, plain)
