"""Ask servers: what on a shard could not go to Citus, and whether a coordinator is set up."""

from collections.abc import Iterator, Mapping, Sequence

from sqlalchemy import ARRAY, Connection, Table, Text, bindparam, text

from datapatterns.sharding.citus.distributing import ASKED
from datapatterns.sharding.citus.fitness import CitusFinding, leaders
from datapatterns.sharding.definition import ShardKey

_HANGING_ON = text("""
    SELECT c.relname, 'trigger ' || t.tgname AS what
    FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
    WHERE t.tgrelid = ANY (SELECT to_regclass(name) FROM unnest(:names) AS name)
        AND NOT t.tgisinternal AND t.tgname !~ '^zz_datapatterns_'
    UNION ALL
    SELECT c.relname, 'rule ' || r.rulename
    FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class
    WHERE r.ev_class = ANY (SELECT to_regclass(name) FROM unnest(:names) AS name)
        AND r.rulename <> '_RETURN'
    ORDER BY 1, 2
""").bindparams(bindparam("names", type_=ARRAY(Text)))

_DISTRIBUTED = text("""
    SELECT to_regclass(name)::oid = found.table_name::oid AS same, name,
        found.citus_table_type, found.distribution_column, found.colocation_id
    FROM unnest(:names) AS name
    LEFT JOIN citus_tables AS found ON found.table_name::oid = to_regclass(name)::oid
""").bindparams(bindparam("names", type_=ARRAY(Text)))


def live_findings(conn: Connection, tables: Sequence[Table]) -> list[CitusFinding]:
    """Return the triggers and rules of tables on a shard, which models do not tell."""
    rows = conn.execute(_HANGING_ON, {"names": [_name(conn, table) for table in tables]})
    return [
        CitusFinding(
            row.relname,
            f"{row.what} hangs on it",
            "distributed tables have no triggers unless citus.enable_unsafe_triggers is on, and no"
            " rules; what the library captures by triggers must be read another way",
        )
        for row in rows
    ]


def coordinator_findings(
    conn: Connection,
    tables: Mapping[Table, ShardKey],
    broadcast: Sequence[Table],
    *,
    schema: str,
    local: bool,
) -> list[CitusFinding]:
    """Return what a coordinator has otherwise than `ddl` makes it.

    Args:
        conn: A connection to it.
        tables: What is to be distributed.
        broadcast: What is to be everywhere.
        schema: Where the library's tables live.
        local: Whether those stay on the coordinator.
    """
    wide = [_name(conn, table) for table, key in tables.items() if key.is_composite]
    tables = {table: key for table, key in tables.items() if not key.is_composite}
    asked = [f"{schema}.{name}" for name in ASKED]
    everywhere = [_name(conn, table) for table in broadcast]
    if not local:
        everywhere = [*asked, *everywhere]
    sharded = {_name(conn, table): key.column for table, key in tables.items()}
    rows = conn.execute(_DISTRIBUTED, {"names": [*asked, *everywhere, *sharded]}).all()
    found = {row.name: row for row in rows}
    problems = [
        CitusFinding(name, "it is no reference table", "run what citus_ddl() returns")
        for name in everywhere
        if found[name].citus_table_type != "reference"
    ]
    if local:
        problems += [
            CitusFinding(
                name,
                "it is not the coordinator's alone",
                "a CitusShard is asked by statements of their own; SELECT undistribute_table(...)",
            )
            for name in asked
            if found[name].citus_table_type is not None
        ]
    problems += [
        CitusFinding(name, f"it is not distributed by {column}", "run what citus_ddl() returns")
        for name, column in sharded.items()
        if found[name].distribution_column != column
    ]
    problems += [
        CitusFinding(
            name, "its key is two columns, and Citus distributes by one", "leave it on other shards"
        )
        for name in wide
    ]
    problems += _apart(
        {_name(conn, table): key for table, key in tables.items()},
        tables,
        conn,
        {name: row.colocation_id for name, row in found.items()},
    )
    return problems


def _apart(
    named: Mapping[str, ShardKey],
    tables: Mapping[Table, ShardKey],
    conn: Connection,
    places: Mapping[str, int | None],
) -> Iterator[CitusFinding]:
    first = {group: _name(conn, table) for group, table in leaders(tables).items()}
    for name, key in named.items():
        leader = first[key.group]
        if places[name] != places[leader]:
            yield CitusFinding(
                name, f"it does not lie with {leader}", "distribute it colocate_with that table"
            )


def _name(conn: Connection, table: Table) -> str:
    return conn.dialect.identifier_preparer.format_table(table)
