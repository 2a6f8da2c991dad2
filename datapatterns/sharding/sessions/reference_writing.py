"""What a session over shards does about references when it writes."""

from collections.abc import Callable
from typing import Any, TypeVar

from sqlalchemy import Connection, Delete, Insert, Result, Select, Table, Update, inspect, select
from sqlalchemy.orm import ORMExecuteState, Session, UOWTransaction

from datapatterns.errors import (
    ReferenceWriteError,
    ScatterRefusedError,
    UnroutableStatementError,
)
from datapatterns.sharding.atomic.spoiling import refuse_commit
from datapatterns.sharding.broadcasting.images import RowKey, has_key
from datapatterns.sharding.reaching.options import asked_for
from datapatterns.sharding.references.changes import Changes
from datapatterns.sharding.references.checking import ReferenceChecks
from datapatterns.sharding.references.objects import FlushedObjects
from datapatterns.sharding.references.statements import Effect, Write, effect_of
from datapatterns.sharding.routing.write_keys import changed_rows, updates_by_primary_key
from datapatterns.sharding.sessions.reference_reach import SessionReach
from datapatterns.sharding.sessions.shard_work import ShardWork
from datapatterns.sharding.sessions.statements import all_sets

AnyWrite = TypeVar("AnyWrite", bound=Write)

CHOSEN_ROWS_MAX = 5_000
"""Of how many rows one statement may change what they refer to, or take what is referred to."""


