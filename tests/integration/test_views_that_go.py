"""Whoever looks at views while they are dropped or replaced is told so in our own words."""

from collections.abc import Callable

import pytest
from sqlalchemy import Connection, Engine, event, func, select, text

from datapatterns.change_log import ChangeLog
from datapatterns.errors import SnapshotOutdatedError, ViewChangedError, ViewMissingError
from datapatterns.materialized_view import MaterializedView, Views, ViewState
from datapatterns.materialized_view.replacing import replace_view
from tests.fixtures.view_tables import Line, Product, create, create_tables, run

pytestmark = pytest.mark.postgres

LINES = select(Line.week, func.count().label("lines")).group_by(Line.week)
VIEW = MaterializedView("weekly", LINES)
OTHER = MaterializedView("weekly", select(func.count(Product.id).label("products")))
LOG = ChangeLog()


@pytest.fixture(autouse=True)
def _view(engine: Engine) -> None:
    with engine.begin() as conn:
        create_tables(conn)
    create(engine, VIEW)
    run(engine, "INSERT INTO line VALUES (1, 1, 1, 1, 1)")


def before(engine: Engine, what: str, act: Callable[[Connection], object]) -> None:
    """Commit something just before a statement with ``what`` in it is sent for the first time."""
    left = [act]

    @event.listens_for(engine, "before_cursor_execute")
    def look(_conn: Connection, _cursor: object, statement: str, *_: object) -> None:
        if left and what in statement:
            acting = left.pop()
            with engine.begin() as conn:
                acting(conn)


def replace_at_once(conn: Connection) -> None:
    definition = OTHER.definition
    new = definition.blueprint(definition.candidates[0])
    replace_view(conn, definition.names, new, at_once=True)


def test_a_view_that_is_dropped_meanwhile_is_missing(engine: Engine) -> None:
    before(engine, "change_log_", VIEW.drop)
    with engine.begin() as conn:
        (found,) = Views([VIEW]).status(conn)
        assert found.state is ViewState.MISSING
        assert conn.scalar(text("SELECT 1")) == 1


def test_a_view_that_is_replaced_meanwhile_has_changed(engine: Engine) -> None:
    before(engine, "change_log_", replace_at_once)
    with engine.begin() as conn:
        (found,) = Views([VIEW]).status(conn)
        assert found.state is ViewState.CHANGED


def test_a_view_that_is_dropped_meanwhile_cannot_be_compared(engine: Engine) -> None:
    before(engine, "weekly_realtime", VIEW.drop)
    with engine.begin() as conn, pytest.raises(ViewMissingError):
        VIEW.verify(conn)


def test_a_view_that_is_shown_by_an_older_snapshot_is_not_compared(engine: Engine) -> None:
    with (
        engine.connect().execution_options(isolation_level="REPEATABLE READ") as conn,
        conn.begin(),
    ):
        conn.execute(text("SELECT 1"))
        with engine.begin() as other:
            VIEW.drop(other)
        with pytest.raises(SnapshotOutdatedError, match="begin it again"):
            VIEW.freshness(conn)
        with pytest.raises(SnapshotOutdatedError, match="begin it again"):
            LOG.status(conn)


def test_a_view_of_which_a_part_is_gone_is_to_be_replaced(engine: Engine) -> None:
    run(engine, "DROP VIEW datapatterns.weekly_realtime")
    with engine.begin() as conn, pytest.raises(ViewChangedError, match="replace it"):
        VIEW.verify(conn)


@pytest.mark.parametrize(
    "look", [LOG.status, lambda conn: LOG.restart_laggards(conn, pending_rows_max=1)]
)
def test_a_log_that_is_released_meanwhile_is_left_out(
    engine: Engine, look: Callable[[Connection], object]
) -> None:
    before(engine, 'SELECT FROM "datapatterns"."change_log_', VIEW.drop)
    with engine.begin() as conn:
        look(conn)
        assert LOG.status(conn).logs == {}


def test_a_consumer_that_is_forgotten_meanwhile_is_left_out(engine: Engine) -> None:
    create(engine, MaterializedView("again", LINES))  # so that the log stays
    before(engine, "has_switched", VIEW.drop)
    with engine.begin() as conn:
        assert [*LOG.status(conn).consumers] == ["view:again"]


def test_who_looks_again_and_again_without_a_transaction_is_answered(engine: Engine) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        assert VIEW.freshness(conn).pending_rows == 1
        assert LOG.status(conn).consumers["view:weekly"].pending_rows == 1
