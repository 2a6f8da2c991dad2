"""Readers in old snapshots skip nothing if they read up to the published mark, and only then."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, Engine, text

from datapatterns.errors import CheckpointError, IsolationLevelError, MarkUnpublishedError
from datapatterns.event_sourcing import (
    ANY,
    START,
    EventStore,
    LogFilter,
    NewEvent,
    Position,
    StreamId,
    TypedLog,
    publish_mark,
    published_mark,
)
from datapatterns.event_sourcing.events import LogPage
from datapatterns.event_sourcing.log import reading
from tests.fixtures.colours import Call

store = EventStore()
OLD = ["REPEATABLE READ", "SERIALIZABLE"]


def write(conn: Connection, key: str) -> None:
    store.append(conn, StreamId("s", key), [NewEvent("thing.happened", {})], expected_version=ANY)


def keys(page: LogPage) -> list[str]:
    return [event.stream.key for event in page.events]


def publish(engine: Engine) -> Position:
    with engine.begin() as conn:
        return publish_mark(conn, store)


@pytest.fixture
def old_reader(engine: Engine, request: pytest.FixtureRequest) -> Iterator[Connection]:
    """A transaction whose snapshot was taken while one writer had committed and one had not."""
    with engine.begin() as conn:
        write(conn, "before")
    publish(engine)
    with (
        engine.connect() as late,
        engine.connect().execution_options(isolation_level=request.param) as reader,
    ):
        write(late, "late")
        with engine.begin() as conn:
            write(conn, "quick")
        reader.execute(text("SELECT 1 FROM datapatterns.stream")).all()
        late.commit()
        publish(engine)
        yield reader


@pytest.mark.parametrize("old_reader", OLD, indirect=True)
def test_a_reader_in_an_old_snapshot_reads_up_to_the_mark_that_it_sees(
    old_reader: Connection,
) -> None:
    page = store.read_log(old_reader, published=True)
    old_reader.rollback()
    after = store.read_log(old_reader, page.checkpoint, published=True)

    assert (keys(page), page.checkpoint, page.caught_up) == (["before"], 1, True)
    assert (keys(after), after.checkpoint) == (["late", "quick"], 3)


@pytest.mark.parametrize("old_reader", OLD, indirect=True)
def test_with_the_mark_of_now_a_reader_in_an_old_snapshot_skips(
    engine: Engine, old_reader: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: what the refusal of other isolation levels is for."""
    with engine.begin() as conn:
        mark = store.high_water_mark(conn)
    monkeypatch.setattr(reading, "read_mark", lambda *_, **__: mark)

    page = store.read_log(old_reader)

    assert (keys(page), page.checkpoint) == (["before", "quick"], 3)  # and never "late"


@pytest.mark.parametrize("old_reader", OLD, indirect=True)
def test_a_page_that_was_read_elsewhere_is_not_gone_on_from_in_an_old_snapshot(
    engine: Engine, old_reader: Connection
) -> None:
    with engine.begin() as conn:
        page = store.read_log(conn, limit=1)
        log = TypedLog(store).read(conn, limit=1, matching=LogFilter(event_types=[]))
    assert not page.caught_up

    with pytest.raises(IsolationLevelError):
        store.read_log(old_reader, page)

    assert log.events == []
    with engine.begin() as conn:
        assert keys(store.read_log(conn, page)) == ["late", "quick"]


def test_without_a_published_mark_the_transaction_stays_usable(conn: Connection) -> None:
    assert published_mark(conn, store) is None
    with pytest.raises(MarkUnpublishedError, match="publish_mark"):
        store.read_log(conn, published=True)
    with pytest.raises(MarkUnpublishedError):
        store.high_water_mark(conn, published=True)

    assert conn.scalar(text("SELECT 1")) == 1


def test_what_is_published_is_the_mark_and_when(engine: Engine, call: Call) -> None:
    with engine.begin() as conn:
        write(conn, "a")
    with engine.connect() as late:
        write(late, "b")

        assert call(publish_mark, store) == 1

    found = call(published_mark, store)
    assert found is not None
    assert found.position == call(store.high_water_mark, published=True) == 1
    with engine.begin() as conn:
        assert conn.scalar(text("SELECT now()")) >= found.at


def test_a_mark_is_not_published_from_an_old_snapshot(engine: Engine) -> None:
    with engine.connect().execution_options(isolation_level="SERIALIZABLE") as conn:
        with pytest.raises(IsolationLevelError):
            publish_mark(conn, store)

        assert conn.scalar(text("SELECT 1")) == 1


def test_publishing_what_is_published_writes_nothing(engine: Engine) -> None:
    publish(engine)
    with engine.begin() as conn:
        publish_mark(conn, store)
        written = conn.scalar(text("SELECT pg_current_xact_id_if_assigned()"))
    with engine.begin() as conn:
        conn.execute(text("UPDATE datapatterns.mark SET at = at - interval '2 s'"))
        before = published_mark(conn, store)
        publish_mark(conn, store)
        after = published_mark(conn, store)

    assert written is None
    assert before is not None
    assert after is not None
    assert before.at < after.at


def test_a_published_mark_never_steps_back(engine: Engine) -> None:
    with engine.begin() as conn:
        write(conn, "a")
    publish(engine)
    with engine.begin() as conn:  # a mark that is lower, of a second ago
        conn.execute(text("UPDATE datapatterns.mark SET at = at - interval '2 s'"))
        write(conn, "own")
        write(conn, "own")
        conn.execute(text("UPDATE datapatterns.mark SET position = 3"))
        assert publish_mark(conn, store) == 1

        assert store.high_water_mark(conn, published=True) == 3


def test_the_commit_of_a_mark_is_flushed(engine: Engine) -> None:
    with engine.begin() as conn:
        conn.execute(text("SET LOCAL synchronous_commit = off"))
        publish_mark(conn, store)

        assert conn.scalar(text("SHOW synchronous_commit")) == "on"
    with engine.begin() as conn:
        conn.execute(text("SET LOCAL synchronous_commit = remote_apply"))
        write(conn, "a")
        publish_mark(conn, store)

        assert conn.scalar(text("SHOW synchronous_commit")) == "remote_apply"


def test_a_mark_or_a_checkpoint_beyond_the_log_is_refused(engine: Engine) -> None:
    with engine.begin() as conn:
        write(conn, "a")
    publish(engine)
    with engine.begin() as conn, pytest.raises(CheckpointError):
        store.read_log(conn, Position(2), published=True)
    with engine.begin() as conn:  # as after a restore without the sequence
        conn.execute(text("SELECT setval('datapatterns.event_position', 0)"))
        with pytest.raises(CheckpointError):
            store.read_log(conn, START, published=True)
        with pytest.raises(Exception, match="lies beyond the log"):
            publish_mark(conn, store)


def test_a_checkpoint_beyond_the_published_mark_waits_for_it(engine: Engine) -> None:
    publish(engine)
    with engine.begin() as conn:
        write(conn, "a")
    with engine.begin() as conn:
        checkpoint = store.read_log(conn).checkpoint

        page = store.read_log(conn, checkpoint, published=True)

    assert (page.events, page.checkpoint, page.caught_up) == ([], 1, True)
