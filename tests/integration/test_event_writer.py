"""An append as its own transaction: one round trip, and once, whatever happens to its answer."""

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeAlias
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from datapatterns.embedded import PostgresServer
from datapatterns.errors import (
    ConditionConflictError,
    EventDataError,
    OutcomeUnknownError,
    ReadOnlyServerError,
    ServerUnavailableError,
    VersionConflictError,
)
from datapatterns.event_sourcing import (
    ANY,
    EXISTS,
    NEW_STREAM,
    Appended,
    AsyncEventWriter,
    EventStore,
    EventWriter,
    Expected,
    NewEvent,
    StreamId,
    Tagged,
)
from datapatterns.outcomes import find_unknown_outcome
from datapatterns.sql.migrating import upgrade
from tests.fixtures.blocking import until_blocked_by
from tests.fixtures.lost_commits import Loss, Network

store = EventStore()
CART = StreamId("cart", "7")
APPEND = "SELECT outcome"
FORGET = """
CREATE FUNCTION forget() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DEALLOCATE ALL;
    RETURN NULL;
END $$;
CREATE TRIGGER forget AFTER INSERT ON datapatterns.event EXECUTE FUNCTION forget();
"""


class Write(Protocol):
    """Appends through a writer of either colour."""

    def __call__(
        self, engine: Engine, *appends: dict[str, Any], patience_seconds: float = 30.0
    ) -> list[Appended]: ...


EngineWith: TypeAlias = Callable[..., Engine]


@pytest.fixture
def engine_with(engine: Engine) -> Iterator[EngineWith]:
    """Make engines whose URL says more."""
    made: list[Engine] = []

    def make(**query: str) -> Engine:
        made.append(create_engine(engine.url.update_query_dict(query)))
        return made[-1]

    yield make
    for other in made:
        other.dispose()


@pytest.fixture(params=["sync", "async"])
def write(request: pytest.FixtureRequest) -> Iterator[Write]:
    if request.param == "sync":

        def write_sync(
            engine: Engine, *appends: dict[str, Any], patience_seconds: float = 30.0
        ) -> list[Appended]:
            with EventWriter(store, engine, patience_seconds=patience_seconds) as writer:
                return [writer.append(**append) for append in appends]

        yield write_sync
        return

    async def run(
        engine: Engine, appends: tuple[dict[str, Any], ...], patience_seconds: float
    ) -> list[Appended]:
        async_engine = create_async_engine(engine.url)
        try:
            async with AsyncEventWriter(
                store, async_engine, patience_seconds=patience_seconds
            ) as writer:
                return [await writer.append(**append) for append in appends]
        finally:
            await async_engine.dispose()

    with asyncio.Runner() as runner:
        yield lambda engine, *appends, patience_seconds=30.0: runner.run(
            run(engine, appends, patience_seconds)
        )


def added(count: int = 1, *tags: str) -> list[NewEvent]:
    return [NewEvent("item.added", {"n": n}, tags=tags) for n in range(count)]


def to_cart(expected: int | Expected, count: int = 1, **more: object) -> dict[str, Any]:
    return {"stream": CART, "events": added(count), "expected_version": expected, **more}


def stored(engine: Engine) -> list[int]:
    with engine.begin() as conn:
        return [event.version for event in store.read_stream(conn, CART)]


def test_each_append_is_committed_by_itself(engine: Engine, write: Write) -> None:
    done = write(engine, to_cart(NEW_STREAM), to_cart(1, 3), to_cart(ANY), to_cart(EXISTS))

    assert [appended.version for appended in done] == [1, 4, 5, 6]
    assert stored(engine) == [1, 2, 3, 4, 5, 6]


def test_conflicts_are_those_of_the_store_and_the_writer_goes_on(
    engine: Engine, engine_with: EngineWith, write: Write
) -> None:
    with engine.begin() as conn:
        condition = store.read_tagged(conn, Tagged(("a",))).condition
    write(engine, {**to_cart(NEW_STREAM), "events": added(1, "a")})

    with pytest.raises(VersionConflictError):
        write(engine, to_cart(NEW_STREAM))
    with pytest.raises(ConditionConflictError):
        write(engine, to_cart(ANY, unless=condition))
    with pytest.raises(EventDataError):
        write(engine, {**to_cart(ANY), "events": [NewEvent("a", {"x": "\0"})]})
    with pytest.raises(DBAPIError) as failure:
        write(engine_with(options="-c statement_timeout=1"), to_cart(1, 5000))

    assert getattr(failure.value.orig, "sqlstate", None) == "57014"
    assert stored(engine) == [1]


@pytest.mark.parametrize("expected", [NEW_STREAM, ANY])
def test_an_append_whose_answer_is_lost_takes_place_once(
    expected: int | Expected,
    engine: Engine,
    far: Engine,
    network: Network,
    loss: Loss,
    write: Write,
) -> None:
    trap = loss.strike_at(network, APPEND)

    [appended] = write(far, to_cart(expected, 2))

    assert trap.has_fired
    assert appended.version == 2
    assert appended.repeated == loss.happens
    assert stored(engine) == [1, 2]


