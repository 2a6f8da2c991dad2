"""What a projection could not apply: rows whose events wait, and what was left out for good.

Only the owner of a segment's lease writes about its rows, in a transaction that `advance` ends.
"""

from collections.abc import Collection, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    FromClause,
    Integer,
    LargeBinary,
    Table,
    Text,
    and_,
    any_,
    bindparam,
    case,
    cast,
    column,
    delete,
    func,
    literal,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, insert

from datapatterns.cqrs.running.leasing import Lease
from datapatterns.cqrs.running.segments import HASH_BITS, Segment
from datapatterns.cqrs.schema import ProjectionTables
from datapatterns.event_sourcing.events import Position

_HASH_BYTES: Final = HASH_BITS // 8

WHOLE_EVENT = b""
"""In the place of a row's digest: nobody can say which rows the event concerns."""


class Unapplied(NamedTuple):
    """One event that was not applied to one row.

    Attributes:
        key_digest: Of the row.
        error: The class of what it raised; None if it only waits for one before it.
        message: What that said, without values of rows.
    """

    key_digest: bytes
    position: Position
    event_type: str
    error: str | None = None
    message: str | None = None


class ParkedEvent(NamedTuple):
    """One event that waits for one row.

    Attributes:
        silent: Its messages are not to be sent, for another version has.
    """

    position: Position
    event_type: str
    silent: bool


def find_parked(
    conn: Connection, tables: ProjectionTables, lease: Lease, digests: Collection[bytes]
) -> set[bytes]:
    """Return which of these rows have events that wait."""
    parked = tables.parked
    wanted = (
        func.unnest(bindparam("digests", sorted(digests), ARRAY(LargeBinary)))
        .table_valued(column("digest", LargeBinary), name="wanted")
        .render_derived()
    )
    # One look for each: of one row millions of events may wait, which no page must go through.
    waits = (
        select(literal(1).label("one"))
        .where(of_version(parked, lease.name, lease.version))
        .where(parked.c.key_digest == wanted.c.digest)
        .order_by(parked.c.position)  # by the index, even if most of what waits is of one row
        .limit(1)
        .lateral("waits")
    )
    return set(conn.scalars(select(wanted.c.digest).join_from(wanted, waits, true())))


def park(
    conn: Connection,
    tables: ProjectionTables,
    lease: Lease,
    unapplied: Sequence[Unapplied],
    *,
    silent: bool,
) -> int:
    """Let events wait; return how many of them did not wait already.

    Args:
        conn: A connection in a transaction.
        tables: Where it is written down.
        lease: Of the segment that the rows belong to.
        unapplied: The events.
        silent: Their messages are not to be sent, whatever becomes of them.
    """
    return _store(conn, tables.parked, lease, unapplied, {"silent": literal(silent)})


def skip(
    conn: Connection, tables: ProjectionTables, lease: Lease, unapplied: Sequence[Unapplied]
) -> int:
    """Write down that events were left out; return of how many that was not known."""
    return _store(conn, tables.skipped, lease, unapplied, {})


def unpark(
    conn: Connection,
    tables: ProjectionTables,
    lease: Lease,
    digest: bytes,
    positions: Collection[Position],
) -> int:
    """Take back that these events of a row wait; return how many."""
    gone = conn.execute(delete(tables.parked).where(_these(tables, lease, digest, positions)))
    return gone.rowcount


def explain(conn: Connection, tables: ProjectionTables, lease: Lease, unapplied: Unapplied) -> None:
    """Write down anew why an event that waits cannot be applied."""
    positions = [unapplied.position]
    conn.execute(
        update(tables.parked)
        .where(_these(tables, lease, unapplied.key_digest, positions))
        .values(error=unapplied.error, message=unapplied.message)
    )


def give_up(conn: Connection, tables: ProjectionTables, lease: Lease, digest: bytes) -> int:
    """Leave out for good what waits of a row, on record; return how many events."""
    parked = tables.parked
    of_row = and_(of_version(parked, lease.name, lease.version), parked.c.key_digest == digest)
    kept: list[Column[Any]] = [
        *(parked.c.name, parked.c.version, parked.c.key_digest, parked.c.position),
        *(parked.c.event_type, parked.c.error, parked.c.message),
    ]
    conn.execute(
        insert(tables.skipped)
        .from_select([c.name for c in kept], select(*kept).where(of_row), include_defaults=False)
        .on_conflict_do_nothing()
    )
    return conn.execute(delete(parked).where(of_row)).rowcount


def parked_rows(
    conn: Connection, tables: ProjectionTables, lease: Lease
) -> list[tuple[bytes, Position]]:
    """Return which rows of the segment have events that wait, and where the first is; by that."""
    parked = tables.parked
    first = func.min(parked.c.position)
    rows = conn.execute(
        select(parked.c.key_digest, first)
        .where(of_version(parked, lease.name, lease.version))
        .where(is_in_segment(parked.c.key_digest, lease.segment))
        .group_by(parked.c.key_digest)
        .order_by(first, parked.c.key_digest)
    )
    return [(digest, Position(position)) for digest, position in rows]


def parked_events(
    conn: Connection, tables: ProjectionTables, lease: Lease, digest: bytes, *, limit: int
) -> list[ParkedEvent]:
    """Return the first events that wait of a row."""
    parked = tables.parked
    rows = conn.execute(
        select(parked.c.position, parked.c.event_type, parked.c.silent)
        .where(of_version(parked, lease.name, lease.version), parked.c.key_digest == digest)
        .order_by(parked.c.position)
        .limit(limit)
    )
    return [ParkedEvent(Position(position), kind, silent) for position, kind, silent in rows]


