"""Import many events by COPY, through the same fence as every append.

A chunk is recorded with its digest in the transaction that writes it. So an import that broke off
is simply run again: chunks that are there are skipped, and a chunk of that number with other
events is refused.
"""

import hashlib
from base64 import b64decode
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Connection,
    Integer,
    Text,
    bindparam,
    column,
    func,
    select,
)
from sqlalchemy.dialects.postgresql import TIMESTAMP, insert

from datapatterns.errors import ImportChunkError, IsolationLevelError
from datapatterns.event_sourcing.appending.appending import refuse_if_archived
from datapatterns.event_sourcing.content.contents import Contents
from datapatterns.event_sourcing.content.encoding import (
    EncodedEvent,
    encode,
    refuse_readable,
    with_plan,
)
from datapatterns.event_sourcing.events import StreamId
from datapatterns.event_sourcing.evolution.event_types import EventTypes
from datapatterns.event_sourcing.persons.personal_values import without_personal
from datapatterns.event_sourcing.schema import event_tables
from datapatterns.event_sourcing.transfer.importing_tags import (
    index_tags,
    lock_tags,
    tags_by_tenant,
    tags_column,
)
from datapatterns.failpoints import failpoint
from datapatterns.sql.sending import send_rows
from datapatterns.sql.texts import is_text

IMPORT_EVENTS_MAX: Final = 200_000
"""The most events of one chunk; readers of the log wait while a chunk is being written."""

SOURCE_BYTES_MAX: Final = 500
"""The longest name of a source; it is part of an index entry."""

_EARLIEST: Final = datetime(1, 1, 3, tzinfo=UTC)
"""In time zones west of Greenwich, what lies before could show as a day before the year 1."""

_MOMENT: Final = TIMESTAMP(timezone=True)


@dataclass(frozen=True, slots=True)
class ImportedEvent:
    """An event that happened elsewhere, or before.

    Attributes:
        event: A `NewEvent`, or an object of a declared class.
        recorded_at: When it was recorded there; None for the time of the import. Inside a stream
            it must not go back.
    """

    stream: StreamId
    event: object
    recorded_at: datetime | None = None


@dataclass(slots=True)
class _StreamPart:
    """What a chunk holds of one stream."""

    events: list[EncodedEvent]
    times: list[datetime]


def import_events(  # noqa: PLR0913 -- EventStore binds the schema, types and contents
    conn: Connection,
    events: Sequence[ImportedEvent],
    *,
    source: str,
    chunk: int,
    schema: str,
    types: EventTypes,
    contents: Contents,
) -> int:
    """Do what `EventStore.import_events` promises."""
    _check_transaction(conn)
    _check_chunk(events, source=source, chunk=chunk)
    parts, digest = _sort_by_stream(events, types)
    recorded = conn.execute(
        _record_chunk(schema),
        {"source": source, "chunk": chunk, "events": len(events), "digest": digest},
    ).one_or_none()
    if recorded is None:
        _check_same(conn, schema, source=source, chunk=chunk, digest=digest)
        return 0
    [now] = recorded
    # Only now: what the digest covers must be the same in every attempt.
    _make_outgoing(conn, contents, parts)
    tags = tags_by_tenant((stream.tenant, part.events) for stream, part in parts.items())
    lock_tags(conn, tags, schema=schema)
    claimed = _claim(conn, parts, schema=schema, now=now)
    failpoint("import.streams-claimed")
    type_ids = _type_ids(conn, parts.values(), schema=schema)
    rows = _rows(events, parts, claimed, type_ids)
    send_rows(conn, _copy_statement(schema), rows)
    if tags:
        before = {stream_id: version for stream_id, version, _ in claimed.values()}
        index_tags(conn, before, schema=schema)
    return len(events)


def _make_outgoing(
    conn: Connection, contents: Contents, parts: dict[StreamId, _StreamPart]
) -> None:
    by_tenant: dict[str, list[_StreamPart]] = {}
    for stream, part in parts.items():
        by_tenant.setdefault(stream.tenant, []).append(part)
    for tenant, of_tenant in sorted(by_tenant.items()):
        # What a file holds of a codec's is stored as it is: its key may not be at hand.
        plain = [each for part in of_tenant for each in part.events if not each.codec]
        made = iter(contents.outgoing(conn, plain, tenant=tenant))
        for part in of_tenant:
            part.events = [each if each.codec else next(made) for each in part.events]


def _check_transaction(conn: Connection) -> None:
    driver: Any = conn.connection.driver_connection
    if driver.autocommit:
        raise IsolationLevelError(found="autocommit", needed="read committed")


