"""`datapatterns shards references`: rows that refer to what is not there."""

from typing import TYPE_CHECKING, Any

import click

from datapatterns_cli.invocation import Invocation, pass_invocation
from datapatterns_cli.named_objects import bad_option
from datapatterns_cli.output import Advance
from datapatterns_cli.shards_cluster import cluster_option, load_cluster
from datapatterns_cli.shared_options import Command

if TYPE_CHECKING:
    from datapatterns.sharding import ReferenceAudit


@click.command(cls=Command)
@click.argument("names", nargs=-1)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=1_000,
    show_default=True,
    help="Stop at so many broken rows of a reference.",
)
@click.option(
    "--rows-at-once",
    type=click.IntRange(min=1),
    default=1_000,
    show_default=True,
    help="Hold so many rows in memory.",
)
@cluster_option
@pass_invocation
def references(
    invocation: Invocation, where: str, names: tuple[str, ...], limit: int, rows_at_once: int
) -> None:
    """List rows that refer to rows which no shard has, of all references unless NAMES are given.

    Ends with 1 if there are any, or if others held one locked all the time. Reads the tables that
    refer whole; rows may be written and buckets moved meanwhile.

    \b
      datapatterns shards references --cluster shop.data:cluster
      datapatterns shards references order_customer_id --limit 10 --cluster shop.data:cluster
    """  # noqa: D301
    with load_cluster(where) as cluster:
        known = [each.name for each in cluster.references]
        for name in names:
            if name not in known:
                raise bad_option(
                    f"there is no reference {name!r}; there are {', '.join(known) or 'none'}",
                    "NAMES",
                )
        with invocation.output.progress("rows looked at", None) as advance:
            found = cluster.audit_references(
                *names, limit=limit, rows_at_once=rows_at_once, progress=_Telling(advance)
            )
    _show(invocation, found)
    if not all(audit.is_whole for audit in found):
        click.get_current_context().exit(1)


class _Telling:
    """Tells how many rows have been looked at since it was told so before."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance
        self._before = ("", 0)

    def __call__(self, audit: "ReferenceAudit") -> None:
        name, rows = self._before
        self._advance(audit.rows - (rows if name == audit.reference else 0))
        self._before = (audit.reference, audit.rows)


def _line(audit: "ReferenceAudit") -> str:
    line = f"{audit.reference}: {audit.rows} rows, {len(audit.broken)} broken"
    if audit.undecided:
        line += f", {len(audit.undecided)} held by others"
    return line if audit.complete else f"{line}, not all of them looked at"


def _show(invocation: Invocation, found: "list[ReferenceAudit]") -> None:
    rows: list[dict[str, Any]] = [
        {
            "reference": audit.reference,
            "state": state,
            "shard": each.shard,
            "row": [*map(_shown, each.row)],
            "refers_to": [*map(_shown, each.refers_to)],
        }
        for audit in found
        for state, those in (("broken", audit.broken), ("undecided", audit.undecided))
        for each in those
    ]
    invocation.output.table(rows, empty="every row refers to one that is there")
    for audit in found:
        invocation.output.note(_line(audit))


def _shown(value: object) -> object:
    return value if isinstance(value, int | str) else str(value)
