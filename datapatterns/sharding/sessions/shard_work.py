"""What the running transaction of a session over shards holds and has done on each of them."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import count
from typing import Any, TypeAlias, TypeVar

from sqlalchemy import Connection, PoolProxiedConnection, Result
from sqlalchemy.orm import ORMExecuteState, Session

from datapatterns.errors import (
    MultiShardWriteError,
    ShardTransactionEndedError,
    ShardUnavailableError,
    UnroutableStatementError,
)
from datapatterns.sharding.access import ShardAccess
from datapatterns.sharding.atomic.parts import Parts
from datapatterns.sharding.citus.claiming import claim_as_it_is
from datapatterns.sharding.fan_out import CancelledAfterwards
from datapatterns.sharding.maps.shard_map import ShardMap
from datapatterns.sharding.reaching.tokens import ShardToken
from datapatterns.sharding.seeing.timing import TimedFlush

T = TypeVar("T")

Take: TypeAlias = Callable[[Result[Any]], T]

LOCK_SECONDS = 5.0

# Of the thread or task, as several may work for one session.
_RUNNING: ContextVar["tuple[ShardWork, str] | None"] = ContextVar("running_on", default=None)
_TURNS = count()


class ShardWork:
    """The part of a session that knows shards: connections, claims, and who has been written to.

    Args:
        session: Whose transaction it is.
        access: The way to the shards.
        atomic: Whether the transaction may write to several shards.
    """

    def __init__(self, session: Session, access: ShardAccess, *, atomic: bool) -> None:
        self.access = access
        self.atomic = atomic
        self._declared_atomic = atomic
        self.parts = Parts(access, lock_seconds=LOCK_SECONDS if atomic else None)
        self.written: set[str] = set()
        self.is_committed = False
        self.flushed = TimedFlush(access.load)
        self.missing: tuple[str, ...] = ()
        self.is_lent = False
        """Whether somebody else has got one of the connections."""
        self.replica_seconds: float | None = None
        self.token = ShardToken()
        self._session = session
        self._claimed: set[tuple[int, int]] = set()
        self._holding: set[str] = set()
        self._cancelled: CancelledAfterwards | None = None

    # Connections ---------------------------------------------------------------------------

    def bind(self, shard_id: str | None, *, asks_only: bool = False) -> Connection:
        """Return the transaction's connection to a shard, or to that of the running statement.

        Args:
            shard_id: Which shard.
            asks_only: As for `Parts.on`.

        Raises:
            UnroutableStatementError: No statement is running, so nothing says which shard.
        """
        chosen = shard_id or self._running()
        if chosen is None:
            raise UnroutableStatementError(
                "a session over all shards has no connection of its own",
                "execute a statement that names the shard key, or use ShardCluster.connect()",
            )
        # In a savepoint, settings would be forgotten with it.
        lazily = asks_only and not self._session.in_nested_transaction()
        with self.access.asking(chosen):
            return self.parts.on(chosen, asks_only=lazily)

    def connection_to(self, shard_id: str, *, asks_only: bool = False) -> Connection:
        """Return the session's connection to a shard, as part of its transaction."""
        arguments = {"shard_id": shard_id, "asks_only": asks_only}
        with self.access.asking(shard_id):
            return Session.connection(self._session, bind_arguments=arguments)

    def beneath(self, shards: Iterable[str]) -> dict[str, PoolProxiedConnection] | None:
        """Return connections of the driver in the transaction, as `Parts.beneath` does.

        Raises:
            ShardUnavailableError: One does not answer.
        """
        if self._session.in_nested_transaction():
            return None  # it would have to come to each of them
        found = self.parts.beneath(shards)
        if not self._session.in_transaction():
            self._session.begin()  # whose end gives the connections back
        return found

    def run(self, state: ORMExecuteState, statement: Any, shard_id: str) -> Result[Any]:  # noqa: ANN401 -- any statement
        """Execute ``statement`` in place of that of ``state``, on one shard."""
        running = _RUNNING.set((self, shard_id))
        try:
            with self.access.asking(shard_id):
                arguments = {"shard_id": shard_id, "asks_only": True}
                return state.invoke_statement(statement, bind_arguments=arguments)
        finally:
            _RUNNING.reset(running)

    @property
    def is_plain(self) -> bool:
        """Whether a statement for one shard is sent to its primary, and that is all."""
        return self.access.load is None and self.replica_seconds is None

    def go_on(self, state: ORMExecuteState, statement: Any, shard_id: str) -> None:  # noqa: ANN401 -- any statement
        """Let SQLAlchemy execute ``statement`` in place of that of ``state``, on one shard.

        As `run` does, without beginning anew: `executing` is around that already.
        """
        state.statement = statement
        state.bind_arguments |= {"shard_id": shard_id, "asks_only": True}
        _RUNNING.set((self, shard_id))

    def executing(self, execute: Callable[[], T]) -> T:
        """Return what ``execute`` does, which may `go_on`; its errors name the shard."""
        before = _RUNNING.get()
        try:
            return execute()
        except Exception:
            running = _RUNNING.get()
            if running is before or running is None:
                raise
            with self.access.asking(running[1]):
                raise
        finally:
            _RUNNING.set(before)

    @contextmanager
    def flushing(self) -> Iterator[None]:
        """A flush may come before the running statement, on other shards than that one's.

        Raises:
            ShardUnavailableError: One of them does not answer.
            StaleShardMapError: One owns other buckets than the map says.
        """
        running = _RUNNING.set(None)
        try:
            with self.flushed, self.access.asking_several():
                yield
        finally:
            _RUNNING.reset(running)

    def _running(self) -> str | None:
        work, shard_id = _RUNNING.get() or (None, None)
        return shard_id if work is self else None

    def read_on_replica(self, shard_id: str) -> None:
        """Read a shard on a replica from now on, if this transaction may and one has what it needs.

        A transaction that has written, or is about to, reads from primaries: others would not show
        it what it wrote.
        """
        wanted, session = self.replica_seconds, self._session
        if wanted is None or shard_id in self.parts.shards:
            return
        if not self.access.replicas.has(shard_id):
            return
        if self._holding or session.new or session.dirty or session.deleted:
            return
        if session.in_nested_transaction():
            return  # what is to be written would leave its savepoint behind there
        found = self.access.replicas.connect(shard_id, self.token, seconds=wanted)
        if found is not None:
            self.parts.read_from(shard_id, found)

    def lose(self, shard_id: str, error: ShardUnavailableError) -> None:
        """Go on without a shard until the transaction ends.

        Raises:
            ShardUnavailableError: The transaction holds something there: rows or locks that it
                would do without, or a savepoint.
        """
        if shard_id in self._holding or self._session.in_nested_transaction():
            raise error
        self.parts.lose(shard_id, error)

    # Writers -------------------------------------------------------------------------------

    def shard_of(self, shard_map: ShardMap, buckets: frozenset[int]) -> str:
        """Return the one shard of ``buckets``; where to go if there are none is free."""
        if buckets:
            return next(iter(shard_map.shards_of(buckets)))
        used = next(iter((*self.written, *self.parts.shards)), None)
        # Not always the same shard: what any may answer is not to be the first one's work alone.
        return used or shard_map.owners[next(_TURNS) % len(shard_map.owners)]

    def become_writer(self, shard_id: str) -> None:
        """Remember that a shard is written to.

        Raises:
            MultiShardWriteError: Another one was, and the session is not atomic.
        """
        if not self.atomic and self.written - {shard_id}:
            raise MultiShardWriteError((*self.written, shard_id))
        self.written.add(shard_id)
        self.hold(shard_id)

    def hold(self, shard_id: str) -> None:
        """Remember that the transaction cannot go on without a shard; it reads from primaries."""
        self.parts.leave_replicas()
        self._holding.add(shard_id)

    def bind_together(self) -> None:
        """Let this one transaction write to several shards."""
        self.atomic = True
        self.parts.bind_together(lock_seconds=LOCK_SECONDS)

    def claim(self, shard_id: str, shard_map: ShardMap, buckets: Iterable[int]) -> None:
        """Keep buckets on a shard until the transaction ends."""
        wanted = {bucket for bucket in buckets if (shard_map.group_id, bucket) not in self._claimed}
        if not wanted:
            return
        self.hold(shard_id)  # first: what a replica gives does not bind its primary
        if not self._session.in_nested_transaction():
            with self.access.asking(shard_id):
                self.parts.reach(shard_id)
        conn = self.connection_to(shard_id, asks_only=True)
        with self.access.asking(shard_id):
            self.parts.claim(shard_id, shard_map, wanted)
        # What is claimed inside a savepoint is given back when that is rolled back.
        if not conn.in_nested_transaction():
            self._claimed.update((shard_map.group_id, bucket) for bucket in wanted)

    def claim_citus(self, shard_id: str, shard_map: ShardMap) -> None:
        """Hold a Citus coordinator to the map for what is read of it until the transaction ends."""
        self.hold(shard_id)
        conn = self.connection_to(shard_id)
        with self.access.asking(shard_id):
            claim_as_it_is(conn, shard_map, shard_id, schema=self.access.schema)

    # The end -------------------------------------------------------------------------------

    def refuse_after_commit(self) -> None:
        """Refuse to write.

        Raises:
            ShardTransactionEndedError: The transaction has been committed.
        """
        if self.is_committed:
            raise ShardTransactionEndedError(next(iter(self.written), "none"))

    def commit(self) -> tuple[str, ...]:
        """Commit on every shard, or on none; return the shards that are left to recovery."""
        wrote = [shard for shard in sorted(self._holding) if self.access.replicas.has(shard)]
        left, token, self._cancelled = self.parts.commit_and_place(wrote, self._holding)
        self.is_committed = True
        self.token = self.token.with_all_of(token)
        return left

    def end(self) -> None:
        """Forget the transaction, and give its connections back."""
        self.is_committed = False
        self.is_lent = False
        self.atomic = self._declared_atomic
        self.written.clear()
        self._claimed.clear()
        self._holding.clear()
        self.parts.close()
        cancelled, self._cancelled = self._cancelled, None
        if cancelled is not None:
            raise cancelled.told()
