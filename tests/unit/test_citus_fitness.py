"""What Citus would refuse is known from what classes declare, on the first day."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import (
    BigInteger,
    Column,
    Computed,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.dialects.postgresql import ExcludeConstraint

from datapatterns.sharding import EntityGroup, Hash, ListMap, Range
from datapatterns.sharding.citus.fitness import findings_of

shops = EntityGroup("shop", strategy=Hash(buckets=16))
others = EntityGroup("other", strategy=Hash(buckets=16))
KEY = shops.by("shop_id")
OTHER = others.by("shop_id")


def parent(metadata: MetaData) -> Table:
    return Table(
        "parent",
        metadata,
        Column("shop_id", BigInteger, primary_key=True),
        Column("id", BigInteger, primary_key=True),
        Column("also", BigInteger),
    )


def child(metadata: MetaData, *further: Any, key: Any = BigInteger) -> Table:  # noqa: ANN401
    return Table(
        "child",
        metadata,
        Column("shop_id", key, primary_key=True, autoincrement=False),
        Column("id", BigInteger, primary_key=True),
        *further,
    )


def to_parent(*columns: str, **actions: Any) -> ForeignKeyConstraint:  # noqa: ANN401
    return ForeignKeyConstraint(columns, ["parent.shop_id", "parent.id"], **actions)


@pytest.mark.parametrize(
    ("further", "told"),
    [
        ([UniqueConstraint("id", name="u")], "unique constraint u does not include shop_id"),
        ([Index("x", "id", unique=True)], "unique index x does not include shop_id"),
        ([ExcludeConstraint(("id", "="), name="e")], "exclusion constraint e does not include"),
        (
            [ExcludeConstraint(("shop_id", "<>"), ("id", "="), name="e")],
            "exclusion constraint e compares shop_id otherwise than by =",
        ),
        (
            [Column("b", BigInteger), to_parent("id", "b")],
            "foreign key (id, b) to parent does not join shop_id",
        ),
        (
            [to_parent("shop_id", "id", ondelete="SET NULL")],
            "would change the key (ON DELETE SET NULL, ON UPDATE NO ACTION)",
        ),
        ([to_parent("shop_id", "id", onupdate="cascade")], "ON UPDATE CASCADE"),
        ([Column("x", BigInteger, ForeignKey("loose.id"))], "to loose; make that table Broadcast"),
        ([Column("x", BigInteger, ForeignKey("elsewhere.id"))], "to elsewhere, of another group"),
        ([Column("n", Integer, Identity())], "n counts in INTEGER"),
    ],
)
def test_what_citus_refuses_of_a_table_is_named(further: list[Any], told: str) -> None:
    metadata = MetaData()
    first = parent(metadata)
    Table("loose", metadata, Column("id", BigInteger, primary_key=True))
    elsewhere = Table(
        "elsewhere", metadata, Column("id", BigInteger), Column("shop_id", BigInteger)
    )
    one = child(metadata, *further)

    found = findings_of({first: KEY, one: KEY, elsewhere: OTHER}, [])

    assert [each.table for each in found] == ["child"]
    assert told in str(found[0])
    assert found[0].severity == "error"


@pytest.mark.parametrize(
    "further",
    [
        [UniqueConstraint("shop_id", "id")],
        [Index("x", "shop_id", "id", unique=True), Index("y", "id")],
        [to_parent("shop_id", "id", ondelete="CASCADE")],
        [Column("country", Text, ForeignKey("country.code", ondelete="SET NULL"))],
        [ExcludeConstraint(("shop_id", "="), ("id", "<>"))],
        [Column("n", BigInteger, Identity())],
    ],
)
def test_what_citus_takes_is_not_complained_about(further: list[Any]) -> None:
    metadata = MetaData()
    first = parent(metadata)
    country = Table("country", metadata, Column("code", Text, primary_key=True))

    assert findings_of({first: KEY, child(metadata, *further): KEY}, [country]) == ()


def test_keys_that_lie_together_have_one_type_and_are_stored() -> None:
    metadata = MetaData()
    first, one = parent(metadata), child(metadata, key=Integer)
    computed = Table("computed", MetaData(), Column("shop_id", BigInteger, Computed("1")))

    told = [str(each) for each in findings_of({first: KEY, one: KEY, computed: KEY}, [])]

    assert any("shop_id is INTEGER, parent.shop_id is BIGINT" in each for each in told)
    assert any("computed: shop_id is generated" in each for each in told)


def test_a_table_that_is_everywhere_refers_to_such_tables_only() -> None:
    metadata = MetaData()
    first = parent(metadata)
    country = Table(
        "country", metadata, Column("a", BigInteger), Column("b", BigInteger), to_parent("a", "b")
    )

    [found] = findings_of({first: KEY}, [country])

    assert (found.table, found.severity) == ("country", "error")


@pytest.mark.parametrize(
    ("strategy", "told"),
    [
        (lambda: Range([10]), "places by hash only"),
        (lambda: ListMap({1: 0, 2: 1}), "placed by name (list)"),
    ],
)
def test_what_citus_does_otherwise_is_advice(strategy: Callable[[], Any], told: str) -> None:
    group = EntityGroup("placed", strategy=strategy())

    [found] = findings_of({parent(MetaData()): group.by("shop_id")}, [])

    assert (found.table, found.severity) == ("placed", "advice")
    assert told in str(found)
