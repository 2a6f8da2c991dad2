from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from uuid import UUID

import pytest
from sqlalchemy import (
    URL,
    Column,
    Engine,
    MetaData,
    Table,
    Text,
    Uuid,
    create_engine,
    func,
    insert,
    make_url,
    select,
    text,
)
from sqlalchemy.exc import IntegrityError

from datapatterns.errors import (
    GroupMismatchError,
    MigrationNeededError,
    SettingsError,
    ShardKeyError,
    ShardMapCorruptError,
    ShardMapExistsError,
    ShardMapMissingError,
    ShardUnavailableError,
    StaleShardMapError,
    WrongShardError,
)
from datapatterns.sharding import EntityGroup, Hash, Key, Range, ShardCluster
from datapatterns.sql.migrating import upgrade
from datapatterns.testing import Databases
from tests.fixtures.shard_model import Basket, create_tables, households, named, sharded_shop

pytestmark = pytest.mark.postgres


@pytest.fixture
def cluster(shard_urls: list[URL]) -> Iterator[ShardCluster]:
    with sharded_shop(shard_urls) as cluster:
        yield cluster


def shop(urls: Sequence[URL], group: EntityGroup = households) -> ShardCluster:
    return ShardCluster(control=urls[0], shards=named(urls), groups=[group])


def run(url: URL, *statements: str, **values: object) -> None:
    engine = create_engine(url)
    with engine.begin() as conn:
        for statement in statements:
            conn.execute(text(statement), values)
    engine.dispose()


def key_on(cluster: ShardCluster, shard: str) -> int:
    shard_map = cluster.router.map_of(households)
    return next(key for key in range(1000) if shard_map.shard_of(key) == shard)


# The map ---------------------------------------------------------------------------------------


def test_buckets_are_spread_evenly(cluster: ShardCluster) -> None:
    assert [shard.tables[0].buckets for shard in cluster.stats()] == [16, 16, 16, 16]


def test_creating_the_map_again_changes_nothing(
    cluster: ShardCluster, shard_urls: list[URL]
) -> None:
    with cluster.session() as session, session.begin():
        session.add(Basket(household_id=7, id=1))

    with shop(shard_urls) as again:
        again.create_map()
        assert again.router.map_of(households) == cluster.router.map_of(households)

    with cluster.session() as session:
        assert session.get(Basket, (7, 1)) is not None


def test_creating_the_map_goes_on_after_a_crash_between_two_shards(shard_urls: list[URL]) -> None:
    # As if it had died after two of the four shards.
    for url in shard_urls:
        create_tables(url)
    with shop(shard_urls) as first:
        first.create_map()
    run(shard_urls[0], "UPDATE datapatterns.shard_group SET epoch = 0")
    for url in shard_urls[2:]:
        run(url, "DELETE FROM datapatterns.bucket", "DELETE FROM datapatterns.this_shard")

    with shop(shard_urls) as second:
        with pytest.raises(ShardMapMissingError):
            _ = second.router
        second.create_map()
        assert [shard.shard for shard in second.stats()] == ["s0", "s1", "s2", "s3"]


@pytest.mark.usefixtures("cluster")
def test_a_shard_that_lost_its_data_is_not_made_one_again(shard_urls: list[URL]) -> None:
    run(shard_urls[2], "DELETE FROM datapatterns.bucket", "DELETE FROM datapatterns.this_shard")

    with shop(shard_urls) as again, pytest.raises(WrongShardError, match="has not been made"):
        again.create_map()


def test_rows_that_no_map_has_placed_are_refused(shard_urls: list[URL]) -> None:
    for url in shard_urls:
        create_tables(url)
    run(shard_urls[3], "INSERT INTO basket (household_id, id) VALUES (1, 1)")

    with shop(shard_urls) as cluster, pytest.raises(ShardMapExistsError, match="basket"):
        cluster.create_map()


@pytest.mark.usefixtures("cluster")
def test_a_map_of_other_shards_is_refused(shard_urls: list[URL]) -> None:
    with shop(shard_urls[:3]) as fewer, pytest.raises(ShardMapExistsError, match="s3"):
        fewer.create_map()
    with shop(shard_urls[:3]) as fewer, pytest.raises(SettingsError, match="s3"):
        _ = fewer.router


def test_two_names_for_one_server_are_refused(shard_urls: list[URL]) -> None:
    twice = [shard_urls[0], shard_urls[1], shard_urls[1]]

    with shop(twice) as cluster, pytest.raises(WrongShardError, match="s1"):
        cluster.create_map()


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    "group",
    [
        EntityGroup("household", strategy=Hash(buckets=128)),
        EntityGroup("household", strategy=Hash(buckets=64), key=Text),
        EntityGroup("household", strategy=Range([7])),
    ],
)
def test_a_group_that_is_declared_otherwise_is_refused(
    shard_urls: list[URL], group: EntityGroup
) -> None:
    with shop(shard_urls, group) as other, pytest.raises(GroupMismatchError, match="placed by"):
        _ = other.router


