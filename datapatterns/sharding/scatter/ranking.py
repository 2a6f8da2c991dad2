"""Let PostgreSQL say in which order values come that only it can compare: text, labels of enums."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Connection,
    Enum,
    Integer,
    Text,
    cast,
    column,
    func,
    literal,
    null,
    select,
    union_all,
)
from sqlalchemy.types import TypeEngine

from datapatterns.sharding.scatter.ordering import Ranks
from datapatterns.sharding.scatter.selected import AnySelect
from datapatterns.sharding.scatter.value_types import TEXTS


@dataclass(frozen=True, slots=True)
class RankedColumn:
    """A column of merged rows that PostgreSQL puts in order.

    Attributes:
        position: Where it stands in the rows.
        sample: A statement without rows that says of what type and collation it is.
        type: What SQLAlchemy takes it for.
    """

    position: int
    sample: AnySelect
    type: TypeEngine[Any]


def can_be_ranked(expression: ColumnElement[Any]) -> bool:
    """Return whether PostgreSQL can be given such values back to put them in order."""
    return type(expression.type) in TEXTS or type(expression.type) is Enum


def ranked_column(
    statement: AnySelect, expression: ColumnElement[Any], position: int
) -> RankedColumn:
    """Return how to put in order what ``expression`` amounts to in the rows of ``statement``."""
    sample = statement.with_only_columns(
        expression.label("value"), cast(null(), Integer).label("place"), maintain_column_froms=True
    )
    sample = sample.order_by(None).group_by(None).limit(None).offset(None)
    sample._where_criteria = (literal(False),)  # noqa: SLF001 -- there is no public name
    sample._having_criteria = ()  # noqa: SLF001 -- nor for this
    sample._distinct = False  # noqa: SLF001 -- nor for this
    sample._distinct_on = ()  # noqa: SLF001 -- nor for this
    sample._pre_columns_clause = None  # noqa: SLF001 -- nor for this
    sample._with_options = ()  # noqa: SLF001 -- they are about entities, which it does not select
    return RankedColumn(position, sample, expression.type)


def ranks_of(
    columns: Sequence[RankedColumn], rows: Sequence[Sequence[Any]], conn: Connection
) -> Ranks:
    """Return the places of the values in some columns of ``rows``.

    Costs one round trip for each column, in which all its values travel once.
    """
    return {each.position: _ranks(each, rows, conn) for each in columns}


def _ranks(ranked: RankedColumn, rows: Sequence[Sequence[Any]], conn: Connection) -> dict[Any, int]:
    values = [*{row[ranked.position] for row in rows} - {None}]
    if len(values) < 2:  # noqa: PLR2004 -- one needs no order
        return dict.fromkeys(values, 0)
    type_ = ranked.type if isinstance(ranked.type, Enum) else Text()
    given = func.unnest(cast(values, ARRAY(type_))).table_valued(
        column("value", type_), with_ordinality="place"
    )
    given = given.render_derived()
    # The sample's rows, of which there are none, give the values their collation.
    all_of_them = union_all(ranked.sample, select(given.c.value, given.c.place)).subquery()
    rank = func.dense_rank().over(order_by=all_of_them.c.value)
    found = conn.execute(select(all_of_them.c.place, rank).select_from(all_of_them))
    return {values[place - 1]: rank for place, rank in found}
