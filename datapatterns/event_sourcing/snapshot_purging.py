"""Delete the snapshots of releases that nobody runs any more."""

from collections.abc import Sequence

from sqlalchemy import Connection, delete, select, tuple_

from datapatterns.event_sourcing.event_types import EventTypes
from datapatterns.event_sourcing.schema import event_tables
from datapatterns.event_sourcing.snapshotting import snapshot_kind
from datapatterns.event_sourcing.subjects import Subject, subject_name


def purge_snapshots(
    conn: Connection, subjects: Sequence[Subject], *, schema: str, types: EventTypes, limit: int
) -> int:
    """Do what `EventStore.purge_snapshots` promises."""
    if limit < 1:
        raise ValueError(f"deleting {limit} snapshots does nothing; allow at least 1")
    kinds = [kind for subject in subjects if (kind := snapshot_kind(subject, types)) is not None]
    snapshots = event_tables(schema).snapshots
    key = tuple_(*snapshots.primary_key.columns)
    unused = (
        select(*snapshots.primary_key.columns)
        .where(
            snapshots.c.aggregate.in_([subject_name(subject) for subject in subjects]),
            tuple_(snapshots.c.aggregate, snapshots.c.fingerprint).not_in(
                [(kind.aggregate, kind.fingerprint) for kind in kinds]
            ),
        )
        .limit(limit)
    )
    return conn.execute(delete(snapshots).where(key.in_(unused))).rowcount
