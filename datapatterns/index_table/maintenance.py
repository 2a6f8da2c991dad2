"""The function and triggers that keep a local index right, as SQL.

One function serves four statement triggers. Old index rows go first, so that a swap of unique keys
within one UPDATE passes. An UPDATE touches only index rows that change; of one row, it is over as
soon as nothing that its index row is computed from is found to have changed.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import (
    ColumnElement,
    FromClause,
    Text,
    and_,
    case,
    collate,
    false,
    func,
    literal_column,
    select,
    true,
)

from datapatterns.index_table.definition import IndexDefinition
from datapatterns.index_table.statements import quoted, quoted_text, rendered

_OLD = "old_rows"
_NEW = "new_rows"

TRIGGER_SEARCH_PATH = "pg_catalog, pg_temp"
"""Where the trigger function looks for operators and functions, whoever writes."""

_ONE = "datapatterns_one"
"""The variable that holds what was found of an updated row, if there is only one."""

_EVENTS = ("INSERT", "UPDATE", "DELETE", "TRUNCATE")

# Plans of a function are kept for the session. One made for a bulk statement would read the whole
# index for every later single row; a probe per changed row is right for both.
_PLANNER = "SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off"


class Named(Protocol):
    """What has the name and schema of an index."""

    @property
    def name(self) -> str:
        """The index's name."""

    @property
    def schema(self) -> str:
        """The library's schema."""


@dataclass(frozen=True, slots=True)
class NamesOf:
    """An index of which only the name is known."""

    name: str
    schema: str


def function_name(definition: Named) -> str:
    """Return the qualified name of the index's trigger function."""
    return f"{quoted(definition.schema)}.{quoted(f'maintain_{definition.name}')}"


def entry_name(definition: Named) -> str:
    """Return the qualified name of the index's own table."""
    return f"{quoted(definition.schema)}.{quoted(definition.name)}"


def view_name(definition: Named) -> str:
    """Return the qualified name of the index's guard view."""
    return f"{quoted(definition.schema)}.{quoted(f'{definition.name}_guard')}"


def constraint_name(definition: IndexDefinition) -> str:
    """Return the name of the constraint that a second row with a unique key violates."""
    return f"pk_{definition.name}"


def row_index_name(definition: IndexDefinition) -> str:
    """Return the name of the index by which index rows are found by their row."""
    return f"ix_{definition.name}_row"


def consumer_name(definition: Named) -> str:
    """Return the name under which an index that is kept behind its writers consumes changes."""
    return f"index_table:{definition.name}"


def create_guard_view(definition: IndexDefinition) -> str:
    """Return the statement that creates the guard view.

    A function's body depends on nothing: without the view, dropping a column or changing its
    type would succeed and then break every write.
    """
    expected = select(
        *(own.label(name) for name, own in definition.projection(definition.base).items())
    ).where(definition.is_indexed(definition.base))
    return f"CREATE VIEW {view_name(definition)} AS {rendered(expected)}"


def create_function(definition: IndexDefinition, *, loosely_equal: frozenset[str]) -> str:
    """Return the statements that create the trigger function.

    Args:
        definition: The index.
        loosely_equal: Columns of which two equal values may differ, like 1.0 and 1.00.
    """
    # SECURITY DEFINER: writers of the base table need no right on the index. Who could attach
    # the function to a table of their own could write to it, hence the REVOKE.
    name = function_name(definition)
    body = _body(definition, loosely_equal)
    return (
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER"
        f" SET search_path = {TRIGGER_SEARCH_PATH} {_PLANNER} AS {quoted_text(body)};\n"
        f"REVOKE ALL ON FUNCTION {name}() FROM PUBLIC;"
    )


def create_triggers(definition: IndexDefinition, *, on_table: str) -> str:
    """Return the statements that attach the function to ``on_table``.

    In mode ``local`` ALWAYS, so that rows written under ``session_replication_role = replica`` are
    seen, too. Over shards those are rows of a bucket that moves, which no index has to know.
    """
    rows = {
        "INSERT": f"REFERENCING NEW TABLE AS {_NEW}",
        "UPDATE": f"REFERENCING OLD TABLE AS {_OLD} NEW TABLE AS {_NEW}",
        "DELETE": f"REFERENCING OLD TABLE AS {_OLD}",
        "TRUNCATE": "",
    }
    created = "\n".join(
        f"CREATE TRIGGER {quoted(_trigger_name(definition, event))} AFTER {event} ON {on_table}"
        f" {referencing} FOR EACH STATEMENT EXECUTE FUNCTION {function_name(definition)}();"
        for event, referencing in rows.items()
    )
    if definition.mode == "reserve":
        return created
    return f"{created}\n{enable_triggers(definition, on_table=on_table)}"


