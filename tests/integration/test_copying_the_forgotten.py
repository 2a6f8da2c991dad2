"""Whoever is forgotten while a stream with their data is copied does not end the copy."""

from collections.abc import Callable

import pytest
from sqlalchemy import Connection, Engine

from datapatterns.errors import StreamCopyError
from datapatterns.event_sourcing import EventStore, RecordedEvent, StreamCopy, StreamId, Subjects
from datapatterns.event_sourcing.evolution.transforming import unchanged
from tests.fixtures.people import Registered, store
from tests.fixtures.written_people import read, written

OLD = StreamId("customer", "ann")


def registered(engine: Engine, copy: StreamCopy) -> None:
    """Write about Ann, and copy it."""
    with engine.begin() as conn:
        written(conn, OLD, Registered("ann", "ann@home"))
        copy.copy_page(conn)


def before_the_source_is_read_again(
    monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], object]
) -> None:
    """Do something once, when the end of the target has been read."""
    read_stream = EventStore.read_stream

    def reading(
        by: EventStore,
        conn: Connection,
        stream: StreamId,
        *,
        after_version: int = 0,
        limit: int = 500,
        backwards: bool = False,
    ) -> list[RecordedEvent]:
        events = read_stream(
            by, conn, stream, after_version=after_version, limit=limit, backwards=backwards
        )
        if backwards:
            monkeypatch.undo()
            meanwhile()
        return events

    monkeypatch.setattr(EventStore, "read_stream", reading)


def test_who_is_forgotten_between_the_reads_of_target_and_source_ends_no_copy(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = StreamCopy(store, OLD, StreamId("customer", "new"), unchanged)
    registered(engine, copy)

    def forget() -> None:
        with engine.begin() as other:
            Subjects(store).forget(other, "ann")

    with engine.begin() as conn:
        written(conn, OLD, Registered("bob", "bob@home"))
        before_the_source_is_read_again(monkeypatch, forget)
        copy.copy_page(conn)

    with engine.begin() as conn:
        assert read(conn, copy.target) == read(conn, OLD)
        assert len(read(conn, OLD)) == 2


def test_who_is_forgotten_in_the_tenant_of_the_source_alone_is_named_as_a_reason(
    engine: Engine,
) -> None:
    copy = StreamCopy(store, OLD, StreamId("customer", "ann", "elsewhere"), unchanged)
    registered(engine, copy)

    with engine.begin() as conn:
        Subjects(store).forget(conn, "ann")

    with engine.begin() as conn, pytest.raises(StreamCopyError, match="somebody was forgotten"):
        copy.copy_page(conn)
