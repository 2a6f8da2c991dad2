"""Whatever query a view takes, and however it keeps it, it gives what the query gives."""

from collections.abc import Iterator

import pytest
from hypothesis import event, given, note
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, delete, text

from datapatterns.change_log import ChangeLog
from datapatterns.errors import ViewDefinitionError
from datapatterns.materialized_view import MaterializedView
from tests.fixtures.any_queries import AnyQuery, any_queries
from tests.fixtures.effort import dear
from tests.fixtures.grouped_queries import (
    TABLES,
    WRITERS,
    Act,
    Write,
    beginnings,
    schedules,
    statement,
    tables,
)
from tests.fixtures.overlapping import (
    Tally,
    connections_of_each_level,
    serializable_gives_way,
    take_turn,
)
from tests.fixtures.view_tables import create, refresh

some_queries = st.lists(any_queries(), min_size=2, max_size=2)


@pytest.fixture(scope="module")
def shop(module_engine: Engine) -> Engine:
    tables.create_all(module_engine)
    return module_engine


@pytest.fixture(scope="module")
def connections(shop: Engine) -> Iterator[list[Connection]]:
    with connections_of_each_level(shop) as connections:
        yield connections


class World:
    """A writer of each isolation level, and views of some queries."""

    def __init__(self, engine: Engine, writers: list[Connection], tally: Tally) -> None:
        self.engine = engine
        self.writers = writers
        self.tally = tally
        self.views: list[MaterializedView] = []

    def begin(self, beginning: list[Write]) -> None:
        with self.engine.begin() as conn:
            for each in TABLES:
                conn.execute(delete(each))
            for write in beginning:
                conn.execute(statement(write))

    def create(self, query: AnyQuery) -> None:
        """Keep the query, unless it is refused."""
        note(str(query))
        try:
            view = MaterializedView(f"any_{len(self.views)}", query)
            create(self.engine, view)
        except ViewDefinitionError as error:
            event("refused", error.clause)
            return
        with self.engine.connect() as conn:
            event("kept", view.explain(conn).strategy)
        self.views.append(view)

    def act(self, act: Write | Act) -> None:
        match act:
            case Write(writer):
                self.writers[writer].execute(statement(act))
            case Act("truncate", number) if not any(w.in_transaction() for w in self.writers):
                with self.engine.begin() as conn:
                    name = conn.dialect.identifier_preparer.quote(TABLES[number].name)
                    conn.exec_driver_sql(f"TRUNCATE {name}")
            case Act("truncate", _):
                pass  # it waits for who has written, and takes rows from older snapshots
            case Act("apply", number):
                self.refresh(number)
            case Act("look", number) if number < WRITERS:
                self.look(self.writers[number])
            case Act("look", _):
                with self.engine.begin() as conn:
                    ChangeLog().collect_garbage(conn)
            case Act(turn, writer):
                take_turn(self.writers[writer], turn)

    def look(self, conn: Connection) -> None:
        """Compare what the views give as of now, in the transaction of ``conn``."""
        for view in self.views:
            assert unlike(conn, view, f"{view.name}_realtime") == 0
            self.tally.count()

    def refresh(self, number: int) -> None:
        """Compare what is stored, before anybody commits more."""
        if not self.views:
            return
        view = self.views[number % len(self.views)]
        refresh(self.engine, view)
        with self.engine.connect() as conn:
            assert unlike(conn, view, view.name) == 0
        self.tally.count()

    def drop(self) -> None:
        for view in self.views:
            with self.engine.begin() as conn:
                view.drop(conn)


def unlike(conn: Connection, view: MaterializedView, relation: str) -> int:
    """Return how many rows a relation and the query do not share, in one snapshot."""
    query, shown = (
        f"TABLE datapatterns.{name}"  # names of ours
        for name in (f"{view.name}_definition", relation)
    )
    both_ways = f"(({query}) EXCEPT ALL ({shown})) UNION ALL (({shown}) EXCEPT ALL ({query}))"
    counted = text(f"SELECT count(*) FROM ({both_ways}) AS unlike")  # noqa: S608
    return int(conn.execute(counted).scalar_one())


@pytest.mark.timeout(3600)  # as for the whole torture: a mark outdoes the command line
@pytest.mark.filterwarnings("ignore:SELECT statement has a cartesian product")
@dear
@given(asked=some_queries, beginning=beginnings, schedule=schedules)
def test_any_view_is_what_its_query_gives(
    shop: Engine,
    connections: list[Connection],
    tally: Tally,
    asked: list[AnyQuery],
    beginning: list[Write],
    schedule: list[Write | Act],
) -> None:
    world = World(shop, connections, tally)
    world.begin(beginning)
    try:
        for query in asked:
            world.create(query)
        for act in schedule:
            with serializable_gives_way(connections):
                world.act(act)
        for writer in connections:
            world.look(writer)
            writer.commit()
        for number in range(len(world.views)):
            world.refresh(number)
    finally:
        for writer in connections:
            writer.rollback()
        world.drop()
