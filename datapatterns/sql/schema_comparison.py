"""Compare the library's tables with what its migrations make on this very server.

The migrations run in a schema beside the real one, the catalogs of both are described, and the
transaction is undone: the truth is the migrations themselves, in the words of this server's
version. The price: the right to create a schema, and catalog rows that vacuum removes.
"""

import secrets
from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, func, select, text

from datapatterns.sql.metadata import DEFAULT_SCHEMA, checked_schema
from datapatterns.sql.migrating import upgrade

_PLACE = "\N{SECTION SIGN}"
"""Stands for the schema in both descriptions; no name of ours contains it."""


@dataclass(frozen=True, slots=True, order=True)
class _Part:
    """One line of a description: what belongs to ``owner``, which is a relation or routine."""

    owner: str
    kind: str
    line: str


def schema_differences(conn: Connection, *, schema: str = DEFAULT_SCHEMA) -> tuple[str, ...]:
    """Return how the tables in ``schema`` differ from those that all migrations together make.

    A line that begins with ``-`` is missing, one with ``+`` should not be there. Tables that the
    library does not know, and further indexes that are not unique, are nobody's mistake. Grants,
    owners, storage parameters and partitions are the operator's choice.

    The caller must roll the transaction back: the schema that this makes for comparing is
    not meant to stay.
    """
    scratch = f"dp_check_{secrets.token_hex(4)}"
    upgrade(conn, schema=scratch)
    # With an empty path every name is written with its schema, whoever's path holds ours.
    conn.execute(select(func.set_config("search_path", "", True)))
    expected = _described(conn, scratch, also=schema)
    found = _described(conn, checked_schema(schema))
    return tuple(line.replace(_PLACE, schema) for line in compared(expected, found))


def compared(expected: frozenset[_Part], found: frozenset[_Part]) -> list[str]:
    """Return the differences that matter, one line each, sorted by what they belong to."""
    owners = {part.owner for part in found}
    known = {part.owner for part in expected}
    missing = [
        part
        for part in expected - found
        # Of a table that is gone, its columns and indexes are no further news.
        if part.owner in owners or part.kind in {"relation", "routine"}
    ]
    extra = [part for part in found - expected if part.owner in known and part.kind != "index"]
    return [f"- {part.line}" for part in sorted(missing)] + [
        f"+ {part.line}" for part in sorted(extra)
    ]


def _described(conn: Connection, schema: str, *, also: str | None = None) -> frozenset[_Part]:
    names = [schema] if also is None else [schema, also]
    rows = conn.execute(_DESCRIPTION, {"schema": schema})
    return frozenset(
        _Part(row.owner, row.kind, _placed(" ".join(row.line.split()), names)) for row in rows
    )


def _placed(line: str, names: Iterable[str]) -> str:
    for name in names:
        line = line.replace(name, _PLACE)
    return line


