"""Plain views of users upon a view of ours: taken down and put up again when its columns change.

PostgreSQL writes the statements itself, quoted; what they are about exists when they run.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, cast, func, select, text
from sqlalchemy.dialects.postgresql import OID

from datapatterns.errors import ViewMigrationError
from datapatterns.materialized_view.names import ViewNames
from datapatterns.sql.composing import execute_written

_UPON = text("""
WITH RECURSIVE upon (oid, depth) AS (
    SELECT c.oid, 0 FROM pg_catalog.pg_class c
    WHERE c.relnamespace = to_regnamespace(:schema) AND c.relname = ANY (:names)
    UNION ALL
    SELECT r.ev_class, upon.depth + 1
    FROM upon
    JOIN pg_catalog.pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = upon.oid
     AND d.classid = 'pg_rewrite'::regclass AND d.deptype = 'n'
    JOIN pg_catalog.pg_rewrite r ON r.oid = d.objid AND r.ev_class <> upon.oid
    WHERE upon.depth < 100)
SELECT oid, max(depth) AS depth FROM upon GROUP BY oid
""")
_STATEMENTS = text("""
SELECT c.oid::regclass::text AS name, c.relkind = 'v' AS is_view,
       format('DROP VIEW %s', c.oid::regclass) AS down,
       format('CREATE VIEW %s%s AS %s', c.oid::regclass,
              ' WITH (' || array_to_string(c.reloptions, ', ') || ')',
              pg_get_viewdef(c.oid)) AS up
FROM pg_catalog.pg_class c WHERE c.oid = :oid
""")
_LOOKS = text("""
SELECT format('ALTER VIEW %s OWNER TO %I', c.oid::regclass, c.relowner::regrole::name)
FROM pg_catalog.pg_class c WHERE c.oid = :oid
UNION ALL
SELECT format('COMMENT ON VIEW %s IS %L', c.oid::regclass, d.description)
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_description d ON d.objoid = c.oid AND d.classoid = 'pg_class'::regclass
 AND d.objsubid = 0
WHERE c.oid = :oid
UNION ALL
SELECT format('COMMENT ON COLUMN %s.%I IS %L', c.oid::regclass, t.attname, d.description)
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_attribute t ON t.attrelid = c.oid AND t.attnum > 0 AND NOT t.attisdropped
JOIN pg_catalog.pg_description d ON d.objoid = c.oid AND d.classoid = 'pg_class'::regclass
 AND d.objsubid = t.attnum
WHERE c.oid = :oid AND (CAST(:columns AS text[]) IS NULL OR t.attname = ANY (:columns))
UNION ALL
-- Default privileges give at once what may have been taken away since.
SELECT format('REVOKE ALL ON %s FROM %s', c.oid::regclass,
              CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE g.grantee::regrole::text END)
FROM pg_catalog.pg_class c
CROSS JOIN (SELECT DISTINCT a.grantee FROM pg_catalog.pg_default_acl d
            CROSS JOIN LATERAL aclexplode(d.defaclacl) AS a WHERE d.defaclobjtype = 'r') AS g
