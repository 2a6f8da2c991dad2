"""What capture needs beside statement triggers where a table has partitions.

A MERGE whose UPDATE moves a row to another partition shows that row in no transition table of an
UPDATE. So a row trigger, which fires before, logs that everything may have changed.
"""

from collections.abc import Sequence
from functools import reduce
from operator import xor

from psycopg import sql

from datapatterns.change_log.capture_names import CaptureNames
from datapatterns.change_log.inspecting import SourceTable

# What is detached keeps its statement triggers. In a partition that is being detached rows still
# change; whoever goes by the log reads everything anew until it is gone.
_UNLESS_DETACHED = sql.SQL("""
    IF to_regclass({table}) IS NOT NULL AND TG_RELID <> to_regclass({table})
       AND pg_partition_root(TG_RELID) IS DISTINCT FROM to_regclass({table}) THEN
        RETURN NULL;  -- it is no partition any more
    END IF;
""")
# A partition may come, be written to through the table and go again before any consumer looks: then
# the catalogue is as it was, and the log tells of rows that are gone. So each statement looks
# whether a partition is there that was not when this function was made, or was elsewhere, and says
# that all that it holds may have changed. (One that is back where it was, the catalogue tells of.)
# A transaction that sees one moment only sees no later partition, but writes into it; what it sees
# through pg_partition_tree() is there, at the price of a lock on each.
_NEWCOMERS = sql.SQL("""
    IF {all_of_them} IS DISTINCT FROM (
        SELECT bit_xor(hash_record_extended(ROW(i.inhrelid, i.inhparent, i.xmin), 0))
          FROM pg_inherits AS i WHERE i.inhparent = ANY ({parents}))
    THEN
        INSERT INTO {rows} (change_sign, change_partition)
        SELECT 0, nullif({bounds}(i.inhrelid), '[]')
          FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
         WHERE i.inhparent = ANY ({parents})
           AND hash_record_extended(ROW(i.inhrelid, i.inhparent, i.xmin), 0)
               <> ALL ({attachments})
           AND hash_record_extended(
                   ROW(i.inhrelid, i.inhparent, pg_get_expr(c.relpartbound, c.oid)), 0)
               <> ALL ({places});
    END IF;
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        INSERT INTO {rows} (change_sign)
        SELECT 0 WHERE EXISTS (
            SELECT FROM pg_partition_tree(to_regclass({table})) AS t (relation)
             WHERE t.relation <> ALL ({members}));
    END IF;
""")
_OID, _BIGINT = sql.SQL("oid"), sql.SQL("bigint")
_TRUNCATED = sql.SQL("(change_sign) VALUES (0)")
# The bounds of the partition, or NULL for the table itself. They stay as they are until this has
# been committed: TRUNCATE has locked the partition, and ATTACH of what it is in would lock it.
_TRUNCATED_PARTITION = sql.SQL(
    "(change_sign, change_partition)\n        VALUES (0, nullif({bounds}(TG_RELID), '[]'))"
)
# A partition's constraint is evaluated with the rights of this function's owner. Operators of
# keys that are columns come from operator classes, which only superusers create; expressions may
# call anything, so there every change of a key counts as a move.
_CREATE_MOVE_FUNCTION = sql.SQL("""
CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS {body};
REVOKE ALL ON FUNCTION {function}() FROM PUBLIC;
""")
_MOVE_BODY = sql.SQL("""
DECLARE
    stays boolean := false;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_partition_ancestors(TG_RELID) AS a (relation)
                   JOIN pg_partitioned_table AS p ON p.partrelid = a.relation
                   WHERE p.partexprs IS NOT NULL) THEN
        EXECUTE format('SELECT %s FROM (SELECT ($1).*) AS updated',
                       coalesce(pg_get_partition_constraintdef(TG_RELID), 'true'))
           INTO stays USING NEW;
    END IF;
    IF stays IS FALSE THEN
        INSERT INTO {rows} (change_sign) VALUES (0);
    END IF;
    RETURN NEW;
END
""")
# PostgreSQL gives row triggers of a partitioned table to its partitions, and to later ones.
_CREATE_MOVE_TRIGGER = sql.SQL("""
CREATE OR REPLACE TRIGGER {trigger} BEFORE UPDATE ON {table} FOR EACH ROW
WHEN (pg_catalog.record_image_ne(ROW({before}), ROW({after})))
EXECUTE FUNCTION {function}();
ALTER TABLE {table} ENABLE ALWAYS TRIGGER {trigger};
""")


def unless_detached(source: SourceTable) -> sql.Composable:
    """Return what a trigger function begins with, so that former partitions log nothing."""
    if not source.is_partitioned:
        return sql.SQL("")
    return _UNLESS_DETACHED.format(table=sql.Literal(source.identifier.as_string(None)))


def newcomers(names: CaptureNames, source: SourceTable) -> sql.Composable:
    """Return what tells of partitions that the trigger function does not know yet."""
    if not source.is_partitioned:
        return sql.SQL("")
    members = sorted(source.members, key=lambda member: member.oid)
    attachments = [m.attachment for m in members if m.attachment is not None]
    return _NEWCOMERS.format(
        all_of_them=sql.Literal(reduce(xor, attachments) if attachments else None),
        parents=_array([m.oid for m in members if m.is_partitioned], _OID),
        members=_array([m.oid for m in members], _OID),
        attachments=_array(attachments, _BIGINT),
        places=_array([m.place for m in members if m.place is not None], _BIGINT),
        rows=names.rows,
        bounds=sql.Identifier(names.schema, "partition_bounds"),
        table=sql.Literal(source.identifier.as_string(None)),
    )


def _array(values: Sequence[int], of: sql.SQL) -> sql.Composable:
    listed = sql.SQL(", ").join(map(sql.Literal, values))
    return sql.SQL("ARRAY[{}]::{}[]").format(listed, of)


def truncated(names: CaptureNames, source: SourceTable) -> sql.Composable:
    """Return what is inserted into the log for a TRUNCATE, from the columns on."""
    if not source.is_partitioned:
        return _TRUNCATED
    return _TRUNCATED_PARTITION.format(bounds=sql.Identifier(names.schema, "partition_bounds"))


def replace_move_function(names: CaptureNames) -> sql.Composable:
    """Return the statements that create the function which logs that a row moves."""
    body = sql.Literal(_MOVE_BODY.format(rows=names.rows).as_string(None))
    return _CREATE_MOVE_FUNCTION.format(function=names.move_function, body=body)


def create_move_trigger(names: CaptureNames, source: SourceTable) -> sql.Composable:
    """Return the statements that create the trigger for rows whose partition key changes."""
    keys = [sql.Identifier(key) for key in source.keys]
    return _CREATE_MOVE_TRIGGER.format(
        trigger=sql.Identifier(names.move_trigger),
        table=source.identifier,
        before=sql.SQL(", ").join(sql.SQL("OLD.") + key for key in keys),
        after=sql.SQL(", ").join(sql.SQL("NEW.") + key for key in keys),
        function=names.move_function,
    )
