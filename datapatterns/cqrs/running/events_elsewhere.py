"""Events on another server than the read models that follow them.

Read models, checkpoints and leases are on the one server, events on the other. Effects and
checkpoint still commit together. What differs:

- A crash of the events' server takes back what was committed with ``synchronous_commit`` off, and
  positions that were never flushed. So before a page is shown, a commit there is flushed: what lies
  before it cannot be lost.
- A restore, or a standby that was behind, takes back more. So beside each checkpoint the newest
  events at it are kept (see `log_witness`), and compared before the next page.
- Those who read the read models cannot ask the log, which may be away. So each page leaves behind
  how far the log was, and when; before the first page, that it is elsewhere.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from typing import Final, Self

from sqlalchemy import ColumnElement, Connection, Engine, and_, exists, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import ProgrammingError

from datapatterns.cqrs.definition import AnyProjection
from datapatterns.cqrs.reading.log_identity import log_mark
from datapatterns.cqrs.running.leasing import Lease
from datapatterns.cqrs.running.log_witness import LogWitness, check_witness, read_witness
from datapatterns.cqrs.schema import ProjectionTables
from datapatterns.errors import SettingsError
from datapatterns.event_sourcing.events import START, Position
from datapatterns.event_sourcing.log.filtering import LogFilter
from datapatterns.event_sourcing.log.publishing import publish_mark
from datapatterns.event_sourcing.recorded import LogPage
from datapatterns.event_sourcing.store import EventStore
from datapatterns.transactions import fresh_reads, reading, resuming

NOTED_SECONDS: Final = 0.25
"""So often a read model that has caught up says so again."""


@dataclass(frozen=True, slots=True)
class EventsElsewhere(EventStore):
    """Reads an event store by connections of its own, whatever connection it is given.

    Attributes:
        engine: Leads to the server of the events.
    """

    engine: Engine | None = field(default=None, repr=False)

    @classmethod
    def of(cls, store: EventStore, engine: Engine) -> Self:
        """Return ``store`` as it is read from another server."""
        known = {each.name: getattr(store, each.name) for each in fields(EventStore)}
        return cls(**(known | {"inline": None}), engine=engine)

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """Give a connection to the server of the events, of the kind that reading the log needs."""
        if self.engine is None:
            raise SettingsError("events", "say on which server they are: EventsElsewhere.of(...)")
        with fresh_reads(self.engine) as conn:
            yield conn

    def read_log(
        self,
        conn: Connection,  # noqa: ARG002 -- that of the read models
        after: Position | LogPage = START,
        *,
        limit: int = 500,
        event_types: Collection[str] | None = None,
        matching: LogFilter | None = None,
        published: bool = False,
    ) -> LogPage:
        """Do as `EventStore.read_log`; what it returns, a crash cannot take back."""
        with self.connection() as own:
            try:
                with resuming(own, "making sure of a page of events"):
                    page = EventStore.read_log(
                        self,
                        own,
                        after,
                        limit=limit,
                        event_types=event_types,
                        matching=matching,
                        published=published,
                    )
                    publish_mark(own, self)
            except ProgrammingError:
                # The log may have lost its end, and what was published: who reads that, is told.
                with reading(own):
                    EventStore.high_water_mark(self, own, published=True)
                raise
        return page

    def high_water_mark(self, conn: Connection, *, published: bool = False) -> Position:  # noqa: ARG002
        """Do as `EventStore.high_water_mark`."""
        with self.connection() as own, reading(own):
            return EventStore.high_water_mark(self, own, published=published)


@contextmanager
def events_connection(store: EventStore, conn: Connection) -> Iterator[Connection]:
    """Give the connection by which the events of ``store`` are asked for, in a transaction."""
    if not isinstance(store, EventsElsewhere):
        yield conn
        return
    with store.connection() as own, reading(own):
        yield own


def check_followed_log(
    conn: Connection, tables: ProjectionTables, store: EventStore, lease: Lease
) -> None:
    """Make sure that the log is still the one that was followed up to the checkpoint.

    Raises:
        LogChangedError: It has lost events that the read model shows.
    """
    if not isinstance(store, EventsElsewhere):
        return
    # One of another position is older than a rebuild, which has read the log anew.
    followed = tables.followed.c
    known = conn.scalar(
        select(followed.witness).where(_of(tables, lease), followed.position == lease.position)
    )
    witness = None if known is None else LogWitness.parsed(known)
    if witness is None:
        return
    with events_connection(store, conn) as own:
        check_witness(own, store.schema, witness, lease.position, followed_by=lease.name)


def begun_at(conn: Connection, store: EventStore) -> datetime | None:
    """Begin the transaction, before the log is asked, and return when; None for a log beside it.

    By the clock of the read models' server, as those who read tell ages by it.
    """
    if not isinstance(store, EventsElsewhere):
        return None
    return conn.execute(select(func.now())).scalar_one()


def begin_to_follow(
    conn: Connection, tables: ProjectionTables, store: EventStore, projection: type[AnyProjection]
) -> None:
    """Leave behind that the log is elsewhere, and where it ends, for segments without a page yet.

    Who reads would hold them against the log beside them: that is empty, so all would seem fresh.
    """
    if not isinstance(store, EventsElsewhere):
        return
    shards, followed = tables.shards.c, tables.followed
    is_noted = exists().where(
        followed.c.name == shards.name,
        followed.c.version == shards.version,
        followed.c.shard == shards.shard,
    )
    unnoted = conn.scalars(
        select(shards.shard)
        .where(shards.name == projection.name, shards.version == projection.version, ~is_noted)
        .order_by(shards.shard)
    ).all()
    if not unnoted:  # nor is the other server asked, which may be away
        return
    with events_connection(store, conn) as own:
        log = log_mark(own, store.schema)
    end = store.high_water_mark(conn)
    key = {"name": projection.name, "version": projection.version}
    # Of no position that a page has led to, so what it says is held against no log.
    seen = {"log": log, "position": START, "witness": "", "mark": end}
    rows = [key | seen | {"shard": shard} for shard in unnoted]
    conn.execute(insert(followed).on_conflict_do_nothing(), rows)


def note_followed_log(
    conn: Connection,
    tables: ProjectionTables,
    store: EventStore,
    lease: Lease,
    *,
    mark: Position | None,
    asked_at: datetime | None = None,
) -> None:
    """Leave behind, in the transaction of a page, what was seen of the log.

    What was written to it after it was asked is not shown, however late the page commits.

    Args:
        conn: A connection in that transaction.
        tables: Where it is left.
        store: Where the events are.
        lease: As the page leaves it.
        mark: Up to where the log was final; None if nobody looked.
        asked_at: Not after the log was asked for that; unless given, this transaction was begun
            before.
    """
    if not isinstance(store, EventsElsewhere):
        return
    with events_connection(store, conn) as own:
        witness = read_witness(own, store.schema, lease.position)
        log = log_mark(own, store.schema)
    followed = tables.followed
    seen_at = func.now() if asked_at is None else asked_at
    noted = insert(followed).values(
        name=lease.name,
        version=lease.version,
        shard=lease.segment.shard,
        log=log,
        position=lease.position,
        witness=witness.text,
        mark=max(lease.position, mark or START),
        seen_at=seen_at,
        caught_up_at=seen_at if mark is not None and lease.position >= mark else None,
    )
    changed = noted.excluded
    conn.execute(
        noted.on_conflict_do_update(
            index_elements=["name", "version", "shard"],
            set_={
                "log": changed.log,
                "position": changed.position,
                "witness": changed.witness,
                "mark": changed.mark,
                "seen_at": changed.seen_at,
                "caught_up_at": func.coalesce(changed.caught_up_at, followed.c.caught_up_at),
            },
        )
    )


def note_idle(conn: Connection, tables: ProjectionTables, store: EventStore, lease: Lease) -> None:
    """Leave behind that there was nothing new, unless that was said a moment ago.

    The transaction was begun before the log was asked.
    """
    if not isinstance(store, EventsElsewhere):
        return
    followed = tables.followed.c
    moment_ago = func.clock_timestamp() - timedelta(seconds=NOTED_SECONDS)
    said_long_ago = or_(followed.caught_up_at.is_(None), followed.caught_up_at < moment_ago)
    conn.execute(
        update(tables.followed)
        .where(_of(tables, lease), said_long_ago)
        .values(seen_at=func.now(), caught_up_at=func.now())
    )


def _of(tables: ProjectionTables, lease: Lease) -> ColumnElement[bool]:
    followed = tables.followed.c
    return and_(
        followed.name == lease.name,
        followed.version == lease.version,
        followed.shard == lease.segment.shard,
    )
