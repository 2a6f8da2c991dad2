"""Cancelled at any await, an append is there once or not at all, and who asks can find out."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import pytest
from sqlalchemy import URL, Connection, Engine, event, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from datapatterns import aio
from datapatterns.clock import SYSTEM_CLOCK
from datapatterns.errors import VersionConflictError
from datapatterns.event_sourcing import (
    ANY,
    NEW_STREAM,
    AsyncEventWriter,
    EventStore,
    EventWriter,
    Expected,
    NewEvent,
    StreamId,
)
from datapatterns.outcomes import find_unknown_outcome
from tests.fixtures.cancelling import Strike, every_await
from tests.fixtures.event_units import Till, store, types
from tests.fixtures.lost_commits import Loss, Network

APPEND = "SELECT outcome"


@pytest.fixture(autouse=True)
def busy_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the driver wait everywhere, as it does where the loop has been busy for some time."""
    monkeypatch.setattr("psycopg.waiting.MAX_BUSY_TIME", 0, raising=False)


def stored(engine: Engine, stream: StreamId) -> list[UUID]:
    with engine.begin() as conn:
        return [event.event_id for event in store.read_stream(conn, stream)]


def told(error: BaseException | None) -> list[UUID]:
    """Return the ids of an unknown outcome that ``error`` hides."""
    unknown = find_unknown_outcome(error)
    return [] if unknown is None else [UUID(str(one)) for one in unknown.ids]


Run: TypeAlias = Callable[[AsyncEngine, Strike], Awaitable[BaseException | None]]


def at_every_await(url: URL, run: Run) -> None:
    """Run on engines of their own, whose connections must come back as they went."""

    async def once(strike: Strike) -> None:
        far = create_async_engine(url)
        async with far.connect():
            pass  # SQLAlchemy asks the server what it is on the first one
        error = await run(far, strike)
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})
        assert far.pool.checkedout() == 0, error  # type: ignore[attr-defined] # of a QueuePool
        async with far.connect() as conn:
            driver: Any = (await conn.get_raw_connection()).driver_connection
            assert (driver.info.transaction_status, driver.autocommit) == (0, False)
            assert await conn.scalar(text("SELECT 42")) == 42
        await far.dispose()

    with asyncio.Runner() as runner:
        for strike in every_await():
            runner.run(once(strike))


@pytest.mark.parametrize("connected", [False, True])
@pytest.mark.parametrize("expected", [NEW_STREAM, ANY])
def test_an_append_of_a_writer(
    engine: Engine,
    expected: int | Expected,
    connected: bool,  # noqa: FBT001 -- a parameter of the test
) -> None:
    async def run(far: AsyncEngine, strike: Strike) -> BaseException | None:
        cart, ids = StreamId("cart", str(uuid4())), [uuid4(), uuid4()]
        batch = [NewEvent("a", {})] * 2

        async def append() -> bool:
            done = await writer.append(cart, batch, expected_version=expected, event_ids=ids)
            return done.repeated

        async with AsyncEventWriter(store, far, connections=1) as writer:
            if connected:
                other = StreamId("cart", str(uuid4()))
                await writer.append(other, batch, expected_version=NEW_STREAM)
            error = await strike.cancel(append())
            found = stored(engine, cart)
            assert told(error) == ids or error is None or not found
            assert await append() == bool(found)
        assert stored(engine, cart) == ids
        return error

    at_every_await(engine.url, run)


@contextmanager
def closed_meanwhile(writer: AsyncEventWriter, far: AsyncEngine) -> Iterator[list[object]]:
    """Close it as soon as an append waits for the server; give what does so."""
    closing: list[object] = []

    def close(*_: object) -> None:
        closing.append(asyncio.create_task(writer.close()))

    event.listen(far.sync_engine, "checkout", close)
    yield closing
    event.remove(far.sync_engine, "checkout", close)


def test_an_append_of_a_writer_that_is_closed_meanwhile(engine: Engine) -> None:
    async def run(far: AsyncEngine, strike: Strike) -> BaseException | None:
        cart, ids = StreamId("cart", str(uuid4())), [uuid4()]
        writer = AsyncEventWriter(store, far, connections=1)

        with closed_meanwhile(writer, far) as closing:
            error = await strike.cancel(
                writer.append(cart, [NewEvent("a", {})], expected_version=NEW_STREAM, event_ids=ids)
            )

        assert closing or not strike.fired
        assert told(error) == ids or error is None or not stored(engine, cart)
        return error

    at_every_await(engine.url, run)


def test_what_a_writer_was_refused_is_known_although_it_is_cancelled_after_that(
    engine: Engine,
) -> None:
    late: list[BaseException] = []
    cart = StreamId("cart", "7")
    with engine.begin() as conn:
        store.append(conn, cart, [NewEvent("a", {})], expected_version=NEW_STREAM)

    async def run(far: AsyncEngine, strike: Strike) -> BaseException | None:
        writer = AsyncEventWriter(store, far, connections=1)

        async def append() -> None:
            with suppress(VersionConflictError):
                await writer.append(cart, [NewEvent("a", {})], expected_version=NEW_STREAM)

        with closed_meanwhile(writer, far):
            error = await strike.cancel(append())
        if error is not None and isinstance(error.__context__, VersionConflictError):
            late.append(error)
        return error

    at_every_await(engine.url, run)

    assert late
    assert [told(error) for error in late] == [[]] * len(late)


