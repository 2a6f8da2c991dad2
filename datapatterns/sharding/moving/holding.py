"""Transactions of a worker on a shard, each of which makes sure that it is the worker still."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from typing import Literal, TypeAlias

from psycopg import sql
from psycopg.errors import DeadlockDetected, LockNotAvailable
from sqlalchemy import ColumnElement, Connection, and_, func, literal, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from datapatterns.errors import MoveBlockedError, MoveTakenOverError
from datapatterns.sharding.citus.claiming import wait_for_readers
from datapatterns.sharding.maps.ownership import shard_errors
from datapatterns.sharding.migrating.lock import keep_tables, release_tables
from datapatterns.sharding.schema import sharding_tables
from datapatterns.sql.composing import execute
from datapatterns.sql.durability import DURABLY
from datapatterns.sql.functions import library_function
from datapatterns.transactions import looking, reading, resuming

BRIEFLY = "10s"
"""How long a worker waits for whoever holds what the shard knows of the bucket."""

HeldState: TypeAlias = Literal["owned", "incoming", "moved", "cleaned"]

# Some of them are newer than the oldest server.
_PATIENT = sql.SQL("""
SELECT set_config(name, value, true)
FROM (VALUES ('statement_timeout', '0'), ('transaction_timeout', '0'),
    ('idle_in_transaction_session_timeout', '0'),  -- one shard is idle while the other works
    ('lc_monetary', 'C'),  -- as keys were noted
    -- Rows that a policy hides would be left behind: then it is an error.
    ('row_security', 'off')) AS setting (name, value)
