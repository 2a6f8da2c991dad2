"""References over shards as they are declared: what cannot be kept is refused at once."""

from collections.abc import Callable

import pytest
from sqlalchemy import (
    BigInteger,
    Column,
    Computed,
    ForeignKey,
    Index,
    MetaData,
    Numeric,
    String,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)

from datapatterns.errors import ReferenceDefinitionError
from datapatterns.sharding import (
    Broadcast,
    CitusShard,
    EntityGroup,
    Hash,
    ShardCluster,
    ShardForeignKey,
)
from datapatterns.sharding.references.declared import References
from datapatterns.sharding.routing.placements import Placements
from tests.fixtures.referring import REFERENCES, Customer, Order, customers, stores

URL = "postgresql://localhost/nowhere"


def table(name: str, *columns: Column[object], **placed: object) -> Table:
    return Table(name, MetaData(), *columns, info=placed)


def parent(*more: Column[object]) -> Table:
    return table("parent", Column("id", BigInteger, primary_key=True), *more)


def child(column: Column[object]) -> Table:
    return table("child", Column("id", BigInteger, primary_key=True), column)


def test_what_can_be_kept_says_what_it_is() -> None:
    declared = ShardForeignKey(Order.payer, Customer.id, check="audit")

    assert declared.name == "store_order_payer_id"
    assert declared.child_table is Order.__table__
    assert declared.parent_table is Customer.__table__
    assert [each.name for each in References.of(REFERENCES, Placements([customers, stores])).all]


DECLARED: list[tuple[str, Callable[[], object]]] = [
    (
        "2 columns refer to 1",
        lambda: ShardForeignKey((Order.payer, Order.id), Customer.id, check="audit"),
    ),
    (
        "of several tables",
        lambda: ShardForeignKey((Order.payer, Customer.id), (Customer.id, Order.id), check="audit"),
    ),
    (
        "not declared unique",
        lambda: ShardForeignKey(Order.note, Customer.name, check="audit"),
    ),
    (
        "not declared unique",
        lambda: ShardForeignKey(
            child(Column("name", Text)).c.name,
            Table(
                "parent",
                MetaData(),
                Column("id", BigInteger, primary_key=True),
                Column("name", Text),
                Index("some", "name", unique=True, postgresql_where=text("name <> ''")),
            ).c.name,
            check="audit",
        ),
    ),
    (
        "same type",
        lambda: ShardForeignKey(child(Column("of", Text)).c.of, parent().c.id, check="audit"),
    ),
    (
        "same type",
        lambda: ShardForeignKey(
            child(Column("of", String(3))).c.of,
            table("parent", Column("id", String(4), primary_key=True)).c.id,
            check="audit",
        ),
    ),
    (
        "same type",
        lambda: ShardForeignKey(
            child(Column("of", Uuid(as_uuid=False))).c.of,
            table("parent", Column("id", Uuid, primary_key=True)).c.id,
            check="audit",
        ),
    ),
    (
        "equality is not plain",
        lambda: ShardForeignKey(
            child(Column("of", Numeric)).c.of,
            table("parent", Column("id", Numeric, primary_key=True)).c.id,
            check="audit",
        ),
    ),
    (
        "computed by the server",
        lambda: ShardForeignKey(
            child(Column("of", BigInteger, Computed("id + 1"))).c.of,
            parent().c.id,
            check="on_write",
        ),
    ),
    (
        "deletes or changes rows of parent by itself",
        lambda: ShardForeignKey(
            child(Column("of", BigInteger)).c.of,
            parent(Column("above", ForeignKey("parent.id", ondelete="CASCADE"))).c.id,
            check="on_write",
        ),
    ),
    (
        "changes its columns in child by itself",
        lambda: ShardForeignKey(
            child(Column("of", BigInteger, ForeignKey("child.id", onupdate="CASCADE"))).c.of,
            parent().c.id,
            check="on_write",
        ),
    ),
]


