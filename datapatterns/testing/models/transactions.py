"""Transactions of random statements: what the writers of a consistency machine do."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol, TypeAlias

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from sqlalchemy import Connection, Table, delete, tuple_, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError

from datapatterns.testing.models.projected import table_of

Row: TypeAlias = Mapping[str, Any]
Write: TypeAlias = Callable[[Connection], object]
Begin: TypeAlias = Callable[[], AbstractContextManager[Connection]]

_LOST: Final = ("23", "40001", "40P01", "55P03")
"""SQLSTATEs of a transaction that has lost: a constraint, a conflict, a deadlock, a lock."""


_OF_WHOLE_ROW: Final = frozenset({"insert", "put", "update"})


class AfterWrite(Protocol):
    """What an application does about a row in the transaction that has written it."""

    def __call__(self, conn: Connection, table: Table, key: Hashable, /) -> object:
        """Deal with the row of ``table`` that had or has this primary key."""
        ...


@dataclass(frozen=True, slots=True)
class RowWrite:
    """One statement, and what is done after it about each row that it touched."""

    verb: str
    table: Table
    row: Row
    after: AfterWrite | None = None

    def __call__(self, conn: Connection) -> None:
        """Execute it."""
        keys = {tuple(key) for key in conn.execute(self._statement())}
        if self.after is not None:
            for key in sorted(keys, key=repr):
                self.after(conn, self.table, key[0] if len(key) == 1 else key)

    def __repr__(self) -> str:
        key = {column.name for column in self.table.primary_key}
        shown = {
            name: value
            for name, value in self.row.items()
            if self.verb in _OF_WHOLE_ROW or (name in key) == (self.verb == "delete")
        }
        return " ".join(
            [self.verb, self.table.name, *([] if self.verb == "delete all" else [f"{shown}"])]
        )

    @property
    def _key(self) -> tuple[Any, ...]:
        return tuple(self.row[column.name] for column in self.table.primary_key)

    def _statement(self) -> Any:  # noqa: ANN401 -- some statement
        key_columns = list(self.table.primary_key)
        names = {column.name for column in key_columns}
        rest = {name: value for name, value in self.row.items() if name not in names}
        this = tuple_(*key_columns) == self._key
        match self.verb:
            case "insert":
                statement: Any = insert(self.table).values(self.row).on_conflict_do_nothing()
            case "put":
                put = insert(self.table).values(self.row)
                statement = (
                    put.on_conflict_do_update(index_elements=key_columns, set_=rest)
                    if rest
                    else put.on_conflict_do_nothing(index_elements=key_columns)
                )
            case "update":
                statement = update(self.table).where(this).values(rest or self.row)
            case "update all":
                statement = update(self.table).values(rest)
            case "delete":
                statement = delete(self.table).where(this)
            case _:
                statement = delete(self.table)
        return statement.returning(*key_columns)


@dataclass(frozen=True, slots=True)
class Savepoint:
    """Writes behind a savepoint; a write that loses is rolled back to it."""

    writes: Sequence[Write]
    kept: bool

    def __call__(self, conn: Connection) -> None:
        """Execute them."""
        savepoint = conn.begin_nested()
        try:
            for write in self.writes:
                write(conn)
        except DBAPIError as error:
            if not is_lost(error) or conn.invalidated:
                raise
            savepoint.rollback()
        else:
            savepoint.commit() if self.kept else savepoint.rollback()

    def __repr__(self) -> str:
        return f"savepoint{list(self.writes)}{'' if self.kept else ' rolled back'}"


@dataclass(frozen=True, slots=True)
class Transaction:
    """Writes of one transaction."""

    writes: Sequence[Write]
    commits: bool

    def run(self, begin: Begin) -> str:
        """Carry it out; return how it ended.

        Raises:
            DBAPIError: A write failed, other than by losing to a constraint or to another writer.
        """
        try:
            with begin() as conn:
                for write in self.writes:
                    write(conn)
                if not self.commits:
                    raise _RolledBackError  # noqa: TRY301 -- leaves the block in that way
        except _RolledBackError:
            return "rolled back"
        except DBAPIError as error:
            if not is_lost(error):
                raise
            return f"lost: {type(error.orig).__name__}"
        return "committed"

    def __repr__(self) -> str:
        return f"{list(self.writes)}{'' if self.commits else ' rolled back'}"


def row_writes(
    rows: Mapping[Any, SearchStrategy[Row]], *, after: AfterWrite | None = None
) -> SearchStrategy[Write]:
    """Return statements on rows: inserts, upserts, updates and deletes, of one row and of all.

    Args:
        rows: For each mapped class or table values by column name, the primary key among them.
            Let keys be few, so that writers meet.
        after: What the application does in the same transaction about each row touched.
    """
    return st.one_of(
        [
            st.builds(
                RowWrite,
                _verbs(table_of(model)),
                st.just(table_of(model)),
                row.map(partial(_complete, table_of(model))),
                st.just(after),
            )
            for model, row in rows.items()
        ]
    )


def transactions(
    writes: SearchStrategy[Write], *, writes_max: int = 3
) -> SearchStrategy[Transaction]:
    """Return transactions that execute ``writes``, some behind savepoints, some in vain."""
    behind = st.builds(Savepoint, st.lists(writes, min_size=1, max_size=2), kept=_mostly)
    step = _mostly.flatmap(lambda plain: writes if plain else behind)
    steps = st.lists(step, min_size=1, max_size=writes_max)
    return st.builds(Transaction, steps, commits=_mostly)


def is_lost(error: DBAPIError) -> bool:
    """Return whether a transaction has lost to a constraint or to another one."""
    return str(getattr(error.orig, "sqlstate", None) or "").startswith(_LOST)


class _RolledBackError(Exception):
    """Leaves the block of a transaction that is to be rolled back."""


# The simplest transaction commits.
_mostly: Final = st.sampled_from([True] * 7 + [False])


def _complete(table: Table, row: Row) -> Row:
    # The server would refuse each of them, and what is never written is never wrong.
    needed = {
        column.name
        for column in table.columns
        if column.primary_key
        or not (column.nullable or column.default is not None or column.server_default is not None)
    }
    if lacking := needed - row.keys():
        raise ValueError(f"a row of {table.name} lacks {', '.join(sorted(lacking))}: {dict(row)}")
    return row


def _verbs(table: Table) -> SearchStrategy[str]:
    only_key = len(table.columns) == len(table.primary_key.columns)
    # Mostly what leaves rows behind: a table that is empty hides what went wrong before.
    verbs = ["put"] * 4 + ["insert", "delete", "delete all"]
    return st.sampled_from(verbs if only_key else [*verbs, "update", "update", "update all"])
