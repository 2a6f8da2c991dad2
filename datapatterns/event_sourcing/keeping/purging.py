"""Remove archived events for good, after an export, and leave word of what there was."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Connection,
    Delete,
    Select,
    Text,
    bindparam,
    delete,
    func,
    insert,
    select,
    tuple_,
)

from datapatterns.errors import PurgeRefusedError
from datapatterns.event_sourcing.events import StreamId
from datapatterns.event_sourcing.keeping.chain import event_digest
from datapatterns.event_sourcing.keeping.sealing import event_form_of, with_names
from datapatterns.event_sourcing.schema import event_tables

PURGED_EVENTS_MAX: Final = 100_000
"""The most events of one purge; they are one transaction."""

_EVENTS_PER_PAGE: Final = 2_000


@dataclass(frozen=True, slots=True)
class ArchiveExport:
    """What an export wrote.

    Attributes:
        first_version: The oldest event that was there.
        last_version: The newest one that was asked for.
        events: How many.
        digest: The SHA-256 of all lines.
    """

    first_version: int
    last_version: int
    events: int
    digest: bytes


def export_events(
    conn: Connection,
    stream: StreamId,
    *,
    through_version: int,
    write: Callable[[str], object],
    schema: str,
) -> ArchiveExport:
    """Do what `Archive.export` promises."""
    stream_id, _ = _stream(conn, stream, schema)
    whole, first, last, events = hashlib.sha256(), 0, 0, 0
    for page in _pages(conn, schema, stream_id, through_version):
        for version, _, form, _ in page:
            if events and version != last + 1:
                raise PurgeRefusedError(str(stream), f"version {last + 1} is not in the archive")
            line = f"{form}\n"
            whole.update(line.encode())
            write(line)
            first, last, events = first or version, version, events + 1
    if last != through_version:
        raise PurgeRefusedError(str(stream), f"version {last + 1} is not in the archive")
    return ArchiveExport(first, last, events, whole.digest())


def purge_events(
    conn: Connection, stream: StreamId, exported: ArchiveExport, *, reason: str, schema: str
) -> int:
    """Do what `Archive.purge` promises, while nobody else moves events of the stream."""
    if not reason:
        raise ValueError("say why; the tombstone keeps it")
    tables = event_tables(schema)
    stream_id, first_version = _stream(conn, stream, schema)
    _refuse_if_needed(stream, exported, first_version)
    tombstones: list[dict[str, Any]] = []
    whole, tagged = hashlib.sha256(), False
    for page in _pages(conn, schema, stream_id, exported.last_version):
        for version, position, form, has_tags in page:
            whole.update(f"{form}\n".encode())
            digest = event_digest(form)
            tombstones.append({"position": position, "version": version, "digest": digest})
            tagged = tagged or has_tags
    if whole.digest() != exported.digest or len(tombstones) != exported.events:
        raise PurgeRefusedError(str(stream), "the archive does not hold what was exported")
    _refuse_if_unread(conn, stream, tombstones[-1]["position"], schema)
    purge_id = conn.scalar(
        insert(tables.purges).returning(tables.purges.c.purge_id),
        {
            "stream_id": stream_id,
            "first_version": exported.first_version,
            "last_version": exported.last_version,
            "events": exported.events,
            "digest": exported.digest,
            "reason": reason,
        },
    )
    conn.execute(
        insert(tables.tombstones),
        [{**row, "stream_id": stream_id, "purge_id": purge_id} for row in tombstones],
    )
    if tagged:
        conn.execute(_untag(schema, stream, stream_id, exported.last_version))
    conn.execute(
        delete(tables.archive).where(
            tables.archive.c.stream_id == stream_id,
            tables.archive.c.version <= exported.last_version,
        )
    )
    return len(tombstones)


def _untag(schema: str, stream: StreamId, stream_id: int, through_version: int) -> Delete:
    archive, tags = event_tables(schema).archive, event_tables(schema).tags
    # By tag and position: there is no index on positions alone.
    gone = select(func.unnest(archive.c.tags), archive.c.position).where(
        archive.c.stream_id == stream_id, archive.c.version <= through_version
    )
    return delete(tags).where(
        tags.c.tenant == stream.tenant, tuple_(tags.c.tag, tags.c.position).in_(gone)
    )


def _refuse_if_needed(stream: StreamId, exported: ArchiveExport, first_version: int) -> None:
    if not 1 <= exported.events <= PURGED_EVENTS_MAX:
        raise PurgeRefusedError(
            str(stream), f"{exported.events} events; at most {PURGED_EVENTS_MAX}"
        )
    if exported.last_version >= first_version:
        raise PurgeRefusedError(
            str(stream),
            f"loads begin at version {first_version}; compact it behind a summary first",
        )


def _refuse_if_unread(conn: Connection, stream: StreamId, last: int, schema: str) -> None:
    tables = event_tables(schema)
    sealed = conn.scalar(select(func.max(tables.seals.c.last_position)))
    if sealed is not None and sealed < last:
        raise PurgeRefusedError(
            str(stream), f"the hash chain ends at {sealed}, before position {last}; seal first"
        )
    behind = conn.scalar(
        select(
            tables.function(
                "projections_before", bindparam("last", last, BigInteger), returns=ARRAY(Text)
            )
        )
    )
    if behind:
        raise PurgeRefusedError(
            str(stream),
            f"{', '.join(behind)} has not read up to position {last}; wait, or retire it",
        )


def _stream(conn: Connection, stream: StreamId, schema: str) -> tuple[int, int]:
    streams = event_tables(schema).streams
    row = conn.execute(
        select(streams.c.id, streams.c.first_version).where(
            streams.c.tenant == stream.tenant,
            streams.c.category == stream.category,
            streams.c.key == stream.key,
        )
    ).one_or_none()
    if row is None:
        raise PurgeRefusedError(str(stream), "it has no events")
    return row[0], row[1]


def _pages(
    conn: Connection, schema: str, stream_id: int, through_version: int
) -> Iterator[Sequence[Any]]:
    after = 0
    while True:
        page = conn.execute(
            _page_statement(schema),
            {"stream_id": stream_id, "after": after, "through": through_version},
        ).all()
        if not page:
            return
        yield page
        after = page[-1][0]


@cache
def _page_statement(schema: str) -> Select[Any]:
    archive = event_tables(schema).archive
    page = (
        select(archive)
        .where(
            archive.c.stream_id == bindparam("stream_id", type_=BigInteger),
            archive.c.version > bindparam("after", type_=BigInteger),
            archive.c.version <= bindparam("through", type_=BigInteger),
        )
        .order_by(archive.c.version)
        .limit(_EVENTS_PER_PAGE)
        .subquery("page")
    )
    return (
        select(
            page.c.version,
            page.c.position,
            event_form_of(schema, page),
            page.c.tags.is_not(None),
        )
        .select_from(with_names(schema, page))
        .order_by(page.c.version)
    )
