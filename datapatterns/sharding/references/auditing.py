"""Look for rows that refer to what is not there, on all shards."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from psycopg.errors import LockNotAvailable
from sqlalchemy import Connection, and_, select
from sqlalchemy.exc import DBAPIError

from datapatterns.errors import StaleShardMapError, UnroutableKeyError
from datapatterns.sharding.access import ShardAccess
from datapatterns.sharding.atomic.settling import Settling
from datapatterns.sharding.atomic.waiting import wait_for_locks_at_most
from datapatterns.sharding.definition import EntityGroup
from datapatterns.sharding.maps.ownership import claim_buckets, owns_buckets
from datapatterns.sharding.references.audit_runs import AuditRuns, Row
from datapatterns.sharding.references.declared import PlacedReference
from datapatterns.sharding.references.definition import Values
from datapatterns.sharding.references.questions import existing_parents, lock_parents
from datapatterns.sharding.strategies.strategy import Key
from datapatterns.transactions import fresh_reads, reading

_ATTEMPTS: Final = 5
_LOCK_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class BrokenReference:
    """A row that refers to what is not there.

    Attributes:
        shard: Where it is.
        row: Its primary key.
        refers_to: What it refers to.
    """

    shard: str
    row: Values
    refers_to: Values


@dataclass(frozen=True, slots=True)
class ReferenceAudit:
    """What was found of a reference.

    Attributes:
        reference: Its name.
        rows: How many rows that refer to something were looked at.
        broken: Those that refer to what is not there.
        undecided: Those of which that could not be told: others held them locked all the time.
        complete: Whether all rows were looked at; not if ``limit`` was reached.
    """

    reference: str
    rows: int
    broken: tuple[BrokenReference, ...]
    undecided: tuple[BrokenReference, ...]
    complete: bool

    @property
    def is_whole(self) -> bool:
        """Return whether every row refers to one that is there, as far as that can be told."""
        return self.complete and not self.broken and not self.undecided


@dataclass(slots=True)
class _Found:
    """What an audit has found so far, by primary keys."""

    reference: str
    rows: int = 0
    broken: dict[Values, BrokenReference] = field(default_factory=dict)
    undecided: dict[Values, BrokenReference] = field(default_factory=dict)

    def so_far(self, *, complete: bool) -> ReferenceAudit:
        broken, undecided = tuple(self.broken.values()), tuple(self.undecided.values())
        return ReferenceAudit(self.reference, self.rows, broken, undecided, complete)


Told = Callable[[ReferenceAudit], object]


@dataclass(frozen=True, slots=True)
class Auditing:
    """Looks at references.

    Attributes:
        access: The way to the shards.
        limit: At how many broken rows of a reference to stop.
        rows_at_once: How many rows to hold in memory.
        progress: Is told what was found so far, after each piece.
    """

    access: ShardAccess
    limit: int
    rows_at_once: int
    progress: Told

    def audit(self, reference: PlacedReference) -> ReferenceAudit:
        """Return which rows refer to what is not there."""
        runs = AuditRuns(self.access, reference, self.rows_at_once)
        found = _Found(reference.name)
        while (rows := runs.next_rows()) is not None:
            found.rows += len(rows)
            for row in self._without_parents(reference, rows):
                self._look_again(reference, row, found)
            if len(found.broken) >= self.limit:
                return found.so_far(complete=False)
            if rows:
                self.progress(found.so_far(complete=False))
        return found.so_far(complete=True)

    def _look_again(self, reference: PlacedReference, row: Row, into: "_Found") -> None:
        try:
            certain = self._certain(reference, row)
        except DBAPIError as error:
            if not isinstance(error.orig, LockNotAvailable):
                raise
            into.undecided[row.primary] = BrokenReference(row.shard, row.primary, row.values)
            return
        if certain is not None:  # twice, if its bucket has moved meanwhile
            into.broken[row.primary] = certain

    # At a glance ---------------------------------------------------------------------------

    def _without_parents(self, reference: PlacedReference, rows: Sequence[Row]) -> list[Row]:
        """Return rows whose parent is not to be seen; it may come, or they may go, meanwhile."""
        for _ in range(_ATTEMPTS):
            try:
                there = self._existing(reference, {row.values for row in rows})
            except StaleShardMapError:  # the map has been read again
                continue
            return [row for row in rows if row.values not in there]
        return [*rows]  # each is looked at by itself

    def _existing(self, reference: PlacedReference, keys: Iterable[Values]) -> set[Values]:
        shard_map = self.access.router.map_of(reference.parent_key.group)
        by_shard: dict[str, dict[Values, int]] = {}
        for key in keys:
            try:
                bucket = shard_map.strategy.bucket(reference.parent_shard_key(key))
            except UnroutableKeyError:
                continue  # there can be no such row
            by_shard.setdefault(shard_map.owners[bucket], {})[key] = bucket
        questions = {
            shard: self._asking(shard, reference, mine) for shard, mine in by_shard.items()
        }
        with self.access.learning():
            answers = self.access.fan_out.answers(questions)
            return {*()}.union(*(answer.result() for answer in answers.values()))

    def _asking(
        self, shard: str, reference: PlacedReference, keys: Mapping[Values, int]
    ) -> Callable[[], set[Values]]:
        shard_map = self.access.router.map_of(reference.parent_key.group)
        owned = owns_buckets(shard_map, {*keys.values()}, schema=self.access.schema)

        def ask() -> set[Values]:
            with self._connected(shard) as conn:
                return existing_parents(conn, reference, keys, owned)

        return ask

    # For certain ---------------------------------------------------------------------------

    def _certain(self, reference: PlacedReference, row: Row) -> BrokenReference | None:
        """Return what is wrong with a row, if something is while both it and its parent are held.

        Raises:
            BranchesUnsettledError: Nobody can tell what has happened on a shard.
            DBAPIError: Somebody holds the row, or its parent, and does not end.
            StaleShardMapError: A bucket is nobody's for long.
        """
        for _ in range(_ATTEMPTS - 1):
            try:
                return self._looked_at_again(reference, row)
            except StaleShardMapError:
                continue
            except DBAPIError as error:
                if not isinstance(error.orig, LockNotAvailable):
                    raise
        return self._looked_at_again(reference, row)

    def _looked_at_again(self, reference: PlacedReference, row: Row) -> BrokenReference | None:
        declared = reference.declared
        columns = declared.child_table.primary_key.columns
        primary = dict(zip((c.name for c in columns), row.primary, strict=True))
        group = reference.child_key.group
        key = group.checked_key(reference.child_key.value_in(primary))
        with self._holding(group, key) as (shard, conn):
            # It may have gone, or refer to another one now.
            values = conn.execute(
                select(*declared.child)
                .where(and_(*(c == v for c, v in zip(columns, row.primary, strict=True))))
                .with_for_update(read=True)
            ).one_or_none()
            if values is None or None in (found := tuple(values)):
                return None
            is_there = self._has_parent(reference, found)
            return None if is_there else BrokenReference(shard, row.primary, found)

    def _has_parent(self, reference: PlacedReference, values: Values) -> bool:
        try:
            key = reference.parent_shard_key(values)
            self.access.router.map_of(reference.parent_key.group).shard_of(key)
        except UnroutableKeyError:
            return False  # there can be no such row
        with self._holding(reference.parent_key.group, key) as (_, conn):
            return bool(lock_parents(conn, reference, [values]))

    @contextmanager
    def _holding(self, group: EntityGroup, key: Key) -> Iterator[tuple[str, Connection]]:
        """Give a connection to a key's shard, which keeps it and shows all that has happened."""
        shard_map = self.access.router.map_of(group)
        shard, bucket = shard_map.shard_of(key), shard_map.strategy.bucket(key)
        with self._connected(shard) as conn:
            wait_for_locks_at_most(conn, seconds=_LOCK_SECONDS)
            claim_buckets(conn, shard_map, [bucket], schema=self.access.schema)
            engines = self.access.companions.side_engines or self.access.engines
            Settling(engines, self.access.schema).settle(conn, shard)
            yield shard, conn

    @contextmanager
    def _connected(self, shard: str) -> Iterator[Connection]:
        with (
            self.access.asking(shard),
            fresh_reads(self.access.engines[shard]) as conn,
            reading(conn),
        ):
            yield conn
