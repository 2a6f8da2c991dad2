"""Lock a stream before the decision, so that no other writer makes it worthless."""

from dataclasses import asdict

from sqlalchemy import BigInteger, Boolean, Connection, Text, bindparam, column, select

from datapatterns.errors import StreamArchivedError
from datapatterns.event_sourcing.events import StreamId
from datapatterns.event_sourcing.schema import event_tables
from datapatterns.transactions import refuse_autocommit


def lock_stream(conn: Connection, stream: StreamId, *, schema: str) -> int:
    """Hold ``stream`` until the transaction ends; return its version, 0 if it does not exist.

    Whoever appends to it waits, or begins it. In a savepoint that is rolled back the lock is lost.

    Raises:
        IsolationLevelError: The connection is in autocommit mode.
        StreamArchivedError: It takes no more events.
    """
    refuse_autocommit(conn)
    answer = (column("stream_version", BigInteger), column("is_archived", Boolean))
    lock = event_tables(schema).function(
        "lock_stream", *(bindparam(name, type_=Text()) for name in ("tenant", "category", "key"))
    )
    version, is_archived = conn.execute(
        select(*answer).select_from(lock.table_valued(*answer)), asdict(stream)
    ).one()
    if is_archived:
        raise StreamArchivedError(str(stream))
    return int(version)
