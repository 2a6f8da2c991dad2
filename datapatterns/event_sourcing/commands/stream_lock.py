"""Lock a stream before the decision, so that no other writer makes it worthless."""

from typing import Final
from uuid import UUID

from sqlalchemy import Connection, func, select

from datapatterns.errors import VersionConflictError
from datapatterns.event_sourcing.appending.appending import StreamBatch, append_to_streams
from datapatterns.event_sourcing.content.encoding import EncodedEvent
from datapatterns.event_sourcing.events import VERSION_MAX, StreamId
from datapatterns.transactions import refuse_autocommit

_NEVER_STORED: Final = [EncodedEvent("never.stored", 1, UUID(int=0), "{}", None)]


def lock_stream(conn: Connection, stream: StreamId, *, schema: str) -> int:
    """Hold ``stream`` until the transaction ends; return its version, 0 if it does not exist.

    Whoever appends to it waits. To a stream that does not exist yet only those wait who lock it,
    too: whoever appends without that is first, and the one who holds the lock has a conflict.

    Raises:
        IsolationLevelError: The connection is in autocommit mode.
        StreamArchivedError: It takes no more events.
    """
    refuse_autocommit(conn)
    version = _locked(conn, stream, schema)
    if version == 0:
        # There is no row to lock. A collision of hashes costs a wait.
        name = func.hashtext(f"{stream.tenant}\n{stream.category}\n{stream.key}")
        conn.execute(select(func.pg_advisory_xact_lock(func.hashtext(f"{schema}.stream"), name)))
        version = _locked(conn, stream, schema)
    return version


def _locked(conn: Connection, stream: StreamId, schema: str) -> int:
    # A role that may only append can lock no row. But the function that appends to several streams
    # locks the row before it looks at the version, and of a version that no stream has it says
    # which one it found instead.
    try:
        append_to_streams(conn, [StreamBatch(stream, _NEVER_STORED, VERSION_MAX)], schema=schema)
    except VersionConflictError as held:
        return held.found
    raise AssertionError(f"{stream} is at version {VERSION_MAX}")
