"""Whether shards have the same tables; bringing a new one there; refusing one that is behind."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL, Engine, text

from datapatterns.errors import (
    AlembicEnvironmentError,
    SettingsError,
    ShardBehindError,
    ShardDriftError,
)
from datapatterns.sharding import ShardCluster, ShardSchema
from datapatterns.sharding.migrating.catalogs import read_catalog
from datapatterns.sharding.migrating.drift import drift
from tests.fixtures.empty_database import CreateDatabase
from tests.fixtures.shard_model import households
from tests.fixtures.shop_revisions import (
    IN_PROCESS,
    ShopRevisions,
    cluster_of,
    sql_on,
    tables_on,
)

pytestmark = pytest.mark.postgres

TABLES = """
CREATE TYPE colour AS ENUM ('red', 'green');
CREATE DOMAIN cents AS bigint CHECK (VALUE >= 0);
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TABLE product (id bigint PRIMARY KEY, name text, colour colour, price cents DEFAULT 0);
CREATE INDEX product_name ON product (name);
CREATE TRIGGER touched BEFORE UPDATE ON product FOR EACH ROW EXECUTE FUNCTION touch();
CREATE VIEW cheap AS SELECT id FROM product WHERE price < 100;
CREATE SEQUENCE number;
"""


@pytest.fixture
def shop(tmp_path: Path) -> ShopRevisions:
    shop = ShopRevisions(tmp_path)
    shop.write(TABLES)
    return shop


@pytest.fixture
def urls(shard_urls: list[URL]) -> list[URL]:
    return shard_urls[:3]


@pytest.fixture
def cluster(urls: list[URL], shop: ShopRevisions) -> Iterator[ShardCluster]:
    with cluster_of(urls, shop) as cluster:
        cluster.migrations.upgrade(pace=IN_PROCESS)
        yield cluster


def status_of(cluster: ShardCluster, shard: str) -> ShardSchema:
    [found] = [each for each in cluster.migrations.status() if each.shard == shard]
    return found


def test_shards_that_were_migrated_alike_are_alike(cluster: ShardCluster) -> None:
    found = cluster.migrations.status()

    assert all(each.is_sound for each in found)
    assert len({each.fingerprint for each in found}) == 1
    assert {each.heads for each in found} == {("r1",)}
    assert not any(each.other_orders for each in found)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("ALTER TABLE product ADD more int", "public.product: column more is not on the others"),
        ("ALTER TABLE product DROP name", "public.product: column name is missing"),
        ("ALTER TABLE product ALTER name TYPE varchar(9)", "column name is 'character varying(9)"),
        ("ALTER TABLE product ALTER name SET NOT NULL", "column name is 'text NOT NULL"),
        ("ALTER TABLE product ALTER price SET DEFAULT 1", "column price is 'public.cents DEFAULT"),
        ('ALTER TABLE product ALTER name TYPE text COLLATE "C"', "column name is 'text COLLATE"),
        ("ALTER TABLE product DROP CONSTRAINT product_pkey", "constraint product_pkey is missing"),
        ("ALTER TABLE product ADD CHECK (id > 0)", "constraint product_id_check is not on the"),
        ("DROP INDEX product_name", "public.product: index product_name is missing"),
        ("CREATE INDEX extra ON product (price)", "index extra is not on the others"),
        ("DROP TRIGGER touched ON product", "trigger touched is missing"),
        ("ALTER TABLE product DISABLE TRIGGER touched", "trigger touched is 'CREATE TRIGGER"),
        ("ALTER TYPE colour ADD VALUE 'blue'", "public.colour: labels is"),
        ("ALTER DOMAIN cents SET NOT NULL", "public.cents: definition is"),
        ("ALTER TABLE product REPLICA IDENTITY FULL", "public.product is 'table persistence p"),
        ("ALTER TABLE product ENABLE ROW LEVEL SECURITY", "row security t"),
        ("CREATE OR REPLACE VIEW cheap AS SELECT id FROM product", "public.cheap: definition is"),
        ("ALTER SEQUENCE number CACHE 9", "public.number: definition is"),
        ("CREATE TABLE other ()", "public.other is not on the others"),
        ("DROP VIEW cheap", "public.cheap is missing"),
        ("CREATE RULE quiet AS ON DELETE TO product DO INSTEAD NOTHING", "rule quiet is not on"),
        ("CREATE POLICY mine ON product USING (id > 0)", "policy mine is not on the others"),
        (
            "CREATE OR REPLACE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN END'",
            "public.touch: routine is",
        ),
    ],
)
def test_what_differs_is_named(module_engine: Engine, change: str, told: str) -> None:
    with module_engine.connect() as conn:
        conn.exec_driver_sql(TABLES)
        expected = read_catalog(conn)
        conn.exec_driver_sql(f"SET search_path = public; {change}")
        found = read_catalog(conn)
        conn.rollback()

    differences = drift(expected, found)

    assert found.fingerprint != expected.fingerprint
    assert any(told in str(each) for each in differences), [*map(str, differences)]


def test_the_shard_that_differs_is_the_one_that_most_do_not_agree_with(
    cluster: ShardCluster, urls: list[URL]
) -> None:
    sql_on(urls[0], "ALTER TABLE product DROP name")

    found = {each.shard: each for each in cluster.migrations.status()}

    assert {shard: each.state for shard, each in found.items()} == {
        "s0": "differs",
        "s1": "alike",
        "s2": "alike",
    }
    assert [*map(str, found["s0"].differences)] == [
        "public.product: column name is missing",
        "public.product: index product_name is missing",
    ]


@pytest.mark.parametrize(
    "change",
    [
        "CREATE TRIGGER zz_datapatterns_1_7_x BEFORE UPDATE ON product EXECUTE FUNCTION touch()",
        "INSERT INTO product VALUES (1, 'tea', 'red', 5)",
        "SELECT nextval('number')",
        "GRANT SELECT ON product TO PUBLIC",
    ],
)
def test_what_moves_leave_and_what_rows_there_are_makes_no_difference(
    module_engine: Engine, change: str
) -> None:
    with module_engine.connect() as conn:
        conn.exec_driver_sql(TABLES)
        expected = read_catalog(conn)
        conn.exec_driver_sql(f"SET search_path = public; {change}")
        found = read_catalog(conn)
        conn.rollback()

    assert found.fingerprint == expected.fingerprint
    assert drift(expected, found) == ()


def test_another_order_of_columns_is_told_and_no_difference(
    cluster: ShardCluster, urls: list[URL]
) -> None:
    sql_on(
        urls[1],
        "ALTER TABLE product DROP name; ALTER TABLE product ADD name text",
        "CREATE INDEX product_name ON product (name)",
    )

    found = status_of(cluster, "s1")

    assert found.is_sound
    assert found.other_orders == ("public.product",)


def test_an_index_that_was_left_half_built_shows(cluster: ShardCluster, urls: list[URL]) -> None:
    sql_on(urls[1], "INSERT INTO product VALUES (1, 'tea'), (2, 'tea')")
    with pytest.raises(Exception, match="could not create unique index"):
        sql_on(urls[1], "CREATE UNIQUE INDEX CONCURRENTLY half ON product (name)")

    found = status_of(cluster, "s1")

    assert found.invalid_indexes == ("public.half",)
    assert not found.is_sound


def test_a_shard_that_is_away_is_named_and_the_others_are_compared(
    urls: list[URL], shop: ShopRevisions
) -> None:
    away = urls[2].set(host="127.0.0.1", port=1, query={})
    with cluster_of([*urls[:2], away], shop) as cluster:
        found = [each.state for each in cluster.migrations.status()]

    assert found == ["alike", "alike", "unavailable"]


# A new shard --------------------------------------------------------------------------------


def test_a_new_shard_gets_the_tables_of_the_others_from_nothing(
    cluster: ShardCluster, shop: ShopRevisions, new_empty_url: CreateDatabase
) -> None:
    shop.write("ALTER TABLE product ADD later int")  # the others do not have it yet
    url = new_empty_url()

    found = cluster.migrations.bootstrap("s3", url, pace=IN_PROCESS)

    assert found.heads == ("r1",)
    assert found.fingerprint == status_of(cluster, "s0").fingerprint
    assert found.library == status_of(cluster, "s0").library is not None
    assert cluster.migrations.bootstrap("s3", url, pace=IN_PROCESS) == found


def test_a_new_shard_that_comes_out_otherwise_is_refused(
    cluster: ShardCluster, new_empty_url: CreateDatabase
) -> None:
    url = new_empty_url()
    sql_on(url, "CREATE TABLE old_stuff ()")

    with pytest.raises(ShardDriftError, match="old_stuff is not on the others") as refused:
        cluster.migrations.bootstrap("s3", url, pace=IN_PROCESS)

    assert refused.value.shard == "s3"


def test_nothing_is_brought_to_where_the_others_disagree(
    cluster: ShardCluster, urls: list[URL], new_empty_url: CreateDatabase
) -> None:
    sql_on(urls[1], "DROP INDEX product_name")
    url = new_empty_url()

    with pytest.raises(ShardDriftError, match="index product_name is missing"):
        cluster.migrations.bootstrap("s3", url, pace=IN_PROCESS)

    assert tables_on(url, "datapatterns") == set()


def test_a_shard_without_an_address_is_no_shard(cluster: ShardCluster) -> None:
    with pytest.raises(SettingsError, match="s9"):
        cluster.migrations.bootstrap("s9")


# Code that needs newer tables ---------------------------------------------------------------


@pytest.fixture
def mapped(cluster: ShardCluster) -> ShardCluster:
    cluster.create_map()
    return cluster


def ask(cluster: ShardCluster) -> int:
    with cluster.connect(households, household_id=1) as conn:
        return int(conn.scalar(text("SELECT 7")) or 0)


def test_code_that_needs_a_revision_refuses_a_shard_below_it_until_it_is_there(
    mapped: ShardCluster, urls: list[URL], shop: ShopRevisions
) -> None:
    assert ask(mapped) == 7
    shop.write("ALTER TABLE product ADD later int")
    with cluster_of(urls, shop, min_revision="r2") as newer:
        with pytest.raises(ShardBehindError) as refused:
            ask(newer)
        newer.migrations.upgrade(pace=IN_PROCESS)

        assert refused.value.found == ("r1",)
        assert refused.value.needed == "r2"
        assert ask(newer) == 7


def test_a_shard_that_newer_code_has_migrated_is_good_enough(
    mapped: ShardCluster, urls: list[URL], shop: ShopRevisions
) -> None:
    assert ask(mapped) == 7
    for url in urls:
        sql_on(url, "UPDATE alembic_version SET version_num = 'from_the_future'")

    with cluster_of(urls, shop, min_revision="r1") as older:
        assert ask(older) == 7
        with pytest.raises(AlembicEnvironmentError, match="from_the_future is unknown here"):
            older.migrations.plan()


def test_a_revision_that_there_is_not_is_refused(
    mapped: ShardCluster, urls: list[URL], shop: ShopRevisions
) -> None:
    assert ask(mapped) == 7
    with (
        cluster_of(urls, shop, min_revision="r9") as cluster,
        pytest.raises(AlembicEnvironmentError, match="'r9' is none"),
    ):
        ask(cluster)
