"""Tell one log from another, so that a token is not held against the wrong one.

The mark changes with the server (a dump restored elsewhere), with the database and with the
sequence that positions are drawn from (a schema made anew). It stays the same on a standby, also
once that is promoted, and on a server that went back in time by recovery: there, tokens of what
was lost are noticed only as long as they lie beyond the log.
"""

from hashlib import sha256

from sqlalchemy import BigInteger, Boolean, Connection, Text, cast, column, func, or_, select, table
from sqlalchemy.dialects.postgresql import OID

from datapatterns.cqrs.schema import projection_tables
from datapatterns.event_sourcing.events import Position
from datapatterns.event_sourcing.schema import event_tables


def log_mark(conn: Connection, schema: str) -> str:
    """Return the mark of the log in ``schema``; asked once for each connection to the server.

    Where read models follow the log of another server, it is that log's.
    """
    known: dict[str, str] = conn.info.setdefault("datapatterns.logs", {})
    if schema not in known:
        followed = projection_tables(schema).followed.c
        newest = select(followed.log).order_by(followed.seen_at.desc()).limit(1)
        known[schema] = conn.scalar(newest) or _asked(conn, schema)
    return known[schema]


def read_end(conn: Connection, schema: str) -> Position | None:
    """Return the last position that was drawn, be it by a write that was undone.

    None if it cannot be told: a standby may be behind its primary, and who follows the log of
    another server knows only what a runner has seen of it.
    """
    drawn = func.pg_sequence_last_value(event_tables(schema).position_sequence, type_=BigInteger)
    follows = select(projection_tables(schema).followed.c.log).exists()
    is_standby = func.pg_is_in_recovery(type_=Boolean)
    end, is_far = conn.execute(select(drawn, or_(is_standby, follows))).one()
    return None if is_far else Position(end or 0)


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
