"""Which tables a projection writes, whatever the search_path and the mapping call them."""

from sqlalchemy import Connection, Table, func, literal, select
from sqlalchemy.dialects.postgresql import OID, REGCLASS

from datapatterns.cqrs.definition import AnyProjection, TableProjection
from datapatterns.cqrs.tables.read_model import read_models_of
from datapatterns.errors import ProjectionDefinitionError


def quoted_table(conn: Connection, table: Table) -> str:
    """Return the name to write into a statement; percent signs are doubled, as drivers want."""
    quote = conn.dialect.identifier_preparer.quote
    schema = conn.schema_for_object(table)
    return quote(table.name) if schema is None else f"{quote(schema)}.{quote(table.name)}"


def lock_writers_out(conn: Connection, table: Table) -> None:
    """Wait for those who write ``table``, and keep others from it until the transaction ends."""
    # Not by text(), for which a colon or a percent sign in the name would mean something.
    conn.exec_driver_sql("LOCK TABLE " + quoted_table(conn, table) + " IN SHARE ROW EXCLUSIVE MODE")


def resolve_targets(conn: Connection, projection: type[AnyProjection]) -> list[str]:
    """Return the names of its live tables with their schema, sorted; none if it is in Redis.

    Raises:
        ProjectionDefinitionError: A table is not there.
    """
    if not issubclass(projection, TableProjection):
        return []
    return sorted(
        resolve_target(conn, model.table, projection.name)
        for model in read_models_of(projection).values()
    )


def resolve_target(conn: Connection, table: Table, projection: str) -> str:
    """Return the name of one live table with its schema, as PostgreSQL writes it.

    Raises:
        ProjectionDefinitionError: It is not there.
    """
    called = quoted_table(conn, table).replace("%%", "%")
    relation = func.to_regclass(literal(called))
    identity = func.pg_identify_object(
        literal("pg_catalog.pg_class").cast(REGCLASS).cast(OID), relation.cast(OID), 0
    ).table_valued("identity")
    found = conn.execute(select(identity.c.identity).where(relation.is_not(None))).scalar()
    if found is None:
        raise ProjectionDefinitionError(
            projection, f"its table {called} is not there; create it, by a migration, then run it"
        )
    return str(found)
