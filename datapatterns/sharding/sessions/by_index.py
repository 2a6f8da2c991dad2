"""Statements of a session over shards whose rows an index finds before they are sent.

The index is read first, and committed rows have their entries from before their commit: so
whatever the statement sees that was committed before it began is among the rows that were found.
Its own condition stays, which drops rows that an entry leads to in vain. If one was dropped, the
key may have gone to another row in between: then the index is read again, and the statement
repeated if something has changed.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, TypeAlias, TypeVar, cast

from psycopg import IsolationLevel
from sqlalchemy import Column, Connection, Delete, Result, Select, Update, func, select
from sqlalchemy.engine.result import SimpleResultMetaData
from sqlalchemy.orm import ORMExecuteState
from sqlalchemy.sql.selectable import SelectBase

from datapatterns.errors import IndexBusyError, SettingsError, UnavailableError
from datapatterns.sharding.companions import over_shards
from datapatterns.sharding.finding import Finding, FoundRows
from datapatterns.sharding.routing.footprint import Footprint
from datapatterns.sharding.routing.key_conditions import Parameters
from datapatterns.sharding.sessions.shard_work import ShardWork
from datapatterns.sharding.sessions.split_writing import WriteResult

AnyStatement = TypeVar("AnyStatement", bound=Select[Any] | Update | Delete)
Row: TypeAlias = tuple[Any, ...]

_ISOLATION: Final = select(func.current_setting("transaction_isolation"))

_LOOKS_MAX: Final = 5
"""How often a statement is repeated while its keys go from row to row."""


@dataclass(frozen=True, slots=True)
class ByIndex:
    """Sends statements to the shards of rows that an index finds.

    Attributes:
        work: The session's transaction.
    """

    work: ShardWork

    def read(
        self,
        state: ORMExecuteState,
        statement: SelectBase,
        parameters: Parameters,
        read: Callable[[SelectBase], Result[Any] | None] | None,
        *,
        scatters: bool,
    ) -> Result[Any] | None:
        """Return the answer; None if no index can give it.

        Args:
            state: What SQLAlchemy is about to execute.
            statement: That.
            parameters: What it is executed with.
            read: Reads rows whose primary keys a statement lists; None if it does so already, or
                the caller has named all shards.
            scatters: Whether all shards may be asked instead.

        Raises:
            IndexBusyError: A key goes from row to row all the time, and not all shards may be
                asked.
            UnavailableError: The index does not answer, and not all shards are to be asked.
        """
        if read is None or not isinstance(statement, Select):
            return None
        finding = self._finding(state, statement, parameters)
        if finding is None:
            return None
        answer: Result[Any] | None = None
        version: Hashable = None
        for found in self._looks(state, finding, scatters=scatters):
            if answer is not None and found.version == version:
                return answer
            narrowed = self._narrowed(statement, parameters, finding, found.rows)
            if narrowed is None:
                return None
            answer, is_whole = self._answered(state, narrowed, parameters, read, found)
            if is_whole:
                return answer
            version = found.version
        return None

    def change(
        self,
        state: ORMExecuteState,
        statement: Update | Delete,
        sets: Sequence[Parameters],
        change: Callable[[Update | Delete], Result[Any]],
    ) -> Result[Any] | None:
        """Change the rows that an index finds; None if none can.

        Args:
            state: What SQLAlchemy is about to execute.
            statement: That.
            sets: The sets of parameters that it is executed with.
            change: Changes rows whose primary keys a statement lists.

        Raises:
            IndexBusyError: A key goes from row to row all the time, or can't be read any more
                while it does; some rows may be changed.
            UnavailableError: The index does not answer.
        """
        if len(sets) > 1:
            return None
        finding = self._finding(state, statement, sets[0] if sets else {})
        if finding is None or not self._sees_what_is_committed():
            return None
        results = self._changed(state, statement, finding, change)
        if len(results) <= 1:
            return results[0] if results else None
        return _together(statement, results)

    def _changed(
        self,
        state: ORMExecuteState,
        statement: Update | Delete,
        finding: Finding,
        change: Callable[[Update | Delete], Result[Any]],
    ) -> list[Result[Any]]:
        """Change rows until no key can have gone to another one; return what each look gave."""
        found = self._find(state, finding, scatters=False)
        results: list[Result[Any]] = []
        asked: set[Row] = set()
        version: Hashable = None
        while found is not None:
            # A row that was asked for is not asked again: it may have been changed.
            rows = [row for row in found.rows if row not in asked]
            if results and (not rows or found.version == version):
                break
            if len(results) == _LOOKS_MAX:
                raise IndexBusyError(finding.index)
            narrowed = statement.where(finding.among(rows))
            state.statement = narrowed
            result, count = _counted(statement, change(narrowed))
            results.append(result)
            if count >= len(rows):
                break
            if count != 0:  # else none was changed, and one may get its key back
                asked.update(rows)
            version = found.version
            found = self._find(state, finding, scatters=False, again=True)
        if found is None and results:  # nobody says where the rest is
            raise IndexBusyError(finding.index)
        return results

    def _finding(
        self,
        state: ORMExecuteState,
        statement: SelectBase | Update | Delete,
        parameters: Parameters,
    ) -> Finding | None:
        chosen = state.execution_options.get("index", ...)
        if chosen is None or not self.work.access.companions.declared:
            return None
        if chosen is not ... and not isinstance(chosen, str):
            raise SettingsError("index", f"{chosen!r} is neither an index's name nor None")
        if self.work.replica_seconds is not None:
            return None  # what a replica shows may be older than the index
        return self.work.access.companions.finding(
            self.work.access, statement, parameters, index=None if chosen is ... else chosen
        )

    def _looks(
        self, state: ORMExecuteState, finding: Finding, *, scatters: bool
    ) -> Iterator[FoundRows]:
        for look in range(_LOOKS_MAX):
            found = self._find(state, finding, scatters=scatters, again=look > 0)
            if found is None:
                return
            yield found
        if not scatters:
            raise IndexBusyError(finding.index)

    def _find(
        self, state: ORMExecuteState, finding: Finding, *, scatters: bool, again: bool = False
    ) -> FoundRows | None:
        if state.session.autoflush and state.execution_options.get("autoflush", True):
            state.session.flush()
        try:
            return finding.find(over_shards(state.session), again=again)
        except UnavailableError:
            if finding.on_down == "scatter" and scatters:
                return None
            raise

    def _sees_what_is_committed(self) -> bool:
        """Return whether the next statement sees all that is committed by now.

        An older snapshot shows rows whose entries are gone, as those of a REPEATABLE READ
        transaction do; a connection that is still to be opened takes its snapshot afterwards.
        """
        opened = {shard: self.work.parts.opened(shard) for shard in self.work.parts.shards}
        return all(
            conn is None or self._is_read_committed(shard, conn) for shard, conn in opened.items()
        )

    def _is_read_committed(self, shard: str, conn: Connection) -> bool:
        if self.work.is_lent:  # whoever has it can have set anything
            with self.work.access.asking(shard):
                return bool(conn.scalar(_ISOLATION) == "read committed")
        driver: Any = None if conn.invalidated else conn.connection.driver_connection
        level: IsolationLevel | None = getattr(driver, "isolation_level", None)
        if level is None:  # as the server has it
            return conn.dialect.default_isolation_level == "READ COMMITTED"
        return level is IsolationLevel.READ_COMMITTED

    def _narrowed(
        self,
        statement: Select[Any],
        parameters: Parameters,
        finding: Finding,
        rows: Sequence[Row],
    ) -> Select[Any] | None:
        """Return the statement for these rows; None if it would not answer the same."""
        if not self._sees_what_is_committed():
            return None
        look = self.work.access.footprints.look
        narrowed = statement.where(finding.among(rows))
        before, after = look(statement, parameters), look(narrowed, parameters)
        # A class that SQLAlchemy reads from something else than its table would be joined with it.
        return narrowed if _uses(before.footprint) == _uses(after.footprint) else None

    def _answered(
        self,
        state: ORMExecuteState,
        statement: Select[Any],
        parameters: Parameters,
        read: Callable[[SelectBase], Result[Any] | None],
        found: FoundRows,
    ) -> tuple[Result[Any], bool]:
        """Return the answer, and whether it is known that no row was found in vain."""
        footprint = self.work.access.footprints.look(statement, parameters).footprint
        result = read(statement)
        assert result is not None  # SQLAlchemy goes on with nothing but the statement itself
        if not found.rows:
            return result, True
        if "yield_per" in state.execution_options or not _has_a_row_for_each(statement, footprint):
            return result, False
        frozen = result.freeze()
        again = frozen()
        again.missing_shards = getattr(result, "missing_shards", ())  # type: ignore[attr-defined] # as ShardResult has it
        return again, len(frozen.data) == len(found.rows)


def _uses(footprint: Footprint) -> list[int]:
    return [len(block.leaves) for block in footprint.blocks]


def _has_a_row_for_each(statement: Select[Any], footprint: Footprint) -> bool:
    """Return whether a statement answers with one row for each that satisfies its condition."""
    return (
        footprint.plain
        and len(footprint.blocks) == 1
        and len(footprint.blocks[0].leaves) == 1
        and not footprint.blocks[0].outer
        and not footprint.broadcast
        and not statement._with_options  # noqa: SLF001 -- there is no public name
        and not statement._distinct  # noqa: SLF001
        and not statement._group_by_clauses  # noqa: SLF001
        and not statement._having_criteria  # noqa: SLF001
        and not statement._has_row_limiting_clause  # noqa: SLF001
        and all(isinstance(column, Column) for column in statement.selected_columns)
    )


def _counted(statement: Update | Delete, result: Result[Any]) -> tuple[Result[Any], int]:
    """Return a result and how many rows were changed; -1 if nobody says."""
    count = cast("int", getattr(result, "rowcount", -1))
    if count >= 0 or not statement._returning:  # noqa: SLF001 -- there is no public name
        return result, count
    frozen = result.freeze()
    return frozen(), len(frozen.data)


def _together(statement: Update | Delete, results: Sequence[Result[Any]]) -> Result[Any]:
    counts = [cast("int", getattr(result, "rowcount", -1)) for result in results]
    rowcount = -1 if -1 in counts else sum(counts)
    if not statement._returning:  # noqa: SLF001 -- there is no public name
        return WriteResult(SimpleResultMetaData([]), [], rowcount)
    names: Mapping[str, Any] = dict.fromkeys(results[0].keys())
    rows = chain.from_iterable([result.all() for result in results])
    return WriteResult(SimpleResultMetaData([*names]), rows, rowcount)
