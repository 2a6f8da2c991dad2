"""`datapatterns doctor`: are the servers there, and fit for the library?"""

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from datapatterns_cli.invocation import Invocation, pass_invocation
from datapatterns_cli.shared_options import Command

if TYPE_CHECKING:
    from datapatterns import DataLayer
    from datapatterns.event_sourcing import AppendOnlyFinding
    from datapatterns.sharding import ShardFinding


@click.command(cls=Command)
@pass_invocation
def doctor(invocation: Invocation) -> None:
    """Ask every server whether it is there, new enough, and keeps events append-only.

    PostgreSQL must be 14 or newer, Redis 7 or newer (or Valkey). Where there are tables of events,
    rights, triggers and settings are looked at; exits with 2 if somebody else than their owner
    could change or lose events. Where there are shards, it is said what about their servers should
    be mended: prepared transactions, collations, encodings, time zones, versions.

    \b
      datapatterns doctor --app shop.data:layer
    """  # noqa: D301
    layer = invocation.layer()
    invocation.output.table([asdict(report) for report in layer.check()])
    errors = []
    for database, finding in _findings(layer):
        if finding.is_error:
            errors.append(f"{database}: {finding}")
        else:
            invocation.output.note(f"{database}: {finding}")
    for shard_finding in _shard_findings(layer):
        invocation.output.note(str(shard_finding))
    if errors:
        from datapatterns import ConfigurationError  # noqa: PLC0415 -- help must not wait for it

        error = ConfigurationError("events are not append-only")
        for line in errors:
            error.add_note(line)
        raise error


def _findings(layer: "DataLayer") -> "Iterator[tuple[str, AppendOnlyFinding]]":
    from sqlalchemy import inspect  # noqa: PLC0415 -- help must not wait for it

    from datapatterns.event_sourcing import check_append_only  # noqa: PLC0415

    engines = {"main": layer.engine} if layer.settings.database_url else {}
    for name, engine in {**engines, **layer.shard_engines}.items():
        with engine.connect() as conn:
            if inspect(conn).has_table("event", schema=layer.schema):
                for finding in check_append_only(conn, schema=layer.schema):
                    yield name, finding


def _shard_findings(layer: "DataLayer") -> "list[ShardFinding]":
    if not layer.shard_engines:
        return []
    from datapatterns.sharding import check_shards  # noqa: PLC0415 -- help must not wait for it

    return check_shards(layer.shard_engines, schema=layer.schema)
