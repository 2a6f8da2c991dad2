"""`datapatterns events snapshot|archive|forget`, as people and programs run it."""

from pathlib import Path

import pytest
from sqlalchemy import URL, Engine, text

from datapatterns.errors import StreamArchivedError
from datapatterns.event_sourcing import ANY, Archive, EventStore, NewEvent, StreamId
from datapatterns_cli import events_keeping
from tests.fixtures.commands import Run, rows
from tests.fixtures.doors import declare_anew
from tests.fixtures.empty_database import shown

pytestmark = pytest.mark.postgres
store = EventStore()
BASKET = StreamId("shelf_basket", "1")

APP = """
from dataclasses import dataclass
from datapatterns import DataLayer
from datapatterns.event_sourcing import Aggregate, Decider, applies, event, every

layer = DataLayer({url!r})


@event("shelf.put")
@dataclass(frozen=True)
class Put:
    thing: str


class Basket{number}(Aggregate, category="shelf_basket", snapshot=every(1)):
    things = 0

    @applies
    def _(self, e: Put) -> None:
        self.things += {step}


def count(state: int, e: Put) -> int:
    return state + {step}


counter = Decider("shelf_counter", 0, lambda command, state: [], count, snapshot=every(1))
"""


@pytest.fixture
def app(database_url: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    name = f"shelf_{tmp_path.name}"
    code = APP.format(url=shown(database_url), number=abs(hash(name)), step=1)
    (tmp_path / f"{name}.py").write_text(code)
    declare_anew(monkeypatch, tmp_path)
    declared_here = events_keeping.declared_aggregates
    monkeypatch.setattr(
        events_keeping,
        "declared_aggregates",
        lambda: [one for one in declared_here() if one.__module__ == name],
    )
    return ("--app", f"{name}:layer")


def put(engine: Engine, count: int = 2) -> None:
    with engine.begin() as conn:
        events = [NewEvent("shelf.put", {"thing": str(n)}) for n in range(count)]
        store.append(conn, BASKET, events, expected_version=ANY)


def of_class(app: tuple[str, str]) -> str:
    """Tests share a process, so there are as many Baskets as tests."""
    module = app[1].partition(":")[0]
    return f"{module}:Basket{abs(hash(module))}"


def test_snapshots_are_taken_listed_and_dropped(
    run: Run, engine: Engine, app: tuple[str, str], at: tuple[str, str]
) -> None:
    put(engine)
    stream = ("shelf_basket", "1")

    none = run("events", "snapshot", "list", *stream, *at)
    first = run("events", "snapshot", "take", *stream, "--of", of_class(app), "--json", *app)
    again = run("events", "snapshot", "take", *stream, "--of", of_class(app), "--json", *app)
    empty = run(
        *("events", "snapshot", "take", "shelf_basket", "none", "--of", of_class(app)),
        *("--json", *app),
    )
    listed = run("events", "snapshot", "list", *stream, "--json", *app)
    would = run("events", "snapshot", "drop", *stream, "--dry-run", "--json", *at)
    dropped = run("events", "snapshot", "drop", *stream, "--json", *at)

    assert none.err == "there are no snapshots\n"
    assert rows(first) == [{"version": 2, "taken": True}]
    assert rows(again) == [{"version": 2, "taken": False}]
    assert rows(empty) == [{"version": 0, "taken": False}]
    [found] = rows(listed)
    assert (found["version"], found["current"], found["codec"]) == (2, True, 0)
    assert (rows(would), rows(dropped)) == ([{"would_drop": 1}], [{"dropped": 1}])
    assert run("events", "snapshot", "list", *stream, *at).out == ""


def test_only_snapshots_that_aggregates_and_deciders_of_the_app_cannot_use_are_purged(
    run: Run, engine: Engine, app: tuple[str, str]
) -> None:
    put(engine)
    run("events", "snapshot", "take", "shelf_basket", "1", "--of", of_class(app), *app)
    with engine.begin() as conn:  # as an older release and another program have left them
        conn.execute(
            text(
                "INSERT INTO datapatterns.snapshot"
                " (stream_id, aggregate, fingerprint, version, position, at, state)"
                " SELECT stream_id, name, print, version, position, at, state"
                " FROM datapatterns.snapshot,"
                " (VALUES ('old', NULL), ('older', NULL), ('old', 'Foreign'),"
                " ('old', 'shelf_counter')) x (p, n),"
                " LATERAL (SELECT coalesce(n, aggregate), p::bytea) y (name, print)"
            )
        )

    some = run("events", "snapshot", "list", "shelf_basket", "1", "--limit", "4", "--json", *app)
    would = run("events", "snapshot", "purge", "--dry-run", "--json", *app)
    purged = run("events", "snapshot", "purge", "--json", *app)
    left = run("events", "snapshot", "list", "shelf_basket", "1", "--json", *app)

    assert (len(rows(some)), "more than these 4: give a higher --limit" in some.err) == (4, True)
    assert (rows(would), rows(purged)) == ([{"would_delete": 3}], [{"deleted": 3}])
    assert sorted(str(one["current"]) for one in rows(left)) == ["None", "True"]


def test_an_aggregate_that_is_not_there_or_ambiguous_is_named(
    run: Run, app: tuple[str, str], at: tuple[str, str]
) -> None:
    absent = run("events", "snapshot", "take", "no_such", "1", *app)
    wrong = run("events", "snapshot", "take", "shelf_basket", "1", "--of", "no.such:x", *at)
    bad = run("events", "snapshot", "list", "no stream", "1", *at)

    assert (absent.code, "0 Aggregates with snapshots" in absent.err) == (2, True)
    assert (wrong.code, "there is no module 'no'" in wrong.err) == (2, True)
    assert (bad.code, "cannot name a category" in bad.err) == (2, True)


def test_a_stream_is_stopped_moved_shown_and_brought_back(
    run: Run, engine: Engine, at: tuple[str, str]
) -> None:
    put(engine)
    stream = ("shelf_basket", "1")

    would_stop = run("events", "archive", "stop", *stream, "--dry-run", "--json", *at)
    nothing = run("events", "archive", "move", "--dry-run", *at)
    stopped = run("events", "archive", "stop", *stream, "--json", *at)
    with pytest.raises(StreamArchivedError):
        put(engine)
    would_move = run("events", "archive", "move", "--dry-run", "--json", *at)
    moved = run("events", "archive", "move", "--batch", "1", "--json", *at)
    seen = run("events", "stream", *stream, "--json", *at)
    restored = run("events", "archive", "restore", *stream, "--json", *at)
    absent = run("events", "archive", "restore", "shelf_basket", "9", *at)
    missing = run("events", "archive", "stop", "shelf_basket", "9", *at)

    assert rows(would_stop) == [{"would_stop_at": 2}]
    assert nothing.err == "there is nothing to move\n"
    assert (rows(stopped), rows(moved)) == ([{"stopped_at": 2}], [{"moved": 2}])
    assert rows(would_move) == [{"stream": "shelf_basket-1"}]
    assert [one["version"] for one in rows(seen)] == [1, 2]
    assert rows(restored) == [{"stream": "shelf_basket-1", "open": True}]
    assert (absent.code, "has no events" in absent.err) == (2, True)
    assert (missing.code, "has no events" in missing.err) == (2, True)
    put(engine)


def test_all_streams_that_would_be_moved_are_listed(
    run: Run, engine: Engine, at: tuple[str, str]
) -> None:
    archive = Archive(store)
    streams = [StreamId("shelf_basket", f"m{n}") for n in range(120)]
    with engine.begin() as conn:
        for stream in streams:
            store.append(conn, stream, [NewEvent("shelf.put", {})], expected_version=ANY)
            archive.stop(conn, stream)

    would_move = run("events", "archive", "move", "--dry-run", "--json", *at)

    assert {row["stream"] for row in rows(would_move)} == {str(stream) for stream in streams}


def test_a_dry_run_takes_no_snapshot_and_brings_no_stream_back(
    run: Run, engine: Engine, app: tuple[str, str], at: tuple[str, str]
) -> None:
    put(engine)
    stream = ("shelf_basket", "1")
    of = ("--of", of_class(app))

    would_take = run("events", "snapshot", "take", *stream, *of, "--dry-run", "--json", *app)
    with engine.connect() as conn:
        taken = conn.scalar(text("SELECT count(*) FROM datapatterns.snapshot"))
    is_open = run("events", "archive", "restore", *stream, "--dry-run", "--json", *at)
    run("events", "archive", "stop", *stream, *at)
    would_restore = run("events", "archive", "restore", *stream, "--dry-run", "--json", *at)

    assert rows(would_take) == [{"version": 2, "would_take": True}]
    assert taken == 0
    assert rows(is_open) == [{"stream": "shelf_basket-1", "would_restore": False}]
    assert rows(would_restore) == [{"stream": "shelf_basket-1", "would_restore": True}]
    with pytest.raises(StreamArchivedError):
        put(engine)


def test_what_is_no_aggregate_of_that_category_takes_no_snapshot(
    run: Run, engine: Engine, app: tuple[str, str]
) -> None:
    put(engine)
    module = app[1].partition(":")[0]
    take = ("events", "snapshot", "take")

    other = run(*take, "shelf_other", "1", "--of", of_class(app), *app)
    wrong = [
        run(*take, "shelf_basket", "1", "--of", f"{module}:{name}", *app)
        for name in ("layer", "Put", "Aggregate")
    ]

    assert (other.code, "has the category shelf_basket, not shelf_other" in other.err) == (2, True)
    assert [(one.code, "not foreseen" in one.err) for one in wrong] == [(2, False)] * 3


def test_a_person_is_forgotten_once_and_not_unasked(
    run: Run, engine: Engine, at: tuple[str, str]
) -> None:
    nobody = run("events", "forget", "", "--yes", *at)
    asked = run("events", "forget", "4711", *at)
    would = run("events", "forget", "4711", "--dry-run", "--json", *at)
    first = run("events", "forget", "4711", "--yes", "--json", *at)
    again = run("events", "forget", "4711", "--yes", "--json", *at)

    assert (nobody.code, "is empty" in nobody.err) == (2, True)
    assert (asked.code, "--yes" in asked.err) == (2, True)
    assert rows(would)[0]["would_forget"] == "4711"
    assert "No personal data of '4711' had a key" in first.err
    assert again.err == ""
    assert (rows(first)[0]["before"], rows(again)[0]["before"]) == (False, True)
    with engine.begin() as conn:
        [event] = store.read_log(conn).events
    assert event.event_type == "subject.forgotten"


@pytest.mark.parametrize("group", ["snapshot", "archive"])
def test_groups_of_commands_teach(run: Run, group: str) -> None:
    taught = run("events", group, "--help")

    assert (taught.code, f"datapatterns events {group}" in taught.out) == (0, True)
