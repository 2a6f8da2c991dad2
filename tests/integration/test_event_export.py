"""Exports of the log into files, and imports of them."""

import fcntl
import gzip
import json
import os
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from threading import Thread
from typing import IO, Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, text

from datapatterns.errors import (
    CheckpointError,
    EventLineError,
    ExportFileError,
    ImportChunkError,
    ImportVersionError,
)
from datapatterns.event_sourcing import (
    ANY,
    EventExport,
    EventStore,
    Exported,
    LinesImport,
    LogFilter,
    NewEvent,
    Position,
    StoredEvents,
    StreamId,
    export_to_file,
    open_lines,
)

pytestmark = pytest.mark.postgres
store = EventStore()
stored = StoredEvents(store)
EVERYTHING = EventExport(stored)


def append(engine: Engine, key: str, *names: str, category: str = "door", tenant: str = "") -> None:
    with engine.begin() as conn:
        events = [NewEvent(name, {"n": n}) for n, name in enumerate(names)]
        store.append(conn, StreamId(category, key, tenant), events, expected_version=ANY)


def exported(engine: Engine, export: EventExport = EVERYTHING) -> bytes:
    file = BytesIO()
    export.write(engine, file.write)
    return file.getvalue()


def parsed(lines: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines.splitlines()]


def events_in(path: Path) -> list[dict[str, Any]]:
    with open_lines(path) as file:
        return [line for line in parsed(file.read()) if "type" in line]


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


@pytest.mark.parametrize("name", ["log.jsonl", "log.jsonl.gz"])
def test_a_file_appears_whole_and_is_not_replaced_unasked(
    engine: Engine, tmp_path: Path, name: str
) -> None:
    append(engine, "1", "a")
    path = tmp_path / name
    seen: list[bool] = []
    export_to_file(engine, path, EVERYTHING, report=lambda _: seen.append(path.exists()))
    append(engine, "1", "b")

    with pytest.raises(ExportFileError, match="it is there"):
        export_to_file(engine, path, EVERYTHING)
    assert len(events_in(path)) == 1
    export_to_file(engine, path, EVERYTHING, overwrite=True)

    assert seen == [False]
    assert len(events_in(path)) == 2
    assert [each.name for each in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["log.jsonl", "log.jsonl.gz"])
def test_a_file_is_continued_with_what_has_happened_since(
    engine: Engine, tmp_path: Path, name: str
) -> None:
    append(engine, "1", "a", "b")
    path = tmp_path / name
    first = export_to_file(engine, path, EVERYTHING)
    size = path.stat().st_size
    again = export_to_file(engine, path, EVERYTHING, proceed=True)
    if name.endswith("l"):
        assert path.stat().st_size == size
    append(engine, "1", "c")
    more = export_to_file(engine, path, EVERYTHING, proceed=True)

    assert (first.events, again.events, more.events) == (2, 2, 3)
    assert [event["version"] for event in events_in(path)] == [1, 2, 3]


def test_an_export_that_broke_off_anywhere_ends_as_if_it_had_not(
    engine: Engine, tmp_path: Path
) -> None:
    """The negative control is the cut itself: the file is not the same before it goes on."""
    append(engine, "1", *"abcdef")
    append(engine, "2", "long")
    whole = tmp_path / "whole"
    export_to_file(engine, whole, EVERYTHING)
    written = whole.read_bytes()
    events = written[written.index(b"\n") :]

    for cut in [0, 1, len(written) - len(events), *range(len(written) - 400, len(written), 7)]:
        path = tmp_path / f"cut at {cut}"
        path.with_name(f"{path.name}.partial").write_bytes(written[:cut])
        done = export_to_file(engine, path, EVERYTHING)

        found = path.read_bytes()
        assert found[found.index(b"\n") :] == events, cut
        assert done.events == 7


def test_a_file_that_holds_something_else_is_left_alone(engine: Engine, tmp_path: Path) -> None:
    append(engine, "1", "a", "b")
    path = tmp_path / "log.jsonl"
    doors = EventExport(stored, LogFilter(categories=("door",)))

    path.write_text("Dear diary,\n")
    with pytest.raises(ExportFileError, match="it cannot be continued"):
        export_to_file(engine, path, EVERYTHING, proceed=True)
    assert path.read_text() == "Dear diary,\n"
    path.write_text("Dear diary,")
    with pytest.raises(ExportFileError, match="it is no export"):
        export_to_file(engine, path, EVERYTHING, proceed=True)
    assert path.read_text() == "Dear diary,"
    path.unlink()
    export_to_file(engine, path, doors)
    with pytest.raises(ExportFileError, match="an export of other events"):
        export_to_file(engine, path, EVERYTHING, proceed=True)
    assert len(events_in(path)) == 2


