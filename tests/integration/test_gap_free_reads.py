"""No reader skips an event, whatever writers do. The control shows that these tests can tell."""

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from threading import Event as Flag

import pytest
from sqlalchemy import Connection, Engine, text

from datapatterns.errors import CheckpointError, IsolationLevelError, VersionConflictError
from datapatterns.event_sourcing import (
    ANY,
    NEW_STREAM,
    START,
    EventStore,
    ImportedEvent,
    LogFilter,
    LogPage,
    NewEvent,
    Position,
    RecordedEvent,
    StreamId,
)

store = EventStore()


def happened(count: int = 1) -> list[NewEvent]:
    return [NewEvent("thing.happened", {"n": n}) for n in range(count)]


class Tail:
    """A reader that keeps one position, as a projection would."""

    def __init__(self, engine: Engine, *, limit: int = 500) -> None:
        self._engine = engine
        self._limit = limit
        self.checkpoint = START
        self.seen: list[RecordedEvent] = []

    def read(self) -> None:
        while True:
            with self._engine.begin() as conn:
                page = store.read_log(conn, self.checkpoint, limit=self._limit)
            assert page.checkpoint >= self.checkpoint
            self.seen += page.events
            self.checkpoint = page.checkpoint
            if page.caught_up:
                return


def everything(engine: Engine) -> list[RecordedEvent]:
    with engine.begin() as conn:
        return store.read_log(conn, limit=1_000_000).events


def write(conn: Connection, key: str, how: str) -> None:
    if how == "append":
        store.append(conn, StreamId("s", key), happened(), expected_version=ANY)
    elif how == "import":
        chunk = [ImportedEvent(StreamId("s", key), event) for event in happened()]
        store.import_events(conn, chunk, source=f"test {key}", chunk=1)
    else:
        conn.execute(
            text(
                "INSERT INTO datapatterns.event (stream_id, version, at, event_id, type_id, data)"
                " VALUES (99, 1, now(), gen_random_uuid(), 1, '{}')"
            )
        )


def read_across_a_late_commit(engine: Engine, how: str) -> tuple[int, int]:
    """Return how many events a tailing reader saw, and how many there are."""
    tail = Tail(engine)
    with engine.begin() as conn:
        write(conn, "early", "append")
    tail.read()
    with engine.connect() as late:
        write(late, "late", how)
        with engine.begin() as conn:
            write(conn, "quick", "append")
        tail.read()
        late.commit()
    tail.read()
    with engine.begin() as conn:
        return len(tail.seen), int(conn.scalar(text("SELECT count(*) FROM datapatterns.event")))


@pytest.fixture
def without_fence(engine: Engine) -> None:
    with engine.begin() as conn:
        conn.execute(text("DROP TRIGGER raise_fence ON datapatterns.event"))
        conn.execute(
            text(
                "CREATE OR REPLACE FUNCTION datapatterns.raise_fence_before_insert()"
                " RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'"
            )
        )


@pytest.mark.parametrize("how", ["append", "import"])
def test_a_late_commit_is_not_skipped(engine: Engine, how: str) -> None:
    seen, stored = read_across_a_late_commit(engine, how)

    assert seen == stored == 3


@pytest.mark.parametrize("how", ["append", "import"])
@pytest.mark.usefixtures("without_fence")
def test_without_the_fence_this_test_sees_the_skipped_event(engine: Engine, how: str) -> None:
    seen, stored = read_across_a_late_commit(engine, how)

    assert (seen, stored) == (2, 3)


def test_a_plain_insert_goes_through_the_fence_even_in_a_replica_session(engine: Engine) -> None:
    with engine.connect() as late:
        late.execute(text("SET LOCAL session_replication_role = replica"))
        write(late, "-", "insert")
        with engine.begin() as conn:
            write(conn, "quick", "append")
        with engine.begin() as conn:
            assert store.read_log(conn).events == []


def test_the_mark_waits_for_the_oldest_open_writer_and_only_for_writers(engine: Engine) -> None:
    marks = []
    readable = []
    with ExitStack() as stack:
        a, b, other = (stack.enter_context(engine.connect()) for _ in range(3))
        other.execute(text("CREATE TABLE elsewhere (x int)"))  # open to the end, holds nobody
        for conn, key in ((a, "a"), (b, "b")):
            write(conn, key, "append")
        with engine.begin() as conn:
            write(conn, "c", "append")

        for end in (None, a.commit, b.rollback):
            if end is not None:
                end()
            with engine.begin() as conn:
                marks.append(store.high_water_mark(conn))
                readable.append([event.stream.key for event in store.read_log(conn).events])

    assert marks == [0, 1, 3]
    assert readable == [[], ["a"], ["a", "c"]]


