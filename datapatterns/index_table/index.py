"""The index table as an application declares and uses it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqlalchemy import ColumnElement, Connection, Engine
from sqlalchemy.exc import IntegrityError

from datapatterns.change_log import ChangeToken
from datapatterns.clock import SYSTEM_CLOCK, Clock
from datapatterns.errors import IndexKeyTakenError
from datapatterns.index_table.backfilling import backfill_chunk
from datapatterns.index_table.creating import create_index, drop_index
from datapatterns.index_table.definition import Indexable, IndexMode, define
from datapatterns.index_table.entries import (
    BackfillProgress,
    CaughtUp,
    Explanation,
    IndexLag,
    VerifyReport,
)
from datapatterns.index_table.explaining import explain_index
from datapatterns.index_table.finishing import activate_index
from datapatterns.index_table.following import catch_up
from datapatterns.index_table.lagging import read_lag
from datapatterns.index_table.lookups import Lookups
from datapatterns.index_table.maintenance import constraint_name
from datapatterns.index_table.over_shards.sharded_index import sharded_index
from datapatterns.index_table.verifying import repair_index, verify_index
from datapatterns.index_table.waiting import AwaitedRow, wait_for, wait_for_async
from datapatterns.sql.metadata import DEFAULT_SCHEMA

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine


class IndexTable(Lookups):
    """Finds rows of a table by something other than its primary key.

    Every method works in the caller's transaction and never commits.
    """

    def __init__(  # noqa: PLR0913 -- the declaration's vocabulary, all by keyword
        self,
        name: str,
        *,
        on: Sequence[Indexable],
        unique: bool = False,
        include: Sequence[Indexable] = (),
        where: ColumnElement[bool] | None = None,
        mode: IndexMode | None = None,
        buckets: int | None = None,
        schema: str = DEFAULT_SCHEMA,
    ) -> None:
        """Declare the index; nothing happens in a database before `create`.

        Args:
            name: Its name, 1 to 40 bytes; also that of its table in the library's schema.
            on: Columns or immutable expressions, in order. Rows with a NULL aren't indexed.
            unique: Refuse two rows with one key, in the statement that writes the second.
            include: Further columns, to be read without the base table.
            where: Leave out rows for which this isn't true.
            mode: How the index is kept; chosen unless given, and `explain` says why.
            buckets: How many its entries are spread over, in mode ``reserve``, 1024 unless given.
                They move from shard to shard as others do; their number never changes.
            schema: The library's schema.

        Raises:
            IndexDefinitionError: It can't be declared like this.
            IndexModeError: Index tables can't be kept in this mode.
            SchemaNameError: ``schema`` can't name the library's schema.
        """
        self.definition = define(
            name,
            on=on,
            unique=unique,
            include=include,
            where=where,
            mode=mode,
            buckets=buckets,
            schema=schema,
        )
        if self.definition.mode == "reserve":  # its table is now among the application's
            sharded_index(self.definition)

    def __repr__(self) -> str:
        key = ", ".join(self.definition.key)
        return f"IndexTable({self.definition.name!r}, on {self.definition.base.fullname} ({key}))"

    @property
    def name(self) -> str:
        """The index's name."""
        return self.definition.name

    def create(self, conn: Connection) -> bool:
        """Create it in state ``building``; return False if it was there already.

        From then on every writer keeps it; rows from before come with `backfill`. Over shards it is
        created on each, and its own table with those of the application's classes. Waits for
        transactions that are writing to the table, and makes others wait until the caller
        commits: set ``lock_timeout`` on a busy table.

        Raises:
            IndexChangedError: It was built from another definition.
            IndexDefinitionError: The table, a column or an expression can't be indexed.
                Nothing was created and the transaction is still usable.
            IndexDetachedError: It was built on another table, in whose place this one is now.
            IsolationLevelError: The connection is in autocommit mode.
        """
        return create_index(conn, self.definition)

    def backfill(self, conn: Connection, *, limit: int = 10_000) -> BackfillProgress:
        """Index the next ``limit`` rows that were there before; repeat until done.

        Give each chunk a transaction of its own: its rows are locked against writers until
        the caller commits. Takes up where the last committed chunk ended.

        Raises:
            IndexMissingError: `create` comes first.
            IndexDetachedError: Its triggers don't fire for every writer of its table.
            IsolationLevelError: The transaction isn't READ COMMITTED.
        """
        self._refuse_over_shards()
        return backfill_chunk(conn, self.definition, limit=limit)

    def activate(self, conn: Connection) -> VerifyReport:
        """Verify it and let it be read, from the caller's commit on; or write nothing.

        Raises:
            IndexNotReadyError: Its backfill isn't done.
            IndexDiffersError: It doesn't agree with its table; in a unique index, two rows
                may have one key.
            IndexDetachedError: Its triggers don't fire for every writer of its table.
            IsolationLevelError: The transaction isn't READ COMMITTED.
        """
        self._refuse_over_shards()
        return activate_index(conn, self.definition)

    def drop(self, conn: Connection) -> bool:
        """Drop the index of this name, whatever its definition was; False if there is none.

        Raises:
            IsolationLevelError: The connection is in autocommit mode.
        """
        return drop_index(conn, self.name, schema=self.definition.schema)

    def catch_up(self, conn: Connection, *, skip_locked: bool = False) -> CaughtUp | None:
        """Take in all that was committed, as a worker does; nothing if writers keep the index.

        Args:
            conn: A READ COMMITTED transaction that has written nothing; the caller commits.
            skip_locked: Return None if somebody else is at it, instead of waiting.

        Raises:
            IndexDetachedError: It can't follow its table any more; `repair` it.
            IndexMissingError: It was never created in this database.
            IsolationLevelError: The transaction isn't READ COMMITTED.
            TransactionInUseError: The transaction has written something.
        """
        if self.definition.mode != "async":
            return CaughtUp(0, 0, 0, is_rebuilt=False)
        return catch_up(conn, self.definition, skip_locked=skip_locked)

    def lag(self, conn: Connection) -> IndexLag:
        """Return how far it is behind its table: not at all, if its writers keep it.

        Raises:
            IndexDetachedError: It can't follow its table any more; `repair` it.
        """
        return read_lag(conn, self.definition)

    def wait(
        self,
        engine: Engine,
        token: ChangeToken,
        *,
        timeout_seconds: float,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """Return as soon as look-ups find what the token's transaction wrote.

        Args:
            engine: Where the index is.
            token: From `datapatterns.change_log.change_token`, taken in the writer's transaction.
            timeout_seconds: How long to wait at most.
            clock: What the time-out goes by.

        Raises:
            IndexBehindError: It has not come in time.
            IndexNotReadyError: The index isn't read yet.
            ValueError: The token comes from another cluster.
        """
        wait_for(engine, AwaitedRow(self.definition, token, timeout_seconds, clock))

    async def wait_async(
        self,
        engine: "AsyncEngine",
        token: ChangeToken,
        *,
        timeout_seconds: float,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """Do as `wait` does, in a task."""
        awaited = AwaitedRow(self.definition, token, timeout_seconds, clock)
        await wait_for_async(engine, awaited)

    def verify(self, conn: Connection) -> VerifyReport:
        """Compare all rows with all index rows, both ways, in one snapshot.

        Of an index that is kept behind its writers, rows are left out whose changes are still to
        be taken in.

        Raises:
            IndexBehindError: It has to read all rows anew first, after a truncation for example.
            IndexDetachedError: It was built on another table, in whose place this one is now.
        """
        self._refuse_over_shards()
        return verify_index(conn, self.definition)

    def repair(self, conn: Connection) -> VerifyReport:
        """Make the index what its table says; return what is left of the differences.

        Triggers that were disabled fire again. Writers of the table wait until the caller
        commits; they don't if the index is kept behind them and follows its table. Rows of a
        unique index whose key another row has stay missing.

        Raises:
            IndexDetachedError: It was built on another table, in whose place this one is now.
            IsolationLevelError: The transaction isn't READ COMMITTED.
        """
        self._refuse_over_shards()
        return repair_index(conn, self.definition)

    def explain(self) -> Explanation:
        """Return how the index is kept, and why that way."""
        return explain_index(self.definition)

    @contextmanager
    def key_conflicts(self) -> Iterator[None]:
        """Turn PostgreSQL's refusal of a second row with a unique key into a ConflictError.

        Raises:
            IndexKeyTakenError: Another row has the key. The transaction accepts nothing more
                until it is rolled back, or back to a savepoint.
        """
        try:
            yield
        except IntegrityError as error:
            violated = getattr(error.orig, "diag", None)
            if violated is None or (violated.schema_name, violated.constraint_name) != (
                self.definition.schema,
                constraint_name(self.definition),
            ):
                raise
            raise IndexKeyTakenError(self.name) from error
