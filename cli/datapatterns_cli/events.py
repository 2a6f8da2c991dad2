"""`datapatterns events`: look into the log, check it, and move events in and out."""

import click

from datapatterns_cli import (
    events_checking,
    events_copying,
    events_keeping,
    events_moving,
    events_reading,
)
from datapatterns_cli.shared_options import Group


@click.group(cls=Group)
def events() -> None:
    """Look into the event store, check it, and move events in and out.

    Events are shown as they are stored, so that one which today's code cannot read can be seen,
    too. Only `show` decodes, where --app says how. Encrypted data stay encrypted.

    \b
      datapatterns events tail --database-url postgresql://ann@db.example/shop
      datapatterns events stream basket 31198570044 --backwards --limit 3
      datapatterns events check --app shop.data:layer || echo "an upcaster is missing"
      datapatterns events export events.jsonl.gz
    """  # noqa: D301


for _command in (
    events_reading.tail,
    events_reading.stream,
    events_reading.show,
    events_reading.blockers,
    events_checking.check,
    events_checking.seal,
    events_checking.verify_chain,
    events_copying.export,
    events_copying.import_,
    events_moving.import_eventsourcing,
    events_keeping.snapshot,
    events_keeping.archive,
    events_keeping.forget,
):
    events.add_command(_command)
