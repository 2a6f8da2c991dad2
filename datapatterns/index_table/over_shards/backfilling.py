"""Make entries for the rows that were there before, while writers go on and buckets move.

A row is read without a lock, so it may have changed by the time its entry is made. An entry that
leads nowhere by then does no harm; included columns that are old, and rows that a moving bucket has
carried from what is still to be read to what has been, are found by the comparison that follows.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from threading import Event, Lock
from typing import Final, TypeAlias
from uuid import UUID, uuid4

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Table,
    cast,
    column,
    delete,
    func,
    insert,
    or_,
    select,
    table,
    update,
)

from datapatterns.errors import IndexBusyError, ShardIndexGoneError, StaleShardMapError
from datapatterns.failpoints import failpoint
from datapatterns.index_table.over_shards.entries import Entries
from datapatterns.index_table.over_shards.net_changes import Entry, Included
from datapatterns.index_table.over_shards.pages import Page, Portion, make_entries, read_page
from datapatterns.index_table.over_shards.settling import Conflict, settle
from datapatterns.index_table.over_shards.sharded_index import ShardedIndex
from datapatterns.index_table.schema import index_tables
from datapatterns.index_table.statements import table_name
from datapatterns.sharding.maps.ownership import claim_buckets
from datapatterns.transactions import committing, fresh_reads, reading, resuming

LEASE_SECONDS: Final = 30.0
"""How long others leave a shard to whoever builds there, after his last chunk."""

CONFLICTS_MAX: Final = 1000
"""At most how many conflicts are written down on a shard."""

_LOOKS_MAX: Final = 5
"""How often a page is tried whose entries move meanwhile."""


@dataclass(frozen=True, slots=True)
class ShardProgress:
    """How far the rows of one shard are indexed.

    Attributes:
        index: The index's name.
        shard: Which shard.
        rows_done: How many rows have been looked at.
        rows_expected: Of about how many, as the planner knew when it began.
        done: Whether these were all.
    """

    index: str
    shard: str
    rows_done: int
    rows_expected: int
    done: bool


@dataclass(frozen=True, slots=True)
class _Place:
    """How far a shard is: the last row's primary key, how many rows, whether that is all."""

    after: list[str] | None
    rows: int
    done: bool


OnShardChunk: TypeAlias = Callable[[ShardProgress], object]
"""Is told how far the rows of a shard are indexed, after each chunk; by one thread at a time."""


