"""States of a tenant: loaded, saved, locked, snapshotted and listed apart from those of others."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import Connection, Engine
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from datapatterns.event_sourcing import (
    NEW_STREAM,
    Aggregate,
    AsyncSnapshotWriter,
    CommandPolicy,
    EventStore,
    SnapshotWriter,
    StreamId,
    applies,
)
from tests.fixtures.tills import DECIDERS, Scanned, Till, types

store = EventStore(types=types)
SUBJECTS: list[Any] = [Till, DECIDERS["AsStruct"]]
ACME = StreamId("till", "7", "acme")
NAMELESS = StreamId("till", "7")


def scan(subject: Any, times: int = 1) -> Any:  # noqa: ANN401 -- a command to either
    def command(till: Till) -> None:
        for product in range(times):
            till.emit(Scanned(product, 5))

    return command if subject is Till else [Scanned(product, 5) for product in range(times)]


@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_key_is_another_state_for_each_tenant(conn: Connection, subject: Any) -> None:  # noqa: ANN401
    store.append(conn, NAMELESS, [Scanned(1, 1)], expected_version=NEW_STREAM)
    store.append(conn, ACME, [Scanned(1, 1), Scanned(2, 2)], expected_version=NEW_STREAM)

    assert store.load(conn, subject, "7").version == 1
    loaded = store.load(conn, subject, "7", tenant="acme")
    assert (loaded.stream, loaded.version) == (ACME, 2)
    assert store.load(conn, subject, "7", tenant="acme", version=1).version == 1
    assert store.load(conn, subject, "7", tenant="other").version == 0
    many = store.load_many(conn, subject, ["8", "7"], tenant="acme")
    assert [(each.stream.tenant, each.version) for each in many] == [("acme", 0), ("acme", 2)]


def test_a_key_is_another_state_in_each_category(conn: Connection) -> None:
    for category, number in (("shop", 1), ("till", 2), ("zoo", 3)):
        events = [Scanned(1, 1)] * number
        store.append(conn, StreamId(category, "7"), events, expected_version=NEW_STREAM)

    assert store.load(conn, Till, "7").version == 2
    assert store.load(conn, Till, "7", version=1).version == 1
    assert [each.version for each in store.load_many(conn, Till, ["8", "7"])] == [0, 2]


def test_what_it_emits_goes_to_its_tenant(conn: Connection) -> None:
    till = Till("7", tenant="acme")
    till.emit(Scanned(1, 1))
    store.save(conn, till)

    assert [e.version for e in store.read_stream(conn, ACME)] == [1]
    assert store.read_stream(conn, NAMELESS) == []


def test_keys_are_listed_by_tenant(conn: Connection) -> None:
    store.append(conn, ACME, [Scanned(1, 1)], expected_version=NEW_STREAM)
    store.append(conn, StreamId("till", "8"), [Scanned(1, 1)], expected_version=NEW_STREAM)

    assert store.list_keys(conn, Till) == ["8"]
    assert store.list_keys(conn, Till, tenant="acme") == ["7"]
    with pytest.raises(ValueError, match="U\\+0000"):
        store.list_keys(conn, Till, tenant="\0")


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("lock", [False, True])
def test_commands_reach_the_tenant_and_its_snapshots(
    engine: Engine,
    subject: Any,  # noqa: ANN401
    lock: bool,  # noqa: FBT001 -- a parameter of the test
) -> None:
    with SnapshotWriter(store, engine) as writer:
        policy = CommandPolicy(lock=lock, snapshots=writer)
        handled = store.handle(engine, subject, "7", scan(subject, 6), tenant="acme", policy=policy)
        assert handled.sourced.stream == ACME
        assert writer.flush(timeout_seconds=30)
        with engine.begin() as conn:
            store.for_update(conn, subject, "7", tenant="acme", lock=lock, snapshots=writer)
        assert writer.written == 1
    with engine.begin() as conn:
        assert store.load(conn, subject, "7").version == 0
        loaded = store.load(conn, subject, "7", tenant="acme")
        assert loaded._history.snapshot_version == 6  # noqa: SLF001 -- where the load began
        assert not store.save_snapshot(conn, loaded)  # it is there already


def test_a_block_of_a_tenant(engine: Engine) -> None:
    async def run() -> None:
        far = create_async_engine(engine.url)
        async with AsyncSnapshotWriter(store, far) as writer:
            policy = CommandPolicy(snapshots=writer)
            command = scan(Till, 6)
            await store.handle_async(far, Till, "7", command, tenant="acme", policy=policy)
            async with (
                far.begin() as conn,
                store.for_update_async(conn, Till, "7", tenant="acme", lock=True) as till,
            ):
                till.emit(Scanned(9, 9))
            assert await writer.flush(timeout_seconds=30)
            assert writer.written == 1
        await far.dispose()

    asyncio.run(run())
    with engine.begin() as conn, store.for_update(conn, Till, "7", tenant="acme") as till:
        assert till.version == 7
        till.emit(Scanned(9, 9))
    with engine.begin() as conn:
        assert store.read_stream(conn, ACME)[-1].version == 8
        assert store.read_stream(conn, NAMELESS) == []


def test_a_unit_keeps_tenants_apart(engine: Engine) -> None:
    with Session(engine) as session:
        unit = store.unit(session)
        of_acme, nameless = unit.load(Till, "7", tenant="acme"), unit.load(Till, "7")
        assert unit.load(Till, "7", tenant="acme") is of_acme
        of_acme.emit(Scanned(1, 1))
        of_acme.emit(Scanned(2, 2))
        nameless.emit(Scanned(3, 3))
        session.commit()

    with engine.begin() as conn:
        assert len(store.read_stream(conn, ACME)) == 2
        assert len(store.read_stream(conn, NAMELESS)) == 1


def test_a_class_that_does_not_know_of_tenants_goes_on_without(conn: Connection) -> None:
    class Old(Aggregate, category="old"):
        total = 0

        def __init__(self, key: str) -> None:
            super().__init__(key)

        @applies
        def _(self, e: Scanned) -> None:
            self.total += e.cents

    assert store.load(conn, Old, "7").version == 0
    with pytest.raises(TypeError, match="tenant"):
        store.load(conn, Old, "7", tenant="acme")
