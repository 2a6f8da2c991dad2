"""Export into a file; what broke off goes on after its last whole line.

A new file has its name only when it is complete: until then it is called ``....partial``.
"""

import fcntl
import gzip
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, cast

from sqlalchemy import Engine

from datapatterns.errors import EventLineError, ExportFileError
from datapatterns.event_sourcing.events import Position
from datapatterns.event_sourcing.transfer.exporting import EventExport, Exported, Report
from datapatterns.event_sourcing.transfer.json_lines import (
    LINE_BYTES_MAX,
    Checkpoint,
    Header,
    read_header,
    read_line,
)

_COMPRESSED: Final = ".gz"
_DAMAGED: Final = (EOFError, zlib.error, gzip.BadGzipFile)
_BEGINS: Final = b'{"format"'


@dataclass(frozen=True, slots=True)
class _Found:
    """What a file holds: up to ``size`` bytes, whole lines."""

    header: Header
    exported: Exported
    size: int


@dataclass(frozen=True, slots=True)
class _File:
    """A file that is open for writing; ``final`` is the name that it gets."""

    path: Path
    file: IO[bytes]
    final: Path

    @property
    def is_compressed(self) -> bool:
        return self.final.suffix == _COMPRESSED


def export_to_file(
    engine: Engine,
    path: Path,
    export: EventExport,
    *,
    overwrite: bool = False,
    proceed: bool = False,
    report: Report = lambda _: None,
) -> Exported:
    """Write ``export`` into a file; run again, it goes on where it broke off.

    Where the name ends with ``.gz``, the file is compressed; such a file begins anew if it broke
    off.

    Args:
        engine: Where the store is; each page is a transaction.
        path: The file.
        export: What to write.
        overwrite: Replace a file that is there, in one step at the end.
        proceed: Add to a file that is there what has happened since.
        report: Is told how far it has come, after each page.

    Raises:
        ExportFileError: The file is there, holds another export, is being written, or is none.
        OSError: The file cannot be written.
    """
    path = Path(os.path.realpath(path))  # of a link, the file that it leads to; the link stays
    if path.is_symlink():
        raise ExportFileError(str(path), "its links lead in a circle; choose another name")
    if path.exists() and not path.is_file():  # a device would be replaced
        raise ExportFileError(str(path), "it is no file; choose another name, or - for stdout")
    if proceed and path.exists():
        with _alone(path) as file:
            return _go_on(engine, _File(path, file, path), export, report)
    if path.exists() and not overwrite:
        raise ExportFileError(
            str(path), "it is there; replace it (--overwrite), or add to it (--continue)"
        )
    partial = path.with_name(f"{path.name}.partial")
    with _alone(partial) as file:
        if path.exists():  # who could not read the old file must not read the new one
            os.fchmod(file.fileno(), stat.S_IMODE(path.stat().st_mode))
        if path.suffix == _COMPRESSED:
            file.truncate(0)
        done = _go_on(engine, _File(partial, file, path), export, report)
        partial.replace(path)
    _keep_names(path.parent)
    return done


@contextmanager
def open_lines(path: Path) -> Iterator[IO[bytes]]:
    """Open a file of lines for reading; it is decompressed if its name ends with ``.gz``.

    Raises:
        ExportFileError: What is read of it cannot be decompressed.
    """
    with path.open("rb") as file:
        if path.suffix != _COMPRESSED:
            yield file
            return
        try:
            with gzip.open(file) as inside:
                yield cast("IO[bytes]", inside)
        except _DAMAGED as error:
            raise ExportFileError(
                str(path), f"it is not compressed by gzip, or its end is missing ({error})"
            ) from error


@contextmanager
def _alone(path: Path) -> Iterator[IO[bytes]]:
    with path.open("ab+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ExportFileError(str(path), "another process is writing it; wait") from error
        if not _is_still(path, file):  # it became a complete export between opening and locking
            raise ExportFileError(str(path), "another process has just written it; look again")
        yield file


def _is_still(path: Path, file: IO[bytes]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _go_on(engine: Engine, to: _File, export: EventExport, report: Report) -> Exported:
    path, file = to.path, to.file
    found = _look(to)
    if found is not None and not found.header.is_same_export(export.header()):
        raise ExportFileError(
            str(path),
            f"it holds an export of other events ({found.header.asked()}); delete it, or ask for"
            " the same",
        )
    file.truncate(found.size if found else 0)
    begun = found.exported if found else None
    if to.is_compressed:
        with gzip.open(file, "ab") as inside:
            done = export.write(engine, inside.write, begun=begun, report=report)
    else:
        done = export.write(engine, file.write, begun=begun, report=report)
    file.flush()
    os.fsync(file.fileno())
    return done


def _look(to: _File) -> _Found | None:
    """Return what is there already; None if there is not even a header."""
    path, file = to.path, to.file
    file.seek(0)
    if not to.is_compressed:
        return _scan(path, file)
    try:
        with gzip.open(file) as inside:
            found = _scan(path, inside)
    except _DAMAGED as error:
        raise ExportFileError(
            str(path), "its end is missing or damaged; export it anew (--overwrite)"
        ) from error
    return found and _Found(found.header, found.exported, path.stat().st_size)


def _scan(path: Path, file: IO[bytes] | gzip.GzipFile) -> _Found | None:
    first = file.readline(LINE_BYTES_MAX)
    if not first.endswith(b"\n"):
        if not _BEGINS.startswith(first[: len(_BEGINS)]):
            raise ExportFileError(str(path), "it is no export; choose another name")
        return None  # it broke off at once
    last, size, events, number = first, len(first), 0, 1
    try:
        header = read_header(first)
        while (line := file.readline(LINE_BYTES_MAX)).endswith(b"\n"):
            last, size, number = line, size + len(line), number + 1
            events += not line.startswith(b'{"checkpoint"')
        reached = Position(header.after)
        is_checkpoint = False
        if number > 1:
            event = read_line(last, number)
            is_checkpoint = isinstance(event, Checkpoint)
            at = event.checkpoint if isinstance(event, Checkpoint) else event.position
            reached = Position(at or 0)
    except EventLineError as error:
        raise ExportFileError(str(path), f"it cannot be continued: {error}") from error
    up_to = reached if is_checkpoint else Position(reached + 1)
    return _Found(header, Exported(events, reached, up_to), size)


def _keep_names(folder: Path) -> None:
    # A crash of the machine could otherwise leave the old name with a file that is gone.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
