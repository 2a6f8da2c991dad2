"""Exports into files: whole or going on, never beside each other, and nothing else is harmed."""

import fcntl
import gzip
import os
from pathlib import Path
from threading import Thread
from typing import IO

import pytest
from sqlalchemy import Engine

from datapatterns.errors import ExportFileError
from datapatterns.event_sourcing import EventExport, Exported, LogFilter, export_to_file
from tests.fixtures.exports import EVERYTHING, append, events_in, exported, parsed, stored

pytestmark = pytest.mark.postgres


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


def test_links_that_lead_to_each_other_are_left_alone(engine: Engine, tmp_path: Path) -> None:
    one, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    one.symlink_to(other)
    other.symlink_to(one)

    with pytest.raises(ExportFileError, match="in a circle"):
        export_to_file(engine, one, EVERYTHING, overwrite=True)

    assert sorted(each.name for each in tmp_path.iterdir()) == [one.name, other.name]


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