WHERE current_setting(name, true) IS NOT NULL
""")
_SNAPSHOT = sql.SQL("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
_READ_ONLY = sql.SQL("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
_KEEP = sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE")
# Triggers of the application would change what is copied, and foreign keys would want an order.
_AS_MOVER = sql.SQL(
    "SELECT set_config('datapatterns.mover', pg_current_xact_id()::text, true);"
    " SET LOCAL session_replication_role = 'replica'"
)
# Others wait for it.
_HURRY = sql.SQL("SET LOCAL idle_in_transaction_session_timeout = '10s'")
_LOCK_TIMEOUT = sql.SQL("SET LOCAL lock_timeout = {}")


@dataclass(frozen=True, slots=True)
class Held:
    """What a shard knows of a bucket.

    Attributes:
        state: What it is there.
        epoch: Raised whenever it leaves a shard.
        generation: Raised whenever it loses keys to another bucket.
    """

    state: HeldState
    epoch: int
    generation: int


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two shards of a move, with the connection that a worker has to it.

    Attributes:
        conn: A connection that is in no transaction.
        shard: The shard.
        group_id: What the servers call the group.
        bucket: Which bucket moves.
        lease: What the worker is numbered; a younger one has a higher number.
        schema: Where the library's tables live.
        is_citus: Whether it is a coordinator of Citus.
    """

    conn: Connection
    shard: str
    group_id: int
    bucket: int
    lease: int
    schema: str
    is_citus: bool = False

    @contextmanager
    def transaction(
        self,
        state: HeldState | None = None,
        *,
        as_mover: bool = False,
        snapshot: Sequence[sql.Composable] = (),
        lock_ms: int | None = None,
        hurry: bool = False,
    ) -> Iterator[Connection]:
        """Open a transaction in which no other worker can take over, and commit it.

        Args:
            state: What the bucket must be on this shard.
            as_mover: Whether triggers and foreign keys keep quiet.
            snapshot: Tables of which all statements see one moment; by default, each sees its own.
            lock_ms: How long to wait for a lock; by default for ever.
            hurry: Whether the server ends the transaction should this process be stopped in it.

        Raises:
            CommitUnansweredError: Nobody knows whether it was committed; resume the move.
            MoveTakenOverError: Another worker has taken over, or the state is another.
            ShardUnavailableError: The shard does not answer.
        """
        with shard_errors(self.shard), resuming(self.conn, f"a move on shard {self.shard}"):
            self._set(
                _snapshot(_SNAPSHOT, snapshot),
                [_PATIENT, DURABLY],
                [_HURRY] * hurry,
                [] if lock_ms is None else [_LOCK_TIMEOUT.format(sql.Literal(f"{lock_ms}ms"))],
                [_AS_MOVER] * as_mover,
            )
            self.check(state)
            yield self.conn

    @contextmanager
    def changing(self) -> Iterator[Connection]:
        """Open a transaction for `become` alone, which itself makes sure of lease and state.

        Raises:
            CommitUnansweredError: Nobody knows whether it was committed; resume the move.
            ShardUnavailableError: The shard does not answer.
        """
        with shard_errors(self.shard), resuming(self.conn, f"a move on shard {self.shard}"):
            self._set([_PATIENT, DURABLY])
            yield self.conn

    def _set(self, *settings: Sequence[sql.Composable]) -> None:
        """Set what holds for a transaction, in one message."""
        execute(self.conn, sql.SQL(";").join(chain.from_iterable(settings))).close()

    @contextmanager
    def keeping_tables(self) -> Iterator[None]:
        """Let no migration change the tables of this shard meanwhile.

        Raises:
            MigrationBlockedError: A migration is under way.
        """
        with shard_errors(self.shard), looking(self.conn):
            keep_tables(self.conn, schema=self.schema)
        try:
            yield
        finally:
            # A session that broke has let go already.
            if not (self.conn.closed or self.conn.invalidated):
                with suppress(SQLAlchemyError), looking(self.conn):
                    release_tables(self.conn, schema=self.schema)

    @contextmanager
    def snapshot(self, tables: Sequence[sql.Composable]) -> Iterator[Connection]:
        """Open a transaction that only reads, and sees one moment of ``tables``.

        It holds no lease, which would be a write: who copies holds that of the target.
        """
        with shard_errors(self.shard), reading(self.conn):
            self._set(_snapshot(_READ_ONLY, tables), [_PATIENT])
            yield self.conn

    def check(self, state: HeldState | None = None) -> None:
        """Make sure, until the transaction ends, that no other worker takes over.

        The state is checked with it: whatever went wrong before, an owner's rows are not touched.

        Raises:
            MoveTakenOverError: Another worker has taken over, or the state is another.
        """
        held = sharding_tables(self.schema).bucket
        mine = and_(self._is_mine(), held.c.lease_epoch == self.lease)
        if state is not None:
            mine = and_(mine, held.c.state == state)
        if self.conn.scalar(select(literal(1)).where(mine).with_for_update(read=True)) is None:
            raise MoveTakenOverError(self.bucket, self.shard)

    def take(self) -> HeldState:
        """Fence off all older workers; return what the bucket is on this shard at that moment.

        Raises:
            MoveTakenOverError: A younger worker is at it, or the shard has never had the bucket.
        """
        held = sharding_tables(self.schema).bucket
        taken = (
            update(held)
            .where(self._is_mine(), held.c.lease_epoch <= self.lease)
            .values(lease_epoch=self.lease)
            .returning(held.c.state)
        )
        with self._waiting_briefly() as conn:
            found: HeldState | None = conn.scalar(taken)
            if found is None:
                raise MoveTakenOverError(self.bucket, self.shard)
        return found

    def expect(self) -> None:
        """Fence off all older workers, and let the shard expect the bucket.

        Raises:
            MoveTakenOverError: A younger worker is at it, or the shard owns the bucket: an owner
                never becomes a target.
        """
        held = sharding_tables(self.schema).bucket
        new = insert(held).values(
            group_id=self.group_id,
            bucket=self.bucket,
            state="incoming",
            epoch=0,
            settled=True,
            lease_epoch=self.lease,
        )
        expected = new.on_conflict_do_update(
            index_elements=[held.c.group_id, held.c.bucket],
            set_={"state": "incoming", "settled": True, "lease_epoch": self.lease},
            where=and_(held.c.state != "owned", held.c.lease_epoch <= self.lease),
        )
        with self._waiting_briefly() as conn:
            if self.is_citus:
                wait_for_readers(conn, self.group_id, schema=self.schema)
            if not conn.execute(expected).rowcount:
                raise MoveTakenOverError(self.bucket, self.shard)

    def become(self, state: HeldState, *, was: HeldState, like: "Held | None" = None) -> "Held":
        """Change what the bucket is on this shard, in the caller's transaction; return that.

        Args:
            state: What it becomes.
            was: What it must have been.
            like: What else is known of it; by default, this is the next epoch.

        Raises:
            MoveTakenOverError: Another worker has taken over, or it was something else.
        """
        held = sharding_tables(self.schema).bucket
        facts = (
            {"epoch": held.c.epoch + 1}
            if like is None
            else {"epoch": like.epoch, "generation": like.generation}
        )
        changed = (
            update(held)
            .where(self._is_mine(), held.c.state == was, held.c.lease_epoch == self.lease)
            .values(state=state, **facts)
            .returning(held.c.state, held.c.epoch, held.c.generation)
        )
        found = self.conn.execute(changed).one_or_none()
        if found is None:
            raise MoveTakenOverError(self.bucket, self.shard)
        return Held(*found)

    def now(self) -> "Held":
        """Return what the bucket is on this shard, in the caller's transaction."""
        held = sharding_tables(self.schema).bucket
        found = select(held.c.state, held.c.epoch, held.c.generation).where(self._is_mine())
        return Held(*self.conn.execute(found).one())

    def state_now(self) -> HeldState | None:
        """Return the same; None if it was never there."""
        held = sharding_tables(self.schema).bucket
        state: HeldState | None = self.conn.scalar(select(held.c.state).where(self._is_mine()))
        return state

    def fence(self) -> None:
        """Wait until nobody writes to the bucket, and keep it so until the transaction ends.

        The queue is fair: whoever comes later waits behind.
        """
        fences = library_function(self.schema, "fence_class", self.group_id)
        self.conn.execute(select(func.pg_advisory_xact_lock(fences, self.bucket))).close()

    def _is_mine(self) -> ColumnElement[bool]:
        held = sharding_tables(self.schema).bucket
        return and_(held.c.group_id == self.group_id, held.c.bucket == self.bucket)

    @contextmanager
    def _waiting_briefly(self) -> Iterator[Connection]:
        """Wait for whoever holds the bucket's row, but not for a worker that has been stopped."""
        with (
            blocked_by_locks(self.shard, f"bucket {self.bucket}"),
            shard_errors(self.shard),
            resuming(self.conn, f"a move on shard {self.shard}"),
        ):
            self._set([DURABLY, _LOCK_TIMEOUT.format(sql.Literal(BRIEFLY))])
            yield self.conn


def _snapshot(level: sql.Composable, tables: Sequence[sql.Composable]) -> Sequence[sql.Composable]:
    """Return what begins a snapshot.

    It is taken when nobody can rewrite the tables any more: to a snapshot from before, one that was
    rewritten looks empty.
    """
    if not tables:
        return []
    return [level, _KEEP.format(sql.SQL(", ").join(tables))]


@contextmanager
def blocked_by_locks(shard: str, what: str) -> Iterator[None]:
    """Say that a lock was not to be had.

    Raises:
        MoveBlockedError: Somebody holds it.
    """
    try:
        yield
    except DBAPIError as error:
        if is_blocked(error):
            raise MoveBlockedError(shard, what) from error
        raise


def is_blocked(error: DBAPIError) -> bool:
    """Return whether a statement gave up waiting for a lock."""
    return isinstance(error.orig, LockNotAvailable | DeadlockDetected)
