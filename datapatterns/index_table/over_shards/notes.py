"""What the triggers have noted in a transaction, and what its rows have now."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, TypeAlias

from sqlalchemy import (
    ARRAY,
    Boolean,
    ColumnElement,
    Connection,
    FromClause,
    Integer,
    Select,
    Text,
    and_,
    bindparam,
    cast,
    column,
    delete,
    func,
    literal,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import array

from datapatterns.errors import IndexChangedError, IndexUndeclaredError
from datapatterns.index_table.definition import fingerprint
from datapatterns.index_table.over_shards.net_changes import (
    Entry,
    Included,
    NetChanges,
    StatementChanges,
    Texts,
    net_changes,
)
from datapatterns.index_table.over_shards.sharded_index import ShardedIndex, from_text
from datapatterns.index_table.schema import index_tables
from datapatterns.sharding.engines import SESSION_SETTINGS
from datapatterns.sql.functions import library_function
from datapatterns.sql.metadata import declared_once

KeyLock: TypeAlias = tuple[str, str]
"""The name of an index, and what is locked of it."""

_SETTINGS: Final = [*SESSION_SETTINGS]
_NOTED_WITH: Final = [*SESSION_SETTINGS.values()]

_set: Final = text(
    "SELECT set_config(name, value, true)"
    " FROM unnest(CAST(:names AS text[]), CAST(:values AS text[])) AS setting (name, value)"
)


_settings: Final = select(array([func.current_setting(name, type_=Text) for name in _SETTINGS]))


@dataclass(frozen=True, slots=True)
class Noted:
    """What a transaction has noted on one shard.

    Attributes:
        statements: What its statements did, by index.
        settings: How the session writes values.
    """

    statements: Mapping[str, Sequence[StatementChanges]]
    settings: Sequence[str]

    def locks(self, indexes: Mapping[str, ShardedIndex]) -> frozenset[KeyLock]:
        """Return the locks of all keys that rows had, or have got."""
        return frozenset(
            lock_of(indexes[name], entry)
            for name, statements in self.statements.items()
            for statement in statements
            for entry in (*statement.gone, *statement.come)
        )


def read_notes(
    conn: Connection, indexes: Mapping[str, ShardedIndex], *, schema: str
) -> Noted | None:
    """Return what the transaction of ``conn`` has noted; None if that is nothing.

    Raises:
        IndexChangedError: The triggers are those of another definition.
        IndexUndeclaredError: An index is written to that is not among ``indexes``.
    """
    noted: dict[str, list[StatementChanges]] = {}
    settings: list[str] = []
    for note in conn.execute(_notes_of(schema)):
        settings = note.settings
        index = indexes.get(note.index_name)
        if index is None:
            raise IndexUndeclaredError(
                note.index_name,
                "rows were written that it finds, and this cluster was not given it; pass it to"
                " ShardIndexes",
            )
        if note.fingerprint != fingerprint(index.definition):
            raise IndexChangedError(index.name)
        parts = note.gone, note.come, note.touched
        changes = ([index.entry(texts) for texts in part] for part in parts)
        noted.setdefault(index.name, []).append(StatementChanges(*changes))
    return Noted(noted, settings) if noted else None


def locked_changes(
    conn: Connection,
    noted: Noted,
    indexes: Mapping[str, ShardedIndex],
    *,
    schema: str,
    seconds: float,
) -> dict[str, NetChanges]:
    """Lock what the transaction of ``conn`` has noted; return what it changes in the end, by index.

    In the statement that looks at the rows, which saves a round trip.
    """
    locks = noted.locks(indexes)
    locked = _locked(locks, schema=schema, seconds=seconds) if locks else None
    found = {}
    with written_as_noted(conn, noted.settings):
        for name, statements in noted.statements.items():
            rows = {row for statement in statements for row in statement.rows}
            present = entries_of_rows(conn, indexes[name], rows, owned=locked)
            found[name] = net_changes(statements, present)
            locked = None
    return found


def settings_of(conn: Connection) -> Sequence[str]:
    """Return how the session of ``conn`` writes values."""
    settings: Any = conn.execute(_settings).scalar_one()
    return list(settings)


@contextmanager
def written_as_noted(conn: Connection, settings: Sequence[str]) -> Iterator[None]:
    """Let the server write values as the triggers do, whatever the application has set.

    In another time zone a moment is another text, and a row would seem to have another key.
    """
    if [*settings] == _NOTED_WITH:
        yield
        return
    conn.execute(_set, {"names": _SETTINGS, "values": _NOTED_WITH}).close()
    yield
    conn.execute(_set, {"names": _SETTINGS, "values": [*settings]}).close()


def noted_rows(conn: Connection, index: ShardedIndex, *, schema: str) -> set[Texts]:
    """Return the rows that may have got other keys in the transaction of ``conn``."""
    notes = conn.execute(_notes_of(schema))
    return {
        index.entry(texts).row
        for note in notes
        if note.index_name == index.name
        for texts in note.come
    }


def entries_of_rows(
    conn: Connection,
    index: ShardedIndex,
    rows: Iterable[Texts],
    *,
    owned: ColumnElement[bool] | None = None,
) -> dict[Entry, Included]:
    """Return what rows have now, as ``conn`` sees them, with their included columns.

    Args:
        conn: In a transaction on their shard.
        index: Which index.
        rows: Primary keys.
        owned: A condition that fails the statement, if the shard may not have the rows.
    """
    statement = _present(index) if owned is None else _present(index).where(owned)
    found = conn.execute(statement, listed(sorted(rows), len(index.definition.primary_key)))
    width = len(index.names)
    return {index.entry(texts): tuple(texts[width:]) for texts in found}


def forget_notes(conn: Connection, *, schema: str) -> None:
    """Let the transaction of ``conn`` commit: what it has noted is seen to."""
    conn.execute(_settled(schema)).close()


def lock_keys(conn: Connection, locks: Iterable[KeyLock], *, schema: str, seconds: float) -> None:
    """Lock keys until the transaction of ``conn`` ends.

    Of an index of which a transaction locks many keys it locks all.
    """
    conn.execute(select(_locked(locks, schema=schema, seconds=seconds))).close()


def _locked(locks: Iterable[KeyLock], *, schema: str, seconds: float) -> ColumnElement[bool]:
    """Return the condition that is true when ``locks`` are had; it names no column.

    So the server evaluates it once, before it reads a row.
    """
    ordered = sorted(locks)
    lists = [cast([lock[part] for lock in ordered], ARRAY(Text)) for part in (0, 1)]
    milliseconds = literal(round(seconds * 1000), Integer)
    taken = library_function(schema, "lock_index_keys", *lists, milliseconds, returns=Boolean())
    return select(taken).scalar_subquery()


def lock_of(index: ShardedIndex, entry: Entry) -> KeyLock:
    """Return what is locked for an entry: its key, if no other row may have it.

    Rows of one key that is not unique need not wait for each other.
    """
    locked = entry.key if index.definition.unique else (*entry.key, *entry.row)
    return index.name, json.dumps([index.name, *locked], ensure_ascii=False)


def listed(rows: Sequence[Sequence[str | None]], width: int) -> dict[str, list[str | None]]:
    """Return the parameters of `wanted_rows`."""
    return {f"c{at}": [row[at] for row in rows] for at in range(width)}


def wanted_rows(width: int, *, name: str = "wanted") -> FromClause:
    """Return a relation of texts that parameters ``c0``, ``c1`` and so on hold, as lists."""
    lists = [cast(bindparam(f"c{at}"), ARRAY(Text)) for at in range(width)]
    columns = [column(f"c{at}", Text) for at in range(width)]
    return func.unnest(*lists).table_valued(*columns, name=name).render_derived()


@lru_cache(maxsize=64)
def _notes_of(schema: str) -> Select[Any]:
    notes = index_tables(schema).index_change.c
    columns: list[Any] = [
        notes.index_name,
        notes.fingerprint,
        notes.gone,
        notes.come,
        notes.touched,
        array([func.current_setting(name, type_=Text) for name in _SETTINGS]).label("settings"),
    ]
    return (
        select(*columns)
        .where(notes.change_xid == func.pg_current_xact_id_if_assigned())
        .order_by(notes.change_id)
    )


@lru_cache(maxsize=64)
def _settled(schema: str) -> Any:  # noqa: ANN401 -- a Delete without rows
    notes = index_tables(schema).index_change
    return delete(notes).where(notes.c.change_xid == func.pg_current_xact_id_if_assigned())


@declared_once
def _present(index: ShardedIndex) -> Any:  # noqa: ANN401 -- a Select of as many columns
    base = index.definition.base
    wanted = wanted_rows(len(index.definition.primary_key))
    same = [
        own == from_text(wanted.c[f"c{at}"], own) for at, own in enumerate(base.primary_key.columns)
    ]
    return (
        select(*index.as_texts(base, index.definition.columns))
        .select_from(wanted.join(base, and_(*same)))
        .where(index.definition.is_indexed(base))
    )
