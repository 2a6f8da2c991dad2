"""`datapatterns projections status`: how far each version is, who runs it, what is wrong."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from datapatterns_cli.invocation import Invocation, pass_invocation
from datapatterns_cli.shared_options import Command

if TYPE_CHECKING:
    from datapatterns.cqrs import ProjectionStatus, SegmentStatus

_BAR_CELLS = 10
_OWNER_CHARS = 30


@click.command(cls=Command)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--all", "everything", is_flag=True, help="Retired versions, too.")
@click.option("--segments", is_flag=True, help="A row for each segment.")
@click.option("--events", "count", is_flag=True, help="Count the events that are not seen yet.")
@pass_invocation
def status(
    invocation: Invocation,
    *,
    names: tuple[str, ...],
    everything: bool,
    segments: bool,
    count: bool,
) -> None:
    """Show how each read model stands: its versions, how far each is, who moves it on.

    A version is as far as the segment that is last. Positions count gaps of undone appends, too;
    --events counts exactly, which reads the index of all that is not seen. Who holds all readers
    of the log back is told on stderr.

    \b
      datapatterns projections status
      datapatterns projections status sales_by_product --segments --json
    """  # noqa: D301
    layer = invocation.layer()
    with layer.read_engine.connect().execution_options(isolation_level="READ COMMITTED") as conn:
        found = [
            one
            for one in layer.projections.status(conn)
            if (not names or one.name in names) and (everything or one.status != "retired")
        ]
        behind = {
            (one.name, one.version): layer.projections.events_behind(conn, one)
            for one in found
            if count
        }
    with layer.engine.connect() as conn:  # of the events, which may be on another server
        blockers = layer.events.blockers(conn)
    for name in sorted(set(names) - {one.name for one in found}):
        invocation.output.note(f"{name} has never been run here")
    shown = _segment_row if segments else _row
    rows: list[dict[str, Any]] = []
    for one in found:
        counted = {"events_behind": behind[one.name, one.version]} if count else {}
        rows += [row | counted for row in shown(invocation, one)]
    invocation.output.table(rows, empty="no projection has been run yet")
    for one in found:
        _tell_errors(invocation, one)
    for blocker in blockers:
        holder = f"pid {blocker.pid}" if blocker.pid else f"prepared {blocker.prepared_as!r}"
        since = f" for {_seconds_since(blocker.since):.0f} s" if blocker.since else ""
        invocation.output.note(
            f"{holder} ({blocker.state}{since}) holds readers of the log back before"
            f" {blocker.positions} positions; ask: datapatterns events blockers"
        )


def _row(invocation: Invocation, one: "ProjectionStatus") -> Iterator[dict[str, Any]]:
    row: dict[str, Any] = {
        "name": one.name,
        "version": one.version,
        "status": one.status if one.mode == "async" else f"{one.status} {one.mode}",
        "kind": one.kind,
        "position": one.position,
    }
    if not invocation.output.as_json:
        row["progress"] = _bar(one.position, one.position + one.positions_behind)
    yield row | {
        "positions_behind": one.positions_behind,
        "seconds_behind": round(one.seconds_behind, 1),
        "segments": len(one.segments),
        "parked": one.parked,
        "owners": list(one.owners) if invocation.output.as_json else _owners(one),
        "error": one.error if invocation.output.as_json else _short(one.error),
    }


def _segment_row(invocation: Invocation, one: "ProjectionStatus") -> Iterator[dict[str, Any]]:
    for segment in one.segments:
        yield {
            "name": one.name,
            "version": one.version,
            "status": one.status,
            "segment": f"{segment.shard}/{segment.mask + 1}",
            "position": segment.position,
            "parked": segment.parked,
            "owner": segment.owner,
            "lease": _lease(segment),
            "error": segment.error if invocation.output.as_json else _short(segment.error),
        }


def _tell_errors(invocation: Invocation, one: "ProjectionStatus") -> None:
    if invocation.output.as_json:
        return
    for segment in one.segments:
        if segment.error is not None:
            error = segment.error
            at = f" at position {error['position']}" if error.get("position") else ""
            where = f" in segment {segment.shard}/{segment.mask + 1}" if segment.mask else ""
            invocation.output.note(
                f"{one.name} version {one.version}{where} stopped{at}:"
                f" {error.get('error')}: {error.get('message')}"
            )


def _short(error: Any) -> str | None:  # noqa: ANN401 -- what the database keeps of an error
    if error is None:
        return None
    at = f" at {error['position']}" if error.get("position") else ""
    return f"{error.get('error')}{at}"


def _owners(one: "ProjectionStatus") -> str | None:
    return ", ".join(owner[:_OWNER_CHARS] for owner in one.owners) or None


def _lease(segment: "SegmentStatus") -> str:
    if segment.owner is None or segment.lease_until is None:
        return "free"
    return "held" if segment.lease_until > datetime.now(UTC) else "lapsed"


def _bar(done: int, whole: int) -> str:
    if whole <= 0:
        return "█" * _BAR_CELLS
    share = min(1.0, done / whole)
    full = _BAR_CELLS if share >= 1 else min(_BAR_CELLS - 1, int(share * _BAR_CELLS))
    percent = 100 if share >= 1 else min(99, int(share * 100))
    return f"{'█' * full}{'░' * (_BAR_CELLS - full)} {percent}%"


def _seconds_since(moment: datetime) -> float:
    return (datetime.now(UTC) - moment).total_seconds()
