"""What is looked at before a bucket moves, so that nothing has to be undone."""

from collections.abc import Collection, Iterable, Sequence
from functools import partial

from psycopg import sql
from psycopg.errors import InsufficientPrivilege
from sqlalchemy import ARRAY, Connection, bindparam, text
from sqlalchemy.dialects.postgresql import OID
from sqlalchemy.exc import DBAPIError

from datapatterns.errors import MoveRefusedError
from datapatterns.sharding.maps.shard_map import ShardMap
from datapatterns.sharding.migrating.catalogs import read_catalog
from datapatterns.sharding.moving.both_sides import on_both
from datapatterns.sharding.moving.copying import TablePair
from datapatterns.sharding.moving.holding import Side
from datapatterns.sharding.moving.moved_table import ROW, MovedTable
from datapatterns.sharding.moving.predicates import indexed_expressions
from datapatterns.sharding.moving.watching import OURS
from datapatterns.sql.composing import execute
from datapatterns.transactions import reading

_KINDS = text("""
SELECT format('%I.%I', n.nspname, c.relname) AS name,
    CASE WHEN c.relkind = 'p' THEN 'it is partitioned'
         WHEN c.relkind <> 'r' THEN 'it is no table'
         WHEN c.relpersistence <> 'p' THEN 'it is unlogged, and would be empty after a crash'
         WHEN c.relhassubclass THEN 'other tables inherit from it' END AS problem
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = ANY (:tables)
""")
# A sequence of the target would give out numbers that the bucket has already.
_SEQUENCES = text("""
SELECT a.attrelid::regclass::text AS name, a.attname AS column
FROM pg_catalog.pg_attribute a
LEFT JOIN pg_catalog.pg_attrdef d ON (d.adrelid, d.adnum) = (a.attrelid, a.attnum)
WHERE a.attrelid = ANY (:tables) AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
    AND (a.attidentity <> '' OR pg_get_expr(d.adbin, d.adrelid) LIKE '%nextval(%')
ORDER BY 1, a.attnum
""")
# Also of a domain such as lo, or in an array.
_OBJECTS = text("""
SELECT a.attrelid::regclass::text AS name, a.attname AS column
FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type y ON y.oid = a.atttypid
WHERE a.attrelid = ANY (:tables) AND a.attnum > 0 AND NOT a.attisdropped
    AND 'oid'::regtype IN (y.oid, y.typbasetype, y.typelem) AND y.typcategory IN ('N', 'A')
ORDER BY 1, a.attnum
""")
_FOREIGN_KEYS = text("""
SELECT o.conname AS name, o.conrelid::regclass::text AS here, o.confrelid::regclass::text AS there
FROM pg_catalog.pg_constraint o
WHERE o.contype = 'f' AND (
    o.conrelid = ANY (:tables) AND o.confrelid <> ALL (:tables) AND o.confrelid <> ALL (:copied)
    OR o.confrelid = ANY (:tables) AND o.conrelid <> ALL (:tables))
ORDER BY 1
""")
_LATE_TRIGGERS = text("""
SELECT t.tgname AS name, t.tgrelid::regclass::text AS table
FROM pg_catalog.pg_trigger t
WHERE t.tgrelid = ANY (:tables) AND NOT t.tgisinternal AND t.tgtype & 3 = 3
    AND t.tgname > 'zz_datapatterns' AND t.tgname !~ :ours
ORDER BY 1
""")
# In the mover's transactions, too. What the library's own do there is meant so.
_LOUD = text("""
SELECT 'trigger' AS kind, t.tgname AS name, t.tgrelid::regclass::text AS table
FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
WHERE t.tgrelid = ANY (:tables) AND t.tgenabled IN ('A', 'R')
    AND p.pronamespace::regnamespace::text <> quote_ident(:schema)
UNION ALL
SELECT 'rule', w.rulename, w.ev_class::regclass::text
FROM pg_catalog.pg_rewrite w WHERE w.ev_class = ANY (:tables) AND w.ev_enabled IN ('A', 'R')
ORDER BY 1, 2, 3
""")
# Of one table; the key's column is its own.
_UNIQUE = text("""
SELECT i.indexrelid::regclass::text
FROM pg_catalog.pg_index i
WHERE i.indrelid = :table AND (i.indisunique OR i.indisexclusion) AND NOT EXISTS (
    SELECT FROM pg_catalog.pg_attribute a
    WHERE a.attrelid = i.indrelid AND a.attname = :key
        AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]))
ORDER BY 1
""")
_INDEXED = text("""
SELECT EXISTS (
    SELECT FROM pg_catalog.pg_index i
    WHERE i.indrelid = :table AND i.indisvalid AND i.indpred IS NULL
        AND pg_get_indexdef(i.indexrelid) LIKE :pattern)
""")
# Whatever has ever moved has triggers, unless somebody has let them be forgotten.
_UNDECLARED = text("""
SELECT min(t.tgrelid::regclass::text)
FROM pg_catalog.pg_trigger t
WHERE t.tgrelid <> ALL (:tables) AND starts_with(t.tgname, :prefix) AND NOT t.tgisinternal
""")
_ROLE = sql.SQL("SET LOCAL session_replication_role = 'replica'")
_OCCUPIED = sql.SQL("SELECT EXISTS (SELECT FROM {table} AS {row} WHERE {in_bucket})")
_OIDS = ARRAY(OID)


