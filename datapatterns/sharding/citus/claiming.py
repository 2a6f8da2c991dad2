"""Hold a Citus coordinator to what it owns, by statements that its nodes never see."""

from sqlalchemy import Connection, func, select

from datapatterns.errors import IsolationLevelError
from datapatterns.sharding.maps.ownership import claim_shard, refuse_autocommit
from datapatterns.sharding.maps.shard_map import ShardMap
from datapatterns.sql.functions import library_function

_ARRIVALS = -1
"""No bucket has this number: the lock of it is about those that begin to come."""


def claim_as_it_is(conn: Connection, shard_map: ShardMap, shard_id: str, *, schema: str) -> None:
    """Check that the coordinator agrees with the map, and let no bucket begin to come meanwhile.

    A condition in the query would be asked by each node of its own copy, and at another moment than
    the rows. Here it is asked before, and stays true until the transaction ends: buckets never
    leave this kind of shard, rows of those that are coming are left out by the query, and others
    cannot begin to come. One that arrives in between is left out as well; its source still has it
    for this reader, or fails the statement.

    Raises:
        IsolationLevelError: The snapshot may be older than the lock.
        StaleShardMapError: The coordinator owns other buckets than the map says.
    """
    refuse_autocommit(conn)
    locked = func.pg_advisory_xact_lock_shared(*_key(shard_map.group_id, schema))
    level = conn.execute(select(locked, func.current_setting("transaction_isolation"))).one()[1]
    if level != "read committed":
        raise IsolationLevelError(found=level, needed="read committed")
    claim_shard(conn, shard_map, shard_id, schema=schema)


def wait_for_readers(conn: Connection, group_id: int, *, schema: str) -> None:
    """Wait for those who read all that the coordinator has, and keep new ones until the commit."""
    conn.execute(select(func.pg_advisory_xact_lock(*_key(group_id, schema)))).close()


def _key(group_id: int, schema: str) -> tuple[object, int]:
    return library_function(schema, "fence_class", group_id), _ARRIVALS
