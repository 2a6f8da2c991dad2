"""What capture needs beside statement triggers where a table has partitions.

A MERGE whose UPDATE moves a row to another partition shows that row in no transition table of an
UPDATE. So a row trigger, which fires before, logs that everything may have changed.
"""

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