def enable_triggers(definition: IndexDefinition, *, on_table: str) -> str:
    """Return the statements after which the triggers fire for every writer."""
    return "\n".join(
        f"ALTER TABLE {on_table} ENABLE ALWAYS TRIGGER {quoted(trigger)};"
        for trigger in trigger_names(definition)
    )


def trigger_names(definition: IndexDefinition) -> tuple[str, ...]:
    """Return the names of all triggers of the index."""
    return tuple(_trigger_name(definition, event) for event in _EVENTS)


def _trigger_name(definition: IndexDefinition, event: str) -> str:
    # Indexes of two schemas don't collide.
    origin = hashlib.sha256(f"{definition.schema}.{definition.name}".encode()).hexdigest()[:8]
    return f"index_{definition.name}_{origin}_{event[0].lower()}"


def _body(definition: IndexDefinition, loosely_equal: frozenset[str]) -> str:
    old = definition.transition(_OLD)
    new = definition.transition(_NEW)
    gone = _projected(definition, old)
    come = _projected(definition, new)
    changed_from = _changed(definition, old, new, loosely_equal)
    changed_to = _changed(definition, new, old, loosely_equal)
    return f"""
DECLARE
    {_ONE} record;
BEGIN
    CASE TG_OP
    WHEN 'INSERT' THEN
        {_insert(definition, _current(definition, come))}
    WHEN 'DELETE' THEN
        {_delete(definition, gone)}
    WHEN 'UPDATE' THEN
        {_compare(definition, old, new)}
        IF NOT FOUND OR ({_ONE}.is_alone AND {_ONE}.is_same) THEN
            RETURN NULL;
        ELSIF {_ONE}.is_alone THEN
            {_delete_one(definition, gone)}
            {_insert(definition, _current_one(definition))}
        ELSE
            {_delete(definition, changed_from)}
            {_insert(definition, _current(definition, changed_to))}
        END IF;
    WHEN 'TRUNCATE' THEN
        TRUNCATE {entry_name(definition)};
    END CASE;
    RETURN NULL;
END
"""


def _projected(definition: IndexDefinition, rows: FromClause) -> str:
    columns = [own.label(name) for name, own in definition.projection(rows).items()]
    return rendered(select(*columns).where(definition.is_indexed(rows)))


def _compare(definition: IndexDefinition, old: FromClause, new: FromClause) -> str:
    """Return the statement that finds out if one row was updated, and what its index row was."""
    # By their bytes, so that no type's own operator is asked. Of several rows this says nothing: a
    # set has no order in which to compare two; and to compare sets costs more than one index row.
    used = definition.used_columns
    before, after = ([own for own in rows.c if own.name in used] for rows in (old, new))
    whens: list[tuple[ColumnElement[bool], ColumnElement[bool]]] = [
        (_same_image(before, after), true())
    ]
    # A row that isn't indexed has no index row, whatever it would be computed as.
    is_plain = used == frozenset(definition.columns)
    if not is_plain:
        both = and_(definition.is_indexed(old), definition.is_indexed(new))
        computed = (list(definition.projection(rows).values()) for rows in (old, new))
        whens.append((both, _same_image(*computed)))
    was, now = definition.projection(old), definition.projection(new)
    gone = [
        rendered(was[name] if is_plain else case((definition.is_indexed(old), was[name])))
        for name in definition.entry_identity
    ]
    come = [rendered(now[name]) for name in definition.primary_key]
    values = [
        f"NOT EXISTS (SELECT FROM {_NEW} OFFSET 1) AS is_alone",
        f"{rendered(case(*whens, else_=false()))} AS is_same",
        *(f"{value} AS gone_{ordinal}" for ordinal, value in enumerate(gone)),
        *(f"{value} AS come_{ordinal}" for ordinal, value in enumerate(come)),
    ]
    return f"SELECT {', '.join(values)} INTO {_ONE} FROM {_OLD}, {_NEW} LIMIT 1;"  # noqa: S608 -- rendered


def _same_image(
    before: Iterable[ColumnElement[Any]], after: Iterable[ColumnElement[Any]]
) -> ColumnElement[bool]:
    return _record(before).bool_op("*=")(_record(after))


def _record(values: Iterable[ColumnElement[Any]]) -> ColumnElement[Any]:
    row = ", ".join(rendered(value) for value in values)
    return literal_column(f"ROW({row})::record")