@pytest.mark.usefixtures("cluster")
def test_a_map_with_a_hole_is_refused(shard_urls: list[URL]) -> None:
    run(shard_urls[0], "DELETE FROM datapatterns.bucket_map WHERE bucket = 5")

    with shop(shard_urls) as other, pytest.raises(ShardMapCorruptError, match="63 of 64"):
        _ = other.router


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO datapatterns.shard VALUES ('Bad:name')",
        "INSERT INTO datapatterns.bucket_map VALUES (7, 0, 's1')",
        "INSERT INTO datapatterns.bucket_map VALUES (7, -1, 's1')",
        "INSERT INTO datapatterns.bucket_map VALUES (7, 1, 'unknown')",
        "INSERT INTO datapatterns.bucket_map VALUES (8, 1, 's1')",
        "UPDATE datapatterns.shard_group SET buckets = 3",
        "UPDATE datapatterns.shard_group SET strategy = 'guess'",
        "UPDATE datapatterns.shard_group SET hash_function = NULL",
        "UPDATE datapatterns.shard_group SET key_type = 'json'",
        "INSERT INTO datapatterns.this_shard VALUES (true, 's2')",
        "INSERT INTO datapatterns.this_shard VALUES (false, 's1')",
        "UPDATE datapatterns.bucket SET state = 'mine'",
        "UPDATE datapatterns.bucket SET bucket = -1",
        "INSERT INTO datapatterns.bucket VALUES (7, 0, 'moved', 2)",
    ],
)
def test_the_tables_keep_their_invariants(module_engine: Engine, statement: str) -> None:
    with module_engine.connect() as conn:
        for valid in (
            "INSERT INTO datapatterns.shard VALUES ('s1')",
            """INSERT INTO datapatterns.shard_group OVERRIDING SYSTEM VALUE
            VALUES (7, 'household', 'hash', 'bigint', 64, 'postgresql', 'f')""",
            "INSERT INTO datapatterns.bucket_map VALUES (7, 0, 's1')",
            "INSERT INTO datapatterns.this_shard VALUES (true, 's1')",
            "INSERT INTO datapatterns.bucket VALUES (7, 0, 'owned', 1)",
        ):
            conn.execute(text(valid))

        with pytest.raises(IntegrityError):
            conn.execute(text(statement))


def test_it_works_in_a_schema_of_another_name(shard_urls: list[URL]) -> None:
    for url in shard_urls:
        engine = create_engine(url)
        with engine.begin() as conn:
            conn.execute(text("DROP SCHEMA datapatterns CASCADE"))
            upgrade(conn, schema="elsewhere")
        engine.dispose()

    with sharded_shop(shard_urls, schema="elsewhere") as cluster:
        with cluster.session() as session, session.begin():
            session.add_all([Basket(household_id=7, id=number, cents=5) for number in range(3)])
        with cluster.on(households, household_id=7) as pinned, pinned.begin():
            pinned.add(Basket(household_id=7, id=3, cents=5))
        with cluster.session(scatter=True) as session:
            assert session.scalar(select(func.avg(Basket.cents))) == 5
            assert session.scalar(select(func.count()).where(Basket.household_id == 7)) == 4
        with cluster.begin_bulk(households, "s0") as conn:
            assert conn.scalar(select(func.count()).select_from(Basket)) in (0, 4)
        assert sum(shard.tables[0].rows for shard in cluster.stats()) == 4


def test_servers_without_the_tables_are_named(shard_urls: list[URL]) -> None:
    run(shard_urls[2], "DROP SCHEMA datapatterns CASCADE")
    with shop(shard_urls) as cluster, pytest.raises(MigrationNeededError, match="migrate upgrade"):
        cluster.create_map()

    run(shard_urls[0], "DROP SCHEMA datapatterns CASCADE")
    with shop(shard_urls) as cluster, pytest.raises(MigrationNeededError, match="migrate upgrade"):
        cluster.create_map()


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("key", "values"),
    [
        (Text, ["", "a", "Ä", "😀", *map(str, range(20))]),
        (Uuid, [UUID(int=number**20) for number in range(20)]),
    ],
)
def test_another_group_may_come_later_with_keys_of_another_type(
    shard_urls: list[URL], key: type[Text | Uuid[UUID]], values: list[Key]
) -> None:
    tenants = EntityGroup("tenant", strategy=Hash(buckets=16), key=key)
    table = Table(
        "tenant_row",
        MetaData(),
        Column("tenant", key(), primary_key=True),
        info={"shard": tenants.by("tenant")},
    )
    with ShardCluster(
        control=shard_urls[0], shards=named(shard_urls), groups=[households, tenants]
    ) as cluster:
        cluster.create_map()
        for engine in cluster.engines.values():
            table.create(engine)
        for value in values:
            with cluster.session() as session, session.begin():
                session.execute(insert(table).values(tenant=value))

        with cluster.session() as session:
            for value in values:
                assert session.scalar(select(table).where(table.c.tenant == value)) == value
            everywhere = select(func.count()).select_from(table).execution_options(scatter=True)
            assert session.scalar(everywhere) == len(values)
        used = [engine for engine in cluster.engines.values() if _holds_rows(engine, table)]
        assert len(used) == len(shard_urls)


