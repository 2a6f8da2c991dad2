"""How buckets are moved, and what a worker needs for it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Engine, Table

from datapatterns.change_log.inspecting import table_name
from datapatterns.clock import Clock
from datapatterns.errors import SettingsError
from datapatterns.sharding.access import ShardAccess
from datapatterns.sharding.definition import EntityGroup, ShardKey
from datapatterns.sharding.maps.shard_map import ShardMap
from datapatterns.sharding.moving.move import MoveProgress


@dataclass(frozen=True, slots=True)
class MoveSettings:
    """How buckets are moved.

    Attributes:
        clean_after_seconds: How long the source keeps the rows after the target has taken over.
        bytes_per_second: How much to copy at most; None for as fast as it goes.
        rows_at_once: How many rows one transaction deletes.
        lease_seconds: After how long others take over from a worker that says nothing any more.
        progress: Is told how far a move is, by the thread that works at it.
    """

    clean_after_seconds: float
    bytes_per_second: float | None = None
    rows_at_once: int = 5_000
    lease_seconds: float = 60.0
    progress: Callable[[MoveProgress], object] = lambda _: None


@dataclass(frozen=True, slots=True)
class MoveAccess:
    """What a worker needs of a cluster.

    Attributes:
        control: Where the map is.
        shards: The way to the shards.
        groups: What is sharded.
        clock: What time it is.
        keep_seconds: For how long readers with an old map may still ask the source.
    """

    control: Engine
    shards: ShardAccess
    groups: Sequence[EntityGroup]
    clock: Clock
    keep_seconds: float

    @property
    def engines(self) -> Mapping[str, Engine]:
        """Return an engine for each shard."""
        return self.shards.engines

    @property
    def schema(self) -> str:
        """Return where the library's tables live."""
        return self.shards.schema

    def newest_map(self, group: EntityGroup) -> ShardMap:
        """Return the map of a group as it is now.

        Raises:
            OperationalError: The control database does not answer. By an older map, rows of other
                buckets would be taken for this one's, moved and cleaned away.
        """
        return self.shards.router.newest(group)

    def group(self, name: str) -> EntityGroup:
        """Return a group by its name.

        Raises:
            SettingsError: The cluster has no such group.
        """
        for group in self.groups:
            if group.name == name:
                return group
        raise SettingsError("groups", f"a bucket of group {name!r} moves; declare that group, too")

    def broadcast_names(self) -> list[str]:
        """Return the names of the tables that every shard has whole."""
        return [table_name(table) for table in self.shards.placements.broadcast_tables()]

    def tables_of(self, group: EntityGroup) -> dict[Table, ShardKey]:
        """Return all tables of a group that are declared."""
        found = self.shards.placements.tables()
        for metadata in {table.metadata for table in found}:
            for table in metadata.tables.values():
                key = self.shards.placements.shard_key(table)
                if key is not None:
                    found[table] = key
        return {table: key for table, key in found.items() if key.group is group}
