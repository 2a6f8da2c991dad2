"""What a cluster can be told about growing out to Citus."""

from collections.abc import Mapping, Sequence

from sqlalchemy import URL, Engine, NullPool, Table

from datapatterns.errors import CitusUnfitError, SettingsError
from datapatterns.sharding.access import ShardAccess
from datapatterns.sharding.citus.coordinator import coordinator_findings, live_findings
from datapatterns.sharding.citus.distributing import ddl
from datapatterns.sharding.citus.fitness import CitusFinding, findings_of
from datapatterns.sharding.definition import EntityGroup
from datapatterns.sharding.engines import driver_engine, driver_url
from datapatterns.sharding.maps.ownership import shard_errors
from datapatterns.sharding.routing.placements import Placements
from datapatterns.sharding.strategies import Directory
from datapatterns.sharding.strategies.stored import unpinned
from datapatterns.sharding.strategies.strategy import Key
from datapatterns.transactions import reading


class CitusCluster:
    """The part of a `ShardCluster` that prepares it for Citus, from the first day on."""

    _placements: Placements
    _schema: str
    _citus: frozenset[str]
    engines: Mapping[str, Engine]

    @property
    def _access(self) -> ShardAccess:
        raise NotImplementedError

    def check_citus(
        self, *, shard: str | None = None, coordinator: str | URL | None = None
    ) -> tuple[CitusFinding, ...]:
        """Return what stands in the way of distributing the mapped tables by Citus.

        Without arguments it looks at what the classes declare, and asks no server.

        Args:
            shard: Look at the triggers and rules that tables have there, too.
            coordinator: Look at what Citus has made of the tables there, too.

        Raises:
            SettingsError: There is no such shard.
            ShardUnavailableError: A server does not answer.
        """
        tables, broadcast = self._placements.tables(), self._placements.broadcast_tables()
        found = list(findings_of(tables, broadcast))
        if shard is not None:
            if shard not in self.engines:
                raise SettingsError("shard", f"there is no {shard!r}")
            with (
                shard_errors(shard),
                self.engines[shard].connect() as conn,
                reading(conn),
            ):
                found += live_findings(conn, [*tables, *broadcast])
        if coordinator is not None:
            engine = driver_engine(driver_url(coordinator), poolclass=NullPool)
            with shard_errors("citus"), engine.connect() as conn, reading(conn):
                found += coordinator_findings(
                    conn,
                    tables,
                    broadcast,
                    schema=self._schema,
                    local=bool(self._citus),
                )
        return tuple(found)

    def citus_ddl(
        self,
        *,
        shard_count: int = 64,
        index_tables: Mapping[str, str] | None = None,
        with_pins: bool = True,
    ) -> str:
        """Return the SQL that distributes the mapped tables, to be run on a coordinator.

        Broadcast tables become reference tables. Tables of a group are distributed by their key
        and lie together; pinned keys get a shard of Citus for themselves. What the library asks of
        a shard becomes a reference table, and its conditions functions of every node; of a cluster
        that has a `CitusShard` it stays on the coordinator, which is asked by itself.

        Args:
            shard_count: How many shards Citus makes of a table; they are its unit of moving.
            index_tables: Further tables to distribute, by name, and the column to do it by.
            with_pins: Whether to ask the map which keys are pinned.

        Raises:
            CitusUnfitError: Citus would refuse a table; `check_citus` says all.
        """
        tables, broadcast = self._placements.tables(), self._placements.broadcast_tables()
        errors = [each for each in findings_of(tables, broadcast) if each.severity == "error"]
        if errors:
            raise CitusUnfitError(tuple(map(str, errors)))
        ordered = {table: tables[table] for table in _parents_first([*tables])}
        groups = dict.fromkeys(key.group for key in ordered.values())
        return ddl(
            ordered,
            broadcast,
            pins={group: self._pins(group) for group in groups} if with_pins else {},
            further=index_tables or {},
            shard_count=shard_count,
            schema=self._schema,
            local=bool(self._citus),
        )

    def _pins(self, group: EntityGroup) -> Sequence[Key]:
        routing = self._access.router.map_of(group).strategy
        if isinstance(routing, Directory) and unpinned(routing, group.strategy) is not routing:
            return [key for key, _ in routing.entries]
        return []


def _parents_first(tables: Sequence[Table]) -> list[Table]:
    """Return tables in an order in which each comes after those that it refers to."""
    order = {
        table: place
        for metadata in dict.fromkeys(table.metadata for table in tables)
        for place, table in enumerate(metadata.sorted_tables)
    }
    return sorted(tables, key=lambda table: order[table])
