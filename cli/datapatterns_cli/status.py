"""`datapatterns status`: how stale is everything that is derived, and what is in the way?"""

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from datapatterns_cli.invocation import Invocation, pass_invocation
from datapatterns_cli.shards_cluster import cluster_too_option, load_cluster
from datapatterns_cli.shared_options import Command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datapatterns.overview import Standing

_PATTERNS = (
    "cache",
    "change log",
    "index",
    "log",
    "move",
    "projection",
    "server",
    "shard",
    "view",
)
_MARKS = {"fine": "ok", "waiting": "...", "wrong": "WRONG"}


@click.command(cls=Command)
@click.argument("patterns", nargs=-1, type=click.Choice(_PATTERNS), metavar="[PATTERN]...")
@click.option("--problems", is_flag=True, help="Only what needs somebody, or is being worked at.")
@click.option(
    "--late-seconds",
    type=click.FloatRange(0),
    default=60.0,
    show_default=True,
    help="After how long what is behind is wrong, unless its declaration says.",
)
@cluster_too_option
@pass_invocation
def status(
    invocation: Invocation,
    *,
    patterns: tuple[str, ...],
    problems: bool,
    late_seconds: float,
    where: str | None,
) -> None:
    """Show how everything stands that an application declares, or these patterns of it.

    PATTERN is cache, 'change log', index, log, move, projection, server, shard or view. Ends with
    1 if something needs somebody; what that is, and what mends it, is told on stderr. A server
    that is away is one of the answers: all others are asked nevertheless.

    \b
      datapatterns status --app shop.data:layer
      datapatterns status view projection --problems --json
      datapatterns status shard move --cluster shop.data:cluster
    """  # noqa: D301
    layer = invocation.layer()
    with ExitStack() as stack:
        clusters = [] if where is None else [stack.enter_context(load_cluster(where))]
        found = layer.status(late_seconds=late_seconds, clusters=clusters)
    shown = [
        one
        for one in found
        # Of what a server that is away holds nothing is known, so it is told in any case.
        if (not patterns or one.pattern in patterns or _hides_others(one))
        and not (problems and one.concern.value == "fine")
    ]
    invocation.output.table(
        [_row(invocation, one) for one in shown],
        empty="nothing needs anybody" if problems else "nothing of this is declared",
    )
    wrong = [one for one in shown if one.concern.value == "wrong"]
    if not invocation.output.as_json:
        _tell(invocation, wrong)
    if wrong:
        click.get_current_context().exit(1)


def _hides_others(one: "Standing") -> bool:
    return one.pattern == "server" and one.concern.value == "wrong"


def _row(invocation: Invocation, one: "Standing") -> dict[str, Any]:
    stale = None if one.stale_seconds is None else round(one.stale_seconds, 1)
    row = {
        "pattern": one.pattern,
        "name": one.name,
        "database": one.database,
        "concern": one.concern.value if invocation.output.as_json else _MARKS[one.concern.value],
        "state": one.state,
        "stale_seconds": stale,
        "pending": one.pending,
        "owner": one.owner,
    }
    if invocation.output.as_json:
        row |= {"reason": one.reason, "advice": one.advice}
    return row


def _tell(invocation: Invocation, wrong: "Sequence[Standing]") -> None:
    for one in wrong:
        reason = one.reason or one.state
        advice = f": {one.advice}" if one.advice else ""
        where = "" if one.database == one.name else f" in {one.database}"
        invocation.output.note(f"{one.pattern} {one.name}{where}: {reason}{advice}")
