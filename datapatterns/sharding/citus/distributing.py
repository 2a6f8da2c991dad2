"""The SQL that distributes an application's tables by Citus, to be run on its coordinator."""

from collections.abc import Iterator, Mapping, Sequence
from uuid import UUID

from psycopg import sql
from sqlalchemy import Table

from datapatterns.sharding.citus.fitness import by_name, leaders
from datapatterns.sharding.definition import EntityGroup, ShardKey
from datapatterns.sharding.strategies.strategy import Key

ASKED = ("this_shard", "bucket")
"""What those conditions read."""

PLACES = "hash_bucket"
"""What tells rows of a bucket from others."""

GUARDS = ("assert_map", "assert_owned", "hash_bucket", "map_digest", "refuse_bucket")
"""What conditions call that Citus sends on to its nodes."""

_GUARDS = sql.SQL(
    "SELECT create_distributed_function(oid::regprocedure) FROM pg_proc"
    " WHERE pronamespace = {schema}::regnamespace AND proname = ANY ({names}::text[])"
)
_EVERYWHERE = sql.SQL("SELECT create_reference_table({table})")
_LEADER = sql.SQL(
    "SELECT create_distributed_table({table}, {column},"
    " shard_count => {shards}, colocate_with => 'none')"
)
_WITH_IT = sql.SQL("SELECT create_distributed_table({table}, {column}, colocate_with => {leader})")
_UUID, _BIGINT = sql.SQL("::uuid"), sql.SQL("::bigint")
_ALONE = sql.SQL("SELECT isolate_tenant_to_new_shard({table}, {key}, 'CASCADE')")


def ddl(  # noqa: PLR0913 -- what there is to distribute, by name
    tables: Mapping[Table, ShardKey],
    broadcast: Sequence[Table],
    *,
    pins: Mapping[EntityGroup, Sequence[Key]],
    further: Mapping[str, str],
    shard_count: int,
    schema: str,
    local: bool,
) -> str:
    """Return one statement a line, in an order in which each finds what it needs."""
    lines = [
        "-- On the coordinator, after the tables are there and before there are rows.",
        "CREATE EXTENSION IF NOT EXISTS citus;",
        "-- What the library's conditions ask, on every node.",
        *(
            _line(_EVERYWHERE.format(table=_place(schema, name)))
            for name in (() if local else ASKED)
        ),
        _line(
            _GUARDS.format(
                schema=sql.Literal(schema), names=sql.Literal([PLACES] if local else [*GUARDS])
            )
        ),
        "-- Broadcast tables, those first that others refer to.",
        *(_line(_EVERYWHERE.format(table=_table(table))) for table in broadcast),
    ]
    for group, leader in leaders(tables).items():
        lines += _group(group, leader, tables, pins.get(group, ()), shard_count)
    if further:
        lines.append("-- Index tables, by the column that is looked up.")
        lines += [
            _line(
                _LEADER.format(
                    table=_place(*name.rpartition(".")[::2]) if "." in name else _text(name),
                    column=sql.Literal(column),
                    shards=sql.Literal(shard_count),
                )
            )
            for name, column in further.items()
        ]
    return "\n".join(lines) + "\n"


def _group(
    group: EntityGroup,
    leader: Table,
    tables: Mapping[Table, ShardKey],
    pins: Sequence[Key],
    shard_count: int,
) -> Iterator[str]:
    yield f"-- Group {group.name}."
    if group.strategy.kind == "range":
        yield "-- It is placed by ranges, which Citus has not: its keys are spread by hash instead."
    if by_name(group):
        yield "-- Its keys are placed by name. To keep that, give each key a schema of its own, and"
        yield "-- SELECT citus_schema_distribute('...') instead of what follows."
    for table, key in tables.items():
        if key.group != group:
            continue
        place, column = _table(table), sql.Literal(key.column)
        yield _line(
            _LEADER.format(table=place, column=column, shards=sql.Literal(shard_count))
            if table is leader
            else _WITH_IT.format(table=place, column=column, leader=_table(leader))
        )
    for pinned in pins:
        written = str(pinned) if isinstance(pinned, UUID) else pinned
        value: sql.Composable = sql.Literal(written)
        if not isinstance(pinned, str):
            value = value + (_UUID if isinstance(pinned, UUID) else _BIGINT)
        yield "-- A pinned key; citus_move_shard_placement() then puts it on a node of its own."
        yield _line(_ALONE.format(table=_table(leader), key=value))


def _line(statement: sql.Composed) -> str:
    return f"{statement.as_string(None)};"


def _table(table: Table) -> sql.Literal:
    return _place(table.schema, table.name) if table.schema else _text(table.name)


def _place(schema: str, name: str) -> sql.Literal:
    return sql.Literal(sql.Identifier(schema, name).as_string(None))


def _text(name: str) -> sql.Literal:
    return sql.Literal(sql.Identifier(name).as_string(None))
