"""Import many events by COPY, through the same fence as every append.

A chunk is recorded with its digest in the transaction that writes it. So an import that broke off
is simply run again: chunks that are there are skipped, and a chunk of that number with other
events is refused.
"""

from collections.abc import Sequence
from datetime import datetime
from functools import cache
from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Connection,
    Integer,
    Text,
    bindparam,
    func,
    select,
)
from sqlalchemy.dialects.postgresql import TIMESTAMP, insert
from sqlalchemy.types import TypeEngine

from datapatterns.errors import ImportChunkError, IsolationLevelError
from datapatterns.event_sourcing.appending.appending import refuse_if_archived
from datapatterns.event_sourcing.content.contents import Contents
from datapatterns.event_sourcing.content.encoding import EncodedEvent
from datapatterns.event_sourcing.events import StreamId
from datapatterns.event_sourcing.evolution.event_types import EventTypes
from datapatterns.event_sourcing.schema import event_tables
from datapatterns.event_sourcing.transfer.importing_encoding import encode_chunk
from datapatterns.event_sourcing.transfer.importing_parts import (
    ImportedEvent,
    StreamPart,
    digest_of,
    parts_of_chunk,
)
from datapatterns.event_sourcing.transfer.importing_rows import COLUMNS, copied_rows, microseconds
from datapatterns.event_sourcing.transfer.importing_tags import (
    index_tags,
    lock_tags,
    tags_by_tenant,
)
from datapatterns.failpoints import failpoint
from datapatterns.sql.sending import send_blocks
from datapatterns.sql.texts import is_text
from datapatterns.sql.unnesting import unnested

IMPORT_EVENTS_MAX: Final = 200_000
"""The most events of one chunk; readers of the log wait while a chunk is being written."""

SOURCE_BYTES_MAX: Final = 500
"""The longest name of a source; it is part of an index entry."""

_MOMENT: Final = TIMESTAMP(timezone=True)
_WANTED: Final[dict[str, TypeEngine[Any]]] = {
    "tenant": Text(),
    "category": Text(),
    "key": Text(),
    "count": BigInteger(),
    "first": _MOMENT,
    "last": _MOMENT,
}


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
    part_of = parts_of_chunk(events)
    encoded = encode_chunk([event.event for event in events], types)
    digest = digest_of(events, encoded, part_of, contents.personal_plans(encoded))
    recorded = conn.execute(
        _record_chunk(schema),
        {"source": source, "chunk": chunk, "events": len(events), "digest": digest},
    ).one_or_none()
    if recorded is None:
        _check_same(conn, schema, source=source, chunk=chunk, digest=digest)
        return 0
    [now] = recorded
    # Only now: what the digest covers must be the same in every attempt.
    sent = contents.outgoing(conn, encoded, tenant=[part.stream.tenant for part in part_of])
    tags = tags_by_tenant(
        (part.stream.tenant, (event,))
        for part, event in zip(part_of, sent, strict=True)
        if event.tags
    )
    lock_tags(conn, tags, schema=schema)
    parts = sorted({id(part): part for part in part_of}.values(), key=_lock_order)
    _claim(conn, parts, schema=schema, now=now)
    before = {part.stream_id: part.version for part in parts}
    failpoint("import.streams-claimed")
    times = [event.recorded_at for event in events if event.recorded_at]
    type_ids = _type_ids(conn, sent, schema=schema)
    driver: Any = conn.connection.driver_connection
    rows = copied_rows(sent, part_of, times, type_ids, driver.info.encoding)
    send_blocks(conn, _copy_statement(schema), rows)
    if tags:
        index_tags(conn, before, schema=schema)
    return len(events)


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


def _lock_order(part: StreamPart) -> StreamId:
    return part.stream


def _check_same(conn: Connection, schema: str, *, source: str, chunk: int, digest: bytes) -> None:
    chunks = event_tables(schema).import_chunks
    stored = conn.scalar(
        select(chunks.c.digest).where(chunks.c.source == source, chunks.c.chunk == chunk)
    )
    if stored != digest:
        raise ImportChunkError(source, chunk=chunk)


def _claim(conn: Connection, parts: Sequence[StreamPart], *, schema: str, now: datetime) -> None:
    """Lock the streams and raise their versions; note their ids, versions before and times."""
    latest = max(part.last or now for part in parts)
    if latest > now:
        raise ValueError(
            f"{latest} lies in the future; events are recorded when they have happened"
        )
    rows = conn.execute(
        _claim_statement(schema),
        {
            "wanted_tenant": [part.stream.tenant for part in parts],
            "wanted_category": [part.stream.category for part in parts],
            "wanted_key": [part.stream.key for part in parts],
            "wanted_count": [part.count for part in parts],
            "wanted_first": [part.first or now for part in parts],
            "wanted_last": [part.last or now for part in parts],
            "timed": parts[0].first is not None,
        },
    )
    by_stream = {part.stream: part for part in parts}
    for stream_id, tenant, category, key, reached, last_at in rows:
        part = by_stream.pop(StreamId(category, key, tenant))
        part.stream_id, part.version = stream_id, reached - part.count
        part.at = microseconds(last_at)
    for stream, part in by_stream.items():
        refuse_if_archived(conn, stream, schema=schema)
        raise ValueError(
            f"{stream} has events after {part.first}; inside a stream time cannot go back"
        )


def _type_ids(
    conn: Connection, events: Sequence[EncodedEvent], *, schema: str
) -> dict[tuple[str, int], int]:
    kinds = sorted({(event.name, event.schema_version) for event in events})
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


@cache
def _copy_statement(schema: str) -> str:
    return f"COPY {schema}.event ({COLUMNS}) FROM STDIN (FORMAT binary)"


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
    wanted = unnested("wanted", _WANTED, place="place")
    claim = insert(streams).from_select(
        ["tenant", "category", "key", "version", "created_at", "last_at"],
        select(
            wanted.c.tenant,
            wanted.c.category,
            wanted.c.key,
            wanted.c["count"],
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