@pytest.mark.parametrize(
    ("reason", "declare"), DECLARED, ids=[f"{n} {r}" for n, (r, _) in enumerate(DECLARED)]
)
def test_what_cannot_be_kept_is_refused(reason: str, declare: Callable[[], object]) -> None:
    with pytest.raises(ReferenceDefinitionError, match=reason):
        declare()


def test_there_are_two_times_to_check() -> None:
    with pytest.raises(ValueError, match="on_write"):
        ShardForeignKey(Order.payer, Customer.id, check="sometimes")  # type: ignore[arg-type]


def test_what_is_no_column_is_no_reference() -> None:
    with pytest.raises(TypeError, match="no column"):
        ShardForeignKey("store_order.payer_id", Customer.id, check="audit")  # type: ignore[arg-type]


group = EntityGroup("group", strategy=Hash(buckets=4))


def placed(name: str, *more: Column[object], by: str = "id") -> Table:
    return table(
        name,
        Column("id", BigInteger, primary_key=True),
        *more,
        shard=group.by(by),
    )


def several() -> Table:
    return table(
        "parent",
        Column("tenant", BigInteger, primary_key=True),
        Column("id", BigInteger, primary_key=True),
        Column("code", Text),
        shard=group.by("tenant"),
    )


PLACED: list[tuple[str, Callable[[], ShardForeignKey]]] = [
    (
        "every shard has a copy of parent",
        lambda: ShardForeignKey(
            placed("child", Column("of", BigInteger)).c.of,
            table("parent", Column("id", BigInteger, primary_key=True), shard=Broadcast()).c.id,
            check="audit",
        ),
    ),
    (
        "every shard has a copy of child",
        lambda: ShardForeignKey(
            table(
                "child",
                Column("id", BigInteger, primary_key=True),
                Column("of", BigInteger),
                shard=Broadcast(),
            ).c.of,
            placed("parent").c.id,
            check="audit",
        ),
    ),
    (
        "nothing was declared about where parent lies",
        lambda: ShardForeignKey(
            placed("child", Column("of", BigInteger)).c.of, parent().c.id, check="audit"
        ),
    ),
    (
        r"does not say the shard key of parent \(tenant\)",
        lambda: ShardForeignKey(
            placed("child", Column("of", Text)).c.of,
            _with_unique_code().c.code,
            check="audit",
        ),
    ),
    (
        "both rows lie on one shard",
        lambda: ShardForeignKey(placed("child").c.id, placed("parent").c.id, check="audit"),
    ),
]


def _with_unique_code() -> Table:
    found = several()
    found.append_constraint(UniqueConstraint(found.c.code))
    return found


@pytest.mark.parametrize(("reason", "declare"), PLACED, ids=[reason for reason, _ in PLACED])
def test_what_cannot_be_found_is_refused(
    reason: str, declare: Callable[[], ShardForeignKey]
) -> None:
    with pytest.raises(ReferenceDefinitionError, match=reason):
        References.of([declare()], Placements([group]))


def test_columns_may_be_named_in_any_order() -> None:
    upper = several()
    lower = placed("child", Column("tenant", BigInteger), Column("of", BigInteger))
    declared = ShardForeignKey(
        (lower.c.of, lower.c.tenant), (upper.c.id, upper.c.tenant), check="on_write"
    )

    (found,) = References.of([declared], Placements([group])).all

    assert found.parent_shard_key((7, 42)) == 42
    assert found.child_shard_key((7, 42)) is None


def test_names_tell_references_apart() -> None:
    with pytest.raises(ReferenceDefinitionError, match="two of that name"):
        ShardCluster(
            control=URL, shards={"s0": URL}, groups=[customers, stores], references=REFERENCES * 2
        )


def test_nodes_of_citus_cannot_be_asked() -> None:
    with pytest.raises(ReferenceDefinitionError, match="coordinator of Citus"):
        ShardCluster(
            control=URL,
            shards={"s0": CitusShard(URL)},
            groups=[customers, stores],
            references=REFERENCES,
        )