class ReferenceWriting:
    """Checks what a session writes.

    Args:
        session: Whose objects and statements.
        work: Its transaction.
    """

    def __init__(self, session: Session, work: ShardWork) -> None:
        self._session = session
        self._work = work
        self._references = work.access.references
        self._objects = FlushedObjects(self._references)
        self._checks = ReferenceChecks(work.access, SessionReach(session, work))

    # Objects -------------------------------------------------------------------------------

    def flushes(self, instance: object, conn: Connection) -> None:
        """Take note of an object that is about to be written.

        Raises:
            RowMissingError: It is gone.
        """
        if self._references:
            self._objects.writes(inspect(instance), conn)

    def flushed(self, context: UOWTransaction) -> None:
        """Check what the running flush has written.

        Raises:
            Exception: What `ReferenceChecks.check` raises; the flush is rolled back.
        """
        if not self._objects:
            return
        changes = self._objects.changes(lambda state: context.states[state][0])
        if changes:
            self._checks.check(changes)

    def end_flush(self) -> None:
        """Forget the flush."""
        self._objects.end()

    def end(self) -> None:
        """Forget the transaction."""
        self._checks.end()

    # Statements ----------------------------------------------------------------------------

    def around(
        self,
        state: ORMExecuteState,
        statement: AnyWrite,
        write: Callable[[ORMExecuteState, AnyWrite], Result[Any]],
    ) -> Result[Any]:
        """Execute a statement, and check what it has written.

        Raises:
            ReferenceWriteError: It cannot be told what it does to references.
            Exception: What ``write`` and `ReferenceChecks.check` raise.
        """
        if not self._references:
            return write(state, statement)
        effect = effect_of(
            statement,
            all_sets(state),
            state.bind_mapper,
            self._references,
            by_primary_key=updates_by_primary_key(state),
        )
        if not effect:
            return write(state, statement)
        changes, keys = Changes(), list[RowKey]()
        if effect.chooses:
            statement, keys = self._choose(state, statement, effect, changes)
            state.statement = statement
        result = write(state, statement)
        try:
            if getattr(result, "rowcount", -1) != 0:
                for reference, values in effect.refers.items():
                    changes.refer(reference, values)
            self._reread(effect, statement.table, keys, changes)
            self.check(changes)
        except BaseException:
            self.spoil()
            raise
        return result

    def check(self, changes: Changes) -> None:
        """Check what has been written.

        Raises:
            Exception: What `ReferenceChecks.check` raises.
        """
        if changes:
            self._checks.check(changes)

    def spoil(self) -> None:
        """Let nobody commit what has been written."""
        for shard in self._work.written:
            if (conn := self._work.parts.opened(shard)) is not None:
                refuse_commit(conn)

    def _choose(
        self, state: ORMExecuteState, statement: AnyWrite, effect: Effect, changes: Changes
    ) -> tuple[AnyWrite, list[RowKey]]:
        """Lock the rows that a statement is about, and confine it to them.

        Others that come to match meanwhile are left alone, as if it had run a moment before.
        """
        name = (effect.gives_up or effect.rereads)[0].name
        assert not isinstance(statement, Insert)  # what it inserts is known
        table, sets = _table(statement), all_sets(state)
        if updates_by_primary_key(state):
            return statement, _listed(state, table, sets)
        if len(sets) > 1:
            raise ReferenceWriteError(
                name, "the statement has several sets of parameters", "execute it for each of them"
            )
        columns = [*table.primary_key.columns]
        width = len(columns)
        columns += [column for each in effect.gives_up for column in each.declared.parent]
        mapper = state.bind_mapper if "parententity" in statement.table._annotations else None  # noqa: SLF001 -- as SQLAlchemy asks
        question: Select[Any] = (
            select(*(column.label(f"c{at}") for at, column in enumerate(columns)))
            .select_from(table if mapper is None else mapper)
            .where(*getattr(statement, "_where_criteria", ()))
            .options(*statement._with_options)  # noqa: SLF001 -- there is no public name
            # Whoever refers to them may go on; the statement itself locks more.
            .with_for_update(key_share=True, of=table)
        )
        parameters = dict(sets[0]) if sets else {}
        rows: list[Any] = []
        for shard in self._shards_of(state, statement):
            # Locks of several shards are no answer that could be merged.
            options = {} if shard is None else {"shard": shard}
            rows += self._session.execute(question, parameters, execution_options=options)
        if len(rows) > CHOSEN_ROWS_MAX:
            raise ReferenceWriteError(
                name,
                f"the statement is about {len(rows)} rows that refer to others or are referred to",
                f"change at most {CHOSEN_ROWS_MAX} at once",
            )
        at = width
        for reference in effect.gives_up:
            until = at + len(reference.declared.parent)
            changes.go(reference, [tuple(row[at:until]) for row in rows])
            at = until
        keys = [tuple(row[:width]) for row in rows]
        confined: Any = statement
        return confined.where(has_key(table, keys)), keys

    def _shards_of(self, state: ORMExecuteState, statement: Update | Delete) -> list[str | None]:
        """Return where the rows of a statement are; None where it says that itself."""
        asked = asked_for(state.execution_options, scatter=False)
        if asked.one is not None:
            return [asked.one]
        access, sets = self._work.access, all_sets(state)
        footprint, keys = changed_rows(
            statement, sets, access.placements, state.bind_mapper, by_primary_key=False
        )
        shard_map = access.router.map_of(footprint.group)
        buckets = (
            footprint.buckets(sets[0] if sets else {}, shard_map.strategy)
            if keys is None
            else shard_map.buckets_with(keys)
        )
        if buckets is None and not asked.explicit:
            raise ScatterRefusedError(footprint.tables)
        found = shard_map.shards_of(shard_map.buckets if buckets is None else buckets)
        return [None] if len(found) <= 1 else [*sorted(found)]

    def _reread(self, effect: Effect, table: Any, keys: list[RowKey], changes: Changes) -> None:  # noqa: ANN401 -- whatever a statement names
        for reference in effect.rereads if keys else ():
            question = select(*reference.declared.child).where(has_key(table, keys))
            changes.refer(reference, [tuple(row) for row in self._session.execute(question)])


def _table(statement: Write) -> Table:
    table = statement.table
    if not isinstance(table, Table):
        raise UnroutableStatementError(
            f"the statement writes to a {type(table).__name__}", "name a table"
        )
    return table


def _listed(state: ORMExecuteState, table: Table, sets: Any) -> list[RowKey]:  # noqa: ANN401 -- of parameters
    mapper = state.bind_mapper
    assert mapper is not None  # it is about a mapped class
    names = [mapper.get_property_by_column(c).key for c in table.primary_key.columns]
    return [tuple(row[name] for name in names) for row in sets]