def test_a_compressed_file_whose_end_is_missing_is_not_continued(
    engine: Engine, tmp_path: Path
) -> None:
    append(engine, "1", "a", "b")
    path = tmp_path / "log.gz"
    export_to_file(engine, path, EVERYTHING)
    path.write_bytes(path.read_bytes()[:-9])

    with pytest.raises(ExportFileError, match="missing or damaged"):
        export_to_file(engine, path, EVERYTHING, proceed=True)
    path.rename(tmp_path / "log.gz.partial")
    export_to_file(engine, path, EVERYTHING)

    assert len(parsed(gzip.decompress(path.read_bytes()))) == 4


def test_only_the_end_of_a_name_says_that_a_file_is_compressed(
    engine: Engine, tmp_path: Path
) -> None:
    append(engine, "1", "a")
    for name in ("log.gz.jsonl", "log.jsonl.gz"):
        export_to_file(engine, tmp_path / name, EVERYTHING)
        assert len(events_in(tmp_path / name)) == 1
        export_to_file(engine, tmp_path / name, EVERYTHING, proceed=True)

    assert (tmp_path / "log.gz.jsonl").read_bytes().startswith(b'{"format"')
    assert gzip.decompress((tmp_path / "log.jsonl.gz").read_bytes()).startswith(b'{"format"')


