"""Which queries can be kept by groups, by which keys, and why others cannot."""

from typing import Any, TypeAlias

import pytest
from sqlalchemy import (
    Column,
    DateTime,
    Integer,
    MetaData,
    Select,
    String,
    Table,
    Text,
    case,
    cast,
    distinct,
    exists,
    func,
    lateral,
    literal_column,
    select,
    text,
    union_all,
)
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import DeclarativeBase, Mapped, aliased, mapped_column

from datapatterns.materialized_view.grouping.reading import NotGroupableError, read_group_plan

AnySelect: TypeAlias = Select[*tuple[Any, ...]]

metadata = MetaData()
product = Table(
    "product",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("region", Text),
    Column("code", String(10)),
)
item = Table(
    "item",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("product_id", Integer),
    Column("quantity", Integer),
    Column("at", DateTime),
)
count = func.count()
joined = product.join(item, item.c.product_id == product.c.id)
outer = product.join(item, item.c.product_id == product.c.id, isouter=True)


class Base(DeclarativeBase):
    pass


class Person(Base):
    __tablename__ = "person"

    id: Mapped[int] = mapped_column(primary_key=True)
    city: Mapped[str | None]
    boss_id: Mapped[int | None]


boss = aliased(Person)

KEYS: dict[str, tuple[AnySelect, list[str]]] = {
    "a column that is shown": (
        select(product.c.region, count).group_by(product.c.region),
        ["column_0"],
    ),
    "a column that is not shown": (
        select(count).select_from(joined).group_by(product.c.region),
        ["key_0"],
    ),
    "one of each, and the order of GROUP BY": (
        select(count, item.c.quantity)
        .select_from(joined)
        .group_by(product.c.region, item.c.quantity),
        ["key_0", "column_1"],
    ),
    "an expression, shown under a name": (
        select(func.date_trunc("week", item.c.at).label("week"), count).group_by("week"),
        ["column_0"],
    ),
    "an expression that differs from the one that is shown": (
        select(func.date_trunc("week", item.c.at).label("week"), count).group_by(
            func.date_trunc("week", item.c.at), func.date_trunc("day", item.c.at)
        ),
        ["column_0", "key_1"],
    ),
    "a label as it is": (
        select(lower := func.lower(product.c.region).label("r"), count).group_by(lower),
        ["column_0"],
    ),
    "only what is of one table": (
        select(product.c.region, count)
        .select_from(joined)
        .group_by(product.c.region, func.coalesce(product.c.id, item.c.id)),
        ["column_0"],
    ),
    "only what no row makes fail": (
        select(product.c.region, count)
        .select_from(joined)
        .group_by(product.c.region, 10 / item.c.quantity),
        ["column_0"],
    ),
    "anything of a single table whose rows all count": (
        select(count).select_from(item).group_by(10 / item.c.quantity),
        ["key_0"],
    ),
    "a classification": (
        select(count)
        .select_from(joined)
        .group_by(case((item.c.quantity % 10 > 5, "much"), else_=cast(item.c.product_id, Text))),
        ["key_0"],
    ),
    "the primary key where nothing is grouped": (
        select(product.c.region, product.c.id, func.coalesce(item.c.quantity, 0)).select_from(
            outer
        ),
        ["column_1"],
    ),
    "all columns of a table where no primary key is shown": (
        select(item.c.quantity, product.c.region, product.c.code).select_from(outer).distinct(),
        ["column_1", "column_2"],
    ),
    "a mapped class": (
        select(Person.city, count).where(Person.boss_id.is_not(None)).group_by(Person.city),
        ["column_0"],
    ),
    "a table with itself": (
        select(boss.city, func.max(Person.id))
        .join(Person, Person.boss_id == boss.id, isouter=True)
        .group_by(boss.city),
        ["column_0"],
    ),
    "an order, which rows of a view do not have": (
        select(product.c.region, count).group_by(product.c.region).order_by(product.c.region),
        ["column_0"],
    ),
}


@pytest.mark.parametrize("name", KEYS)
def test_a_query_is_kept_by(name: str) -> None:
    query, keys = KEYS[name]

    assert read_group_plan(query).stored_keys == keys


def test_hidden_keys_are_stored_behind_what_is_shown() -> None:
    plan = read_group_plan(
        select(count, item.c.quantity)
        .select_from(joined)
        .group_by(product.c.region, item.c.quantity)
    )

    assert plan.stored_columns == ["column_0", "column_1", "key_0"]


