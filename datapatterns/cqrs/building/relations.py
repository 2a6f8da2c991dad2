"""Find tables in PostgreSQL's catalog, and give them and what belongs to them other names."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from psycopg import sql
from sqlalchemy import Connection, text

from datapatterns.cqrs.building.names import default_name

_RELATION = text("""
SELECT c.oid, n.nspname::text AS schema, c.relname::text AS name, c.relkind::text AS kind,
       c.relispartition OR EXISTS (
           SELECT FROM pg_catalog.pg_inherits h WHERE c.oid IN (h.inhparent, h.inhrelid)
       ) AS in_hierarchy,
       c.relpersistence::text AS persistence
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = CASE WHEN :target <> '' THEN to_regclass(:target)
                   ELSE (SELECT s.oid FROM pg_catalog.pg_class s
                         JOIN pg_catalog.pg_namespace sn ON sn.oid = s.relnamespace
                         WHERE sn.nspname = :schema AND s.relname = :name) END
""")
_PARTS = text("""
SELECT i.relname::text AS name, i.relkind::text AS kind, NULL AS owned_column
FROM pg_catalog.pg_index x JOIN pg_catalog.pg_class i ON i.oid = x.indexrelid
WHERE x.indrelid = :oid
UNION ALL
SELECT s.relname::text, s.relkind::text, a.attname::text
FROM pg_catalog.pg_depend d
JOIN pg_catalog.pg_class s ON s.oid = d.objid AND s.relkind = 'S'
JOIN pg_catalog.pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.refobjid = :oid
  AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.deptype IN ('a', 'i')
UNION ALL
SELECT e.stxname::text, 'x', NULL
FROM pg_catalog.pg_statistic_ext e JOIN pg_catalog.pg_class c ON c.oid = e.stxrelid
WHERE c.oid = :oid AND e.stxnamespace = c.relnamespace
ORDER BY 1
""")
_AUTO_NAMED = text("""
SELECT k.conname::text AS name, CASE k.contype WHEN 'n' THEN 'not_null' ELSE 'check' END AS label,
       CASE cardinality(k.conkey) WHEN 1 THEN a.attname::text END AS column_name
FROM pg_catalog.pg_constraint k
LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = k.conkey[1]
WHERE k.conrelid = :oid AND k.contype IN ('c', 'n')
""")
_TAKEN = text("""
SELECT c.relname::text FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = :schema AND c.relname = ANY (CAST(:names AS text[])) ORDER BY 1
""")

_USERS = text("""
SELECT DISTINCT l.pid FROM pg_catalog.pg_locks l
WHERE l.locktype = 'relation' AND l.relation = ANY (CAST(:oids AS oid[])) AND l.granted
  AND l.pid <> pg_catalog.pg_backend_pid() ORDER BY 1
""")

TABLE = "r"
"""The kind of an ordinary table."""

_NUMBERED_MAX: Final = 100

_WORDS = {
    TABLE: sql.SQL("TABLE"),
    "i": sql.SQL("INDEX"),
    "S": sql.SQL("SEQUENCE"),
    "x": sql.SQL("STATISTICS"),
}


@dataclass(frozen=True, slots=True)
class Relation:
    """A table, as the catalog has it."""

    oid: int
    schema: str
    name: str
    kind: str
    in_hierarchy: bool
    persistence: str

    @property
    def identifier(self) -> sql.Identifier:
        """Its name, to put into a statement."""
        return sql.Identifier(self.schema, self.name)


@dataclass(frozen=True, slots=True)
class Part:
    """An index, a sequence or statistics that go with a table, but have a name in the schema."""

    name: str
    kind: str
    owned_column: str | None


def find_target(conn: Connection, target: str) -> Relation | None:
    """Return the table of which PostgreSQL writes the name so, if there is one."""
    return _find(conn, target=target, schema="", name="")


def find_table(conn: Connection, schema: str, name: str) -> Relation | None:
    """Return the relation of that name, if there is one."""
    return _find(conn, target="", schema=schema, name=name)


def parts_of(conn: Connection, table: Relation) -> list[Part]:
    """Return the indexes, sequences and extended statistics of a table."""
    return [Part(*row) for row in conn.execute(_PARTS, {"oid": table.oid})]


def taken_names(conn: Connection, schema: str, names: Iterable[str]) -> list[str]:
    """Return those of ``names`` that something in the schema has."""
    return list(conn.scalars(_TAKEN, {"schema": schema, "names": list(names)}))


def users_of(conn: Connection, tables: Iterable[Relation]) -> list[int]:
    """Return the sessions that use any of ``tables`` right now."""
    return list(conn.scalars(_USERS, {"oids": [table.oid for table in tables]}))


def drop_tables(tables: Iterable[Relation]) -> sql.Composed:
    """Return the statement that drops tables, which may refer to each other."""
    names = sql.SQL(", ").join(table.identifier for table in tables)
    return sql.SQL("DROP TABLE {}").format(names)


def lock_tables(tables: Iterable[Relation]) -> sql.Composed:
    """Return the statement that waits for all who use ``tables``, and keeps others out."""
    names = sql.SQL(", ").join(table.identifier for table in tables)
    return sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(names)


def rename_table(
    table: Relation, name: str, parts: Iterable[Part], names: Mapping[str, str]
) -> list[sql.Composed]:
    """Return the statements that rename a table, and those ``parts`` that have another name."""
    statements = [_rename(TABLE, table.schema, table.name, name)]
    statements += [
        _rename(part.kind, table.schema, part.name, names[part.name])
        for part in parts
        if names.get(part.name, part.name) != part.name
    ]
    return statements


def rename_constraints(conn: Connection, table: Relation, live_name: str) -> list[sql.Composed]:
    """Return what calls those constraints as on the live table that nobody has named."""
    unnamed = []
    for name, label, column in conn.execute(_AUTO_NAMED, {"oid": table.oid}):
        number = _number(name, table.name, column, label)
        if number is not None:
            unnamed.append((number, name, label, column))
    statements = []
    # From one on, also if the server has left numbers out, which other tables have.
    counted: Counter[tuple[str, str | None]] = Counter()
    for _, name, label, column in sorted(unnamed, key=lambda found: found[:2]):
        wanted = default_name(live_name, column, f"{label}{counted[label, column] or ''}")
        counted[label, column] += 1
        if name != wanted:
            statements.append(
                sql.SQL("ALTER TABLE {} RENAME CONSTRAINT {} TO {}").format(
                    table.identifier,
                    sql.Identifier(name),
                    sql.Identifier(wanted),
                )
            )
    return statements


def _number(name: str, table_name: str, column: str | None, label: str) -> int | None:
    # Of several that would be called the same, all but the first are numbered.
    for number in range(_NUMBERED_MAX):
        if name == default_name(table_name, column, f"{label}{number or ''}"):
            return number
    return None


def _find(conn: Connection, *, target: str, schema: str, name: str) -> Relation | None:
    asked = {"target": target, "schema": schema, "name": name}
    found = conn.execute(_RELATION, asked).one_or_none()
    return None if found is None else Relation(*found)


def _rename(kind: str, schema: str, old: str, new: str) -> sql.Composed:
    return sql.SQL("ALTER {} {} RENAME TO {}").format(
        _WORDS[kind], sql.Identifier(schema, old), sql.Identifier(new)
    )
