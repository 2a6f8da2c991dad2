"""`datapatterns projections run|split|merge`: catch up, and share the work out."""

import time
from typing import TYPE_CHECKING

import click

from datapatterns_cli.invocation import Invocation, pass_invocation
from datapatterns_cli.projections_telling import Told
from datapatterns_cli.shared_options import Command

if TYPE_CHECKING:
    from datapatterns import DataLayer
    from datapatterns.cqrs import AnyProjection, ProjectionProgress

_name = click.argument("name")
_version = click.option(
    "--version", type=click.IntRange(1), help="Which version.  [default: the newest declared]"
)
_timeout = click.option(
    "--timeout-seconds",
    type=click.FloatRange(0),
    default=3_600.0,
    show_default=True,
    help="After this much no further page is begun.",
)


@click.command(cls=Command)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@_version
@_timeout
@click.option("--page-events", type=click.IntRange(1), help="How many one transaction applies.")
@pass_invocation
def run(
    invocation: Invocation,
    *,
    names: tuple[str, ...],
    version: int | None,
    timeout_seconds: float,
    page_events: int | None,
) -> None:
    """Bring read models to the end of the log as it is now; all that the app declares, or these.

    Where workers run, they do it, and this only looks. To go on for ever start `datapatterns
    worker`.

    \b
      datapatterns projections run --app shop.data:layer
      datapatterns projections run sales_by_product --page-events 10000
    """  # noqa: D301
    layer = invocation.layer()
    wanted = names or tuple(dict.fromkeys(one.name for one in layer.projections.declared))
    if not wanted:
        raise click.UsageError(
            "nothing is declared to be run; name the app that has DataLayer(projections=[...]):"
            " --app"
        )
    rows = []
    for name in wanted:
        projection = layer.projections.find(name, version=version)
        began = time.monotonic()
        done = _caught_up(invocation, layer, projection, timeout_seconds, page_events)
        seconds = time.monotonic() - began
        rows.append(
            {
                "name": name,
                "version": projection.version,
                "position": done.position,
                "events": done.events,
                "seconds": round(seconds, 2),
                "events_per_second": round(done.events / seconds) if seconds else 0,
            }
        )
    invocation.output.table(rows)


def _caught_up(
    invocation: Invocation,
    layer: "DataLayer",
    projection: "type[AnyProjection]",
    timeout_seconds: float,
    page_events: int | None,
) -> "ProjectionProgress":
    fresh = {"isolation_level": "READ COMMITTED"}
    with layer.engine.connect().execution_options(**fresh) as conn:
        until = layer.events.high_water_mark(conn)
    with layer.read_engine.connect().execution_options(**fresh) as conn:
        found = layer.projections.status(conn)
    position = next(
        (s.position for s in found if (s.name, s.version) == (projection.name, projection.version)),
        0,
    )
    with invocation.output.progress(projection.name, until - position) as advance:
        told = Told(invocation, projection.name, position, until, advance)
        return layer.projections.catch_up(
            layer.read_engine,
            projection,
            until=until,
            timeout_seconds=timeout_seconds,
            page_events=page_events,
            on_page=told.page,
        )


@click.command(cls=Command)
@_name
@_version
@click.option("--into", type=int, metavar="N", help="Into so many in all: 2, 4, 8 and so on.")
@click.option("--segment", type=click.IntRange(0), help="Only this one, in two.")
@_timeout
@pass_invocation
def split(
    invocation: Invocation,
    *,
    name: str,
    version: int | None,
    into: int | None,
    segment: int | None,
    timeout_seconds: float,
) -> None:
    """Split a read model into segments that different workers move on, while they run.

    Its keys are shared out by their hash. Whoever works at it loses one page, which is applied
    again.

    \b
      datapatterns projections split sales_by_product --into 8 --app shop.data:layer
      datapatterns projections split sales_by_product --segment 3
    """  # noqa: D301
    if into is not None and segment is not None:
        raise click.UsageError("give --into or --segment, not both")
    layer = invocation.layer()
    projection = layer.projections.find(name, version=version)
    if into is None:
        count = layer.projections.split(layer.read_engine, projection, shard=segment)
    else:
        count = layer.projections.split_into(
            layer.read_engine, projection, into, timeout_seconds=timeout_seconds
        )
    invocation.output.values({"name": name, "version": projection.version, "segments": count})


@click.command(cls=Command)
@_name
@_version
@click.option("--segment", type=click.IntRange(0), help="This one, with what it was split from.")
@_timeout
@pass_invocation
def merge(
    invocation: Invocation,
    *,
    name: str,
    version: int | None,
    segment: int | None,
    timeout_seconds: float,
) -> None:
    """Merge two segments of a read model; the one that is behind is moved on first.

    To have one again: split --into 1.

    \b
      datapatterns projections merge sales_by_product --app shop.data:layer
    """  # noqa: D301
    layer = invocation.layer()
    projection = layer.projections.find(name, version=version)
    count = layer.projections.merge(
        layer.read_engine, projection, shard=segment, timeout_seconds=timeout_seconds
    )
    invocation.output.values({"name": name, "version": projection.version, "segments": count})
