"""What logs many changes of one statement as a row with arrays, and shows them as rows again.

Each row of a table costs a record in the write-ahead log, and another one for its index: together
two fifths of what a bulk statement may do in that time. A thousand changes in one row cost next
to none of it.
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Final

from psycopg import sql

from datapatterns.change_log.capture_names import CaptureNames
from datapatterns.change_log.inspecting import (
    BATCHED_ROWS,
    IMAGE_PREFIX,
    LOG_COLUMNS,
    SourceColumn,
)

SINGLE_ROWS: Final = 16
"""So many changes of a statement are logged as rows first: arrays of few cost more than they save,
and a statement of one row is not asked how many it has."""

_BATCH_ROWS: Final = 1_000
_LONG_BYTES: Final = 1_000
"""A statement with a longer value is logged row by row: arrays are put together in memory."""

_COLUMNS_MAX: Final = 100
"""Arrays that are stored apart leave 18 bytes each in the row, which has to fit into a page."""

_NUMERICS_MAX: Final = 12
"""Those without a precision have up to 74 kB a value; PostgreSQL makes no row beyond 1 GB."""

_OWN = ("change_xid", "change_sign")
"""What each batch says about itself: which partition was truncated, none does."""

_ROWS, _BATCH = sql.Identifier(BATCHED_ROWS), sql.Identifier(f"{IMAGE_PREFIX}batch")

_CREATE_BATCHES = sql.SQL("""
CREATE TABLE {batches} (
    change_xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    change_sign smallint NOT NULL,
    {rows} integer NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);
CREATE INDEX ON {batches} (change_xid);
ALTER TABLE {batches} REPLICA IDENTITY FULL;
COMMENT ON TABLE {batches} IS 'Many changes in a row, as arrays; read the view of the log';
-- Until then the planner takes a table for ten pages, and one without batches is never analysed.
ANALYZE {batches};
""")
# All aggregates of a group take the same rows in the same order, so that their arrays match. Where
# a statement's batches do not fit into memory, PostgreSQL spills the rows of the later ones.
_INSERT_BATCHES = sql.SQL("""INSERT INTO {batches} ({into})
                SELECT {sign}, count(*){arrays}
                FROM (SELECT {numbered} FROM {relation}) AS q GROUP BY {groups};""")
_NUMBER = sql.SQL("(row_number() OVER () - 1) / {} AS {}").format(sql.Literal(_BATCH_ROWS), _BATCH)
# What is pending is to look like few rows, or joins with it would read whole tables. Therefore the
# planner knows no lengths of arrays, and takes each for ten; generate_series() it takes for a
# thousand. The number of changes counts: columns that were added later have no array.
_REPLACE_LOG = sql.SQL("""
CREATE OR REPLACE VIEW {log} AS
SELECT {shown} FROM {rows} AS r
UNION ALL
SELECT {unpacked} FROM {batches} AS b CROSS JOIN LATERAL (
    SELECT unnest(array_fill(0, ARRAY[b.{number}])) AS {number}{arrays}) AS c
