"""Exports and imports of events as mypy sees them: checked, never run."""

from pathlib import Path
from typing import assert_type
from uuid import UUID

from sqlalchemy import Connection, Engine

from datapatterns.errors import EventLineError
from datapatterns.event_sourcing import (
    EventExport,
    EventsourcingChecked,
    EventsourcingImport,
    EventsourcingImported,
    EventsourcingMapping,
    EventStore,
    Exported,
    LinesChecked,
    LinesImport,
    LinesImported,
    LogFilter,
    Position,
    Searched,
    Snapshots,
    StoredEvent,
    StoredEvents,
    StoredPage,
    StoredSnapshot,
    StreamId,
    export_to_file,
    open_lines,
)

store = EventStore()
stored = StoredEvents(store)
export = EventExport(stored, LogFilter(categories=["cart"]), after=Position(7))


def copy(engine: Engine, elsewhere: Engine, path: Path) -> None:
    assert_type(export_to_file(engine, path, export, proceed=True), Exported)
    with open_lines(path) as file:
        assert_type(LinesImport(store).check(file), LinesChecked)
    with open_lines(path) as file:
        assert_type(LinesImport(store, source="shop").run(elsewhere, file), LinesImported)
    LinesImport(store, "shop", "no")  # type: ignore[arg-type]


def keep(conn: Connection) -> None:
    assert_type(Snapshots(store).list(conn, StreamId("cart", "7")), list[StoredSnapshot])
    assert_type(Snapshots(store).drop_outdated(conn, limit=10), int)


def move(old: Engine, new: Engine) -> None:
    moving = EventsourcingImport(
        store, "kennel_events", mapping=EventsourcingMapping({"a:B": None})
    )
    assert_type(moving.check(old), EventsourcingChecked)
    assert_type(moving.run(old, new, report=lambda done: done.read), EventsourcingImported)
    EventsourcingMapping(types={"a:B": 1})  # type: ignore[dict-item]


def look(conn: Connection, problem: EventLineError) -> None:
    assert_type(stored.find(conn, UUID(int=1)), StoredEvent | None)
    stored.find(conn, 1, report=lambda done: assert_type(done, Searched))
    assert_type(stored.stream(conn, StreamId("cart", "7")), list[StoredEvent])
    assert_type(stored.page(conn, limit=3), StoredPage)
    assert_type(problem.line, int)
