"""Which tables refer to a table by foreign keys, as the server has them.

Not as they are declared: what is not declared may cascade all the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import ARRAY, BigInteger, Connection, Table, Text, bindparam, text

_REFERENCES = text(
    """
    SELECT c.conrelid::bigint AS oid, n.nspname::text AS schema, t.relname::text AS child,
        (SELECT array_agg(a.attname::text ORDER BY k.place)
           FROM unnest(c.conkey) WITH ORDINALITY AS k (number, place)
           JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.conrelid AND a.attnum = k.number)
        AS columns,
        (SELECT array_agg(a.attname::text ORDER BY k.place)
           FROM unnest(c.confkey) WITH ORDINALITY AS k (number, place)
           JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.confrelid AND a.attnum = k.number)
        AS referred
    FROM pg_catalog.pg_constraint AS c
    JOIN pg_catalog.pg_class AS t ON t.oid = c.conrelid
    JOIN pg_catalog.pg_namespace AS n ON n.oid = t.relnamespace
    WHERE c.contype = 'f' AND c.conparentid = 0 AND c.confrelid = CAST(:name AS regclass)
    ORDER BY c.conname
    """
).columns(oid=BigInteger, schema=Text, child=Text, columns=ARRAY(Text), referred=ARRAY(Text))
_OIDS = text(
    "SELECT name, CAST(CAST(to_regclass(name) AS oid) AS bigint) AS oid"
    " FROM unnest(:names) AS t (name)"
).bindparams(bindparam("names", type_=ARRAY(Text)))


@dataclass(frozen=True, slots=True)
class Reference:
    """A foreign key that refers to a table.

    Attributes:
        schema: Of the table that has it.
        child: The name of that table.
        table: That table, if it is one of those that were asked about.
        columns: Its columns there.
        referred: The columns that they refer to.
    """

    schema: str
    child: str
    table: Table | None
    columns: tuple[str, ...]
    referred: tuple[str, ...]


def tables_by_oid(conn: Connection, tables: list[Table]) -> dict[int, Table]:
    """Return tables by what the server calls them."""
    names = {conn.dialect.identifier_preparer.format_table(table): table for table in tables}
    found = conn.execute(_OIDS, {"names": list(names)})
    return {oid: names[name] for name, oid in found if oid is not None}


def references_to(conn: Connection, of: Table, known: Mapping[int, Table]) -> list[Reference]:
    """Return the foreign keys that refer to a table."""
    name = conn.dialect.identifier_preparer.format_table(of)
    return [
        Reference(schema, child, known.get(oid), tuple(columns), tuple(referred))
        for oid, schema, child, columns, referred in conn.execute(_REFERENCES, {"name": name})
    ]