_DESCRIPTION = text("""
WITH relations AS (
    SELECT c.oid, c.relname::text AS owner, c.relkind, c.relpersistence
    FROM pg_class c
    WHERE c.relnamespace = to_regnamespace(:schema)
      AND c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
      AND c.relname <> 'library_version'
), parts AS (
    SELECT r.owner, r.oid AS parent, p.oid AS part, p.relname::text AS name,
           count(*) OVER (PARTITION BY r.oid) AS siblings
    FROM relations r JOIN pg_inherits i ON i.inhparent = r.oid JOIN pg_class p ON p.oid = i.inhrelid
    WHERE r.relkind = 'p'
)
SELECT owner, 'relation' AS kind,
       format('%s %I persistence %s', CASE relkind WHEN 'S' THEN 'sequence' WHEN 'v' THEN 'view'
              WHEN 'm' THEN 'materialized view' ELSE 'table' END, owner, relpersistence) AS line
FROM relations
UNION ALL
SELECT owner, 'definition', format('view %I as %s', owner, pg_get_viewdef(oid))
FROM relations WHERE relkind IN ('v', 'm')
UNION ALL
SELECT owner, 'definition', format('sequence %I as %s start %s increment %s cache %s cycle %s',
       owner, format_type(s.seqtypid, NULL), s.seqstart, s.seqincrement, s.seqcache, s.seqcycle)
FROM relations JOIN pg_sequence s ON s.seqrelid = oid
UNION ALL
SELECT owner, 'column', format('column %I.%I %s%s%s%s%s', owner, a.attname,
       format_type(a.atttypid, a.atttypmod),
       CASE WHEN a.attnotnull THEN ' NOT NULL' END,
       ' DEFAULT ' || pg_get_expr(d.adbin, d.adrelid),
       ' GENERATED ' || nullif(a.attgenerated::text, ''),
       ' IDENTITY ' || nullif(a.attidentity::text, ''))
FROM relations
JOIN pg_attribute a ON a.attrelid = relations.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_attrdef d ON (d.adrelid, d.adnum) = (a.attrelid, a.attnum)
WHERE relkind <> 'S'
UNION ALL
-- NOT NULL is a constraint since PostgreSQL 18; the columns say it already.
SELECT owner, 'constraint', format('constraint %I on %I %s', o.conname, owner,
       pg_get_constraintdef(o.oid))
FROM relations JOIN pg_constraint o ON o.conrelid = relations.oid AND o.contype <> 'n'
UNION ALL
SELECT owner, CASE WHEN i.indisunique THEN 'unique index' ELSE 'index' END,
       format('index %s%s', replace(pg_get_indexdef(i.indexrelid), ' ON ONLY ', ' ON '),
              CASE WHEN NOT i.indisvalid THEN ' (not valid)' END)
FROM relations JOIN pg_index i ON i.indrelid = relations.oid
UNION ALL
SELECT owner, 'trigger', format('trigger %s%s', pg_get_triggerdef(t.oid),
       CASE WHEN t.tgenabled <> 'O' THEN ' (enabled: ' || t.tgenabled::text || ')' END)
FROM relations JOIN pg_trigger t ON t.tgrelid = relations.oid AND NOT t.tgisinternal
UNION ALL
-- A partitioned table cannot have every unique constraint itself; what all of its partitions have,
-- counts as its own.
SELECT owner, 'constraint', line FROM parts JOIN pg_constraint o ON o.conrelid = part
    AND o.contype = 'u', replace(format('constraint %I on %I %s', o.conname, name,
    pg_get_constraintdef(o.oid)), name, owner) AS line
GROUP BY owner, line, siblings HAVING count(*) = siblings
UNION ALL
SELECT owner, 'unique index', line FROM parts JOIN pg_index i ON i.indrelid = part
    AND i.indisunique, replace(format('index %s', pg_get_indexdef(i.indexrelid)), name, owner)
    AS line
GROUP BY owner, line, siblings HAVING count(*) = siblings
UNION ALL
-- Its triggers for statements fire only where the statement names it.
SELECT owner, 'partition', format('partition %I without trigger %I', name, t.tgname)
FROM parts JOIN pg_trigger t ON t.tgrelid = parent AND NOT t.tgisinternal
WHERE NOT EXISTS (SELECT FROM pg_trigger o WHERE o.tgrelid = part AND o.tgname = t.tgname
    AND (o.tgfoid, o.tgtype, o.tgenabled) = (t.tgfoid, t.tgtype, t.tgenabled))
UNION ALL
SELECT owner, 'routine', format('function %s', owner) FROM (
    SELECT DISTINCT p.proname::text AS owner FROM pg_proc p
    WHERE p.pronamespace = to_regnamespace(:schema)
) AS names
UNION ALL
SELECT p.proname::text, 'definition', CASE WHEN p.prokind IN ('f', 'p')
       THEN pg_get_functiondef(p.oid) ELSE format('aggregate %s', p.oid::regprocedure) END
FROM pg_proc p
WHERE p.pronamespace = to_regnamespace(:schema)
""")
