"""`datapatterns doctor`: are the servers there, and fit for the library?"""

from dataclasses import asdict

import click

from datapatterns_cli.invocation import Invocation, pass_invocation
from datapatterns_cli.shared_options import Command


@click.command(cls=Command)
@pass_invocation
def doctor(invocation: Invocation) -> None:
    """Ask every server whether it is there and new enough.

    PostgreSQL must be 14 or newer, Redis 7 or newer (or Valkey).

    \b
      datapatterns doctor --app shop.data:layer
    """  # noqa: D301
    invocation.output.table([asdict(report) for report in invocation.layer().check()])