def _check_chunk(events: Sequence[ImportedEvent], *, source: str, chunk: int) -> None:
    if not events:
        raise ValueError(f"chunk {chunk} of {source!r} is empty")
    if not is_text(source) or len(source.encode()) > SOURCE_BYTES_MAX:
        raise ValueError(
            f"{source[:80]!r} cannot name a source; use at most {SOURCE_BYTES_MAX} bytes of text"
            " without U+0000"
        )
    if len(events) > IMPORT_EVENTS_MAX:
        raise ValueError(
            f"{len(events)} events are too many for one chunk, {IMPORT_EVENTS_MAX} is most;"
            " readers of the log wait while it is written"
        )
    timed = sum(event.recorded_at is not None for event in events)
    if timed not in (0, len(events)):
        raise ValueError(
            "some events of the chunk have a time and some have none; give all or none"
        )


def _sort_by_stream(
    events: Sequence[ImportedEvent], types: EventTypes
) -> tuple[dict[StreamId, _StreamPart], bytes]:
    parts: dict[StreamId, _StreamPart] = {}
    digest = hashlib.sha256()
    for event in events:
        encoded = (
            with_plan(event.event, types)  # from a file that holds what was stored
            if isinstance(event.event, EncodedEvent)
            else encode(event.event, types=types)
        )
        part = parts.get(event.stream)
        if part is None:
            part = parts[event.stream] = _StreamPart([], [])
        part.events.append(encoded)
        if event.recorded_at is not None:
            _check_time(event.stream, part.times, event.recorded_at)
            part.times.append(event.recorded_at)
        digest.update(_same(event, encoded).encode())
    return dict(sorted(parts.items(), key=_lock_order)), digest.digest()


def _same(event: ImportedEvent, encoded: EncodedEvent) -> str:
    # Without ids: those that were not given are new in every attempt. No part holds U+0000.
    stream = event.stream
    parts = (
        stream.tenant,
        stream.category,
        stream.key,
        encoded.name,
        str(encoded.schema_version),
        # A digest of personal data would tell who guesses it that the guess is right.
        without_personal(encoded) if encoded.personal else encoded.data,
        encoded.meta or "",
        event.recorded_at.isoformat() if event.recorded_at else "",
        *encoded.tags,
        "",
    )
    return "\0".join(parts)


def _lock_order(item: tuple[StreamId, _StreamPart]) -> StreamId:
    return item[0]


def _check_time(stream: StreamId, times: list[datetime], recorded_at: datetime) -> None:
    if recorded_at.utcoffset() is None:
        raise ValueError(f"{recorded_at} in {stream} has no time zone; give one")
    if recorded_at < _EARLIEST:
        raise ValueError(
            f"{recorded_at} in {stream} lies so early that not every session could read it; leave"
            " the time out if it is not known"
        )
    if times and recorded_at < times[-1]:
        raise ValueError(f"{stream} goes back in time, from {times[-1]} to {recorded_at}; sort it")


def _check_same(conn: Connection, schema: str, *, source: str, chunk: int, digest: bytes) -> None:
    chunks = event_tables(schema).import_chunks
    stored = conn.scalar(
        select(chunks.c.digest).where(chunks.c.source == source, chunks.c.chunk == chunk)
    )
    if stored != digest:
        raise ImportChunkError(source, chunk=chunk)


def _claim(
    conn: Connection, parts: dict[StreamId, _StreamPart], *, schema: str, now: datetime
) -> dict[StreamId, tuple[int, int, datetime]]:
    """Lock the streams and raise their versions; return id, version before and time of each."""
    timed = bool(next(iter(parts.values())).times)
    first = [part.times[0] if timed else now for part in parts.values()]
    last = [part.times[-1] if timed else now for part in parts.values()]
    latest = max(last)
    if latest > now:
        raise ValueError(
            f"{latest} lies in the future; events are recorded when they have happened"
        )
    rows = conn.execute(
        _claim_statement(schema),
        {
            "tenants": [stream.tenant for stream in parts],
            "categories": [stream.category for stream in parts],
            "keys": [stream.key for stream in parts],
            "counts": [len(part.events) for part in parts.values()],
            "first": first,
            "last": last,
            "timed": timed,
        },
    )
    claimed = {
        StreamId(category, key, tenant): (stream_id, reached - len_, last_at)
        for stream_id, tenant, category, key, reached, last_at in rows
        for len_ in (len(parts[StreamId(category, key, tenant)].events),)
    }
    for stream in parts.keys() - claimed.keys():
        refuse_if_archived(conn, stream, schema=schema)
        since = parts[stream].times[0]
        raise ValueError(f"{stream} has events after {since}; inside a stream time cannot go back")
    return claimed


