"""Whatever query counting takes on, it gives what the query gives, stored and as of now."""

from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, delete, text
from sqlalchemy.dialects.postgresql import insert

from datapatterns.change_log import ChangeLog, capture_statements
from datapatterns.materialized_view import MaterializedView, Strategy
from tests.fixtures.counted_queries import Question, items, metadata, questions, tags
from tests.fixtures.effort import dear
from tests.fixtures.overlapping import (
    LEVELS,
    TURNS,
    Tally,
    connections_of_each_level,
    serializable_gives_way,
    take_turn,
)
from tests.fixtures.view_tables import create, refresh, run

VIEWS = 3
IDS = 4


class Write(NamedTuple):
    """A writer puts rows in, or takes them out; none touches those of another."""

    writer: int
    verb: str
    table: str
    ids: list[int]
    values: dict[str, Any]


class Act(NamedTuple):
    verb: str
    whom: int


writers = st.integers(0, len(LEVELS) - 1)
numbers = st.sampled_from([None, -1, 0, 1, 2])
words = st.sampled_from([None, "", "a", "A", "Ä ", "ü🥐"])
weights = st.sampled_from([None, "1.0", "1.00", "1e-20", "NaN", "Infinity", "-Infinity", "1e30"])
values = st.fixed_dictionaries(
    {
        "number": numbers,
        "word": words,
        "weight": weights,
        "price": st.sampled_from([None, Decimal("1.50"), Decimal("-3.25"), Decimal("NaN")]),
        "at": st.sampled_from([None, datetime(2026, 1, 4), datetime(2026, 1, 5, 12)]),  # noqa: DTZ001
        "is_new": st.sampled_from([None, True, False]),
    }
)

writes = st.builds(
    Write,
    writer=writers,
    verb=st.sampled_from(["put", "put", "put", "take"]),
    table=st.sampled_from(["item", "item", "tag"]),
    ids=st.lists(st.integers(0, IDS - 1), min_size=1, max_size=IDS, unique=True),
    values=values,
)
acts = st.one_of(
    st.builds(Act, st.sampled_from(TURNS), writers),
    st.builds(Act, st.sampled_from(TURNS), writers),
    st.builds(Act, st.just("refresh"), st.integers(0, VIEWS - 1)),
    st.builds(Act, st.just("look"), writers),
    st.builds(Act, st.sampled_from(["truncate", "truncate", "collect garbage"]), st.integers(0, 1)),
)
schedules = st.lists(writes | writes | acts, min_size=8, max_size=24)
some_questions = st.lists(questions(), min_size=VIEWS, max_size=VIEWS)


class World:
    """Writers of each isolation level, and views of some queries."""

    def __init__(
        self, engine: Engine, writers: list[Connection], asked: list[Question], tally: Tally
    ) -> None:
        self.engine = engine
        self.tally = tally
        self.writers = writers
        self.asked = asked
        self.views = [
            MaterializedView(f"counted_{number}", question.query)
            for number, question in enumerate(asked)
        ]

    def act(self, act: Write | Act) -> None:
        match act:
            case Write(writer):
                self._write(self.writers[writer], act)
            case Act("refresh", number):
                self.refresh(self.views[number], self.asked[number])
            case Act("look", writer):
                self.look(self.writers[writer])
            case Act("truncate", table) if not any(w.in_transaction() for w in self.writers):
                run(self.engine, f"TRUNCATE {(items, tags)[table].name}")
            case Act("truncate", _):
                pass  # whoever truncates would wait for the writers
            case Act("collect garbage", _):
                with self.engine.begin() as conn:
                    ChangeLog().collect_garbage(conn)
            case Act(turn, writer):
                take_turn(self.writers[writer], turn)

    def look(self, conn: Connection) -> None:
        """Compare what the views give as of now, in the transaction of ``conn``."""
        for view, question in zip(self.views, self.asked, strict=True):
            assert unlike(conn, view, question, f"{view.name}_realtime") == 0
            self.tally.count()

    def refresh(self, view: MaterializedView, question: Question) -> None:
        """Compare what is stored, before anybody commits more."""
        refresh(self.engine, view)
        with self.engine.connect() as conn:
            assert unlike(conn, view, question, view.name) == 0
        self.tally.count()

    def settle(self) -> None:
        """Refresh all views."""
        for view, question in zip(self.views, self.asked, strict=True):
            self.refresh(view, question)

    def drop(self) -> None:
        for view in self.views:
            with self.engine.begin() as conn:
                view.drop(conn)

    def _write(self, conn: Connection, write: Write) -> None:
        table = {"item": items, "tag": tags}[write.table]
        ids = [len(LEVELS) * own + write.writer for own in write.ids]
        if write.verb == "take":
            conn.execute(delete(table).where(table.c.id.in_(ids)))
            return
        columns = {name: write.values[name] for name in table.c.keys() if name != "id"}  # noqa: SIM118
        put = insert(table).values([{"id": own, **columns} for own in ids])
        conn.execute(put.on_conflict_do_update(index_elements=["id"], set_=columns))


def unlike(conn: Connection, view: MaterializedView, question: Question, relation: str) -> int:
    """Return how many rows a relation and the query do not share, in one snapshot."""
    columns = "x::text" if question.keeps_looks else "x.*"
    query, shown = (
        f"SELECT {columns} FROM datapatterns.{name} AS x"  # noqa: S608 -- names of ours
        for name in (f"{view.name}_definition", relation)
    )
    both_ways = f"(({query}) EXCEPT ALL ({shown})) UNION ALL (({shown}) EXCEPT ALL ({query}))"
    counted = text(f"SELECT count(*) FROM ({both_ways}) AS unlike")  # noqa: S608
    return int(conn.execute(counted).scalar_one())


@pytest.fixture(scope="module")
def many_are_two() -> Iterator[None]:
    """So that statements of few rows are logged in batches, from their second row on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(capture_statements, "SINGLE_ROWS", 1)
        yield


@pytest.fixture(scope="module")
def shop(module_engine: Engine, many_are_two: None) -> Engine:  # noqa: ARG001
    metadata.create_all(module_engine)
    return module_engine


@pytest.fixture(scope="module")
def connections(shop: Engine) -> Iterator[list[Connection]]:
    with connections_of_each_level(shop) as connections:
        yield connections


@pytest.mark.timeout(3600)  # as for the whole torture: a mark outdoes the command line
@dear
@given(asked=some_questions, schedule=schedules)
def test_a_counted_view_is_what_its_query_gives(
    shop: Engine,
    connections: list[Connection],
    tally: Tally,
    asked: list[Question],
    schedule: list[Write | Act],
) -> None:
    run(shop, "DELETE FROM item", "DELETE FROM tag")
    world = World(shop, connections, asked, tally)
    try:
        create(shop, *world.views)
        with shop.connect() as conn:
            kept = {str(view.explain(conn)) for view in world.views if not is_counted(conn, view)}
        assert kept == set()
        for act in schedule:
            with serializable_gives_way(connections):
                world.act(act)
        for writer in connections:
            world.look(writer)
            writer.commit()
        world.settle()
    finally:
        for writer in connections:
            writer.rollback()
        world.drop()


def is_counted(conn: Connection, view: MaterializedView) -> bool:
    return view.explain(conn).strategy is Strategy.COUNTING
