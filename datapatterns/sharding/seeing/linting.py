"""Say what would go wrong with the tables that are declared, before it does."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import (
    ARRAY,
    Boolean,
    Column,
    Connection,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy import Sequence as NumberSequence
from sqlalchemy.dialects.postgresql import dialect
from sqlalchemy.schema import CreateIndex, Index

from datapatterns.errors import ShardedTableError
from datapatterns.sharding.access import ShardAccess
from datapatterns.sharding.definition import EntityGroup, ShardKey
from datapatterns.sharding.seeing.snapshots import on_each
from datapatterns.sharding.strategies import Composite, Directory, Hash

_DIALECT = dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy leaves it untyped
_KEY_COLUMN = text(
    """
    SELECT a.attnotnull AS bound, coalesce(c.collisdeterministic, true) AS settled,
        c.collname::text AS collation
    FROM pg_catalog.pg_attribute AS a
    LEFT JOIN pg_catalog.pg_collation AS c ON c.oid = a.attcollation
    WHERE a.attrelid = to_regclass(:name) AND a.attname = :key AND NOT a.attisdropped
    """
).columns(bound=Boolean, settled=Boolean, collation=Text)
_NUMBERED = text(
    """
    SELECT a.attname::text FROM pg_catalog.pg_attribute AS a
    LEFT JOIN pg_catalog.pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE a.attrelid = to_regclass(:name) AND a.attnum > 0 AND NOT a.attisdropped
        AND (a.attidentity <> '' OR pg_get_expr(d.adbin, d.adrelid) LIKE 'nextval(%')
    ORDER BY 1
    """
)
_INDEXES = text(
    """
    SELECT i.indisunique AS is_unique, c.relname::text AS name, pg_get_indexdef(i.indexrelid) AS definition,
        ARRAY(SELECT a.attname::text FROM unnest(i.indkey) WITH ORDINALITY AS k (number, place)
              LEFT JOIN pg_catalog.pg_attribute AS a
                ON a.attrelid = i.indrelid AND a.attnum = k.number AND k.number > 0
              WHERE k.place <= i.indnkeyatts ORDER BY k.place) AS columns
    FROM pg_catalog.pg_index AS i JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
    WHERE i.indrelid = to_regclass(:name) AND i.indisvalid
    ORDER BY 2
    """  # noqa: E501 -- as psql shows it
).columns(is_unique=Boolean, name=Text, definition=Text, columns=ARRAY(Text))


@dataclass(frozen=True, slots=True)
class LintFinding:
    """Something about a table that is wrong, or will be.

    Attributes:
        rule: What was broken, in a word.
        table: The table.
        shard: Where; None for what the code declares.
        problem: What is wrong.
        advice: What to do.
        sql: The statement that does it, if one does.
    """

    rule: str
    table: str
    shard: str | None
    problem: str
    advice: str
    sql: str | None = None


def lint_tables(
    access: ShardAccess, groups: Sequence[EntityGroup], *, declared_only: bool
) -> list[LintFinding]:
    """Return what is wrong with tables, as the code declares them and as the shards have them."""
    try:
        found = lint_declared(access, groups)
    except ShardedTableError as error:
        return [LintFinding("declaration", error.table, None, str(error), error.advice)]
    return found if declared_only else [*found, *lint_shards(access, groups)]


def lint_declared(access: ShardAccess, groups: Sequence[EntityGroup]) -> list[LintFinding]:
    """Return what is wrong with tables as the code declares them."""
    found: list[LintFinding] = []
    for group in groups:
        for table in access.placements.tables_of(group):
            key = access.placements.shard_key(table)
            assert key is not None  # it is of the group
            found += _uniques(table, key)
            found += _foreign_keys(table, key, access)
            found += _numbers(table)
    for table in access.placements.broadcast_tables():
        found += _broadcast(table, access)
    return [*found, *_references(access)]


def lint_shards(access: ShardAccess, groups: Sequence[EntityGroup]) -> list[LintFinding]:
    """Return what is wrong with sharded tables as the shards have them.

    Raises:
        ShardUnavailableError: A shard does not answer.
    """
    tables = [
        (table, key)
        for group in groups
        for table in access.placements.tables_of(group)
        if (key := access.placements.shard_key(table)) is not None
    ]

    def look(shard: str, conn: Connection) -> list[LintFinding]:
        return [
            finding
            for table, key in tables
            for finding in _on_shard(conn, shard, table, key, access)
        ]

    return [finding for findings in on_each(access, look).values() for finding in findings]


# As declared ---------------------------------------------------------------------------------


def _uniques(table: Table, key: ShardKey) -> Iterator[LintFinding]:
    for columns in _declared_uniques(table):
        if not {*key.columns}.issubset(columns):
            yield LintFinding(
                "unique",
                table.name,
                None,
                f"UNIQUE ({', '.join(columns)}) is kept by each shard for itself",
                f"add {key.named}, or keep it unique over all shards by an index table",
            )


def _foreign_keys(table: Table, key: ShardKey, access: ShardAccess) -> Iterator[LintFinding]:
    for constraint in table.foreign_key_constraints:
        other = constraint.referred_table
        if access.placements.is_broadcast(other):
            continue
        found = access.placements.shard_key(other)
        pairs = {(e.parent.name, e.column.name) for e in constraint.elements}
        names = ", ".join(constraint.column_keys)
        if found is None or found.group is not key.group:
            yield LintFinding(
                "foreign-key",
                table.name,
                None,
                f"({names}) refers to {other.name!r}, which is not of group {key.group.name!r}",
                f"declare {other.name!r} as Broadcast() if it is small, or drop the foreign key"
                " and declare a ShardForeignKey",
            )
        elif not pairs.issuperset(zip(key.columns, found.columns, strict=True)):
            yield LintFinding(
                "foreign-key",
                table.name,
                None,
                f"({names}) refers to {other.name!r} without its shard key",
                f"let {key.named} refer to {found.named}, too, so that both move together",
            )


def _references(access: ShardAccess) -> Iterator[LintFinding]:
    for reference in access.references.all:
        declared = reference.declared
        table, names = declared.child_table, {column.name for column in declared.child}
        firsts = {next(iter(index.columns)).name for index in table.indexes if index.columns}
        firsts |= {columns[0] for columns in _declared_uniques(table) if columns}
        firsts.add(next(iter(table.primary_key.columns)).name)
        if declared.check == "on_write" and firsts.isdisjoint(names):
            columns = ", ".join(column.name for column in declared.child)
            yield LintFinding(
                "reference-index",
                table.name,
                None,
                f"who deletes a row of {declared.parent_table.name!r} reads {table.name!r} whole on"
                f" every shard, as no index begins with any of ({columns})",
                f"make an index on ({columns})",
            )


def _numbers(table: Table) -> Iterator[LintFinding]:
    for column in table.columns:
        if _is_numbered(table, column):
            yield LintFinding(
                "numbers",
                table.name,
                None,
                f"{column.name} is numbered by each shard for itself, from 1",
                "make ids with ShardCluster.ids() and set autoincrement=False",
            )


def _is_numbered(table: Table, column: Column[object]) -> bool:
    default = getattr(getattr(column.server_default, "arg", None), "text", "")
    return (
        column.identity is not None
        or isinstance(column.default, NumberSequence)
        or "nextval" in str(default)
        or column is table.autoincrement_column
    )


def _broadcast(table: Table, access: ShardAccess) -> Iterator[LintFinding]:
    for constraint in table.foreign_key_constraints:
        other = constraint.referred_table
        if not access.placements.is_broadcast(other):
            yield LintFinding(
                "foreign-key",
                table.name,
                None,
                f"a broadcast table refers to {other.name!r}, of which no shard has all",
                f"drop the foreign key, or declare {other.name!r} as Broadcast()",
            )


# On the servers ------------------------------------------------------------------------------


def _on_shard(
    conn: Connection, shard: str, table: Table, key: ShardKey, access: ShardAccess
) -> Iterator[LintFinding]:
    name = conn.dialect.identifier_preparer.format_table(table)
    for key_column in key.columns:
        row = conn.execute(_KEY_COLUMN, {"name": name, "key": key_column}).one_or_none()
        if row is None:
            yield LintFinding(
                "missing", table.name, shard, f"there is no {table.name}.{key_column}",
                "migrate this shard",
            )  # fmt: skip
            return
        if not row.bound:
            yield LintFinding(
                "null-key", table.name, shard, f"{key_column} may be NULL, so its row lies nowhere",
                "forbid it", f"ALTER TABLE {name} ALTER COLUMN {_quoted(key_column)} SET NOT NULL",
            )  # fmt: skip
        if not row.settled:
            yield LintFinding(
                "collation", table.name, shard,
                f"{key_column} has collation {row.collation!r}, by which unequal texts are equal,"
                " and so have several buckets",
                'give the column a deterministic collation, such as "C"',
            )  # fmt: skip
    declared = {column.name for column in table.columns if _is_numbered(table, column)}
    for column in conn.scalars(_NUMBERED, {"name": name}):
        if column not in declared:  # else it is told of once
            yield LintFinding(
                "numbers", table.name, shard, f"{column} is numbered by this shard for itself",
                "make ids with ShardCluster.ids(), and drop its default or identity",
            )  # fmt: skip
    yield from _indexes(conn, shard, table, key, name, access)


def _indexes(
    conn: Connection, shard: str, table: Table, key: ShardKey, name: str, access: ShardAccess
) -> Iterator[LintFinding]:
    declared = _declared_uniques(table)
    finds_bucket = False
    for index in conn.execute(_INDEXES, {"name": name}):
        # What is declared so is told of once.
        narrow = not {*key.columns}.issubset(index.columns)
        if index.is_unique and index.columns not in declared and narrow:
            yield LintFinding(
                "unique", table.name, shard,
                f"unique index {index.name} is kept by this shard for itself",
                f"add {key.named}, or keep it unique over all shards by an index table",
            )  # fmt: skip
        finds_bucket |= _finds_bucket(index.columns, index.definition, key)
    if not finds_bucket:
        yield LintFinding(
            "bucket-index", table.name, shard,
            "no index finds the rows of a bucket, so that moving one reads the whole table",
            "create it", _bucket_index(table, key, access),
        )  # fmt: skip


def _declared_uniques(table: Table) -> list[list[str]]:
    constraints = [each for each in table.constraints if isinstance(each, UniqueConstraint)]
    indexes = [index for index in table.indexes if index.unique]
    found = [[column.name for column in each.columns] for each in constraints]
    return [*found, *([column.name for column in index.columns] for index in indexes)]


def _finds_bucket(columns: list[str | None], definition: str, key: ShardKey) -> bool:
    strategy = key.group.strategy
    if isinstance(strategy, Composite):
        if len(columns) < len(strategy.parts):
            return False
        return all(
            at is None and "hash_bucket(" in definition if isinstance(part, Hash) else at == name
            for part, name, at in zip(strategy.parts, key.columns, columns, strict=False)
        )
    if isinstance(strategy, Hash):
        return re.search(r"USING btree \(\(?(\S+\.)?hash_bucket\(", definition) is not None
    return bool(columns) and columns[0] == key.column


def _bucket_index(table: Table, key: ShardKey, access: ShardAccess) -> str:
    # Beside the table that is declared, which is to stay as it is.
    columns = table.to_metadata(MetaData()).c
    strategy = access.router.map_of(key.group).strategy
    plain = strategy.default if isinstance(strategy, Directory) else strategy
    parts = plain.parts if isinstance(plain, Composite) else (plain,)
    wanted = [
        part.bucket_of(columns[name], schema=access.schema)
        if isinstance(part, Hash)
        else columns[name]
        for part, name in zip(parts, key.columns, strict=True)
    ]
    index = Index(f"{table.name}_bucket", *wanted, postgresql_concurrently=True)
    return str(CreateIndex(index).compile(dialect=_DIALECT))


def _quoted(name: str) -> str:
    return _DIALECT.identifier_preparer.quote(name)
