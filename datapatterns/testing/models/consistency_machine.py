"""Random writers, interleaved statement by statement, and what is derived from their rows."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule
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
    Write,
    is_lost,
    row_writes,
    transactions,
)

STEPS = 5
"""Rounds in an example unless ``TestCase.settings`` says otherwise."""


def consistency_machine(  # noqa: PLR0913 -- a declaration, all but two by keyword
    thing: Any,  # noqa: ANN401 -- one of ours, or whatever answers as Derived
    writes: Mapping[Any, SearchStrategy[Row]] | SearchStrategy[Write],
    *,
    tables: Sequence[Any] = (),
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
        writes: For each mapped class or table values by column name, the primary key among
            them. Let keys be few, so that writers meet. Or functions that take a connection and
            write, with a ``repr`` that tells what.
        tables: What to empty before each example; unless given, the keys of ``writes``.
        explorer: Makes the connections and chooses who goes next.
        engine: The explorer's, if there is one already.
        begin: Opens the transactions of writers; ``engine.begin`` unless given.
        after: What the application does about each row in the transaction that has written it;
            only for rows.
        writers_max: How many transactions may be open at the same time.

    Raises:
        TypeError: It is nothing that can be tested.
        ValueError: There are functions that write, and no tables to empty.
    """
    gated = engine or explorer.engine()
    tested = derived(thing)
    chores = tested.chores(gated)
    if isinstance(writes, SearchStrategy):
        statements, written = writes, [table_of(model) for model in tables]
    else:
        statements = row_writes(writes, after=after)
        written = [table_of(model) for model in tables or writes]
    if not written:
        raise ValueError("say which tables these functions write: tables=[...]")
    writing = _few(transactions(statements), writers_max)
    keeping = st.lists(st.sampled_from(sorted(chores)), max_size=3) if chores else st.just([])

    class Tested(ConsistencyMachine):
        subject = tested

        @initialize(writes=st.lists(statements, max_size=3))
        def fill(self, writes: list[Write]) -> None:
            self.round([Transaction(writes, commits=True)] if writes else [])

        @rule(writers=writing, chores=keeping, first=st.integers(0, 3), switches=_switches)
        def concurrently(
            self,
            writers: list[Transaction],
            chores: list[str],
            first: int,
            switches: list[tuple[int, int]],
        ) -> None:
            self.round(writers, chores, first=first, switches=switches)

    Tested.explorer, Tested.engine, Tested.begin = (
        explorer,
        gated,
        staticmethod(begin or gated.begin),
    )
    Tested.empty = _deletes(written, gated)
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
        first: int = 0,
        switches: Sequence[tuple[int, int]] = (),
    ) -> Outcome:
        """Let writers and chores run at the same time, and return how that ended.

        Args:
            writers: Each becomes a task ``writer1``, ``writer2`` and so on.
            chores: Names of what the subject calls its chores.
            first: Who begins.
            switches: After how many round trips to leave whoever is at it, and for which other.

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
        outcome = self.explorer.run(lambda: tasks, switching(first, switches))
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


def switching(first: int, switches: Sequence[tuple[int, int]]) -> Chooser:
    """Return a chooser that goes on with whoever is at it, but for ``switches``.

    What shrinks, shrinks to fewer switches.

    Args:
        first: Who begins, modulo their number.
        switches: After how many steps to switch, counted from the last switch, and to which of
            the others that are ready, modulo their number.
    """
    left = iter(switches)
    stay, pick = next(left, _NEVER)
    last: str | None = None

    def choose(ready: Sequence[Gate]) -> Choice:
        nonlocal stay, pick, last
        ordered = in_order(ready, last)
        place = first % len(ordered) if last is None else 0
        if last is not None and len(ordered) > 1:
            if stay == 0:
                place = 1 + pick % (len(ordered) - 1)
                stay, pick = next(left, _NEVER)
            else:
                stay -= 1
        last = ordered[place].task
        return Choice(last)

    return choose


def _few(writer: SearchStrategy[Transaction], most: int) -> SearchStrategy[list[Transaction]]:
    # Lists of their own accord are mostly of one, and one writer meets nobody.
    counts = [count for count in (1, 2, 2, 2, *range(3, most + 1)) if count <= most]
    return st.sampled_from(counts).flatmap(
        lambda count: st.lists(writer, min_size=count, max_size=count)
    )


_NEVER: Final = (-1, 0)
# Most races need one or two switches, soon after somebody has begun.
_switches = st.lists(
    st.tuples(st.sampled_from([0, 1, 1, 2, 2, 3, 5]), st.integers(0, 2)), max_size=4
)


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
