"""Look at a table before its changes are captured: what would be missed, what equality means."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from psycopg import sql
from psycopg.errors import UndefinedFunction
from sqlalchemy import (
    ARRAY,
    Connection,
    ScalarSelect,
    Table,
    Text,
    bindparam,
    func,
    literal,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import ProgrammingError

from datapatterns.change_log.source_tree import Member, read_members
from datapatterns.errors import CaptureRefusedError
from datapatterns.sql.composing import execute

LOG_COLUMNS = ("change_xid", "change_sign", "change_partition")
"""What each row of a log says about itself, beside the captured columns."""


BATCHED_ROWS = "image of rows"
"""The column of a batch that says how many changes it holds."""

IMAGE_PREFIX = "image of "
"""What the trigger function calls the text of columns whose equal values may differ."""


@dataclass(frozen=True, slots=True)
class SourceColumn:
    """A column to capture.

    Attributes:
        name: Its name in the table.
        type_sql: Its type and collation, as SQL writes them.
        logged_type_sql: The same, without domains: these may forbid the NULLs of a truncation.
        is_nullable: Whether it may be NULL.
        equality_is_identity: Whether equal values are the same value. 1.0 and 1.00 are equal
            numerics; comparing only their values would miss the change from one to the other.
        array_type_sql: An array of the logged type, without its length or precision. None if
            nobody can tell how much memory a thousand values may take before they are read.
        may_be_long: Whether values have to be measured first.
    """

    name: str
    type_sql: str
    logged_type_sql: str
    is_nullable: bool
    equality_is_identity: bool
    array_type_sql: str | None
    may_be_long: bool


@dataclass(frozen=True, slots=True)
class SourceTable:
    """A table to capture.

    Attributes:
        oid: Its oid.
        schema: Its schema.
        name: Its name without the schema.
        members: The table itself, then its partitions at all depths.
        columns: Those that triggers see the values of.
    """

    oid: int
    schema: str
    name: str
    members: tuple[Member, ...]
    columns: tuple[SourceColumn, ...]

    @property
    def full_name(self) -> str:
        """Return the name for people."""
        return f"{self.schema}.{self.name}"

    @property
    def identifier(self) -> sql.Identifier:
        """Return the name for SQL."""
        return sql.Identifier(self.schema, self.name)

    @property
    def is_partitioned(self) -> bool:
        """Return whether it has partitions, or may get some."""
        return self.members[0].is_partitioned

    @property
    def keys(self) -> list[str]:
        """Return the columns that decide in which partition a row is."""
        return list(dict.fromkeys(key for member in self.members for key in member.keys))


_TABLE = text("""
SELECT c.oid, n.nspname AS schema, c.relname AS name
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = to_regclass(:name)
""")

_FOUND = """
SELECT coalesce(jsonb_object_agg(w.name, jsonb_build_array(n.nspname, c.relname)), '{}')
FROM unnest(:wanted) AS w (name)
JOIN pg_catalog.pg_class c ON c.oid = to_regclass(w.name)
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
"""

# Values of a type are identical when equal if its default B-tree operator class says so with
# support function 4, and its collation does not call different texts equal. varchar borrows
# the operators of text.
_COLUMNS = text("""
SELECT a.attname AS name,
       format_type(a.atttypid, a.atttypmod) AS type_sql,
       format_type(t.oid, d.typmod) AS logged_type_sql,
       CASE WHEN a.attcollation <> t.typcollation
            THEN ' COLLATE ' || a.attcollation::regcollation::text ELSE '' END AS collated,
       NOT a.attnotnull AS is_nullable,
       a.attgenerated = 'v' AS is_virtual,
       (t.typtype = 'e' OR EXISTS (
            SELECT FROM pg_catalog.pg_opclass o
            JOIN pg_catalog.pg_am m ON m.oid = o.opcmethod AND m.amname = 'btree'
            JOIN pg_catalog.pg_amproc p ON p.amprocfamily = o.opcfamily AND p.amprocnum = 4
             AND p.amproclefttype = o.opcintype AND p.amprocrighttype = o.opcintype
            WHERE o.opcdefault
              AND o.opcintype = CASE WHEN t.oid = 'varchar'::regtype
                                     THEN 'text'::regtype ELSE t.oid END))
       AND NOT EXISTS (SELECT FROM pg_catalog.pg_collation l
                       WHERE l.oid = a.attcollation AND NOT l.collisdeterministic)
           AS equality_is_identity,
       -- Of these octet_length() tells without reading what is stored apart. A numeric is 66 kB
       -- at the most; jsonb and arrays, say, may be any size when they are decompressed.
       t.oid IN ('text'::regtype, 'varchar'::regtype, 'bpchar'::regtype, 'bytea'::regtype)
           AS may_be_long,
       CASE WHEN t.typlen > 0 OR t.oid IN ('numeric'::regtype, 'text'::regtype,
                 'varchar'::regtype, 'bpchar'::regtype, 'bytea'::regtype)
            THEN format_type(nullif(t.typarray, 0), -1) END AS array_type_sql
FROM pg_catalog.pg_attribute a
CROSS JOIN LATERAL (
    WITH RECURSIVE domain (oid, typmod) AS (
        SELECT a.atttypid, a.atttypmod
        UNION ALL
        SELECT n.typbasetype, n.typtypmod
        FROM domain JOIN pg_catalog.pg_type n ON n.oid = domain.oid AND n.typtype = 'd')
    SELECT domain.oid, domain.typmod FROM domain
    JOIN pg_catalog.pg_type b ON b.oid = domain.oid AND b.typtype <> 'd') AS d
