"""When following what has changed costs more than running the query."""

from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from sqlalchemy import BigInteger, Column, Connection, Select, bindparam, exists, or_, select, table

from datapatterns.change_log import Snapshot, Xid8
from datapatterns.change_log.pending import not_shown_by_parameters, snapshot_parameters
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

_LOGGED_TO_A_PAGE: Final = 204
"""Rows of a log, at the most: of 40 bytes, with what points to them."""


def is_dearer_than_rebuild(
    conn: Connection, view: ViewDefinition, record: ViewRecord, since: Snapshot
) -> bool:
    """Return whether so much is pending that rebuilding the view is cheaper.

    That is a guess by the planner's statistics; without any, changes are followed.
    """
    share = REBUILD_BEYOND.get(record.explanation.strategy)
    if share is None or record.rows is None:
        return False
    followed = max(_ALWAYS_FOLLOWED, int(share * record.rows))
    # Logs are short as a rule, and then nobody needs to count.
    return record.log_pages * _LOGGED_TO_A_PAGE > followed and _is_more_pending(
        conn, view.names.schema, record.logs.values(), since, followed
    )


def _is_more_pending(
    conn: Connection, schema: str, log_names: Iterable[str], since: Snapshot, followed: int
) -> bool:
    parameters = snapshot_parameters(since) | {"followed": followed}
    return bool(conn.execute(_beyond(schema, tuple(log_names)), parameters).scalar_one())


# Put together once: that takes longer than the server does.
@lru_cache(maxsize=512)
def _beyond(schema: str, log_names: tuple[str, ...]) -> Select[tuple[bool]]:
    more = []
    for name in log_names:
        log = table(name, Column("change_xid", Xid8), schema=schema)
        pending = select(log.c.change_xid).where(not_shown_by_parameters(log.c.change_xid))
        more.append(exists(pending.offset(bindparam("followed", type_=BigInteger))))
    return select(or_(*more))
