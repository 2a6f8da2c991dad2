"""`datapatterns cache stats`: does the relay keep up, and what does Redis hold?"""

from typing import TYPE_CHECKING

import click

from datapatterns_cli.invocation import Invocation, pass_invocation
from datapatterns_cli.shared_options import Command

if TYPE_CHECKING:
    from datapatterns.cache_aside import RelayStatus


@click.command(cls=Command)
@pass_invocation
def stats(invocation: Invocation) -> None:
    """Show whether hits are served, what waits to be sent, and how many values each cache has.

    What a process has served it counts itself: Cache.stats(), or its observer.

    \b
      datapatterns cache stats --app shop.data:layer
      datapatterns cache stats --json
    """  # noqa: D301
    layer = invocation.layer()
    status = layer.cache_relay().status()
    age = status.round_age_seconds
    shown = {
        "target": status.target,
        "serves_hits": status.is_vouched_for,
        "last_round_seconds_ago": None if age is None else round(age, 3),
        "waiting_rows": status.waiting_rows,
        "waiting_seconds": round(status.waiting_seconds, 3),
    }
    if invocation.output.as_json:
        followed = [
            {"table": each.name, "caches": each.caches, "unlogged_columns": each.further_columns}
            for each in status.followed
        ]
        invocation.output.values({**shown, "values": dict(status.values), "followed": followed})
        return
    invocation.output.values(shown)
    rows = [{"cache": name, "values": count} for name, count in status.values.items()]
    invocation.output.table(rows, empty="no values are kept")
    if status.followed:
        invocation.output.table(
            [
                {"followed_table": each.name, "caches": ", ".join(each.caches) or None}
                for each in status.followed
            ]
        )
    _note(invocation, status)


def _note(invocation: Invocation, status: "RelayStatus") -> None:
    if status.is_vouched_for is None and status.is_known:
        invocation.output.note("Redis does not answer")
    if status.is_vouched_for is False:
        invocation.output.note(
            "no round has ended lately for this server, so the next reader runs one: is a worker"
            " running? datapatterns worker"
        )
    for each in status.followed:
        if each.further_columns:
            columns = ", ".join(each.further_columns)
            invocation.output.note(
                f"{each.name}: changes of {columns} are not logged, so everything is forgotten each"
                " round; let its owner call Cache.capture() again"
            )