JOIN pg_catalog.pg_type t ON t.oid = d.oid
WHERE a.attrelid = CAST(CAST(:relation AS regclass) AS oid) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum
""")

# What a virtual column is computed from; its own expression depends on these.
_COMPUTED_FROM = text("""
SELECT a.attname FROM pg_catalog.pg_attribute v
JOIN pg_catalog.pg_attrdef e ON e.adrelid = v.attrelid AND e.adnum = v.attnum
JOIN pg_catalog.pg_depend d ON d.classid = 'pg_attrdef'::regclass AND d.objid = e.oid
 AND d.refclassid = 'pg_class'::regclass AND d.refobjid = v.attrelid AND d.refobjsubid <> v.attnum
JOIN pg_catalog.pg_attribute a ON a.attrelid = v.attrelid AND a.attnum = d.refobjsubid
WHERE v.attrelid = :oid AND v.attname = :name AND v.attgenerated = 'v'
ORDER BY a.attnum
""")


def table_name(table: Table | str) -> str:
    """Return the table's name as SQL writes it."""
    if isinstance(table, str):
        return table
    names = (table.name,) if table.schema is None else (table.schema, table.name)
    return sql.Identifier(*names).as_string(None)


def locking_order(name: str) -> list[str]:
    """Return what tables are sorted by wherever somebody locks several, or their logs.

    Args:
        name: As SQL writes it, quoted and with its schema.

    >>> sorted(['"a"."line item"', '"a"."line"'], key=locking_order)
    ['"a"."line"', '"a"."line item"']
    """
    return name[1:-1].split('"."')


def found_names(tables: Iterable[Table | str]) -> ScalarSelect[Any]:
    """Return an expression for the schemas and names of ``tables``, by ``search_path``.

    It is an object by `table_name`; those are left out that do not exist.
    """
    wanted = [table_name(table) for table in tables]
    found = text(_FOUND).bindparams(bindparam("wanted", wanted, ARRAY(Text), unique=True))
    return found.columns(names=JSONB).scalar_subquery()


def resolve_name(conn: Connection, table: Table | str) -> tuple[str, str]:
    """Return the table's schema and name, by ``search_path``, even if it does not exist.

    The schema is empty if it was not given, and there is none in ``search_path``.
    """
    name = table_name(table)
    facts = conn.execute(_TABLE, {"name": name}).one_or_none()
    if facts is not None:
        return facts.schema, facts.name
    parts, current_schema = conn.execute(
        select(
            func.parse_ident(name, type_=ARRAY(Text)),
            func.coalesce(func.current_schema(), literal(""), type_=Text),
        )
    ).one()
    return (parts[0], parts[1]) if len(parts) > 1 else (current_schema, parts[0])


def inspect_source(
    conn: Connection, table: Table | str, *, allow_row_security: bool = False
) -> SourceTable:
    """Return the table with its partitions and all columns that it has.

    Raises:
        CaptureRefusedError: Some of its changes would be missed.
    """
    name = table_name(table)
    facts = conn.execute(_TABLE, {"name": name}).one_or_none()
    if facts is None:
        raise CaptureRefusedError(name, "there is no such table; check its name and search_path")
    members = read_members(conn, facts.oid, allow_row_security=allow_row_security)
    columns = tuple(
        column
        for column in inspect_columns(conn, facts.oid)
        if column.name not in LOG_COLUMNS and not column.name.startswith(IMAGE_PREFIX)
    )
    return SourceTable(facts.oid, facts.schema, facts.name, tuple(members), columns)


def inspect_columns(conn: Connection, relation: int | str) -> list[SourceColumn]:
    """Return the columns of a relation that triggers see the values of, in its order.

    Args:
        conn: A connection in a transaction.
        relation: Its oid, or its name as SQL writes it.
    """
    return [
        SourceColumn(
            row.name,
            row.type_sql + row.collated,
            row.logged_type_sql + row.collated,
            row.is_nullable,
            row.equality_is_identity,
            row.array_type_sql and row.array_type_sql + row.collated,
            row.may_be_long,
        )
        for row in conn.execute(_COLUMNS, {"relation": str(relation)})
        if not row.is_virtual
    ]


def has_equality(conn: Connection, relation: sql.Identifier, column: str) -> bool:
    """Return whether values of ``column`` can be told apart."""
    probe = sql.SQL("SELECT {c} FROM {t} WHERE false EXCEPT ALL SELECT {c} FROM {t} WHERE false")
    try:
        with conn.begin_nested():
            execute(conn, probe.format(c=sql.Identifier(column), t=relation))
    except ProgrammingError as error:
        if not isinstance(error.orig, UndefinedFunction):
            raise
        return False
    return True


def choose_columns(
    conn: Connection, source: SourceTable, names: Iterable[str]
) -> list[SourceColumn]:
    """Return the columns called ``names``, in the order of the table.

    Raises:
        CaptureRefusedError: One does not exist or cannot be captured.
    """
    wanted = set(names)
    chosen = [column for column in source.columns if column.name in wanted]
    for missing in sorted(wanted - {column.name for column in chosen}):
        raise CaptureRefusedError(source.full_name, _why_missing(conn, source, missing))
    for column in chosen:
        if not has_equality(conn, source.identifier, column.name):
            raise CaptureRefusedError(
                source.full_name,
                f"values of column {column.name!r} cannot be compared; jsonb can be, json cannot",
            )
    return chosen


def _why_missing(conn: Connection, source: SourceTable, column: str) -> str:
    computed_from = conn.scalars(_COMPUTED_FROM, {"oid": source.oid, "name": column}).all()
    if computed_from:
        # Its value is in no transition table.
        return (
            f"column {column!r} is virtual, and triggers do not see its values; capture what it is"
            f" computed from ({', '.join(computed_from)}) and repeat its expression, or make it"
            " STORED"
        )
    return f"column {column!r} does not exist, is virtual or is named like the log's own columns"