def test_the_end_of_a_writer(engine: Engine) -> None:
    async def run(far: AsyncEngine, strike: Strike) -> BaseException | None:
        writer = AsyncEventWriter(store, far)
        carts = [StreamId("cart", str(uuid4())) for _ in range(3)]
        batch = [NewEvent("a", {})]
        await asyncio.gather(
            *(writer.append(cart, batch, expected_version=NEW_STREAM) for cart in carts)
        )
        return await strike.cancel(writer.close())

    at_every_await(engine.url, run)


def test_a_command(engine: Engine) -> None:
    async def run(far: AsyncEngine, strike: Strike) -> BaseException | None:
        key = str(uuid4())
        till = StreamId("till", key)

        error = await strike.cancel(store.handle_async(far, Till, key, lambda till: till.pay(5)))

        found = stored(engine, till)
        assert told(error) == found or error is None or not found
        again = await store.handle_async(far, Till, key, lambda till: till.pay(5))
        assert again.attempts == 1
        assert stored(engine, till)[:-1] == found
        return error

    at_every_await(engine.url, run)


def test_a_transaction(engine: Engine) -> None:
    async def run(far: AsyncEngine, strike: Strike) -> BaseException | None:
        cart = StreamId("cart", str(uuid4()))

        def append(conn: Connection) -> None:
            store.append(conn, cart, [NewEvent("a", {})], expected_version=NEW_STREAM)

        error = await strike.cancel(aio.in_transaction(far, append))

        if error is not None and stored(engine, cart):
            assert find_unknown_outcome(error) is not None
        return error

    at_every_await(engine.url, run)


@pytest.mark.parametrize("goes_on", ["commit", "rollback", "close"])
def test_a_unit_of_work(engine: Engine, goes_on: str) -> None:
    async def run(far: AsyncEngine, strike: Strike) -> BaseException | None:
        cart, ids, till = StreamId("cart", str(uuid4())), [uuid4()], Till(str(uuid4()))
        till.pay(5)

        async def write(session: AsyncSession) -> None:
            unit = store.unit(session)
            unit.append(cart, [NewEvent("a", {})], expected_version=ANY, event_ids=ids)
            unit.save(till)
            await session.commit()

        async with AsyncSession(far) as session:
            error = await strike.cancel(write(session))
            found = stored(engine, cart)
            assert len(stored(engine, till.stream)) == len(found)
            if error is not None and goes_on == "rollback":
                await session.rollback()
            elif error is not None and goes_on == "commit":
                with suppress(SQLAlchemyError):
                    await session.commit()  # goes through, or ends what is spoilt
                assert len(stored(engine, till.stream)) == len(stored(engine, cart))
                await session.rollback()
            elif error is not None:
                await session.close()
            await write(session)
        assert stored(engine, cart) == ids
        assert len(stored(engine, till.stream)) == 1
        return error

    at_every_await(engine.url, run)


# -- after a lost answer ---------------------------------------------------------------------------


def test_a_command_whose_commit_was_not_answered(
    engine: Engine, network: Network, loss: Loss
) -> None:
    trap = loss.strike(network)

    async def run(far: AsyncEngine, strike: Strike) -> BaseException | None:
        nonlocal trap
        key = str(uuid4())
        if trap.has_fired:
            trap = loss.strike(network)

        error = await strike.cancel(store.handle_async(far, Till, key, lambda till: till.pay(5)))

        found = stored(engine, StreamId("till", key))
        assert told(error) == found or error is None or not found
        return error

    at_every_await(network.url, run)


def test_an_append_whose_answer_was_lost(engine: Engine, network: Network, loss: Loss) -> None:
    trap = loss.strike_at(network, APPEND)

    async def run(far: AsyncEngine, strike: Strike) -> BaseException | None:
        nonlocal trap
        cart, ids = StreamId("cart", str(uuid4())), [uuid4()]
        if trap.has_fired:
            trap = loss.strike_at(network, APPEND)
        async with AsyncEventWriter(store, far) as writer:
            error = await strike.cancel(
                writer.append(cart, [NewEvent("a", {})], expected_version=ANY, event_ids=ids)
            )
        found = stored(engine, cart)
        assert told(error) == ids or error is None or not found
        return error

    at_every_await(network.url, run)


class Impatient:
    """A clock whose user presses Ctrl-C while it waits."""

    def now(self) -> datetime:
        return SYSTEM_CLOCK.now()

    def monotonic(self) -> float:
        return SYSTEM_CLOCK.monotonic()

    def sleep(self, seconds: float) -> None:
        raise KeyboardInterrupt(seconds)


def test_who_interrupts_the_wait_for_another_attempt_is_told(
    engine: Engine, far: Engine, network: Network, loss: Loss
) -> None:
    cart, ids = StreamId("cart", "7"), [uuid4()]
    impatient = EventStore(types=types, clock=Impatient())
    with EventWriter(store, far, clock=Impatient()) as writer:
        writer.append(StreamId("cart", "1"), [NewEvent("a", {})], expected_version=NEW_STREAM)
        loss.strike_at(network, APPEND)
        network.refuse()
        with pytest.raises(KeyboardInterrupt) as interrupted:
            writer.append(cart, [NewEvent("a", {})], expected_version=ANY, event_ids=ids)
    assert told(interrupted.value) == ids
    assert stored(engine, cart) == ids[: loss.happens]

    network.pass_through()
    loss.strike(network)
    with pytest.raises(KeyboardInterrupt) as interrupted:
        impatient.handle(far, Till, "7", lambda till: till.pay(5))
    assert len(told(interrupted.value)) == 1
    assert stored(engine, StreamId("till", "7")) == told(interrupted.value)[: loss.happens]
