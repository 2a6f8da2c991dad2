"""Why a captured table is not captured wholly, in words that say what to do."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from psycopg import sql
from psycopg.errors import InsufficientPrivilege
from sqlalchemy import Connection, func, select, text
from sqlalchemy.exc import ProgrammingError

from datapatterns.change_log.capture_names import capture_names
from datapatterns.change_log.inspecting import inspect_source
from datapatterns.change_log.schema import change_log_tables
from datapatterns.change_log.shapes import capture_shape
from datapatterns.errors import CaptureRefusedError, MissingRightsError

_logger = logging.getLogger(__name__)

_UNTRIGGERED = text("""
SELECT c.oid::regclass::text FROM pg_catalog.pg_class c
WHERE c.oid = ANY (CAST(:relations AS oid[]))
  AND 4 > (SELECT count(*) FROM pg_catalog.pg_trigger t
           WHERE t.tgrelid = c.oid AND t.tgenabled = 'A' AND t.tgfoid = to_regproc(:function))
ORDER BY 1
""")
_SHOWN_MAX = 3


def capture_obstacle(conn: Connection, log_name: str, *, schema: str) -> str | None:
    """Return which changes of a captured table go unlogged and what to do; None if none do."""
    captured = change_log_tables(schema).captured
    row = conn.execute(select(captured).where(captured.c.log_name == log_name)).one_or_none()
    if row is None:
        return f"{log_name} is the log of no captured table; capture it again"
    if conn.scalar(select(capture_shape(log_name, schema=schema))) is not None:
        return None
    name = sql.Identifier(row.table_schema, row.table_name).as_string(None)
    if is_gone(conn, name):
        return f"{name} is gone; forget its consumers, drop its views, then ChangeLog.release() it"
    try:
        source = inspect_source(conn, name, allow_row_security=row.allows_row_security)
    except CaptureRefusedError as refusal:
        return str(refusal)
    function = capture_names(schema, row.table_schema, row.table_name).function.as_string(None)
    relations = [member.oid for member in source.members]
    found = conn.scalars(_UNTRIGGERED, {"relations": relations, "function": function}).all()
    where = ", ".join(found[:_SHOWN_MAX]) + (" and others" if len(found) > _SHOWN_MAX else "")
    return (
        f"triggers of {where or source.full_name} are missing or do not always fire; let the owner"
        " of the table call ChangeLog.recapture()"
    )


def is_gone(conn: Connection, table: str) -> bool:
    """Return whether there is no table of that name, as SQL writes it, any more."""
    return conn.scalar(select(func.to_regclass(table))) is None


@contextmanager
def explaining_rights() -> Iterator[None]:
    """Say what it means that the role may not do what is done here.

    Raises:
        MissingRightsError: It may not.
    """
    try:
        yield
    except ProgrammingError as error:
        if isinstance(error.orig, InsufficientPrivilege):
            raise MissingRightsError(str(error.orig.diag.message_primary)) from error
        raise


def warn_of_obstacles(
    conn: Connection, consumer: str, log_names: Iterable[str], *, schema: str
) -> None:
    """Say in the log why ``consumer`` has to read everything anew each time."""
    for log_name in log_names:
        _logger.warning(
            "consumer %s has to read everything anew each time: %s",
            consumer,
            capture_obstacle(conn, log_name, schema=schema) or "that was put right just now",
            extra={"consumer": consumer, "change_log": log_name},
        )
