"""Tell one log from another, so that a token is not held against the wrong one.

The mark changes with the server (a dump restored elsewhere), with the database and with the
sequence that positions are drawn from (a schema made anew). It stays the same on a standby, also
once that is promoted, and on a server that went back in time by recovery: there, tokens of what
was lost are noticed only as long as they lie beyond the log.
"""

from hashlib import sha256

from sqlalchemy import BigInteger, Boolean, Connection, Text, cast, column, func, select, table
from sqlalchemy.dialects.postgresql import OID

from datapatterns.cqrs.definition import AnyProjection, RedisProjection
from datapatterns.cqrs.schema import projection_tables
from datapatterns.event_sourcing.events import Position
from datapatterns.event_sourcing.schema import event_tables


def log_mark(conn: Connection, schema: str) -> str:
    """Return the mark of the log in ``schema`` of this server; asked once for each connection."""
    known: dict[str, str] = conn.info.setdefault("datapatterns.logs", {})
    if schema not in known:
        known[schema] = _asked(conn, schema)
    return known[schema]


def shown_mark(conn: Connection, schema: str, projection: type[AnyProjection]) -> str | None:
    """Return the mark of the log that a read model shows, be it that of another server.

    None as long as nobody can tell: it has shown nothing yet.
    """
    told: set[tuple[str, str, int]] = conn.info.setdefault("datapatterns.shown", set())
    place = schema, projection.name, projection.version
    if place in told:  # what follows the log beside it goes on doing so
        return log_mark(conn, schema)
    tables = projection_tables(schema)
    followed, shards = tables.followed.c, tables.shards.c
    newest = (
        select(followed.log)
        .where(followed.name == projection.name, followed.version == projection.version)
        .order_by(followed.seen_at.desc())
        .limit(1)
    )
    begun = select(shards.position).where(
        shards.name == projection.name, shards.version == projection.version, shards.position > 0
    )
    log, has_begun = conn.execute(select(newest.scalar_subquery(), begun.exists())).one()
    if log is not None:
        return str(log)
    # Of one in Redis the database learns later than Redis that it has begun.
    if not has_begun and not issubclass(projection, RedisProjection):
        return None
    if has_begun:
        told.add(place)
    return log_mark(conn, schema)


def read_end(conn: Connection, schema: str, projection: type[AnyProjection]) -> Position | None:
    """Return the last position that was drawn, be it by a write that was undone.

    None if it cannot be told: a standby may be behind its primary, and who follows the log of
    another server, or may be about to, knows only what a runner has seen of it.
    """
    drawn = func.pg_sequence_last_value(event_tables(schema).position_sequence, type_=BigInteger)
    end, is_standby = conn.execute(select(drawn, func.pg_is_in_recovery(type_=Boolean))).one()
    if is_standby or shown_mark(conn, schema, projection) != log_mark(conn, schema):
        return None
    return Position(end or 0)


def _asked(conn: Connection, schema: str) -> str:
    server = func.pg_control_system().table_valued("system_identifier")
    databases = table("pg_database", column("oid"), column("datname"), schema="pg_catalog")
    told = conn.execute(
        select(
            cast(server.c.system_identifier, Text),
            cast(databases.c.oid, Text),
            cast(cast(event_tables(schema).position_sequence, OID), Text),
        )
        .select_from(server)
        .join(databases, databases.c.datname == func.current_database())
    ).one()
    return sha256("/".join(told).encode()).hexdigest()[:8]