def check_move(
    source: Side, target: Side, tables: Sequence[TablePair], *, broadcast: Collection[str]
) -> None:
    """Refuse what a move could not do rightly.

    Args:
        source: The shard that has the bucket, in no transaction.
        target: The shard that gets it, in none.
        tables: The tables of the group.
        broadcast: The names, as SQL writes them, of tables that every shard has whole.

    Raises:
        MoveRefusedError: Something is in the way.
    """

    def check(side: Side, mine: Sequence[MovedTable]) -> None:
        with reading(side.conn):
            _check_tables(side, mine, broadcast)

    on_both(
        partial(check, source, [here for here, _ in tables]),
        partial(check, target, [there for _, there in tables]),
    )
    check_right(source)
    _check_alike(source, target, tables)


def check_declared(side: Side, tables: Sequence[MovedTable], group: str) -> None:
    """Refuse to go on with part of the tables, in a transaction of the caller's.

    Raises:
        MoveRefusedError: Rows of other tables would be left behind.
    """
    declared = bindparam("tables", [table.oid for table in tables], _OIDS)
    prefix = {"prefix": f"zz_datapatterns_{side.group_id}_"}
    if (name := side.conn.scalar(_UNDECLARED.bindparams(declared), prefix)) is not None:
        raise MoveRefusedError(
            f"table {name} on shard {side.shard}",
            f"buckets of group {group!r} have moved with it, and this process does not declare it;"
            " import the module that does",
        )


def missing_indexes(
    conn: Connection, tables: Iterable[MovedTable], shard_map: ShardMap, *, schema: str
) -> list[str]:
    """Return the statements that make indexes by which a bucket's rows are found, if none is there.

    Without one, each move reads the table whole, several times.
    """
    found = []
    for table in tables:
        by = indexed_expressions(table.shard_key, shard_map, schema=schema)
        parts = [
            f"%hash_bucket(%{name}" if "hash_bucket(" in each.as_string(None) else name
            for name, each in zip(table.shard_key.columns, by, strict=True)
        ]
        pattern = f"%({'%'.join(parts)}%"
        if not conn.scalar(_INDEXED, {"table": table.oid, "pattern": pattern}):
            wanted = sql.SQL("CREATE INDEX CONCURRENTLY ON {} ({})").format(
                table.place, sql.SQL(", ").join(by)
            )
            found.append(wanted.as_string(None))
    return found


def _check_tables(side: Side, tables: Sequence[MovedTable], broadcast: Collection[str]) -> None:
    conn, shard = side.conn, side.shard
    oids = [table.oid for table in tables]
    mine = bindparam("tables", oids, _OIDS)
    for row in conn.execute(_KINDS.bindparams(mine)):
        if row.problem is not None:
            raise MoveRefusedError(f"table {row.name} on shard {shard}", f"{row.problem}")
    for row in conn.execute(_SEQUENCES.bindparams(mine)):
        raise MoveRefusedError(
            f"column {row.column} of {row.name} on shard {shard}",
            "its numbers come from a sequence, and the target's would give them out again; make"
            " them with ShardCluster.ids(), and drop the default",
        )
    for row in conn.execute(_OBJECTS.bindparams(mine)):
        raise MoveRefusedError(
            f"column {row.column} of {row.name} on shard {shard}",
            "it names objects of its server, such as large objects, which do not move; keep the"
            " bytes in a column of type bytea, and other numbers in one of type bigint",
        )
    copied = [
        oid
        for name in broadcast
        if (oid := conn.scalar(text("SELECT to_regclass(:name)::oid"), {"name": name})) is not None
    ]
    keys = _FOREIGN_KEYS.bindparams(mine, bindparam("copied", copied, _OIDS))
    for row in conn.execute(keys):
        raise MoveRefusedError(
            f"foreign key {row.name} on shard {shard}",
            f"it leads from {row.here} to {row.there}, and only one of them moves; put both into"
            " the group, or drop it",
        )
    for row in conn.execute(_LOUD.bindparams(mine), {"schema": side.schema}):
        raise MoveRefusedError(
            f"{row.kind} {row.name} of {row.table} on shard {side.shard}",
            "it fires for whoever copies rows, too, and would change what has arrived already; let"
            f" it be: ALTER TABLE {row.table} ENABLE {row.kind.upper()} {row.name}, without ALWAYS"
            " or REPLICA",
        )
    for row in conn.execute(_LATE_TRIGGERS.bindparams(mine), {"ours": OURS}):
        raise MoveRefusedError(
            f"trigger {row.name} of {row.table} on shard {shard}",
            "it comes after those of a move, which would miss what it changes; rename it",
        )
    _check_keys(conn, shard, tables)


