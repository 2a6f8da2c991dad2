"""Whoever appends or copies while a stream is copied loses nothing, and nothing is doubled."""

import itertools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from threading import Event

import pytest
from sqlalchemy import Connection, Engine, text

from datapatterns.errors import (
    StreamArchivedError,
    VersionConflictError,
)
from datapatterns.event_sourcing import (
    CopyProgress,
    EventTypes,
    NewEvent,
    RecordedEvent,
    StreamCopy,
    StreamId,
)
from datapatterns.event_sourcing.evolution import copying
from datapatterns.event_sourcing.evolution.transforming import Transform, copies_of
from datapatterns.failpoints import armed
from tests.fixtures.blocking import until_blocked_by
from tests.fixtures.copied_baskets import (
    COPY,
    OLD,
    STORE,
    append,
    products,
)

Meanwhile = Callable[[Future[None], Connection], object]


def finish_with_a_rival(
    engine: Engine, meanwhile: Meanwhile, *, end_source: bool
) -> tuple[Future[None], list[str], list[str]]:
    """Finish a copy while another connection appends; return what became of it and the streams."""
    with engine.begin() as conn:
        append(conn, 1, 1)
    rivals: list[Future[None]] = []

    def rival() -> None:
        with engine.begin() as other:
            append(other, 1)

    with ThreadPoolExecutor(1) as pool:
        with engine.begin() as conn:

            def begin_rival() -> None:
                rivals.append(pool.submit(rival))
                meanwhile(rivals[0], conn)

            with armed("copy.page-appended", begin_rival):
                assert COPY.finish(conn, end_source=end_source).finished
        wait(rivals, timeout=30)
    with engine.begin() as conn:
        return rivals[0], products(conn, OLD), products(conn)


def test_nobody_appends_to_the_source_between_the_last_page_and_its_end(engine: Engine) -> None:
    rival, old, new = finish_with_a_rival(
        engine, lambda _rival, finishing: until_blocked_by(engine, finishing), end_source=True
    )

    assert isinstance(rival.exception(), StreamArchivedError)
    assert new == old == ["p0", "p1"]


def test_without_the_lock_an_event_would_be_lost(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "_lock", copying._stream)  # noqa: SLF001 -- the control

    def before_the_commit(rival: Future[None], _conn: Connection) -> None:
        rival.result(timeout=30)

    _, old, new = finish_with_a_rival(engine, before_the_commit, end_source=False)
    assert (len(old), len(new)) == (3, 2)

    # Where the source ends, its end is a guard, too.
    monkeypatch.setattr(StreamCopy, "copy_page", lambda *_args, **_options: CopyProgress(2, 2))
    monkeypatch.setattr(copying, "_lock", lambda _schema: text("SELECT 2 AS version"))
    with engine.begin() as conn, pytest.raises(VersionConflictError):
        COPY.finish(conn, end_source=True)


def test_another_copier_in_the_same_moment_doubles_nothing(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with engine.begin() as conn:
        append(conn, 1, 1, 1)
    rivals = [3]

    def after_a_rival(
        event: RecordedEvent, transform: Transform, target: StreamId, types: EventTypes
    ) -> list[NewEvent]:
        while rivals:  # between reading the target and appending to it
            limit = rivals.pop()
            with engine.begin() as other:
                COPY.copy_page(other, limit=limit)
        return copies_of(event, transform, target, types)

    monkeypatch.setattr(copying, "copies_of", after_a_rival)
    with engine.begin() as conn:
        page = COPY.copy_page(conn, limit=2)
        assert (page.read, page.appended) == (2, 0)
        assert COPY.copy_page(conn, page).caught_up
        assert products(conn) == ["p0", "p1", "p2"]


def test_another_copier_that_cuts_other_pages_is_a_conflict(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with engine.begin() as conn:
        append(conn, 1, 1, 1)
    begin = StreamCopy._begin  # noqa: SLF001 -- after it another one is faster

    def then_a_rival(
        self: StreamCopy, conn: Connection, after: CopyProgress | None, first: int
    ) -> CopyProgress:
        found = begin(self, conn, after, first)
        monkeypatch.undo()
        with engine.begin() as other:
            COPY.copy_page(other, limit=1)
        return found

    monkeypatch.setattr(StreamCopy, "_begin", then_a_rival)
    with engine.begin() as conn:
        with pytest.raises(VersionConflictError):
            COPY.copy_page(conn, limit=2)
        assert COPY.copy_page(conn).caught_up
        assert products(conn) == ["p0", "p1", "p2"]


def write_until_ended(engine: Engine, warm: Event) -> int:
    """Append until the source has ended; return how many appends were acknowledged."""
    for count in itertools.count():
        try:
            with engine.begin() as conn:
                append(conn, count % 3)
        except StreamArchivedError:
            return count
        if count == 5:
            warm.set()
    raise AssertionError


def test_writers_that_go_on_during_the_copy_lose_nothing(engine: Engine) -> None:
    with engine.begin() as conn:
        append(conn, 1)
    warm = Event()
    with ThreadPoolExecutor(3) as pool:
        writers = [pool.submit(write_until_ended, engine, warm) for _ in range(3)]
        assert warm.wait(timeout=30)
        progress: CopyProgress | None = None
        while progress is None or not progress.finished:
            with engine.begin() as conn:
                progress = COPY.copy_page(conn, progress, limit=7)
            if progress.caught_up or progress.source_version > 60:
                with engine.begin() as conn:
                    progress = COPY.finish(conn, progress, end_source=True, limit=50)
        acknowledged = 1 + sum(future.result(timeout=30) for future in writers)

    with engine.begin() as conn:
        originals = STORE.read_stream(conn, OLD, limit=100_000)
        made = [[event.data["product"]] * event.data["quantity"] for event in originals]
        assert len(originals) == acknowledged
        assert products(conn) == [product for part in made for product in part]
