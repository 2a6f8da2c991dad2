"""Which rows of a view are looked at: all, those of a condition, a sample of its groups."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypedDict, Unpack

from psycopg import sql
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    FunctionElement,
    Select,
    TableClause,
    TextClause,
    and_,
    func,
    literal,
    true,
)
from sqlalchemy.sql.elements import ColumnClause, Label
from sqlalchemy.sql.selectable import SelectBase
from sqlalchemy.sql.visitors import iterate, replacement_traverse

from datapatterns.change_log.inspecting import inspect_columns
from datapatterns.materialized_view.algebra import Query
from datapatterns.materialized_view.definition import ViewDefinition
from datapatterns.materialized_view.maintenance import Maintenance
from datapatterns.materialized_view.within import Within

SEEDS: Final = 2**32
_HASHES: Final = 2**32
"""A hash of 64 bits is cut to 32: as fine as a share needs to be."""


class WhichRows(TypedDict, total=False):
    """Which rows of a view are to be verified; all unless it is said.

    Attributes:
        where: A condition on the view's columns, such as ``view.c.week.between(1, 4)``. On
            columns that the query groups by it is as quick as the same condition in the query.
        sample: The share of the groups, as a float up to 1.0; or as an int how many rows, about.
        seed: Which groups a sample has, from 0 to 2**32 - 1; any unless given.
    """

    where: ColumnElement[bool] | None
    sample: float | None
    seed: int | None


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of a view, the same in whatever relation has its columns.

    Attributes:
        columns: All columns of the view.
        key: Those that the query groups by; all for a query that does not group. A group is in a
            sample whatever its other values are, so that it is compared with itself.
        where: A condition on the view's columns.
        sample: The share of the groups, or about how many rows.
        seed: Which groups.
    """

    columns: Sequence[str]
    key: Sequence[str]
    where: ColumnElement[bool] | None = None
    sample: float | None = None
    seed: int = field(default_factory=lambda: random.randrange(SEEDS))  # noqa: S311 -- any will do

    def __post_init__(self) -> None:
        if self.sample is not None and not 0 < self.sample <= 1 and not _is_rows(self.sample):
            raise ValueError(
                f"{self.sample!r} is neither a share up to 1.0 nor a whole number of rows"
            )
        if not 0 <= self.seed < SEEDS:
            raise ValueError(f"{self.seed!r} is no seed; give one from 0 to {SEEDS - 1}")
        for element in iterate(self.where) if self.where is not None else ():
            if isinstance(element, SelectBase):
                raise TypeError("a part of a view is told by its own columns; leave out queries")
            if isinstance(element, ColumnClause) and element.name not in self.columns:
                raise ValueError(
                    f"the view has no column {element.name!r}; it has: {', '.join(self.columns)}"
                )

    def share_of(self, rows: int) -> float:
        """Return which share of the groups is meant, of a view that has so many rows."""
        if self.sample is None:
            return 1.0
        if _is_rows(self.sample):
            return min(1.0, self.sample / rows) if rows else 1.0
        return float(self.sample)

    def condition(self, relation: TableClause, share: float) -> ColumnElement[bool]:
        """Return whether a row of ``relation``, which has the view's columns, is meant."""
        wanted: ColumnElement[bool] = true()
        if self.where is not None:
            wanted = replacement_traverse(
                self.where,
                {},
                lambda element, **_: (
                    relation.c[element.name] if isinstance(element, ColumnClause) else None
                ),
            )
        if share >= 1:
            return wanted
        parts = [relation.c[name] for name in self.key]
        # Equal keys have equal hashes, however they are written. A NULL alone would have the same
        # one for each seed, so the seed is a part of the row, too.
        seed = literal(self.seed, BigInteger)
        hashed = func.hash_record_extended(func.row(seed, *parts), seed, type_=BigInteger)
        below = literal(round(share * _HASHES), BigInteger)
        return and_(wanted, hashed.bitwise_and(literal(_HASHES - 1, BigInteger)) < below)


def part_of(query: Query, columns: Sequence[str], **rows: Unpack[WhichRows]) -> Part:
    """Return the part of a view of ``query`` that was asked for.

    Raises:
        TypeError: There is a query in the condition.
        ValueError: A sample, seed or condition cannot be used.
    """
    given: dict[str, Any] = {name: value for name, value in rows.items() if value is not None}
    return Part(columns, grouped_columns(query, columns), **given)


def part_where(
    conn: Connection, view: ViewDefinition, maintenance: Maintenance, where: ColumnElement[bool]
) -> Within:
    """Return the part of a view that ``where`` is about, as its keys tell it.

    What it says of a key has to hold for all rows of that key, stored and computed ones alike: a
    group that is in the part as it is stored, and not as it should be, would get lost.

    Raises:
        TypeError: There is a query, a function or SQL as text in the condition.
        ValueError: It is about no column of the view, or about one that may not tell.
    """
    grouped = grouped_columns(view.query, view.columns)
    places = {c: n for c, n in maintenance.places().items() if c in grouped}
    Part(view.columns, grouped, where)
    relation = sql.Identifier(view.names.schema, view.names.definition).as_string(None)
    exact = {c.name for c in inspect_columns(conn, relation) if c.equality_is_identity}
    for element in iterate(where):
        if isinstance(element, FunctionElement | TextClause):
            raise TypeError("a part of a view is told by values; compute them before")
        if not isinstance(element, ColumnClause):
            continue
        if element.name not in places:
            raise ValueError(
                f"{element.name!r} may differ within what is computed at once; a part of this view"
                f" is told by: {', '.join(places) or 'nothing'}"
            )
        if element.name not in exact and _merges_equal_rows(view.query):
            raise ValueError(
                f"equal values of {element.name!r} may differ, and one stands for all of them; tell"
                " the part by another column"
            )

    def within(keys: Sequence[ColumnElement[Any]]) -> ColumnElement[bool]:
        return replacement_traverse(
            where,
            {},
            lambda element, **_: (
                keys[places[element.name]] if isinstance(element, ColumnClause) else None
            ),
        )

    return within


def grouped_columns(query: Query, columns: Sequence[str]) -> list[str]:
    """Return those of ``columns`` that ``query`` groups by; all of them if it does not group."""
    groups = query._group_by_clauses if isinstance(query, Select) else ()  # noqa: SLF001 -- there is no public list of them
    found = [
        name
        for name, element in zip(columns, query.selected_columns, strict=True)
        if any(_unlabelled(element).compare(_unlabelled(group)) for group in groups)
    ]
    return found or [*columns]


def _merges_equal_rows(query: Query) -> bool:
    is_plain = isinstance(query, Select) and not query._group_by_clauses and not query._distinct  # noqa: SLF001
    return not is_plain


def _unlabelled(element: Any) -> Any:  # noqa: ANN401 -- any element
    return _unlabelled(element.element) if isinstance(element, Label) else element


def _is_rows(sample: float) -> bool:
    return isinstance(sample, int) and sample >= 1