WHERE c.oid = :oid AND g.grantee <> c.relowner
UNION ALL
SELECT format('GRANT %s ON %s TO %s%s', a.privilege_type, c.oid::regclass,
              CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END,
              CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
FROM pg_catalog.pg_class c CROSS JOIN LATERAL aclexplode(c.relacl) AS a
WHERE c.oid = :oid AND a.grantee <> c.relowner
UNION ALL
SELECT format('GRANT %s (%I) ON %s TO %s%s', a.privilege_type, t.attname, c.oid::regclass,
              CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END,
              CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_attribute t ON t.attrelid = c.oid AND t.attnum > 0 AND NOT t.attisdropped
CROSS JOIN LATERAL aclexplode(t.attacl) AS a
WHERE c.oid = :oid AND (CAST(:columns AS text[]) IS NULL OR t.attname = ANY (:columns))
""")
_OTHERS = text("""
SELECT pg_describe_object(d.classid, d.objid, d.objsubid)
FROM pg_catalog.pg_depend d
JOIN pg_catalog.pg_class c ON c.oid = d.refobjid AND d.refclassid = 'pg_class'::regclass
LEFT JOIN pg_catalog.pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
LEFT JOIN pg_catalog.pg_class v ON v.oid = r.ev_class
WHERE c.relnamespace = to_regnamespace(:schema) AND c.relname = ANY (:names) AND d.deptype = 'n'
  AND v.relkind IS DISTINCT FROM 'v'
""")
_LOST = text("""
SELECT pg_describe_object('pg_trigger'::regclass, t.oid, 0) FROM pg_catalog.pg_trigger t
WHERE t.tgrelid = ANY (CAST(:relations AS oid[]))
UNION ALL
SELECT pg_describe_object('pg_rewrite'::regclass, r.oid, 0) FROM pg_catalog.pg_rewrite r
WHERE r.ev_class = ANY (CAST(:relations AS oid[])) AND r.rulename <> '_RETURN'
UNION ALL
SELECT pg_describe_object('pg_attrdef'::regclass, d.oid, 0) FROM pg_catalog.pg_attrdef d
WHERE d.adrelid = ANY (CAST(:relations AS oid[]))
ORDER BY 1
""")
_LOSERS = text("""
SELECT v.oid::regclass::text, a.attname
FROM pg_catalog.pg_depend d
JOIN pg_catalog.pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
JOIN pg_catalog.pg_class c ON c.oid = d.refobjid AND d.refclassid = 'pg_class'::regclass
JOIN pg_catalog.pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
JOIN pg_catalog.pg_class v ON v.oid = r.ev_class AND v.oid <> c.oid
WHERE c.relnamespace = to_regnamespace(:schema) AND c.relname = ANY (:names)
  AND a.attname <> ALL (:columns)
ORDER BY 1, 2
""")


@dataclass(frozen=True, slots=True)
class Dependants:
    """Statements to take down what stands upon a view and the view itself, and to put it up again.

    Attributes:
        down: What stands upon another comes before it; the view and its real-time twin last.
        up: The other way round, without the view itself, for which a new one is.
        looks: Owner, comment and rights of the view itself.
    """

    down: Sequence[str]
    up: Sequence[str]
    looks: Sequence[str]


def require_replaceable(conn: Connection, names: ViewNames, columns: Iterable[str]) -> None:
    """Refuse to give the view these columns while something stands upon it that needs others.

    Raises:
        ViewMigrationError: It is named.
    """
    given = {"schema": names.schema, "names": [names.view, names.realtime]}
    other = conn.scalars(_OTHERS, given).first()
    if other is not None:
        raise ViewMigrationError(
            names.view,
            f"its columns change, and {other} depends on it, which only its owner can make anew;"
            " drop that before, and create it when the new version is in place",
        )
    upon = conn.scalars(_UPON, given).all()
    lost = conn.scalars(_LOST, {"relations": [*upon]}).first()
    if lost is not None:
        raise ViewMigrationError(
            names.view,
            f"its columns change, so what stands upon it is made anew, and {lost} would be lost;"
            " drop that before, and create it when the new version is in place",
        )
    loser = conn.execute(_LOSERS, given | {"columns": [*columns]}).first()
    if loser is not None:
        raise ViewMigrationError(
            names.view,
            f"{loser[0]} reads its column {loser[1]!r}, which goes; change or drop that before",
        )


def read_looks(conn: Connection, relation: str, columns: Iterable[str]) -> Sequence[str]:
    """Return the statements that give a view owner, comments and rights, whatever it is by then.

    Args:
        conn: A connection in a transaction.
        relation: The view that has them, as SQL writes its name.
        columns: Those that it will have.
    """
    oid = conn.scalar(select(cast(func.to_regclass(relation), OID)))
    return conn.scalars(_LOOKS, {"oid": oid, "columns": [*columns]}).all()


def read_dependants(conn: Connection, names: ViewNames, columns: Iterable[str]) -> Dependants:
    """Return how to take the view down with what stands upon it, and to put the rest up again."""
    own = [names.view, names.realtime]
    rows = conn.execute(_UPON, {"schema": names.schema, "names": own}).all()
    down: list[str] = []
    up: list[str] = []
    looks: list[str] = []
    for row in sorted(rows, key=lambda row: (-row.depth, row.oid)):
        statement = conn.execute(_STATEMENTS, {"oid": row.oid}).one()
        left = [*columns] if row.depth == 0 else None
        kept = conn.scalars(_LOOKS, {"oid": row.oid, "columns": left}).all()
        down.append(statement.down)
        if row.depth == 0:
            looks += kept
        else:
            up[:0] = [statement.up, *kept]
    return Dependants(down, up, looks)


def run_all(conn: Connection, statements: Iterable[str]) -> None:
    """Execute what PostgreSQL has written."""
    for statement in statements:
        execute_written(conn, statement)