def check_unused(target: Side, tables: Sequence[MovedTable]) -> None:
    """Refuse a target that has rows of a bucket which, as it says itself, it does not have.

    Raises:
        MoveRefusedError: They are nobody's copies, and would be removed as such.
    """
    with reading(target.conn):
        if target.state_now() not in {None, "cleaned"}:
            return  # an earlier try may have left them
        for table in tables:
            asked = _OCCUPIED.format(
                table=table.place, row=sql.Identifier(ROW), in_bucket=table.in_bucket
            )
            if execute(target.conn, asked).scalar():
                raise MoveRefusedError(
                    f"table {table.name} on shard {target.shard}",
                    f"it has rows of bucket {target.bucket} already, which somebody has written"
                    " there past the library; bring them to where they belong, or delete them",
                )


def _check_keys(conn: Connection, shard: str, tables: Sequence[MovedTable]) -> None:
    for table in tables:
        for column in sorted({*table.primary_key} - table.columns.keys()):
            raise MoveRefusedError(
                f"column {column} of {table.name} on shard {shard}",
                "it is generated and in the primary key, and triggers that note what changes run"
                " before it is computed; let a trigger of yours fill a plain column",
            )
        _check_unique(conn, shard, table)


def _check_unique(conn: Connection, shard: str, table: MovedTable) -> None:
    for key in table.shard_key.columns:
        for name in conn.scalars(_UNIQUE, {"table": table.oid, "key": key}):
            raise MoveRefusedError(
                f"index {name} on shard {shard}",
                f"it keeps rows unique without {key}, so those of another bucket could be in the"
                " way; add the column to it",
            )


def check_right(side: Side) -> None:
    """Refuse a role that cannot keep triggers quiet.

    Raises:
        MoveRefusedError: It may not.
    """
    try:
        with reading(side.conn):
            execute(side.conn, _ROLE)
    except DBAPIError as error:
        if not isinstance(error.orig, InsufficientPrivilege):
            raise
        raise MoveRefusedError(
            f"the role that moves buckets, on shard {side.shard}",
            "it may not set session_replication_role; GRANT SET ON PARAMETER"
            " session_replication_role TO it (PostgreSQL 15 and later), or use a superuser",
        ) from error


def _check_alike(source: Side, target: Side, tables: Sequence[TablePair]) -> None:
    """Compare the tables as both servers tell of them."""
    names = {table.name for pair in tables for table in pair}
    versions = {side.conn.dialect.server_version_info[0] for side in (source, target)}  # type: ignore[index]

    def told(side: Side) -> dict[tuple[str, str, str], str]:
        with reading(side.conn):
            catalog = read_catalog(side.conn, schema=side.schema)
        return {
            (part.owner, part.kind, part.name): part.line
            for part in catalog.parts
            # Servers of two versions have other words for most of it.
            if (part.owner in names and (len(versions) == 1 or part.kind == "column"))
            or part.kind == "labels"
        }

    here, there = on_both(partial(told, source), partial(told, target))
    for place in sorted(here.keys() | there.keys()):
        # A type that only one of them has is none of a column, which would differ, too.
        if place[1] == "labels" and not (place in here and place in there):
            continue
        if here.get(place) != there.get(place):
            owner, kind, name = place
            raise MoveRefusedError(
                f"{kind} {name} of {owner}".replace("  ", " "),
                f"shard {source.shard} has {here.get(place, 'none')!r}, shard {target.shard} has"
                f" {there.get(place, 'none')!r}; migrate the shards alike",
            )
