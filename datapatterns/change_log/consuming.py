"""Consume changes: each consumer takes exactly the difference between two snapshots.

A row is pending for a consumer when it can be seen now and could not be seen in the snapshot that
the consumer stored last. Writers log a change in the transaction that makes it, so a transaction
can be seen if and only if its logged rows can be; whenever it commits, it is in the difference
once. There is no order, no horizon and no wait. Only consumers of one name exclude each other.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, Select, Text, bindparam, func, select, update
from sqlalchemy.sql.dml import ReturningUpdate

from datapatterns.change_log.explaining import warn_of_obstacles
from datapatterns.change_log.identity import (
    DatabaseIdentity,
    database_identity,
    database_oid,
    system_identifier,
    timeline,
)
from datapatterns.change_log.schema import PgSnapshot, Xid8, change_log_tables
from datapatterns.change_log.shapes import (
    capture_changed,
    forget_overtaken,
    read_shapes,
    store_shapes,
)
from datapatterns.change_log.snapshots import Snapshot, Xid
from datapatterns.errors import (
    ConsumerMissingError,
    ForeignSnapshotError,
    IsolationLevelError,
    TransactionInUseError,
)

current_snapshot = func.pg_current_snapshot(type_=PgSnapshot)
_own_xid = func.pg_current_xact_id(type_=Xid8)


class TransactionFacts(NamedTuple):
    """What decides whether a transaction may consume.

    Attributes:
        isolation_level: In lower case.
        own_xid: Its id; None as long as it has written nothing.
    """

    isolation_level: str
    own_xid: Xid | None


transaction_facts = (
    func.current_setting("transaction_isolation").label("isolation_level"),
    func.pg_current_xact_id_if_assigned(type_=Xid8).label("own_xid"),
)
"""The expressions for `TransactionFacts`, to be asked for with something else."""


@dataclass(frozen=True, slots=True)
class Consumer:
    """Who consumes changes, and how far.

    Attributes:
        name: Unique among all consumers of the schema.
        kind: What it is, such as ``view`` or ``cache_relay``.
        snapshot: What it shows has been consumed, and nothing else.
        populated: Whether it has been advanced since it was registered or rebased. Until then
            its target may lack, or hold, anything.
        registered_at: When it was registered.
        advanced_at: When it was last advanced.
        timeline: The server's timeline when it was last advanced, None if it was not.
        has_switched: Whether this server is on another timeline: it failed over, or went back to
            a point in time. Log and tables are of one moment even then; but what is *outside*
            the database may contain what was lost, so replay or flush that.
        restart_reason: Why it was told to begin anew; None once it has been advanced.
        changed_logs: Those of its logs that do not tell all since it last read everything anew:
            a partition came or went, say.
        shapes: What the catalogue said of each log's table at the lock, None if changes of it go
            unlogged.
        own_xid: The id of the transaction that locked it; None if it follows no log, or was read
            without a lock by a transaction that has written nothing.
    """

    name: str
    kind: str
    snapshot: Snapshot
    populated: bool
    registered_at: datetime
    advanced_at: datetime | None
    timeline: int | None
    has_switched: bool
    restart_reason: str | None
    changed_logs: tuple[str, ...] = ()
    shapes: Mapping[str, str | None] = field(default_factory=dict, repr=False, hash=False)
    own_xid: Xid | None = field(default=None, repr=False, compare=False)

    @property
    def must_rebuild(self) -> bool:
        """Return whether what is pending is not enough, and everything has to be read anew."""
        return not self.populated or bool(self.changed_logs)


def lock_consumer(
    conn: Connection,
    name: str,
    *,
    schema: str,
    skip_locked: bool = False,
    facts: TransactionFacts | None = None,
) -> Consumer | None:
    """Lock the consumer until the transaction ends and return how far it is.

    Read what is pending in a *later* statement of the same transaction: whoever waited for this
    lock would otherwise read with a snapshot from before the wait, and consume twice.

    Args:
        conn: A connection in a transaction that has written nothing.
        name: The consumer.
        schema: Where the library's tables live.
        skip_locked: Return None if somebody else holds the lock, instead of waiting.
        facts: Those of the transaction, if it was asked for them and has done nothing since.

    Returns:
        None if ``skip_locked`` and somebody else holds the lock.

    Raises:
        ConsumerMissingError: Nobody has registered this name.
        ForeignSnapshotError: The consumer was last advanced in another database.
        IsolationLevelError: The transaction is not READ COMMITTED.
        TransactionInUseError: The transaction has already written something.
    """
    facts = facts or TransactionFacts(*conn.execute(select(*transaction_facts)).one())
    _require_level(facts.isolation_level)
    if facts.own_xid is not None:
        raise TransactionInUseError(f"consuming changes as {name!r}")
    return _lock(conn, name, schema=schema, skip_locked=skip_locked)


def hold_consumer(
    conn: Connection, name: str, *, schema: str, skip_locked: bool = False
) -> Consumer | None:
    """Do as `lock_consumer` does, in any isolation level.

    Above READ COMMITTED the lock fails with a serialization failure if the consumer was advanced
    after the transaction's snapshot. TRUNCATE does not honour snapshots: who reads captured
    tables there has to hold them against it first.
    """
    require_unwritten(conn, f"consuming changes as {name!r}")
    return _lock(conn, name, schema=schema, skip_locked=skip_locked)


def _lock(conn: Connection, name: str, *, schema: str, skip_locked: bool) -> Consumer | None:
    consumers = change_log_tables(schema).consumers
    row = conn.execute(_locking(schema, skip_locked=skip_locked), {"wanted": name}).one_or_none()
    if row is None:
        if conn.scalar(select(consumers.c.name).where(consumers.c.name == name)) is None:
            raise ConsumerMissingError(name)
        return None
    return _held(conn, row, schema=schema)


def hold_consumers(
    conn: Connection, names: Iterable[str], *, schema: str, skip_locked: bool = False
) -> dict[str, Consumer] | None:
    """Do as `hold_consumer` does for several at once, always in the order of their names.

    Above READ COMMITTED all of them are then consumed up to the transaction's one snapshot.

    Returns:
        None if ``skip_locked`` and somebody else holds one of the locks.

    Raises:
        ConsumerMissingError: Nobody has registered one of the names.
        ForeignSnapshotError: One was last advanced in another database.
        TransactionInUseError: The transaction has already written something.
    """
    wanted = sorted(set(names))
    require_unwritten(conn, f"consuming changes as {', '.join(wanted)}")
    consumers = change_log_tables(schema).consumers
    locked = (
        _facts(schema)
        .where(consumers.c.name.in_(wanted))
        .order_by(consumers.c.name)
        .with_for_update(skip_locked=skip_locked)
    )
    rows = conn.execute(locked).all()
    held = {row.name: _held(conn, row, schema=schema) for row in rows}
    for name in wanted:
        if name not in held and read_consumer(conn, name, schema=schema) is None:
            raise ConsumerMissingError(name)
    return held if len(held) == len(wanted) else None


def advance_consumer(
    conn: Connection,
    name: str,
    snapshot: Snapshot,
    *,
    schema: str,
    rebuilt: Consumer | None = None,
    own_xid: Xid | None = None,
) -> bool:
    """Store that ``name``, locked by this transaction, has consumed what ``snapshot`` shows.

    Args:
        conn: The connection whose transaction holds the consumer's lock. The caller commits.
        name: The consumer.
        snapshot: That of the statement which read what was pending, never a later one.
        schema: Where the library's tables live.
        rebuilt: The consumer as it was locked, if everything was read anew.
        own_xid: The transaction's id, if it is known; asked for, unless given.

    Returns:
        Whether everything has to be read anew, by now: what was pending is not all then. After a
        rebuild this says that something changed meanwhile, or that changes go unlogged.

    Raises:
        ConsumerMissingError: Nobody has registered this name.
    """
    if rebuilt is not None:
        store_shapes(conn, name, rebuilt.shapes, schema=schema)
    # What this transaction logs after it has read what was pending stays pending.
    own_xid = own_xid or conn.execute(select(_own_xid)).scalar_one()
    consumed = snapshot.without(own_xid)
    parameters = {"wanted": name, "consumed": consumed}
    has_changed = conn.execute(_advancing(schema), parameters).scalar_one_or_none()
    if has_changed is None:
        raise ConsumerMissingError(name)
    if has_changed:
        forget_overtaken(conn, name, schema=schema)
    return has_changed


def read_consumer(conn: Connection, name: str, *, schema: str) -> Consumer | None:
    """Return how far ``name`` is, without locking it; None if nobody has registered it."""
    consumers = change_log_tables(schema).consumers
    row = conn.execute(_facts(schema).where(consumers.c.name == name)).one_or_none()
    return None if row is None else _as_consumer(conn, row, schema=schema)


def require_unwritten(conn: Connection, operation: str) -> None:
    """Refuse a transaction that has an id, so that none of its own changes can be pending.

    Raises:
        TransactionInUseError: The transaction has already written something.
    """
    if conn.scalar(select(func.pg_current_xact_id_if_assigned(type_=Xid8))) is not None:
        raise TransactionInUseError(operation)


def require_own_snapshot(conn: Connection, name: str, identity: DatabaseIdentity) -> None:
    """Refuse a snapshot that was taken in another database.

    Raises:
        ForeignSnapshotError: ``identity`` is not this database's.
    """
    if identity != database_identity(conn):
        raise ForeignSnapshotError(name)


def require_own_consumer(conn: Connection, name: str, *, schema: str) -> None:
    """Refuse a consumer whose snapshot was taken in another database.

    Raises:
        ConsumerMissingError: Nobody has registered this name.
        ForeignSnapshotError: It was.
    """
    consumers = change_log_tables(schema).consumers
    found = conn.execute(
        select(consumers.c.system_identifier, consumers.c.database_oid).where(
            consumers.c.name == name
        )
    ).one_or_none()
    if found is None:
        raise ConsumerMissingError(name)
    require_own_snapshot(conn, name, DatabaseIdentity(*found))


def require_read_committed(conn: Connection) -> None:
    """Refuse a transaction whose snapshot is older than its statement.

    Raises:
        IsolationLevelError: The transaction is not READ COMMITTED.
    """
    _require_level(conn.execute(select(func.current_setting("transaction_isolation"))).scalar_one())


def _require_level(found: str) -> None:
    if found != "read committed":
        raise IsolationLevelError(found=found, needed="read committed")


def snapshot_without_own_changes(conn: Connection) -> Snapshot:
    """Return the statement's snapshot; what this transaction writes later is not in it."""
    row = conn.execute(select(current_snapshot, _own_xid)).one()
    snapshot: Snapshot = row[0]
    own: Xid = row[1]
    return snapshot.without(own)


