"""What the database knows of a view."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, select, update
from sqlalchemy.exc import CompileError

from datapatterns.errors import ViewChangedError, ViewDefinitionError, ViewMissingError
from datapatterns.materialized_view.algebra import DIALECT, Query
from datapatterns.materialized_view.names import ViewNames
from datapatterns.materialized_view.schema import materialized_views
from datapatterns.materialized_view.strategy import Explanation, Strategy


@dataclass(frozen=True, slots=True)
class ViewRecord:
    """What was decided when the view was created.

    Attributes:
        explanation: How it is kept, and why.
        sources: The log of each table that it reads, by the table's name in SQL.
        columns: The columns that it reads of each, in the table's order.
        last_duration_seconds: How long the last refresh took.
    """

    explanation: Explanation
    sources: Mapping[str, str]
    columns: Mapping[str, Sequence[str]]
    last_duration_seconds: float | None


def definition_hash(view: str, query: Query) -> str:
    """Return a digest of the query as SQL.

    Raises:
        ViewDefinitionError: A value in it has no form in SQL.
    """
    try:
        compiled = query.compile(dialect=DIALECT, compile_kwargs={"literal_binds": True})
    except CompileError as error:
        raise ViewDefinitionError(
            view, clause=f"a value without a form in SQL ({error})", advice="write it as SQL"
        ) from error
    return hashlib.sha256(str(compiled).encode()).hexdigest()


def find_record(conn: Connection, names: ViewNames, query: Query) -> ViewRecord | None:
    """Return what is known of the view, or None if it was not created.

    Raises:
        ViewChangedError: It was created from another query.
    """
    views = materialized_views(names.schema)
    row = conn.execute(select(views).where(views.c.name == names.view)).one_or_none()
    if row is None:
        return None
    if row.definition_hash != definition_hash(names.view, query):
        raise ViewChangedError(names.view)
    explanation = Explanation(Strategy(row.strategy), row.reason)
    sources = {name: source["log"] for name, source in row.sources.items()}
    columns = {name: source["columns"] for name, source in row.sources.items()}
    return ViewRecord(explanation, sources, columns, row.duration_seconds)


def read_record(conn: Connection, names: ViewNames, query: Query) -> ViewRecord:
    """Return what is known of the view.

    Raises:
        ViewChangedError: It was created from another query.
        ViewMissingError: It was not created.
    """
    record = find_record(conn, names, query)
    if record is None:
        raise ViewMissingError(names.view)
    return record


def record_duration(conn: Connection, names: ViewNames, seconds: float) -> None:
    """Store how long a refresh took."""
    views = materialized_views(names.schema)
    conn.execute(update(views).where(views.c.name == names.view).values(duration_seconds=seconds))
