"""Writes of a session to broadcast tables: done on the first shard, then copied to all others.

What the first shard computes, such as defaults, numbers and the time, is computed there only. The
others get the rows as they are.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from sqlalchemy import (
    ColumnElement,
    Connection,
    Delete,
    Insert,
    Result,
    Select,
    Table,
    Text,
    Update,
    case,
    column,
    inspect,
    select,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.orm import InstanceState, Mapper, ORMExecuteState, Session
from sqlalchemy.sql.dml import UpdateBase

from datapatterns.errors import BroadcastWriteError
from datapatterns.sharding.atomic.spoiling import refuse_commit
from datapatterns.sharding.broadcasting.copies import check_shape, lock_copy
from datapatterns.sharding.broadcasting.guarding import allow, disallow, writing_all
from datapatterns.sharding.broadcasting.images import (
    RowKey,
    TableShape,
    deletions,
    existing_keys,
    has_key,
    images_of,
    put_images,
)
from datapatterns.sharding.broadcasting.statements import check_write
from datapatterns.sharding.routing.write_keys import updates_by_primary_key
from datapatterns.sharding.sessions.shard_work import LOCK_SECONDS, ShardWork
from datapatterns.sharding.sessions.statements import all_sets

_RETURNED_ROWS_MAX = 10_000

Shapes: TypeAlias = dict[Table, TableShape]


@dataclass(frozen=True, slots=True)
class Opened:
    """All copies, locked for this transaction.

    Attributes:
        first: The shard that computes what is to be written.
        conns: The connections to all shards, the first one's first.
        shapes: The columns of the tables.
    """

    first: str
    conns: dict[str, Connection]
    shapes: Shapes

    @property
    def conn(self) -> Connection:
        """Return the connection to the first shard."""
        return self.conns[self.first]


class BroadcastWriting:
    """Writes broadcast rows for a session, on all shards in its transaction.

    Args:
        session: Whose objects.
        work: Its transaction. It commits on all shards or on none from the first such write on.
    """

    def __init__(self, session: Session, work: ShardWork) -> None:
        self._session = session
        self._work = work
        self._shapes: Shapes = {}
        self._flushed: dict[InstanceState[Any], None] = {}
        self._flushing: Connection | None = None

    def open(self, tables: Collection[Table]) -> Opened:
        """Let no other transaction write to ``tables``, on any shard, until this one ends.

        Raises:
            CopiesDifferError: The shards' tables have other columns.
            IsolationLevelError: The transaction is not READ COMMITTED.
            ShardListChangedError: A shard was added or removed; repeat the transaction.
            ShardUnavailableError: A shard does not answer.
        """
        work, copies = self._work, self._work.access.copies
        work.parts.bind_together(lock_seconds=LOCK_SECONDS)
        shards = copies.shards()
        wanted = sorted((t for t in tables if t not in self._shapes), key=lambda t: t.fullname)
        shapes: Shapes = {}
        conns: dict[str, Connection] = {}
        # One by one, in the same order as everybody else.
        for shard in shards:
            conns[shard] = conn = work.connection_to(shard)
            with work.access.asking(shard):
                for table in wanted:
                    shape = lock_copy(conn, table)
                    check_shape(table, shard, shape, shapes.setdefault(table, shape))
            if wanted and shard == shards[0]:
                copies.check(shards)
        # What is locked inside a savepoint is given back when that is rolled back.
        if not conns[shards[0]].in_nested_transaction():
            self._shapes.update(shapes)
        return Opened(shards[0], conns, {**self._shapes, **shapes})

    def insert(self, state: ORMExecuteState, statement: Insert, table: Table) -> Result[Any]:
        """Insert rows on all shards.

        Raises:
            BroadcastWriteError: It reads what no shard has all of.
            CopiesDifferError: A copy would differ afterwards.
        """
        placements = self._work.access.placements
        opened = self.open(check_write(statement, all_sets(state), table, placements))
        with self._writing(opened):
            result, keys = self._insert_first(state, statement, table, opened)
            self._copy(opened, dict.fromkeys(_tables(state, table), keys))
        return result

    def change(
        self, state: ORMExecuteState, statement: Update | Delete, table: Table
    ) -> Result[Any]:
        """Update or delete rows on all shards.

        Raises:
            BroadcastWriteError: It reads what no shard has all of, changes a primary key, or does
                not choose the same rows twice.
            CopiesDifferError: A copy would differ afterwards.
        """
        placements = self._work.access.placements
        sets = all_sets(state)
        opened = self.open(check_write(statement, sets, table, placements))
        with self._writing(opened):
            if updates_by_primary_key(state):
                keys = _listed_keys(state, sets)
                result = self._work.run(state, statement, opened.first)
                self._copy(opened, dict.fromkeys(_tables(state, table), keys))
                return result
            chosen = self._chosen(state, statement, table, opened.first)
            result = self._work.run(state, statement, opened.first)
            self._check_chosen(opened, statement, table, chosen, _count(result, sets))
            self._copy(opened, {table: list(chosen)})
        return result

    # Objects -------------------------------------------------------------------------------

    def flushing(self, instance: object) -> Connection:
        """Return the connection that an object is written on; remember to copy what is written.

        Raises:
            BroadcastWriteError: Its primary key has changed.
        """
        state: InstanceState[Any] = inspect(instance)
        tables = _tables_of(state.mapper)
        if state.key is not None:
            stored = tuple(state.key[1])
            if _key_in(state, state.mapper.primary_key, stored) != stored:
                raise BroadcastWriteError(
                    tables[0].name,
                    "its primary key would change, by which copies are told apart",
                    "delete the row and insert it again",
                )
        opened = self.open(tables)
        self._flushed[state] = None
        if self._flushing is None:
            self._flushing = opened.conn
            allow(opened.conn)
        return opened.conn

    def copy_flushed(self) -> None:
        """Copy what the running flush has written so far."""
        if not (flushed := list(self._flushed)):
            return
        self._flushed.clear()
        keys: dict[Table, list[RowKey]] = {}
        for state in _in_order(flushed):
            for table in _tables_of(state.mapper):
                known = None if state.key is None else tuple(state.key[1])
                key = _key_in(state, table.primary_key.columns, known)
                keys.setdefault(table, []).append(key)
        opened = self.open(keys.keys())
        with self._writing(opened):
            self._copy(opened, keys)

    def end_flush(self) -> None:
        """Let the connection of the running flush do nothing more by itself."""
        self._flushed.clear()
        if self._flushing is not None:
            disallow(self._flushing)
            self._flushing = None

    def end(self) -> None:
        """Forget the transaction's locks."""
        self._shapes.clear()
        self._flushed.clear()

    # Steps ---------------------------------------------------------------------------------

    @contextmanager
    def _writing(self, opened: Opened) -> Iterator[None]:
        """Write on the first shard, then on the others; let nobody commit a part of that."""
        try:
            with writing_all(opened.conn):
                yield
        except BaseException:
            refuse_commit(opened.conn)
            raise

    def _insert_first(
        self, state: ORMExecuteState, statement: Insert, table: Table, opened: Opened
    ) -> tuple[Result[Any], list[RowKey]]:
        work, returned = self._work, statement._returning  # noqa: SLF001 -- no public name
        is_plain = not (
            returned
            or isinstance(state.parameters, list)
            or statement._multi_values  # noqa: SLF001
            or statement.select is not None
            or statement._post_values_clause is not None  # noqa: SLF001
        )
        if is_plain:
            result: Any = work.run(state, statement, opened.first)
            keys = [tuple(row) for row in result.inserted_primary_key_rows]
            if existing_keys(opened.conn, table, keys) != set(keys):
                raise BroadcastWriteError(
                    table.name, "a trigger has changed a primary key", "let none do that"
                )
            return result, keys
        # Which rows there are is asked for by their primary keys, and what was to be returned is
        # read by these.
        keyed = statement._generate()  # noqa: SLF001
        keyed._returning = ()  # noqa: SLF001
        ordered = statement._sort_by_parameter_order  # noqa: SLF001
        keyed = keyed.returning(*table.primary_key.columns, sort_by_parameter_order=ordered)
        result = work.run(state, keyed, opened.first)
        keys = [tuple(row) for row in result.all()]
        if not returned:
            return result, keys
        if len(keys) > _RETURNED_ROWS_MAX:
            raise BroadcastWriteError(
                table.name, "RETURNING of so many rows", f"insert {_RETURNED_ROWS_MAX} at a time"
            )
        again = select(*returned).where(has_key(table, keys))
        if ordered and keys:
            order = case(*((has_key(table, [key]), place) for place, key in enumerate(keys)))
            again = again.order_by(order)
        return self._ask_first(state, again, opened.first), keys

    def _ask_first(self, state: ORMExecuteState, question: Select[Any], first: str) -> Result[Any]:
        return state.session.execute(
            question,
            execution_options={"populate_existing": True},
            bind_arguments={"shard_id": first},
        )

    def _chosen(
        self, state: ORMExecuteState, statement: Update | Delete, table: Table, first: str
    ) -> dict[RowKey, str]:
        """Return the keys of the rows that ``statement`` will change, with where they are now."""
        mapper = state.bind_mapper if _is_orm(statement) else None
        question = (
            select(*table.primary_key.columns, _place(table))
            .select_from(table if mapper is None else mapper)
            .where(*statement._where_criteria)  # noqa: SLF001 -- there is no public name
            .options(*statement._with_options)  # noqa: SLF001
        )
        found: dict[RowKey, str] = {}
        for parameters in all_sets(state) or ({},):
            rows = state.session.execute(
                question, dict(parameters), bind_arguments={"shard_id": first}
            )
            found |= {tuple(row[:-1]): row[-1] for row in rows}
        return found

    def _check_chosen(
        self,
        opened: Opened,
        statement: Update | Delete,
        table: Table,
        chosen: dict[RowKey, str],
        count: int | None,
    ) -> None:
        still: dict[RowKey, str] = {}
        if chosen:
            rows = opened.conn.execute(
                select(*table.primary_key.columns, _place(table)).where(
                    has_key(table, list(chosen))
                )
            )
            still = {tuple(row[:-1]): row[-1] for row in rows}
        # A changed row is a new one, at another place.
        untouched = any(place == chosen[key] for key, place in still.items())
        if untouched or (count is not None and count != len(chosen)):
            kind = type(statement).__name__.upper()
            raise BroadcastWriteError(
                table.name,
                f"the {kind} did not change the rows that its WHERE has chosen before",
                "let it depend on nothing but the rows, and let no trigger skip any",
            )

    def _copy(self, opened: Opened, keys: dict[Table, list[RowKey]]) -> None:
        """Make all copies have the rows of these keys as the first shard has them, or not."""
        ordered = [t for t in next(iter(keys)).metadata.sorted_tables if t in keys] if keys else []
        images = {t: images_of(opened.conn, t, opened.shapes[t], keys[t]) for t in ordered}
        gone = {
            t: [key for key in keys[t] if key not in found]
            for t in reversed(ordered)
            if len(found := existing_keys(opened.conn, t, keys[t])) < len(set(keys[t]))
        }
        for shard, conn in opened.conns.items():
            if shard == opened.first:
                continue
            with self._work.access.asking(shard), writing_all(conn):
                for table in ordered:
                    put_images(conn, table, opened.shapes[table], images[table], shard=shard)
                for table, missing in gone.items():
                    for statement in deletions(table, missing):
                        conn.execute(statement).close()


