"""Engines that talk to the right server, in the same way as to all others."""

from collections.abc import Mapping
from typing import Any

from psycopg import Connection as DriverConnection
from psycopg import sql
from sqlalchemy import URL, Engine, create_engine, event, make_url

from datapatterns.errors import SettingsError, WrongShardError
from datapatterns.sql.metadata import DEFAULT_SCHEMA

SESSION_SETTINGS = {
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "bytea_output": "hex",
    "extra_float_digits": "1",
}
"""Set alike on every shard: two time zones would give one query two answers."""


def shard_engine(
    shard_id: str,
    url: str | URL,
    *,
    schema: str = DEFAULT_SCHEMA,
    engine_options: Mapping[str, Any] | None = None,
) -> Engine:
    """Return an engine whose connections refuse to be those of another shard.

    Raises (when a connection is opened):
        SettingsError: The server's encoding is not UTF-8, so text would hash otherwise.
        WrongShardError: The server says that it is another shard, or none.
    """
    engine = create_engine(driver_url(url), **(engine_options or {}))

    @event.listens_for(engine, "connect")
    def settle(connection: DriverConnection[Any], _record: object) -> None:
        try:
            _introduce(connection, shard_id, schema)
        except BaseException:
            connection.close()  # the pool does not know it yet
            raise

    return engine


def driver_url(url: str | URL) -> URL:
    """Return ``url`` with the driver that this library speaks to."""
    return make_url(url).set(drivername="postgresql+psycopg")


def _introduce(connection: DriverConnection[Any], shard_id: str, schema: str) -> None:
    question = sql.SQL(
        "SELECT (SELECT shard_id FROM {}), current_setting('server_encoding'),"
        " count(set_config(name, value, false))"
        " FROM unnest(%s::text[], %s::text[]) AS setting (name, value)"
    ).format(sql.Identifier(schema, "this_shard"))
    names, values = list(SESSION_SETTINGS), list(SESSION_SETTINGS.values())
    row = connection.execute(question, (names, values)).fetchone()
    # Settings of a transaction that is rolled back are forgotten.
    connection.commit()
    assert row is not None
    found, encoding, _ = row
    if found != shard_id:
        raise WrongShardError(expected=shard_id, found=found)
    if encoding != "UTF8":
        raise SettingsError(f"shard {shard_id!r}", f"its encoding is {encoding}, not UTF8")
