"""Whoever changes what is captured, meets another and those who write, read and refresh."""

from collections.abc import Callable, Iterator
from functools import partial

import pytest
from sqlalchemy import Connection, Engine, func, select, text

from datapatterns.change_log import ChangeLog
from datapatterns.errors import ViewNotPopulatedError
from datapatterns.materialized_view import MaterializedView
from datapatterns.materialized_view.replacing import replace_view
from datapatterns.testing.interleaving import Explorer, InterleavingError, Outcome
from tests.fixtures.effort import torture
from tests.fixtures.view_tables import (
    AnySelect,
    Line,
    Product,
    create,
    create_tables,
    differences_now,
    run,
)
from tests.interleavings.designs.design import Tasks
from tests.interleavings.guards import statements_without

pytestmark = pytest.mark.postgres

LOG = ChangeLog()


def joined() -> AnySelect:
    return select(Product.department, func.count().label("lines")).join(
        Line, Line.product_id == Product.id
    )


def kept() -> AnySelect:
    return joined().group_by(Product.department)


KEPT = MaterializedView("kept", kept())
GOING = MaterializedView("going", kept().add_columns(func.sum(Line.cents).label("cents")))
REPLACED = MaterializedView("going", kept().add_columns(func.sum(Line.week).label("weeks")))
COMING = MaterializedView("coming", kept().add_columns(func.sum(Line.week).label("weeks")))


@pytest.fixture(scope="module", autouse=True)
def _tables(plain: Engine) -> Iterator[None]:
    with plain.begin() as conn:
        create_tables(conn)
    yield
    drop_all(plain)


def in_transaction(engine: Engine, operation: Callable[[Connection], object]) -> None:
    with engine.begin() as conn:
        operation(conn)


def drop_all(plain: Engine) -> None:
    for view in (KEPT, GOING, COMING):
        in_transaction(plain, view.drop)


def begin(plain: Engine) -> None:
    drop_all(plain)
    run(plain, "DELETE FROM line", "DELETE FROM product", "INSERT INTO product VALUES (1, 'tea')")
    create(plain, KEPT, GOING)
    run(plain, "INSERT INTO line VALUES (1, 1, 1, 10, 1)")


def sell_and_look(conn: Connection) -> None:
    """Write both tables, in the order of their names, and look at what that gives in between."""
    conn.execute(text("INSERT INTO line VALUES (2, 1, 1, 10, 1)"))
    conn.execute(select(KEPT.realtime)).all()
    conn.execute(text("UPDATE product SET department = 'coffee'"))


def replace(conn: Connection) -> None:
    """Give a view another query at once, and so release what only the old one has read."""
    definition = REPLACED.definition
    new = definition.blueprint(definition.candidates[0])
    replace_view(conn, definition.names, new, at_once=True)


def is_right(plain: Engine) -> Callable[[Outcome], None]:
    def check(_outcome: Outcome) -> None:
        with plain.begin() as conn:
            if not KEPT.freshness(conn).populated:
                KEPT.populate(conn)
        with plain.connect() as conn:
            assert not differences_now(conn, KEPT, kept())

    return check


def collect(conn: Connection) -> None:
    LOG.collect_garbage(conn)


def restart(conn: Connection) -> None:
    LOG.restart_laggards(conn, pending_rows_max=1)


@torture
@pytest.mark.parametrize(
    "other",
    [
        COMING.create,
        LOG.recapture,
        LOG.rebase,
        KEPT.refresh,
        collect,
        restart,
        sell_and_look,
    ],
)
@pytest.mark.parametrize("changing", [GOING.drop, COMING.create, replace])
def test_nobody_deadlocks_with_who_changes_what_is_captured(
    explorer: Explorer,
    gated: Engine,
    plain: Engine,
    changing: Callable[[Connection], object],
    other: Callable[[Connection], object],
) -> None:
    def meet() -> Tasks:
        begin(plain)
        return {
            "changing": partial(in_transaction, gated, changing),
            "other": partial(in_transaction, gated, other),
        }

    explored = explorer.explore(
        meet,
        invariant=is_right(plain),
        allowed_errors=(ViewNotPopulatedError,),
        max_preemptions=1,
        max_schedules=25,
    )

    assert explored.deadlocks == 0


@torture
def test_without_turns_they_deadlock(explorer: Explorer, gated: Engine, plain: Engine) -> None:
    def meet() -> Tasks:
        begin(plain)
        return {
            "dropping": partial(in_transaction, gated, GOING.drop),
            "creating": partial(in_transaction, gated, COMING.create),
        }

    with (
        statements_without(gated, "pg_advisory_xact_lock(", instead="hashint8("),
        pytest.raises(InterleavingError, match="deadlock, broken by the server"),
    ):
        explorer.explore(meet, invariant=is_right(plain), max_preemptions=1)
