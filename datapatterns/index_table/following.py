"""Keep an index through the change log: take the rows that changed, make their index rows right.

What is pending only says *which* rows to look at; what their index rows have to be is read from the
rows of now. So changes are taken in any order and as often as one likes, nothing is lost when a
step dies, and no version is needed. Whoever holds the consumer is alone at it: a second worker
finds it locked and leaves.
"""

from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import (
    CTE,
    Column,
    ColumnElement,
    Connection,
    FromClause,
    Select,
    SmallInteger,
    and_,
    delete,
    func,
    literal,
    select,
    table,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.sql.dml import ReturningDelete, ReturningInsert

from datapatterns.change_log import (
    Consumer,
    Snapshot,
    Xid8,
    change_log_tables,
    current_snapshot,
)
from datapatterns.change_log.consuming import advance_consumer, lock_consumer, read_consumer
from datapatterns.change_log.locking import take_turn
from datapatterns.change_log.pending import not_shown_by_parameters, snapshot_parameters
from datapatterns.change_log.schema import statement_time
from datapatterns.errors import ConsumerMissingError, IndexDetachedError
from datapatterns.failpoints import failpoint
from datapatterns.index_table.definition import IndexDefinition
from datapatterns.index_table.entries import CaughtUp
from datapatterns.index_table.images import differ, same_identity
from datapatterns.index_table.maintenance import consumer_name
from datapatterns.index_table.schema import entry_table, guard_view, index_tables
from datapatterns.index_table.states import index_status, require_own_table
from datapatterns.index_table.subscribing import subscribe

TRUNCATED = 0
"""The sign of a logged truncation: its rows cannot be named."""


@dataclass(frozen=True, slots=True)
class _Applied:
    """What one statement did, and what it saw.

    Attributes:
        snapshot: What it saw.
        at: When it began: what was committed before is in the index.
        rows_changed: How many rows were named as changed; None of all.
        says_nothing: There is a change that doesn't name its rows.
    """

    snapshot: Snapshot
    at: datetime
    rows_changed: int | None
    entries_written: int
    entries_removed: int
    says_nothing: bool


def catch_up(
    conn: Connection, definition: IndexDefinition, *, skip_locked: bool
) -> CaughtUp | None:
    """Take in all that was committed; None if ``skip_locked`` and somebody else is at it.

    Raises:
        IndexDetachedError: Its table is another one, or its consumer was removed.
        IndexMissingError: It was never created in this database.
        IndexChangedError: It was built from another definition.
        IsolationLevelError: The transaction isn't READ COMMITTED.
        TransactionInUseError: The transaction has written something.
    """
    index_status(conn, definition)
    consumer = hold(conn, definition, skip_locked=skip_locked)
    return None if consumer is None else take_in(conn, definition, consumer)


def hold(
    conn: Connection, definition: IndexDefinition, *, skip_locked: bool = False
) -> Consumer | None:
    """Keep everybody else from the index's entries until the transaction ends.

    Raises:
        IndexDetachedError: Its consumer was removed.
    """
    try:
        return lock_consumer(
            conn, consumer_name(definition), schema=definition.schema, skip_locked=skip_locked
        )
    except ConsumerMissingError as error:
        raise IndexDetachedError(definition.name, table=definition.base.fullname) from error


def take_in(conn: Connection, definition: IndexDefinition, consumer: Consumer) -> CaughtUp:
    """Take in what is pending for the consumer, which this transaction holds."""
    if consumer.must_rebuild:
        # A partition came or went, the log was cut short, or was not kept at all: what is pending
        # is not all.
        done = rebuild(conn, definition)
        advance(conn, definition, consumer, done, is_rebuilt=True)
        return _caught_up(done, is_rebuilt=True)
    done = _apply(conn, definition, consumer)
    is_rebuilt = done.says_nothing
    if is_rebuilt:
        done = rebuild(conn, definition)
    failpoint("index.changes-applied")
    if advance(conn, definition, consumer, done):
        # The table isn't what it was when the consumer was locked.
        done = rebuild(conn, definition)
        advance(conn, definition, consumer, done)
        is_rebuilt = True
    return _caught_up(done, is_rebuilt=is_rebuilt)


def rebuild(conn: Connection, definition: IndexDefinition) -> _Applied:
    """Make the entries what the rows say, by one statement that writes what differs."""
    entries, expected = entry_table(definition), guard_view(definition)
    gone = _deleted(definition, entries, expected).cte("gone")
    come = _upserted(definition, entries, expected).cte("come")
    return _run(conn, _Outcome(gone, come, None, None).statement())


def follow_anew(conn: Connection, definition: IndexDefinition) -> None:
    """Put back what is missing to follow the table, and read all of it anew, as its owner.

    Raises:
        IndexDetachedError: It was built on another table, in whose place this one is now.
        IndexDefinitionError: Some changes of the table would be missed.
        MissingRightsError: The role doesn't own the table.
    """
    take_turn(conn, schema=definition.schema)
    require_own_table(conn, definition)
    subscribe(conn, definition)
    consumers = change_log_tables(definition.schema).consumers
    own = consumers.c.name == consumer_name(definition)
    conn.execute(select(consumers.c.name).where(own).with_for_update())
    # Read later than the lock, and than what was put back.
    consumer = read_consumer(conn, consumer_name(definition), schema=definition.schema)
    if consumer is None:
        raise IndexDetachedError(definition.name, table=definition.base.fullname)
    advance(conn, definition, consumer, rebuild(conn, definition), is_rebuilt=True)


def advance(
    conn: Connection,
    definition: IndexDefinition,
    consumer: Consumer,
    done: _Applied,
    *,
    is_rebuilt: bool = False,
) -> bool:
    """Store how far the index is; return whether all of it has to be read anew, by now."""
    known = index_tables(definition.schema).index_table
    has_changed = advance_consumer(
        conn,
        consumer.name,
        done.snapshot,
        schema=definition.schema,
        rebuilt=consumer if is_rebuilt else None,
        own_xid=consumer.own_xid,
    )
    conn.execute(update(known).where(known.c.name == definition.name).values(as_of=done.at))
    return has_changed


def pending_log(definition: IndexDefinition, log_name: str) -> FromClause:
    """Return the log of the base table with what an index needs of it."""
    own = definition.base.primary_key.columns
    return table(
        log_name,
        Column("change_xid", Xid8),
        Column("change_sign", SmallInteger),
        *(Column(column.name, column.type) for column in own),
        schema=definition.schema,
    )


def _apply(conn: Connection, definition: IndexDefinition, consumer: Consumer) -> _Applied:
    (log_name,) = consumer.shapes
    statement = _applying(definition, log_name)
    return _run(conn, statement, snapshot_parameters(consumer.snapshot))


@cache
def _applying(definition: IndexDefinition, log_name: str) -> Select[Any]:
    entries, expected = entry_table(definition), guard_view(definition)
    log = pending_log(definition, log_name)
    primary_key = definition.primary_key
    pending = _materialized(
        select(log.c.change_sign, *(log.c[name] for name in primary_key)).where(
            not_shown_by_parameters(log.c.change_xid)
        ),
        "pending",
    )
    changed = _materialized(
        select(*(pending.c[name] for name in primary_key))
        .where(pending.c.change_sign != TRUNCATED)
        .distinct(),
        "changed",
    )
    present = _materialized(
        select(*expected.c).select_from(
            expected.join(changed, _same_row(definition, expected, changed))
        ),
        "present",
    )
    gone = (
        _deleted(definition, entries, present)
        .where(_same_row(definition, entries, changed))
        .cte("gone")
    )
    come = _upserted(definition, entries, present).cte("come")
    return _Outcome(gone, come, changed, pending).statement()


@dataclass(frozen=True, slots=True)
class _Outcome:
    gone: CTE
    come: CTE
    changed: CTE | None
    pending: CTE | None

    def statement(self) -> Select[Any]:
        def counted(rows: FromClause) -> ColumnElement[int]:
            return select(func.count()).select_from(rows).scalar_subquery()

        says_nothing: ColumnElement[Any] = literal(value=False)
        if self.pending is not None:
            truncated = self.pending.c.change_sign == TRUNCATED
            says_nothing = select(self.pending.c.change_sign).where(truncated).exists()
        return select(
            current_snapshot.label("snapshot"),
            statement_time.label("at"),
            (literal(None) if self.changed is None else counted(self.changed)).label("changed"),
            counted(self.come).label("written"),
            counted(self.gone).label("removed"),
            says_nothing.label("says_nothing"),
        )


def _run(
    conn: Connection, statement: Select[Any], parameters: dict[str, object] | None = None
) -> _Applied:
    return _Applied(*conn.execute(statement, parameters or {}).one())


def _deleted(
    definition: IndexDefinition, entries: FromClause, wanted: FromClause
) -> ReturningDelete[int]:
    """Return what removes the entries that ``wanted`` doesn't have, whatever they carry."""
    has_row = select(literal(1)).where(same_identity(definition, entries, wanted)).exists()
    return delete(entry_table(definition)).where(~has_row).returning(literal(1))


def _upserted(
    definition: IndexDefinition, entries: FromClause, wanted: FromClause
) -> ReturningInsert[int]:
    """Return what writes the entries of ``wanted`` that aren't there like that."""
    is_there = (
        select(literal(1))
        .where(same_identity(definition, entries, wanted), ~differ(entries, wanted))
        .exists()
    )
    into = upsert(entry_table(definition)).from_select(
        definition.columns,
        select(*(wanted.c[name] for name in definition.columns)).where(~is_there),
    )
    return into.on_conflict_do_update(
        index_elements=[*definition.entry_identity],
        # Those of the identity, too: 1.00 takes the place of 1.0, which is equal.
        set_={name: into.excluded[name] for name in definition.columns},
    ).returning(literal(1))


def _same_row(definition: IndexDefinition, one: FromClause, other: FromClause) -> Any:  # noqa: ANN401 -- a condition
    return and_(*(one.c[name] == other.c[name] for name in definition.primary_key))


def _materialized(query: Select[Any], name: str) -> CTE:
    return query.cte(name).prefix_with("MATERIALIZED")


def _caught_up(done: _Applied, *, is_rebuilt: bool) -> CaughtUp:
    return CaughtUp(
        rows_changed=done.rows_changed,
        entries_written=done.entries_written,
        entries_removed=done.entries_removed,
        is_rebuilt=is_rebuilt,
    )
