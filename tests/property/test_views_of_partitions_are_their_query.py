"""However partitions come and go between writers, a refreshed view of their table is its query."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.errors import (
    CheckViolation,
    DuplicateTable,
    InvalidObjectDefinition,
    LockNotAvailable,
    UndefinedTable,
    WrongObjectType,
)
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from datapatterns.change_log import ChangeLog
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
from tests.fixtures.sales_in_partitions import BY_DAY, NAMED, TABLES, named, recapture, refreshed
from tests.fixtures.view_tables import (
    AnySelect,
    create,
    differences,
    differences_now,
    run,
    verify,
)

VIEWS: dict[MaterializedView, AnySelect] = BY_DAY | {named: NAMED}
EXPECTED = (
    CheckViolation,
    DuplicateTable,
    InvalidObjectDefinition,
    LockNotAvailable,
    UndefinedTable,
    WrongObjectType,
)

"""A partition is not there, or is already; a row has no place; somebody holds what is altered."""

PARTITIONS = {
    "sale_0": ("sale", "FOR VALUES FROM (0) TO (10)"),
    "sale_1": ("sale", "FOR VALUES FROM (10) TO (20)"),
    "sale_1_a": ("sale_1", "FOR VALUES IN ('a', NULL)"),
    "sale_2": ("sale", "FOR VALUES FROM (20) TO (30)"),
    "sale_rest": ("sale", "DEFAULT"),
}
CHANGES = [
    *(f"ALTER TABLE {t} DETACH PARTITION {name}" for name, (t, _) in PARTITIONS.items()),
    *(f"ALTER TABLE {t} ATTACH PARTITION {name} {b}" for name, (t, b) in PARTITIONS.items()),
    *(f"TRUNCATE {name}" for name in PARTITIONS),
    *(f"TRUNCATE {name}" for name in PARTITIONS),
    "TRUNCATE sale",
    "TRUNCATE town",
    "DROP TABLE sale_2",
    "CREATE TABLE sale_2 (LIKE sale)",
    "CREATE TABLE sale_2 PARTITION OF sale FOR VALUES FROM (20) TO (30)",
    # It moves while it is away, or is not captured.
    "ALTER TABLE sale ATTACH PARTITION sale_2 FOR VALUES FROM (40) TO (50)",
    "DELETE FROM sale WHERE day BETWEEN 40 AND 49",
    "UPDATE sale_2 SET day = 41",
    "UPDATE sale_2 SET day = 25",
    "INSERT INTO sale_2 VALUES (7, 25, 'a', 3)",
    "INSERT INTO sale_0 VALUES (7, 5, 'b', 3)",
]
FEW = ("INSERT INTO sale SELECT g, 5 * g, 'a', g FROM generate_series(1, 5) g",)
"""So that groups come anew, and go."""

LAST_RESORT = "DROP TABLE IF EXISTS sale_0, sale_1, sale_1_a, sale_1_rest, sale_2, sale_rest"


class Write(NamedTuple):
    """A statement of one writer, who touches no rows of another and so never waits."""

    writer: int
    statement: str
    id: int
    day: int | None
    town: str | None
    cents: int | None


class Act(NamedTuple):
    """Something else that happens, to a writer, a view or the partitions."""

    verb: str
    whom: Any


STATEMENTS = [
    "INSERT INTO sale VALUES (3 * :id + :writer, :day, :town, :cents)",
    "INSERT INTO sale SELECT 3 * g + :writer, :day, :town, g FROM generate_series(1, :id) g",
    "UPDATE sale SET cents = cents + 1, town = :town WHERE id % 3 = :writer AND day = :day",
    "UPDATE sale SET day = :day WHERE id = 3 * :id + :writer",
    "DELETE FROM sale WHERE id % 3 = :writer AND day IS NOT DISTINCT FROM :day",
    "UPDATE sale_0 SET cents = :cents WHERE id % 3 = :writer",
    "INSERT INTO town SELECT 'c', :town WHERE :writer = 1",
    "DELETE FROM town WHERE :writer = 2 AND name = :town",
]
writers = st.integers(0, len(LEVELS) - 1)
writes = st.builds(
    Write,
    writer=writers,
    statement=st.sampled_from(STATEMENTS),
    id=st.integers(0, 5),
    day=st.sampled_from([None, 1, 5, 12, 25, 41]),
    town=st.sampled_from([None, "a", "b", "c"]),
    cents=st.none() | st.integers(-5, 5),
)
views = st.sampled_from([*VIEWS])
acts = st.one_of(
    st.builds(Act, st.sampled_from(TURNS), writers),
    st.builds(Act, st.just("refresh"), views),
    st.builds(Act, st.sampled_from(["refresh", "verify", "mend"]), views),
    st.builds(Act, st.just("look"), st.tuples(writers, views)),
    st.builds(Act, st.just("change"), st.sampled_from(CHANGES)),
    st.builds(Act, st.just("change"), st.sampled_from(CHANGES)),
    st.builds(Act, st.sampled_from(["capture", "collect garbage"]), st.none()),
)
schedules = st.lists(writes | acts, min_size=15, max_size=50)


class World:
    """A writer of each isolation level, views, and partitions that come and go."""

    def __init__(self, engine: Engine, connections: list[Connection], tally: Tally) -> None:
        self.engine = engine
        self.writers = connections
        self.tally = tally

    def act(self, act: Write | Act) -> None:
        match act:
            case Write():
                _try(self.writers[act.writer], act.statement, act._asdict())
            case Act("look", (writer, view)):
                # With whatever this one has written and nobody else sees.
                assert differences_now(self.writers[writer], view, VIEWS[view]) == 0
                self.tally.count()
            case Act(turn, writer) if turn in TURNS:
                take_turn(self.writers[writer], turn)
            case Act(verb, whom):
                self._maintain(verb, whom)

    def refresh(self, view: MaterializedView) -> None:
        refreshed(self.engine, view)
        assert differences(self.engine, view, VIEWS[view]) == 0
        self.tally.count()

    def _maintain(self, verb: str, whom: Any) -> None:  # noqa: ANN401 -- what the verb is about
        # Neither ATTACH nor TRUNCATE keeps to a snapshot that is older.
        is_free = not any(writer.in_transaction() for writer in self.writers[1:])
        match verb:
            case "refresh":
                self.refresh(whom)
            case "verify":
                assert verify(self.engine, whom) == []
                self.tally.count()
            case "mend" if whom is not named:
                with self.engine.begin() as conn:
                    whom.rebuild(conn, where=whom.c.day.between(5, 25))
                assert differences(self.engine, whom, VIEWS[whom]) == 0
            case "change" if is_free:
                with self.engine.begin() as conn:
                    conn.execute(text("SET LOCAL lock_timeout = '1ms'"))
                    _try(conn, whom, {})
            case "capture" if is_free and not self.writers[0].in_transaction():
                recapture(self.engine)
            case "collect garbage":
                with self.engine.begin() as conn:
                    ChangeLog().collect_garbage(conn)
            case _:
                pass  # nothing that could be done now


def _try(conn: Connection, statement: str, values: dict[str, Any]) -> None:
    try:
        with conn.begin_nested():
            conn.execute(text(statement), values)
    except DBAPIError as error:
        if not isinstance(error.orig, EXPECTED):
            raise


@pytest.fixture(scope="module")
def shop(module_engine: Engine) -> Engine:
    run(module_engine, *TABLES)
    create(module_engine, *VIEWS)
    return module_engine


@pytest.fixture(scope="module")
def connections(shop: Engine) -> Iterator[list[Connection]]:
    with connections_of_each_level(shop) as connections:
        yield connections


@pytest.mark.timeout(3600)  # as for the whole torture: a mark outdoes the command line
@dear
@given(schedule=schedules)
def test_a_refreshed_view_of_partitions_is_what_its_query_gives(
    shop: Engine, connections: list[Connection], tally: Tally, schedule: list[Write | Act]
) -> None:
    world = World(shop, connections, tally)
    partitions = [statement for statement in TABLES if "PARTITION OF" in statement]
    run(shop, LAST_RESORT, "DELETE FROM town", *partitions, TABLES[-2], *FEW)
    recapture(shop)
    for view in VIEWS:
        world.refresh(view)
    try:
        for act in schedule:
            with serializable_gives_way(connections):
                world.act(act)
    finally:
        for number, writer in enumerate(connections):
            writer.commit() if number else writer.rollback()

    for view in VIEWS:
        world.refresh(view)
