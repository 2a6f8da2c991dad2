"""Triggers on the rows of one bucket: they note what changes, and refuse who comes too late."""

from collections.abc import Iterator, Sequence
from hashlib import sha256
from itertools import count

from psycopg import sql
from sqlalchemy import delete
from sqlalchemy.exc import DBAPIError

from datapatterns.errors import MoveBlockedError
from datapatterns.sharding.maps.shard_map import ShardMap
from datapatterns.sharding.moving.holding import Side, is_blocked
from datapatterns.sharding.moving.moved_table import MovedTable
from datapatterns.sharding.moving.pacing import Pace
from datapatterns.sharding.moving.predicates import bucket_predicate
from datapatterns.sharding.schema import sharding_tables
from datapatterns.sql.composing import execute

_LOCK_MS = 300
_TRIES = 200

# The name sorts after those of the application, whose BEFORE triggers may change the row. The
# function would ask the same of the mover, but to call it for each row takes longer than the copy.
# Who moves names its transaction: a setting that somebody has left in a session says nothing.
_CREATE = sql.SQL("""
CREATE OR REPLACE TRIGGER {name} BEFORE {operation} ON {table} FOR EACH ROW
    WHEN (({when}) AND pg_catalog.current_setting('datapatterns.mover', true)
        IS DISTINCT FROM pg_catalog.pg_current_xact_id()::text)
    EXECUTE FUNCTION {function}({arguments})
""")
_CREATE_TRUNCATE = sql.SQL("""
CREATE OR REPLACE TRIGGER {name} BEFORE TRUNCATE ON {table} FOR EACH STATEMENT
    EXECUTE FUNCTION {function}({arguments})
""")
# Also for whoever replicates into the table.
_ENABLE = sql.SQL("ALTER TABLE {table} ENABLE ALWAYS TRIGGER {name}")
_DROP = sql.SQL("DROP TRIGGER IF EXISTS {name} ON {table}")
_LOCK = sql.SQL("LOCK TABLE {tables} IN SHARE ROW EXCLUSIVE MODE")


def install_capture(
    side: Side, tables: Sequence[MovedTable], shard_map: ShardMap, *, pace: Pace
) -> None:
    """Begin to note the keys of rows that change in the bucket, or refuse it where it is coming.

    Its commit proves that everybody who wrote before has ended: they hold locks against it.

    Raises:
        MoveBlockedError: A transaction holds one of the tables for long.
        MoveTakenOverError: Another worker has taken over.
    """
    reinstall(side, tables, shard_map, side.bucket, pace=pace)


def reinstall(
    side: Side, tables: Sequence[MovedTable], shard_map: ShardMap, bucket: int, *, pace: Pace
) -> None:
    """Make the triggers of a bucket, or make them anew, as of the map."""
    statements = list(_installed(side, tables, shard_map, bucket))
    _run_briefly(side, tables, statements, pace=pace)


def predicate_digest(table: MovedTable, shard_map: ShardMap, bucket: int, *, schema: str) -> str:
    """Return what tells conditions on the bucket of a row apart."""
    condition = bucket_predicate(table.shard_key, shard_map, bucket, row="new", schema=schema)
    return sha256(condition.as_string(None).encode()).hexdigest()


def remove_capture(side: Side, tables: Sequence[MovedTable], *, pace: Pace) -> None:
    """Drop the triggers of the bucket, and what they have noted.

    Raises:
        MoveBlockedError: A transaction holds one of the tables for long.
        MoveTakenOverError: Another worker has taken over.
    """
    statements = drop_statements(side.group_id, side.bucket, tables)
    _run_briefly(side, tables, statements, pace=pace, forget=True)


def drop_statements(
    group_id: int, bucket: int, tables: Sequence[MovedTable]
) -> list[sql.Composable]:
    """Return what drops all triggers of a bucket."""
    return [
        _DROP.format(name=trigger_name(group_id, bucket, kind), table=table.place)
        for table in tables
        for kind in ("insert", "update", "delete", "truncate")
    ]


def trigger_name(group_id: int, bucket: int, kind: str) -> sql.Identifier:
    """Return what a trigger of a bucket is called."""
    return sql.Identifier(f"zz_datapatterns_{group_id}_{bucket}_{kind}")


def _installed(
    side: Side, tables: Sequence[MovedTable], shard_map: ShardMap, bucket: int
) -> Iterator[sql.Composable]:
    for table in tables:
        new, old = (
            bucket_predicate(table.shard_key, shard_map, bucket, row=row, schema=side.schema)
            for row in ("new", "old")
        )
        either = sql.SQL("({}) OR ({})").format(old, new)
        arguments = [
            str(side.group_id),
            str(bucket),
            predicate_digest(table, shard_map, bucket, schema=side.schema),
            *table.primary_key,
        ]
        for operation, when in (("INSERT", new), ("UPDATE", either), ("DELETE", old)):
            name = trigger_name(side.group_id, bucket, operation.lower())
            yield _CREATE.format(
                name=name,
                operation=_OPERATIONS[operation],
                table=table.place,
                when=when,
                function=sql.Identifier(side.schema, "capture_change"),
                arguments=sql.SQL(", ").join(map(sql.Literal, arguments)),
            )
            yield _ENABLE.format(name=name, table=table.place)
        yield _truncate_trigger(side, table, bucket)
        yield _ENABLE.format(
            name=trigger_name(side.group_id, bucket, "truncate"), table=table.place
        )


_OPERATIONS = {
    "INSERT": sql.SQL("INSERT"),
    "UPDATE": sql.SQL("UPDATE"),
    "DELETE": sql.SQL("DELETE"),
}


def _truncate_trigger(side: Side, table: MovedTable, bucket: int) -> sql.Composable:
    return _CREATE_TRUNCATE.format(
        name=trigger_name(side.group_id, bucket, "truncate"),
        table=table.place,
        function=sql.Identifier(side.schema, "reject_truncate"),
        arguments=sql.SQL(", ").join(map(sql.Literal, (str(side.group_id), str(bucket)))),
    )


def _run_briefly(
    side: Side,
    tables: Sequence[MovedTable],
    statements: Sequence[sql.Composable],
    *,
    pace: Pace,
    forget: bool = False,
) -> None:
    """Change triggers of all tables at once; waiting for the locks holds others up, so briefly."""
    dirty = sharding_tables(side.schema).dirty_key
    for attempt in count():
        try:
            with side.transaction(lock_ms=_LOCK_MS) as conn:
                places = sql.SQL(", ").join(table.place for table in tables)
                # In one message: they hold others up.
                every = [_LOCK.format(tables=places), *statements]
                execute(conn, sql.SQL(";").join(every)).close()
                if forget:
                    conn.execute(
                        delete(dirty).where(
                            dirty.c.group_id == side.group_id, dirty.c.bucket == side.bucket
                        )
                    )
        except DBAPIError as error:
            if not is_blocked(error):
                raise
            if attempt == _TRIES:
                raise MoveBlockedError(side.shard, "the tables of the group") from error
            pace.back_off(attempt)
        else:
            return
