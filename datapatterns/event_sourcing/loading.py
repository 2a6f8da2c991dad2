"""Load an aggregate: the latest fitting snapshot and what followed it, in one statement."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, Final, TypeVar

import msgspec
from sqlalchemy import (
    BigInteger,
    Boolean,
    Connection,
    LargeBinary,
    Select,
    Text,
    and_,
    bindparam,
    cast,
    exists,
    func,
    literal,
    null,
    select,
)
from sqlalchemy.dialects.postgresql import TIMESTAMP

from datapatterns.clock import Clock
from datapatterns.errors import CodecError, EncryptionKeyError, EventGapError, PayloadError
from datapatterns.event_sourcing.aggregate import Aggregate
from datapatterns.event_sourcing.contents import Contents, event_content, state_content
from datapatterns.event_sourcing.event_types import EventTypes
from datapatterns.event_sourcing.events import VERSION_MAX, Position
from datapatterns.event_sourcing.payload import misfit
from datapatterns.event_sourcing.schema import event_tables
from datapatterns.event_sourcing.snapshotting import SnapshotKind, snapshot_kind

A = TypeVar("A", bound=Aggregate)

logger = logging.getLogger(__name__)

_SNAPSHOT: Final = 0


@dataclass(frozen=True, slots=True)
class Moment:
    """Up to where to look: a version, a time, or neither."""

    version: int | None = None
    at: datetime | None = None

    def __post_init__(self) -> None:
        if self.version is not None and self.version < 0:
            raise ValueError(f"{self.version} is no version; ask for 0 or more")
        if self.at is not None and self.at.utcoffset() is None:
            raise ValueError(f"{self.at} has no time zone; give one, so that it is one instant")


def load_aggregate(  # noqa: PLR0913 -- EventStore binds the schema, types and clock
    conn: Connection,
    aggregate: type[A],
    key: str,
    moment: Moment,
    *,
    schema: str,
    types: EventTypes,
    clock: Clock,
    contents: Contents,
) -> A:
    """Do what `EventStore.load` promises."""
    if moment.version is not None and abs(moment.version) > VERSION_MAX:
        raise ValueError("no stream has so many events")
    started = clock.monotonic()
    kind = snapshot_kind(aggregate, types)
    loaded = _load(
        conn, aggregate(key), moment, kind, schema=schema, types=types, contents=contents
    )
    if loaded is None:
        # Somebody restored or edited tables, or the state cannot be read: the events can.
        loaded = _load(
            conn, aggregate(key), moment, None, schema=schema, types=types, contents=contents
        )
    assert loaded is not None
    if moment.version is not None and loaded.version < moment.version:
        raise ValueError(
            f"{loaded.stream} is at version {loaded.version}, not yet at {moment.version}"
        )
    loaded._history.load_seconds = clock.monotonic() - started  # noqa: SLF001 -- its keeper
    return loaded


def _load(  # noqa: PLR0913 -- as above
    conn: Connection,
    loaded: A,
    moment: Moment,
    kind: SnapshotKind | None,
    *,
    schema: str,
    types: EventTypes,
    contents: Contents,
) -> A | None:
    found = conn.execute(
        _load_statement(schema),
        {
            "tenant": loaded.stream.tenant,
            "category": loaded.stream.category,
            "key": loaded.stream.key,
            "aggregate": kind and kind.aggregate,
            "fingerprint": kind and kind.fingerprint,
            "version": moment.version,
            "at": moment.at,
        },
    )
    rows = list(found)
    if rows and rows[0][0] == _SNAPSHOT:
        assert kind is not None
        if not _restore(loaded, rows.pop(0), kind, contents):
            return None
    data = contents.incoming(conn, [row[3] for row in rows], tenant=loaded.stream.tenant)
    _fold(loaded, rows, data, types)
    return loaded


def _restore(
    loaded: Aggregate,
    row: Any,  # noqa: ANN401 -- a row
    kind: SnapshotKind,
    contents: Contents,
) -> bool:
    _, version, position, state, _, _, fits = row
    known = {"stream": str(loaded.stream), "version": version}
    if not fits:
        logger.warning("snapshot ignored: its event is not in the stream", extra=known)
        return False
    try:
        bound_to = kind.bound_to(loaded.stream, version)
        kind.shape.restore(loaded, contents.codecs.state_text(state, bound_to=bound_to))
    except (msgspec.MsgspecError, CodecError, EncryptionKeyError, PayloadError) as error:
        reason = {
            "reason": misfit(error) if isinstance(error, msgspec.MsgspecError) else str(error)
        }
        logger.warning("snapshot ignored: it cannot be read", extra=known | reason)
        return False
    history = loaded._history  # noqa: SLF001 -- its keeper
    history.version = history.snapshot_version = version
    history.position = Position(position)
    return True


def _fold(loaded: Aggregate, rows: list[Any], contents: Sequence[str], types: EventTypes) -> None:
    history = loaded._history  # noqa: SLF001 -- its keeper
    expected = history.version
    for (_, version, _, _, name, schema_version, _), data in zip(rows, contents, strict=True):
        expected += 1
        if version != expected:
            raise EventGapError(str(loaded.stream), version=expected)
        for event in types.decode_json(name, schema_version, data):
            loaded._apply(event)  # noqa: SLF001 -- its keeper
        history.version = version  # after it was applied, as when it was emitted
    if rows:
        history.position = Position(rows[-1][2])


@cache
def _load_statement(schema: str) -> Select[Any]:
    tables = event_tables(schema)
    events, snapshots, names = tables.events, tables.snapshots, tables.event_types
    version = bindparam("version", type_=BigInteger)
    at = bindparam("at", type_=TIMESTAMP(timezone=True))
    stream = (
        select(tables.streams.c.id, tables.streams.c.version)
        .where(
            tables.streams.c.tenant == bindparam("tenant"),
            tables.streams.c.category == bindparam("category"),
            tables.streams.c.key == bindparam("key"),
        )
        .cte("stream_found")
    )
    # A restored database may lack events that a snapshot was made from.
    its_event = events.alias("its_event")
    fits = exists().where(
        its_event.c.stream_id == snapshots.c.stream_id,
        its_event.c.version == snapshots.c.version,
        its_event.c.position == snapshots.c.position,
    )
    snapshot = (
        select(
            snapshots.c.version,
            snapshots.c.position,
            state_content(snapshots).label("state"),
            fits.label("fits"),
        )
        .where(
            snapshots.c.stream_id == stream.c.id,
            snapshots.c.aggregate == bindparam("aggregate", type_=Text),
            snapshots.c.fingerprint == bindparam("fingerprint", type_=LargeBinary),
            version.is_(None) | (snapshots.c.version <= version),
            at.is_(None) | (snapshots.c.at <= at),
        )
        .order_by(snapshots.c.version.desc())
        .limit(1)
        .cte("snapshot_found")
    )
    start = func.coalesce(select(snapshot.c.version).scalar_subquery(), 0)
    tail = (
        select(
            literal(1).label("kind"),
            events.c.version,
            events.c.position,
            event_content(events),
            names.c.name,
            names.c.schema_version,
            cast(null(), Boolean),
        )
        .select_from(
            stream.join(
                events, and_(events.c.stream_id == stream.c.id, events.c.version > start)
            ).join(names, names.c.id == events.c.type_id)
        )
        .where(
            version.is_(None) | (events.c.version <= version),
            at.is_(None) | (events.c.at <= at),
        )
    )
    begin = select(
        literal(_SNAPSHOT).label("kind"),
        snapshot.c.version,
        snapshot.c.position,
        snapshot.c.state,
        cast(null(), Text).label("name"),
        cast(null(), BigInteger).label("schema_version"),
        snapshot.c.fits,
    )
    both = begin.union_all(tail)
    return select(both.subquery("found")).order_by("kind", "version")