def test_rolled_back_positions_hold_nobody_back(engine: Engine) -> None:
    tail = Tail(engine)
    with engine.connect() as conn:
        write(conn, "undone", "append")
        conn.rollback()
    tail.read()

    assert (tail.checkpoint, tail.seen) == (1, [])


def test_a_savepoint_that_is_rolled_back_takes_its_fence_along(engine: Engine) -> None:
    with engine.connect() as late:
        with late.begin_nested() as savepoint:
            write(late, "undone", "append")
            savepoint.rollback()
        with engine.begin() as conn:
            write(conn, "quick", "append")
            held = store.blockers(conn)
        tail = Tail(engine)
        tail.read()
        # The fence is raised anew: it must guard what the same transaction draws now.
        write(late, "late", "append")
        with engine.begin() as conn:
            write(conn, "quick too", "append")
        tail.read()
        late.commit()
    tail.read()

    assert len(held) == 1  # the quick one itself
    assert [event.stream.key for event in tail.seen] == ["quick", "late", "quick too"]


def test_a_fence_raised_before_a_savepoint_outlives_its_rollback(engine: Engine) -> None:
    with engine.connect() as late:
        write(late, "first", "append")
        with late.begin_nested() as savepoint:
            write(late, "undone", "append")
            savepoint.rollback()
        with engine.begin() as conn:
            write(conn, "quick", "append")

        with engine.begin() as conn:
            assert store.high_water_mark(conn) == START


def test_one_fence_serves_a_transaction_of_many_appends(engine: Engine) -> None:
    with engine.connect() as conn:
        for key in range(50):
            write(conn, str(key), "append")

        assert len(store.blockers(conn)) == 1


def test_blockers_are_named_with_their_session_and_statement(engine: Engine) -> None:
    with engine.connect() as late, engine.begin() as conn:
        write(late, "late", "append")
        pid = late.scalar(text("SELECT pg_backend_pid()"))

        [blocker] = store.blockers(conn)

    assert (blocker.pid, blocker.state) == (pid, "idle in transaction")
    assert blocker.since is not None
    assert blocker.query is not None
    assert "pg_backend_pid" in blocker.query


def test_a_forgotten_prepared_transaction_is_named_too(engine: Engine) -> None:
    with engine.connect() as conn:
        if conn.scalar(text("SHOW max_prepared_transactions")) == "0":
            pytest.skip("this server has no prepared transactions")
        write(conn, "prepared", "append")
        conn.execute(text("PREPARE TRANSACTION 'forgotten'"))
        conn.commit()

    with engine.begin() as conn:
        [blocker] = store.blockers(conn)
        held = store.high_water_mark(conn)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.execute(text("COMMIT PREPARED 'forgotten'"))
    tail = Tail(engine)
    tail.read()

    assert (blocker.prepared_as, blocker.pid, blocker.query) == ("forgotten", None, None)
    assert (held, len(tail.seen)) == (START, 1)


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_an_older_snapshot_may_not_read_the_log_and_stays_usable(
    engine: Engine, level: str
) -> None:
    with engine.connect().execution_options(isolation_level=level) as conn:
        with pytest.raises(IsolationLevelError):
            store.read_log(conn)
        with pytest.raises(IsolationLevelError):
            store.high_water_mark(conn)

        assert conn.scalar(text("SELECT 1")) == 1


def test_a_checkpoint_beyond_the_log_is_refused(conn: Connection) -> None:
    write(conn, "a", "append")

    with pytest.raises(CheckpointError):
        store.read_log(conn, Position(2))


def test_a_page_without_matches_moves_the_checkpoint_on(engine: Engine) -> None:
    with engine.begin() as conn:
        for n in range(3):
            events = [NewEvent("common", {"n": i}) for i in range(9_000)]
            store.append(conn, StreamId("s", str(n)), events, expected_version=NEW_STREAM)
        store.append(conn, StreamId("s", "x"), [NewEvent("rare", {})], expected_version=ANY)

    pages: list[LogPage] = []
    checkpoint = START
    with engine.begin() as conn:
        while not pages or not pages[-1].caught_up:
            pages.append(store.read_log(conn, checkpoint, event_types=["rare"], limit=10))
            checkpoint = pages[-1].checkpoint

        assert store.read_log(conn, event_types=[]).events == []

    assert [len(page.events) for page in pages] == [0, 0, 1]
    assert [page.checkpoint for page in pages] == [10_000, 20_000, 27_001]


