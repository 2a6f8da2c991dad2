"""The shards of an application, and the ways to reach them."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self, TypeVar

from sqlalchemy import URL, Connection, Engine

from datapatterns.breaker import Breaker
from datapatterns.clock import SYSTEM_CLOCK, Clock
from datapatterns.errors import SettingsError
from datapatterns.sharding.access import ShardAccess
from datapatterns.sharding.atomic import AtomicWork, Recovered, Recovery
from datapatterns.sharding.atomic.parts import Parts
from datapatterns.sharding.citus.citus_cluster import CitusCluster
from datapatterns.sharding.citus.citus_shard import CitusShard
from datapatterns.sharding.companions import Attendance, Companion
from datapatterns.sharding.definition import EntityGroup
from datapatterns.sharding.engines import driver_engine, driver_url
from datapatterns.sharding.ids import IdGenerator
from datapatterns.sharding.maps.changing import SETTLE_SECONDS, MapChanging
from datapatterns.sharding.maps.creating import NewMap, unchecked
from datapatterns.sharding.maps.mapped_cluster import MappedCluster
from datapatterns.sharding.maps.ownership import claim_shard
from datapatterns.sharding.maps.router import Router
from datapatterns.sharding.migrating.environment import AlembicEnvironment
from datapatterns.sharding.migrating.floor import RevisionFloor
from datapatterns.sharding.migrating.migrations import ShardMigrations
from datapatterns.sharding.moving.moved_cluster import MovedCluster
from datapatterns.sharding.moving.settings import MoveAccess
from datapatterns.sharding.opening import Opening
from datapatterns.sharding.reaching.replicas import Servers, primary_of, replicas_of
from datapatterns.sharding.reaching.threads import InThreadsOfShards
from datapatterns.sharding.references.declared import References
from datapatterns.sharding.references.definition import ShardForeignKey
from datapatterns.sharding.references.referring_cluster import ReferringCluster
from datapatterns.sharding.routing.placements import Placements
from datapatterns.sharding.scatter.combining import Combiner
from datapatterns.sharding.seeing.load_watch import LoadWatch
from datapatterns.sharding.seeing.timing import count_statements
from datapatterns.sharding.sessions.async_cluster import AsyncCluster
from datapatterns.sharding.sessions.pinned_connection import keep_claimed
from datapatterns.sharding.sessions.pinned_session import PinnedSession
from datapatterns.sharding.sessions.shard_session import ShardSession
from datapatterns.sharding.strategies.strategy import Key
from datapatterns.sql.metadata import DEFAULT_SCHEMA, checked_schema
from datapatterns.transactions import transaction

if TYPE_CHECKING:
    from datapatterns.sharding.sessions.async_shards import AsyncShards

Row = TypeVar("Row")

_SHARD_ID = re.compile(r"[a-z0-9_]{1,30}")


class ShardCluster(MovedCluster, MappedCluster, ReferringCluster, AsyncCluster, CitusCluster):
    """Several PostgreSQL servers that hold the entity groups of one application.

    It opens connections when they are needed and keeps them; close it at the end, or use it as a
    context manager. Threads may share it; a session or connection belongs to one at a time.

    Args:
        control: Where the shard map is; may be one of the shards.
        shards: The servers by the names that the map has for them; a `Shard` has replicas, too,
            a `CitusShard` is many servers.
        groups: What is sharded.
        references: Which rows refer to rows that may be on other shards.
        schema: Where the library's tables live, on all of them.
        poll_seconds: How often to ask whether the map has changed.
        merge_rows_max: How many rows of all shards one statement may bring together in memory.
        watch_load: Whether to count what buckets and keys are asked for, for `stats` and
            `hot_keys`; written to the control database every ten seconds.
        engine_options: What `create_engine` takes, for each shard; such as ``pool_size``.
        alembic: The application's migrations, for `migrations`; and how old a shard may be.
        indexes: The index tables over these shards, as `ShardIndexes`; their groups come along.
        clock: What time it is.

    Raises:
        ReferenceDefinitionError: A reference cannot be kept.
        SettingsError: A shard's name cannot be one.
    """

    def __init__(  # noqa: PLR0913 -- settings, all by name
        self,
        *,
        control: str | URL,
        shards: Mapping[str, Servers],
        groups: Sequence[EntityGroup],
        references: Sequence[ShardForeignKey] = (),
        schema: str = DEFAULT_SCHEMA,
        poll_seconds: float = 1.0,
        merge_rows_max: int = 300_000,
        watch_load: bool = False,
        engine_options: Mapping[str, Any] | None = None,
        alembic: AlembicEnvironment | None = None,
        indexes: Companion | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        super().__init__()
        if not shards:
            raise SettingsError("shards", "name at least one")
        for shard_id in shards:
            if not _SHARD_ID.fullmatch(shard_id):
                raise SettingsError("shards", f"{shard_id!r} cannot name one; use a-z, 0-9 and _")
        companions = () if indexes is None else (indexes,)
        groups = (*groups, *(group for each in companions for group in each.groups))
        if len({group.name for group in groups}) != len(groups) or not groups:
            raise SettingsError("groups", "name each group once, and at least one")
        self._schema = checked_schema(schema)
        self._urls = {name: driver_url(primary_of(each)) for name, each in shards.items()}
        self._citus = frozenset(n for n, each in shards.items() if isinstance(each, CitusShard))
        self._groups = groups
        self._poll_seconds = poll_seconds
        self._clock = clock
        self._merge_rows_max = merge_rows_max
        self._control = driver_engine(driver_url(control), pool_size=1)
        self.migrations = ShardMigrations(driver_url(control), self._urls, alembic, schema, clock)
        """One command migrates all shards."""
        self.load = LoadWatch(self._control, schema=schema) if watch_load else None
        """What this process counts, if it does."""
        self._placements = Placements(groups)
        self._fan_out = InThreadsOfShards(shards)
        self._breakers = {shard_id: Breaker(clock.monotonic) for shard_id in shards}
        self._opening = Opening(
            driver_url(control),
            self._urls,
            self._groups,
            self._placements,
            schema,
            poll_seconds,
            merge_rows_max,
            engine_options,
            None if alembic is None else RevisionFloor(alembic).check,
            clock,
            self._breakers,
            {name: [*map(driver_url, replicas_of(each))] for name, each in shards.items()},
            self._citus,
            companions,
            References.of(references, self._placements, citus=self._citus),
        )
        self.engines: Mapping[str, Engine] = self._opening.engines()
        """One engine for each shard, for work that is about a server and not about rows."""
        self._combiner = Combiner(self.engines)

    @property
    def groups(self) -> tuple[EntityGroup, ...]:
        """Return the groups whose tables lie on the shards."""
        return self._groups

    @property
    def companions(self) -> tuple[Companion, ...]:
        """Return what is kept beside the rows, such as index tables."""
        return self._opening.companions

    def create_map(self) -> None:
        """Spread the buckets of all groups evenly over the shards, once.

        Repeating it does nothing; after a crash in the middle it goes on. Tables that are mapped
        already may exist, but must be empty.

        Raises:
            CommitUnansweredError: A connection broke during a COMMIT; do it again.
            GroupMismatchError: A group was created with another declaration.
            MigrationNeededError: A server does not have the library's tables.
            ShardMapExistsError: There is a map of other shards, or data that no map has placed.
            WrongShardError: A server belongs to another cluster, or two names mean one server.
        """
        new_map = NewMap(
            self._control,
            self._urls,
            self.engines,
            self._groups,
            self._placements.tables(),
            self._schema,
        )
        new_map.create()

    @contextmanager
    def _unchecked(self, shard_id: str) -> Iterator[Connection]:
        with unchecked(self._urls[shard_id], shard_id, self._schema) as conn:
            yield conn

    @cached_property
    def router(self) -> Router:
        """Which shard holds a key.

        Raises:
            GroupMismatchError: A group is declared otherwise than its data was placed.
            SettingsError: The map names a shard that has no connection string.
            ShardMapMissingError: Call `create_map` first.
        """
        return Router(self._control, **self._opening.router_options())

    def session(
        self,
        *,
        scatter: bool = False,
        atomic: bool = False,
        **options: Any,  # noqa: ANN401 -- what Session takes
    ) -> ShardSession:
        """Return a session over all shards.

        Args:
            scatter: Whether reads that name no key go to all shards without being told to.
            atomic: Whether a transaction may write to several shards, and then happens on all of
                them or on none, as `atomically` says.
            options: What `Session` takes, such as ``expire_on_commit``.
        """
        return ShardSession(self._access, scatter=scatter, atomic=atomic, **options)

    def on(self, group: EntityGroup, **key: Key) -> PinnedSession:
        """Return a session on the shard of one key, as in ``on(households, household_id=42)``.

        Raises:
            ShardKeyError: The value is no key of this group.
        """
        return PinnedSession(self._access, group, group.key_from(key))

    @contextmanager
    def connect(self, group: EntityGroup, **key: Key) -> Iterator[Connection]:
        """Give a connection to the shard of one key, for Core.

        The caller begins and commits, as with any connection. Each transaction begins by keeping
        the key's bucket on the shard until it ends. What is read and written is up to the caller.

        Raises:
            ShardKeyError: The value is no key of this group.
            ShardUnavailableError: The shard does not answer.
            StaleShardMapError: The key has moved; repeat the transaction on a new connection.
        """
        found = group.key_from(key)
        shard_map = self.router.map_of(group)
        shard_id = shard_map.shard_of(found)
        bucket = shard_map.strategy.bucket(found)
        with self._access.asking(shard_id), self.engines[shard_id].connect() as conn:
            keep_claimed(conn, shard_map, bucket, schema=self._schema)
            count_statements(conn, self.load, shard_map, bucket, found)
            yield conn

    @contextmanager
    def atomically(self, *, lock_seconds: float = 5.0) -> Iterator[AtomicWork]:
        """Open a transaction over several shards; it happens on all that it wrote to, or on none.

        Commits at the end of the block, in two phases if two or more shards were written to. The
        servers need ``max_prepared_transactions``, and some process runs `recover` now and then,
        for those that die in between. Readers may see it on one shard a moment before another.

        Args:
            lock_seconds: How long to wait for a lock: two transactions that wait for each other on
                two servers would wait for ever, as neither server sees the circle.

        Raises:
            AbortedTransactionError: An error was caught in the block; nothing happened.
            OutcomeUnknownError: The answer to the deciding COMMIT was lost, and its shard does not
                answer any more. It happens everywhere, or nowhere.
            SettingsError: A server does not prepare transactions; nothing happened.
            ShardTransactionEndedError: A part was committed or rolled back in the block.
            ShardTransactionRefusedError: It was slow, and recovery has given it up.
            ShardUnavailableError: A shard does not answer; nothing happened.
        """
        with closing(Parts(self._access, lock_seconds=lock_seconds)) as parts:
            work = AtomicWork(self._access, parts)
            yield work
            work.left_to_recovery, work.token = parts.commit_and_tell()

    def recover(self, *, grace_seconds: float = 60.0, dry_run: bool = False) -> Recovered:
        """End the transactions over several shards whose process died; one round.

        Any number of processes may run it, while others write.

        Args:
            grace_seconds: How long a transaction that is still under way is left alone.
            dry_run: Only say what would be done.
        """
        recovery = Recovery(
            self.engines, schema=self._schema, grace_seconds=grace_seconds, dry_run=dry_run
        )
        return recovery.run()

    @contextmanager
    def begin_bulk(self, group: EntityGroup, shard: str) -> Iterator[Connection]:
        """Give a connection in a transaction that all buckets of ``group`` on a shard are kept for.

        For COPY and large inserts of rows that `placed` has sorted. Commits at the end of the
        block. Each shard's transaction is its own: what fails half way is on some shards only, so
        load in a way that can be repeated.

        Raises:
            OutcomeUnknownError: The COMMIT was sent and its answer was lost.
            ShardUnavailableError: The shard does not answer; nothing was loaded.
            StaleShardMapError: Place the rows again, then repeat.
        """
        shard_map = self.router.map_of(group)
        attempted = f"a bulk load on {shard}"
        with (
            self._access.asking(shard),
            transaction(self.engines[shard], attempted=attempted) as conn,
        ):
            claim_shard(conn, shard_map, shard, schema=self._schema)
            yield conn
            waiting = self._access.companions.before_commit(self._access, {shard: conn})
        Attendance().finish(self._access, [each.committed for each in waiting])

    def placed(
        self, group: EntityGroup, rows: Iterable[Row], *, key: Callable[[Row], Key]
    ) -> dict[str, list[Row]]:
        """Return ``rows`` by the shard of their keys, in their order; touches no shard.

        Raises:
            ShardKeyError: A key is of another type than the group's.
        """
        return self.router.map_of(group).placed(rows, lambda row: group.checked_key(key(row)))

    def ids(self, group: EntityGroup, *, span_seconds: float = 10.0) -> IdGenerator:
        """Return what makes ids for rows of ``group`` that carry their bucket; make one a process.

        Args:
            group: Whose buckets.
            span_seconds: For how long ids can be made while the control database is away.

        Raises:
            BucketCountError: The group has more buckets than an id has place for.
        """
        return IdGenerator(
            self._control,
            lambda: self.router.map_of(group),
            span_seconds=span_seconds,
            clock=self._clock,
            schema=self._schema,
        )

    def close(self) -> None:
        """Close all connections that nobody uses."""
        if self.load is not None:
            self.load.close()
        self._fan_out.shutdown()
        self._combiner.close()
        if "_access" in vars(self):
            self._access.replicas.close()
            for engine in self._access.companions.side_engines.values():
                engine.dispose()
        for engine in (self._control, *self.engines.values()):
            engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    @cached_property
    def _access(self) -> ShardAccess:
        return self._opening.access(
            control=self._control,
            engines=self.engines,
            router=self.router,
            combiner=self._combiner,
            fan_out=self._fan_out,
            load=self.load,
        )

    def _replica_engines(self) -> dict[str, list[Engine]]:
        return self._opening.replica_engines()

    def _async_shards(self) -> "AsyncShards":
        return self._opening.for_asyncio(load=self.load)

    @cached_property
    def _moving(self) -> MoveAccess:
        return MoveAccess(
            self._control,
            self._access,
            self._groups,
            self._clock,
            keep_seconds=2 * self._poll_seconds,
        )

    @cached_property
    def _changing(self) -> MapChanging:
        return MapChanging(self._control, self._access, self._clock, SETTLE_SECONDS)
