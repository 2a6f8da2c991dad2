"""Appends that meet, readers of the log beside them, commits whose answer is lost, snapshots."""

from dataclasses import dataclass
from functools import partial
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine

from datapatterns.errors import VersionConflictError
from datapatterns.event_sourcing import (
    ANY,
    NEW_STREAM,
    Aggregate,
    CommandPolicy,
    EventStore,
    EventTypes,
    NewEvent,
    Position,
    RecordedEvent,
    Retry,
    StreamId,
    applies,
    every,
)
from datapatterns.testing.interleaving import Explorer, Fault, InterleavingError, Outcome
from tests.interleavings.designs.design import Tasks, is_commit
from tests.interleavings.effort import THOROUGH
from tests.interleavings.guards import function_without, statements_without

pytestmark = pytest.mark.postgres

PREEMPTIONS = 3 if THOROUGH else 2

types = EventTypes()
store = EventStore(types=types)


@types.event("interleaved.scanned")
@dataclass(frozen=True, slots=True)
class Scanned:
    cents: int


class Basket(Aggregate, category="basket", snapshot=every(1)):
    total = 0

    @applies
    def _(self, e: Scanned) -> None:
        self.total += e.cents

    def scan(self, cents: int) -> None:
        self.emit(Scanned(cents))


def new_stream() -> StreamId:
    """Events stay: each schedule has a stream of its own."""
    return StreamId("interleaved", uuid4().hex)


def append(engine: Engine, stream: StreamId, *, expected: int) -> int:
    with engine.begin() as conn:
        return store.append(conn, stream, [Scanned(5)], expected_version=expected).version


async def append_async(engine: AsyncEngine, stream: StreamId, *, expected: int) -> int:
    async with engine.begin() as conn:
        appended = await conn.run_sync(
            partial(store.append, stream=stream, events=[Scanned(5)], expected_version=expected)
        )
        return appended.version


# -- E3: of appends that expect one version, one succeeds ------------------------------------------


class Rivals:
    """Two that append to one stream, each sure of its version."""

    def __init__(self, plain: Engine, *, begun: int) -> None:
        self._plain, self._begun = plain, begun
        self.stream = new_stream()

    def prepare(self) -> StreamId:
        self.stream = new_stream()
        for version in range(self._begun):
            append(self._plain, self.stream, expected=version)
        return self.stream

    def one_has_won(self, outcome: Outcome) -> None:
        with self._plain.begin() as conn:
            versions = [event.version for event in store.read_stream(conn, self.stream)]
        new = len(versions) - self._begun
        assert versions == list(range(1, len(versions) + 1))
        assert new <= 1, f"{new} appends expected one version, and all took place"
        assert len(outcome.results) <= new, "an append was acknowledged and is not there"
        assert outcome.faults or len(outcome.results) == 1


