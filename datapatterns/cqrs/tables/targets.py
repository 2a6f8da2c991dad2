"""Which table a projection writes, whatever the search_path and the mapping call it."""

from sqlalchemy import Connection, Table, func, literal, select
from sqlalchemy.dialects.postgresql import OID, REGCLASS

from datapatterns.cqrs.definition import AnyProjection, Projection
from datapatterns.cqrs.tables.read_model import read_model_of


def quoted_table(conn: Connection, table: Table) -> str:
    """Return the name to write into a statement; percent signs are doubled, as drivers want."""
    quote = conn.dialect.identifier_preparer.quote
    schema = conn.schema_for_object(table)
    return quote(table.name) if schema is None else f"{quote(schema)}.{quote(table.name)}"


def resolve_target(conn: Connection, projection: type[AnyProjection]) -> str | None:
    """Return the table's name with its schema; None if the read model is in Redis."""
    if not issubclass(projection, Projection):
        return None
    table = read_model_of(projection).table
    relation = literal(quoted_table(conn, table).replace("%%", "%")).cast(REGCLASS)
    identity = func.pg_identify_object(
        literal("pg_catalog.pg_class").cast(REGCLASS).cast(OID), relation.cast(OID), 0
    ).table_valued("identity")
    return str(conn.execute(select(identity.c.identity)).scalar_one())
