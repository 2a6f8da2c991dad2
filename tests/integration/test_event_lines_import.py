"""Imports of lines that an export, or somebody else, has written."""

from io import BytesIO

import pytest
from sqlalchemy import Engine

from datapatterns.errors import EventLineError, ImportChunkError, ImportVersionError
from datapatterns.event_sourcing import LinesImport
from tests.fixtures.exports import append, exported, store

pytestmark = pytest.mark.postgres
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
