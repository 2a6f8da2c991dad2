"""A prepared transaction holds the table of events for as long as it likes, through restarts."""

from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Connection, Engine, text

from datapatterns.errors import MigrationBlockedError
from datapatterns.event_sourcing import (
    ANY,
    EventStore,
    NewEvent,
    Partitioning,
    StreamId,
)
from datapatterns.testing import ManualClock
from tests.fixtures.partitions import partitions_themselves

store = EventStore()
partitioning = Partitioning(store, clock=ManualClock())

pytestmark = partitions_themselves


def write(conn: Connection, key: str, count: int = 1) -> None:
    events = [NewEvent("thing.happened", {"n": n}) for n in range(count)]
    store.append(conn, StreamId("s", key), events, expected_version=ANY)


def end(engine: Engine, verdict: str) -> None:
    alone = engine.execution_options(isolation_level="AUTOCOMMIT")
    with alone.connect() as conn:
        conn.exec_driver_sql(f"{verdict} PREPARED 'held'")


def keys(engine: Engine) -> list[str]:
    with engine.connect() as conn:
        return [event.stream.key for event in store.read_log(conn, limit=100).events]


@pytest.fixture
def prepare(engine: Engine) -> Iterator[Callable[[], None]]:
    """Leave an event in a prepared transaction."""
    with engine.connect() as conn:
        if conn.scalar(text("SHOW max_prepared_transactions")) == "0":
            pytest.skip("the server has no prepared transactions")

    def prepare() -> None:
        with engine.connect() as conn:
            write(conn, "held")
            conn.exec_driver_sql("PREPARE TRANSACTION 'held'")
            conn.commit()

    yield prepare
    with engine.connect() as conn:
        left = conn.scalar(text("SELECT count(*) FROM pg_prepared_xacts WHERE gid = 'held'"))
    if left:
        end(engine, "ROLLBACK")


@pytest.mark.parametrize("verdict", ["COMMIT", "ROLLBACK"])
def test_partitioning_gives_up_and_is_done_when_it_has_ended(
    engine: Engine, prepare: Callable[[], None], verdict: str
) -> None:
    prepare()

    with pytest.raises(MigrationBlockedError):
        partitioning.partition(engine, size=10, attempts=2, lock_seconds=0.01)
    with engine.begin() as conn:
        write(conn, "other")
    assert keys(engine) == []  # nobody reads past what may still be committed
    end(engine, verdict)

    assert partitioning.partition(engine, size=10)
    assert keys(engine) == [*(["held"] if verdict == "COMMIT" else []), "other"]


@pytest.mark.parametrize("verdict", ["COMMIT", "ROLLBACK"])
@pytest.mark.parametrize("step", ["undo", "extend", "drop_empty"])
def test_what_changes_partitions_gives_up_and_nothing_is_changed(
    engine: Engine, prepare: Callable[[], None], step: str, verdict: str
) -> None:
    with engine.begin() as conn:
        write(conn, "early", 3)
    assert partitioning.partition(engine, size=2)
    with engine.begin() as conn:
        write(conn, "early", 20)
    prepare()
    with engine.connect() as conn:
        before = partitioning.partitions(conn)
    change = getattr(partitioning, step)

    with engine.connect() as conn, pytest.raises(MigrationBlockedError):
        change(conn, lock_seconds=0.01)
    with engine.begin() as conn:
        assert partitioning.partitions(conn) == before
        write(conn, "other")
    end(engine, verdict)
    with engine.begin() as conn:
        change(conn)

    expected = [*["early"] * 23, *(["held"] if verdict == "COMMIT" else []), "other"]
    assert keys(engine) == expected
