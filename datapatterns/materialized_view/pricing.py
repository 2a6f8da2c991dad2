"""When following what has changed costs more than running the query."""

from typing import Final

from sqlalchemy import Column, Connection, exists, or_, select, table, text

from datapatterns.change_log import Snapshot, Xid8, not_shown_by
from datapatterns.materialized_view.definition import ViewDefinition
from datapatterns.materialized_view.records import ViewRecord
from datapatterns.materialized_view.strategy import Strategy

REBUILD_BEYOND: Final = {Strategy.COUNTING: 0.3, Strategy.GROUPS: 0.1}
"""The share of its tables' rows; with more changes pending, a view is rebuilt.

Measured on tables of some 300,000 rows: adding up that many changes takes as long as adding up the
table, and changes that many spread over so many groups that few are left out.
"""

_ALWAYS_FOLLOWED: Final = 1_000
"""Changes that cost next to nothing either way."""

# Unknown as long as nobody has analysed the tables; partitioned ones have a number of their own.
_ROWS = text("""
SELECT CASE WHEN min(c.reltuples) >= 0 THEN sum(c.reltuples) END
FROM pg_catalog.pg_class c WHERE c.oid = ANY (CAST(:tables AS regclass[])::oid[])
""")


def is_dearer_than_rebuild(
    conn: Connection, view: ViewDefinition, record: ViewRecord, since: Snapshot
) -> bool:
    """Return whether so much is pending that rebuilding the view is cheaper.

    That is a guess by the planner's statistics; without any, changes are followed.
    """
    share = REBUILD_BEYOND.get(record.explanation.strategy)
    if share is None:
        return False
    rows = conn.execute(_ROWS, {"tables": [*record.logs]}).scalar_one()
    if rows is None:
        return False
    followed = max(_ALWAYS_FOLLOWED, int(share * rows))
    more = []
    for name in record.logs.values():
        log = table(name, Column("change_xid", Xid8), schema=view.names.schema)
        pending = select(log.c.change_xid).where(not_shown_by(since, log.c.change_xid))
        more.append(exists(pending.offset(followed)))
    return bool(conn.execute(select(or_(*more))).scalar_one())
