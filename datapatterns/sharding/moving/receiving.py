"""How a target takes a bucket in, by what kind of shard it is."""

from collections.abc import Sequence
from typing import Protocol

from datapatterns.sharding.maps.shard_map import ShardMap
from datapatterns.sharding.moving.capturing import install_capture, remove_capture
from datapatterns.sharding.moving.checking import check_right
from datapatterns.sharding.moving.cleaning import clean
from datapatterns.sharding.moving.copying import TablePair, copy_bucket
from datapatterns.sharding.moving.draining import Batch, apply_dirty, drain
from datapatterns.sharding.moving.holding import Side
from datapatterns.sharding.moving.moved_table import MovedTable
from datapatterns.sharding.moving.pacing import Pace
from datapatterns.sharding.moving.tombstones import renew_tombstones


class Receiving(Protocol):
    """What a move does on its target; all else is the same for every kind."""

    @property
    def compares_changed(self) -> bool:
        """Whether the cut may compare only what has changed since all was compared."""

    @property
    def guards(self) -> bool:
        """Whether triggers keep others from the rows that are coming."""

    def check(self, target: Side, tables: Sequence[MovedTable]) -> None:
        """Refuse a target that could not take the bucket in."""

    def make_ready(
        self, target: Side, tables: Sequence[MovedTable], shard_map: ShardMap, *, pace: Pace
    ) -> None:
        """Keep others from the rows that are coming."""

    def copy(self, source: Side, target: Side, tables: Sequence[TablePair], *, pace: Pace) -> int:
        """Copy all rows as of one moment; return how many."""

    def drain(self, source: Side, target: Side, tables: Sequence[TablePair], *, pace: Pace) -> int:
        """Bring over what has changed; return how many keys."""

    def apply_dirty(
        self, source: Side, target: Side, tables: Sequence[TablePair], *, pace: Pace
    ) -> Batch:
        """Bring over what has changed, in a transaction of the caller's on the source."""

    def clean(
        self, target: Side, tables: Sequence[MovedTable], *, rows_at_once: int, pace: Pace
    ) -> None:
        """Remove what has come, and say that it is gone."""

    def forget_capture(self, target: Side, tables: Sequence[MovedTable], *, pace: Pace) -> None:
        """Drop what an earlier stay of the bucket has left."""


class PlainReceiving:
    """A PostgreSQL server, where the mover keeps triggers and foreign keys quiet."""

    compares_changed = True
    guards = True

    def check(self, target: Side, tables: Sequence[MovedTable]) -> None:
        """Refuse a role that cannot keep triggers quiet."""
        del tables
        check_right(target)

    def make_ready(
        self, target: Side, tables: Sequence[MovedTable], shard_map: ShardMap, *, pace: Pace
    ) -> None:
        """Let no old trigger refuse the rows, and nobody else change or add what is arriving.

        A transaction that began to do so could end after both shards were compared.
        """
        renew_tombstones(target, tables, shard_map, pace=pace)
        install_capture(target, tables, shard_map, pace=pace)

    def copy(self, source: Side, target: Side, tables: Sequence[TablePair], *, pace: Pace) -> int:
        """Do as `copy_bucket`."""
        return copy_bucket(source, target, tables, pace=pace)

    def drain(self, source: Side, target: Side, tables: Sequence[TablePair], *, pace: Pace) -> int:
        """Do as `drain`."""
        return drain(source, target, tables, pace=pace)

    def apply_dirty(
        self, source: Side, target: Side, tables: Sequence[TablePair], *, pace: Pace
    ) -> Batch:
        """Do as `apply_dirty`."""
        return apply_dirty(source, target, tables, pace=pace)

    def clean(
        self, target: Side, tables: Sequence[MovedTable], *, rows_at_once: int, pace: Pace
    ) -> None:
        """Delete some rows at a time."""
        clean(target, tables, state="incoming", rows_at_once=rows_at_once, pace=pace)

    def forget_capture(self, target: Side, tables: Sequence[MovedTable], *, pace: Pace) -> None:
        """Drop triggers that would note changes for nobody."""
        remove_capture(target, tables, pace=pace)
