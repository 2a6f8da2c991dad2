"""Whatever writers do and however they overlap, a refreshed view is what its query gives."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, func, select, text
from sqlalchemy.orm import aliased

from datapatterns.change_log import ChangeLog
from datapatterns.materialized_view import MaterializedView
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

WRITERS = 3
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
    st.builds(Act, st.sampled_from(["commit", "commit", "roll back"]), writers),
    st.builds(Act, st.just("roll back to a savepoint"), writes),
    st.builds(Act, st.sampled_from(["refresh", "refresh", "refresh", "verify", "rebuild"]), views),
    st.builds(Act, st.just("look"), st.tuples(writers, views)),
    st.builds(Act, st.just("truncate"), st.sampled_from(["line", "product"])),
    st.builds(Act, st.just("collect garbage"), st.none()),
)
# Long enough that refreshes fall between a write and its commit: tried with guards taken out.
schedules = st.lists(writes | acts, min_size=15, max_size=50)


class World:
    """Three writers, each in a transaction whenever it has written, and a view of each kind."""

    def __init__(self, engine: Engine, connections: list[Connection]) -> None:
        self.engine = engine
        self.writers = connections

    def act(self, act: Write | Act) -> None:
        match act:
            case Write():
                self._write(act)
            case Act("commit", writer):
                self.writers[writer].commit()
            case Act("roll back", writer):
                self.writers[writer].rollback()
            case Act("roll back to a savepoint", write):
                with self.writers[write.writer].begin_nested() as savepoint:
                    self._write(write)
                    savepoint.rollback()
            case Act("look", (writer, view)):
                # With whatever this one has written and nobody else sees.
                assert differences_now(self.writers[writer], VIEWS[view], QUERIES[view]) == 0
            case Act(verb, whom):
                self._maintain(verb, whom)

    def _write(self, write: Write) -> None:
        self.writers[write.writer].execute(text(write.statement), write._asdict())

    def _maintain(self, verb: str, whom: str) -> None:
        match verb:
            case "refresh":
                refresh(self.engine, VIEWS[whom])
            case "verify":
                assert verify(self.engine, VIEWS[whom]) == []
            case "rebuild":
                with self.engine.begin() as conn:
                    VIEWS[whom].rebuild(conn)
            case "truncate" if not any(writer.in_transaction() for writer in self.writers):
                run(self.engine, f"TRUNCATE {whom}")
            case "collect garbage":
                with self.engine.begin() as conn:
                    ChangeLog().collect_garbage(conn)
            case _:
                pass  # whoever truncates would wait for the writers


@pytest.fixture(scope="module")
def shop(module_engine: Engine) -> Engine:
    with module_engine.begin() as conn:
        create_tables(conn)
    create(module_engine, *VIEWS.values())
    return module_engine


@pytest.fixture(scope="module")
def connections(shop: Engine) -> Iterator[list[Connection]]:
    with ExitStack() as stack:
        yield [stack.enter_context(shop.connect()) for _ in range(WRITERS)]


@pytest.mark.timeout(3600)  # as for the whole torture: a mark outdoes the command line
@given(schedule=schedules)
def test_a_refreshed_view_is_what_its_query_gives(
    shop: Engine, connections: list[Connection], schedule: list[Write | Act]
) -> None:
    world = World(shop, connections)
    try:
        run(shop, "DELETE FROM line", "DELETE FROM product")
        for act in schedule:
            world.act(act)
    finally:
        for number, writer in enumerate(connections):
            writer.commit() if number else writer.rollback()

    for view in VIEWS.values():
        refresh(shop, view)
    assert {n: differences(shop, VIEWS[n], query) for n, query in QUERIES.items()} == dict.fromkeys(
        QUERIES, 0
    )
