"""Look at views beside those who replace and drop them."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Final, TypeVar

from psycopg.errors import UndefinedColumn, UndefinedTable
from sqlalchemy import Connection, func, select
from sqlalchemy.exc import ProgrammingError

from datapatterns.change_log.locking import commits_each
from datapatterns.errors import SnapshotOutdatedError, ViewChangedError
from datapatterns.materialized_view.names import ViewNames

Seen = TypeVar("Seen")

_LOOKS: Final = 3


def look(conn: Connection, names: ViewNames, seeing: Callable[[], Seen]) -> Seen:
    """Return what ``seeing`` does; it is done again where a part of the view went meanwhile.

    It reads first of all what the view consists of, and so finds another version, or no view.

    Args:
        conn: A connection in a transaction.
        names: The view's.
        seeing: What looks; it writes nothing.

    Raises:
        SnapshotOutdatedError: The transaction's snapshot shows a view that is gone.
        ViewChangedError: A part is missing for good, as after DROP ... CASCADE.
    """
    for again in reversed(range(_LOOKS)):
        try:
            with nullcontext() if commits_each(conn) else conn.begin_nested():
                return seeing()
        except ProgrammingError as error:
            if not isinstance(error.orig, UndefinedColumn | UndefinedTable):
                raise
            if again:
                continue
            level = conn.scalar(select(func.current_setting("transaction_isolation")))
            if level != "read committed":
                raise SnapshotOutdatedError(f"view {names.view}") from error
            raise ViewChangedError(names.view) from error
    raise AssertionError("the last look returns or raises")
