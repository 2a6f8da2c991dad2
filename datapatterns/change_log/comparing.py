"""Ask PostgreSQL whether the columns that are captured can be compared all at once."""

from collections.abc import Sequence

from psycopg.errors import FeatureNotSupported, TooManyColumns
from sqlalchemy import Connection
from sqlalchemy.exc import NotSupportedError, OperationalError

from datapatterns.change_log.capture_statements import compare_rows
from datapatterns.change_log.inspecting import SourceColumn, SourceTable
from datapatterns.errors import CaptureRefusedError
from datapatterns.sql.composing import execute

_HASHED_OR_SORTED = (
    "values of some columns can only be hashed, those of others only be sorted, such as xid and"
    " tsvector, so its rows cannot be compared; capture one kind"
)


def require_comparable(
    conn: Connection, source: SourceTable, columns: Sequence[SourceColumn]
) -> None:
    """Refuse columns that are comparable one by one, not together: each UPDATE would fail.

    Raises:
        CaptureRefusedError: They are.
    """
    if not columns:
        return
    try:
        with conn.begin_nested():
            execute(conn, compare_rows(source, columns))
    except (NotSupportedError, OperationalError) as error:
        match error.orig:
            case FeatureNotSupported():
                reason = _HASHED_OR_SORTED
            case TooManyColumns():
                reason = f"{len(columns)} columns are too many to be compared; capture fewer"
            case _:
                raise
        raise CaptureRefusedError(source.full_name, reason) from error