def test_what_is_not_compressed_as_its_name_says_is_named(engine: Engine, tmp_path: Path) -> None:
    append(engine, "1", "a")
    whole = gzip.compress(exported(engine))
    path = tmp_path / "log.jsonl.gz"
    for content in (exported(engine), whole[:-1], whole[: len(whole) // 2], whole[:5]):
        path.write_bytes(content)
        with pytest.raises(ExportFileError, match=r"log\.jsonl\.gz: it is not compressed"):
            events_in(path)


def test_a_link_stays_and_its_file_is_written(engine: Engine, tmp_path: Path) -> None:
    append(engine, "1", "a")
    target, link = tmp_path / "target.jsonl", tmp_path / "link.jsonl"
    link.symlink_to(target)

    export_to_file(engine, link, EVERYTHING)
    append(engine, "1", "b")
    export_to_file(engine, link, EVERYTHING, overwrite=True)

    assert (link.is_symlink(), target.is_symlink()) == (True, False)
    assert len(events_in(target)) == 2


def test_a_device_is_not_replaced_by_a_file(engine: Engine, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    for overwrite in (False, True):
        with pytest.raises(ExportFileError, match="it is no file"):
            export_to_file(engine, pipe, EVERYTHING, overwrite=overwrite)

    assert pipe.is_fifo()


def test_who_could_not_read_the_old_file_cannot_read_the_new_one(
    engine: Engine, tmp_path: Path
) -> None:
    append(engine, "1", "a")
    path = tmp_path / "log.jsonl"
    path.touch(0o600)
    seen: list[int] = []

    def look(_: Exported) -> None:
        seen.append(path.with_name("log.jsonl.partial").stat().st_mode & 0o777)

    export_to_file(engine, path, EVERYTHING, overwrite=True, report=look)

    assert (seen, path.stat().st_mode & 0o777) == ([0o600], 0o600)


@pytest.mark.parametrize("name", ["log.jsonl", "log.jsonl.gz"])
def test_an_export_that_becomes_complete_while_another_begins_is_left_alone(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    append(engine, "1", "a")
    path = tmp_path / name
    path.with_name(f"{name}.partial").touch()
    lock, whole = fcntl.flock, b""

    def after_the_other(file: IO[bytes], how: int) -> None:
        nonlocal whole
        monkeypatch.setattr(fcntl, "flock", lock)
        export_to_file(engine, path, EVERYTHING)  # between opening and locking
        whole = path.read_bytes()
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", after_the_other)
    with pytest.raises(ExportFileError, match="look again"):
        export_to_file(engine, path, EVERYTHING)

    assert whole
    assert path.read_bytes() == whole


def test_two_exports_do_not_write_one_file(engine: Engine, tmp_path: Path) -> None:
    append(engine, "1", "a")
    path = tmp_path / "log.jsonl"
    refused: list[bool] = []

    def also(_: Exported) -> None:
        def other() -> None:
            with pytest.raises(ExportFileError, match="another process"):
                export_to_file(engine, path, EVERYTHING)
            refused.append(True)

        thread = Thread(target=other)
        thread.start()
        thread.join(30)

    export_to_file(engine, path, EVERYTHING, report=also)

    assert refused == [True]
    assert len(events_in(path)) == 1


def test_stored_events_are_found_by_position_and_by_id(engine: Engine) -> None:
    append(engine, "1", "a", "b")
    with engine.begin() as conn:
        [first, second] = stored.stream(conn, StreamId("door", "1"))
        assert first.position is not None
        assert stored.find(conn, first.position) == first
        assert stored.find(conn, second.event_id or 0) == second
        assert stored.find(conn, 2**62) is None
        assert stored.find(conn, UUID(int=1)) is None
        assert stored.stream(conn, StreamId("door", "1"), backwards=True) == [second, first]
        assert stored.stream(conn, StreamId("door", "1"), after_version=1) == [second]
        assert stored.stream(conn, StreamId("door", "2")) == []


HEADER = b'{"format":"datapatterns.events","format_version":1}\n'
LINE = b'{"category":"door","key":"%d","type":"a","data":{}}\n'


def test_lines_that_others_wrote_are_imported_in_chunks_and_once(engine: Engine) -> None:
    lines = HEADER + b"".join(LINE % (n % 3) for n in range(8))
    into = LinesImport(store, source="others", chunk_events=3)

    first = into.run(engine, BytesIO(lines))
    again = into.run(engine, BytesIO(lines))

    assert (first.events, first.repeated, first.lines) == (8, 0, 9)
    assert (again.events, again.repeated, again.lines) == (0, 8, 9)
    with engine.begin() as conn:
        assert len(store.read_log(conn).events) == 8


def test_of_a_chunk_with_a_bad_line_nothing_is_written(engine: Engine) -> None:
    lines = [HEADER, *(LINE % n for n in range(4)), b"{}\n", LINE % 9]
    into = LinesImport(store, source="others", chunk_events=3)

    with pytest.raises(EventLineError, match="line 6: Object missing required field"):
        into.run(engine, BytesIO(b"".join(lines)))
    with engine.begin() as conn:
        assert len(store.read_log(conn).events) == 3
    lines[5] = LINE % 5
    assert into.run(engine, BytesIO(b"".join(lines))).events == 3


def test_a_check_names_every_bad_line_and_writes_nothing(engine: Engine) -> None:
    lines = HEADER + LINE % 1 + b"{}\n" + LINE % 2 + b"[]\n"

    found = LinesImport(store).check(BytesIO(lines))

    assert (found.events, found.lines) == (2, 5)
    assert [problem.line for problem in found.problems] == [3, 5]
    with engine.begin() as conn:
        assert store.read_log(conn).events == []


def test_a_file_without_a_name_needs_one(engine: Engine) -> None:
    with pytest.raises(ValueError, match="name the source"):
        LinesImport(store).run(engine, BytesIO(HEADER + LINE % 1))
    with pytest.raises(ValueError, match="a chunk cannot have 0"):
        LinesImport(store, chunk_events=0)


def test_events_that_would_get_other_versions_are_refused_unless_they_are_given_up(
    engine: Engine,
) -> None:
    append(engine, "1", "a", "b")
    lines = exported(engine)

    with pytest.raises(ImportVersionError, match="door-1: the event of version 2 would get 4"):
        LinesImport(store).run(engine, BytesIO(lines))
    with engine.begin() as conn:
        assert len(store.read_log(conn).events) == 2

    assert LinesImport(store, keep_versions=False).run(engine, BytesIO(lines)).events == 2


def test_a_source_with_other_events_is_refused(engine: Engine) -> None:
    into = LinesImport(store, source="others")
    into.run(engine, BytesIO(HEADER + LINE % 1))

    with pytest.raises(ImportChunkError):
        into.run(engine, BytesIO(HEADER + LINE % 2))
