"""What is kept beside the rows of sharded tables, and has a part in each of their COMMITs.

As a ``Synchronization`` of the Java Transaction API: told before a transaction completes, when it
may still refuse, and after, when it no longer may.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, cast, runtime_checkable

from psycopg.pq import TransactionStatus
from sqlalchemy import Connection, Delete, Engine, Update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from sqlalchemy.sql.selectable import SelectBase

from datapatterns.errors import DataPatternsError, OutcomeUnknownError
from datapatterns.sharding.definition import EntityGroup
from datapatterns.sharding.fan_out import CancelledAfterwards
from datapatterns.sharding.finding import Finding
from datapatterns.sharding.strategies.strategy import Key
from datapatterns.transactions import A_TRANSACTION

if TYPE_CHECKING:
    from datapatterns.sharding.access import ShardAccess
    from datapatterns.sharding.maps.shard_map import ShardMap

logger = logging.getLogger(__name__)

_ENDED: Final = (TransactionStatus.IDLE, TransactionStatus.INERROR)


class Reaching(Protocol):
    """A way to write to further shards in the transaction itself."""

    def __call__(
        self, shard: str, shard_map: "ShardMap", buckets: Collection[int], /
    ) -> Connection:
        """Keep buckets on a shard, and return the transaction's connection to it.

        Raises:
            ShardUnavailableError: The shard does not answer.
            StaleShardMapError: The buckets have moved.
        """


class Completion(Protocol):
    """What is left to do when a transaction has come to its end."""

    def committed(self) -> None:
        """Do what follows a commit; what it raises is logged, as nothing can be undone."""

    def rolled_back(self) -> None:
        """Undo what was done before; nothing of the transaction happened."""


class Companion(Protocol):
    """Something kept beside sharded rows, on shards that need not be theirs."""

    @property
    def groups(self) -> Sequence[EntityGroup]:
        """The groups that its own tables are sharded by."""

    def before_commit(
        self,
        access: "ShardAccess",
        parts: Mapping[str, Connection],
        reach: Reaching | None = None,
    ) -> Completion | None:
        """Do what must have happened before a transaction commits; None if that is nothing.

        What it raises keeps the transaction from committing, and leaves it as it was.

        Args:
            access: The way to the shards.
            parts: The transaction's connections, by shard; all its rows are flushed.
            reach: Lets it write to further shards in the transaction itself; None if that can't
                write to several.
        """

    def join(self, access: "ShardAccess", shard: str, others: Sequence[str]) -> None:
        """Have writers of a shard keep it that has just come; repeating it does nothing.

        Args:
            access: The way to the shards.
            shard: Which one; it has no rows, and gets no bucket before this has returned.
            others: The shards of the cluster.
        """


@runtime_checkable
class Finder(Protocol):
    """A companion that finds rows by something else than their shard key."""

    def finding(
        self,
        access: "ShardAccess",
        statement: SelectBase | Update | Delete,
        parameters: Mapping[str, Any],
        *,
        index: str | None = None,
    ) -> Finding | None:
        """Return what finds the rows of a statement that does not say their shard key, if it can.

        Args:
            access: The way to the shards.
            statement: One about sharded rows.
            parameters: What it is executed with.
            index: The name of what is to find them; None for whatever does so best.
        """


@dataclass(frozen=True, slots=True)
class Companions:
    """What a cluster was given to be kept beside its rows.

    Attributes:
        declared: All of them.
        side_engines: Further engines of the shards: work beside a transaction must not wait for a
            connection that another transaction holds which waits for the same.
    """

    declared: tuple[Companion, ...] = ()
    side_engines: Mapping[str, Engine] = field(default_factory=dict)

    @contextmanager
    def attending(
        self,
        access: "ShardAccess",
        parts: Mapping[str, Connection],
        reach: Reaching | None = None,
    ) -> Iterator["Attendance"]:
        """Let all of them have their part in a COMMIT, which is the block."""
        waiting: list[Completion] = []
        attendance = Attendance()
        try:
            waiting += self.before_commit(access, parts, reach)
            yield attendance
        except OutcomeUnknownError:
            raise  # it may have happened
        except Exception:
            # Else it may still be committed: what was done for that must stay.
            if all(map(_has_ended, parts.values())):
                attendance.finish(access, [completion.rolled_back for completion in waiting])
            raise
        if attendance.is_seen:
            attendance.finish(access, [completion.committed for completion in waiting])

    def join(self, access: "ShardAccess", shard: str, others: Sequence[str]) -> None:
        """Have writers of a shard keep all of them that has just come."""
        for each in self.declared:
            each.join(access, shard, others)

    def before_commit(
        self,
        access: "ShardAccess",
        parts: Mapping[str, Connection],
        reach: Reaching | None = None,
    ) -> list[Completion]:
        """Let all of them do what must have happened before a COMMIT; return what is left to do."""
        found = [each.before_commit(access, parts, reach) for each in self.declared]
        return [completion for completion in found if completion is not None]

    def finding(
        self,
        access: "ShardAccess",
        statement: SelectBase | Update | Delete,
        parameters: Mapping[str, Any],
        *,
        index: str | None = None,
    ) -> Finding | None:
        """Return what finds the rows of a statement that does not say their shard key, if any."""
        finders = (each for each in self.declared if isinstance(each, Finder))
        found = (each.finding(access, statement, parameters, index=index) for each in finders)
        return next((finding for finding in found if finding is not None), None)


@dataclass(slots=True)
class Attendance:
    """What came of having companions.

    Attributes:
        cancelled: Who was cancelled while they did what follows the end, which was done.
        is_seen: Whether all shards show what was committed. If some still have to be brought to do
            so, what they do not show as gone must not be forgotten; it is left to a sweep.
    """

    cancelled: CancelledAfterwards | None = None
    is_seen: bool = True

    def finish(self, access: "ShardAccess", todo: Iterable[Callable[[], None]]) -> None:
        """Do what is left, to its end; whatever cannot be done is for a later sweep."""
        for each in todo:
            try:
                access.fan_out.undisturbed(partial(_logged, each), A_TRANSACTION)
            except CancelledAfterwards as cancelled:
                self.cancelled = cancelled


NO_COMPANIONS: Final = Companions()


def _logged(todo: Callable[[], None]) -> None:
    try:
        todo()
    except (DataPatternsError, SQLAlchemyError) as error:
        logger.warning("what follows a transaction is left to a sweep: %s", error)


def _has_ended(conn: Connection) -> bool:
    """Return whether nothing can be committed on ``conn`` any more."""
    driver: Any = None if conn.closed or conn.invalidated else conn.connection.driver_connection
    return driver is not None and driver.info.transaction_status in _ENDED


class SessionOverShards(Protocol):
    """What companions need of a session over all shards, or on that of one key."""

    @property
    def shard_access(self) -> "ShardAccess":
        """The way to the shards."""

    @property
    def written_parts(self) -> Mapping[str, Connection]:
        """The connections of the running transaction to shards that it has written to, by shard."""

    @property
    def only_key(self) -> Key | None:
        """The key whose rows are all that it sees; None if it sees all rows."""


def over_shards(session: Session) -> SessionOverShards:
    """Return a session as companions see it.

    Raises:
        TypeError: It knows no shards.
    """
    if not hasattr(session, "shard_access"):
        raise TypeError(f"a {type(session).__name__} knows no shards; use ShardCluster.session()")
    return cast("SessionOverShards", session)