@pytest.mark.parametrize("begun", [0, 1])
def test_of_two_appends_that_expect_one_version_one_succeeds(
    begun: int, explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    rivals = Rivals(plain, begun=begun)

    def meet() -> Tasks:
        act = partial(append, gated, rivals.prepare(), expected=begun)
        return {"one": act, "two": act}

    explored = explorer.explore(
        meet,
        invariant=rivals.one_has_won,
        max_preemptions=PREEMPTIONS,
        crash_at=is_commit,
        allowed_errors=(VersionConflictError,),
    )

    assert explored.exhausted
    assert explored.blocked_steps


def test_of_two_asynchronous_appends_one_succeeds(
    explorer: Explorer, gated_async: AsyncEngine, plain: Engine
) -> None:
    rivals = Rivals(plain, begun=1)

    def meet() -> Tasks:
        stream = rivals.prepare()

        async def act() -> int:
            return await append_async(gated_async, stream, expected=1)

        return {"one": act, "two": act}

    explored = explorer.explore(
        meet,
        invariant=rivals.one_has_won,
        max_preemptions=PREEMPTIONS,
        crash_at=is_commit,
        allowed_errors=(VersionConflictError,),
    )

    assert explored.exhausted


def test_without_the_comparison_of_versions_both_succeed(
    explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    rivals = Rivals(plain, begun=1)

    def meet() -> Tasks:
        act = partial(append, gated, rivals.prepare(), expected=1)
        return {"one": act, "two": act}

    guard = "(s.version = p_expected OR p_expected = -1)"
    with (
        function_without(plain, "datapatterns.append_events", guard, instead="true"),
        pytest.raises(InterleavingError, match="all took place"),
    ):
        explorer.explore(meet, invariant=rivals.one_has_won, allowed_errors=(VersionConflictError,))


# -- E6: a reader of the log skips nothing ---------------------------------------------------------


class Log:
    """Two append, each in its way, and one reads the log meanwhile, page after page."""

    def __init__(self, gated: Engine, plain: Engine) -> None:
        self._gated, self._plain = gated, plain
        self._start = self._checkpoint = Position(0)
        self._read: list[RecordedEvent] = []

    def tasks(self) -> Tasks:
        with self._plain.begin() as conn:
            self._start = self._checkpoint = store.high_water_mark(conn)
        self._read = []
        return {"plain": self._append, "late": self._append_late, "reader": self._read_twice}

    def _append(self) -> None:
        append(self._gated, new_stream(), expected=0)

    def _append_late(self) -> None:
        """Draw the transaction's id first, and a position only then."""
        with self._gated.begin() as conn:
            conn.execute(text("SELECT pg_current_xact_id()"))
            store.append(conn, new_stream(), [Scanned(1), Scanned(2)], expected_version=ANY)

    def _read_twice(self) -> None:
        for _ in range(2):
            with self._gated.begin() as conn:
                self._read_page(conn)

    def _read_page(self, conn: Connection) -> None:
        page = store.read_log(conn, self._checkpoint)
        self._read += page.events
        self._checkpoint = page.checkpoint

    def everything_was_read_once(self, _outcome: Outcome) -> None:
        with self._plain.begin() as conn:
            self._read_page(conn)
            written = store.read_log(conn, self._start).events
        positions = [event.position for event in self._read]
        assert positions == [event.position for event in written], (
            f"read were the positions {positions} of {[event.position for event in written]}"
        )


def test_a_reader_of_the_log_skips_nothing_and_reads_nothing_twice(
    explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    log = Log(gated, plain)

    explored = explorer.explore(
        log.tasks, invariant=log.everything_was_read_once, max_preemptions=PREEMPTIONS - 1
    )

    assert explored.exhausted


def test_a_writer_that_dies_holds_no_reader_back(
    explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    log = Log(gated, plain)

    explored = explorer.explore(
        log.tasks,
        invariant=log.everything_was_read_once,
        max_preemptions=PREEMPTIONS - 2,
        crash_at=lambda gate: gate.task != "reader",
        faults=[Fault.CRASH],
    )

    assert explored.exhausted


@pytest.mark.parametrize(
    ("function", "guard"),
    [
        (
            "raise_fence_before_insert",
            (
                "is_raised := pg_advisory_xact_lock_shared(class::int, (bound & 2147483647)::int)"
                " IS NOT NULL;"
            ),
        ),
        ("high_water_mark", "- coalesce(held, 0)"),
    ],
    ids=["no fence is raised", "no fence is looked at"],
)
def test_without_fences_events_are_skipped(
    function: str, guard: str, explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    log = Log(gated, plain)

    with (
        function_without(plain, f"datapatterns.{function}", guard),
        pytest.raises(InterleavingError, match="read were the positions"),
    ):
        explorer.explore(log.tasks, invariant=log.everything_was_read_once, max_preemptions=2)


# -- E4: one command, one event --------------------------------------------------------------------


class Client:
    """Appends with an id of its own, again and again while nobody answers."""

    def __init__(self, gated: Engine, plain: Engine) -> None:
        self._gated, self._plain = gated, plain
        self._stream = new_stream()

    def tasks(self) -> Tasks:
        self._stream = new_stream()
        return {"client": partial(self._append, uuid4())}

    def _append(self, event_id: UUID) -> int:
        event = NewEvent("interleaved.paid", {"cents": 5}, event_id=event_id)
        for _ in range(3):
            try:
                with self._gated.begin() as conn:
                    return store.append(
                        conn, self._stream, [event], expected_version=NEW_STREAM
                    ).version
            except OperationalError:
                continue
        raise TimeoutError

    def it_happened_once(self, outcome: Outcome) -> None:
        with self._plain.begin() as conn:
            events = store.read_stream(conn, self._stream)
        assert len(events) == 1, f"one command, {len(events)} events"
        assert outcome.results == {"client": 1}, f"the client believes {outcome.errors}"


def test_an_append_whose_commit_was_not_answered_can_be_tried_again(
    explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    client = Client(gated, plain)

    explored = explorer.explore(
        client.tasks,
        invariant=client.it_happened_once,
        crash_at=lambda _: True,
        faults=[Fault.REQUEST_LOST, Fault.REPLY_LOST],
        max_faults=2,
    )

    assert explored.exhausted
    assert explored.schedules > 8


def test_if_ids_were_not_compared_a_repeated_append_would_be_a_conflict(
    explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    client = Client(gated, plain)

    with (
        function_without(
            plain,
            "datapatterns.stored_append",
            "array_agg(e.event_id ORDER BY e.version) = p_ids",
            instead="false",
        ),
        pytest.raises(InterleavingError, match="VersionConflictError"),
    ):
        explorer.explore(
            client.tasks,
            invariant=client.it_happened_once,
            crash_at=is_commit,
            faults=[Fault.REPLY_LOST],
        )


# -- E9: with snapshots or without, the same state -------------------------------------------------


class Baskets:
    """Two change a basket and save snapshots of it; of one, some events are rolled back."""

    def __init__(self, gated: Engine, plain: Engine) -> None:
        self._gated, self._plain = gated, plain
        self._key = ""

    def tasks(self) -> Tasks:
        self._key = uuid4().hex
        with self._plain.begin() as conn:
            basket = Basket(self._key)
            basket.scan(1)
            store.save(conn, basket)
        return {"shopper": self._shop, "hesitant": self._hesitate}

    def _shop(self) -> None:
        with self._gated.begin() as conn:
            basket = store.load(conn, Basket, self._key)
            basket.scan(10)
            store.save(conn, basket)
        with self._gated.begin() as conn:
            store.save_snapshot(conn, basket)

    def _hesitate(self) -> None:
        """Save, change one's mind, and save a snapshot of what never was."""
        with self._gated.connect() as conn:
            basket = store.load(conn, Basket, self._key)
            basket.scan(100)
            store.save(conn, basket)
            conn.rollback()
            with conn.begin():
                store.save_snapshot(conn, basket)

    def snapshots_change_nothing(self, _outcome: Outcome) -> None:
        with self._plain.begin() as conn:
            with_snapshots = store.load(conn, Basket, self._key).total
            conn.execute(text("DELETE FROM datapatterns.snapshot"))
            folded = store.load(conn, Basket, self._key).total
        assert with_snapshots == folded, (
            f"loaded by a snapshot {with_snapshots}, folded from all events {folded}"
        )


@pytest.mark.parametrize("crashes", [False, True])
def test_a_state_is_the_same_with_snapshots_and_without(
    crashes: bool,  # noqa: FBT001 -- a parameter of the test
    explorer: Explorer,
    gated: Engine,
    plain: Engine,
) -> None:
    baskets = Baskets(gated, plain)

    explored = explorer.explore(
        baskets.tasks,
        invariant=baskets.snapshots_change_nothing,
        max_preemptions=PREEMPTIONS - 2 * crashes,
        crash_at=is_commit if crashes else None,
        allowed_errors=(VersionConflictError,),
    )

    assert explored.exhausted


def test_a_snapshot_that_only_names_a_version_would_keep_what_was_rolled_back(
    explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    baskets = Baskets(gated, plain)

    with (
        statements_without(gated, " AND datapatterns.event_all.position = %(position)s::BIGINT"),
        pytest.raises(InterleavingError, match="loaded by a snapshot"),
    ):
        explorer.explore(
            baskets.tasks,
            invariant=baskets.snapshots_change_nothing,
            allowed_errors=(VersionConflictError,),
        )


# -- a command is carried out on what is there -----------------------------------------------------


class Commands:
    """Two carry out one command each; the second of them has seen what the first one did."""

    def __init__(self, gated: Engine, plain: Engine, *, lock: bool, begun: bool) -> None:
        self._gated, self._plain, self._begun = gated, plain, begun
        self._policy = CommandPolicy(lock=lock, retry=Retry(delay_seconds=0))
        self._key = ""
        self.decided = 0

    def tasks(self) -> Tasks:
        self._key, self.decided = uuid4().hex, 0
        if self._begun:
            with self._plain.begin() as conn:
                store.append(conn, StreamId("basket", self._key), [Scanned(1)], expected_version=0)
        return {"one": self._double, "two": self._double}

    def _double(self) -> int:
        handled = store.handle(self._gated, Basket, self._key, self._decide, policy=self._policy)
        return handled.sourced.total

    def _decide(self, basket: Basket) -> None:
        self.decided += 1
        basket.scan(basket.total + 1)

    def each_saw_the_other_or_was_seen(self, outcome: Outcome) -> None:
        with self._plain.begin() as conn:
            basket = store.load(conn, Basket, self._key)
        start = 1 if self._begun else 0
        totals = [2 * start + 1, 4 * start + 3]
        assert basket.version == self._begun + 2, f"two commands, but version {basket.version}"
        assert sorted(outcome.results.values()) == totals, f"decided on {outcome.results}"
        assert not outcome.errors


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("lock", [False, True])
def test_two_commands_to_one_stream_are_decided_one_after_the_other(
    begun: bool,  # noqa: FBT001 -- parameters of the test
    lock: bool,  # noqa: FBT001
    explorer: Explorer,
    gated: Engine,
    plain: Engine,
) -> None:
    commands = Commands(gated, plain, lock=lock, begun=begun)
    in_vain = 0

    def check(outcome: Outcome) -> None:
        nonlocal in_vain
        commands.each_saw_the_other_or_was_seen(outcome)
        in_vain += commands.decided - 2

    explored = explorer.explore(commands.tasks, invariant=check, max_preemptions=PREEMPTIONS - 1)

    assert explored.exhausted
    assert (in_vain == 0) is lock


def test_a_command_whose_commit_is_lost_is_carried_out_once(
    explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    commands = Commands(gated, plain, lock=False, begun=True)

    explored = explorer.explore(
        commands.tasks,
        invariant=commands.each_saw_the_other_or_was_seen,
        max_preemptions=PREEMPTIONS - 2,
        crash_at=is_commit,
        faults=[Fault.REQUEST_LOST, Fault.REPLY_LOST],
    )

    assert explored.exhausted


def test_without_the_comparison_of_versions_commands_do_not_see_each_other(
    explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    commands = Commands(gated, plain, lock=False, begun=True)
    guard = "(s.version = p_expected OR p_expected = -1)"

    with (
        function_without(plain, "datapatterns.append_events", guard, instead="true"),
        pytest.raises(InterleavingError, match=r"decided on|two commands"),
    ):
        explorer.explore(commands.tasks, invariant=commands.each_saw_the_other_or_was_seen)