@pytest.mark.parametrize("expected", [1, ANY])
def test_if_no_answer_comes_in_time_the_outcome_is_unknown_and_the_ids_resolve_it(
    expected: int | Expected, engine: Engine, far: Engine, network: Network, loss: Loss
) -> None:
    with EventWriter(store, far, patience_seconds=0.3) as writer:
        writer.append(CART, added(), expected_version=NEW_STREAM)
        loss.strike_at(network, APPEND)
        network.refuse()
        with pytest.raises(OutcomeUnknownError) as unknown:
            writer.append(CART, added(2), expected_version=expected)
    ids = [UUID(str(one)) for one in unknown.value.ids]

    with EventWriter(store, engine) as writer:
        again = writer.append(CART, added(2), expected_version=expected, event_ids=ids)

    assert again.repeated == loss.happens
    assert stored(engine) == [1, 2, 3]


def test_idle_connections_that_were_ended_are_replaced(engine: Engine) -> None:
    with EventWriter(store, engine, patience_seconds=30) as writer:
        writer.append(**to_cart(NEW_STREAM))
        with engine.begin() as conn:
            conn.execute(
                text(
                    "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )
        assert not writer.append(**to_cart(1)).repeated

    assert stored(engine) == [1, 2]


def test_threads_share_a_writer_and_it_holds_as_many_connections_as_it_may(engine: Engine) -> None:
    opened: list[object] = []
    event.listen(engine, "checkout", lambda *_: opened.append(1))

    with EventWriter(store, engine, connections=2, patience_seconds=30) as writer:
        with ThreadPoolExecutor(8) as pool:
            done = list(pool.map(lambda _: writer.append(**to_cart(ANY)), range(80)))
        assert len(opened) == 2
        assert engine.pool.checkedout() == 2  # type: ignore[attr-defined]

    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    assert sorted(appended.version for appended in done) == list(range(1, 81))
    with pytest.raises(ValueError, match="closed"):
        writer.append(**to_cart(ANY))


def test_connections_go_back_to_the_pool_as_they_came(engine: Engine) -> None:
    with EventWriter(store, engine) as writer:
        writer.append(**to_cart(NEW_STREAM))

    with engine.connect() as conn:
        store.append(conn, CART, added(), expected_version=1)
        conn.rollback()
    assert stored(engine) == [1]


def test_nothing_is_prepared_where_the_engine_says_so(engine: Engine) -> None:
    pooled = create_engine(engine.url, connect_args={"prepare_threshold": None}, pool_size=1)
    with EventWriter(store, pooled, connections=1) as writer:
        for _ in range(8):
            writer.append(**to_cart(ANY))
    with pooled.connect() as conn:
        assert conn.scalar(text("SELECT count(*) FROM pg_prepared_statements")) == 0
    pooled.dispose()


def test_statements_that_the_session_has_forgotten_are_prepared_anew(
    engine: Engine, write: Write
) -> None:
    with engine.begin() as conn:  # as behind a proxy that goes on with another session
        conn.execute(text(FORGET))

    write(engine, *(to_cart(version) for version in range(4)))

    assert stored(engine) == [1, 2, 3, 4]


def test_a_server_that_is_away_is_unavailable(engine_with: EngineWith, write: Write) -> None:
    nowhere = engine_with(host="/nowhere")

    with pytest.raises(ServerUnavailableError):
        write(nowhere, to_cart(NEW_STREAM), patience_seconds=0.2)


def test_without_a_connection_of_the_engine_it_waits_for_one_as_long_as_it_may(
    engine: Engine,
) -> None:
    scarce = create_engine(engine.url, pool_size=1, max_overflow=0, pool_timeout=0.01)
    with EventWriter(store, scarce, patience_seconds=0.2) as writer, scarce.connect() as holder:
        with pytest.raises(ServerUnavailableError, match="QueuePool"):
            writer.append(**to_cart(NEW_STREAM))
        holder.close()
        assert writer.append(**to_cart(NEW_STREAM)).version == 1
    scarce.dispose()


def test_a_server_that_only_reads_is_refused(engine_with: EngineWith, write: Write) -> None:
    reading = engine_with(options="-c default_transaction_read_only=on")

    with pytest.raises(ReadOnlyServerError):
        write(reading, to_cart(NEW_STREAM))


def test_a_server_that_crashes_meanwhile_loses_and_doubles_nothing(
    postgres_server: PostgresServer,
) -> None:
    engine = create_engine(postgres_server.url)
    with engine.begin() as conn:
        upgrade(conn)
    ids = [uuid4() for _ in range(400)]

    with EventWriter(store, engine, connections=3, patience_seconds=60) as writer:

        def send(number: int) -> Appended:
            if number == 100:
                postgres_server.kill()
                postgres_server.start()
            return writer.append(CART, added(), expected_version=ANY, event_ids=[ids[number]])

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(send, range(len(ids))))
        with engine.begin() as conn:
            events = store.read_stream(conn, CART, limit=1000)

    assert [event.version for event in events] == list(range(1, len(ids) + 1))
    assert {event.event_id for event in events} == set(ids)
    engine.dispose()


def test_a_cancelled_append_has_the_unknown_outcome_as_its_cause(engine: Engine) -> None:
    async def run() -> asyncio.CancelledError:
        async_engine = create_async_engine(engine.url)
        async with AsyncEventWriter(store, async_engine) as writer:
            with engine.connect() as holder:
                store.append(holder, CART, added(), expected_version=NEW_STREAM)
                task = asyncio.create_task(writer.append(CART, added(), expected_version=ANY))
                await asyncio.to_thread(until_blocked_by, engine, holder)
                task.cancel()
                with pytest.raises(asyncio.CancelledError) as error:
                    await task
            after = await writer.append(CART, added(), expected_version=ANY)
            assert after.version == 1
        await async_engine.dispose()
        return error.value

    error = asyncio.run(run())

    unknown = find_unknown_outcome(error)
    assert unknown is not None
    assert len(unknown.ids) == 1


@pytest.mark.parametrize("options", [{"connections": 0}, {"patience_seconds": 0}])
def test_a_writer_that_could_not_write_is_refused(engine: Engine, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="0"):
        EventWriter(store, engine, **options)


def test_who_waits_for_a_connection_of_a_writer_that_is_closed_is_told(engine: Engine) -> None:
    writer = EventWriter(store, engine, connections=1, patience_seconds=600)
    writer.append(CART, [NewEvent("a.b", {})], expected_version=NEW_STREAM)

    def append() -> Appended:
        return writer.append(CART, [NewEvent("a.b", {})], expected_version=ANY)

    with ThreadPoolExecutor(3) as pool, engine.connect() as holder:
        holder.execute(text("SELECT FROM datapatterns.stream FOR UPDATE")).all()
        first = pool.submit(append)
        until_blocked_by(engine, holder)
        others = [pool.submit(append) for _ in range(2)]
        writer.close()
        for other in others:
            with pytest.raises(ValueError, match="closed"):
                other.result(30)
        holder.rollback()
        assert first.result(30).version == 2
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined] # of a QueuePool


