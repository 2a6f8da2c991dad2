"""`datapatterns views`: how materialized views stand, and what is done with them."""

import click

from datapatterns_cli import views_looking, views_refreshing, views_verifying
from datapatterns_cli.shared_options import Group


@click.group(cls=Group)
def views() -> None:
    """Look at materialized views, refresh, mend and verify them.

    \b
      datapatterns views list --app shop.data:layer
      datapatterns views explain weekly_sales --app shop.data:layer
      datapatterns views populate --app shop.data:layer
      datapatterns views refresh weekly_sales --app shop.data:layer
      datapatterns views verify --sample 5% --app shop.data:layer
    """  # noqa: D301


for _command in (
    views_looking.list_views,
    views_looking.explain,
    views_refreshing.populate,
    views_refreshing.refresh,
    views_refreshing.rebuild,
    views_verifying.verify,
):
    views.add_command(_command)