def test_columns_are_those_that_the_query_names() -> None:
    plan = read_group_plan(
        select(product.c.region, func.max(item.c.quantity))
        .select_from(outer)
        .group_by(product.c.region)
    )

    named = {table.name: [c.name for c in plan.columns_of(table)] for table in plan.tables}
    assert named == {"product": ["id", "region"], "item": ["product_id", "quantity"]}


some = select(item.c.product_id).where(item.c.quantity > 1)
# SQLAlchemy remembers what such a SELECT was joined from, in a form of its own.
chosen_anew = select(product).join(item, item.c.product_id == product.c.id)
chosen_anew = chosen_anew.with_only_columns(product.c.id)
latest = lateral(select(func.max(item.c.at).label("at")).where(item.c.product_id == product.c.id))
many = [product.alias(f"p{number}") for number in range(5)]
chain = many[0]
for link in many[1:]:
    chain = chain.join(link, link.c.id == many[0].c.id, isouter=True)  # type: ignore[assignment]  # a join of joins
by_region = select(product.c.region, count).group_by(product.c.region)

REFUSED: dict[str, tuple[Any, str]] = {
    "several selects": (union_all(by_region, by_region), "combines several SELECTs"),
    "no group": (select(func.max(item.c.quantity)), "neither groups nor shows a column"),
    "HAVING alone": (select(count).select_from(item).having(count > 1), "HAVING without"),
    "a subquery in FROM": (
        select(count).select_from(some.subquery("some")).group_by(text("product_id")),
        "is not a table",
    ),
    "a common table expression": (
        select((rows := some.cte("some")).c.product_id, count).group_by(rows.c.product_id),
        "is not a table",
    ),
    "a lateral subquery": (
        select(product.c.id, latest.c.at).select_from(product.join(latest, text("true"))),
        "is not a table",
    ),
    "EXISTS": (by_region.where(exists().where(item.c.product_id == product.c.id)), "is more than"),
    "a subquery of columns chosen after a join": (
        select(count).select_from(chosen_anew.subquery("some")),
        "is not a table",
    ),
    "IN a subquery of columns chosen after a join": (
        by_region.where(product.c.id.in_(chosen_anew)),
        "is more than",
    ),
    "IN a subquery": (by_region.where(product.c.id.in_(some)), "is more than"),
    "a scalar subquery": (
        select(product.c.region, some.limit(1).scalar_subquery()).group_by(product.c.region),
        "is more than",
    ),
    "a subquery in HAVING": (
        by_region.having(count > some.limit(1).scalar_subquery()),
        "is more than",
    ),
    "a window": (
        select(product.c.id, func.row_number().over(order_by=product.c.region)),
        "is more than",
    ),
    "text": (by_region.where(text("region IN (SELECT region FROM other)")), "is more than"),
    "text as a column": (
        select(product.c.region, literal_column("(SELECT max(id) FROM item)")).group_by(
            product.c.region
        ),
        "is more than",
    ),
    "a key of two tables": (
        select(count).select_from(joined).group_by(product.c.id + item.c.id),
        "names columns of 2 tables",
    ),
    "a key that fails for rows which the query leaves out": (
        select(count).select_from(joined).group_by(10 / item.c.quantity),
        "might fail",
    ),
    "a key that a condition protects": (
        select(count)
        .select_from(item)
        .where(func.own(item.c.quantity) > 1)
        .group_by(10 / item.c.quantity),
        "might fail",
    ),
    "several ways to group": (
        select(count).select_from(product).group_by(func.rollup(product.c.region)),
        "groups in several ways",
    ),
    "groups made one by DISTINCT": (
        select(func.count(distinct(product.c.code))).group_by(product.c.region).distinct(),
        "DISTINCT makes one row",
    ),
    "DISTINCT ON": (
        select(product.c.region, product.c.id).ext(distinct_on(product.c.region)),
        "has clauses beyond",
    ),
    "LIMIT": (by_region.limit(3), "has clauses beyond"),
    "locks": (select(product.c.id).with_for_update(), "has clauses beyond"),
    "keys of many tables that may be left out": (
        select(count).select_from(chain).group_by(*(part.c.code for part in many)),
        "more than 3 tables",
    ),
    "many tables": (
        select(count)
        .select_from(*(product.alias(f"q{number}") for number in range(6)), item)
        .group_by(item.c.quantity),
        "joins more than 6 tables",
    ),
    "nothing to read": (select(literal_column("1")), "reads no table"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_query_is_not_kept_by_groups_with(name: str) -> None:
    query, reason = REFUSED[name]

    with pytest.raises(NotGroupableError, match=reason):
        read_group_plan(query)