def test_who_waits_for_an_async_writer_that_is_closed_is_told(engine: Engine) -> None:
    async def run() -> None:
        far = create_async_engine(engine.url)
        writer = AsyncEventWriter(store, far, connections=1, patience_seconds=600)
        with engine.connect() as holder:
            await writer.append(CART, [NewEvent("a.b", {})], expected_version=NEW_STREAM)
            holder.execute(text("SELECT FROM datapatterns.stream FOR UPDATE")).all()
            first, *others = [
                asyncio.create_task(
                    writer.append(CART, [NewEvent("a.b", {})], expected_version=ANY)
                )
                for _ in range(3)
            ]
            await asyncio.to_thread(until_blocked_by, engine, holder)
            await writer.close()
            for other in others:
                with pytest.raises(ValueError, match="closed"):
                    await asyncio.wait_for(other, 30)
            holder.rollback()
            assert (await asyncio.wait_for(first, 30)).version == 2
        await far.dispose()

    asyncio.run(run())


FORKED = """
import os, sys
from sqlalchemy import create_engine
from datapatterns.event_sourcing import ANY, EventStore, EventWriter, NewEvent, StreamId

engine = create_engine(sys.argv[1])
writer = EventWriter(EventStore(), engine, connections=1)

def append():
    return writer.append(StreamId("cart", "7"), [NewEvent("a.b", {})], expected_version=ANY).version

append()
ask, told = os.pipe()
child = os.fork()
if child == 0:
    engine.dispose(close=False)  # as SQLAlchemy asks for
    for _ in range(20):
        append()
    writer.close()
    os.write(told, b"x")
    os._exit(0)
for _ in range(20):
    append()
assert os.read(ask, 1) == b"x"
_, status = os.waitpid(child, 0)
append()  # nobody has closed it
print(status, len({line.conn.exec_driver_sql("SELECT pg_backend_pid()").scalar()
                   for line in writer._idle}))
"""


def test_a_forked_child_has_connections_of_its_own(engine: Engine) -> None:
    url = engine.url.render_as_string(hide_password=False)
    done = subprocess.run(  # noqa: S603 -- a program of this file
        [sys.executable, "-c", FORKED, url], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stderr, done.stdout) == ("", "0 1\n")
    with engine.begin() as conn:
        assert len(store.read_stream(conn, CART)) == 42
