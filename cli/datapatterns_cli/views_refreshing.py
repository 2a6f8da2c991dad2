"""`datapatterns views populate|refresh|rebuild`: fill views, take changes in, mend them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from datapatterns_cli.invocation import Invocation, pass_invocation
from datapatterns_cli.shared_options import Command, dry_run_option
from datapatterns_cli.views_conditions import condition_of
from datapatterns_cli.views_looking import statuses

if TYPE_CHECKING:
    from datapatterns import DataLayer
    from datapatterns.materialized_view import RefreshReport, ViewStatus

_names = click.argument("names", nargs=-1, metavar="[NAME]...")


@click.command(cls=Command)
@_names
@dry_run_option
@pass_invocation
def populate(invocation: Invocation, *, names: tuple[str, ...], dry_run: bool) -> None:
    """Fill the views that are not filled yet: all that the app declares, or these.

    What they are built upon is filled before them. Writers and readers go on.

    \b
      datapatterns views populate --app shop.data:layer
    """  # noqa: D301
    layer = _layer(invocation)
    wanted = [one for one in _in_order(layer, names) if one.state.value == "unpopulated"]
    if dry_run:
        _would(invocation, wanted, empty="all of them are filled")
        return
    with _told(invocation, "filling views", len(wanted), empty="all were filled") as on_view:
        layer.views.populate(layer.engine, names, on_view=on_view)


@click.command(cls=Command)
@_names
@click.option("--skip-locked", is_flag=True, help="Leave out what somebody else is refreshing.")
@dry_run_option
@pass_invocation
def refresh(
    invocation: Invocation, *, names: tuple[str, ...], skip_locked: bool, dry_run: bool
) -> None:
    """Take all committed changes in, of all views that the app declares, or of these.

    What they are built upon is refreshed before them. Workers may run meanwhile; to refresh
    views for ever start `datapatterns worker`.

    \b
      datapatterns views refresh --app shop.data:layer
      datapatterns views refresh weekly_sales --dry-run
    """  # noqa: D301
    layer = _layer(invocation)
    wanted = _in_order(layer, names)
    if dry_run:
        _would(invocation, wanted)
        return
    with _told(invocation, "refreshing views", len(wanted), empty="others are at it") as on_view:
        layer.views.refresh(layer.engine, names, skip_locked=skip_locked, on_view=on_view)


@click.command(cls=Command)
@click.argument("names", nargs=-1, metavar="NAME...", required=True)
@click.option(
    "--where",
    "conditions",
    multiple=True,
    metavar="CONDITION",
    help="Only these rows, such as 'week>=7'; several are all meant.",
)
@dry_run_option
@pass_invocation
def rebuild(
    invocation: Invocation, *, names: tuple[str, ...], conditions: tuple[str, ...], dry_run: bool
) -> None:
    """Make these views right whatever they hold, writing only the rows that differ.

    With --where, on columns that the query groups by, the query runs for these rows alone; the
    others are refreshed.

    \b
      datapatterns views rebuild weekly_sales --app shop.data:layer
      datapatterns views rebuild weekly_sales --where 'week>=7' --where 'week<9'
    """  # noqa: D301
    if conditions and len(names) != 1:
        raise click.UsageError("--where is about the columns of one view; name it")
    where = condition_of(conditions)
    layer = _layer(invocation)
    wanted = statuses(layer, names, limit=1)
    if dry_run:
        _would(invocation, wanted)
        return
    with _told(invocation, "rebuilding views", len(wanted)) as on_view:
        try:
            layer.views.rebuild(layer.engine, names, where=where, on_view=on_view)
        except ValueError as error:
            raise click.UsageError(str(error)) from error


def _layer(invocation: Invocation) -> "DataLayer":
    layer = invocation.layer()
    if not layer.views.declared:
        raise click.UsageError(
            "no view is declared; name the app that has DataLayer(views=[...]): --app"
        )
    return layer


def _in_order(layer: "DataLayer", names: Sequence[str]) -> "list[ViewStatus]":
    return statuses(layer, layer.views.with_ancestors(names), limit=100_000)


def _would(
    invocation: Invocation, wanted: "Sequence[ViewStatus]", *, empty: str = "nothing found"
) -> None:
    rows = [
        {
            "name": one.name,
            "state": one.state.value,
            "strategy": one.explanation.strategy.value,
            "pending_rows": None if one.freshness is None else one.freshness.pending_rows,
            "done": False,
        }
        for one in wanted
    ]
    invocation.output.table(rows, empty=empty)


@contextmanager
def _told(
    invocation: Invocation, title: str, count: int, *, empty: str = "nothing found"
) -> "Iterator[Callable[[str, RefreshReport], None]]":
    """Show how many are done, and in the end what was: also if one of them fails."""
    rows: list[dict[str, Any]] = []
    with invocation.output.progress(title, count) as advance:

        def on_view(name: str, report: "RefreshReport") -> None:
            rows.append(
                {
                    "name": name,
                    "strategy": report.strategy.value,
                    "pending_rows": report.pending_rows,
                    "rows_changed": report.rows_changed,
                    "seconds": round(report.duration_seconds, 3),
                    "partitions": report.partitions,
                    "done": True,
                }
            )
            advance(1)
            if report.reason is not None:
                invocation.output.note(f"{name} was rebuilt: {report.reason}")

        try:
            yield on_view
        except BaseException:
            if rows:
                invocation.output.table(rows)
            raise
    invocation.output.table(rows, empty=empty)
