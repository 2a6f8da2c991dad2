"""A command is carried out once, on what is there, whoever else is about and whatever gets lost."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from threading import Barrier, Thread
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.ext.asyncio import create_async_engine

from datapatterns.errors import (
    OutcomeUnknownError,
    StreamArchivedError,
    VersionConflictError,
)
from datapatterns.event_sourcing import (
    ANY,
    CommandPolicy,
    EventStore,
    Handled,
    Retry,
    StreamId,
)
from datapatterns.testing import ManualClock
from tests.fixtures.lost_commits import Loss, Network
from tests.fixtures.till_commands import SUBJECTS, scan, store, versions
from tests.fixtures.tills import AsDataclass, Scanned, Till, evolve, types

Handle = Callable[..., Handled[Any]]


@pytest.fixture(params=["sync", "async"])
def handle(request: pytest.FixtureRequest, engine: Engine) -> Handle:
    """Either way to carry out a command; the engine may be named."""

    def handle_sync(*args: Any, at: Engine = engine, by: EventStore = store, **how: Any) -> Any:  # noqa: ANN401
        return by.handle(at, *args, **how)

    def handle_async(*args: Any, at: Engine = engine, by: EventStore = store, **how: Any) -> Any:  # noqa: ANN401
        async def run() -> Any:  # noqa: ANN401
            far = create_async_engine(at.url)
            try:
                return await by.handle_async(far, *args, **how)
            finally:
                await far.dispose()

        return asyncio.run(run())

    return handle_sync if request.param == "sync" else handle_async


def others_write(engine: Engine, times: int, inner: Callable[[Any], object]) -> Any:  # noqa: ANN401
    """Return a command during which another writer gets in, ``times`` times."""
    left = [times]

    def command(till: Any) -> object:  # noqa: ANN401 -- a till
        if left[0]:
            left[0] -= 1
            with engine.begin() as conn:
                store.append(conn, till.stream, [Scanned(9, 9)], expected_version=ANY)
        return inner(till)

    return command


@pytest.mark.parametrize("subject", SUBJECTS, ids=["aggregate", "decider"])
def test_a_command_is_decided_on_what_is_there_and_committed(
    engine: Engine,
    handle: Handle,
    subject: Any,  # noqa: ANN401 -- either
) -> None:
    first = handle(subject, "7", scan(subject))
    second = handle(subject, "7", scan(subject, 2), metadata={"by": "ann"})

    assert (first.events, first.attempts) == ((Scanned(1, 5),), 1)
    assert second.position > first.position
    assert second.sourced.version == 2
    with engine.begin() as conn:
        [_, recorded] = store.read_stream(conn, StreamId("till", "7"))
        assert store.load(conn, Till, "7").lines == {1: 1, 2: 1}
    assert (recorded.metadata, recorded.position) == ({"by": "ann"}, second.position)


def test_what_a_method_returns_is_the_answer_and_nothing_may_happen(
    engine: Engine, handle: Handle
) -> None:
    handled = handle(Till, "7", lambda till: till.total)

    assert (handled.answer, handled.events, handled.position) == (0, (), 0)
    assert versions(engine) == []


def test_what_a_command_raises_comes_out_and_nothing_is_saved(
    engine: Engine, handle: Handle
) -> None:
    def refuse(till: Till) -> None:
        till.emit(Scanned(1, 1))
        raise ValueError("closed")

    with pytest.raises(ValueError, match="closed"):
        handle(Till, "7", refuse)
    with pytest.raises(TypeError, match="has run"):
        handle(Till, "7", lambda till: (till.emit(Scanned(n, 1)) for n in (1, 2)))
    assert versions(engine) == []


@pytest.mark.parametrize("begun", [False, True])
def test_it_decides_again_if_another_writer_was_first(
    engine: Engine,
    handle: Handle,
    begun: bool,  # noqa: FBT001 -- a parameter of the test
) -> None:
    if begun:
        handle(Till, "7", scan(Till))
    seen: list[int] = []

    def command(till: Till) -> None:
        seen.append(till.total)
        till.emit(Scanned(2, till.total))

    handled = handle(Till, "7", others_write(engine, 2, command))

    start = 5 * begun
    assert seen == [start, start + 9, start + 18]  # at each attempt on what was there by then
    assert handled.attempts == 3
    assert handled.sourced.total == 2 * (start + 18)
    assert versions(engine) == list(range(1, begun + 4))


def test_attempts_are_bounded_by_number_and_by_time(engine: Engine, handle: Handle) -> None:
    for number, retry in enumerate(
        [Retry(attempts=3, delay_seconds=0), Retry(timeout_seconds=0), Retry(attempts=1)]
    ):
        made: list[object] = []

        def command(till: Till, made: list[object] = made) -> None:
            made.append(till)
            till.emit(Scanned(1, 1))

        with pytest.raises(VersionConflictError):
            handle(
                Till,
                str(number),
                others_write(engine, 99, command),
                policy=CommandPolicy(retry=retry),
            )
        assert len(made) == (3 if number == 0 else 1)


def test_waits_grow_and_are_random(engine: Engine) -> None:
    clock = ManualClock()
    waited: list[float] = []
    clock.sleep = lambda seconds: waited.append(seconds)  # type: ignore[method-assign] # noqa: PLW0108
    ours = EventStore(types=types, clock=clock)
    retry = Retry(attempts=9, delay_seconds=0.01, delay_seconds_max=0.1)

    with pytest.raises(VersionConflictError):
        ours.handle(
            engine,
            Till,
            "7",
            others_write(engine, 99, lambda till: till.emit(Scanned(1, 1))),
            policy=CommandPolicy(retry=retry),
        )

    assert len(waited) == 8
    assert all(seconds <= min(0.1, 0.01 * 2**n) for n, seconds in enumerate(waited))
    assert len(set(waited)) > 4


@pytest.mark.parametrize("begun", [False, True])
def test_a_commit_without_an_answer_is_found_out_about(
    engine: Engine,
    handle: Handle,
    network: Network,
    far: Engine,
    loss: Loss,
    begun: bool,  # noqa: FBT001 -- a parameter of the test
) -> None:
    if begun:
        handle(Till, "7", scan(Till))
    decided: list[int] = []

    def command(till: Till) -> None:
        decided.append(1)
        till.emit(Scanned(2, 7))

    loss.strike(network)
    handled = handle(Till, "7", command, at=far)

    assert decided == [1]  # the append was repeated, not the decision
    assert handled.attempts == 2
    assert versions(engine) == list(range(1, begun + 2))
    with engine.begin() as conn:
        assert handled.position == store.load(conn, Till, "7")._history.position  # noqa: SLF001


def test_what_stays_unknown_is_told_with_the_ids(
    engine: Engine, handle: Handle, network: Network, far: Engine, loss: Loss
) -> None:
    loss.strike(network)
    with pytest.raises(OutcomeUnknownError) as unknown:
        handle(Till, "7", scan(Till), at=far, policy=CommandPolicy(retry=Retry(attempts=1)))

    assert len(unknown.value.ids) == 1
    with engine.begin() as conn:
        stored = [e.event_id for e in store.read_stream(conn, StreamId("till", "7"))]
    assert stored == (list(unknown.value.ids) if loss.happens else [])


def test_after_a_lost_commit_that_another_writer_overtook_it_decides_again(
    engine: Engine, network: Network, far: Engine
) -> None:
    clock = ManualClock()

    def overtake(_seconds: float) -> None:
        with engine.begin() as conn:
            store.append(conn, StreamId("till", "7"), [Scanned(9, 9)], expected_version=ANY)

    clock.sleep = overtake  # type: ignore[method-assign, assignment]
    seen: list[int] = []

    def command(till: Till) -> None:
        seen.append(till.total)
        till.emit(Scanned(1, 1))

    Loss(happens=False).strike(network)
    handled = EventStore(types=types, clock=clock).handle(far, Till, "7", command)

    assert seen == [0, 18]  # overtaken twice: while it was unknown, and after the conflict
    assert handled.attempts == 3
    assert versions(engine) == [1, 2, 3]


def test_after_a_lost_commit_a_stream_that_was_ended_says_what_became_of_it(
    engine: Engine, network: Network, far: Engine, loss: Loss
) -> None:
    store.handle(engine, Till, "7", scan(Till))
    clock = ManualClock()

    def end(_seconds: float) -> None:
        with engine.begin() as conn:
            conn.execute(text("UPDATE datapatterns.stream SET archived_at = now()"))

    clock.sleep = end  # type: ignore[method-assign, assignment]
    loss.strike(network)
    with nullcontext() if loss.happens else pytest.raises(StreamArchivedError):
        EventStore(types=types, clock=clock).handle(far, Till, "7", scan(Till))

    assert versions(engine) == ([1, 2] if loss.happens else [1])


def test_what_ends_a_command_before_its_commit_is_not_laid_to_another_one(
    engine: Engine, handle: Handle
) -> None:
    """Although that is being handled, and so is in the context of all that is raised."""

    def another() -> None:
        raise OutcomeUnknownError("another command", reason="lost")

    def interrupted(_till: Till) -> None:
        raise KeyboardInterrupt

    try:
        another()
    except OutcomeUnknownError:
        with pytest.raises(KeyboardInterrupt) as raised:
            handle(Till, "7", interrupted)
        assert raised.value.__cause__ is None

    assert versions(engine) == []


def test_a_serialisation_failure_is_a_conflict_like_any_other(engine: Engine) -> None:
    strict = create_engine(engine.url, isolation_level="REPEATABLE READ")
    store.handle(engine, Till, "7", scan(Till))

    handled = store.handle(strict, Till, "7", others_write(engine, 1, scan(Till)))

    assert (handled.attempts, handled.sourced.version) == (2, 3)
    strict.dispose()


def test_an_archived_stream_takes_no_commands(engine: Engine, handle: Handle) -> None:
    handle(Till, "7", scan(Till))
    with engine.begin() as conn:
        conn.execute(text("UPDATE datapatterns.stream SET archived_at = now()"))

    for lock in (False, True):
        with pytest.raises(StreamArchivedError):
            handle(Till, "7", scan(Till), policy=CommandPolicy(lock=lock))


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("lock", [False, True])
def test_with_a_lock_nobody_decides_in_vain(
    engine: Engine,
    begun: bool,  # noqa: FBT001 -- a parameter of the test
    lock: bool,  # noqa: FBT001 -- as above
) -> None:
    """Eight writers to one stream; without the lock, the control, some have to decide again."""
    if begun:
        store.handle(engine, Till, "7", scan(Till))
    decided: list[int] = []
    ready = Barrier(8)

    def command(till: Till) -> None:
        decided.append(1)
        till.emit(Scanned(1, 1))

    def act() -> None:
        ready.wait(timeout=30)
        policy = CommandPolicy(lock=lock, retry=Retry(attempts=100))
        EventStore(types=types).handle(engine, Till, "7", command, policy=policy)

    threads = [Thread(target=act) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert versions(engine) == list(range(1, begun + 9))
    if lock:
        assert len(decided) == 8


@contextmanager
def counted_statements(engine: Engine) -> Iterator[list[str]]:
    statements: list[str] = []

    def note(_c: object, _cursor: object, statement: str, *_: object) -> None:
        statements.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(engine, "before_cursor_execute", note)


def test_a_command_costs_two_statements(engine: Engine) -> None:
    store.handle(engine, Till, "7", scan(Till))

    with counted_statements(engine) as statements:
        store.handle(engine, Till, "7", scan(Till))

    assert len(statements) == 2


def test_bounds_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Retry(attempts=0)
    with pytest.raises(ValueError, match="negative"):
        Retry(timeout_seconds=-1)
    assert evolve(AsDataclass(), Scanned(1, 1)).total == 1
