"""Stored groups brought up to date, and groups shown as they are now, are what the query gives."""

from collections.abc import Iterator

import pytest
from hypothesis import assume, given, note
from sqlalchemy import Connection, Engine, create_engine, delete

from datapatterns.materialized_view.grouping.applying import probe
from datapatterns.materialized_view.grouping.reading import NotGroupableError
from tests.fixtures.effort import dear
from tests.fixtures.grouped_queries import (
    TABLES,
    WRITERS,
    Act,
    AnySelect,
    Write,
    beginnings,
    queries,
    schedules,
    statement,
    tables,
)
from tests.fixtures.kept_groups import LOG, KeptGroups
from tests.fixtures.overlapping import (
    Tally,
    connections_of_each_level,
    serializable_gives_way,
    take_turn,
)


@pytest.fixture(scope="module")
def captured(module_engine: Engine) -> Iterator[Engine]:
    with module_engine.begin() as conn:
        tables.create_all(conn)
    with module_engine.begin() as conn:
        logs = [LOG.capture(conn, each, [own.name for own in each.columns]) for each in TABLES]
        LOG.register_consumer(conn, "view:kept", "view", log_names=logs)
    # What is stored has other columns for each query, which a kept plan would not know.
    engine = create_engine(module_engine.url, connect_args={"prepare_threshold": None})
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def connections(captured: Engine) -> Iterator[list[Connection]]:
    with connections_of_each_level(captured) as connections:
        yield connections


class World:
    """A writer of each isolation level, in a transaction whenever it has written or looked."""

    def __init__(
        self, engine: Engine, writers: list[Connection], kept: KeptGroups, tally: Tally
    ) -> None:
        self.engine = engine
        self.tally = tally
        self.writers = writers
        self.kept = kept

    def begin(self, beginning: list[Write]) -> None:
        """Store the groups while one writer has yet to commit."""
        for write in beginning:
            self.act(write)
        for writer in self.writers[1:]:
            writer.commit()
        self.kept.create()
        with self.engine.begin() as conn:
            conn.execute(probe(self.kept.plan, self.kept.pending()))

    def act(self, act: Write | Act) -> None:
        match act:
            case Write():
                self.writers[act.writer].execute(statement(act))
            case Act("truncate", number) if not any(w.in_transaction() for w in self.writers):
                with self.engine.begin() as conn:
                    name = conn.dialect.identifier_preparer.quote(TABLES[number].name)
                    conn.exec_driver_sql(f"TRUNCATE {name}")
            case Act("apply", _):
                self.apply()
            case Act("look", whom):
                self.look(whom)
            case Act("truncate", _):
                pass  # whoever truncates would wait for the writers
            case Act(turn, writer):
                take_turn(self.writers[writer], turn)

    def apply(self) -> None:
        with self.engine.begin() as conn:
            self.kept.apply(conn)
        with self.engine.begin() as conn:
            assert self.kept.differences(conn, self.kept.stored()) == []
        self.tally.count()

    def look(self, whom: int) -> None:
        """Look at the groups as they are now, as a writer or as somebody else."""
        shown = self.kept.current()
        self.tally.count()
        if whom < WRITERS:
            assert self.kept.differences(self.writers[whom], shown) == []
            return
        with self.engine.begin() as conn:
            assert self.kept.differences(conn, shown) == []


@pytest.mark.timeout(3600)  # as for the whole torture: a mark outdoes the command line
@dear
@given(query=queries(), beginning=beginnings, schedule=schedules)
def test_groups_are_what_their_query_gives(
    captured: Engine,
    connections: list[Connection],
    tally: Tally,
    query: AnySelect,
    beginning: list[Write],
    schedule: list[Write | Act],
) -> None:
    note(str(query))
    try:
        world = World(captured, connections, KeptGroups(captured, query), tally)
    except NotGroupableError:
        assume(False)
        raise
    with captured.begin() as conn:
        for each in TABLES:
            conn.execute(delete(each))
    try:
        world.begin(beginning)
        for act in schedule:
            with serializable_gives_way(connections):
                world.act(act)
        world.look(WRITERS)
        world.apply()
    finally:
        for number, writer in enumerate(connections):
            writer.commit() if number else writer.rollback()

    world.look(WRITERS)
    world.apply()
