"""A block in the caller's transaction loads a state, and saves at its end what it has emitted."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import Connection, Engine
from sqlalchemy.ext.asyncio import create_async_engine

from datapatterns.errors import (
    IsolationLevelError,
    VersionConflictError,
)
from datapatterns.event_sourcing import (
    StreamId,
)
from datapatterns.event_sourcing.commands.stream_lock import lock_stream
from tests.fixtures.till_commands import SUBJECTS, store, versions
from tests.fixtures.tills import DECIDERS, Scanned, Till


@pytest.mark.parametrize("subject", SUBJECTS, ids=["aggregate", "decider"])
@pytest.mark.parametrize("lock", [False, True])
def test_a_block_saves_at_its_end(conn: Connection, subject: Any, lock: bool) -> None:  # noqa: ANN401, FBT001
    for product in (1, 2):
        with store.for_update(conn, subject, "7", lock=lock, metadata={"n": product}) as till:
            till.emit(Scanned(product, 5))
            assert till.unsaved
        assert not till.unsaved

    assert store.load(conn, Till, "7").lines == {1: 1, 2: 1}
    [first, second] = store.read_stream(conn, StreamId("till", "7"))
    assert (first.metadata, second.metadata) == ({"n": 1}, {"n": 2})


def test_a_block_that_raises_saves_nothing(conn: Connection) -> None:
    with (  # noqa: PT012 -- what raises is the block
        pytest.raises(ValueError, match="no"),
        store.for_update(conn, Till, "7") as till,
    ):
        till.emit(Scanned(1, 1))
        raise ValueError("no")

    assert store.load(conn, Till, "7").version == 0


def test_a_block_may_save_by_itself(conn: Connection) -> None:
    with store.for_update(conn, Till, "7") as till:
        till.emit(Scanned(1, 1))
        token = store.save(conn, till)
        with store.for_update(conn, Till, "7") as other:
            other.emit(Scanned(2, 2))

    assert store.load(conn, Till, "7").version == 2
    assert token < store.load(conn, Till, "7")._history.position  # noqa: SLF001 -- its place


@pytest.mark.parametrize("lock", [False, True])
def test_two_blocks_on_one_stream_do_not_lose_the_conflict(
    conn: Connection,
    lock: bool,  # noqa: FBT001 -- a parameter of the test
) -> None:
    store.append(conn, StreamId("till", "7"), [Scanned(1, 1)], expected_version=0)

    with (  # noqa: PT012 -- the conflict comes at the end of the outer block
        pytest.raises(VersionConflictError),
        store.for_update(conn, Till, "7", lock=lock) as outer,
    ):
        with store.for_update(conn, Till, "7", lock=lock) as inner:
            inner.emit(Scanned(2, 2))
        outer.emit(Scanned(3, 3))

    assert store.load(conn, Till, "7").lines == {1: 1, 2: 1}  # and the transaction is usable


def test_a_block_on_an_async_connection(engine: Engine) -> None:
    async def run() -> None:
        far = create_async_engine(engine.url)
        for product in (1, 2):
            async with (
                far.begin() as conn,
                store.for_update_async(conn, DECIDERS["AsModel"], "7", lock=True) as till,
            ):
                till.decide([Scanned(product, 5)])
        with pytest.raises(ValueError, match="no"):  # noqa: PT012 -- as above
            async with far.begin() as conn, store.for_update_async(conn, Till, "7") as other:
                other.emit(Scanned(3, 3))
                raise ValueError("no")
        await far.dispose()

    asyncio.run(run())
    assert versions(engine) == [1, 2]


def test_a_lock_says_how_far_the_stream_is_and_needs_a_transaction(engine: Engine) -> None:
    stream = StreamId("till", "7", "acme")
    with engine.begin() as conn:
        assert lock_stream(conn, stream, schema="datapatterns") == 0
        store.append(conn, stream, [Scanned(1, 1)] * 3, expected_version=0)
        assert lock_stream(conn, stream, schema="datapatterns") == 3
        assert store.read_stream(conn, stream)[-1].version == 3
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
    with autocommit.connect() as conn, pytest.raises(IsolationLevelError):
        lock_stream(conn, stream, schema="datapatterns")
