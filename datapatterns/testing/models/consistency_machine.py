"""Random writers, interleaved statement by statement, and what is derived from their rows."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule
from hypothesis.strategies import SearchStrategy
from sqlalchemy import Engine, Table
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import sort_tables

from datapatterns.errors import ConflictError, UnavailableError
from datapatterns.testing.interleaving import Explorer, Gate, Outcome
from datapatterns.testing.interleaving.choosing import Choice, Chooser, in_order
from datapatterns.testing.models.derived import Derived, derived
from datapatterns.testing.models.machine import Machine
from datapatterns.testing.models.projected import table_of
from datapatterns.testing.models.story import SpecError
from datapatterns.testing.models.transactions import (
    AfterWrite,
    Begin,
    Row,
    Transaction,
    is_lost,
    row_writes,
    transactions,
)

STEPS = 8
"""Rounds in an example unless ``TestCase.settings`` says otherwise."""


def consistency_machine(  # noqa: PLR0913 -- a declaration, all but two by keyword
    thing: Any,  # noqa: ANN401 -- one of ours, or whatever answers as Derived
    rows: Mapping[Any, SearchStrategy[Row]],
    *,
    explorer: Explorer,
    engine: Engine | None = None,
    begin: Begin | None = None,
    after: AfterWrite | None = None,
    writers_max: int = 3,
) -> "type[ConsistencyMachine]":
    """Return a state machine that tests whether ``thing`` stays what its rows say.

    In each round several writers have a transaction open at the same time, and refreshes,
    evictions and the like happen beside them. Whose statement comes next is drawn: Hypothesis
    shrinks to the fewest writers, statements and switches. When all have ended the thing is
    brought up to date and compared with its rows.

    Run it as ``TestTotals = consistency_machine(...).TestCase``, or by
    ``run_state_machine_as_test``; subclass it to add rules.

    Args:
        thing: A `MaterializedView`, an `IndexTable`, a `DerivedTable`, a `DerivedCache` or
            another `Derived`; created, filled and ready.
        rows: For each mapped class or table values by column name, the primary key among them.
            Let keys be few, so that writers meet. These tables are emptied.
        explorer: Makes the connections and chooses who goes next.
        engine: The explorer's, if there is one already.
        begin: Opens the transactions of writers; ``engine.begin`` unless given.
        after: What the application does about each row in the transaction that has written it.
        writers_max: How many transactions may be open at the same time.

    Raises:
        TypeError: It is nothing that can be tested.
    """
    gated = engine or explorer.engine()
    tested = derived(thing)
    chores = tested.chores(gated)
    writing = st.lists(
        transactions(row_writes(rows, after=after)), min_size=1, max_size=writers_max
    )
    keeping = st.lists(st.sampled_from(sorted(chores)), max_size=3) if chores else st.just([])

    class Tested(ConsistencyMachine):
        subject = tested

        @rule(writers=writing, chores=keeping, first=st.integers(0, 3), switches=_switches)
        def concurrently(
            self,
            writers: list[Transaction],
            chores: list[str],
            first: int,
            switches: list[tuple[int, int]],
        ) -> None:
            self.round(writers, chores, switches=[(0, first), *switches])

    Tested.explorer, Tested.engine, Tested.begin = (
        explorer,
        gated,
        staticmethod(begin or gated.begin),
    )
    Tested.empty = _deletes([table_of(model) for model in rows], gated)
    Tested.__name__ = Tested.__qualname__ = "Tested"
    return Tested


class ConsistencyMachine(Machine):
    """What `consistency_machine` returns a subclass of."""

    explorer: Explorer
    engine: Engine
    begin: Begin
    subject: Derived
    empty: str

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.TestCase.settings = settings(cls.TestCase.settings, stateful_step_count=STEPS)

    def __init__(self) -> None:
        super().__init__()
        self._latest: list[str] = []
        with self.engine.begin() as conn:
            conn.exec_driver_sql(self.empty)
        self.subject.reset(self.engine)

    def round(
        self,
        writers: Sequence[Transaction],
        chores: Sequence[str] = (),
        *,
        switches: Sequence[tuple[int, int]] = (),
    ) -> Outcome:
        """Let writers and chores run at the same time, and return how that ended.

        Args:
            writers: Each becomes a task ``writer1``, ``writer2`` and so on.
            chores: Names of what the subject calls its chores.
            switches: How many statements to go on, and then which of the others is next.

        Raises:
            SpecError: One of them failed, other than by losing to a constraint or to another.
        """
        tasks: dict[str, Callable[[], object]] = {
            f"writer{number}": partial(writer.run, self.begin)
            for number, writer in enumerate(writers, start=1)
        }
        kept = self.subject.chores(self.engine)
        for number, chore in enumerate(chores):
            tasks[chore if chore not in tasks else f"{chore}_{number}"] = kept[chore]
        outcome = self.explorer.run(lambda: tasks, switching(switches))
        self._latest = _told(writers, outcome)
        for name, error in outcome.errors.items():
            if not _has_lost(error):
                raise SpecError(
                    f"{name} raised {type(error).__name__}: {error}", *self._latest
                ) from error
        return outcome

    @invariant()
    def is_what_its_rows_say(self) -> None:
        """Compare what is derived with what it is derived from."""
        self.subject.settle(self.engine)
        if differences := self.subject.differences(self.engine):
            raise SpecError("it is not what its rows say", *differences, *self._latest)


def switching(switches: Sequence[tuple[int, int]]) -> Chooser:
    """Return a chooser that goes on with whoever is at it, but for ``switches``.

    Args:
        switches: After how many statements to switch, counted from the last switch, and to which
            of those that are ready, modulo their number. What shrinks, shrinks to fewer switches.
    """
    left = iter(switches)
    stay, pick = next(left, (0, 0))
    last: str | None = None

    def choose(ready: Sequence[Gate]) -> Choice:
        nonlocal stay, pick, last
        ordered = in_order(ready, last)
        if stay > 0:
            stay -= 1
            gate = ordered[0]
        else:
            gate = ordered[pick % len(ordered)]
            stay, pick = next(left, (0, 0))
        last = gate.task
        return Choice(gate.task)

    return choose


_switches = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 3)), max_size=6)


def _told(writers: Sequence[Transaction], outcome: Outcome) -> list[str]:
    acts = [f"writer{number}  {writer}" for number, writer in enumerate(writers, start=1)]
    return ["", *acts, "", *str(outcome.story).splitlines()]


def _has_lost(error: BaseException) -> bool:
    if isinstance(error, DBAPIError):
        return is_lost(error)
    return isinstance(error, ConflictError | UnavailableError)


def _deletes(tables: Sequence[Table], engine: Engine) -> str:
    # In one round trip; rows that refer to others first.
    preparer = engine.dialect.identifier_preparer
    ordered = [table for table in sort_tables(tables) if table in tables]
    return "; ".join(f"DELETE FROM {preparer.format_table(table)}" for table in reversed(ordered))  # noqa: S608 -- quoted
