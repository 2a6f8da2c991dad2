"""What an import asks of the database it writes to: where it was, and whether it has got there."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    Connection,
    Select,
    Text,
    select,
)

from datapatterns.errors import ImportVersionError
from datapatterns.event_sourcing.events import StreamId
from datapatterns.event_sourcing.schema import event_tables
from datapatterns.sql.unnesting import unnested


def chunk_sizes(conn: Connection, schema: str, source: str) -> dict[int, int]:
    """Return how many events the chunks have that were imported of ``source``, by their numbers.

    An import cuts its source into the same chunks again, however long the last one was.
    """
    chunks = event_tables(schema).import_chunks
    rows = conn.execute(select(chunks.c.chunk, chunks.c.events).where(chunks.c.source == source))
    return {row.chunk: row.events for row in rows}


def check_versions(conn: Connection, schema: str, versions: Mapping[StreamId, int | None]) -> None:
    """Refuse streams that have not the version that was expected; None expects nothing.

    Raises:
        ImportVersionError: Names the first of them.
    """
    wanted = {stream: version for stream, version in versions.items() if version is not None}
    rows = conn.execute(
        _versions_statement(schema),
        {
            "wanted_tenant": [stream.tenant for stream in wanted],
            "wanted_category": [stream.category for stream in wanted],
            "wanted_key": [stream.key for stream in wanted],
            "wanted_version": list(wanted.values()),
        },
    )
    for tenant, category, key, expected, found in rows:
        raise ImportVersionError(
            str(StreamId(category, key, tenant)), expected=expected, found=found
        )


@cache
def _versions_statement(schema: str) -> Select[Any]:
    streams = event_tables(schema).streams
    wanted = unnested(
        "wanted", {"tenant": Text(), "category": Text(), "key": Text(), "version": BigInteger()}
    )
    return (
        select(
            streams.c.tenant,
            streams.c.category,
            streams.c.key,
            wanted.c.version,
            streams.c.version,
        )
        .join_from(
            wanted,
            streams,
            (streams.c.tenant == wanted.c.tenant)
            & (streams.c.category == wanted.c.category)
            & (streams.c.key == wanted.c.key),
        )
        .where(streams.c.version != wanted.c.version)
        .limit(1)
    )
