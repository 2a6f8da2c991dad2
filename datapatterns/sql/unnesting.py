"""Send many rows as one parameter for each column: one statement, however many they are."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import ARRAY, TableValuedAlias, bindparam, column, func
from sqlalchemy.types import TypeEngine


def unnested(
    name: str, columns: Mapping[str, TypeEngine[Any]], *, place: str | None = None
) -> TableValuedAlias:
    """Return a table of the rows that lists of the same length make.

    Args:
        name: What it is called. The parameter of a column is ``<name>_<column>``, a list.
        columns: Its columns and their types.
        place: A column more, for the place of a row, from 1.
    """
    lists = [bindparam(f"{name}_{each}", type_=ARRAY(type_)) for each, type_ in columns.items()]
    parts = [column(each, type_) for each, type_ in columns.items()]
    more = {"with_ordinality": place} if place else {}
    return func.unnest(*lists).table_valued(*parts, name=name, **more).render_derived()