def _holds_rows(engine: Engine, table: Table) -> bool:
    with engine.connect() as conn:
        return bool(conn.scalar(select(func.count()).select_from(table)))


# Servers ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("cluster")
def test_swapped_connection_strings_are_refused(shard_urls: list[URL]) -> None:
    with shop([shard_urls[0], shard_urls[2], shard_urls[1], shard_urls[3]]) as swapped:
        session = swapped.on(households, household_id=key_on(swapped, "s1"))
        with pytest.raises(WrongShardError, match="'s2'"):
            session.execute(text("SELECT 1"))


def test_all_shards_speak_alike_whatever_their_settings_are(
    cluster: ShardCluster, shard_urls: list[URL]
) -> None:
    cluster.engines["s2"].dispose()
    run(shard_urls[2], f"ALTER DATABASE {shard_urls[2].database} SET TimeZone = 'Asia/Tokyo'")

    zones = set()
    for engine in cluster.engines.values():
        with engine.connect() as conn:
            conn.rollback()
            zones.add(conn.scalar(text("SHOW TimeZone")))

    assert zones == {"UTC"}


def test_routing_goes_on_while_the_control_database_is_away(
    shard_urls: list[URL], databases: Databases
) -> None:
    control = databases.new()
    for url in shard_urls:
        create_tables(url)
    with ShardCluster(
        control=control, shards=named(shard_urls), groups=[households], poll_seconds=0
    ) as cluster:
        cluster.create_map()
        assert cluster.router.map_of(households).epoch == 1

        databases.drop(control)

        with cluster.session() as session, session.begin():
            session.add(Basket(household_id=7, id=1))
        with cluster.session() as session:
            assert session.get(Basket, (7, 1)) is not None


@pytest.mark.usefixtures("cluster")
def test_a_shard_that_is_away_is_named(shard_urls: list[URL]) -> None:
    urls = named(shard_urls) | {"s3": make_url("postgresql://127.0.0.1:1/nobody")}
    with (
        ShardCluster(control=shard_urls[0], shards=urls, groups=[households]) as other,
        other.session(scatter=True) as session,
    ):
        with pytest.raises(ShardUnavailableError, match="'s3'"):
            session.scalar(select(func.count()).select_from(Basket))
        session.rollback()
        assert session.get(Basket, (key_on(other, "s0"), 1)) is None


def test_a_shard_that_dies_in_the_middle_is_named(
    cluster: ShardCluster, shard_urls: list[URL]
) -> None:
    with cluster.session(scatter=True) as session:
        session.scalar(select(func.count()).select_from(Basket))
        run(
            shard_urls[0],
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name",
            name=shard_urls[2].database,
        )

        with pytest.raises(ShardUnavailableError, match="'s2'"):
            session.scalar(select(func.count()).select_from(Basket))


# Ownership -------------------------------------------------------------------------------------


def give_away(cluster: ShardCluster, urls: list[URL], key: int) -> tuple[str, str]:
    """Move the (empty) bucket of a key by hand, as a move will do it."""
    shard_map = cluster.router.map_of(households)
    bucket, source = shard_map.strategy.bucket(key), shard_map.shard_of(key)
    target = "s0" if source != "s0" else "s1"
    run(
        named(urls)[source],
        "UPDATE datapatterns.bucket SET state = 'cleaned' WHERE bucket = :bucket",
        bucket=bucket,
    )
    run(
        named(urls)[target],
        "INSERT INTO datapatterns.bucket VALUES (:group_id, :bucket, 'owned', 2)",
        group_id=shard_map.group_id,
        bucket=bucket,
    )
    run(
        urls[0],
        "UPDATE datapatterns.bucket_map SET shard_id = :target, epoch = 2 WHERE bucket = :bucket",
        "UPDATE datapatterns.shard_group SET epoch = 2",
        target=target,
        bucket=bucket,
    )
    return source, target


@pytest.fixture
def stale(shard_urls: list[URL]) -> Iterator[tuple[ShardCluster, str, str]]:
    """A cluster that does not know yet that the bucket of household 7 has moved."""
    with sharded_shop(shard_urls), ExitStack() as stack:
        cluster = stack.enter_context(
            ShardCluster(
                control=shard_urls[0],
                shards=named(shard_urls),
                groups=[households],
                poll_seconds=3600,
            )
        )
        yield cluster, *give_away(cluster, shard_urls, 7)