def _count(result: Any, sets: Sequence[object]) -> int | None:  # noqa: ANN401 -- of any statement
    count: int = getattr(result, "rowcount", -1)
    return None if count < 0 or len(sets) > 1 else count


def _place(table: Table) -> Any:  # noqa: ANN401 -- as SQLAlchemy types casts
    return sql_cast(column("ctid", _selectable=table), Text)


def _is_orm(statement: UpdateBase) -> bool:
    return "parententity" in statement.table._annotations  # noqa: SLF001 -- as SQLAlchemy asks


def _tables(state: ORMExecuteState, table: Table) -> list[Table]:
    """Return the tables that a statement writes: a list of objects may have one for each class."""
    mapper = state.bind_mapper
    statement = cast("UpdateBase", state.statement)
    if mapper is None or not _is_orm(statement) or not isinstance(state.parameters, list):
        return [table]
    return _tables_of(mapper)


def _tables_of(mapper: Mapper[Any]) -> list[Table]:
    return [table for table in mapper.tables if isinstance(table, Table)]


def _listed_keys(state: ORMExecuteState, sets: Sequence[Any]) -> list[RowKey]:
    mapper = state.bind_mapper
    assert mapper is not None  # it is about a mapped class
    names = [mapper.get_property_by_column(primary).key for primary in mapper.primary_key]
    return [tuple(row[name] for name in names) for row in sets]


def _key_in(
    state: InstanceState[Any], columns: Iterable[ColumnElement[Any]], known: RowKey | None
) -> RowKey:
    """Return an object's primary key in one of its tables, without loading anything."""
    names = [state.mapper.get_property_by_column(primary).key for primary in columns]
    if known is not None and any(name not in state.dict for name in names):
        return known
    return tuple(state.dict[name] for name in names)


def _in_order(states: list[InstanceState[Any]]) -> list[InstanceState[Any]]:
    """Order objects as a flush has written them: those that there were, then new ones."""
    return sorted(states, key=lambda state: (state.key is None, state.insert_order or 0))
