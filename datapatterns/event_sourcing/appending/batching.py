"""Make what callers want to append ready to be sent."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection

from datapatterns.event_sourcing.appending.appending import Guard, StreamBatch, identified
from datapatterns.event_sourcing.appending.tag_query import Condition, condition_json
from datapatterns.event_sourcing.content.contents import Contents
from datapatterns.event_sourcing.content.encoding import (
    APPEND_BYTES_MAX,
    APPEND_EVENTS_MAX,
    encode_batch,
)
from datapatterns.event_sourcing.events import Expected, StreamId
from datapatterns.event_sourcing.evolution.event_types import EventTypes

APPEND_STREAMS_MAX: Final = 1_000
"""The most streams of one append; each is a locked row."""


@dataclass(frozen=True, slots=True)
class StreamEvents:
    """What `EventStore.append_to_streams` is to append to one stream.

    Attributes:
        stream: The stream to extend or to begin.
        events: What happened, oldest first.
        expected_version: The version that the decision was based on, `NEW_STREAM`, `EXISTS` or
            `ANY`.
        metadata: Added to each event; its own metadata wins.
        event_ids: One for each event, in place of its own; they make a repetition recognisable
            although no version is expected.
    """

    stream: StreamId
    events: Sequence[object]
    expected_version: int | Expected
    metadata: Mapping[str, Any] | None = None
    event_ids: Sequence[UUID] | None = None


def stream_batch(wanted: StreamEvents, *, types: EventTypes) -> StreamBatch:
    """Return ``wanted`` with its events as JSON.

    Raises:
        EventDataError: An event could not be stored and read back.
        EventTypeError: The class of an event is not declared.
        ValueError: There are no events, too many for one append, or not as many ids.
    """
    encoded = encode_batch(wanted.events, types=types, metadata=wanted.metadata)
    named = identified(encoded, wanted.event_ids)
    return StreamBatch(
        wanted.stream,
        named,
        wanted.expected_version,
        # Objects have an id each in any case, so only ids that were given tell that the caller
        # keeps them for a retry. To remember every append would cost each a row.
        keyed=wanted.event_ids is not None and isinstance(wanted.expected_version, Expected),
    )


def outgoing(conn: Connection, batch: StreamBatch, contents: Contents) -> StreamBatch:
    """Return ``batch`` as the database stores it.

    Raises:
        CodecError: The codec does not give back what it was given.
    """
    sent = contents.outgoing(conn, batch.encoded, tenant=batch.stream.tenant)
    return batch._replace(encoded=sent)


def stream_batches(wanted: Sequence[StreamEvents], *, types: EventTypes) -> list[StreamBatch]:
    """Return some appends with their events as JSON.

    Raises:
        EventDataError: An event could not be stored and read back.
        EventTypeError: The class of an event is not declared.
        ValueError: There are none, or too many.
    """
    if not wanted:
        raise ValueError("there is nothing to append; give the events of at least one stream")
    if len(wanted) > APPEND_STREAMS_MAX:
        raise ValueError(
            f"{len(wanted)} streams are too many for one append, {APPEND_STREAMS_MAX} is most"
        )
    batches = [stream_batch(one, types=types) for one in wanted]
    check_size(batches)
    return batches


def check_size(batches: Sequence[StreamBatch]) -> None:
    """Refuse what is too much for one round trip.

    Raises:
        ValueError: There are too many events, or too much data.
    """
    events = sum(len(batch.encoded) for batch in batches)
    if events > APPEND_EVENTS_MAX:
        raise ValueError(
            f"{events} events are too many for one append, {APPEND_EVENTS_MAX} is most"
        )
    size = sum(len(e.data) + len(e.meta or "") for batch in batches for e in batch.encoded)
    if size > APPEND_BYTES_MAX:
        raise ValueError(
            f"{size} characters of data are too many for one append, {APPEND_BYTES_MAX} is most"
        )


def guard(unless: Condition | None, stream: StreamId, *, types: EventTypes) -> Guard | None:
    """Return the condition as the database takes it.

    Raises:
        EventTypeError: A class that it names is not declared.
        ValueError: It is about another tenant's events.
    """
    return guard_of_all(unless, [stream], types=types)


def guard_of_all(
    unless: Condition | None, streams: Iterable[StreamId], *, types: EventTypes
) -> Guard | None:
    """Return the condition on an append to all of these streams, as `guard` does.

    Raises:
        EventTypeError: A class that it names is not declared.
        ValueError: It is about another tenant's events than one of the streams.
    """
    if unless is None:
        return None
    for stream in streams:
        _check_tenant(unless, stream)
    return Guard(condition_json(unless.query, types), unless.after)


def _check_tenant(unless: Condition, stream: StreamId) -> None:
    if unless.tenant != stream.tenant:
        raise ValueError(
            f"the condition is about tenant {unless.tenant!r}, and {stream} belongs to"
            f" {stream.tenant!r}; read the events of that tenant"
        )
