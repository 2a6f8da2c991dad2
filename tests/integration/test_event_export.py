"""What an export of the log holds, and where it ends."""

from datetime import UTC, datetime
from io import BytesIO

import pytest
from sqlalchemy import Engine, text

from datapatterns.errors import CheckpointError
from datapatterns.event_sourcing import (
    ANY,
    EventExport,
    Exported,
    LogFilter,
    NewEvent,
    Position,
    StreamId,
)
from tests.fixtures.exports import EVERYTHING, append, exported, parsed, store, stored

pytestmark = pytest.mark.postgres


def test_a_line_holds_all_of_an_event_and_the_last_line_says_how_far_it_goes(
    engine: Engine,
) -> None:
    event = NewEvent("door.opened", {"by": "ann"}, 3, metadata={"m": 1})
    with engine.begin() as conn:
        at = store.append(conn, StreamId("door", "ß", "t"), [event], expected_version=0).position

    header, line, checkpoint = parsed(exported(engine))

    assert (header["format"], header["format_version"]) == ("datapatterns.events", 1)
    assert datetime.fromisoformat(line.pop("at")).tzinfo == UTC
    assert line == {
        "position": at,
        "tenant": "t",
        "category": "door",
        "key": "ß",
        "version": 1,
        "type": "door.opened",
        "schema_version": 3,
        "id": str(event.event_id),
        "data": {"by": "ann"},
        "metadata": {"m": 1},
    }
    assert checkpoint["events"] == 1
    assert checkpoint["checkpoint"] >= at


def test_what_other_programs_stored_on_several_lines_becomes_one(engine: Engine) -> None:
    append(engine, "1", "a")
    with engine.begin() as conn:
        conn.execute(text("SET LOCAL session_replication_role = replica"))  # no guard
        conn.execute(text("""UPDATE datapatterns.event SET data = '{"a":\n\t1e2}'"""))

    lines = exported(engine).splitlines()

    assert len(lines) == 3
    assert b'"data":{"a":  1e2}' in lines[1]


def test_an_export_asks_for_types_categories_tags_and_tenants(engine: Engine) -> None:
    append(engine, "1", "a", "b", tenant="x")
    append(engine, "1", "a", category="car")
    with engine.begin() as conn:
        tagged = [NewEvent("a", {}, tags=("k:1", "k:2")), NewEvent("a", {}, tags=("k:1",))]
        store.append(conn, StreamId("cat", "1"), tagged, expected_version=ANY)

    def found(matching: LogFilter) -> list[tuple[str, int]]:
        lines = parsed(exported(engine, EventExport(stored, matching)))
        return [(line["category"], line["version"]) for line in lines if "type" in line]

    assert found(LogFilter(event_types=("b", "c"))) == [("door", 2)]
    assert found(LogFilter(categories=("car", "cat"))) == [("car", 1), ("cat", 1), ("cat", 2)]
    assert found(LogFilter(tags=("k:1", "k:2"))) == [("cat", 1)]
    assert found(LogFilter(tenant="x")) == [("door", 1), ("door", 2)]
    assert found(LogFilter(tenant="")) == [("car", 1), ("cat", 1), ("cat", 2)]


def test_an_export_ends_where_the_log_was_final_when_it_began(engine: Engine) -> None:
    append(engine, "1", *"ab" * 200)
    pages: list[Exported] = []

    def write_more(done: Exported) -> None:
        pages.append(done)
        append(engine, "2", "late")

    file = BytesIO()
    done = EVERYTHING.write(engine, file.write, report=write_more)

    assert (len(pages) > 1, done.events) == (True, 400)
    assert "late" not in file.getvalue().decode()


def test_a_writer_that_is_not_done_is_not_passed(engine: Engine) -> None:
    append(engine, "1", "a")
    with engine.connect() as writer:
        store.append(writer, StreamId("slow", "1"), [NewEvent("s", {})], expected_version=0)
        append(engine, "2", "b")

        during = parsed(exported(engine))
        writer.commit()
    after = parsed(exported(engine, EventExport(stored, after=Position(during[-1]["checkpoint"]))))

    assert [line["type"] for line in during if "type" in line] == ["a"]
    assert [line["type"] for line in after if "type" in line] == ["s", "b"]


def test_an_engine_that_reads_snapshots_can_export(engine: Engine) -> None:
    append(engine, "1", "a")

    assert len(parsed(exported(engine.execution_options(isolation_level="SERIALIZABLE")))) == 3


def test_an_export_beyond_the_log_is_refused(engine: Engine) -> None:
    with pytest.raises(CheckpointError):
        exported(engine, EventExport(stored, after=Position(99)))


def test_archived_events_are_exported_like_others(engine: Engine) -> None:
    append(engine, "1", "a", "b")
    with engine.begin() as conn:
        conn.execute(text("SET LOCAL session_replication_role = replica"))  # no guard
        conn.execute(
            text(
                "WITH gone AS (DELETE FROM datapatterns.event WHERE version = 1 RETURNING *)"
                " INSERT INTO datapatterns.event_archive (position, stream_id, version, at,"
                " event_id, type_id, data, meta, payload, codec, tags) SELECT position, stream_id,"
                " version, at, event_id, type_id, data, meta, payload, codec, tags FROM gone"
            )
        )

    lines = parsed(exported(engine))
    assert [line.get("version") for line in lines] == [None, 1, 2, None]
