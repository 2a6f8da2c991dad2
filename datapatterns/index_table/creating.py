"""Create an index table with its triggers, and drop it again."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from sqlalchemy import Connection, delete, func, insert, literal, select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import DBAPIError

from datapatterns.change_log.locking import take_turn
from datapatterns.errors import IndexDefinitionError
from datapatterns.index_table.blueprint import blueprint_of
from datapatterns.index_table.catalog import column_facts, table_facts
from datapatterns.index_table.definition import IndexDefinition, fingerprint
from datapatterns.index_table.eligibility import ColumnFacts, column_problems, table_problems
from datapatterns.index_table.looking_up import joined
from datapatterns.index_table.maintenance import (
    TRIGGER_SEARCH_PATH,
    NamesOf,
    constraint_name,
    create_function,
    create_guard_view,
    create_triggers,
    entry_name,
    function_name,
    row_index_name,
    view_name,
)
from datapatterns.index_table.over_shards.collecting import create_collector
from datapatterns.index_table.schema import index_tables
from datapatterns.index_table.statements import quoted, rendered, run, table_name
from datapatterns.index_table.states import index_status, require_transaction
from datapatterns.index_table.subscribing import begin_empty, subscribe, unsubscribe

_PROBE = "datapatterns_index_probe"


def create_index(conn: Connection, definition: IndexDefinition) -> bool:
    """Create the index in state ``building``; return whether it wasn't there already.

    Creating its triggers waits for the transactions that are writing to the table, and makes
    others wait until the caller commits; set ``lock_timeout`` on a busy table.

    Raises:
        IndexChangedError: An index of this name was built from another definition.
        IndexDefinitionError: The table, a column or an expression can't be indexed. Nothing
            was created and the transaction is still usable.
        IndexDetachedError: It was built on another table, in whose place this one is now.
        IsolationLevelError: The connection is in autocommit mode.
    """
    require_transaction(conn)
    is_behind = definition.mode == "async"
    if is_behind:
        # First of all, like everybody who changes what is captured.
        take_turn(conn, schema=definition.schema)
    try:
        with conn.begin_nested():
            created = _register(conn, definition)
            if created:
                build = _BUILDS[definition.mode]
                build(conn, definition, _prepared_columns(conn, definition))
    except DBAPIError as error:
        if not _is_refusal(error):
            raise
        raise IndexDefinitionError(definition.name, f"PostgreSQL says: {error.orig}") from error
    return created


def drop_index(conn: Connection, name: str, *, schema: str) -> bool:
    """Drop the index of this name, whatever it was built from; return whether there was one.

    Raises:
        IsolationLevelError: The connection is in autocommit mode.
    """
    require_transaction(conn)
    known = index_tables(schema).index_table
    names = NamesOf(name, schema)
    if conn.scalar(select(known.c.mode).where(known.c.name == name)) == "async":
        # Before everything that who takes changes in may hold while it waits for that.
        unsubscribe(conn, names)
    # Only what create_index() made: the library's own tables live in the same schema.
    dropped = conn.scalar(delete(known).where(known.c.name == name).returning(known.c.index_id))
    if dropped is None:
        return False
    # The function's triggers go with it, also where the base table is gone already.
    run(
        conn,
        f"DROP FUNCTION IF EXISTS {function_name(names)}() CASCADE;\n"
        f"DROP VIEW IF EXISTS {view_name(names)};\n"
        f"DROP TABLE IF EXISTS {entry_name(names)};",
    )
    return True


def _register(conn: Connection, definition: IndexDefinition) -> bool:
    tables = index_tables(definition.schema)
    known = tables.index_table
    # The row is also the lock: of two processes that create the same index, one waits here.
    index_id = conn.scalar(
        upsert(known)
        .values(
            name=definition.name,
            base_table=definition.base.fullname,
            is_unique=definition.unique,
            mode=definition.mode,
            state="building",
            fingerprint=fingerprint(definition),
            blueprint=_written_down(definition),
        )
        .on_conflict_do_nothing(index_elements=[known.c.name])
        .returning(known.c.index_id)
    )
    if index_id is not None:
        conn.execute(insert(tables.index_backfill).values(index_id=index_id))
        return True
    index_status(conn, definition)
    return False


def _written_down(definition: IndexDefinition) -> dict[str, Any] | None:
    try:
        return blueprint_of(definition).as_json()
    except IndexDefinitionError:  # a name that cannot be written down; the index works as well
        return None


def _prepared_columns(conn: Connection, definition: IndexDefinition) -> list[ColumnFacts]:
    """Create the guard view and return what the catalog says of its columns."""
    facts = table_facts(conn, definition.base)
    if facts is None:
        raise IndexDefinitionError(
            definition.name, f"there is no table {definition.base.fullname}; create it first"
        )
    for problem in table_problems(
        facts,
        primary_key=definition.primary_key,
        used_columns=definition.used_columns,
        mode=definition.mode,
    ):
        raise IndexDefinitionError(definition.name, problem)
    run(conn, create_guard_view(definition))
    columns = column_facts(conn, definition)
    matched_by = set(definition.entry_identity)
    for column in columns:
        for problem in column_problems(column) if column.name in matched_by else ():
            raise IndexDefinitionError(definition.name, problem)
    return columns


def _build_beside(
    conn: Connection, definition: IndexDefinition, columns: Sequence[ColumnFacts]
) -> None:
    """Create what writers keep in their own transactions."""
    run(conn, _create_table(definition, columns))
    loosely_equal = frozenset(column.name for column in columns if column.loosely_equal)
    run(conn, create_function(definition, loosely_equal=loosely_equal))
    with _rehearsal(conn, definition):
        _rehearse_triggers(conn, definition)
    run(conn, create_triggers(definition, on_table=table_name(definition.base)))


def _build_behind(
    conn: Connection, definition: IndexDefinition, columns: Sequence[ColumnFacts]
) -> None:
    """Create what takes changes in after they were committed."""
    run(conn, _create_table(definition, columns))
    # Old index rows of a changed row are found by its primary key.
    own = ", ".join(map(quoted, definition.primary_key))
    run(
        conn,
        f"CREATE INDEX {quoted(row_index_name(definition))} ON {entry_name(definition)} ({own})",
    )
    with _rehearsal(conn, definition):
        pass
    subscribe(conn, definition)
    begin_empty(conn, definition)


def _build_over_shards(
    conn: Connection, definition: IndexDefinition, columns: Sequence[ColumnFacts]
) -> None:
    """Create what notes changed keys, for sessions that claim them on other shards."""
    for column in columns:
        if column.loosely_equal and column.name in definition.entry_identity:
            raise IndexDefinitionError(
                definition.name,
                f"equal values of {column.name} may be written in two ways; index others",
            )
    run(conn, create_collector(definition))
    with _rehearsal(conn, definition):
        _rehearse_triggers(conn, definition)
    run(conn, create_triggers(definition, on_table=table_name(definition.base)))


_BUILDS: Final = {
    "local": _build_beside,
    "async": _build_behind,
    "reserve": _build_over_shards,
}


def _create_table(definition: IndexDefinition, columns: Sequence[ColumnFacts]) -> str:
    matched_by = set(definition.entry_identity)
    declared = [
        f"{quoted(column.name)} {column.type_sql}"
        + (f" COLLATE {column.collation_sql}" if column.collation_sql else "")
        + (" NOT NULL" if column.name in matched_by else "")
        for column in columns
    ]
    # The order of the primary key is the order of look-ups, ranges and pages.
    identity = definition.key if definition.unique else definition.entry_identity
    keys = ", ".join(quoted(name) for name in identity)
    constraint = f"CONSTRAINT {quoted(constraint_name(definition))} PRIMARY KEY ({keys})"
    return f"CREATE TABLE {entry_name(definition)} ({', '.join([*declared, constraint])})"


@contextmanager
def _rehearsal(conn: Connection, definition: IndexDefinition) -> Iterator[None]:
    """Let PostgreSQL judge the key on an empty copy of the base table, which is gone then.

    That all expressions are immutable is a rule of its indexes.
    """
    copy = definition.transition(_PROBE)
    key = ", ".join(f"({rendered(definition.projection(copy)[name])})" for name in definition.key)
    with conn.begin_nested() as rehearsal:
        run(
            conn,
            f"CREATE TEMPORARY TABLE {_PROBE} (LIKE {table_name(definition.base)});\n"
            f"CREATE INDEX ON {_PROBE} ({key}) WHERE {rendered(definition.is_indexed(copy))}",
        )
        yield
        # A name that is no Column of the table is ambiguous beside the index.
        if definition.mode != "reserve":
            conn.execute(select(literal(1)).select_from(joined(definition)).limit(0)).close()
        _require_one_meaning(conn, definition)
        rehearsal.rollback()


def _rehearse_triggers(conn: Connection, definition: IndexDefinition) -> None:
    """Fire the function on the empty copy.

    Bodies of functions aren't checked when they are created: an operator that isn't found
    would break every write.
    """
    touched = quoted(definition.primary_key[0])
    run(conn, create_triggers(definition, on_table=_PROBE))
    for statement in ("INSERT INTO {0} SELECT * FROM {0}", "DELETE FROM {0}", "TRUNCATE {0}"):
        run(conn, statement.format(_PROBE))
    run(conn, f"UPDATE {_PROBE} SET {touched} = {touched}")  # noqa: S608 -- quoted


def _require_one_meaning(conn: Connection, definition: IndexDefinition) -> None:
    # With another search path, = on citext is that of text: rows would be left out unseen.
    copy = definition.transition(_PROBE)
    columns = [own.label(name) for name, own in definition.projection(copy).items()]
    meaning = rendered(select(*columns).where(definition.is_indexed(copy)))
    run(
        conn,
        f"CREATE TEMPORARY VIEW {_PROBE}_here AS {meaning};\n"
        f"SET LOCAL search_path = {TRIGGER_SEARCH_PATH};\n"
        f"CREATE TEMPORARY VIEW {_PROBE}_there AS {meaning}",
    )
    here, there = (
        conn.scalar(select(func.pg_get_viewdef(func.to_regclass(f"{_PROBE}_{place}"))))
        for place in ("here", "there")
    )
    if here != there:
        raise IndexDefinitionError(
            definition.name,
            "an operator or function of its key or predicate comes from an extension or schema"
            " that a trigger doesn't search; cast its columns to types of PostgreSQL's own, as"
            " citext to text, or name the function's schema",
        )


def _is_refusal(error: DBAPIError) -> bool:
    # Classes 42 and 0A: PostgreSQL doesn't accept what it was asked. Not: a right is missing,
    # a lock or the connection was lost.
    state = getattr(error.orig, "sqlstate", None) or ""
    return state[:2] in ("42", "0A") and state != "42501"
