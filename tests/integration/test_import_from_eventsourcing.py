"""An import from tables that the library `eventsourcing` made and filled by itself."""

import json
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import URL, Engine, create_engine, text

from datapatterns.errors import ImportVersionError, SourceEventError
from datapatterns.event_sourcing import (
    ANY,
    EventsourcingImport,
    EventsourcingMapping,
    EventStore,
    NewEvent,
    StreamId,
)
from tests.fixtures.commands import Run
from tests.fixtures.empty_database import CreateDatabase, shown

pytest.importorskip("eventsourcing")

from tests.fixtures.kennel import Dog, kennel

pytestmark = pytest.mark.postgres
store = EventStore()
OWNER = uuid4()
Found = list[tuple[StreamId, int, str, Any]]


@pytest.fixture
def source(new_empty_url: CreateDatabase) -> Iterator[Engine]:
    engine = create_engine(new_empty_url())
    yield engine
    engine.dispose()


@pytest.fixture
def fill(source: Engine) -> Callable[..., list[UUID]]:
    """Registers dogs that learn tricks, in turns; returns their ids."""

    def fill(dogs: int = 3, tricks: int = 4, **environment: str) -> list[UUID]:
        with closing(kennel(source.url, **environment)) as app:
            known = [Dog(f"dog {n}", OWNER, Decimal("1.50")) for n in range(dogs)]
            app.save(*known)
            for trick in range(tricks):
                for dog in known:
                    again = app.repository.get(dog.id)
                    again.add_trick(f"trick {trick}")
                    app.save(again)
            return [dog.id for dog in known]

    return fill


def taking(**options: Any) -> EventsourcingImport:  # noqa: ANN401
    return EventsourcingImport(store, **{"table": "kennel_events", "chunk_events": 4, **options})


def log(engine: Engine) -> Found:
    with engine.begin() as conn:
        events = store.read_log(conn, limit=1_000).events
    return [(each.stream, each.version, each.event_type, each.data) for each in events]


def test_an_application_comes_over_whole_and_in_order(
    source: Engine, engine: Engine, fill: Callable[..., list[UUID]]
) -> None:
    dogs = fill(dogs=3, tricks=4)

    done = taking().run(source, engine)

    expected: Found = [
        (
            StreamId("dog", str(dog)),
            1,
            "dog.registered",
            {"name": f"dog {n}", "owner": str(OWNER), "price": "1.50"},
        )
        for n, dog in enumerate(dogs)
    ]
    expected += [
        (StreamId("dog", str(dog)), trick + 2, "dog.trick_added", {"trick": f"trick {trick}"})
        for trick in range(4)
        for dog in dogs
    ]
    assert log(engine) == expected
    assert (done.total, done.read, done.written, done.streams) == (15, 15, 15, 3)
    assert (done.left_out, done.gaps) == ({}, 0)
    assert done.types == {
        "tests.fixtures.kennel:Dog.Registered": "dog.registered",
        "tests.fixtures.kennel:Dog.TrickAdded": "dog.trick_added",
    }


def test_times_are_those_of_the_events(
    source: Engine, engine: Engine, fill: Callable[..., list[UUID]]
) -> None:
    [dog] = fill(dogs=1, tricks=1)
    with closing(kennel(source.url)) as app:
        times = [event.timestamp for event in app.events.get(dog)]

    taking().run(source, engine)

    with engine.begin() as conn:
        assert [each.recorded_at for each in store.read_log(conn).events] == times


def test_a_second_run_brings_only_what_has_happened_since(
    source: Engine, engine: Engine, fill: Callable[..., list[UUID]]
) -> None:
    fill(dogs=3, tricks=4)
    taking().run(source, engine)
    fill(dogs=1, tricks=0)

    again = taking(chunk_events=7).run(source, engine)  # another size does not matter

    assert (again.total, again.written, again.repeated) == (16, 1, 15)
    assert len(log(engine)) == 16


