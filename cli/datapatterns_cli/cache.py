"""`datapatterns cache`: how the caches stand, and what is done with them."""

import click

from datapatterns_cli import cache_auditing, cache_forgetting, cache_looking
from datapatterns_cli.shared_options import Group


@click.group(cls=Group)
def cache() -> None:
    """Look at caches and their relay, audit them, forget entries.

    \b
      datapatterns cache stats --app shop.data:layer
      datapatterns cache audit product --app shop.data:layer
      datapatterns cache invalidate product 819312 --app shop.data:layer
      datapatterns cache relay --app shop.data:layer
    """  # noqa: D301


for _command in (
    cache_looking.stats,
    cache_auditing.audit,
    cache_forgetting.invalidate,
    cache_forgetting.relay,
):
    cache.add_command(_command)
