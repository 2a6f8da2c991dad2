from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import (
    BigInteger,
    Column,
    MetaData,
    Numeric,
    SmallInteger,
    String,
    Table,
    Text,
    Uuid,
)
from sqlalchemy.dialects.postgresql import CITEXT
from sqlalchemy.dialects.postgresql.psycopg import dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import CHAR, TypeDecorator, TypeEngine

from datapatterns.errors import ShardedTableError, ShardKeyError
from datapatterns.sharding import Composite, Directory, EntityGroup, Hash, ListMap, Modulo, Range
from datapatterns.sharding.routing.placements import Placements
from datapatterns.sharding.strategies import ShardingStrategy

PSYCOPG = dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy leaves it untyped


class Trimmed(TypeDecorator[str]):
    impl = String
    cache_ok = True


@pytest.mark.parametrize(
    ("type_", "in_key", "advice"),
    [
        (Numeric(), True, "bigint keys"),
        (Text(), True, "bigint keys"),
        (BigInteger(), False, "primary key must include"),
    ],
)
def test_a_table_that_cannot_be_sharded_is_refused(
    type_: TypeEngine[Any], *, in_key: bool, advice: str
) -> None:
    group = EntityGroup("tenant")
    table = Table(
        "order",
        MetaData(),
        Column("tenant_id", type_, primary_key=in_key),
        Column("id", BigInteger, primary_key=True),
    )

    with pytest.raises(ShardedTableError, match=advice):
        group.by("tenant_id").checked_columns(table)
    with pytest.raises(ShardedTableError, match="no column 'missing'"):
        group.by("missing").checked_columns(table)


@pytest.mark.parametrize("type_", [CITEXT(), CHAR(5), Trimmed()])
def test_text_that_may_be_equal_with_other_bytes_is_no_key(type_: TypeEngine[Any]) -> None:
    table = Table("order", MetaData(), Column("tenant", type_, primary_key=True))

    with pytest.raises(ShardedTableError, match="plain type"):
        EntityGroup("tenant", key=Text).by("tenant").checked_columns(table)


def test_a_class_inherits_the_key_of_its_base() -> None:
    group = EntityGroup("tenant", key=Uuid)

    class Base(DeclarativeBase):
        pass

    class Owned:
        __shard__ = group.by("tenant_id")

        tenant_id: Mapped[UUID] = mapped_column(primary_key=True)

    class Order(Owned, Base):
        __tablename__ = "order"

        id: Mapped[int] = mapped_column(primary_key=True)

    placements = Placements([group])

    assert placements.shard_key(Base.metadata.tables["order"]) is Owned.__shard__
    assert placements.tables() == {Order.__table__: Owned.__shard__}


def test_a_table_without_a_class_carries_its_key_itself() -> None:
    group = EntityGroup("tenant")
    key = group.by("tenant_id")
    table = Table(
        "order", MetaData(), Column("tenant_id", BigInteger, primary_key=True), info={"shard": key}
    )

    assert Placements([group]).shard_key(table) is key
    with pytest.raises(ShardedTableError, match="pass it in groups"):
        Placements([EntityGroup("other")]).shard_key(table)


@pytest.mark.parametrize(
    ("group", "key"),
    [
        (EntityGroup("tenant"), "7"),
        (EntityGroup("tenant"), True),
        (EntityGroup("tenant"), 7.0),
        (EntityGroup("tenant"), 2**63),
        (EntityGroup("tenant"), None),
        (EntityGroup("tenant", key=Text), 7),
        (EntityGroup("tenant", key=Uuid), "66d27953-277c-4693-84a2-0214fa2df316"),
    ],
)
def test_a_key_of_another_type_is_refused(group: EntityGroup, key: object) -> None:
    with pytest.raises(ShardKeyError):
        group.checked_key(key)


def test_a_group_remembers_what_may_not_change() -> None:
    group = EntityGroup("tenant")

    assert group.fingerprint == EntityGroup("renamed").fingerprint
    assert group.fingerprint != EntityGroup("tenant", strategy=Hash(buckets=2048)).fingerprint
    assert group.fingerprint != EntityGroup("tenant", key=Text).fingerprint


@pytest.mark.parametrize("name", ["", "Tenant", "a b", "x" * 41])
def test_a_group_needs_a_plain_name(name: str) -> None:
    with pytest.raises(ValueError, match="cannot name a group"):
        EntityGroup(name)


@pytest.mark.parametrize(
    "strategy",
    [Range([0, 2**40]), ListMap({5: 0, 2**40: 1}), Modulo(40_000), Directory(Hash(), {2**40: 1})],
)
def test_a_key_that_no_row_can_have_is_compared_all_the_same(strategy: ShardingStrategy) -> None:
    group = EntityGroup("small", strategy)
    key = Table("small", MetaData(), Column("id", SmallInteger, primary_key=True)).c.id

    for clause in (
        group.predicate(key, 1, strategy=group.strategy),
        group.bucket_of(key, strategy=group.strategy),
    ):
        assert "SMALLINT" not in str(clause.compile(dialect=PSYCOPG))


@pytest.mark.parametrize(
    ("strategy", "key", "advice"),
    [
        (Composite(Hash(), Hash()), BigInteger, "pair of types"),
        (Hash(), (Text, BigInteger), "use it, or one column"),
        (Composite(Directory(), Hash()), (Text, BigInteger), "cannot be placed by Directory"),
        (Composite(Hash(), Composite(Hash(), Hash())), (Text, Text), "cannot be placed by"),
        (Composite(ListMap({1: 0}), Hash()), (Text, BigInteger), "let both agree"),
        (Composite(Hash(), Modulo(2)), (Text, Text), "let both agree"),
        (Directory(Composite(Hash(), Hash())), BigInteger, "put all of them into one"),
    ],
)
def test_a_placement_of_two_columns_that_cannot_work_is_refused(
    strategy: ShardingStrategy,
    key: Any,  # noqa: ANN401 -- a type, or two
    advice: str,
) -> None:
    with pytest.raises(ValueError, match=advice):
        EntityGroup("tenant", strategy=strategy, key=key)


def test_a_key_of_two_columns_names_both() -> None:
    group = EntityGroup("tenant", strategy=Composite(Hash(), Hash()), key=(Text, BigInteger))

    for columns in (("region",), ("region", "region"), ("a", "b", "c")):
        with pytest.raises(ValueError, match="a column for each"):
            group.by(*columns)
    assert group.parsed_key("eu", "7") == ("eu", 7)
    assert group.parsed_key('["eu", "7"]') == ("eu", 7)
    for wrong in ("eu", ("eu",), ("eu", "7"), (7, "eu"), ("eu", 7, 7), ("eu", None), ["eu", 7]):
        with pytest.raises(ShardKeyError):
            group.checked_key(wrong)
    with pytest.raises(ShardKeyError, match="a key has 2"):
        group.parsed_key("eu")
