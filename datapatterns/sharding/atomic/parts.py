"""The connections of one transaction: one for each shard that it has come to."""

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TypeVar

from sqlalchemy import Connection, PoolProxiedConnection, RootTransaction, func, select

from datapatterns.errors import (
    MultiShardWriteError,
    ShardTransactionEndedError,
    ShardUnavailableError,
)
from datapatterns.sharding.access import ShardAccess
from datapatterns.sharding.atomic.bare import BareConnections
from datapatterns.sharding.atomic.committing import ATTEMPTED, Commit, Writer, deciding_first
from datapatterns.sharding.atomic.ending import commit_reader, let_go, place_on, result_of
from datapatterns.sharding.atomic.waiting import (
    is_as_prepared,
    prepare_for_others,
    settings_for_others,
)
from datapatterns.sharding.engines import has_idle_connection
from datapatterns.sharding.fan_out import CancelledAfterwards
from datapatterns.sharding.maps.ownership import claim_buckets
from datapatterns.sharding.maps.shard_map import ShardMap
from datapatterns.sharding.reaching.circuits import connecting_within
from datapatterns.sharding.reaching.conversation import can_converse
from datapatterns.sharding.reaching.time_limits import silence_limit
from datapatterns.sharding.reaching.tokens import NEVER, ShardToken
from datapatterns.transactions import refuse_aborted

T = TypeVar("T")

Part = tuple[Connection, RootTransaction]

SILENT_SECONDS = 30.0
"""So long a server may take for the settings of a transaction that is one of several."""


