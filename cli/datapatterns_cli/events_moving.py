"""`datapatterns events import-eventsourcing`: move in from the library `eventsourcing`."""

from typing import TYPE_CHECKING, Any

import click

from datapatterns_cli.event_rows import Name
from datapatterns_cli.invocation import Invocation, pass_invocation
from datapatterns_cli.named_objects import load_object
from datapatterns_cli.shared_options import Command

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from datapatterns.event_sourcing import (
        EventsourcingImport,
        EventsourcingImported,
        EventsourcingMapping,
    )


@click.command(cls=Command)
@click.option(
    "--from-url",
    type=Name(),  # an empty one would mean the database of the environment
    metavar="URL",
    required=True,
    help="The database of that application.",
)
@click.option(
    "--table",
    default="stored_events",
    show_default=True,
    help="Its events: the application's name in lower case and _events.",
)
@click.option("--from-schema", default="public", show_default=True, help="Where that table lives.")
@click.option(
    "--mapping",
    metavar="MODULE:NAME",
    help="An EventsourcingMapping, for other names, ciphers, compressors and transcodings.",
)
@click.option("--source", help="The name of what is imported.  [default: that of the table]")
@click.option(
    "--by-stream",
    is_flag=True,
    help="Stream by stream: little memory, another order. Of an application that has stopped.",
)
@click.option("--close-gaps", is_flag=True, help="Renumber events behind missing ones.")
@click.option(
    "--chunk-events",
    type=click.IntRange(1, 200_000),
    default=20_000,
    show_default=True,
    help="How many events a transaction has; readers wait for each.",
)
@click.option("--dry-run", is_flag=True, help="Only read and convert all events, and report.")
@pass_invocation
def import_eventsourcing(invocation: Invocation, /, **options: Any) -> None:  # noqa: ANN401
    """Import the events of an application of the Python library eventsourcing (9.x, PostgreSQL).

    Its events keep their versions, times and data; a second run brings what has happened since,
    but not with --by-stream. Snapshots stay behind.

    \b
      datapatterns events import-eventsourcing --from-url postgresql://old.example/kennel \\
          --table kennel_events --dry-run
      datapatterns events import-eventsourcing --from-url postgresql://old.example/kennel \\
          --table kennel_events --mapping shop.moving:mapping
    """  # noqa: D301
    _import(invocation, **options)


def _import(
    invocation: Invocation,
    *,
    from_url: str,
    from_schema: str,
    mapping: str | None,
    dry_run: bool,
    **options: Any,  # noqa: ANN401 -- as EventsourcingImport takes them
) -> None:
    from datapatterns import DataLayer  # noqa: PLC0415 -- help must not wait for it
    from datapatterns.event_sourcing import EventsourcingImport, EventsourcingMapping  # noqa: PLC0415

    layer = invocation.layer()
    wanted = EventsourcingImport(
        layer.events,
        source_schema=from_schema,
        mapping=_mapping(mapping) if mapping else EventsourcingMapping(),
        **options,
    )
    with DataLayer(from_url, shards={}) as old:
        try:
            if dry_run:
                _check(invocation, wanted, old.engine)
                return
            done = _run(invocation, wanted, old.engine, layer.engine)
        except ValueError as error:  # of the source: no such table, times in the future
            raise click.UsageError(str(error)) from error
    _report(invocation, done)


def _run(
    invocation: Invocation, wanted: "EventsourcingImport", old: "Engine", new: "Engine"
) -> "EventsourcingImported":
    with invocation.output.progress("importing", None) as advance:
        seen = 0

        def report(done: "EventsourcingImported") -> None:
            nonlocal seen
            advance(done.read - seen, total=done.total)
            seen = done.read

        return wanted.run(old, new, report=report)


def _check(invocation: Invocation, wanted: "EventsourcingImport", old: "Engine") -> None:
    from datapatterns import ConfigurationError  # noqa: PLC0415 -- help must not wait for it

    found = wanted.check(old)
    if found.problems:
        rows = [{"event": each.event, "reason": each.reason} for each in found.problems]
        invocation.output.table(rows)
        raise ConfigurationError(f"{len(rows)} events or more cannot be imported")
    _report(invocation, found.found)


def _report(invocation: Invocation, done: "EventsourcingImported") -> None:
    report: dict[str, object] = {
        "read": done.read,
        "imported": done.written,
        "there_before": done.repeated,
        "streams": done.streams,
        "times_moved": done.moved,
        "gaps_closed": done.gaps,
        "left_out": sum(done.left_out.values()),
    }
    if invocation.output.as_json:
        report |= {"types": done.types, "left_out": done.left_out}
    invocation.output.values(report)
    if not invocation.output.as_json:
        for topic, name in sorted(done.types.items()):
            invocation.output.note(f"{topic} is {name}")
        for topic, events in sorted(done.left_out.items()):
            invocation.output.note(f"{topic} was left out, {events} events")


def _mapping(where: str) -> "EventsourcingMapping":
    from datapatterns.event_sourcing import EventsourcingMapping  # noqa: PLC0415

    found = load_object(where, option="--mapping")
    if not isinstance(found, EventsourcingMapping):
        raise click.BadParameter(f"{where!r} is no EventsourcingMapping")
    return found
