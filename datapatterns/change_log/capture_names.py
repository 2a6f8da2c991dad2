"""What the parts of a captured table are called."""

import hashlib
import re
from dataclasses import dataclass

from psycopg import sql


@dataclass(frozen=True, slots=True)
class CaptureNames:
    """What the parts of one captured table are called.

    Two tables may share a name in different schemas, and PostgreSQL cuts names at 63 bytes; so a
    digest tells them apart.
    """

    schema: str
    suffix: str

    @property
    def log_name(self) -> str:
        """Return the log's name without its schema: of the view that everybody reads."""
        return f"change_log_{self.suffix}"

    @property
    def log(self) -> sql.Identifier:
        """Return the log's name."""
        return sql.Identifier(self.schema, self.log_name)

    @property
    def rows(self) -> sql.Identifier:
        """Return the name of the table with a row for each change."""
        return sql.Identifier(self.schema, rows_name(self.log_name))

    @property
    def batches(self) -> sql.Identifier:
        """Return the name of the table with a row for many changes of one statement."""
        return sql.Identifier(self.schema, batches_name(self.log_name))

    @property
    def function(self) -> sql.Identifier:
        """Return the name of the trigger function."""
        return sql.Identifier(self.schema, f"capture_{self.suffix}")

    @property
    def move_function(self) -> sql.Identifier:
        """Return the name of the function that logs rows which change their partition."""
        return sql.Identifier(self.schema, f"capture_move_{self.suffix}")

    @property
    def move_trigger(self) -> str:
        """Return the name of the trigger that calls it: the last one, as they fire by name."""
        return f"~{self.schema}_capture_move"

    @property
    def guard(self) -> sql.Identifier:
        """Return the name of the view that keeps captured columns from being dropped."""
        return sql.Identifier(self.schema, f"capture_guard_{self.suffix}")

    def trigger(self, event: str) -> str:
        """Return the name of the trigger for ``event``; triggers share no names across tables."""
        return f"{self.schema}_capture_{event.lower()}"


def capture_names(schema: str, table_schema: str, table_name: str) -> CaptureNames:
    """Return the names for what captures the changes of a table.

    >>> capture_names("datapatterns", "public", "Line item").log_name
    'change_log_line_item_b99d74ec'
    """
    readable = re.sub(r"[^a-z0-9_]", "_", table_name.lower())[:38]
    digest = hashlib.sha256(f"{table_schema}\0{table_name}".encode()).hexdigest()[:8]
    return CaptureNames(schema, f"{readable}_{digest}")


def rows_name(log_name: str) -> str:
    """Return what the table with a row for each change is called.

    >>> rows_name("change_log_line_item_b99d74ec")
    'change_rows_line_item_b99d74ec'
    """
    return log_name.replace("change_log_", "change_rows_", 1)


def batches_name(log_name: str) -> str:
    """Return what the table with a row for many changes of one statement is called."""
    return log_name.replace("change_log_", "change_batches_", 1)
