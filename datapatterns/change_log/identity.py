"""Which cluster and database a transaction id belongs to; elsewhere it means nothing."""

from dataclasses import dataclass

from sqlalchemy import (
    BigInteger,
    Connection,
    Integer,
    column,
    func,
    literal_column,
    select,
    table,
)
from sqlalchemy.dialects.postgresql import OID

_control = func.pg_control_system().table_valued(column("system_identifier", BigInteger))
_database = table("pg_database", column("oid", OID), column("datname"), schema="pg_catalog")

system_identifier = select(_control.c.system_identifier).scalar_subquery()
database_oid = (
    select(_database.c.oid).where(_database.c.datname == func.current_database()).scalar_subquery()
)
# The timeline that is being written: after a promotion the control file has the old one until the
# next checkpoint. A standby has no other.
timeline = literal_column(
    "CASE WHEN pg_is_in_recovery() THEN (SELECT timeline_id FROM pg_control_checkpoint())"
    " ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::integer END",
    Integer,
)


@dataclass(frozen=True, slots=True)
class DatabaseIdentity:
    """What tells one database from its copies.

    A dump restored into another cluster changes the system identifier, a copy within the cluster
    the oid. A physical standby that takes over keeps both: log, snapshots and tables then come
    from one moment, so nothing is wrong.
    """

    system_identifier: int
    database_oid: int


def database_identity(conn: Connection) -> DatabaseIdentity:
    """Return the identity of the database that ``conn`` speaks to."""
    row = conn.execute(select(system_identifier, database_oid)).one()
    return DatabaseIdentity(*row)