class Parts:
    """What one transaction holds on each shard.

    Args:
        access: The way to the shards.
        lock_seconds: Whether it may write to several of them, and then, how long it waits for a
            lock: a circle of waiting over two servers is seen by none.
    """

    def __init__(self, access: ShardAccess, *, lock_seconds: float | None) -> None:
        self._access = access
        self._declared_lock_seconds = lock_seconds
        self._lock_seconds = lock_seconds
        self._parts: dict[str, Part] = {}
        self._lost: dict[str, ShardUnavailableError] = {}
        self._left: list[Part] = []
        self.on_replicas: set[str] = set()
        self._marked: set[str] = set()
        self._bare = BareConnections(access.engines)

    def opened(self, shard: str) -> Connection | None:
        """Return the connection to ``shard`` if there is one."""
        part = self._parts.get(shard)
        return None if part is None else part[0]

    def on(self, shard: str, *, asks_only: bool = False) -> Connection:
        """Return the connection to ``shard``, in a transaction.

        Args:
            shard: Which one.
            asks_only: Whether the caller is about to ask for what a claim or a guard protects, and
                will do nothing else. While the transaction has no other part, that needs no
                settings, whose price is a round trip.

        Raises:
            ShardUnavailableError: The transaction goes on without it.
        """
        if shard in self._lost:
            raise self._lost[shard]
        if shard not in self._parts:
            alone = asks_only and not self.shards
            if not alone:
                self._mark_all()
            self._open(shard, marks=not alone)
        elif not asks_only:
            self._mark(shard)
        return self._parts[shard][0]

    def reach(self, shard: str) -> Connection:
        """Return the connection to ``shard`` for what is claimed there next, with `claim`.

        Raises:
            ShardUnavailableError: The transaction goes on without it.
        """
        if shard not in self._parts and shard not in self._lost:
            self._mark_all()
            self._open(shard, marks=False)
        return self.on(shard, asks_only=True)

    def claim(self, shard: str, shard_map: ShardMap, buckets: Collection[int]) -> None:
        """Keep buckets on a shard that was reached, until the transaction ends.

        The settings of a transaction that may write to several travel with the claim.

        Raises:
            DBAPIError: The shard does not own them.
        """
        conn, schema = self._parts[shard][0], self._access.schema
        if self._lock_seconds is None or shard in self._marked:
            claim_buckets(conn, shard_map, buckets, schema=schema)
            return
        settings = settings_for_others(self._lock_seconds)
        claim_buckets(conn, shard_map, buckets, schema=schema, after=settings)
        if not conn.in_nested_transaction():
            self._marked.add(shard)

    def _reached(self, shard: str, shard_map: ShardMap, buckets: Collection[int]) -> Connection:
        """Return the connection to ``shard`` for what is written there beside the rows."""
        with self._access.asking(shard):
            self.reach(shard)
            self.claim(shard, shard_map, buckets)
            return self.on(shard)

    def beneath(self, shards: Iterable[str]) -> dict[str, PoolProxiedConnection] | None:
        """Return connections of the driver, for what only asks past SQLAlchemy.

        Returns:
            None if that is not possible: somebody listens, or the transaction is one of several,
            in which each wait has to end.

        Raises:
            ShardUnavailableError: One does not answer, or the transaction goes on without it.
        """
        wanted = [*shards]
        if self._lock_seconds is not None or not all(map(self._bare.can_ask, wanted)):
            return None
        taken = {shard: self._taken(shard) for shard in wanted}
        self.open(shard for shard, found in taken.items() if found is None)
        found = {shard: found or self._taken(shard) for shard, found in taken.items()}
        return {s: each for s, each in found.items() if each} if all(found.values()) else None

    def _taken(self, shard: str) -> PoolProxiedConnection | None:
        if shard in self._lost:
            raise self._lost[shard]
        if shard not in self._parts:
            return self._bare.take(shard)
        conn = self._parts[shard][0]
        can_ask = not (conn._has_events or conn._execution_options)  # noqa: SLF001 -- no public name
        usable = (
            can_ask
            and not conn.invalidated
            and can_converse(conn.connection.dbapi_connection, conn.info)
        )
        return conn.connection if usable else None

    def open(self, shards: Iterable[str]) -> None:
        """Have connections to all of ``shards``; those that are missing are opened at once.

        Raises:
            ShardUnavailableError: A shard does not answer; the connections to others are kept.
        """
        for error in self.open_some(shards).values():
            raise error

    def open_some(
        self, shards: Iterable[str], *, seconds: float | None = None
    ) -> dict[str, ShardUnavailableError]:
        """Do as `open`; return why that was not possible for some.

        Args:
            shards: Where.
            seconds: How long each may take; libpq gives at least 2 to a new connection.
        """
        wanted = sorted(set(shards) - self._parts.keys())
        missing = {shard: self._lost[shard] for shard in wanted if shard in self._lost}
        opening = [shard for shard in wanted if shard not in missing]
        if opening:
            self._mark_all()
        questions: dict[str, Callable[[], None]] = {
            shard: partial(self._open, shard, seconds) for shard in opening
        }
        # What waits for no server takes longer in threads.
        waits = self._lock_seconds is not None or not all(
            has_idle_connection(self._access.engines[shard]) for shard in opening
        )
        if waits:
            answers = self._access.fan_out.answers(questions)
            questions = {shard: answer.result for shard, answer in answers.items()}
        for shard, question in questions.items():
            try:
                with self._access.asking(shard):
                    question()
            except ShardUnavailableError as error:
                missing[shard] = error
        return missing

    def read_from(self, shard: str, conn: Connection) -> None:
        """Take a connection to a replica, for as long as nothing is written."""
        self._parts[shard] = conn, conn.begin()
        self.on_replicas.add(shard)

    def leave_replicas(self) -> None:
        """Read from primaries from now on."""
        for shard in self.on_replicas:
            part = self._parts.pop(shard)
            self._left.append(part)  # the session knows it still
            let_go(part[0])
        self.on_replicas.clear()

    def places(self, shards: Iterable[str]) -> dict[str, str]:
        """Return where the logs of shards are, after the commit."""
        return {shard: place_on(self._parts[shard][0]) for shard in shards if shard in self._parts}

    def lose(self, shard: str, error: ShardUnavailableError) -> None:
        """Go on without a shard on which nothing was done."""
        self._lost[shard] = error
        self.on_replicas.discard(shard)
        if (part := self._parts.pop(shard, None)) is not None:
            # The session knows it still, and rolls it back in the end.
            self._left.append(part)
            let_go(part[0])

    @property
    def shards(self) -> tuple[str, ...]:
        """Return the shards that it has come to."""
        return (*self._parts, *self._bare.shards)

    def bind_together(self, *, lock_seconds: float) -> None:
        """Let this transaction write to several shards, though it began without that."""
        self._lock_seconds = self._lock_seconds or lock_seconds
        self._mark_all()

    def _mark_all(self) -> None:
        for shard in self._parts.keys() - self.on_replicas:  # nothing is written to those
            self._mark(shard)

    def _mark(self, shard: str) -> None:
        """Make a part one of several, unless it is or there may be no other."""
        if self._lock_seconds is None or shard in self._marked:
            return
        conn, _ = self._parts[shard]
        with self._access.asking(shard):
            prepare_for_others(conn, lock_seconds=self._lock_seconds)
        # What is set inside a savepoint is forgotten when that is rolled back.
        if not conn.in_nested_transaction():
            self._marked.add(shard)

    def commit(self) -> tuple[str, ...]:
        """Commit on every shard, or on none.

        Returns:
            The shards that show it only when recovery has been there.

        Raises:
            MultiShardWriteError: Several shards were written to, and must not be.
            Exception: What `Commit.run` raises.
        """
        self._dress()
        if len(self._parts) == 1:
            [(shard, (_, transaction))] = self._parts.items()
            with self._access.asking(shard):
                transaction.commit()
            return ()
        writers = self._writers()
        if len(writers) > 1 and self._lock_seconds is None:
            raise MultiShardWriteError([writer.shard for writer in writers])
        # Whoever only read comes first: should its server be gone, nothing has been committed.
        for shard in self._parts.keys() - {writer.shard for writer in writers}:
            with self._access.asking(shard):
                commit_reader(self._parts[shard][0])
        if len(writers) == 1:
            with self._access.asking(writers[0].shard):
                writers[0].transaction.commit()
        elif writers:
            access = self._access
            ordered = deciding_first(writers, access.citus)
            with access.learning():
                commit = Commit(access.engines, access.fan_out, access.schema)
                return access.fan_out.undisturbed(partial(commit.run, ordered), ATTEMPTED)
        return ()

    def commit_and_tell(self) -> tuple[tuple[str, ...], ShardToken]:
        """Do as `commit`; return also what a replica has to show to whoever comes after.

        Raises:
            MultiShardWriteError: Several shards were written to, and must not be.
            Exception: What `Commit.run` raises.
        """
        shown = [shard for shard in sorted(self._parts) if self._access.replicas.has(shard)]
        left, token, cancelled = self.commit_and_place(shown)
        if cancelled is not None:
            raise cancelled.told()
        return left, token

    def commit_and_place(
        self, shown: Sequence[str], wrote: Collection[str] | None = None
    ) -> tuple[tuple[str, ...], ShardToken, CancelledAfterwards | None]:
        """Do as `commit`; return also the places of some shards, and who cancelled afterwards.

        Args:
            shown: The shards whose places are wanted.
            wrote: Those that may have been written to; None if nobody knows.

        Raises:
            MultiShardWriteError: Several shards were written to, and must not be.
            Exception: What `Commit.run` raises.
        """
        # Before, as nothing may fail when it has happened. What is claimed cannot move in between.
        maps = self._access.router.maps() if shown else []
        asked = self._parts.keys() if wrote is None else self._parts.keys() & {*wrote}
        parts = {shard: self._parts[shard][0] for shard in sorted(asked - self.on_replicas)}
        reach = None if self._lock_seconds is None else self._reached
        with self._access.companions.attending(self._access, parts, reach) as attendance:
            left, cancelled = result_of(self.commit)
            attendance.is_seen = not left
        cancelled = cancelled or attendance.cancelled
        places: dict[str, str] = {}
        if shown:
            fan_out = self._access.fan_out
            places, later = result_of(
                partial(fan_out.undisturbed, partial(self.places, shown), ATTEMPTED)
            )
            cancelled = cancelled or later
        places |= {shard: NEVER for shard in shown if shard in left}
        epochs = {each.group_id: each.epoch for each in maps}
        return left, ShardToken(places, epochs), cancelled

    def close(self) -> None:
        """Give all connections back; what was not committed is rolled back."""
        parts, self._parts = [*self._parts.values(), *self._left], {}
        self._lost.clear()
        self._left.clear()
        self.on_replicas.clear()
        self._lock_seconds = self._declared_lock_seconds
        self._marked.clear()
        with ExitStack() as closing:  # all of them, whatever one raises
            for conn, _ in parts:
                closing.callback(conn.close)
            closing.callback(self._bare.close)

    def _dress(self) -> None:
        for shard in self._bare.shards:
            with self._access.asking(shard):
                self._open(shard)

    def _open(self, shard: str, seconds: float | None = None, *, marks: bool = True) -> None:
        # Kept by whoever opens it: if others are interrupted at the same, this is open already.
        self._parts[shard] = self._opened(shard, seconds, marks=marks)

    def _opened(self, shard: str, seconds: float | None, *, marks: bool) -> Part:
        with connecting_within(seconds):
            conn = self._bare.dress(shard) or self._access.engines[shard].connect()
        try:
            transaction = conn.begin()
            if marks and self._lock_seconds is not None:
                with silence_limit(conn, shard, seconds or SILENT_SECONDS):
                    prepare_for_others(conn, lock_seconds=self._lock_seconds)
                self._marked.add(shard)
        except BaseException:
            conn.close()
            raise
        return conn, transaction

    def _writers(self) -> list[Writer]:
        found = []
        for shard, (conn, transaction) in self._parts.items():
            if not transaction.is_active or conn.get_transaction() is not transaction:
                raise ShardTransactionEndedError(shard)
            refuse_aborted(conn, ATTEMPTED)
            with self._access.asking(shard):
                # A function may write behind a SELECT. This also finds servers that died in the
                # meantime before anything is committed.
                wrote = func.pg_current_xact_id_if_assigned().is_not(None)
                has_written, is_whole = conn.execute(select(wrote, is_as_prepared())).one()
            if shard in self._marked and not is_whole:
                raise ShardTransactionEndedError(shard)
            if has_written:
                found.append(Writer(shard, conn, transaction))
        return found
