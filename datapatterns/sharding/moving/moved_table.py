"""A table of a moving bucket, as the server that has it describes it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from psycopg import sql
from sqlalchemy import Connection, Table, text

from datapatterns.change_log.inspecting import table_name
from datapatterns.errors import ShardedTableError
from datapatterns.sharding.definition import ShardKey
from datapatterns.sharding.maps.shard_map import ShardMap
from datapatterns.sharding.moving.predicates import bucket_predicate

ROW = "r"
"""The alias of the table in every statement about its rows."""

_DESCRIBE = text("""
SELECT c.oid, n.nspname, c.relname, format('%I.%I', n.nspname, c.relname),
    (SELECT jsonb_agg(jsonb_build_array(a.attname, format_type(a.atttypid, a.atttypmod),
            a.atttypid::int8, a.attcollation <> 0) ORDER BY a.attnum)
     FROM pg_catalog.pg_attribute a
     WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''),
    (SELECT jsonb_agg(a.attname ORDER BY a.attnum)
     FROM pg_catalog.pg_index i
     JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY (
        -- Without what INCLUDE adds.
        (i.indkey::int2[])[0:i.indnkeyatts - 1])
     WHERE i.indrelid = c.oid AND i.indisprimary)
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = to_regclass(:name)
""")

_KEYS = sql.SQL("""
(SELECT {typed} FROM jsonb_to_recordset({listed}::jsonb) AS listed ({texts})) AS {alias}
""")
_WITH_KEYS = sql.SQL("""
ARRAY(SELECT found.place FROM {keys} CROSS JOIN LATERAL (
    SELECT {row}.ctid AS place FROM ONLY {table} AS {row}
    WHERE {same_key} AND ({in_bucket}) IS TRUE OFFSET 0) AS found)
""")

# Types whose hash is that of what they look like. Of all others the text is hashed: an enum hashes
# its OID, which differs between databases, and a numeric 1.0 hashes as 1.00 does.
_HASHED = frozenset((16, 17, 20, 21, 23, 26, 1082, 1083, 1114, 1184, 2950))


@dataclass(frozen=True, slots=True)
class MovedTable:
    """One table of a moving bucket on one shard.

    Attributes:
        oid: Its number on that shard.
        place: Its schema and name.
        name: The same, as the server writes it.
        columns: The names of its columns and their types in SQL, without generated ones.
        hashed: What a digest is made of.
        primary_key: The columns of its primary key.
        shard_key: Which columns decide where a row lies.
        in_bucket: The condition that a row, called ``ROW``, lies in the bucket.
    """

    oid: int
    place: sql.Identifier
    name: str
    columns: Mapping[str, str]
    hashed: sql.Composable
    primary_key: tuple[str, ...]
    shard_key: ShardKey
    in_bucket: sql.Composable

    @property
    def column_list(self) -> sql.Composable:
        """Return the names of the columns."""
        return sql.SQL(", ").join(map(sql.Identifier, self.columns))

    @property
    def selected(self) -> sql.Composable:
        """Return the columns of the row called ``ROW``."""
        return sql.SQL(", ").join(sql.Identifier(ROW, name) for name in self.columns)

    @property
    def key_list(self) -> sql.Composable:
        """Return the columns of the primary key."""
        return sql.SQL(", ").join(map(sql.Identifier, self.primary_key))

    def keys_from(self, listed: str, *, alias: str) -> sql.Composable:
        """Return primary keys, as JSON, as a table.

        They are texts, as JSON has another word for some values: it knows no array that begins
        with another number than 1, and takes the null of jsonb for a missing value.
        """
        typed = (
            sql.SQL("{0}::{1} AS {0}").format(sql.Identifier(name), sql.SQL(self.columns[name]))
            for name in self.primary_key
        )
        texts = (sql.SQL("{} text").format(sql.Identifier(name)) for name in self.primary_key)
        return _KEYS.format(
            typed=sql.SQL(", ").join(typed),
            listed=sql.Literal(listed),
            texts=sql.SQL(", ").join(texts),
            alias=sql.Identifier(alias),
        )

    def with_keys(self, listed: str) -> sql.Composable:
        """Return where the rows of the bucket are that have these primary keys, as an array.

        Each is looked up by its key. A join would be guessed at from statistics that know nothing
        of what has just arrived, and might read the whole bucket while writers wait.
        """
        return _WITH_KEYS.format(
            keys=self.keys_from(listed, alias="k"),
            table=self.place,
            row=sql.Identifier(ROW),
            same_key=self.same_key("k"),
            in_bucket=self.in_bucket,
        )

    def same_key(self, alias: str) -> sql.Composable:
        """Return the condition that the row has the primary key of another."""
        return sql.SQL(" AND ").join(
            sql.SQL("{} = {}").format(sql.Identifier(ROW, name), sql.Identifier(alias, name))
            for name in self.primary_key
        )


def describe_tables(
    conn: Connection,
    tables: Mapping[Table, ShardKey],
    shard_map: ShardMap,
    bucket: int,
    *,
    schema: str,
) -> list[MovedTable]:
    """Return the tables of a group as the server behind ``conn`` has them, by their names.

    Raises:
        ShardedTableError: One does not exist there, or has no primary key.
    """
    found = (
        _described(conn, table, key, shard_map, bucket, schema=schema)
        for table, key in tables.items()
    )
    return sorted(found, key=lambda table: table.place.as_string(None))


def _described(
    conn: Connection,
    table: Table,
    key: ShardKey,
    shard_map: ShardMap,
    bucket: int,
    *,
    schema: str,
) -> MovedTable:
    row = conn.execute(_DESCRIBE, {"name": table_name(table)}).one_or_none()
    if row is None:
        raise ShardedTableError(table.name, "it does not exist on every shard; migrate them alike")
    oid, namespace, name, written, columns, primary_key = row
    if primary_key is None or not {*key.columns}.issubset(primary_key):
        raise ShardedTableError(
            table.name, f"on the server, its primary key must include {key.named}"
        )
    return MovedTable(
        oid,
        sql.Identifier(namespace, name),
        written,
        {column: type_name for column, type_name, *_ in columns},
        _hashed(columns),
        tuple(primary_key),
        key,
        bucket_predicate(key, shard_map, bucket, row=ROW, schema=schema),
    )


def _hashed(columns: Iterable[tuple[str, str, int, bool]]) -> sql.Composable:
    parts = []
    for name, _, type_oid, is_collated in columns:
        column: sql.Composable = sql.Identifier(ROW, name)
        is_text = type_oid not in _HASHED
        if is_text:
            column = sql.SQL("{}::text").format(column)
        if is_text or is_collated:
            # Two servers may disagree about what a collation calls equal.
            column = sql.SQL('({} COLLATE "C")').format(column)
        parts.append(column)
    return sql.SQL("ROW({})").format(sql.SQL(", ").join(parts))
