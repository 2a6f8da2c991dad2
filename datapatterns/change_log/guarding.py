"""The view that keeps captured columns from being dropped."""

from collections.abc import Sequence

from sqlalchemy import Connection, text

from datapatterns.change_log import capture_statements as statements
from datapatterns.change_log.capture_names import CaptureNames
from datapatterns.change_log.inspecting import SourceColumn, SourceTable
from datapatterns.sql.composing import execute

_OTHER_OWNER = text("""
SELECT pg_get_userbyid(relowner) FROM pg_catalog.pg_class
WHERE oid = to_regclass(:log) AND pg_get_userbyid(relowner) <> current_user
  AND current_setting('is_superuser')::boolean
""")


def guard(
    conn: Connection, names: CaptureNames, source: SourceTable, columns: Sequence[SourceColumn]
) -> None:
    """Let nobody drop ``columns`` or change their types, and no others."""
    execute(conn, statements.replace_guard(names, source, columns))
    # It is the one part that is made anew; after a superuser's visit the owner has to go on.
    owner = conn.scalar(_OTHER_OWNER, {"log": names.log.as_string(None)})
    if owner is not None:
        execute(conn, statements.give_guard(names, owner))