def _type_ids(
    conn: Connection, parts: Iterable[_StreamPart], *, schema: str
) -> dict[tuple[str, int], int]:
    kinds = sorted({(e.name, e.schema_version) for part in parts for e in part.events})
    ids = conn.scalar(
        select(
            event_tables(schema).function(
                "event_type_ids",
                bindparam("names", type_=ARRAY(Text)),
                bindparam("schema_versions", type_=ARRAY(Integer)),
                returns=ARRAY(Integer),
            )
        ),
        {"names": [name for name, _ in kinds], "schema_versions": [v for _, v in kinds]},
    )
    return dict(zip(kinds, ids or [], strict=True))


def _rows(
    events: Sequence[ImportedEvent],
    parts: dict[StreamId, _StreamPart],
    claimed: dict[StreamId, tuple[int, int, datetime]],
    type_ids: dict[tuple[str, int], int],
) -> Iterator[str]:
    # As they came: a read model of several streams sees the same story in the same order.
    rows = {stream: _rows_of(part, claimed[stream], type_ids) for stream, part in parts.items()}
    for event in events:
        yield next(rows[event.stream])


def _rows_of(
    part: _StreamPart, claimed: tuple[int, int, datetime], type_ids: dict[tuple[str, int], int]
) -> Iterator[str]:
    stream_id, before, last_at = claimed
    times = [time.isoformat() for time in part.times] or [last_at.isoformat()] * len(part.events)
    for version, (event, at) in enumerate(zip(part.events, times, strict=True), before + 1):
        # JSON has no raw tabs or line ends; of what COPY treats as special, only \ is left.
        refuse_readable(event)
        if event.codec:
            data, payload = "\\N", "\\\\x" + b64decode(event.data).hex()
        else:
            data, payload = event.data.replace("\\", "\\\\"), "\\N"
        meta = "\\N" if event.meta is None else event.meta.replace("\\", "\\\\")
        type_id = type_ids[event.name, event.schema_version]
        yield (
            f"{stream_id}\t{version}\t{at}\t{event.event_id.hex}\t{type_id}\t{data}\t{meta}"
            f"\t{payload}\t{event.codec}\t{tags_column(event.tags)}\n"
        )


@cache
def _copy_statement(schema: str) -> str:
    columns = "(stream_id, version, at, event_id, type_id, data, meta, payload, codec, tags)"
    return f"COPY {schema}.event {columns} FROM STDIN"


@cache
def _record_chunk(schema: str) -> Any:  # noqa: ANN401 -- Core has no public name for it
    chunks = event_tables(schema).import_chunks
    return (
        insert(chunks)
        .values(
            source=bindparam("source"),
            chunk=bindparam("chunk"),
            events=bindparam("events"),
            digest=bindparam("digest"),
        )
        .on_conflict_do_nothing()
        .returning(func.clock_timestamp(type_=_MOMENT))
    )


@cache
def _claim_statement(schema: str) -> Any:  # noqa: ANN401 -- Core has no public name for it
    streams = event_tables(schema).streams
    wanted = (
        func.unnest(
            bindparam("tenants", type_=ARRAY(Text)),
            bindparam("categories", type_=ARRAY(Text)),
            bindparam("keys", type_=ARRAY(Text)),
            bindparam("counts", type_=ARRAY(BigInteger)),
            bindparam("first", type_=ARRAY(_MOMENT)),
            bindparam("last", type_=ARRAY(_MOMENT)),
        )
        .table_valued(
            column("tenant", Text),
            column("category", Text),
            column("key", Text),
            column("n", BigInteger),
            column("first", _MOMENT),
            column("last", _MOMENT),
            with_ordinality="place",
            name="wanted",
        )
        .render_derived()
    )
    claim = insert(streams).from_select(
        ["tenant", "category", "key", "version", "created_at", "last_at"],
        select(
            wanted.c.tenant,
            wanted.c.category,
            wanted.c.key,
            wanted.c.n,
            wanted.c.first,
            wanted.c.last,
        ).order_by(wanted.c.place),
    )
    return claim.on_conflict_do_update(
        index_elements=["tenant", "category", "key"],
        set_={
            "version": streams.c.version + claim.excluded.version,
            "last_at": func.greatest(claim.excluded.last_at, streams.c.last_at),
        },
        # Times that were given must not go back; the time of now is moved up to the stream's.
        where=streams.c.archived_at.is_(None)
        & ((streams.c.last_at <= claim.excluded.created_at) | bindparam("timed").is_(False)),
    ).returning(
        streams.c.id,
        streams.c.tenant,
        streams.c.category,
        streams.c.key,
        streams.c.version,
        streams.c.last_at,
    )
