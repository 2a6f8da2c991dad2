"""The steps of one move, in the hands of one worker."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial

from sqlalchemy import Connection

from datapatterns.errors import MoveRefusedError, ShardMapCorruptError
from datapatterns.failpoints import failpoint
from datapatterns.sharding.maps.shard_map import ShardMap
from datapatterns.sharding.moving import planning
from datapatterns.sharding.moving.both_sides import on_both
from datapatterns.sharding.moving.capturing import install_capture, remove_capture
from datapatterns.sharding.moving.checking import check_declared, check_move, check_unused
from datapatterns.sharding.moving.cleaning import clean
from datapatterns.sharding.moving.copying import TablePair
from datapatterns.sharding.moving.cutting import Cut, cut
from datapatterns.sharding.moving.draining import is_steady
from datapatterns.sharding.moving.holding import HeldState, Side
from datapatterns.sharding.moving.move import Move, MoveProgress, MoveState
from datapatterns.sharding.moving.moved_table import describe_tables
from datapatterns.sharding.moving.pacing import Pace
from datapatterns.sharding.moving.receiving import Receiving
from datapatterns.sharding.moving.settings import MoveAccess, MoveSettings
from datapatterns.sharding.moving.watching import Watch
from datapatterns.transactions import fresh_reads, looking

_ROUNDS_MAX = 1_000


@dataclass(slots=True)
class Work:
    """A move with its lease, and connections to its two shards.

    Attributes:
        move: The move, as far as it is.
        lease: The number of the worker's lease.
        source: The shard that had the bucket.
        target: The shard that gets it.
        access: What a worker needs of a cluster.
        settings: How buckets are moved.
        shard_map: Whose strategy says what lies in the bucket.
        receiving: How the target takes rows in.
    """

    move: Move
    lease: int
    source: Side
    target: Side
    access: MoveAccess
    settings: MoveSettings
    shard_map: ShardMap
    receiving: Receiving
    _pace: Pace = field(init=False)
    _pairs: Sequence[TablePair] = field(init=False, default=())
    _watch: Watch = field(init=False)
    _beaten: float = field(init=False, default=0.0)
    _kept: Connection | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        clock = self.access.clock
        self._pace = Pace(clock, self.settings.bytes_per_second, self._beat)
        self._beaten = clock.monotonic()

    def forward(self, *, clean_up: bool) -> None:
        """Go on to the end, from wherever the move is.

        Args:
            clean_up: Whether to wait until the source may be cleaned, and clean it.
        """
        state = self._take_source()
        self._describe()
        if state == "owned":
            self._bring_over()
        else:
            self.target.take()
        with self._keeping_control():
            self._hand_over(self._cut() if state == "owned" else None)
        if clean_up:
            self._clean_up(state)

    def back(self) -> bool:
        """Undo the move; return False if it is too late for that."""
        is_owned = self._take_source() == "owned"
        if self.move.state == "planned":  # the shards do not know of it
            self._record("aborted")
            return True
        if not is_owned:
            return False
        self._describe()
        # Should this worker die, the next one must not go on with a copy that is half gone.
        self._record("capturing")
        self.target.expect()
        self.receiving.clean(
            self.target,
            [there for _, there in self._pairs],
            rows_at_once=self.settings.rows_at_once,
            pace=self._pace,
        )
        remove_capture(self.source, [here for here, _ in self._pairs], pace=self._pace)
        self._record("aborted")
        return True

    def _take_source(self) -> HeldState:
        """Fence off older workers; return what the bucket is on the source.

        Raises:
            ShardMapCorruptError: It has the bucket again that it has given up.
        """
        state = self.source.take()
        if (state, self.move.state) == ("owned", "handed_over"):
            raise self._corrupt(state, "not asked")
        return state

    def _corrupt(self, held: str, found: str) -> ShardMapCorruptError:
        move = self.move
        return ShardMapCorruptError(
            move.group,
            f"bucket {move.bucket} is {held} on {move.source!r} and {found} on {move.target!r}, and"
            f" its move is {move.state}; was one of the databases restored?",
        )

    def _bring_over(self) -> None:
        """Copy, and catch up."""
        receiving = self.receiving
        self._watch = Watch(
            self.source,
            self.target,
            self._pairs,
            is_guarding_target=receiving.guards,
            check=self._check,
            guard=self._guard,
        )
        self._watch.begin()
        # What is on the target already only lacks what has been noted since.
        if self.move.state not in {"catching_up", "cut"}:
            check_unused(self.target, [there for _, there in self._pairs])
            self._record("capturing")
            self.target.expect()
            self._guard()
            failpoint("move.captured")
            self._record("copying")
            rows = receiving.copy(self.source, self.target, self._pairs, pace=self._pace)
            failpoint("move.copied")
            self._record("catching_up", copied_rows=rows, copied_bytes=self._pace.bytes)
        else:
            self.target.expect()
        self._catch_up()
        self._record("cut")

    def _check(self) -> None:
        """Refuse tables that cannot be moved as they are.

        A column that both shards have got would be missing from copy and comparison alike.
        """
        with looking(self.source.conn), looking(self.target.conn):
            described = self._described()
        if described != self._pairs:
            raise MoveRefusedError(
                f"a table of group {self.move.group!r}",
                "it was changed while a bucket moved; the bucket stays, move it again",
            )
        check_move(self.source, self.target, self._pairs, broadcast=self.access.broadcast_names())
        self.receiving.check(self.target, [there for _, there in self._pairs])

    def _guard(self) -> None:
        """Begin to note what changes on the source, and to refuse it on the target."""
        here, there = ([pair[side] for pair in self._pairs] for side in (0, 1))
        ready = self.receiving.make_ready
        on_both(
            partial(ready, self.target, there, self.shard_map, pace=self._pace),
            partial(install_capture, self.source, here, self.shard_map, pace=self._pace),
        )

    def _cut(self) -> Cut:
        done = cut(
            self.source,
            self.target,
            self._pairs,
            rows=self.move.copied_rows or 0,
            watch=self._watch,
            pace=self._pace,
            receiving=self.receiving,
        )
        failpoint("move.cut")
        return done

    def _catch_up(self) -> None:
        before = 0
        for _ in range(_ROUNDS_MAX):
            dirty = self.receiving.drain(self.source, self.target, self._pairs, pace=self._pace)
            self._tell(dirty)
            if is_steady(dirty, before):
                return
            before = dirty

    def _hand_over(self, done: Cut | None) -> None:
        """Make the target the owner, then tell the map: in between nobody has it, never two.

        Raises:
            ShardMapCorruptError: The source has not given the bucket up to this target.
        """
        if self.move.state == "handed_over":
            return
        if done is None:
            self._become_owner()
        else:
            with self.target.changing():
                self.target.become("owned", was="incoming", like=done.left)
        failpoint("move.target-owns")
        clock = self.access.clock
        pause_ms = None if done is None else (clock.monotonic() - done.began) * 1000
        with self._control() as conn:
            planning.hand_over(
                conn, self.move, self.lease, pause_ms=pause_ms, schema=self.access.schema
            )
        self.access.shards.router.refresh()
        self._become("handed_over", pause_ms=pause_ms or self.move.pause_ms)
        failpoint("move.handed-over")

    def _become_owner(self) -> None:
        """Make the target the owner after a cut that is another worker's, or was not answered."""
        with self.source.transaction():
            held = self.source.now()
        with self.target.transaction():
            found = self.target.now().state
            # A bucket that left before this move came to its cut has left for another shard.
            if (self.move.state, found, held.state) == ("cut", "incoming", "moved"):
                self.target.become("owned", was="incoming", like=held)
            elif found != "owned":
                raise self._corrupt(held.state, found)

    def _clean_up(self, state: HeldState) -> None:
        with self._control(only_looking=True) as conn:
            age = planning.seconds_since_change(conn, self.move.move_id, schema=self.access.schema)
        while (left := self.settings.clean_after_seconds - age) > 0:
            step = min(left, self.settings.lease_seconds / 4)
            self.access.clock.sleep(step)
            self._beat()
            age += step
        # What an earlier stay on the target has left there would note changes for nobody.
        there = [there for _, there in self._pairs]
        self.receiving.forget_capture(self.target, there, pace=self._pace)
        if state != "cleaned":
            clean(
                self.source,
                [here for here, _ in self._pairs],
                state="moved",
                rows_at_once=self.settings.rows_at_once,
                pace=self._pace,
            )
        failpoint("move.source-cleaned")
        self._record("cleaned")

    def _describe(self) -> None:
        with looking(self.source.conn), looking(self.target.conn):
            self._pairs = self._described()
            for number, side in enumerate((self.source, self.target)):
                check_declared(side, [pair[number] for pair in self._pairs], self.move.group)

    def _described(self) -> Sequence[TablePair]:
        declared = self.access.tables_of(self.access.group(self.move.group))
        here, there = (
            describe_tables(side.conn, declared, self.shard_map, side.bucket, schema=side.schema)
            for side in (self.source, self.target)
        )
        if not here:
            raise MoveRefusedError(
                f"group {self.move.group!r}",
                "this process declares no table of it, so all rows would stay behind; import the"
                " models",
            )
        return list(zip(here, there, strict=True))

    # What others are told ------------------------------------------------------------------

    def _record(self, state: MoveState, **facts: int) -> None:
        with self._control() as conn:
            planning.record_state(
                conn, self.move, self.lease, state, schema=self.access.schema, **facts
            )
        self._become(state, **facts)

    def _become(self, state: MoveState, **facts: object) -> None:
        self.move = replace(self.move, state=state, **facts)  # type: ignore[arg-type]
        self._tell(0)

    def _tell(self, dirty: int) -> None:
        self.settings.progress(MoveProgress(self.move, bytes=self._pace.bytes, dirty=dirty))

    def _beat(self) -> None:
        """Keep the lease, now and then."""
        now = self.access.clock.monotonic()
        if now - self._beaten < self.settings.lease_seconds / 4:
            return
        self._beaten = now
        with self._control() as conn:
            planning.keep_lease(
                conn,
                self.move,
                self.lease,
                seconds=self.settings.lease_seconds,
                schema=self.access.schema,
            )
        self._tell(0)

    @contextmanager
    def _keeping_control(self) -> Iterator[None]:
        """Keep one connection to the control database, as writers wait while another is opened."""
        with fresh_reads(self.access.control) as conn:
            self._kept = conn
            try:
                yield
            finally:
                self._kept = None

    @contextmanager
    def _control(self, *, only_looking: bool = False) -> Iterator[Connection]:
        connecting = fresh_reads(self.access.control)
        with connecting if self._kept is None else nullcontext(self._kept) as conn:
            within = looking(conn) if only_looking else planning.changing_moves(conn)
            with within:
                yield conn
