"""The relations of a view, for statements to name."""

from collections.abc import Sequence

from sqlalchemy import TableClause, column, table

from datapatterns.materialized_view.names import ViewNames


def definition_of(names: ViewNames, columns: Sequence[str]) -> TableClause:
    """Return the plain view that runs the query, which shows ``columns``."""
    return table(names.definition, *map(column, columns), schema=names.schema)


def stored_of(names: ViewNames, columns: Sequence[str]) -> TableClause:
    """Return the table of what is stored, which has ``columns``."""
    return table(names.stored, *map(column, columns), schema=names.schema)
