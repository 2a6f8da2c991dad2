"""One run over all shards: the canary alone, then several at once, up to the first error."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from uuid import UUID

from sqlalchemy import Connection

from datapatterns.clock import SYSTEM_CLOCK, Clock
from datapatterns.errors import (
    DataPatternsError,
    MigrationBlockedError,
    SettingsError,
    ShardMigrationFailedError,
    ShardUnavailableError,
)
from datapatterns.failpoints import failpoint
from datapatterns.sharding.migrating.lock import moves_under_way
from datapatterns.sharding.migrating.recording import (
    ShardRun,
    note_begun,
    note_ended,
    note_shards,
    run_to_resume,
    shard_runs,
)
from datapatterns.sharding.migrating.shard_work import (
    ShardOrder,
    ShardOutcome,
    State,
    migrate_shard,
)
from datapatterns.sharding.migrating.worker import migrate_shard_apart
from datapatterns.sql.metadata import DEFAULT_SCHEMA

Told = Callable[[str, State, str | None], None]
"""Is told, while a run goes on, the name of a shard, its state, and what went wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationPace:
    """How a run goes about it.

    Attributes:
        canary: The shard that goes first and alone; the first by name unless it is said.
        parallel: How many of the others at once, each in a process of its own.
        lock_seconds: How long a statement waits for a lock; others wait behind it meanwhile.
        patience_seconds: For how long a shard tries again, with pauses, what could not be locked.
        turn_seconds: How long to wait for a run of somebody else.
        skip_unavailable: Whether the others go on without a shard that does not answer.
        in_process: Run one shard after the other in this process, for debuggers.
    """

    canary: str | None = None
    parallel: int = 4
    lock_seconds: float = 2.0
    patience_seconds: float = 60.0
    turn_seconds: float = 60.0
    skip_unavailable: bool = False
    in_process: bool = False

    def __post_init__(self) -> None:
        if self.parallel < 1:
            raise SettingsError("parallel", "migrate at least one shard at a time")
        if min(self.lock_seconds, self.patience_seconds, self.turn_seconds) < 0:
            raise SettingsError("pace", "a time to wait cannot be negative")


@dataclass(slots=True)
class ShardsRun:
    """A run under way.

    Attributes:
        control: A connection to the control database in autocommit mode; each note is a statement
            of its own, and holds no snapshot that an index build on a shard there would wait for.
        orders: What is to be done on each shard.
        finished: The shards where nothing is left to do.
        away: The shards that did not answer when all were looked at.
        pace: How to go about it.
        direction: ``upgrade`` or ``downgrade``.
        revision: What it is recognised by when it is repeated.
        schema: Where the library's tables live.
        report: Is told how far each shard is.
        clock: What the time to try again is measured by, in this process.
    """

    control: Connection
    orders: Mapping[str, ShardOrder]
    finished: frozenset[str]
    away: frozenset[str]
    pace: MigrationPace
    direction: str
    revision: str
    schema: str = DEFAULT_SCHEMA
    report: Told | None = None
    clock: Clock = SYSTEM_CLOCK
    _run: UUID = field(init=False)

    def go(self) -> tuple[ShardRun, ...]:
        """Migrate what is left; return how far each shard is.

        Raises:
            MigrationBlockedError: Something could not be locked on a shard.
            ShardMigrationFailedError: A revision failed on a shard.
            ShardUnavailableError: A shard does not answer, and is not to be skipped.
        """
        self._run = run_to_resume(self.control, self.direction, self.revision, schema=self.schema)
        note_shards(
            self.control,
            self._run,
            sorted(self.orders),
            direction=self.direction,
            revision=self.revision,
            schema=self.schema,
        )
        before = {each.shard: each.state for each in self._states()}
        for shard in sorted(self.finished):
            if before[shard] != "done":
                self._ended(ShardOutcome(shard=shard, state="done"))
        for shard in sorted(self.away):
            self._ended(ShardOutcome(shard=shard, state="unavailable", error="no answer"))
        left = [each for each in sorted(self.orders) if each not in self.finished | self.away]
        canary = self.pace.canary or min(self.orders)
        if canary in left:
            left.remove(canary)
            self._all_of([canary], skip_unavailable=False)
        self._all_of(left, skip_unavailable=self.pace.skip_unavailable)
        return self._states()

    def _all_of(self, shards: list[str], *, skip_unavailable: bool) -> None:
        at_once = 1 if self.pace.in_process else self.pace.parallel
        waiting = list(shards)
        failed: ShardOutcome | None = None
        under_way: set[Future[ShardOutcome]] = set()
        with ThreadPoolExecutor(max_workers=at_once) as pool:
            while under_way or (waiting and failed is None):
                while waiting and failed is None and len(under_way) < at_once:
                    order = self._begun(waiting.pop(0))
                    moving = moves_under_way(self.control, order.shard, schema=self.schema)
                    under_way.add(
                        pool.submit(_refused, order, moving)
                        if moving
                        else pool.submit(done_on_one, order, self.pace, self.clock)
                    )
                ended, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                for each in ended:
                    outcome = each.result()
                    self._ended(outcome)
                    skipped = skip_unavailable and outcome.state == "unavailable"
                    if outcome.state != "done" and not skipped:
                        failed = failed or outcome
        if failed is not None:
            states = {each.shard: str(each.state) for each in self._states()}
            raise error_of(failed, self.pace, states)

    def _begun(self, shard: str) -> ShardOrder:
        note_begun(self.control, self._run, shard, schema=self.schema)
        self._tell(shard, "running", None)
        return self.orders[shard]

    def _ended(self, outcome: ShardOutcome) -> None:
        note_ended(self.control, self._run, outcome, schema=self.schema)
        self._tell(outcome.shard, outcome.state, outcome.error)
        failpoint("shard-migration.recorded")

    def _tell(self, shard: str, state: State, error: str | None) -> None:
        if self.report is not None:
            self.report(shard, state, error)

    def _states(self) -> tuple[ShardRun, ...]:
        return shard_runs(self.control, self._run, schema=self.schema)


def _refused(order: ShardOrder, moving: Sequence[int]) -> ShardOutcome:
    buckets = ", ".join(map(str, moving))
    error = f"bucket {buckets} is being moved; let the move end, or resume or abort it"
    return ShardOutcome(shard=order.shard, state="blocked", error=error)


def done_on_one(order: ShardOrder, pace: MigrationPace, clock: Clock) -> ShardOutcome:
    """Migrate one shard, here or in a process of its own."""
    return migrate_shard(order, clock=clock) if pace.in_process else migrate_shard_apart(order)


def error_of(
    failed: ShardOutcome, pace: MigrationPace, states: Mapping[str, str]
) -> DataPatternsError:
    """Return what is raised when a shard could not be migrated, with how far each one is."""
    said = failed.error or failed.state
    error: DataPatternsError
    if failed.state == "unavailable":
        error = ShardUnavailableError(failed.shard)
    elif failed.state == "blocked":
        error = MigrationBlockedError(
            f"shard {failed.shard!r}: {said}", waited_seconds=pace.patience_seconds
        )
    else:
        error = ShardMigrationFailedError(failed.shard, said, states)
    for shard, state in sorted(states.items()):
        error.add_note(f"shard {shard}: {state}")
    return error