def test_a_stale_read_is_refused_and_right_when_repeated(
    stale: tuple[ShardCluster, str, str],
) -> None:
    cluster, source, _ = stale
    statement = select(Basket).where(Basket.household_id == 7)

    with cluster.session() as session, pytest.raises(StaleShardMapError, match=source):
        session.scalars(statement).all()

    with cluster.session() as session:
        assert session.scalars(statement).all() == []


def test_a_stale_scatter_is_refused_and_right_when_repeated(
    stale: tuple[ShardCluster, str, str],
) -> None:
    cluster, _, _ = stale
    statement = select(func.count()).select_from(Basket)

    with cluster.session(scatter=True) as session, pytest.raises(StaleShardMapError):
        session.scalar(statement)

    with cluster.session(scatter=True) as session:
        assert session.scalar(statement) == 0


def test_a_stale_write_is_refused_and_right_when_repeated(
    stale: tuple[ShardCluster, str, str],
) -> None:
    cluster, source, target = stale

    with cluster.session() as session:
        session.add(Basket(household_id=7, id=1))
        with pytest.raises(StaleShardMapError, match=source):
            session.commit()
    with cluster.session() as session, session.begin():
        session.add(Basket(household_id=7, id=1))

    rows = {shard.shard: shard.tables[0].rows for shard in cluster.stats()}
    assert rows == {**dict.fromkeys(rows, 0), target: 1}


def test_a_stale_pinned_session_is_refused(stale: tuple[ShardCluster, str, str]) -> None:
    cluster, _, target = stale

    with cluster.on(households, household_id=7) as session, pytest.raises(StaleShardMapError):
        session.execute(text("SELECT 1"))

    assert cluster.on(households, household_id=7).shard_id == target


def test_a_stale_connection_is_refused(stale: tuple[ShardCluster, str, str]) -> None:
    cluster, source, _ = stale

    with (
        pytest.raises(StaleShardMapError, match=source),
        cluster.connect(households, household_id=7) as conn,
    ):
        conn.execute(text("SELECT 1"))

    with cluster.connect(households, household_id=7) as conn:
        assert conn.scalar(text("SELECT 1")) == 1


def test_a_stale_bulk_load_is_refused(stale: tuple[ShardCluster, str, str]) -> None:
    cluster, source, _ = stale

    with (
        pytest.raises(StaleShardMapError, match=source),
        cluster.begin_bulk(households, source) as conn,
    ):
        conn.execute(insert(Basket), [{"household_id": 7, "id": 1}])

    assert sum(shard.tables[0].rows for shard in cluster.stats()) == 0


def test_an_epoch_that_has_risen_is_noticed(shard_urls: list[URL]) -> None:
    with (
        sharded_shop(shard_urls),
        ShardCluster(
            control=shard_urls[0], shards=named(shard_urls), groups=[households], poll_seconds=0
        ) as cluster,
    ):
        _, target = give_away(cluster, shard_urls, 7)

        assert cluster.router.map_of(households).shard_of(7) == target


# Bulk placement and statistics ----------------------------------------------------------------


def test_rows_are_placed_in_bulk_and_counted(cluster: ShardCluster) -> None:
    rows = [{"household_id": household, "id": 1} for household in range(200)]

    placed = cluster.placed(households, rows, key=lambda row: row["household_id"])
    for shard, mine in placed.items():
        with cluster.begin_bulk(households, shard) as conn:
            conn.execute(insert(Basket), mine)

    counted = {shard.shard: shard.tables[0] for shard in cluster.stats()}
    assert {shard: count.rows for shard, count in counted.items()} == {
        shard: len(mine) for shard, mine in placed.items()
    }
    assert sum(count.rows for count in counted.values()) == 200
    assert all(count.misplaced == 0 for count in counted.values())
    with cluster.session() as session:
        for household in range(200):
            assert session.get(Basket, (household, 1)) is not None


def test_a_row_on_the_wrong_shard_is_counted(cluster: ShardCluster, shard_urls: list[URL]) -> None:
    home = cluster.router.map_of(households).shard_of(7)
    wrong = next(shard for shard in cluster.engines if shard != home)

    run(named(shard_urls)[wrong], "INSERT INTO basket (household_id, id) VALUES (7, 1)")

    misplaced = {shard.shard: shard.tables[0].misplaced for shard in cluster.stats()}
    assert misplaced == {**dict.fromkeys(misplaced, 0), wrong: 1}


def test_a_key_of_a_wrong_type_is_not_placed(cluster: ShardCluster) -> None:
    with pytest.raises(ShardKeyError, match="str where int"):
        cluster.placed(households, ["7"], key=lambda row: row)
