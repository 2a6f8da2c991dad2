"""`datapatterns events check|seal|verify-chain`: is all of it readable, and as it was?"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from datapatterns_cli.invocation import Invocation, pass_invocation
from datapatterns_cli.shared_options import Command

if TYPE_CHECKING:
    from datapatterns import DataLayer
    from datapatterns.event_sourcing import ChainReport, HashChain, Seal

_anchor = click.option(
    "--anchor",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A file that keeps the digests outside the database; let another account own it.",
)


@click.command(cls=Command)
@click.option("--count", is_flag=True, help="Say how many events of each type; reads all of them.")
@click.option(
    "--sample",
    type=click.IntRange(0, 10_000),
    default=10,
    show_default=True,
    help="Also decode so many of the newest and of the oldest events of each type.",
)
@pass_invocation
def check(invocation: Invocation, *, count: bool, sample: int) -> None:
    """Exit with 0 only if the application can read every type of event that is stored.

    Run it before a deployment, on the database that it is for: it compares the types that were
    ever stored with the classes and upcasters that the application declares. Exits with 2 if
    something is missing, and names it.

    \b
      datapatterns events check --app shop.data:layer
      datapatterns events check --app shop.data:layer --sample 100 --count
    """  # noqa: D301
    from datapatterns import ConfigurationError  # noqa: PLC0415 -- help must not wait for it
    from datapatterns.event_sourcing import check_events  # noqa: PLC0415

    layer = invocation.layer()
    if not invocation.names_app:
        raise click.UsageError("which code is to read the events? Give --app")
    with layer.engine.connect() as conn:
        found = check_events(conn, layer.events, count_events=count, sample=sample)
    rows = [
        {
            "type": one.event_type,
            "schema_version": one.schema_version,
            "verdict": one.verdict.value,
            "becomes": ", ".join(one.becomes),
            **({"events": one.events} if count else {}),
            "reason": one.reason,
        }
        for one in found.types
    ]
    invocation.output.table(rows, empty="no events are stored yet")
    if not found.ok:
        error = ConfigurationError(f"this code cannot read what is stored: {found.summary}")
        for problem in found.problems:
            error.add_note(problem)
        raise error
    invocation.output.note(found.summary)


@click.command(cls=Command)
@_anchor
@click.option(
    "--segment-events",
    type=click.IntRange(1, 1_000_000),
    default=10_000,
    show_default=True,
    help="How many events a digest covers.",
)
@click.option("--dry-run", is_flag=True, help="Only tell how much would be sealed.")
@pass_invocation
def seal(
    invocation: Invocation, *, anchor: Path | None, segment_events: int, dry_run: bool
) -> None:
    """Seal what is final in a chain of digests, so that a later change is found.

    Run it again and again, from wherever you like. Without an anchor, who owns the tables can
    change events and seal them anew.

    \b
      datapatterns events seal --anchor /mnt/elsewhere/shop.seals
    """  # noqa: D301
    layer = invocation.layer()
    if dry_run:
        with layer.engine.connect() as conn:
            events = _chain(layer, anchor).unsealed(conn)
        segments = math.ceil(events / segment_events)
        invocation.output.values({"would_seal_segments": segments, "would_seal_events": events})
        return
    with layer.engine.connect() as conn:
        mark = layer.events.high_water_mark(conn)
    with invocation.output.progress("sealing", 1) as advance:
        first: int | None = None

        def report(sealed: "Seal") -> None:
            nonlocal first
            first = sealed.after if first is None else first
            advance(sealed.last_position - sealed.after, total=max(mark - first, 1))

        sealed = _chain(layer, anchor).seal_all(layer.engine, limit=segment_events, report=report)
    invocation.output.values({"sealed_segments": sealed})


@click.command(cls=Command)
@_anchor
@click.option(
    "--after-segment",
    type=click.IntRange(0),
    default=0,
    help="Take this segment, and all before, as verified.",
)
@pass_invocation
def verify_chain(invocation: Invocation, *, anchor: Path | None, after_segment: int) -> None:
    """Hash every sealed event again; exit with 5 unless all are as they were sealed.

    \b
      datapatterns events verify-chain --anchor /mnt/elsewhere/shop.seals
    """  # noqa: D301
    from datapatterns import CorruptionError  # noqa: PLC0415 -- help must not wait for it

    layer = invocation.layer()
    if anchor and not anchor.exists():  # as if nothing had ever been written down
        raise click.UsageError(f"there is no anchor {anchor}; verify on the machine that has it")
    with layer.engine.connect() as conn, _positions(invocation, layer) as report:
        try:
            found = _chain(layer, anchor).verify(conn, after_segment=after_segment, report=report)
        except ValueError as error:
            raise click.UsageError(str(error)) from error
    broken = found.broken
    invocation.output.values(
        {
            "intact": found.intact,
            "segments": found.segments,
            "events": found.events,
            "purged": found.purged,
            "anchored": found.anchored,
            "last_position": found.last_position,
            "broken_segment": broken and broken.segment,
        }
    )
    if broken is not None:
        raise CorruptionError(
            f"segment {broken.segment}, behind position {broken.after} and up to"
            f" {broken.last_position}: {broken.reason}"
        )


@contextmanager
def _positions(
    invocation: Invocation, layer: "DataLayer"
) -> Iterator[Callable[["ChainReport"], None]]:
    """Show how far it has come; what was taken as verified counts, too."""
    with layer.engine.connect() as conn:
        mark = layer.events.high_water_mark(conn)
    with invocation.output.progress("verifying", max(mark, 1)) as advance:
        seen = 0

        def report(found: "ChainReport") -> None:
            nonlocal seen
            advance(found.last_position - seen)
            seen = found.last_position

        yield report


def _chain(layer: "DataLayer", anchor: Path | None) -> "HashChain":
    from datapatterns.event_sourcing import FileAnchor, HashChain  # noqa: PLC0415

    if anchor and anchor.exists() and not anchor.is_file():  # a device may have no end
        raise click.UsageError(f"the anchor {anchor} is no file; choose another name")
    return HashChain(layer.events, FileAnchor(anchor) if anchor else None)
