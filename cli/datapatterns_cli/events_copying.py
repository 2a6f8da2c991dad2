"""`datapatterns events export|import`: move events in and out, as lines of JSON."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from datapatterns_cli.event_rows import filter_of, filter_options, tell_unknown_types
from datapatterns_cli.invocation import Invocation, pass_invocation
from datapatterns_cli.shared_options import Command

if TYPE_CHECKING:
    from datapatterns import DataLayer
    from datapatterns.event_sourcing import EventExport, Exported, LinesImport, LinesImported

_STDIO = Path("-")


@click.command("export", cls=Command)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True))
@click.option("--after", type=click.IntRange(0), default=0, help="Only events after this position.")
@filter_options
@click.option("--continue", "proceed", is_flag=True, help="Add to FILE what has happened since.")
@click.option("--overwrite", is_flag=True, help="Replace FILE if it is there.")
@pass_invocation
def export(invocation: Invocation, /, **options: Any) -> None:  # noqa: ANN401
    """Write events into FILE as lines of JSON, all that is needed to import them; - is stdout.

    If it breaks off, run it again: it goes on in FILE.partial, which becomes FILE when it is
    complete. It ends where the log was final when it began; archived events are in it, too. With
    a name that ends with .gz, the file is compressed. Encrypted data stay encrypted, and keys are
    not exported.

    \b
      datapatterns events export events.jsonl.gz
      datapatterns events export events.jsonl --continue           what has happened since
      datapatterns events export - --category basket | jq .data
    """  # noqa: D301
    _export(invocation, **options)


def _export(
    invocation: Invocation,
    *,
    file: Path,
    after: int,
    proceed: bool,
    overwrite: bool,
    **wanted: Any,  # noqa: ANN401 -- the options of a filter
) -> None:
    from datapatterns.event_sourcing import (  # noqa: PLC0415 -- help must not wait for it
        EventExport,
        Position,
        StoredEvents,
        export_to_file,
    )

    if proceed and (overwrite or file == _STDIO):
        raise click.UsageError("--continue adds to a file that is there; leave the other out")
    layer, matching = invocation.layer(), filter_of(wanted)
    tell_unknown_types(invocation, layer, matching)
    asked = EventExport(StoredEvents(layer.events), matching, Position(after))
    if file == _STDIO:
        _to_stdout(layer, asked)
        return
    with _positions(invocation, "exporting", after) as report:
        done = export_to_file(
            layer.engine, file, asked, overwrite=overwrite, proceed=proceed, report=report
        )
    invocation.output.values(
        {"file": str(file), "events": done.events, "checkpoint": done.checkpoint}
    )


def _to_stdout(layer: "DataLayer", asked: "EventExport") -> None:
    out = sys.stdout.buffer
    asked.write(layer.engine, out.write)
    out.flush()


@contextmanager
def _positions(
    invocation: Invocation, title: str, after: int
) -> Iterator[Callable[["Exported"], None]]:
    """Show how far an export has come; how far it goes shows with its first page."""
    with invocation.output.progress(title, 1) as advance:
        last = after

        def report(done: "Exported") -> None:
            nonlocal last
            advance(done.checkpoint - last, total=max(done.up_to - after, 1))
            last = done.checkpoint

        yield report


@click.command("import", cls=Command)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True))
@click.option("--source", help="The name of what is imported.  [default: that of the export]")
@click.option(
    "--chunk-events",
    type=click.IntRange(1, 200_000),
    default=20_000,
    show_default=True,
    help="How many events a transaction has; readers wait for each. Keep it when you run it again.",
)
@click.option("--renumber", is_flag=True, help="Let events have other versions than in FILE.")
@click.option("--dry-run", is_flag=True, help="Only check all lines, and name those that are bad.")
@pass_invocation
def import_(invocation: Invocation, /, **options: Any) -> None:  # noqa: ANN401
    """Import the lines of FILE, which an export has written; - is stdin.

    Events keep ids, times, versions, tags, metadata and the bytes of their data; their positions
    are new. If it breaks off, run it again: what is there is not imported twice. Of a chunk with
    a bad line, nothing is written.

    \b
      datapatterns events import events.jsonl.gz --dry-run
      datapatterns events import events.jsonl.gz
    """  # noqa: D301
    _import(invocation, **options)


def _import(
    invocation: Invocation,
    *,
    file: Path,
    source: str | None,
    chunk_events: int,
    renumber: bool,
    dry_run: bool,
) -> None:
    from datapatterns.event_sourcing import LinesImport  # noqa: PLC0415 -- help must not wait

    layer = invocation.layer()
    wanted = LinesImport(
        layer.events, source, keep_versions=not renumber, chunk_events=chunk_events
    )
    with _lines(file) as lines:
        if dry_run:
            _check(invocation, wanted, lines)
            return
        done = _run(invocation, wanted, layer, lines)
    invocation.output.values(
        {"imported": done.events, "there_before": done.repeated, "lines": done.lines}
    )


def _run(
    invocation: Invocation, wanted: "LinesImport", layer: "DataLayer", lines: IO[bytes]
) -> "LinesImported":
    with invocation.output.progress("importing", None) as advance:
        seen = 0

        def report(done: "LinesImported") -> None:
            nonlocal seen
            advance(done.lines - seen)
            seen = done.lines

        try:
            return wanted.run(layer.engine, lines, report=report)
        except ValueError as error:  # of the file: times that go back, no name of a source
            raise click.UsageError(str(error)) from error


def _check(invocation: Invocation, wanted: "LinesImport", lines: IO[bytes]) -> None:
    from datapatterns import ConfigurationError  # noqa: PLC0415 -- help must not wait for it

    found = wanted.check(lines)
    rows = [{"line": problem.line, "reason": problem.reason} for problem in found.problems]
    if rows:
        invocation.output.table(rows)
        at_least = "at least " if len(rows) == 100 else ""  # noqa: PLR2004 -- as many as are named
        raise ConfigurationError(f"{at_least}{len(rows)} of {found.lines} lines are bad")
    invocation.output.values({"would_import": found.events, "lines": found.lines})


@contextmanager
def _lines(file: Path) -> Iterator[IO[bytes]]:
    if file == _STDIO:
        yield sys.stdin.buffer
        return
    from datapatterns.event_sourcing import open_lines  # noqa: PLC0415 -- help must not wait

    if not file.exists():
        raise click.UsageError(f"there is no file {file}")
    with open_lines(file) as lines:
        yield lines
