"""`datapatterns views list|explain`: how far each view is, how it is kept, and why so."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from datapatterns_cli.invocation import Invocation, pass_invocation
from datapatterns_cli.shared_options import Command

if TYPE_CHECKING:
    from datapatterns import DataLayer
    from datapatterns.materialized_view import ViewStatus

_ADVICE = {
    "unpopulated": "fill it: datapatterns views populate {name}",
    "replacing": "let readers see it: datapatterns views refresh {name}",
    "missing": "create() it in a migration",
    "changed": "drop() it, create() it anew in a migration, then populate it",
    "foreign": "the database was restored: call ChangeLog().rebase(conn), then populate it",
    "overdue": "is a worker running, and how long does a refresh take?",
}


@click.command("list", cls=Command)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=100_000,
    show_default=True,
    help="How far to count the pending changes of each table.",
)
@pass_invocation
def list_views(invocation: Invocation, *, names: tuple[str, ...], limit: int) -> None:
    """Show how each view stands: how far it is behind, when it is refreshed, who is above it.

    What is wrong with one is told on stderr, with what to do.

    \b
      datapatterns views list --app shop.data:layer
      datapatterns views list weekly_sales --json
    """  # noqa: D301
    layer = invocation.layer()
    found = statuses(layer, names, limit=limit)
    invocation.output.table([_row(invocation, one) for one in found], empty="no view is declared")
    for one in found:
        if not invocation.output.as_json and one.state.value in _ADVICE:
            advice = _ADVICE[one.state.value].format(name=one.name)
            invocation.output.note(f"{one.name} is {one.state}: {advice}")


@click.command(cls=Command)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@pass_invocation
def explain(invocation: Invocation, *, names: tuple[str, ...]) -> None:
    """Show how each view is kept, and which clause decided it.

    Of a view that was created this is what the server's types made of it, else what follows from
    the query alone.

    \b
      datapatterns views explain --app shop.data:layer
      datapatterns views explain weekly_sales --json
    """  # noqa: D301
    layer = invocation.layer()
    rows = [
        {
            "name": one.name,
            "strategy": one.explanation.strategy.value,
            "reason": one.explanation.reason,
            "refreshed": str(one.policy),
            "built_upon": _listed(invocation, one.parents),
            "created": one.state.value not in {"missing", "changed"},
        }
        for one in statuses(layer, names, limit=1)
    ]
    invocation.output.table(rows, empty="no view is declared")


def statuses(layer: "DataLayer", names: Sequence[str], *, limit: int) -> "list[ViewStatus]":
    """Return how the views of these names stand, or all that are declared.

    Raises:
        ViewUndeclaredError: One is not declared.
    """
    wanted = {layer.views.find(name).name for name in names}
    with layer.engine.connect().execution_options(isolation_level="READ COMMITTED") as conn:
        found = layer.views.status(conn, limit=limit)
    return [one for one in found if not wanted or one.name in wanted]


def _row(invocation: Invocation, one: "ViewStatus") -> dict[str, Any]:
    fresh = one.freshness
    took = None if fresh is None else fresh.last_duration_seconds
    refreshed_at = None if fresh is None else fresh.refreshed_at
    if refreshed_at is not None and not invocation.output.as_json:
        refreshed_at = refreshed_at.replace(microsecond=0)
    return {
        "name": one.name,
        "state": one.state.value,
        "strategy": one.explanation.strategy.value,
        "pending_rows": None if fresh is None else fresh.pending_rows,
        "stale_seconds": None if fresh is None else round(fresh.stale_seconds, 1),
        "refreshed_at": refreshed_at,
        "took_seconds": None if took is None else round(took, 3),
        "refreshed": str(one.policy),
        "built_upon": _listed(invocation, one.parents),
    }


def _listed(invocation: Invocation, names: tuple[str, ...]) -> list[str] | str | None:
    return list(names) if invocation.output.as_json else ", ".join(names) or None