""")


def create_batches(names: CaptureNames) -> sql.Composable:
    """Return the statements that create the table of batches."""
    return _CREATE_BATCHES.format(batches=names.batches, rows=_ROWS)


def add_arrays(names: CaptureNames, columns: Mapping[str, str]) -> sql.Composable:
    """Return the statement that lets batches hold more columns, whose arrays are of these types."""
    added = [
        sql.SQL("ADD COLUMN {0} {1}, ALTER COLUMN {0} SET STATISTICS 0").format(
            sql.Identifier(name), as_written(type_sql)
        )
        for name, type_sql in columns.items()
    ]
    return sql.SQL("ALTER TABLE {} {}").format(names.batches, _listed(added))


def can_be_batched(columns: Sequence[SourceColumn]) -> bool:
    """Return whether arrays of all ``columns`` fit into a row, and their making into memory."""
    numerics = [column for column in columns if column.logged_type_sql == "numeric"]
    return (
        len(columns) <= _COLUMNS_MAX
        and len(numerics) <= _NUMERICS_MAX
        and all(column.array_type_sql for column in columns)
    )


def insert_batches(
    names: CaptureNames,
    columns: Sequence[SourceColumn],
    relation: sql.Composable,
    sign: sql.SQL | None,
) -> sql.Composable:
    """Return the statement that logs the rows of ``relation`` in batches.

    Args:
        names: Those of the log.
        columns: Those that the log has; they can be batched.
        relation: What follows FROM; of a whole relation, all but what is logged as rows.
        sign: What happened to all of them; None if ``relation`` has it, as ``change_sign``.
    """
    identifiers = [sql.Identifier(column.name) for column in columns]
    own = [] if sign is not None else [sql.Identifier("change_sign")]
    arrays = [sql.SQL(", array_agg({})").format(name) for name in identifiers]
    return _INSERT_BATCHES.format(
        batches=names.batches,
        into=_listed([sql.Identifier("change_sign"), _ROWS, *identifiers]),
        sign=sign or own[0],
        arrays=sql.SQL("").join(arrays),
        numbered=_listed([*own, *identifiers, _NUMBER]),
        relation=relation,
        groups=_listed([*own, _BATCH]),
    )


def has_long_values(columns: Iterable[SourceColumn], relation: str) -> sql.Composable | None:
    """Return a condition for whether arrays might not fit into memory; None if they always do."""
    long = [
        sql.SQL("octet_length({}) > {}").format(sql.Identifier(column.name), _LONG_BYTES)
        for column in columns
        if column.may_be_long
    ]
    if not long:
        return None
    return sql.SQL("EXISTS (SELECT FROM {} WHERE {})").format(
        sql.Identifier(relation), sql.SQL(" OR ").join(long)
    )


def replace_log(
    names: CaptureNames,
    columns: Mapping[str, str],
    *,
    logged: Container[str],
    batched: Container[str],
    log: sql.Identifier | None = None,
) -> sql.Composable:
    """Return the statement that creates the view of all changes as rows, or gives it more columns.

    Args:
        names: Those of the log.
        columns: Those of the view and their types, as SQL writes them; new ones last.
        logged: Those that the table of rows has. The others show nothing any more.
        batched: Those that the table of batches has.
        log: What to call the view, if not what the log is called.
    """
    arrays = [name for name in columns if name in batched and name not in LOG_COLUMNS]
    return _REPLACE_LOG.format(
        log=log or names.log,
        rows=names.rows,
        shown=_shown(columns, {name: "r" for name in columns if name in logged}),
        batches=names.batches,
        unpacked=_shown(columns, dict.fromkeys(_OWN, "b") | dict.fromkeys(arrays, "c")),
        number=_ROWS,
        arrays=sql.SQL("").join(
            sql.SQL(", unnest(b.{0}) AS {0}").format(sql.Identifier(name)) for name in arrays
        ),
    )


def rename_shown(names: CaptureNames, column: str, number: int) -> sql.Composable:
    """Return the statement that frees the name of a column which the view cannot lose."""
    return sql.SQL("ALTER VIEW {} RENAME COLUMN {} TO {}").format(
        names.log, sql.Identifier(column), sql.Identifier(f"{IMAGE_PREFIX}dropped {number}")
    )


def _shown(columns: Mapping[str, str], relations: Mapping[str, str]) -> sql.Composable:
    shown: list[sql.Composable] = []
    for name, type_sql in columns.items():
        relation = relations.get(name)
        value = sql.SQL("NULL") if relation is None else sql.Identifier(relation, name)
        if relation in {"r", "b"}:
            shown.append(value)
            continue
        typed = sql.SQL("{}::{} AS {}")
        shown.append(typed.format(value, as_written(type_sql), sql.Identifier(name)))
    return _listed(shown)


def as_written(fragment: str) -> sql.Composable:
    """Return what PostgreSQL wrote, quoted: types and collations."""
    return sql.SQL(fragment)


def _listed(parts: Iterable[sql.Composable]) -> sql.Composable:
    return sql.SQL(", ").join(parts)
