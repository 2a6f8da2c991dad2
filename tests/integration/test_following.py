"""Followers give each event once and in order, and wait at next to no cost."""

import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from sqlalchemy import Engine, event, text

from datapatterns.event_sourcing import (
    Follower,
    LogFilter,
    LogSignal,
    Pace,
    publish_mark,
)
from datapatterns.testing import ManualClock, wait_until
from tests.fixtures.followers import ENOUGH_SECONDS, both, following, store, write

FOR_EVER = Pace(seconds_min=3_600, seconds_max=3_600)


def random_writer(engine: Engine, seed: int) -> int:
    """Append, pause in the middle, roll back; return how many events were committed."""
    chance = random.Random(seed)  # noqa: S311 -- to be repeated, not to be secret
    committed = 0
    for _ in range(40):
        with engine.connect() as conn:
            count = chance.choice([1, 1, 3])
            for key in sorted(chance.sample("abcdef", count)):
                write(conn, key)
            if chance.random() < 0.2:
                with conn.begin_nested() as savepoint:
                    write(conn, "z")
                    savepoint.rollback()
            if chance.random() < 0.2:
                continue
            if chance.random() < 0.3:
                conn.execute(text("SELECT pg_sleep(0.002)"))  # a slow writer, not a slow test
            conn.commit()
            committed += count
    return committed


@both
def test_under_concurrent_writers_each_event_comes_once_and_in_order(
    engine: Engine, colour: str
) -> None:
    with following(colour, engine, limit=7) as at_work, ThreadPoolExecutor(4) as pool:
        committed = sum(pool.map(lambda seed: random_writer(engine, seed), range(4)))
        at_work.wait_for(committed)

    with engine.begin() as conn:
        assert at_work.seen == store.read_log(conn, limit=10_000).events
    assert len(at_work.seen) == committed
    checkpoints = [page.checkpoint for page in at_work.pages]
    assert checkpoints == sorted(set(checkpoints))


@both
def test_who_waits_for_ever_can_be_woken_and_stopped(engine: Engine, colour: str) -> None:
    with following(colour, engine, pace=FOR_EVER) as at_work:
        with engine.begin() as conn:
            write(conn)
        at_work.wake()
        at_work.wait_for(1)
        with engine.begin() as conn:
            write(conn)
        at_work.wake()
        at_work.wait_for(2)

    assert len(at_work.seen) == 2


def count_statements(engine: Engine) -> list[str]:
    sent: list[str] = []

    def note(_conn: object, _cursor: object, statement: str, *_: object) -> None:
        sent.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    event.listen(engine, "begin", lambda _conn: sent.append("BEGIN"))
    return sent


def test_an_idle_follower_sends_one_cheap_statement_every_quarter_of_a_second(
    engine: Engine,
) -> None:
    with engine.begin() as conn:
        write(conn)
    clock = ManualClock()
    sent = count_statements(engine)
    follower = Follower(store, engine, clock=clock)

    with closing(follower.pages()) as pages:
        next(pages)
        began = len(sent)

        def stop_after_a_minute(*_: object) -> None:
            if clock.monotonic() > 60:
                follower.stop()

        event.listen(engine, "before_cursor_execute", stop_after_a_minute)
        assert list(pages) == []

    idle = [statement for statement in sent[began:] if statement != "BEGIN"]
    assert ["last_value" in statement for statement in idle].count(False) == 1
    assert "pg_postmaster_start_time" in idle[1]  # the first look asks also who answers
    assert 235 <= len(idle) <= 255


def test_followers_that_share_a_signal_look_once(engine: Engine) -> None:
    clock = ManualClock()
    signal = LogSignal(store, engine, clock=clock)
    signal.look(0)  # the first on a connection asks also who answers
    clock.advance(0.25)
    sent = count_statements(engine)

    for _ in range(10):
        signal.look(0.25)
    once = len(sent)
    clock.advance(0.25)
    signal.look(0.25)

    assert (sent.count("BEGIN"), len(sent)) == (2, 2 * once)


def test_what_one_follower_sees_ends_the_pause_of_another(engine: Engine) -> None:
    signal = LogSignal(store, engine)
    with ThreadPoolExecutor(1) as pool:
        slow = Follower(store, engine, signal=signal, pace=FOR_EVER)
        page = pool.submit(next, slow.pages())
        with engine.begin() as conn:
            write(conn)
        wait_until(lambda: signal.look(0) == 1, deadline_seconds=ENOUGH_SECONDS)

        assert len(page.result(ENOUGH_SECONDS).events) == 1


def test_an_open_writer_holds_a_follower_back_until_it_commits(engine: Engine) -> None:
    with following("sync", engine) as at_work, engine.connect() as late:
        write(late, "late")
        with engine.begin() as conn:
            write(conn, "quick")
        late.commit()
        at_work.wait_for(2)

    assert [event.stream.key for event in at_work.seen] == ["late", "quick"]


def test_a_filter_moves_the_checkpoint_over_what_does_not_match(engine: Engine) -> None:
    with engine.begin() as conn:
        write(conn, event_type="other.thing")
        write(conn)
    wanted = LogFilter(event_types=["thing.happened"])
    with following("sync", engine, matching=wanted) as at_work:
        at_work.wait_for(1)
        with engine.begin() as conn:
            last = write(conn, event_type="other.thing")
        wait_until(lambda: at_work.pages[-1].checkpoint == last, deadline_seconds=ENOUGH_SECONDS)

    assert [event.event_type for event in at_work.seen] == ["thing.happened"]


@both
def test_a_follower_of_the_published_mark_sees_what_is_published(
    engine: Engine, colour: str
) -> None:
    with engine.begin() as conn:
        write(conn)
        publish_mark(conn, store)
    with following(colour, engine, published=True) as at_work:
        with engine.begin() as conn:
            publish_mark(conn, store)
        at_work.wait_for(1)

    assert len(at_work.seen) == 1
