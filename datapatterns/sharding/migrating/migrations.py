"""Migrations of all shards of a cluster."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from sqlalchemy import URL, Connection, NullPool

from datapatterns.clock import SYSTEM_CLOCK, Clock
from datapatterns.errors import (
    AlembicEnvironmentError,
    MigrationNeededError,
    SettingsError,
    ShardDriftError,
    ShardUnavailableError,
)
from datapatterns.sharding.engines import driver_engine, driver_url, tables_needed
from datapatterns.sharding.migrating.bootstrapping import agreed, steps_to
from datapatterns.sharding.migrating.drift import drift
from datapatterns.sharding.migrating.environment import HEADS, AlembicEnvironment, Revisions
from datapatterns.sharding.migrating.lock import locked_alone, run_key
from datapatterns.sharding.migrating.looking import (
    ShardLook,
    ShardSchema,
    asked,
    compared,
    look_at,
    looking_at,
)
from datapatterns.sharding.migrating.recording import ShardRun, shard_runs
from datapatterns.sharding.migrating.running import (
    MigrationPace,
    ShardsRun,
    Told,
    done_on_one,
    error_of,
)
from datapatterns.sharding.migrating.shard_work import ShardOrder
from datapatterns.sql.metadata import DEFAULT_SCHEMA
from datapatterns.sql.migrating import upgrade
from datapatterns.sql.migration_status import (
    BASE,
    HEAD,
    MigrationStatus,
    Revision,
    migration_status,
)
from datapatterns.transactions import reading, resuming

Scope = Literal["all", "application", "library"]


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """What would run on one shard.

    Attributes:
        shard: Its name.
        library: Revisions of the library.
        application: Revisions of the application.
    """

    shard: str
    library: tuple[Revision, ...] = ()
    application: tuple[Revision, ...] = ()

    @property
    def is_done(self) -> bool:
        """Whether nothing would."""
        return not self.library and not self.application


@dataclass(frozen=True, slots=True)
class ShardMigrations:
    """Migrates the application's tables, and the library's, on all shards.

    Which revisions a shard has, it says itself; the control database notes how far each run has
    come. So whatever died, running the same again does what is left.

    Attributes:
        control: The control database.
        shards: The shards.
        environment: The application's Alembic environment; None if the library's tables are all.
        schema: Where the library's tables live.
    """

    control: URL = field(repr=False)
    shards: Mapping[str, URL] = field(repr=False)
    environment: AlembicEnvironment | None = None
    schema: str = DEFAULT_SCHEMA
    clock: Clock = SYSTEM_CLOCK

    def plan(
        self,
        revision: str = HEADS,
        *,
        of: Scope = "all",
        down: bool = False,
        skip_unavailable: bool = False,
    ) -> tuple[ShardPlan, ...]:
        """Return what `upgrade`, or `downgrade` if ``down``, would run on each shard.

        Raises:
            AlembicEnvironmentError: There is no such revision, or a shard has one that is unknown.
            ShardUnavailableError: A shard does not answer.
            UnknownRevisionError: As the first, of the library's revisions.
        """
        goal = self._goal(revision, of=of, down=down)
        return self._plans(goal, skip_unavailable=skip_unavailable)

    def upgrade(
        self,
        revision: str = HEADS,
        *,
        of: Scope = "all",
        pace: MigrationPace | None = None,
        report: Told | None = None,
    ) -> tuple[ShardRun, ...]:
        """Upgrade all shards; the canary first, then several at once. Repeating it goes on.

        All shards are looked at before the first is changed. The first error lets no further
        shard begin; those under way come to their end.

        Args:
            revision: The application's revision; the library goes to its newest.
            of: ``library`` alone, where ``revision`` is one of the library's; ``application``
                alone; or both, first the library.
            pace: How to go about it.
            report: Is told how far each shard is.

        Raises:
            AlembicEnvironmentError: The environment cannot be run as it is.
            MigrationBlockedError: A bucket is moving, somebody else migrates, or something could
                not be locked for a long time; run the same again later.
            ShardMigrationFailedError: A revision failed on a shard.
            ShardUnavailableError: A shard does not answer.
        """
        return self._run(self._goal(revision, of=of), pace or MigrationPace(), report)

    def downgrade(
        self,
        revision: str,
        *,
        of: Literal["application", "library"] = "application",
        pace: MigrationPace | None = None,
        report: Told | None = None,
    ) -> tuple[ShardRun, ...]:
        """Take all shards back to ``revision``, in the same way; raises the same errors."""
        goal = self._goal(revision, of=of, down=True)
        return self._run(goal, pace or MigrationPace(), report)

    def status(self) -> tuple[ShardSchema, ...]:
        """Return where the tables of each shard stand, by revision and by what there really is.

        The tables that most shards have are taken for right. Reads their catalogs.
        """
        looks = asked(self.shards, lambda shard: self._look_at(shard, self.shards[shard]))
        return compared(self.shards, looks)

    def bootstrap(
        self, shard: str, url: str | URL | None = None, *, pace: MigrationPace | None = None
    ) -> ShardSchema:
        """Bring a new shard's tables to where those of all others are, and compare them.

        It may be empty, or half done by an earlier attempt. The others are not changed.

        Args:
            shard: Its name.
            url: Its address; may be left out for a shard that the cluster has.
            pace: How to go about it.

        Raises:
            AlembicEnvironmentError: The environment cannot be run as it is.
            MigrationBlockedError: Somebody migrates.
            SettingsError: There is no other shard, or no address.
            ShardDriftError: The others differ, or the new one does although it has been migrated.
            ShardMigrationFailedError: A revision failed.
            ShardUnavailableError: A shard does not answer.
        """
        address = self.shards.get(shard) if url is None else driver_url(url)
        others = {name: each for name, each in self.shards.items() if name != shard}
        if address is None or not others:
            raise SettingsError("shard", f"{shard!r} has no address, or is the only one")
        pace = pace or MigrationPace()
        with self._turn(pace):
            looks = asked(others, lambda name: self._look_at(name, others[name]))
            for name, look in sorted(looks.items()):
                if look is None:
                    raise ShardUnavailableError(name)
            model = agreed({name: look for name, look in looks.items() if look is not None})
            self._bring(shard, address, model, pace)
            found = self._look_at(shard, address)
        if differences := drift(model.catalog, found.catalog):
            raise ShardDriftError(shard, tuple(map(str, differences)))
        return compared({shard: address}, {shard: found})[0]

    def last_run_if_any(self) -> tuple[ShardRun, ...]:
        """Return the same; nothing also where the control database has no tables yet."""
        try:
            return self.last_run()
        except MigrationNeededError:
            return ()

    def last_run(self) -> tuple[ShardRun, ...]:
        """Return how far the last run has come on each shard; nothing if there was none."""
        with tables_needed(self.schema), self._at_control() as conn:
            return shard_runs(conn, schema=self.schema)

    def sql(self, revision: str = HEADS, *, start: Sequence[str] = (), down: bool = False) -> str:
        """Return the SQL of the application's revisions; asks no database.

        Raises:
            AlembicEnvironmentError: There is no environment, or no such revision.
        """
        environment = self._environment()
        environment.revisions().resolved(revision)
        return environment.sql(start=start, revision=revision, down=down)

    def _goal(self, revision: str, *, of: Scope, down: bool = False) -> "_Goal":
        """Return where to go; the revisions are read, so that what is misspelt changes nothing."""
        if of == "library":
            return _Goal(library=HEAD if revision == HEADS else revision, down=down)
        if self.environment is None and of == "all" and revision == HEADS:
            return _Goal(library=HEAD, down=down)
        revisions = self._environment().revisions()
        revisions.resolved(revision)
        # An environment that has our revisions, too, counts them; to run them by ourselves would
        # get ahead of its count.
        ours = of == "all" and not revisions.has("dp0001")
        return _Goal(HEAD if ours else None, revision, revisions, down=down)

    def _environment(self) -> AlembicEnvironment:
        if self.environment is None:
            raise AlembicEnvironmentError(
                "the cluster declares none; say ShardCluster(alembic=AlembicEnvironment(...))"
            )
        return self.environment

    def _plans(self, goal: "_Goal", *, skip_unavailable: bool) -> tuple[ShardPlan, ...]:
        found = asked(self.shards, lambda shard: self._plan_of(shard, goal))
        for shard, planned in sorted(found.items()):
            if planned is None and not skip_unavailable:
                raise ShardUnavailableError(shard)
        return tuple(planned for _, planned in sorted(found.items()) if planned is not None)

    def _plan_of(self, shard: str, goal: "_Goal") -> ShardPlan:
        with looking_at(shard, self.shards[shard]) as conn:
            library: tuple[Revision, ...] = ()
            if goal.library is not None:
                library = _library_steps(migration_status(conn, schema=self.schema), goal)
            application: tuple[Revision, ...] = ()
            if goal.revision is not None and goal.revisions is not None:
                heads = self._environment().heads_in(conn)
                application = goal.revisions.steps(heads, goal.revision, down=goal.down)
        return ShardPlan(shard, library, application)

    def _run(self, goal: "_Goal", pace: MigrationPace, report: Told | None) -> tuple[ShardRun, ...]:
        if pace.canary is not None and pace.canary not in self.shards:
            raise SettingsError("canary", f"there is no shard {pace.canary!r}")
        with self._turn(pace) as conn:
            if goal.library is not None and not goal.down:
                self._migrate_control(pace)
            plans = self._plans(goal, skip_unavailable=pace.skip_unavailable)
            return ShardsRun(
                conn,
                {shard: self._order(shard, url, goal, pace) for shard, url in self.shards.items()},
                frozenset(plan.shard for plan in plans if plan.is_done),
                frozenset(self.shards) - {plan.shard for plan in plans},
                pace,
                goal.direction,
                goal.name,
                self.schema,
                report,
                self.clock,
            ).go()

    def _look_at(self, shard: str, url: URL) -> ShardLook:
        return look_at(shard, url, self.environment, schema=self.schema)

    def _bring(self, shard: str, url: URL, model: ShardLook, pace: MigrationPace) -> None:
        library, steps = steps_to(model, self.environment)
        goals = [_Goal(library, revision) for revision in steps] or [_Goal(library)]
        for goal in goals:
            outcome = done_on_one(self._order(shard, url, goal, pace), pace, self.clock)
            if outcome.state != "done":
                raise error_of(outcome, pace, {shard: outcome.state})

    def _order(self, shard: str, url: URL, goal: "_Goal", pace: MigrationPace) -> ShardOrder:
        return ShardOrder(
            shard=shard,
            url=url.render_as_string(hide_password=False),
            schema=self.schema,
            library=goal.library,
            revision=goal.revision,
            environment=self.environment and self.environment.located(),
            down=goal.down,
            lock_seconds=pace.lock_seconds,
            patience_seconds=pace.patience_seconds,
            turn_seconds=pace.turn_seconds,
        )

    @contextmanager
    def _turn(self, pace: MigrationPace) -> Iterator[Connection]:
        """Be the only one that migrates the shards of this control database."""
        engine = driver_engine(self.control, poolclass=NullPool)
        try:
            with engine.connect() as conn:
                conn.execution_options(isolation_level="AUTOCOMMIT")
                key = run_key(self.schema)
                with (
                    locked_alone(conn, key, wait_seconds=pace.turn_seconds, clock=self.clock),
                    tables_needed(self.schema),
                ):
                    yield conn
        finally:
            engine.dispose()

    def _migrate_control(self, pace: MigrationPace) -> None:
        """Make the tables that the run is noted in; the control database may be no shard."""
        engine = driver_engine(self.control, poolclass=NullPool)
        try:
            with engine.connect() as conn:
                conn.execution_options(isolation_level="READ COMMITTED")
                with resuming(conn, "a migration of the control database"):
                    if not migration_status(conn, schema=self.schema).managed_elsewhere:
                        upgrade(conn, schema=self.schema, wait_seconds=pace.turn_seconds)
        finally:
            engine.dispose()

    @contextmanager
    def _at_control(self) -> Iterator[Connection]:
        engine = driver_engine(self.control, poolclass=NullPool)
        try:
            with engine.connect() as conn, reading(conn):
                yield conn
        finally:
            engine.dispose()


@dataclass(frozen=True, slots=True)
class _Goal:
    """Where to go: a revision of the library, one of the application, or both."""

    library: str | None = None
    revision: str | None = None
    revisions: Revisions | None = None
    down: bool = False

    @property
    def direction(self) -> str:
        return "downgrade" if self.down else "upgrade"

    @property
    def name(self) -> str:
        """What a repeated run is recognised by: a head that has grown since makes another run."""
        parts = []
        if self.library is not None:
            parts.append(f"library {self.library}")
        if self.revision is not None and self.revisions is not None:
            parts.append(",".join(sorted(self.revisions.resolved(self.revision))) or BASE)
        return ", ".join(parts)


def _library_steps(status: MigrationStatus, goal: _Goal) -> tuple[Revision, ...]:
    assert goal.library is not None
    status.refuse_unless_ours()
    return status.steps_down(goal.library) if goal.down else status.steps_up(goal.library)
