"""On a real standby the log is read up to the published mark, and not otherwise."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError

from datapatterns.errors import ReadOnlyServerError
from datapatterns.event_sourcing import (
    ANY,
    EventStore,
    Follower,
    LogPage,
    MarkPublisher,
    NewEvent,
    Pace,
    Position,
    StreamId,
    final_until,
    publish_mark,
)
from datapatterns.testing import wait_until
from datapatterns.transactions import transaction
from tests.fixtures.standbys import Pair, replicated

store = EventStore()
ENOUGH_SECONDS = 60


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with replicated() as pair:
        yield pair


def write(conn: Connection, key: str) -> Position:
    events = [NewEvent("thing.happened", {})]
    return store.append(conn, StreamId("s", key), events, expected_version=ANY).position


def test_a_write_on_a_standby_is_refused_by_name(pair: Pair) -> None:
    with pytest.raises(ReadOnlyServerError) as refused, transaction(pair.standby) as conn:
        write(conn, "nowhere")

    assert refused.value.reason == "it is a standby"


def test_a_follower_on_a_standby_sees_what_is_published(pair: Pair) -> None:
    primary, standby, _ = pair
    with primary.begin() as conn:
        write(conn, "first")
    with primary.connect() as late:
        write(late, "late")
        with primary.begin() as conn:
            write(conn, "quick")
        with primary.begin() as conn:
            publish_mark(conn, store)
        late.commit()
    with primary.begin() as conn:
        mark = publish_mark(conn, store)

    follower = Follower(store, standby, published=True, pace=Pace(lost_seconds_max=0))
    seen: list[str] = []
    wait_until(lambda: is_published(standby, mark), deadline_seconds=ENOUGH_SECONDS)
    for page in follower.pages():
        seen += [found.stream.key for found in page.events]
        if page.checkpoint >= mark:
            follower.stop()

    assert seen == ["first", "late", "quick"]


def test_without_the_mark_a_standby_is_refused(pair: Pair) -> None:
    primary, standby, _ = pair
    with primary.begin() as conn:
        write(conn, "another")
    with primary.begin() as conn:
        mark = publish_mark(conn, store)
        page = store.read_log(conn, limit=1)
    wait_until(lambda: is_published(standby, mark), deadline_seconds=ENOUGH_SECONDS)

    for after in (Position(0), page):
        with standby.connect() as conn, pytest.raises(DBAPIError, match="a standby does not see"):
            store.read_log(conn, after)
    with standby.connect() as conn:
        assert final_until(conn, store) is None
        assert store.read_log(conn, published=True).checkpoint == mark


def test_a_checkpoint_of_the_primary_waits_until_a_standby_has_come_so_far(
    pair: Pair,
) -> None:
    primary, standby, _ = pair
    with primary.begin() as conn:
        ahead = write(conn, "ahead")

    with standby.connect() as conn:
        page: LogPage = store.read_log(conn, Position(ahead + 1_000), published=True)

    assert (page.events, page.checkpoint, page.caught_up) == ([], ahead + 1_000, True)


def is_published(standby: Engine, mark: Position) -> bool:
    with standby.connect() as conn:
        try:
            return store.high_water_mark(conn, published=True) >= mark
        except Exception:  # noqa: BLE001 -- it has not replayed even the table
            return False


def write_and_publish(engine: Engine, key: str) -> Position:
    with engine.begin() as conn:
        write(conn, key)
    with engine.begin() as conn:
        return publish_mark(conn, store)


def test_a_follower_goes_on_when_its_standby_is_promoted() -> None:
    with replicated() as (primary, standby, server), ThreadPoolExecutor(1) as pool:
        mark = write_and_publish(primary, "before")
        wait_until(lambda: is_published(standby, mark), deadline_seconds=ENOUGH_SECONDS)
        follower = Follower(store, standby, published=True)
        seen: list[str] = []

        def follow() -> None:
            for page in follower.pages():
                seen.extend(found.stream.key for found in page.events)

        following = pool.submit(follow)
        try:
            wait_until(lambda: seen or following.done(), deadline_seconds=ENOUGH_SECONDS)
            with primary.begin() as conn:
                write(conn, "never published")
            server.kill()
            with standby.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
                assert conn.scalar(text("SELECT pg_promote(wait => true)"))
            write_and_publish(standby, "after")
            wait_until(
                lambda: seen[-1] == "after" or following.done(), deadline_seconds=ENOUGH_SECONDS
            )
        finally:
            follower.stop()
        following.result(ENOUGH_SECONDS)
        with standby.connect() as conn:
            stored = [found.stream.key for found in store.read_log(conn).events]

    # Whether that event came across in time is a matter of luck.
    assert stored in (["before", "after"], ["before", "never published", "after"])
    assert seen == stored


def test_a_publisher_that_asks_for_a_primary_waits_until_there_is_one_again() -> None:
    """And the control: one that takes what answers finds the standby too early."""
    with replicated() as (primary, standby, server), ThreadPoolExecutor(1) as pool:
        mark = write_and_publish(primary, "before")
        wait_until(lambda: is_published(standby, mark), deadline_seconds=ENOUGH_SECONDS)
        places = [url.query for url in (primary.url, standby.url)]
        both = primary.url.update_query_dict(
            {what: ",".join(str(place[what]) for place in places) for what in ("host", "port")}
        )
        asking, taking = (
            create_engine(both.update_query_dict({"target_session_attrs": wanted}))
            for wanted in ("read-write", "any")
        )
        failures: list[object] = []
        event.listen(asking, "handle_error", failures.append)
        publisher = MarkPublisher(store, asking, seconds=0.001)
        publishing = pool.submit(publisher.run)
        try:
            server.kill()
            wait_until(lambda: failures or publishing.done(), deadline_seconds=ENOUGH_SECONDS)
            with pytest.raises(DBAPIError, match="does not see the fences"):
                MarkPublisher(store, taking).run()
            with standby.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
                assert conn.scalar(text("SELECT pg_promote(wait => true)"))
            with standby.begin() as conn:
                after = write(conn, "after")
            wait_until(
                lambda: is_published(standby, after) or publishing.done(),
                deadline_seconds=ENOUGH_SECONDS,
            )
        finally:
            publisher.stop()
        publishing.result(ENOUGH_SECONDS)
        for engine in (asking, taking):
            engine.dispose()