def left_out(
    conn: Connection, tables: ProjectionTables, name: str, version: int
) -> tuple[set[bytes], set[tuple[Position, bytes]]]:
    """Return which rows have events that wait, and which events were skipped, of which row."""
    parked, skipped = tables.parked, tables.skipped
    waiting = conn.scalars(
        select(parked.c.key_digest).where(of_version(parked, name, version)).distinct()
    ).all()
    gone = conn.execute(
        select(skipped.c.position, skipped.c.key_digest).where(of_version(skipped, name, version))
    ).all()
    return set(waiting), {(Position(position), digest) for position, digest in gone}


def read_owed(conn: Connection, tables: ProjectionTables, name: str) -> set[tuple[Position, bytes]]:
    """Return the events that wait and whose messages nobody has sent, each with its row."""
    parked = tables.parked
    rows = conn.execute(
        select(parked.c.position, parked.c.key_digest).where(
            parked.c.name == name, parked.c.silent.is_(False)
        )
    )
    return {(Position(position), digest) for position, digest in rows}


def pass_on_owed(
    conn: Connection, tables: ProjectionTables, name: str, *, version: int, heir: int
) -> None:
    """Let the messages that a version still owes be sent by the one that takes its place.

    Those of events that wait in both; what the other has applied already has no messages.
    """
    parked, other = tables.parked, tables.parked.alias("other")
    both = and_(other.c.key_digest == parked.c.key_digest, other.c.position == parked.c.position)
    owes = (
        select(1).where(of_version(other, name, version), both, other.c.silent.is_(False)).exists()
    )
    conn.execute(update(parked).where(of_version(parked, name, heir), owes).values(silent=False))
    conn.execute(update(parked).where(of_version(parked, name, version)).values(silent=True))


def forget(
    conn: Connection, tables: ProjectionTables, name: str, versions: Collection[int]
) -> None:
    """Drop what is known of unapplied events: these versions are built anew, or no more there.

    Others, beside them, go on without what they could not apply.
    """
    for table in (tables.parked, tables.skipped):
        conn.execute(
            delete(table).where(table.c.name == name, table.c.version.in_(sorted(versions)))
        )


def has_skipped(
    conn: Connection, tables: ProjectionTables, lease: Lease, *, until: Position
) -> bool:
    """Return whether something is known to be skipped behind the checkpoint."""
    ahead = select(1).where(_ahead(tables, lease, until)).limit(1)
    return conn.scalar(ahead) is not None


def forget_skipped(
    conn: Connection, tables: ProjectionTables, lease: Lease, *, until: Position
) -> None:
    """Drop what is known to be skipped behind the checkpoint: of a page that never came to be."""
    conn.execute(delete(tables.skipped).where(_ahead(tables, lease, until)))


def _store(
    conn: Connection,
    table: Table[Any],
    lease: Lease,
    unapplied: Sequence[Unapplied],
    rest: dict[str, ColumnElement[Any]],
) -> int:
    if not unapplied:
        return 0
    types = (LargeBinary, BigInteger, Text, Text, Text)
    arrays = [
        bindparam(f"v{i}", list(values), ARRAY(types[i]))
        for i, values in enumerate(zip(*unapplied, strict=True))
    ]
    named = [column(name, types[i]()) for i, name in enumerate(Unapplied._fields)]
    page = func.unnest(*arrays).table_valued(*named, name="page").render_derived()
    rows = select(literal(lease.name), literal(lease.version), *page.c, *rest.values()).select_from(
        page
    )
    stored = insert(table).from_select(
        ["name", "version", *Unapplied._fields, *rest], rows, include_defaults=False
    )
    done = conn.execute(
        stored.on_conflict_do_nothing(), execution_options={"preserve_rowcount": True}
    )
    return done.rowcount


def _ahead(tables: ProjectionTables, lease: Lease, until: Position) -> ColumnElement[bool]:
    skipped = tables.skipped
    return and_(
        of_version(skipped, lease.name, lease.version),
        skipped.c.position > lease.position,
        skipped.c.position <= until,
    )


def _these(
    tables: ProjectionTables, lease: Lease, digest: bytes, positions: Collection[Position]
) -> ColumnElement[bool]:
    parked = tables.parked
    wanted = any_(bindparam("positions", list(positions), ARRAY(BigInteger)))
    return and_(
        of_version(parked, lease.name, lease.version),
        parked.c.key_digest == digest,
        parked.c.position == wanted,
    )


def is_in_segment(digest: ColumnElement[bytes], segment: Segment) -> ColumnElement[bool]:
    """Return the condition that the row with this digest is one of the segment's."""
    # As `segment_hash` does: the first bytes of the digest.
    hashed = func.get_byte(digest, 0) * 256 + func.get_byte(digest, 1)
    owner = cast(hashed, Integer).op("&")(segment.mask)
    return case((func.length(digest) >= _HASH_BYTES, owner), else_=-1) == segment.shard


def of_version(table: FromClause, name: str, version: int | None) -> ColumnElement[bool]:
    """Return the condition that a row is one of this version's, or of any."""
    return and_(table.c.name == name, true() if version is None else table.c.version == version)