@dataclass(slots=True)
class ShardBackfill:
    """Indexes the rows of one shard, chunk by chunk, as far as nobody else does.

    Attributes:
        entries: The index.
        shard: Which shard.
        index_id: Its number there.
        lock_seconds: How long to wait for those who want a key that two rows seem to have.
        chunk_rows: How many rows at once; their entries are locked while they are made.
        pause_seconds: How long to leave the servers alone after each chunk.
        lease_seconds: How long others leave this shard to a process that has died.
        on_chunk: Is told how far it is.
        telling: Held while that is done.
        stopping: Set by whoever wants it to end soon.
    """

    entries: Entries
    shard: str
    index_id: int
    lock_seconds: float
    chunk_rows: int
    pause_seconds: float
    lease_seconds: float
    on_chunk: OnShardChunk
    telling: Lock
    stopping: Event = field(default_factory=Event)
    _worker: UUID = field(default_factory=uuid4)

    def run(self) -> bool:
        """Index what is left; return False if somebody else is at it.

        Raises:
            CommitUnansweredError: The answer to a COMMIT was lost; do the same again.
            ShardIndexGoneError: The index was dropped meanwhile.
            ShardUnavailableError: A shard does not answer.
        """
        place = self._leased()
        while place is not None and not place.done:
            place = self._chunk(place)
            if place is not None and not place.done and self.stopping.wait(self.pause_seconds):
                self._give_back()
                return False
        return place is not None

    def _chunk(self, before: _Place) -> _Place | None:
        page, conflicts = self._page_with_entries(before.after)
        failpoint("index.page-claimed")
        last = before.after if page.last is None else list(page.last)
        place = _Place(last, before.rows + page.rows, page.rows < self.chunk_rows)
        with self._on_shard("a chunk of") as conn:
            expected = self._moved_on(conn, place)
            if expected is None:
                return None
            note_conflicts(conn, self.entries.index, self.index_id, conflicts)
        failpoint("index.page-noted")
        name = self.entries.index.name
        with self.telling:
            self.on_chunk(ShardProgress(name, self.shard, place.rows, expected, place.done))
        return place

    def _page_with_entries(self, after: list[str] | None) -> tuple[Page, list[Conflict]]:
        for _ in range(_LOOKS_MAX - 1):
            try:
                return self._indexed(after)
            except StaleShardMapError:
                continue  # it has been read again
        return self._indexed(after)

    def _indexed(self, after: list[str] | None) -> tuple[Page, list[Conflict]]:
        access, index = self.entries.access, self.entries.index
        owners = access.router.map_of(index.group).owners
        with (
            access.asking(self.shard),
            fresh_reads(access.companions.side_engines[self.shard]) as conn,
            reading(conn),
        ):
            page = read_page(conn, index, owners, after=after, limit=self.chunk_rows)
        failpoint("index.page-read")
        conflicts = []
        for shard, portion in sorted(page.portions.items()):
            for entry, included in self._make(shard, portion):
                try:
                    found = settle(self.entries, entry, included, lock_seconds=self.lock_seconds)
                except IndexBusyError:
                    continue  # the comparison that follows finds it, if nobody else sees to it
                conflicts += [] if found is None else [found]
        return page, conflicts

    def _make(self, shard: str, portion: Portion) -> list[tuple[Entry, Included]]:
        access, index = self.entries.access, self.entries.index
        shard_map = access.router.map_of(index.group)
        with (
            access.asking(shard),
            fresh_reads(access.companions.side_engines[shard]) as conn,
            committing(conn, f"entries of index {index.name}"),
        ):
            claim_buckets(conn, shard_map, portion.buckets, schema=access.schema)
            return make_entries(conn, index, portion)

    def _leased(self) -> _Place | None:
        backfills = self._backfills
        with self._on_shard("taking") as conn:
            expected = _planned_rows(self.entries.index.definition.base)
            taken = (
                update(backfills)
                .where(
                    backfills.c.index_id == self.index_id,
                    or_(
                        backfills.c.done,
                        backfills.c.lease_until.is_(None),
                        backfills.c.lease_until < func.clock_timestamp(),
                    ),
                )
                .values(
                    worker=self._worker,
                    lease_until=self._until(),
                    rows_expected=func.coalesce(backfills.c.rows_expected, expected),
                )
                .returning(backfills.c.after_pk, backfills.c.rows_done, backfills.c.done)
            )
            found = conn.execute(taken).one_or_none()
            if found is None:
                here = select(backfills.c.done).where(backfills.c.index_id == self.index_id)
                if conn.scalar(here) is None:
                    raise ShardIndexGoneError(self.entries.index.name)
                return None
        return _Place(found.after_pk, found.rows_done, found.done)

    def _moved_on(self, conn: Connection, place: _Place) -> int | None:
        """Write down how far it is; return None if another process has taken over."""
        backfills = self._backfills
        moved = (
            update(backfills)
            .where(backfills.c.index_id == self.index_id, backfills.c.worker == self._worker)
            .values(
                after_pk=place.after,
                rows_done=place.rows,
                done=place.done,
                worker=None if place.done else self._worker,
                lease_until=None if place.done else self._until(),
            )
            .returning(backfills.c.rows_expected)
        )
        expected: int | None = conn.scalar(moved)
        return expected

    def _give_back(self) -> None:
        backfills = self._backfills
        with self._on_shard("leaving") as conn:
            conn.execute(
                update(backfills)
                .where(backfills.c.index_id == self.index_id, backfills.c.worker == self._worker)
                .values(worker=None, lease_until=None)
            )

    @property
    def _backfills(self) -> Table:
        return index_tables(self.entries.index.definition.schema).index_backfill

    def _until(self) -> ColumnElement[datetime]:
        return func.clock_timestamp() + timedelta(seconds=self.lease_seconds)

    @contextmanager
    def _on_shard(self, doing: str) -> Iterator[Connection]:
        access = self.entries.access
        with (
            access.asking(self.shard),
            fresh_reads(access.companions.side_engines[self.shard]) as conn,
            resuming(conn, f"{doing} index {self.entries.index.name}"),
        ):
            yield conn


def note_conflicts(
    conn: Connection, index: ShardedIndex, index_id: int, conflicts: Iterable[Conflict]
) -> None:
    """Write conflicts down on the shard of ``conn``, for people; at most ``CONFLICTS_MAX``."""
    found = index_tables(index.definition.schema).index_conflict
    of_index = found.c.index_id == index_id
    noted = conn.scalar(select(func.coalesce(func.max(found.c.number), 0)).where(of_index)) or 0
    names = list(index.definition.key), index.definition.primary_key
    rows = [
        {
            "index_id": index_id,
            "number": number,
            "key": dict(zip(names[0], each.wanted.key, strict=True)),
            "base_pk": dict(zip(names[1], each.wanted.row, strict=True)),
            "holder_pk": dict(zip(names[1], each.holder.row, strict=True)),
        }
        for number, each in enumerate(conflicts, start=noted + 1)
        if number <= CONFLICTS_MAX
    ]
    if rows:
        conn.execute(insert(found), rows)


def forget_conflicts(conn: Connection, index: ShardedIndex, index_id: int) -> None:
    """Forget what was written down."""
    found = index_tables(index.definition.schema).index_conflict
    conn.execute(delete(found).where(found.c.index_id == index_id))


def _planned_rows(base: Table) -> ColumnElement[int]:
    """Return about how many rows a table has; -1 is said of one that was never counted."""
    known = table("pg_class", column("oid"), column("reltuples"), schema="pg_catalog")
    rows = select(known.c.reltuples).where(known.c.oid == func.to_regclass(table_name(base)))
    return func.greatest(cast(rows.scalar_subquery(), BigInteger), 0)
