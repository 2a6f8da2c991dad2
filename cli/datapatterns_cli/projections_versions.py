"""`datapatterns projections rebuild|promote|rollback|retire`: versions and their places."""

from typing import TYPE_CHECKING, Any

import click

from datapatterns_cli.invocation import Invocation, pass_invocation
from datapatterns_cli.shared_options import Command, dry_run_option

if TYPE_CHECKING:
    from datapatterns import DataLayer
    from datapatterns.cqrs import AnyProjection, BuildProgress

_NOTE_EVERY = 0.1

_name = click.argument("name")
_version = click.option(
    "--version", type=click.IntRange(1), help="Which version.  [default: the newest declared]"
)
_timeout = click.option(
    "--timeout-seconds",
    type=click.FloatRange(0),
    default=60.0,
    show_default=True,
    help="How long to try.",
)
_lock = click.option(
    "--lock-seconds",
    type=click.FloatRange(0, min_open=True),
    default=0.05,
    show_default=True,
    help="How long readers may be made to wait at each attempt.",
)


@click.command(cls=Command)
@_name
@_version
@click.option("--promote/--no-promote", default=True, help="Let it take the place of the live one.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True)
@click.option("--rows-max", type=click.IntRange(1), default=1_000_000, show_default=True)
@click.option("--page-events", type=click.IntRange(1), help="How many are read at once.")
@dry_run_option
@pass_invocation
def rebuild(
    invocation: Invocation,
    /,
    *,
    name: str,
    version: int | None,
    promote: bool,
    dry_run: bool,
    **manner: Any,  # noqa: ANN401 -- options, as click has checked them
) -> None:
    """Build a read model anew from the log: beside the live version, or in place if it is live.

    \b
      datapatterns projections rebuild sales_by_product --app shop.data:layer
      datapatterns projections rebuild sales_by_product --no-promote --workers 2
    """  # noqa: D301
    layer = invocation.layer()
    projection = layer.projections.find(name, version=version)
    standing = _statuses(layer, name)
    in_place = standing.get(projection.version) == "live" or "live" not in standing.values()
    told = {"name": name, "version": projection.version, "in_place": in_place}
    if dry_run:
        invocation.output.values(told | {"promote": promote and not in_place, "done": False})
        return
    done = _rebuilt(invocation, layer, projection, promote, manner)
    status = _statuses(layer, name).get(projection.version)
    invocation.output.values(
        told | {"status": status, "position": done[0], "events": done[1], "done": True}
    )


def _rebuilt(
    invocation: Invocation,
    layer: "DataLayer",
    projection: "type[AnyProjection]",
    promote: bool,  # noqa: FBT001 -- of the command
    manner: dict[str, Any],
) -> tuple[int, int]:
    shown, noted = 0, 0.0
    with invocation.output.progress(projection.name, None) as advance:

        def tell(progress: "BuildProgress") -> None:
            nonlocal shown, noted
            advance(progress.position - shown, total=progress.target)
            shown = progress.position
            if invocation.output.shows_progress or progress.share - noted < _NOTE_EVERY:
                return
            noted = progress.share
            left = progress.seconds_left
            remaining = "" if left is None else f", {left:.0f} s left"
            invocation.output.note(
                f"{projection.name}: {progress.share:.0%}, {progress.events_per_second:,.0f}"
                f" events/s{remaining}"
            )

        done = layer.projections.rebuild(
            layer.read_engine, projection, promote=promote, on_progress=tell, **manner
        )
    return done.position, done.events


@click.command(cls=Command)
@_name
@_version
@_timeout
@_lock
@dry_run_option
@pass_invocation
def promote(
    invocation: Invocation,
    *,
    name: str,
    version: int | None,
    timeout_seconds: float,
    lock_seconds: float,
    dry_run: bool,
) -> None:
    """Let a version that is ready take the place of the live one; queries do not change.

    \b
      datapatterns projections promote sales_by_product --dry-run --app shop.data:layer
    """  # noqa: D301
    layer = invocation.layer()
    projection = layer.projections.find(name, version=version)
    replaced = layer.projections.would_replace(layer.read_engine, projection)
    if not dry_run:
        layer.projections.promote(
            layer.read_engine,
            projection,
            timeout_seconds=timeout_seconds,
            lock_seconds=lock_seconds,
        )
    invocation.output.values(
        {
            "name": name,
            "version": projection.version,
            "instead_of": replaced,
            "done": not dry_run,
        }
    )


@click.command(cls=Command)
@_name
@click.option("--version", type=click.IntRange(1), help="To which.  [default: the one before]")
@click.option("--allow-older", is_flag=True, help="Readers may see a step back.")
@_timeout
@_lock
@dry_run_option
@pass_invocation
def rollback(  # noqa: PLR0913 -- its options
    invocation: Invocation,
    *,
    name: str,
    version: int | None,
    allow_older: bool,
    timeout_seconds: float,
    lock_seconds: float,
    dry_run: bool,
) -> None:
    """Put the version back that was live before.

    \b
      datapatterns projections rollback sales_by_product --app shop.data:layer
    """  # noqa: D301
    layer = invocation.layer()
    if dry_run:
        standing = [v for v, status in _statuses(layer, name).items() if status == "standby"]
        invocation.output.values({"name": name, "could_go_back_to": standing, "done": False})
        return
    back = layer.projections.rollback(
        layer.read_engine,
        name,
        version=version,
        allow_older=allow_older,
        timeout_seconds=timeout_seconds,
        lock_seconds=lock_seconds,
    )
    invocation.output.values({"name": name, "version": back, "done": True})


@click.command(cls=Command)
@_name
@click.option("--version", type=click.IntRange(1), required=True, help="Which version.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@dry_run_option
@pass_invocation
def retire(invocation: Invocation, *, name: str, version: int, yes: bool, dry_run: bool) -> None:
    """Drop the tables, or the keys in Redis, of a version that is not live.

    \b
      datapatterns projections retire sales_by_product --version 1 --app shop.data:layer
    """  # noqa: D301
    layer = invocation.layer()
    status = _statuses(layer, name).get(version)
    told = {"name": name, "version": version, "status": status}
    if dry_run:
        invocation.output.values(told | {"done": False})
        return
    if not yes:
        invocation.output.note(f"What version {version} of {name} has ({status}) is dropped.")
        invocation.output.ask()
    dropped = layer.projections.retire(layer.read_engine, name, version)
    invocation.output.values(told | {"status": "retired", "dropped": dropped, "done": True})


def _statuses(layer: "DataLayer", name: str) -> dict[int, str]:
    fresh = {"isolation_level": "READ COMMITTED"}
    with layer.read_engine.connect().execution_options(**fresh) as conn:
        found = layer.projections.status(conn)
    return {one.version: one.status for one in found if one.name == name}
