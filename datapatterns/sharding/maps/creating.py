"""Create maps on all servers: the control database first, then each shard, then they open."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import URL, Connection, Engine, Table

from datapatterns.failpoints import failpoint
from datapatterns.sharding.definition import EntityGroup, ShardKey
from datapatterns.sharding.engines import driver_engine, tables_needed
from datapatterns.sharding.maps.initialising import (
    check_empty,
    check_ownership,
    holds_buckets,
    open_maps,
    record_map,
    record_ownership,
)
from datapatterns.sharding.maps.loading import load_maps
from datapatterns.sharding.maps.ownership import shard_errors
from datapatterns.sharding.maps.shard_map import ShardMap
from datapatterns.sharding.schema import UNUSED
from datapatterns.transactions import resuming


@dataclass(frozen=True, slots=True)
class NewMap:
    """What is needed to create the maps of a cluster.

    Attributes:
        control: The control database.
        urls: The addresses of the shards: they do not know yet which shard they are.
        engines: The engines of the shards, for when they do.
        groups: Whose maps.
        tables: The tables that are mapped so far.
        schema: Where the library's tables live.
    """

    control: Engine
    urls: Mapping[str, URL]
    engines: Mapping[str, Engine]
    groups: Sequence[EntityGroup]
    tables: Mapping[Table, ShardKey]
    schema: str

    def create(self) -> None:
        """Create what is missing, and open what was; repeated, it goes on where it stopped."""
        with tables_needed(self.schema), self._recording() as conn:
            record_map(conn, self.groups, self.urls, schema=self.schema)
            maps = load_maps(conn, self.groups, shards=self.urls, unused=True, schema=self.schema)
        failpoint("shard-map.recorded")
        new = {name: found for name, found in maps.items() if found.epoch == UNUSED}
        for shard_id, url in self.urls.items():
            with unchecked(url, shard_id, self.schema) as conn:
                self._record(conn, shard_id, new)
            failpoint("shard-map.shard-told")
        for shard_id, engine in self.engines.items():
            with shard_errors(shard_id), engine.connect() as conn:
                check_ownership(conn, shard_id, list(maps.values()), schema=self.schema)
        with self._recording() as conn:
            open_maps(conn, list(new.values()), schema=self.schema)

    def _record(self, conn: Connection, shard_id: str, new: Mapping[str, ShardMap]) -> None:
        for name, shard_map in new.items():
            # A shard that has been told already may be in use by now, through another process.
            if not holds_buckets(conn, shard_map, schema=self.schema):
                check_empty(conn, shard_id, self._tables_of(name))
        if new:
            record_ownership(conn, shard_id, list(new.values()), schema=self.schema)

    def _tables_of(self, group: str) -> Collection[Table]:
        return [table for table, key in self.tables.items() if key.group.name == group]

    @contextmanager
    def _recording(self) -> Iterator[Connection]:
        with self.control.connect() as conn, resuming(conn, "the shard map"):
            yield conn


@contextmanager
def unchecked(url: URL, shard_id: str, schema: str) -> Iterator[Connection]:
    """Begin a transaction on a server that does not know yet which shard it is."""
    engine = driver_engine(url)
    try:
        with (
            shard_errors(shard_id),
            tables_needed(schema),
            engine.connect() as conn,
            resuming(conn, f"the shard map on {shard_id}"),
        ):
            yield conn
    finally:
        engine.dispose()
