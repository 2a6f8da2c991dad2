"""Ids are unique whatever clocks and processes do, and name their bucket."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import OperationalError

from datapatterns.errors import BucketCountError, IdWorkersTakenError, SettingsError
from datapatterns.sharding import (
    Hash,
    IdGenerator,
    IdParts,
    Modulo,
    ShardingStrategy,
    ShardMap,
    parts_of_id,
)
from datapatterns.sharding.ids.layout import PER_MS_MAX
from datapatterns.sharding.ids.leasing import Span, SpanLeases
from datapatterns.testing import ManualClock

pytestmark = pytest.mark.postgres

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
MODULO = Modulo(8)


def placed_by(strategy: ShardingStrategy) -> Callable[[], ShardMap]:
    return lambda: ShardMap(1, 1, strategy, ("s0",) * strategy.buckets)


PLACED = placed_by(MODULO)


class WallClock(ManualClock):
    """A clock on the wall: somebody may set it to any time."""

    def __init__(self, shown: datetime) -> None:
        super().__init__()
        self.shown = shown

    def now(self) -> datetime:
        return self.shown


@pytest.fixture
def workers(module_engine: Engine) -> Iterator[Engine]:
    forget_leases(module_engine)
    yield module_engine
    forget_leases(module_engine)


def forget_leases(engine: Engine) -> None:
    """As if nobody had ever made an id."""
    with engine.begin() as conn:
        conn.execute(
            text(
                "UPDATE datapatterns.id_worker SET ms_ceiling = 0,"
                " holder = NULL, lease_until = NULL"
            )
        )


def expire_leases(engine: Engine) -> None:
    """As if all who hold a number had been silent for long."""
    with engine.begin() as conn:
        conn.execute(
            text(
                "UPDATE datapatterns.id_worker SET lease_until = '-infinity'"
                " WHERE lease_until < 'infinity'"
            )
        )


def keep_from_all(engine: Engine, *, but: int) -> None:
    """As if others held all numbers but so many."""
    with engine.begin() as conn:
        conn.execute(
            text(
                "UPDATE datapatterns.id_worker SET lease_until = 'infinity',"
                " holder = gen_random_uuid() WHERE worker >= :but"
            ),
            {"but": but},
        )


@given(
    parts=st.builds(
        IdParts,
        st.integers(0, 2**40 - 1),
        st.integers(0, 8191),
        st.integers(0, 63),
        st.integers(0, 15),
    )
)
def test_an_id_is_taken_apart_into_what_it_was_made_of(parts: IdParts) -> None:
    assert parts_of_id(parts.packed()) == parts
    assert 0 <= parts.packed() < 2**63


@pytest.mark.parametrize("row_id", [-1, 2**63])
def test_what_no_id_can_be_is_refused(row_id: int) -> None:
    with pytest.raises(ValueError, match="is no id"):
        parts_of_id(row_id)


def test_ids_name_their_bucket_and_time_and_ascend(workers: Engine) -> None:
    clock = WallClock(NOON)
    ids = IdGenerator(workers, PLACED, clock=clock)

    made = [ids.next(13) for _ in range(50)]

    assert made == sorted({*made})
    parts = [parts_of_id(each) for each in made]
    assert {each.bucket for each in parts} == {5}
    assert all(NOON <= each.made_at < NOON + timedelta(milliseconds=10) for each in parts)


def test_a_clock_that_goes_back_makes_no_id_twice(workers: Engine) -> None:
    clock = WallClock(NOON)
    ids = IdGenerator(workers, PLACED, clock=clock)
    made = [ids.next(1) for _ in range(20)]

    clock.shown = NOON - timedelta(days=1)
    made += [ids.next(1) for _ in range(20)]

    assert all(earlier < later for earlier, later in pairwise(made))


class Maker:
    """A process that makes ids, and may do so again after it has died."""

    def __init__(self, engine: Engine, clock: WallClock) -> None:
        self.engine = engine
        self.clock = clock
        self._ids = self._new()

    def do(self, deed: str) -> list[int]:
        match deed:
            case "make":
                return self._make(1)
            case "many":
                return self._make(3 * PER_MS_MAX)
            case "die":
                self._ids = self._new()
            case "close":
                self._ids.close()
            case _:
                expire_leases(self.engine)
        return []

    def _make(self, how_many: int) -> list[int]:
        made: list[int] = []
        with suppress(IdWorkersTakenError):
            made.extend(self._ids.next(3) for _ in range(how_many))
        return made

    def _new(self) -> IdGenerator:
        return IdGenerator(self.engine, PLACED, span_seconds=0.01, clock=self.clock)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    deeds=st.lists(
        st.tuples(
            st.integers(0, 2),
            st.sampled_from(["make", "make", "many", "die", "close", "expire", "expire"]),
            st.integers(-30, 30),
        ),
        max_size=40,
    )
)
def test_no_two_ids_are_equal_whatever_clocks_and_makers_do(
    workers: Engine, deeds: list[tuple[int, str, int]]
) -> None:
    forget_leases(workers)
    keep_from_all(workers, but=1)

    makers = [Maker(workers, WallClock(NOON + timedelta(milliseconds=7 * n))) for n in range(3)]
    made: list[int] = []
    for who, deed, step_ms in deeds:
        makers[who].clock.shown += timedelta(milliseconds=step_ms)
        made += makers[who].do(deed)

    assert len({*made}) == len(made)
    assert {parts_of_id(each).bucket for each in made} <= {3}


def test_a_number_that_another_had_meanwhile_is_not_used_as_before(workers: Engine) -> None:
    keep_from_all(workers, but=1)
    first, second = (Maker(workers, WallClock(NOON)) for _ in range(2))

    made = first.do("make")
    expire_leases(workers)
    second.clock.shown += timedelta(milliseconds=15)
    made += second.do("make")
    expire_leases(workers)
    # Its clock shows what the other's showed; its lease was renewed, but not without a gap.
    first.clock.shown += timedelta(milliseconds=16)
    made += first.do("make")

    assert len({*made}) == 3


def test_threads_share_a_maker(workers: Engine) -> None:
    ids = IdGenerator(workers, PLACED)

    with ThreadPoolExecutor(8) as pool:
        made = [*pool.map(ids.next, [1] * 4_000)]

    assert len({*made}) == len(made)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
def test_a_child_does_not_make_its_parents_ids(workers: Engine) -> None:
    clock = WallClock(NOON)
    engine = create_engine(workers.url)
    ids = IdGenerator(engine, PLACED, clock=clock)
    ids.next(1)
    engine.dispose()  # a child must not use its parent's connection
    reading, writing = os.pipe()

    child = os.fork()
    if child == 0:
        try:
            os.write(writing, str(ids.next(1)).encode())
        finally:
            os._exit(0)  # it is not to go on with the tests
    os.waitpid(child, 0)

    assert int(os.read(reading, 100)) != ids.next(1)
    os.close(reading)
    os.close(writing)
    engine.dispose()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
def test_a_child_does_not_wait_for_a_thread_of_its_parents(workers: Engine) -> None:
    ids = IdGenerator(workers, PLACED)
    reading, writing = os.pipe()

    with ids._lock:  # noqa: SLF001 -- as a thread has it that asks for a span
        child = os.fork()
        if child == 0:
            try:
                os.write(writing, str(ids._lock.locked()).encode())  # noqa: SLF001 -- of a fresh one
            finally:
                os._exit(0)  # it is not to go on with the tests
    os.waitpid(child, 0)

    assert os.read(reading, 100) == b"False"
    os.close(reading)
    os.close(writing)


def test_a_clock_that_was_centuries_off_uses_no_number_up(workers: Engine) -> None:
    clock = WallClock(NOON.replace(year=2190))
    ids = IdGenerator(workers, PLACED, clock=clock)

    with pytest.raises(OverflowError, match="clock"):
        ids.next(1)
    clock.shown = NOON

    assert parts_of_id(ids.next(1)).made_at - NOON <= timedelta(milliseconds=1)


def test_ids_go_on_without_the_control_database_until_the_span_ends(
    workers: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = WallClock(NOON)
    ids = IdGenerator(workers, PLACED, span_seconds=1, clock=clock)
    ids.next(1)
    asked = []

    def silent(_leases: SpanLeases, _holder: UUID, now_ms: int) -> Span:
        asked.append(now_ms)
        raise OperationalError("", None, ConnectionError())

    with monkeypatch.context() as patch:
        patch.setattr(SpanLeases, "take", silent)
        clock.shown = NOON + timedelta(milliseconds=900)
        within = [ids.next(1) for _ in range(10)]
        assert len(asked) == 1  # who makes many does not ask for each
        clock.shown = NOON + timedelta(seconds=2)
        with pytest.raises(OperationalError):
            ids.next(1)

    assert ids.next(1) > within[-1]


def test_all_numbers_may_be_taken_until_one_is_let_go(workers: Engine) -> None:
    makers = [IdGenerator(workers, PLACED) for _ in range(64)]
    made = {maker.next(1) for maker in makers}

    with pytest.raises(IdWorkersTakenError, match="two minutes"):
        IdGenerator(workers, PLACED).next(1)
    makers[7].close()
    made.add(IdGenerator(workers, PLACED).next(1))

    assert len(made) == 65


def test_what_cannot_work_is_refused_when_the_maker_is_made(workers: Engine) -> None:
    with pytest.raises(BucketCountError, match="8,192"):
        IdGenerator(workers, placed_by(Hash(buckets=2**14)))
    with pytest.raises(SettingsError, match="span_seconds"):
        IdGenerator(workers, PLACED, span_seconds=0)
    with pytest.raises(ValueError, match="no place"):
        IdGenerator(workers, PLACED).next_in(8192)
