"""Which indexes a command is about, and how they stand in which database."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import click

from datapatterns_cli.invocation import Invocation

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from datapatterns import DataLayer
    from datapatterns.index_table import IndexReport, IndexTable

T = TypeVar("T")

_MAIN = "main"
WHOLE = ("built", "detached", "verifying", "ready", "failed")
"""Of these can be said whether they hold what they should."""

index_names = click.argument("names", nargs=-1, metavar="[NAME]...")
index_database = click.option(
    "--database",
    metavar="NAME",
    help=f"Only there: {_MAIN!r}, or a shard's name.  [default: wherever the table is]",
)
index_cluster = click.option(
    "--cluster",
    "cluster",
    metavar="MODULE:NAME",
    help="Those over the shards of this ShardCluster instead, or of what a function returns.",
)


def layer_of(invocation: Invocation) -> "DataLayer":
    """Return the layer, which has indexes."""
    layer = invocation.layer()
    if not layer.indexes.declared:
        raise click.UsageError(
            "no index is declared; name the app that has DataLayer(indexes=[...]): --app"
        )
    return layer


def engines_of(layer: "DataLayer") -> "dict[str, Engine]":
    """Return all databases that may have indexes, by name."""
    main = {_MAIN: layer.engine} if layer.settings.database_url else {}
    return {**main, **layer.shard_engines}


def standing_of(
    layer: "DataLayer", names: Sequence[str], database: str | None
) -> "Iterator[tuple[str, IndexTable, IndexReport]]":
    """Yield how each index stands in each database that has its table, with the database."""
    engines = engines_of(layer)
    if database is not None and database not in engines:
        raise click.BadParameter(
            f"there is no {database!r}; those that are: {', '.join(engines)}",
            param_hint="--database",
        )
    layer.indexes.named(names)  # a wrong name is told before any server is asked
    for where in [database] if database is not None else engines:

        def ask(conn: "Connection") -> "list[IndexReport]":
            return layer.indexes.status(conn, names)

        for one in asked(engines[where], ask):
            if one.state != "no_table":
                yield where, layer.indexes.find(one.name), one


def asked(engine: "Engine", ask: "Callable[[Connection], T]") -> T:
    """Return what a database answers, as of each statement."""
    with engine.connect().execution_options(isolation_level="READ COMMITTED") as conn:
        return ask(conn)
