"""Find in a query which other views it is built upon."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from sqlalchemy import TableClause
from sqlalchemy.sql.elements import ColumnClause
from sqlalchemy.sql.visitors import ExternallyTraversible, iterate

from datapatterns.materialized_view.view import MaterializedView

Parents: TypeAlias = Mapping[str, tuple[str, ...]]
"""The names of the views that each view is built upon directly, in order."""


def parents_of(views: Iterable[MaterializedView]) -> dict[str, tuple[str, ...]]:
    """Return which of ``views`` each of them reads, whether by ``view.table`` or by its name."""
    known = {(view.schema, view.name): view for view in views}
    return {
        view.name: tuple(
            sorted({known[name].name for name in tables_of(view.definition.query) if name in known})
        )
        for view in known.values()
    }


def tables_of(query: ExternallyTraversible) -> Iterator[tuple[str | None, str]]:
    """Return schema and name of all tables that are read anywhere in ``query``."""
    seen: set[int] = set()
    left: list[Any] = [query]
    while left:
        for element in iterate(left.pop()):
            if isinstance(element, TableClause):
                yield getattr(element, "schema", None), element.name
            # A query is not made of the tables that it takes its columns from.
            source = element.table if isinstance(element, ColumnClause) else None
            if source is not None and id(source) not in seen:
                seen.add(id(source))
                left.append(source)
