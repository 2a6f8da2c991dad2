"""Tell where a guard in the WHERE is not enough, so that buckets have to be claimed.

A server may find that there are no rows before it looks at the guard.

A guard is the first condition of a WHERE. Earlier is what stands in the FROM below it: the server
looks at a condition there that names no column, such as EXISTS about rows of a key, and leaves the
rest alone if it is false. So it does with a LIMIT that a subquery says, and with a HAVING.

And rows that are locked, here or below, must not leave while they are.
"""

from typing import Any

from sqlalchemy import ClauseElement, FromClause, Join, Select, Table
from sqlalchemy.sql import visitors
from sqlalchemy.sql.visitors import ExternallyTraversible

from datapatterns.sql.metadata import library_metadata


def locks_rows_below(select: ClauseElement) -> bool:
    """Return whether a SELECT inside of ``select`` is FOR UPDATE or its like."""
    return any(
        isinstance(part, Select) and part is not select and part._for_update_arg is not None  # noqa: SLF001 -- there is no public name
        for part in visitors.iterate(select)
    )


def has_early_conditions(select: Select[Any]) -> bool:
    """Return whether ``select`` may be answered without a look at a guard in its WHERE."""
    clauses = (
        *select._having_criteria,  # noqa: SLF001 -- there are no public names
        select._limit_clause,  # noqa: SLF001
        select._offset_clause,  # noqa: SLF001
        select._fetch_clause,  # noqa: SLF001
    )
    if any(_reads(clause) for clause in clauses if clause is not None):
        return True
    return any(
        _reads(part.onclause) if isinstance(part, Join) else _reads(part, but=part)
        for source in select.get_final_froms()
        for part in visitors.iterate(source)
        if isinstance(part, Join | Select)
    )


def is_of_a_guard(source: FromClause) -> bool:
    """Return whether ``source`` is the table that guards look at, or an alias of it.

    Some eager loads put the statement that they are for into theirs, with its guard.
    """
    table = getattr(source, "element", source)
    return (
        isinstance(table, Table)
        and table.name == "bucket"
        and table.schema is not None
        and table.metadata is library_metadata(table.schema)
    )


def _reads(clause: ExternallyTraversible | None, *, but: object = None) -> bool:
    """Return whether ``clause`` holds a SELECT from tables, other than a guard's."""
    return clause is not None and any(
        isinstance(part, Select)
        and part is not but
        and any(not is_of_a_guard(source) for source in part.get_final_froms())
        for part in visitors.iterate(clause)
    )
