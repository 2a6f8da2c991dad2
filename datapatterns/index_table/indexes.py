"""The index tables that an application declares, and how each stands in a database."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import Final, Literal, TypeAlias

from sqlalchemy import Connection, Engine, select

from datapatterns.clock import SYSTEM_CLOCK, Clock
from datapatterns.errors import (
    IndexChangedError,
    IndexDetachedError,
    IndexFailedError,
    IndexMissingError,
    IndexUndeclaredError,
)
from datapatterns.index_table.catalog import table_facts
from datapatterns.index_table.definition import IndexDefinition
from datapatterns.index_table.entries import (
    BackfillProgress,
    IndexConflict,
    IndexLag,
    SweepReport,
    VerifyReport,
)
from datapatterns.index_table.finishing import (
    begin_verifying,
    finish_index,
    read_conflicts,
    retry_index,
)
from datapatterns.index_table.index import IndexTable
from datapatterns.index_table.lagging import capture_problem, read_lag
from datapatterns.index_table.schema import index_tables
from datapatterns.index_table.states import index_status
from datapatterns.index_table.sweeping import sweep_index
from datapatterns.index_table.working import IndexWorker
from datapatterns.sql.metadata import DEFAULT_SCHEMA
from datapatterns.telemetry import SILENT, Observer
from datapatterns.transactions import fresh_reads, resuming

IndexState: TypeAlias = Literal[
    "no_table",
    "missing",
    "changed",
    "detached",
    "building",
    "built",
    "verifying",
    "ready",
    "failed",
]
"""How an index stands: its table isn't in this database; it was never created; it was built from
another definition; writers pass it by; its rows from before are still coming; they are all there;
they are compared; it is read; they aren't what they should be, so it isn't read."""

_UNFINISHED: Final = ("building", "built", "verifying")

OnChunk: TypeAlias = Callable[[str, BackfillProgress], object]
"""Is told how far the index of that name has come."""


def _tell_nobody(_name: str, _progress: BackfillProgress) -> None:
    pass


@dataclass(frozen=True, slots=True)
class IndexReport:
    """How an index stands in one database.

    Attributes:
        name: Its name.
        state: Whether it is read, and what is in the way.
        rows_done: Rows from before that were looked at; None if it isn't there.
        lag: How far it is behind its table; None if nobody can tell.
        problem: Why it has failed; or which changes of its table nobody tells it of, so that all
            rows have to be read again and again.
    """

    name: str
    state: IndexState
    rows_done: int | None
    lag: IndexLag | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Indexes:
    """What an application keeps index tables of.

    Attributes:
        declared: The index tables.
        schema: Where all of them live.

    Raises:
        IndexUndeclaredError: Two have one name, or one lives in another schema.
    """

    declared: Sequence[IndexTable] = ()
    schema: str = DEFAULT_SCHEMA
    _by_name: dict[str, IndexTable] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        for index in self.declared:
            if self._by_name.setdefault(index.name, index) is not index:
                raise IndexUndeclaredError(index.name, "two are declared; give one another name")
            if index.definition.schema != self.schema:
                raise IndexUndeclaredError(
                    index.name,
                    f"it is declared in schema {index.definition.schema!r}, where the tables of"
                    f" this layer are not; write schema={self.schema!r}",
                )

    def find(self, name: str) -> IndexTable:
        """Return the index that is declared under ``name``.

        Raises:
            IndexUndeclaredError: None is.
        """
        if (index := self._by_name.get(name)) is None:
            names = ", ".join(sorted(self._by_name)) or "none is"
            raise IndexUndeclaredError(name, f"it is not declared; those that are: {names}")
        return index

    def named(self, only: Sequence[str] = ()) -> list[IndexTable]:
        """Return those of these names, each once; all that are declared if there is none.

        Raises:
            IndexUndeclaredError: One is not declared.
        """
        return [self.find(name) for name in dict.fromkeys(only or self._by_name)]

    def status(self, conn: Connection, only: Sequence[str] = ()) -> list[IndexReport]:
        """Return how each stands."""
        return [_report(conn, index.definition) for index in self.named(only)]

    def worker(
        self,
        only: Sequence[str] = (),
        *,
        clock: Clock = SYSTEM_CLOCK,
        observer: Observer = SILENT,
    ) -> IndexWorker:
        """Return what takes changes in for those that are kept behind their writers.

        Args:
            only: Names, if not all are meant.
            clock: What its pauses go by.
            observer: Is told what it does, and how far indexes are behind.

        Raises:
            IndexUndeclaredError: A name is not declared.
        """
        behind = [one for one in self.named(only) if one.definition.mode == "async"]
        return IndexWorker(behind, clock, observer)

    def declares(self, name: str) -> bool:
        """Return whether an index of that name is declared."""
        return name in self._by_name

    def build(
        self,
        engine: Engine,
        only: Sequence[str] = (),
        *,
        chunk_rows: int = 10_000,
        pause_seconds: float = 0.0,
        on_chunk: OnChunk = _tell_nobody,
    ) -> dict[str, VerifyReport]:
        """Index the rows from before and let the indexes be read; those that are created already.

        Takes up where it ended, whoever began; any number of processes may do it at once. Each
        chunk is a transaction of its own.

        Args:
            engine: Where they are.
            only: Names, if not all are meant.
            chunk_rows: How many rows a transaction locks against writers.
            pause_seconds: How long to leave the database alone after each chunk.
            on_chunk: Called after each chunk.

        Returns:
            What the comparison with its table found of each that has become ready.

        Raises:
            CommitUnansweredError: The answer to a COMMIT was lost; do the same again.
            IndexBehindError: A table was truncated just now, say; do the same again.
            IndexFailedError: An index doesn't agree with its table; in a unique one, two rows may
                have one key. It is not read, and says so, until it is retried.
        """
        with fresh_reads(engine) as conn:
            reports = self.status(conn, only)
        due = [one.name for one in reports if one.state in _UNFINISHED]
        return {
            name: self._built(engine, self.find(name), chunk_rows, pause_seconds, on_chunk)
            for name in due
        }

    def verify(self, engine: Engine, only: Sequence[str] = ()) -> dict[str, VerifyReport]:
        """Compare each with its table, both ways, in a snapshot of its own; writers go on.

        Raises: as `IndexTable.verify`, at the first that cannot be compared.
        """
        found = {}
        for index in self.named(only):
            with fresh_reads(engine) as conn:
                found[index.name] = index.verify(conn)
        return found

    def repair(self, engine: Engine, only: Sequence[str] = ()) -> dict[str, VerifyReport]:
        """Make each what its table says, in a transaction of its own; return what is left.

        Raises:
            CommitUnansweredError: The answer to a COMMIT was lost; do the same again.
        """
        found = {}
        for index in self.named(only):
            with fresh_reads(engine) as conn, resuming(conn, f"repairing index {index.name}"):
                found[index.name] = index.repair(conn)
        return found

    def retry(self, engine: Engine, only: Sequence[str] = ()) -> list[str]:
        """Let indexes that have failed be built again, by `build`; return which.

        Raises:
            CommitUnansweredError: The answer to a COMMIT was lost; do the same again.
        """
        retried = []
        for index in self.named(only):
            with fresh_reads(engine) as conn, resuming(conn, f"retrying index {index.name}"):
                if retry_index(conn, index.definition):
                    retried.append(index.name)
        return retried

    def conflicts(self, conn: Connection, name: str) -> list[IndexConflict]:
        """Return rows for which a unique index has failed: others have their keys.

        At most 1,000 are kept of each index.

        Raises:
            IndexUndeclaredError: It is not declared.
        """
        return read_conflicts(conn, self.find(name).definition)

    def sweep(
        self,
        engine: Engine,
        only: Sequence[str] = (),
        *,
        dry_run: bool = False,
        chunk_rows: int = 10_000,
    ) -> dict[str, SweepReport]:
        """Remove index rows that lead to no row; return how many there were of each index.

        They cost time, never a wrong answer. An index that its writers keep has none unless
        somebody wrote to it; if it does, writers of its table wait for each chunk.

        Args:
            engine: Where the indexes are.
            only: Names, if not all are meant.
            dry_run: Only count them.
            chunk_rows: How many a transaction removes.

        Raises:
            CommitUnansweredError: The answer to a COMMIT was lost; do the same again.
        """
        found = {}
        for index in self.named(only):
            orphaned, removed, left = 0, 0, True
            while left:
                with fresh_reads(engine) as conn, resuming(conn, f"sweeping index {index.name}"):
                    one = sweep_index(conn, index.definition, limit=chunk_rows, dry_run=dry_run)
                orphaned += one.orphaned
                removed += one.removed
                left = one.removed == chunk_rows
            found[index.name] = SweepReport(index.name, orphaned, removed)
        return found

    def _built(
        self,
        engine: Engine,
        index: IndexTable,
        chunk_rows: int,
        pause_seconds: float,
        on_chunk: OnChunk,
    ) -> VerifyReport:
        pausing = Event()
        done = False
        while not done:
            with fresh_reads(engine) as conn, resuming(conn, f"a chunk of index {index.name}"):
                progress = index.backfill(conn, limit=chunk_rows)
            on_chunk(index.name, progress)
            done = progress.done
            if not done:
                pausing.wait(pause_seconds)
        with fresh_reads(engine) as conn, resuming(conn, f"verifying index {index.name}"):
            begin_verifying(conn, index.definition)
        with fresh_reads(engine) as conn, resuming(conn, f"activating index {index.name}"):
            report = finish_index(conn, index.definition)
        if not report.clean:
            with fresh_reads(engine) as conn:
                [found] = self.status(conn, [index.name])
            raise IndexFailedError(index.name, failure=str(found.problem))
        return report


def _report(conn: Connection, definition: IndexDefinition) -> IndexReport:
    try:
        status = index_status(conn, definition)
    except IndexMissingError:
        is_there = table_facts(conn, definition.base) is not None
        return IndexReport(definition.name, "missing" if is_there else "no_table", None)
    except IndexChangedError:
        return IndexReport(definition.name, "changed", None)
    except IndexDetachedError:
        return IndexReport(definition.name, "detached", None)
    backfills = index_tables(definition.schema).index_backfill
    found = conn.execute(
        select(backfills.c.rows_done, backfills.c.done).where(
            backfills.c.index_id == status.index_id
        )
    ).one_or_none()
    if found is None:  # somebody has dropped it just now
        return IndexReport(definition.name, "missing", None)
    state: IndexState = "built" if found.done else "building"
    if status.state in ("verifying", "ready", "failed"):
        state = status.state
    if not status.kept:
        state = "detached"
        return IndexReport(definition.name, state, found.rows_done)
    lag = read_lag(conn, definition)
    problem = status.failure
    if lag.must_rebuild:
        problem = capture_problem(conn, definition)
    return IndexReport(definition.name, state, found.rows_done, lag, problem)