def _changed(
    definition: IndexDefinition,
    rows: FromClause,
    others: FromClause,
    loosely_equal: frozenset[str],
) -> str:
    """Return index rows of ``rows`` that ``others`` don't have, by identity, not equality."""

    def images(side: FromClause) -> list[ColumnElement[str]]:
        # Not a cast to text, which takes the blanks off a bpchar.
        return [
            collate(func.format("%s", own, type_=Text), "C").label(f"image_{ordinal}")
            for ordinal, (name, own) in enumerate(definition.projection(side).items())
            if name in loosely_equal
        ]

    def side(of: FromClause) -> str:
        own = [value.label(name) for name, value in definition.projection(of).items()]
        return rendered(select(*own, *images(of)).where(definition.is_indexed(of)))

    columns = _listed(definition.columns)
    both = f"{side(rows)} EXCEPT ALL {side(others)}"
    return f"SELECT {columns} FROM ({both}) AS changed"  # noqa: S608 -- rendered, quoted names


def _delete(definition: IndexDefinition, gone: str) -> str:
    # A trigger of the application may write to the same rows: its statement's index rows are
    # kept before those of the statement that fired it. So what is gone and what has come is
    # asked of the rows as they are now.
    same = _same(definition.entry_identity, "i", "gone")
    kept = _same(definition.entry_identity, "kept", "gone")
    return f"""{_not_overlooked(definition, gone)}
        DELETE FROM {entry_name(definition)} AS i USING ({gone}) AS gone WHERE {same}
            AND NOT EXISTS (SELECT FROM {view_name(definition)} AS kept WHERE {kept});"""  # noqa: S608 -- rendered, quoted names


def _delete_one(definition: IndexDefinition, gone: str) -> str:
    """Return `_delete` by values: a single row needs no join."""
    same = _given("i", definition.entry_identity, "gone")
    kept = _given("kept", definition.entry_identity, "gone")
    return f"""{_not_overlooked(definition, gone)}
            DELETE FROM {entry_name(definition)} AS i WHERE {same}
                AND NOT EXISTS (SELECT FROM {view_name(definition)} AS kept WHERE {kept});"""  # noqa: S608 -- rendered, quoted names


def _not_overlooked(definition: IndexDefinition, gone: str) -> str:
    # A snapshot older than a backfill's chunk doesn't show the index row to a transaction that
    # may well delete the row itself: DELETE would leave an orphan. An INSERT that runs into
    # such an index row fails with a serialization error instead, and the writer retries.
    return f"""IF current_setting('transaction_isolation') <> 'read committed' THEN
            INSERT INTO {entry_name(definition)} ({_listed(definition.columns)})
            {gone} ON CONFLICT DO NOTHING;
        END IF;"""


def _current(definition: IndexDefinition, come: str) -> str:
    """Return the index rows, as they are to be now, of the rows that ``come`` names."""
    same_row = _same(definition.primary_key, "now", "come")
    return (
        f"SELECT {_now(definition)} FROM ({come}) AS come"  # noqa: S608 -- rendered, quoted names
        f" JOIN {view_name(definition)} AS now ON {same_row}"
    )


def _current_one(definition: IndexDefinition) -> str:
    same_row = _given("now", definition.primary_key, "come")
    return f"SELECT {_now(definition)} FROM {view_name(definition)} AS now WHERE {same_row}"  # noqa: S608 -- rendered, quoted names


def _now(definition: IndexDefinition) -> str:
    return ", ".join(f"now.{quoted(name)}" for name in definition.columns)


def _given(of: str, names: Iterable[str], what: str) -> str:
    return " AND ".join(
        f"{of}.{quoted(name)} = {_ONE}.{what}_{ordinal}" for ordinal, name in enumerate(names)
    )


def _insert(definition: IndexDefinition, current: str) -> str:
    into = f"INSERT INTO {entry_name(definition)} ({_listed(definition.columns)})"
    if definition.unique:
        same = _same(definition.entry_identity, "i", "own")
        own = f"DELETE FROM {entry_name(definition)} AS i USING ({current}) AS own WHERE {same};"  # noqa: S608 -- rendered, quoted names
        # In order, so that two statements with the same keys wait for each other, not deadlock.
        keys = ", ".join(f"now.{quoted(name)}" for name in definition.key)
        return f"{own} {into} {current} ORDER BY {keys};"
    # An orphan is in nobody's way: the row it stood for is this one now.
    carried = [name for name in definition.columns if name not in definition.entry_identity]
    action = (
        "DO UPDATE SET "
        + ", ".join(f"{quoted(name)} = excluded.{quoted(name)}" for name in carried)
        if carried
        else "DO NOTHING"
    )
    return f"{into} {current} ON CONFLICT ({_listed(definition.entry_identity)}) {action};"


def _same(names: Iterable[str], one: str, other: str) -> str:
    return " AND ".join(f"{one}.{quoted(name)} = {other}.{quoted(name)}" for name in names)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(quoted(name) for name in names)
