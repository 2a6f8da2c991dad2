"""The SQL that distributes tables by Citus; what servers say; on a real Citus if there is one."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import (
    URL,
    BigInteger,
    Engine,
    ForeignKey,
    ForeignKeyConstraint,
    Text,
    create_engine,
    make_url,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from datapatterns.errors import CitusUnfitError
from datapatterns.migrations import Migrations
from datapatterns.sharding import Broadcast, EntityGroup, Hash, ListMap, Range, ShardCluster
from tests.fixtures.citus_stub import CITUS_TABLES, STUB
from tests.fixtures.commands import Run
from tests.fixtures.empty_database import shown

pytestmark = pytest.mark.postgres

tenants = EntityGroup("tenant", strategy=Hash(buckets=16))


class Base(DeclarativeBase):
    pass


class Line(Base):
    """Comes before its parent by name, and needs quotes."""

    __tablename__ = "a line"
    __shard__ = tenants.by("tenant_id")
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "order_id"], ["order's.tenant_id", "order's.id"]),
    )

    tenant_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    order_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    country: Mapped[str | None] = mapped_column(ForeignKey("country.code"))


class Order(Base):
    __tablename__ = "order's"
    __shard__ = tenants.by("tenant_id")

    tenant_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)


class Country(Base):
    __tablename__ = "country"
    __shard__ = Broadcast()

    code: Mapped[str] = mapped_column(Text, primary_key=True)


@pytest.fixture
def cluster(shard_urls: list[URL]) -> Iterator[ShardCluster]:
    shards = {"s0": shard_urls[0], "s1": shard_urls[1]}
    with ShardCluster(control=shard_urls[0], shards=shards, groups=[tenants]) as cluster:
        cluster.create_map()
        for engine in cluster.engines.values():
            Base.metadata.create_all(engine)
        yield cluster


def called(engine: Engine, ddl: str) -> list[tuple[str, str, str | None]]:
    with engine.begin() as conn:
        conn.exec_driver_sql(STUB, execution_options={"no_parameters": True})
        written = ddl.replace("CREATE EXTENSION IF NOT EXISTS citus;", "")
        conn.exec_driver_sql(written, execution_options={"no_parameters": True})
        rows = conn.execute(text("SELECT what, place, more FROM called ORDER BY number")).all()
    return [(row.what, row.place, row.more) for row in rows]


def test_tables_are_distributed_together_parents_first_and_broadcast_ones_everywhere(
    cluster: ShardCluster, engine: Engine
) -> None:
    Base.metadata.create_all(engine)
    found = called(engine, cluster.citus_ddl(shard_count=32, index_tables={"country": "code"}))

    assert [each for each in found if each[0] != "function"] == [
        ("reference", "datapatterns.this_shard", None),
        ("reference", "datapatterns.bucket", None),
        ("reference", "country", None),
        ("distributed", '"order\'s"', "tenant_id 32none"),
        ("distributed", '"a line"', 'tenant_id "order\'s"'),
        ("distributed", "country", "code 32none"),
    ]
    functions = {place.partition("(")[0] for what, place, _ in found if what == "function"}
    assert functions == {
        f"datapatterns.{name}"
        for name in ("assert_map", "assert_owned", "hash_bucket", "map_digest", "refuse_bucket")
    }


def test_pinned_keys_get_a_shard_for_themselves(cluster: ShardCluster, engine: Engine) -> None:
    Base.metadata.create_all(engine)
    cluster.pin(tenants, 42)

    found = called(engine, cluster.citus_ddl())

    assert ("alone", '"order\'s"', "42 bigint") in found
    assert "isolate_tenant" not in cluster.citus_ddl(with_pins=False)


def test_triggers_that_hang_on_tables_are_found_but_not_those_of_moves(
    cluster: ShardCluster,
) -> None:
    assert cluster.check_citus(shard="s0") == ()
    with cluster.engines["s0"].begin() as conn:
        conn.exec_driver_sql(
            "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
            'CREATE TRIGGER mine BEFORE UPDATE ON "a line" EXECUTE FUNCTION f();'
            "CREATE TRIGGER zz_datapatterns_1_2_x BEFORE UPDATE ON country EXECUTE FUNCTION f()"
        )

    [found] = cluster.check_citus(shard="s0")

    assert "a line: trigger mine hangs on it" in str(found)
    assert cluster.check_citus() == ()


def test_a_coordinator_is_compared_with_what_the_sql_makes(
    cluster: ShardCluster, engine: Engine
) -> None:
    Base.metadata.create_all(engine)
    called(engine, cluster.citus_ddl())
    with engine.begin() as conn:
        conn.exec_driver_sql(CITUS_TABLES, execution_options={"no_parameters": True})

    assert cluster.check_citus(coordinator=engine.url) == ()

    with engine.begin() as conn:
        conn.exec_driver_sql("DELETE FROM called WHERE place = 'country'")
        conn.exec_driver_sql("UPDATE called SET more = 'id x' WHERE place = '\"a line\"'")
    told = [str(each) for each in cluster.check_citus(coordinator=engine.url)]

    assert told == [
        "country: it is no reference table; run what citus_ddl() returns",
        '"a line": it is not distributed by tenant_id; run what citus_ddl() returns',
    ]


def test_no_sql_is_written_for_what_citus_would_refuse(shard_urls: list[URL]) -> None:
    class Other(DeclarativeBase):
        pass

    group = EntityGroup("other", strategy=Hash(buckets=16))

    class Mail(Other):
        __tablename__ = "mail"
        __shard__ = group.by("tenant_id")

        tenant_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
        address: Mapped[str] = mapped_column(unique=True)

    with (
        ShardCluster(
            control=shard_urls[0], shards={"s0": shard_urls[0]}, groups=[group]
        ) as cluster,
        pytest.raises(CitusUnfitError, match="does not include tenant_id") as refused,
    ):
        cluster.citus_ddl()

    assert len(refused.value.problems) == 1


@pytest.mark.parametrize(
    ("strategy", "told"),
    [
        (Range([100]), "-- It is placed by ranges, which Citus has not"),
        (ListMap({1: 0, 2: 1}), "-- SELECT citus_schema_distribute("),
    ],
)
def test_what_citus_does_otherwise_is_said_in_the_sql(
    shard_urls: list[URL], strategy: Range | ListMap, told: str
) -> None:
    class Other(DeclarativeBase):
        pass

    group = EntityGroup("placed", strategy=strategy)

    class Mail(Other):
        __tablename__ = "mail"
        __shard__ = group.by("tenant_id")

        tenant_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)

    with ShardCluster(
        control=shard_urls[0], shards={"s0": shard_urls[0]}, groups=[group]
    ) as cluster:
        written = cluster.citus_ddl(with_pins=False)

    assert told in written


def test_both_are_there_on_the_command_line(
    run: Run, cluster: ShardCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = {shard: shown(engine.url) for shard, engine in cluster.engines.items()}
    (tmp_path / "citus_app.py").write_text(
        "from datapatterns.sharding import ShardCluster\n"
        "from tests.integration.test_growing_out_to_citus import tenants\n"
        f"cluster = ShardCluster(control={shards['s0']!r}, shards={shards!r}, groups=[tenants])\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    at = ("--cluster", "citus_app:cluster")

    checked = run("shards", "check-citus", "--shard", "s0", *at)
    unknown = run("shards", "check-citus", "--shard", "s9", *at)
    printed = run("shards", "citus-ddl", "--index-table", "by_mail", "mail", *at)

    assert (checked.code, unknown.code, printed.code) == (0, 2, 0), printed
    assert "nothing stands in the way" in checked.err
    assert "create_distributed_table('\"by_mail\"', 'mail'" in printed.out


@pytest.mark.skipif("CITUS_URL" not in os.environ, reason="CITUS_URL names no Citus coordinator")
def test_a_real_citus_takes_the_sql_and_one_node_answers_for_a_key(
    cluster: ShardCluster,
) -> None:
    url = make_url(os.environ["CITUS_URL"]).set(drivername="postgresql+psycopg")
    Migrations({"citus": url}).upgrade()
    engine = create_engine(url)
    try:
        Base.metadata.create_all(engine)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
            for line in cluster.citus_ddl().splitlines():
                conn.exec_driver_sql(line, execution_options={"no_parameters": True})
            conn.exec_driver_sql("INSERT INTO datapatterns.bucket VALUES (1, 3, 'owned', 1)")
            conn.exec_driver_sql("INSERT INTO country VALUES ('de')")
            conn.exec_driver_sql('INSERT INTO "order\'s" VALUES (42, 1)')
            conn.exec_driver_sql("INSERT INTO \"a line\" VALUES (42, 1, 'de')")
            asked = (
                'SELECT count(*) FROM "a line" WHERE tenant_id = 42'
                " AND datapatterns.assert_owned(1, ARRAY[3])"
            )
            plan = "\n".join(conn.exec_driver_sql(f"EXPLAIN {asked}").scalars())
            assert conn.exec_driver_sql(asked).scalar() == 1
        assert "Task Count: 1" in plan
        assert cluster.check_citus(coordinator=url) == ()
    finally:
        Base.metadata.drop_all(engine)
        engine.dispose()
