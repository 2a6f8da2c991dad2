"""Look at the snapshots that are stored, and delete those that nobody can use any more."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Text,
    and_,
    cast,
    delete,
    false,
    func,
    or_,
    select,
    tuple_,
)

from datapatterns.errors import EventTypeError
from datapatterns.event_sourcing.events import LIMIT_MAX, Position, StreamId
from datapatterns.event_sourcing.log.reading import check_limit
from datapatterns.event_sourcing.schema import event_tables
from datapatterns.event_sourcing.states.snapshotting import snapshot_kind
from datapatterns.event_sourcing.states.subjects import Subject
from datapatterns.event_sourcing.store import EventStore


@dataclass(frozen=True, slots=True)
class StoredSnapshot:
    """A snapshot, without the state that is in it.

    Attributes:
        aggregate: The name of the aggregate or decider that wrote it.
        fingerprint: Of the code that folded it, as hexadecimal digits.
        version: Of the stream.
        position: Of the last event that is folded in.
        at: When that event was recorded.
        size: Of the state as it is stored, in bytes.
        codec: What has made it; 0 for plain JSON.
        current: Whether the code at hand can use it; None if it does not know who wrote it.
    """

    aggregate: str
    fingerprint: str
    version: int
    position: Position
    at: datetime
    size: int
    codec: int
    current: bool | None


@dataclass(frozen=True, slots=True)
class Snapshots:
    """The snapshots of a store, as who looks after it sees them.

    Attributes:
        store: Whose snapshots.
        known: The aggregates and deciders of the code at hand.
    """

    store: EventStore
    known: tuple[Subject, ...] = ()

    def list(
        self, conn: Connection, stream: StreamId, *, limit: int = 100
    ) -> "list[StoredSnapshot]":
        """Return at most ``limit`` snapshots of ``stream``, the newest first.

        Raises:
            ValueError: ``limit`` is not positive.
        """
        check_limit(limit)
        kinds = self._kinds()
        names = {name for name, _ in kinds}
        tables = event_tables(self.store.schema)
        snapshots = tables.snapshots
        rows = conn.execute(
            select(
                snapshots.c.aggregate,
                snapshots.c.fingerprint,
                snapshots.c.version,
                snapshots.c.position,
                snapshots.c.at,
                func.coalesce(
                    func.octet_length(snapshots.c.payload),
                    func.octet_length(cast(snapshots.c.state, Text)),
                ),
                snapshots.c.codec,
            )
            .join(tables.streams, tables.streams.c.id == snapshots.c.stream_id)
            .where(_is(tables.streams, stream))
            .order_by(snapshots.c.version.desc(), snapshots.c.aggregate, snapshots.c.fingerprint)
            .limit(min(limit, LIMIT_MAX))
        )
        return [
            StoredSnapshot(
                aggregate=name,
                fingerprint=bytes(fingerprint).hex(),
                version=version,
                position=Position(position),
                at=at,
                size=size,
                codec=codec,
                current=(name, bytes(fingerprint)) in kinds if name in names else None,
            )
            for name, fingerprint, version, position, at, size, codec in rows
        ]

    def drop(self, conn: Connection, stream: StreamId) -> int:
        """Delete all snapshots of ``stream``; return how many. The next load folds its events."""
        tables = event_tables(self.store.schema)
        whose = select(tables.streams.c.id).where(_is(tables.streams, stream)).scalar_subquery()
        gone = delete(tables.snapshots).where(tables.snapshots.c.stream_id == whose)
        return conn.execute(gone).rowcount

    def count_outdated(self, conn: Connection) -> int:
        """Return how many `drop_outdated` would delete in all; reads the table of snapshots."""
        snapshots = event_tables(self.store.schema).snapshots
        found = select(func.count()).select_from(snapshots).where(self._outdated(snapshots))
        return conn.scalar(found) or 0

    def drop_outdated(self, conn: Connection, *, limit: int = 1_000) -> int:
        """Delete at most ``limit`` snapshots that the known code cannot use; return how many.

        Those whose aggregate is not known stay. Call it when no other release runs that uses them;
        if one does, its loads are slower for it, but right.

        Raises:
            ValueError: ``limit`` is not positive.
        """
        check_limit(limit)
        snapshots = event_tables(self.store.schema).snapshots
        key = tuple(snapshots.primary_key.columns)
        some = select(*key).where(self._outdated(snapshots)).limit(min(limit, LIMIT_MAX))
        return conn.execute(delete(snapshots).where(tuple_(*key).in_(some))).rowcount

    def _outdated(self, snapshots: Any) -> ColumnElement[bool]:  # noqa: ANN401 -- a table
        kinds: dict[str, list[bytes]] = {}  # two classes may have one name
        for name, fingerprint in sorted(self._kinds()):
            kinds.setdefault(name, []).append(fingerprint)
        return or_(
            false(),
            *(
                and_(snapshots.c.aggregate == name, snapshots.c.fingerprint.not_in(usable))
                for name, usable in kinds.items()
            ),
        )

    def _kinds(self) -> set[tuple[str, bytes]]:
        kinds = set()
        for subject in self.known:
            try:
                kind = snapshot_kind(subject, self.store.types)
            except EventTypeError:  # its events are another store's, so its snapshots are, too
                continue
            if kind is not None:
                kinds.add((kind.aggregate, kind.fingerprint))
        return kinds


def _is(streams: Any, stream: StreamId) -> ColumnElement[bool]:  # noqa: ANN401 -- a table
    return and_(
        streams.c.tenant == stream.tenant,
        streams.c.category == stream.category,
        streams.c.key == stream.key,
    )
