"""`datapatterns projections`: how read models stand, and what is done with them."""

import click

from datapatterns_cli import (
    projections_parked,
    projections_running,
    projections_status,
    projections_verifying,
    projections_versions,
)
from datapatterns_cli.shared_options import Group


@click.group(cls=Group)
def projections() -> None:
    """Look at read models, move them on, and share them out over workers.

    \b
      datapatterns projections status --database-url postgresql://ann@db.example/shop
      datapatterns projections run sales_by_product --app shop.data:layer
      datapatterns projections rebuild sales_by_product --app shop.data:layer
      datapatterns projections split sales_by_product --into 4 --app shop.data:layer
      datapatterns projections verify --sample 5% --app shop.data:layer
    """  # noqa: D301


for _command in (
    projections_status.status,
    projections_running.run,
    projections_running.split,
    projections_running.merge,
    projections_verifying.verify,
    projections_parked.parked,
    projections_parked.retry,
    projections_parked.discard,
    projections_parked.skipped,
    projections_versions.rebuild,
    projections_versions.promote,
    projections_versions.rollback,
    projections_versions.retire,
):
    projections.add_command(_command)
