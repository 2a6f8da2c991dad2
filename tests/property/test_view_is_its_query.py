"""Whatever writers do and however they overlap, a refreshed view is what its query gives."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, func, select, text
from sqlalchemy.orm import aliased

from datapatterns.change_log import ChangeLog, capture_statements
from datapatterns.materialized_view import MaterializedView
from tests.fixtures.effort import dear
from tests.fixtures.overlapping import (
    LEVELS,
    TURNS,
    Tally,
    connections_of_each_level,
    serializable_gives_way,
    take_turn,
)
from tests.fixtures.view_tables import (
    AnySelect,
    Line,
    create,
    create_tables,
    differences,
    differences_now,
    largest_lines,
    refresh,
    run,
    verify,
    weekly_sales,
)

WRITERS = len(LEVELS)
other = aliased(Line)
QUERIES: dict[str, AnySelect] = {
    "weekly_sales": weekly_sales(),
    "pairs": select(other.week, func.count().label("n"), func.sum(Line.cents).label("cents"))
    .join(Line, Line.product_id == other.product_id)
    .group_by(other.week),
    "totals": select(func.count(Line.cents).label("n"), func.sum(Line.cents).label("cents")).where(
        Line.week.is_not(None)
    ),
    "largest_lines": largest_lines(),
    "rows": select(Line.week, Line.cents, Line.weight),
}
VIEWS = {name: MaterializedView(name, query) for name, query in QUERIES.items()}


class Write(NamedTuple):
    """A statement of one writer, who touches no rows of another and so never waits."""

    writer: int
    statement: str
    id: int
    week: int | None
    product_id: int | None
    cents: int | None
    weight: str | None
    department: str | None


class Act(NamedTuple):
    """Something else that happens, to a writer or a view or a table."""

    verb: str
    whom: Any


STATEMENTS = [
    (
        "INSERT INTO line VALUES (3 * :id + :writer, :week, :product_id, :cents, :weight)"
        " ON CONFLICT (id) DO UPDATE SET week = excluded.week, product_id = excluded.product_id,"
        " cents = excluded.cents, weight = excluded.weight"
    ),
    (
        "INSERT INTO line SELECT 3 * g + :writer, :week, :product_id, :cents, :weight"
        " FROM generate_series(10, 10 + :id) g ON CONFLICT DO NOTHING"
    ),
    "UPDATE line SET cents = cents + 1, week = :week WHERE id % 3 = :writer AND id <= 3 * :id",
    "UPDATE line SET product_id = :product_id WHERE id % 3 = :writer",
    "DELETE FROM line WHERE id % 3 = :writer AND id >= 3 * :id",
    (
        "INSERT INTO product VALUES (:writer + 1, :department)"
        " ON CONFLICT (id) DO UPDATE SET department = excluded.department"
    ),
    "DELETE FROM product WHERE id = :writer + 1",
]
writers = st.integers(0, WRITERS - 1)
writes = st.builds(
    Write,
    writer=writers,
    statement=st.sampled_from(STATEMENTS),
    id=st.integers(0, 5),
    week=st.sampled_from([None, 1, 2]),
    product_id=st.sampled_from([None, 1, 2, 3]),
    cents=st.none() | st.integers(-5, 5),
    weight=st.sampled_from([None, "1.5", "1.50", "1e-20", "NaN"]),
    department=st.sampled_from([None, "a", "b"]),
)
views = st.sampled_from(list(VIEWS))
acts = st.one_of(
    st.builds(Act, st.sampled_from(TURNS), writers),
    st.builds(Act, st.sampled_from(TURNS), writers),
    st.builds(Act, st.sampled_from(["refresh", "refresh", "refresh", "verify", "rebuild"]), views),
    st.builds(Act, st.just("look"), st.tuples(writers, views)),
    st.builds(Act, st.just("truncate"), st.sampled_from(["line", "product"])),
    st.builds(Act, st.just("collect garbage"), st.none()),
)
# Long enough that refreshes fall between a write and its commit: tried with guards taken out.
schedules = st.lists(writes | acts, min_size=15, max_size=50)


class World:
    """A writer of each isolation level, and a view of each kind."""

    def __init__(self, engine: Engine, connections: list[Connection], tally: Tally) -> None:
        self.engine = engine
        self.writers = connections
        self.tally = tally

    def act(self, act: Write | Act) -> None:
        match act:
            case Write():
                self._write(act)
            case Act("look", (writer, view)):
                # With whatever this one has written and nobody else sees.
                assert differences_now(self.writers[writer], VIEWS[view], QUERIES[view]) == 0
                self.tally.count()
            case Act(turn, writer) if turn in TURNS:
                take_turn(self.writers[writer], turn)
            case Act(verb, whom):
                self._maintain(verb, whom)

    def refresh(self, name: str) -> None:
        """Compare what is stored, before anybody commits more."""
        refresh(self.engine, VIEWS[name])
        assert differences(self.engine, VIEWS[name], QUERIES[name]) == 0
        self.tally.count()

    def _write(self, write: Write) -> None:
        self.writers[write.writer].execute(text(write.statement), write._asdict())

    def _maintain(self, verb: str, whom: str) -> None:
        match verb:
            case "refresh":
                self.refresh(whom)
            case "verify":
                assert verify(self.engine, VIEWS[whom]) == []
                self.tally.count()
            case "rebuild":
                with self.engine.begin() as conn:
                    VIEWS[whom].rebuild(conn)
            case "truncate" if not any(writer.in_transaction() for writer in self.writers):
                run(self.engine, f"TRUNCATE {whom}")
            case "collect garbage":
                with self.engine.begin() as conn:
                    ChangeLog().collect_garbage(conn)
            case _:
                pass  # it waits for who has written, and takes rows from older snapshots


@pytest.fixture(scope="module")
def many_are_two() -> Iterator[None]:
    """So that statements of few rows are logged in batches, from their second row on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(capture_statements, "SINGLE_ROWS", 1)
        yield


@pytest.fixture(scope="module")
def shop(module_engine: Engine, many_are_two: None) -> Engine:  # noqa: ARG001
    with module_engine.begin() as conn:
        create_tables(conn)
    create(module_engine, *VIEWS.values())
    return module_engine


@pytest.fixture(scope="module")
def connections(shop: Engine) -> Iterator[list[Connection]]:
    with connections_of_each_level(shop) as connections:
        yield connections


@pytest.mark.timeout(3600)  # as for the whole torture: a mark outdoes the command line
@dear
@given(schedule=schedules)
def test_a_refreshed_view_is_what_its_query_gives(
    shop: Engine, connections: list[Connection], tally: Tally, schedule: list[Write | Act]
) -> None:
    world = World(shop, connections, tally)
    try:
        run(shop, "DELETE FROM line", "DELETE FROM product")
        for act in schedule:
            with serializable_gives_way(connections):
                world.act(act)
    finally:
        for number, writer in enumerate(connections):
            writer.commit() if number else writer.rollback()

    for name in VIEWS:
        world.refresh(name)
