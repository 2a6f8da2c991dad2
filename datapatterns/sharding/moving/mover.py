"""Take moves from wherever they are to one of their two ends."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from uuid import UUID, uuid4

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from datapatterns.errors import (
    ConfigurationError,
    DataPatternsError,
    MoveBusyError,
    MoveMismatchError,
    MoveRefusedError,
)
from datapatterns.failpoints import failpoint
from datapatterns.sharding.citus.receiving import CitusReceiving
from datapatterns.sharding.definition import EntityGroup
from datapatterns.sharding.maps.ownership import shard_errors
from datapatterns.sharding.moving import planning
from datapatterns.sharding.moving.checking import missing_indexes
from datapatterns.sharding.moving.holding import Side
from datapatterns.sharding.moving.move import Move
from datapatterns.sharding.moving.moved_table import describe_tables
from datapatterns.sharding.moving.receiving import PlainReceiving, Receiving
from datapatterns.sharding.moving.settings import MoveAccess, MoveSettings
from datapatterns.sharding.moving.working import Work
from datapatterns.transactions import fresh_reads, looking


@dataclass(frozen=True, slots=True)
class Mover:
    """Plans moves and works at them.

    Attributes:
        access: What it needs of a cluster.
        settings: How buckets are moved.
    """

    access: MoveAccess
    settings: MoveSettings

    def plan(self, group: EntityGroup, bucket: int, *, source: str, target: str) -> UUID:
        """Write a move down; return its id.

        Raises:
            MoveRefusedError: The source is a coordinator of Citus.
            StaleMoveError: The map has the bucket elsewhere, or it is moving already.
        """
        self.refuse_leaving(source)
        group_id = self.access.newest_map(group).group_id
        with self._control() as conn:
            move_id = planning.plan_move(
                conn,
                group_id,
                bucket,
                source=source,
                target=target,
                schema=self.access.schema,
            )
        failpoint("move.planned")
        return move_id

    def refuse_leaving(self, shard: str) -> None:
        """Refuse to take a bucket from a shard that cannot note what changes meanwhile.

        Raises:
            MoveRefusedError: It is a coordinator of Citus.
        """
        if shard in self.access.shards.citus:
            raise MoveRefusedError(
                f"shard {shard!r}",
                "it is a coordinator of Citus, whose tables have no triggers to note what changes,"
                " so buckets come to it and never leave; spread them inside of it, by"
                " citus_rebalance_start(), or copy the tables while nobody writes",
            )

    def run(self, move_id: UUID, *, clean_up: bool = True) -> Move:
        """Carry a move out, from wherever it is; return it as it has ended.

        What could not be moved rightly is undone.

        Args:
            move_id: Which move.
            clean_up: Whether to wait until the source may be cleaned, and clean it.
        """
        with self._working(move_id) as work:
            try:
                work.forward(clean_up=clean_up)
            except (ConfigurationError, MoveMismatchError):
                with suppress(DataPatternsError, SQLAlchemyError):
                    work.back()
                raise
        return work.move

    def abort(self, move_id: UUID) -> Move:
        """Undo a move; one that the target has taken over already goes on to its end."""
        with self._working(move_id) as work:
            if not work.back():
                work.forward(clean_up=True)
        return work.move

    def moves(self, *, live: bool) -> list[Move]:
        """Return the moves, the oldest first."""
        with fresh_reads(self.access.control) as conn, looking(conn):
            return list(planning.read_moves(conn, schema=self.access.schema, live=live))

    def missing_indexes(self, group: EntityGroup, shard: str) -> list[str]:
        """Return the statements that make indexes by which buckets would be found on a shard."""
        shard_map, schema = self.access.newest_map(group), self.access.schema
        with (
            shard_errors(shard),
            fresh_reads(self.access.engines[shard]) as conn,
            looking(conn),
        ):
            declared = self.access.tables_of(group)
            tables = describe_tables(conn, declared, shard_map, 0, schema=schema)
            return missing_indexes(conn, tables, shard_map, schema=schema)

    @contextmanager
    def _working(self, move_id: UUID) -> Iterator[Work]:
        worker, schema = uuid4().hex, self.access.schema
        with self._control() as conn:
            leased = planning.take_lease(
                conn, move_id, worker, seconds=self.settings.lease_seconds, schema=schema
            )
        if leased is None:
            raise MoveBusyError(move_id)
        move, lease = leased
        error: str | None = None
        try:
            shard_map = self.access.newest_map(self.access.group(move.group))
            with (
                self._side(move, move.source, lease) as source,
                self._side(move, move.target, lease) as target,
                source.keeping_tables(),
                target.keeping_tables(),
            ):
                yield Work(
                    move,
                    lease,
                    source,
                    target,
                    self.access,
                    self.settings,
                    shard_map,
                    self._receiving(move),
                )
        except BaseException as caught:
            error = f"{type(caught).__name__}: {caught}"[:500]
            raise
        finally:
            # If this fails, others wait until the lease has run out.
            with suppress(DataPatternsError, SQLAlchemyError), self._control() as conn:
                planning.give_back(conn, move, lease, error, schema=schema)

    def _receiving(self, move: Move) -> Receiving:
        if move.target not in self.access.shards.citus:
            return PlainReceiving()
        return CitusReceiving(
            self.access.tables_of(self.access.group(move.group)),
            self.access.shards.placements.broadcast_tables(),
        )

    @contextmanager
    def _side(self, move: Move, shard: str, lease: int) -> Iterator[Side]:
        engine = self.access.engines[shard]
        with shard_errors(shard), fresh_reads(engine) as conn:
            yield Side(
                conn,
                shard,
                move.group_id,
                move.bucket,
                lease,
                self.access.schema,
                is_citus=shard in self.access.shards.citus,
            )

    @contextmanager
    def _control(self) -> Iterator[Connection]:
        with fresh_reads(self.access.control) as conn, planning.changing_moves(conn):
            yield conn