# Whoever consumes little and often would spend more time on putting statements together than the
# server does on running them.
@lru_cache
def _locking(schema: str, *, skip_locked: bool) -> Select[Any]:
    is_wanted = change_log_tables(schema).consumers.c.name == bindparam("wanted", type_=Text)
    return _facts(schema).where(is_wanted).with_for_update(skip_locked=skip_locked)


@lru_cache
def _advancing(schema: str) -> ReturningUpdate[bool]:
    consumers = change_log_tables(schema).consumers
    wanted = bindparam("wanted", type_=Text)
    return (
        update(consumers)
        .where(consumers.c.name == wanted)
        .values(
            snapshot=bindparam("consumed", type_=PgSnapshot),
            populated=True,
            advanced_at=func.statement_timestamp(),
            timeline=timeline,
            restart_reason=None,
        )
        .returning(capture_changed(wanted, schema=schema))
    )


def _facts(schema: str) -> Select[Any]:
    consumers = change_log_tables(schema).consumers
    names = ("name", "kind", "snapshot", "populated", "registered_at", "advanced_at", "timeline")
    return select(
        *(consumers.c[name] for name in names),
        (consumers.c.timeline != timeline).is_(True).label("has_switched"),
        consumers.c.restart_reason,
        consumers.c.system_identifier,
        consumers.c.database_oid,
        (
            (consumers.c.system_identifier == system_identifier)
            & (consumers.c.database_oid == database_oid)
        ).label("is_own"),
    )


def _held(conn: Connection, row: Row[Any], *, schema: str) -> Consumer:
    """Return the consumer that was just locked."""
    if not row.is_own:
        raise ForeignSnapshotError(row.name)
    # A statement of its own: the locking one may have waited while somebody stored other shapes.
    consumer = _as_consumer(conn, row, schema=schema)
    unlogged = [log_name for log_name, shape in consumer.shapes.items() if shape is None]
    warn_of_obstacles(conn, row.name, unlogged, schema=schema)
    return consumer


def _as_consumer(conn: Connection, row: Row[Any], *, schema: str) -> Consumer:
    changed, shapes, own_xid = read_shapes(conn, row.name, schema=schema)
    return Consumer(
        name=row.name,
        kind=row.kind,
        snapshot=row.snapshot,
        populated=row.populated,
        registered_at=row.registered_at,
        advanced_at=row.advanced_at,
        timeline=row.timeline,
        has_switched=row.has_switched,
        restart_reason=row.restart_reason,
        changed_logs=changed,
        shapes=shapes,
        own_xid=own_xid,
    )
