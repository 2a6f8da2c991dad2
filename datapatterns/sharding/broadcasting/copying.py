"""Give a new shard all broadcast tables, before anybody counts on it."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

from psycopg import sql
from sqlalchemy import Connection, Engine, Table, delete

from datapatterns.errors import CopiesDifferError
from datapatterns.sharding.access import ShardAccess
from datapatterns.sharding.atomic.parts import Parts
from datapatterns.sharding.broadcasting.comparing import digest_of
from datapatterns.sharding.broadcasting.copies import check_shape, lock_copy
from datapatterns.sharding.broadcasting.guarding import writing_all
from datapatterns.sharding.broadcasting.images import TableShape, table_name
from datapatterns.sharding.broadcasting.sequences import last_numbers, raise_numbers
from datapatterns.sharding.maps.ownership import shard_errors
from datapatterns.transactions import transaction


@contextmanager
def copied_to(
    access: ShardAccess, shard: str, engine: Engine, *, lock_seconds: float = 5.0
) -> Iterator[None]:
    """Copy all broadcast tables to a new shard, and keep their writers away during the block.

    In the block the shard is to be listed in the control database, by a transaction that is
    committed there. Whoever writes later finds it listed, and whoever wrote before was copied.
    After a crash do it again: what the shard has is replaced.

    Args:
        access: The way to the shards that there are.
        shard: The name of the new one.
        engine: The way to it.
        lock_seconds: How long to wait for writers that are under way.

    Raises:
        CopiesDifferError: The copy is not what was copied, or the tables have other columns.
        ShardUnavailableError: A shard does not answer.
    """
    tables = access.placements.broadcast_tables()
    if not tables:
        yield
        return
    shards = access.copies.shards()
    with closing(Parts(access, lock_seconds=lock_seconds)) as parts:
        shapes: dict[Table, TableShape] = {}
        for each in shards:
            with access.asking(each):
                conn = parts.on(each)
                for table in sorted(tables, key=lambda table: table.fullname):
                    shape = lock_copy(conn, table)
                    check_shape(table, each, shape, shapes.setdefault(table, shape))
            if each == shards[0]:
                access.copies.check(shards)
        with (
            shard_errors(shard),
            transaction(engine, attempted=f"the copies on {shard}") as target,
            writing_all(target),
            access.asking(shards[0]),
        ):
            _copy_all(parts.on(shards[0]), target, shard, tables, shapes)
        yield


def _copy_all(
    source: Connection,
    target: Connection,
    shard: str,
    tables: Sequence[Table],
    shapes: dict[Table, TableShape],
) -> None:
    for table in reversed(tables):
        check_shape(table, shard, lock_copy(target, table), shapes[table])
        target.execute(delete(table)).close()
    for table in tables:
        _copy(source, target, table, shapes[table])
        raise_numbers(target, table, last_numbers(source, table))
        if digest_of(source, table, shapes[table]) != digest_of(target, table, shapes[table]):
            raise CopiesDifferError(table.name, shard, "its rows are not those that were copied")


def _copy(source: Connection, target: Connection, table: Table, shape: TableShape) -> None:
    columns = sql.SQL(", ").join(sql.Identifier(name) for name in shape.names)
    reading: Any = source.connection.cursor()
    writing: Any = target.connection.cursor()
    with (
        reading,
        writing,
        reading.copy(sql.SQL("COPY {} ({}) TO STDOUT").format(table_name(table), columns)) as rows,
        writing.copy(sql.SQL("COPY {} ({}) FROM STDIN").format(table_name(table), columns)) as into,
    ):
        for block in rows:
            into.write(block)
