"""What would go wrong with sharded tables is said before it does."""

from collections.abc import Iterator
from uuid import UUID

import pytest
from sqlalchemy import (
    URL,
    BigInteger,
    Column,
    ForeignKey,
    Identity,
    Integer,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.exc import NotSupportedError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from datapatterns.sharding import Broadcast, EntityGroup, Hash, LintFinding, ShardCluster
from tests.fixtures.broadcast_model import broadcast_shop

pytestmark = pytest.mark.postgres

tenants = EntityGroup("tenant", strategy=Hash(buckets=16), key=Uuid)
ALIKE = "CREATE COLLATION alike (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
INDEX = "CREATE INDEX CONCURRENTLY {0}_bucket ON {0} (datapatterns.hash_bucket(family_id, 64))"


class Base(DeclarativeBase):
    pass


class Plan(Base):
    __tablename__ = "plan"
    __shard__ = Broadcast()

    id: Mapped[int] = mapped_column(primary_key=True)
    owner: Mapped[int | None] = mapped_column(ForeignKey("member.id"))


class Member(Base):
    __tablename__ = "member"
    __shard__ = tenants.by("tenant_id")
    __table_args__ = (UniqueConstraint("mail"), UniqueConstraint("tenant_id", "name"))

    tenant_id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True, unique=True)
    mail: Mapped[str] = mapped_column(Text)
    name: Mapped[str] = mapped_column(Text)
    boss: Mapped[int | None] = mapped_column(ForeignKey("member.id"))
    place: Mapped[int | None] = mapped_column(ForeignKey("elsewhere.id"))


Table("elsewhere", Base.metadata, Column("id", Integer, primary_key=True))


def told(findings: list[LintFinding]) -> set[tuple[str, str, str | None]]:
    return {(finding.rule, finding.table, finding.shard) for finding in findings}


@pytest.fixture
def declared(shard_urls: list[URL]) -> Iterator[ShardCluster]:
    with ShardCluster(
        control=shard_urls[0], shards={"s0": shard_urls[0]}, groups=[tenants]
    ) as cluster:
        cluster.create_map()
        yield cluster


def test_what_the_code_declares_is_told_with_advice(declared: ShardCluster) -> None:
    found = declared.lint(declared_only=True)
    problems = sorted(finding.problem for finding in found)

    assert told(found) == {
        ("unique", "member", None), ("foreign-key", "member", None), ("numbers", "member", None),
        ("foreign-key", "plan", None),
    }  # fmt: skip
    assert problems == [
        "(boss) refers to 'member' without its shard key",
        "(place) refers to 'elsewhere', which is not of group 'tenant'",
        "UNIQUE (id) is kept by each shard for itself",
        "UNIQUE (mail) is kept by each shard for itself",
        "a broadcast table refers to 'member', of which no shard has all",
        "id is numbered by each shard for itself, from 1",
    ]
    assert all(finding.advice for finding in found)


def test_an_index_for_buckets_is_missed_until_it_is_there(shard_urls: list[URL]) -> None:
    with broadcast_shop(shard_urls[:2]) as cluster:
        found = cluster.lint()
        assert told(found) == {
            ("bucket-index", table, shard) for table in ("cart", "item") for shard in ("s0", "s1")
        }
        assert {finding.sql for finding in found} == {INDEX.format("cart"), INDEX.format("item")}

        for finding in found:
            with cluster.engines[str(finding.shard)].connect() as plain:
                conn = plain.execution_options(isolation_level="AUTOCOMMIT")
                conn.exec_driver_sql(str(finding.sql))
        assert cluster.lint() == []


@pytest.mark.parametrize(
    ("statement", "rule"),
    [
        ("CREATE UNIQUE INDEX only_here ON cart (cents)", "unique"),
        ("CREATE SEQUENCE n; ALTER TABLE cart ALTER cents SET DEFAULT nextval('n')", "numbers"),
        ("DROP TABLE item", "missing"),
    ],
)
def test_what_a_shard_has_otherwise_is_told(
    shard_urls: list[URL], statement: str, rule: str
) -> None:
    with broadcast_shop(shard_urls[:2]) as cluster:
        before = told(cluster.lint())
        with cluster.engines["s1"].begin() as conn:
            conn.execute(text(statement))

        assert {(rule_, shard) for rule_, _, shard in told(cluster.lint()) - before} == {
            (rule, "s1")
        }


def test_a_collation_by_which_unequal_keys_are_equal_is_told(shard_urls: list[URL]) -> None:
    group = EntityGroup("person", strategy=Hash(buckets=16), key=Text)

    class Local(DeclarativeBase):
        pass

    class Letter(Local):
        __tablename__ = "letter"
        __shard__ = group.by("mail")

        mail: Mapped[str] = mapped_column(Text, primary_key=True)

    with ShardCluster(
        control=shard_urls[0], shards={"s0": shard_urls[0]}, groups=[group]
    ) as cluster:
        cluster.create_map()
        with cluster.engines["s0"].begin() as conn:
            try:
                conn.execute(text(ALIKE))
            except NotSupportedError:
                pytest.skip("this server is built without ICU")
            conn.execute(text("CREATE TABLE letter (mail text COLLATE alike PRIMARY KEY)"))
        assert ("collation", "letter", "s0") in told(cluster.lint())
        assert Letter.__tablename__ == "letter"