def test_an_import_that_broke_off_goes_on(
    source: Engine, engine: Engine, fill: Callable[..., list[UUID]]
) -> None:
    fill(dogs=3, tricks=4)

    def stop(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        taking().run(source, engine, report=stop)
    assert len(log(engine)) == 4
    done = taking().run(source, engine)

    assert (done.written, done.repeated, len(log(engine))) == (11, 4, 15)


def test_stream_by_stream_the_streams_are_the_same(
    source: Engine, engine: Engine, fill: Callable[..., list[UUID]]
) -> None:
    dogs = fill(dogs=3, tricks=4)

    done = taking(by_stream=True).run(source, engine)

    found = log(engine)
    order = sorted(StreamId("dog", str(dog)) for dog in dogs)
    assert [(stream, version) for stream, version, *_ in found] == [
        (stream, version) for stream in order for version in range(1, 6)
    ]
    assert (done.written, done.streams) == (15, 3)


def test_stream_by_stream_an_application_that_has_gone_on_is_refused_with_the_way_out(
    run: Run, source: Engine, engine: Engine, database_url: URL, fill: Callable[..., list[UUID]]
) -> None:
    dogs = fill(dogs=3, tricks=4)
    command = (
        *("events", "import-eventsourcing", "--by-stream", "--table", "kennel_events"),
        *("--from-url", shown(source.url), "--database-url", shown(database_url)),
    )
    assert run(*command).code == 0
    with closing(kennel(source.url)) as app:
        first = app.repository.get(min(dogs))
        first.add_trick("late")
        app.save(first)

    grown = run(*command)

    assert (grown.code, "stop the application's writers first" in grown.err) == (2, True)
    assert len(log(engine)) == 15


def test_compressed_states_need_what_undoes_it(
    source: Engine, engine: Engine, fill: Callable[..., list[UUID]]
) -> None:
    fill(dogs=1, tricks=1, COMPRESSOR_TOPIC="zlib")

    with pytest.raises(SourceEventError, match="Give decode_state"):
        taking().run(source, engine)
    assert log(engine) == []
    taking(mapping=EventsourcingMapping(decode_state=zlib.decompress)).run(source, engine)

    assert len(log(engine)) == 2


def test_a_check_tells_all_that_is_in_the_way_and_writes_nothing(
    source: Engine, engine: Engine, fill: Callable[..., list[UUID]]
) -> None:
    fill(dogs=2, tricks=3)
    good = taking().check(source)
    with source.begin() as conn:
        conn.execute(text("DELETE FROM kennel_events WHERE originator_version = 3"))
        conn.execute(text("UPDATE kennel_events SET state = '' WHERE originator_version = 1"))

    bad = taking().check(source)
    closed = taking(close_gaps=True).check(source)

    assert (good.problems, good.found.written, good.found.read) == ((), 8, 8)
    assert len(bad.problems) == 6  # two states, and as they are new streams then, four gaps
    assert bad.found.total == bad.found.read == 6
    assert len(closed.problems) == 2
    assert log(engine) == []


def test_a_gap_can_be_closed(
    source: Engine, engine: Engine, fill: Callable[..., list[UUID]]
) -> None:
    fill(dogs=1, tricks=4)
    with source.begin() as conn:
        conn.execute(text("DELETE FROM kennel_events WHERE originator_version = 3"))

    with pytest.raises(SourceEventError, match="events 3 to 3 before it are missing"):
        taking().run(source, engine)
    done = taking(close_gaps=True).run(source, engine)

    assert [version for _, version, *_ in log(engine)] == [1, 2, 3, 4]
    assert done.gaps == 1


def test_what_is_left_out_is_reported_by_topic(
    source: Engine, engine: Engine, fill: Callable[..., list[UUID]]
) -> None:
    fill(dogs=2, tricks=2)
    topic = "tests.fixtures.kennel:Dog.TrickAdded"

    done = taking(mapping=EventsourcingMapping(types={topic: None})).run(source, engine)

    assert (done.read, done.written, done.left_out) == (6, 2, {topic: 4})


def test_a_stream_that_has_other_events_is_refused(
    source: Engine, engine: Engine, fill: Callable[..., list[UUID]]
) -> None:
    [dog] = fill(dogs=1, tricks=1)
    with engine.begin() as conn:
        stream = StreamId("dog", str(dog))
        store.append(conn, stream, [NewEvent("dog.sold", {})], expected_version=ANY)
        conn.execute(text("SET LOCAL session_replication_role = replica"))
        conn.execute(text("UPDATE datapatterns.stream SET last_at = '2000-01-01'"))

    with pytest.raises(ImportVersionError, match="version 2 would get 3"):
        taking().run(source, engine)
    assert len(log(engine)) == 1


def test_rows_that_appear_behind_those_that_were_read_are_noticed(
    source: Engine, engine: Engine, fill: Callable[..., list[UUID]]
) -> None:
    fill(dogs=1, tricks=4)
    late = text(
        "INSERT INTO kennel_events SELECT :id, 1, topic, state, 0 - :n FROM kennel_events"
        " WHERE originator_version = 1 LIMIT 1"
    )
    appeared = iter(range(9))

    def writer_without_a_turn(_: object) -> None:
        with source.begin() as conn:
            conn.execute(late, {"id": uuid4(), "n": next(appeared)})

    with pytest.raises(SourceEventError, match="2 events appeared behind those that were read"):
        taking().run(source, engine, report=writer_without_a_turn)


def test_a_table_of_another_kind_is_refused(source: Engine, engine: Engine) -> None:
    with source.begin() as conn:
        conn.execute(text("CREATE TABLE kennel_snapshots (originator_id uuid, state bytea)"))

    with pytest.raises(ValueError, match=r"there is no table public\.kennel_events"):
        taking().run(source, engine)
    with pytest.raises(ValueError, match="it lacks notification_id, originator_version, topic"):
        taking(table="kennel_snapshots").run(source, engine)
    with pytest.raises(ValueError, match="a chunk cannot have 0"):
        taking(chunk_events=0)


def test_an_empty_application_is_an_empty_import(
    source: Engine, engine: Engine, fill: Callable[..., list[UUID]]
) -> None:
    fill(dogs=0, tricks=0)

    assert taking().run(source, engine).written == 0


def test_ids_may_be_text(source: Engine, engine: Engine, database_url: URL) -> None:
    del database_url
    with source.begin() as conn:
        conn.execute(
            text(
                "CREATE TABLE kennel_events (originator_id text, originator_version bigint,"
                " topic text, state bytea, notification_id bigserial)"
            )
        )
        conn.execute(
            text(
                "INSERT INTO kennel_events (originator_id, originator_version, topic, state)"
                " SELECT 'dog-' || n, v, 'k:Dog.Named', :state"
                " FROM generate_series(1, 3) n, generate_series(1, 2) v"
            ),
            {
                "state": b'{"timestamp":{"_type_":"datetime_iso","_data_":'
                b'"2024-01-01T00:00:00+00:00"}}'
            },
        )

    for by_stream in (False, True):
        assert taking(by_stream=by_stream).check(source).found.written == 6
    assert taking(by_stream=True).run(source, engine).streams == 3


def test_the_command_checks_imports_and_reports(
    run: Run,
    source: Engine,
    engine: Engine,
    fill: Callable[..., list[UUID]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fill(dogs=2, tricks=2)
    (tmp_path / "moving.py").write_text(
        "from datapatterns.event_sourcing import EventsourcingMapping\n"
        "mapping = EventsourcingMapping("
        "types={'tests.fixtures.kennel:Dog.TrickAdded': None})\nnumber = 7\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    command = (
        *("events", "import-eventsourcing", "--from-url", shown(source.url)),
        *("--database-url", shown(engine.url), "--table", "kennel_events"),
    )

    dry = run(*command, "--dry-run", "--json")
    nothing = log(engine)
    part = run(*command, "--mapping", "moving:mapping", "--dry-run")
    done = run(*command, "--json")
    wrong = run(*command, "--mapping", "moving:number")
    absent = run(*command, "--mapping", "moving:nothing")
    other = run(*command, "--table", "dog_events")

    assert (json.loads(dry.out)["imported"], nothing) == (6, [])
    assert "TrickAdded was left out, 4 events" in part.err
    assert json.loads(done.out) == {
        "read": 6,
        "imported": 6,
        "there_before": 0,
        "streams": 2,
        "times_moved": 0,
        "gaps_closed": 0,
        "left_out": {},
        "types": {
            "tests.fixtures.kennel:Dog.Registered": "dog.registered",
            "tests.fixtures.kennel:Dog.TrickAdded": "dog.trick_added",
        },
    }
    assert (wrong.code, "is no EventsourcingMapping" in wrong.err) == (2, True)
    assert (absent.code, "cannot be found" in absent.err) == (2, True)
    assert (other.code, "there is no table" in other.err) == (2, True)


def test_the_command_names_what_is_in_the_way(
    run: Run, source: Engine, engine: Engine, fill: Callable[..., list[UUID]]
) -> None:
    fill(dogs=1, tricks=1, COMPRESSOR_TOPIC="zlib")

    ran = run(
        *("events", "import-eventsourcing", "--from-url", shown(source.url)),
        *("--database-url", shown(engine.url), "--table", "kennel_events", "--dry-run"),
    )

    assert (ran.code, "Give decode_state" in ran.out) == (2, True)
