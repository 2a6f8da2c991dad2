"""Let somebody consume changes from now on, or no more: with a migration, as the owner."""

from collections.abc import Iterable

from sqlalchemy import Connection, delete, select
from sqlalchemy.dialects.postgresql import insert

from datapatterns.change_log.consuming import snapshot_without_own_changes
from datapatterns.change_log.identity import database_identity, timeline
from datapatterns.change_log.locking import by_table, take_turn
from datapatterns.change_log.schema import change_log_tables
from datapatterns.change_log.shapes import capture_partitions, capture_shape
from datapatterns.sql.texts import is_text


def register_consumer(
    conn: Connection, name: str, kind: str, *, schema: str, log_names: Iterable[str] = ()
) -> None:
    """Let ``name`` consume changes from now on; do nothing if it does already.

    Who consumes already and gets a further log has to read everything anew: neither was that
    table ever read, nor were its changes kept since the consumer's snapshot.

    What is logged from here on is kept until it has been consumed. A consumer whose target must
    first be filled fills it in a *later* transaction: only then has everybody whose changes are
    not in the filling statement's snapshot written with this registration in place.

    Raises:
        ValueError: PostgreSQL cannot store the name, or there is no such log.
    """
    if not is_text(name):
        raise ValueError(f"{name!r} cannot name a consumer; leave out U+0000 and half surrogates")
    take_turn(conn, schema=schema)
    tables = change_log_tables(schema)
    identity = database_identity(conn)
    # Before the snapshot: nobody collects garbage from these logs until the consumer can be seen.
    wanted = sorted(log_names)
    captured = tables.captured.c.log_name
    held = conn.scalars(
        select(captured)
        .where(captured.in_(wanted))
        .order_by(*by_table(schema))
        .with_for_update(read=True, key_share=True)
    ).all()
    if unknown := sorted(set(wanted) - set(held)):
        raise ValueError(f"{unknown[0]!r} is no log of this schema; capture() returns its name")
    # Also before it: a partition that is attached in between has rows that nobody has logged.
    shapes = {
        log: conn.execute(
            select(capture_shape(log, schema=schema), capture_partitions(log, schema=schema))
        ).one()
        for log in wanted
    }
    added = conn.scalar(
        insert(tables.consumers)
        .values(
            name=name,
            kind=kind,
            snapshot=snapshot_without_own_changes(conn),
            system_identifier=identity.system_identifier,
            database_oid=identity.database_oid,
            timeline=timeline,
        )
        .on_conflict_do_nothing()
        .returning(tables.consumers.c.name)
    )
    for log_name, (shape, partitions) in shapes.items():
        known = {} if added is None else {"shape": shape, "partitions": partitions}
        conn.execute(
            insert(tables.subscriptions)
            .values(consumer=name, log_name=log_name, **known)
            .on_conflict_do_nothing()
        )


def forget_consumer(conn: Connection, name: str, *, schema: str) -> None:
    """Let ``name`` consume changes no more; do nothing if it does not."""
    take_turn(conn, schema=schema)
    consumers = change_log_tables(schema).consumers
    conn.execute(delete(consumers).where(consumers.c.name == name))