def test_a_page_that_is_full_goes_on_after_its_last_event(engine: Engine) -> None:
    with engine.begin() as conn:
        store.append(conn, StreamId("s", "x"), happened(4), expected_version=ANY)

        page = store.read_log(conn, limit=2)
        last = store.read_log(conn, page.checkpoint, limit=2)

    # The transaction's own fence lets nothing pass before it ends.
    assert (page.events, page.checkpoint, last.events) == ([], START, [])
    with engine.begin() as conn:
        page = store.read_log(conn, limit=2)
        last = store.read_log(conn, page.checkpoint, limit=2)
    assert (page.checkpoint, page.caught_up) == (2, False)
    assert (last.checkpoint, last.caught_up) == (4, True)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_page_of_no_events_is_refused(conn: Connection, limit: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        store.read_log(conn, limit=limit)


def random_writer(engine: Engine, seed: int) -> int:
    """Append, import, pause in the middle, roll back; return how many events were committed."""
    chance = random.Random(seed)  # noqa: S311 -- to be repeated, not to be secret
    committed = 0
    for round_ in range(40):
        with engine.connect() as conn:
            count = 0
            try:
                for key in sorted(chance.sample("abcdef", chance.choice([1, 1, 2, 3]))):
                    count += random_write(conn, chance, key, f"{seed} {round_} {key}")
            except VersionConflictError:
                continue
            if chance.random() < 0.2:
                continue
            if chance.random() < 0.3:
                conn.execute(text("SELECT pg_sleep(0.002)"))  # a slow writer, not a slow test
            conn.commit()
            committed += count
    return committed


def random_write(conn: Connection, chance: random.Random, key: str, source: str) -> int:
    stream = StreamId("s", key)
    if chance.random() < 0.2:
        chunk = [ImportedEvent(stream, event) for event in happened(20)]
        return store.import_events(conn, chunk, source=source, chunk=1)
    events = happened(chance.choice([1, 2, 7]))
    if chance.random() < 0.1:
        with conn.begin_nested() as savepoint:
            store.append(conn, stream, events, expected_version=ANY)
            savepoint.rollback()
        return 0
    store.append(conn, stream, events, expected_version=ANY)
    return len(events)


@pytest.fixture
def tails(engine: Engine) -> Iterator[list[Tail]]:
    """Two readers that read all the while."""
    tails = [Tail(engine), Tail(engine, limit=3)]
    stop = Flag()

    def follow(tail: Tail) -> None:
        while not stop.is_set():
            tail.read()

    with ThreadPoolExecutor(len(tails)) as pool:
        following = [pool.submit(follow, tail) for tail in tails]
        yield tails
        stop.set()
        for future in following:
            future.result(timeout=60)
    for tail in tails:
        tail.read()
    stored = everything(engine)
    for tail in tails:
        assert tail.seen == stored


def test_random_writers_lose_no_event_for_any_reader(engine: Engine, tails: list[Tail]) -> None:
    with ThreadPoolExecutor(6) as pool:
        committed = sum(pool.map(lambda seed: random_writer(engine, seed), range(6)))

    stored = everything(engine)
    assert len(stored) == committed > 0
    assert len({event.event_id for event in stored}) == committed
    for key in "abcdef":
        versions = [event.version for event in stored if event.stream.key == key]
        assert versions == list(range(1, len(versions) + 1))
    assert len(tails) == 2  # the fixture compares what they saw once they have caught up


def test_a_temporary_table_named_like_a_catalog_hides_no_fence(engine: Engine) -> None:
    with engine.connect() as writer, engine.connect() as reader:
        reader.execute(text("CREATE TEMP TABLE pg_locks (LIKE pg_catalog.pg_locks)"))
        write(writer, "open", "append")

        mark = store.high_water_mark(reader)

    assert mark == START


def test_a_long_gap_costs_a_filter_one_page(engine: Engine) -> None:
    with engine.begin() as conn:
        write(conn, "a", "append")
        conn.execute(text("SELECT setval('datapatterns.event_position', 3000000000)"))
        write(conn, "b", "append")
    with engine.begin() as conn:
        wanted = LogFilter(event_types=["none"])
        pages = [store.read_log(conn, matching=wanted)]
        pages.append(store.read_log(conn, pages[-1], matching=wanted))
        found = store.read_log(conn, pages[0], matching=LogFilter(categories=["s"])).events

    assert [page.checkpoint for page in pages] == [3_000_000_000, 3_000_000_001]
    assert [event.position for event in found] == [3_000_000_001]
    assert pages[-1].caught_up
