"""Tell one log from another, so that a token is not held against the wrong one.

The mark changes with the server (a dump restored elsewhere), with the database and with the
sequence that positions are drawn from (a schema made anew). It stays the same on a standby, also
once that is promoted, and on a server that went back in time by recovery: there, tokens of what
was lost are noticed only as long as they lie beyond the log.
"""

from hashlib import sha256

from sqlalchemy import BigInteger, Boolean, Connection, Text, cast, column, func, select, table
from sqlalchemy.dialects.postgresql import OID

from datapatterns.event_sourcing.events import Position
from datapatterns.event_sourcing.schema import event_tables


def log_mark(conn: Connection, schema: str) -> str:
    """Return the mark of the log in ``schema``; asked once for each connection to the server."""
    known: dict[str, str] = conn.info.setdefault("datapatterns.logs", {})
    if schema not in known:
        known[schema] = _asked(conn, schema)
    return known[schema]


def read_end(conn: Connection, schema: str) -> Position | None:
    """Return the last position that was drawn, be it by a write that was undone.

    None if a standby is asked, which may be behind its primary, so it cannot tell.
    """
    drawn = func.pg_sequence_last_value(event_tables(schema).position_sequence, type_=BigInteger)
    end, is_standby = conn.execute(select(drawn, func.pg_is_in_recovery(type_=Boolean))).one()
    return None if is_standby else Position(end or 0)


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
