"""A Core connection on the one shard of one key."""

from typing import Any

from psycopg import Error as DriverError
from psycopg import sql
from sqlalchemy import Connection, event
from sqlalchemy.exc import DBAPIError

from datapatterns.sharding.maps.ownership import refuse_autocommit
from datapatterns.sharding.maps.shard_map import ShardMap
from datapatterns.sql.metadata import DEFAULT_SCHEMA


def keep_claimed(
    conn: Connection, shard_map: ShardMap, bucket: int, *, schema: str = DEFAULT_SCHEMA
) -> None:
    """Make each transaction of ``conn`` begin by keeping ``bucket`` on this shard."""
    claim = sql.SQL("SELECT {}(%s, ARRAY[%s::int], ARRAY[%s::int])").format(
        sql.Identifier(schema, "claim_buckets")
    )

    @event.listens_for(conn, "begin")
    def claim_first(beginning: Connection) -> None:
        refuse_autocommit(beginning)
        # SQLAlchemy would begin once more for a statement of its own.
        driver_connection: Any = beginning.connection.dbapi_connection
        generations = shard_map.generations_of([bucket])
        try:
            driver_connection.execute(claim, (shard_map.group_id, bucket, *generations))
        except DriverError as error:
            # As SQLAlchemy raises what fails in its own statements.
            raise DBAPIError.instance(
                "claim_buckets", None, error, DriverError, dialect=beginning.dialect
            ) from error
