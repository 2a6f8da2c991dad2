"""Indexes over shards are built while they are written, and read when they are whole."""

from collections.abc import Iterator
from threading import Event, Thread

import pytest
from sqlalchemy import URL, select, text, update

from datapatterns.errors import (
    IndexMissingError,
    ShardIndexFailedError,
    ShardIndexGoneError,
    ShardIndexNotReadyError,
)
from datapatterns.failpoints import armed
from datapatterns.index_table import BuildPace, ShardProgress
from datapatterns.sharding import ShardCluster
from datapatterns.testing import Databases, wait_until
from tests.fixtures.old_people import forget_indexes, put, run, settle, unindexed
from tests.fixtures.sharded_people import (
    CITY,
    EMAIL,
    Customer,
    both,
    by_city,
    by_email,
    email_on,
    entries,
    rows,
    tenant_on,
    tenants,
)

pytestmark = pytest.mark.postgres


@pytest.fixture(scope="module")
def shop(databases: Databases) -> Iterator[ShardCluster]:
    urls: list[URL] = [databases.new() for _ in range(2)]
    with unindexed(urls) as cluster:
        yield cluster
    for url in urls:
        databases.drop(url)


@pytest.fixture
def cluster(shop: ShardCluster) -> ShardCluster:
    forget_indexes(shop)
    return shop


def state(cluster: ShardCluster, name: str = EMAIL) -> str:
    [found] = both.status(cluster, [name])
    return found.state


def test_rows_from_before_are_found_once_it_is_built(cluster: ShardCluster) -> None:
    settle(cluster, 500)
    both.create(cluster)
    told: list[ShardProgress] = []

    reports = both.build(cluster, pace=BuildPace(chunk_rows=70, on_chunk=told.append))

    assert {name: (found.rows, found.clean) for name, found in reports.items()} == {
        EMAIL: (450, True),
        CITY: (500, True),
    }
    assert entries(cluster) == rows(cluster)
    assert {one.state for one in both.status(cluster)} == {"ready"}
    for name, count in ((EMAIL, 450), (CITY, 500)):
        last = {one.shard: one for one in told if one.index == name and one.done}
        assert sum(one.rows_done for one in last.values()) == count
    with cluster.session() as session:
        assert [row.name for row in by_email.lookup(session, "17@example.org")] == ["name 17"]
        assert len(by_city.lookup(session, "city 3")) == len(range(3, 500, 7))
    assert both.build(cluster) == {}


def test_it_is_written_and_not_read_until_then(cluster: ShardCluster) -> None:
    settle(cluster, 20)
    both.create(cluster)
    with cluster.session() as session, session.begin():
        session.add(Customer(tenant_id=1, id=100, email="new@example.org"))

    for look in (by_email.lookup, by_email.keys):
        with cluster.session() as session:
            with pytest.raises(ShardIndexNotReadyError, match=r"is building; .*build") as refused:
                look(session, "0@example.org")
            assert (refused.value.index, refused.value.state) == (EMAIL, "building")
    assert [entry[0] for entry in entries(cluster)] == ["new@example.org"]


def test_what_was_never_created_is_not_read_either(cluster: ShardCluster) -> None:
    with cluster.session() as session, pytest.raises(IndexMissingError):
        by_email.lookup(session, "0@example.org")
    with pytest.raises(IndexMissingError):
        both.build(cluster)
    assert state(cluster) == "missing"


def test_a_shard_without_triggers_keeps_it_from_being_built(cluster: ShardCluster) -> None:
    settle(cluster, 20)
    with cluster.engines["s0"].begin() as conn:
        by_email.create(conn)
    with pytest.raises(IndexMissingError):
        both.build(cluster, [EMAIL])

    both.create(cluster)
    both.build(cluster)

    assert entries(cluster) == rows(cluster)


def test_writers_from_before_have_ended_when_it_is_created(cluster: ShardCluster) -> None:
    with cluster.engines["s0"].connect() as conn:
        tenant = tenant_on(cluster, "s0")
        conn.execute(text("SET LOCAL session_replication_role = 'origin'"))
        conn.execute(
            text("INSERT INTO customer (tenant_id, id, email) VALUES (:t, 1, 'late@example.org')"),
            {"t": tenant},
        )
        creating = Thread(target=both.create, args=(cluster,))
        creating.start()
        wait_until(lambda: blocked(cluster, "s0"))
        conn.commit()
        creating.join()

    both.build(cluster)

    assert entries(cluster) == rows(cluster)
    assert len(rows(cluster)) == 1


def test_transactions_that_were_prepared_before_have_ended_as_well(cluster: ShardCluster) -> None:
    engine = cluster.engines["s0"]
    with engine.connect() as conn:
        conn.execute(
            text("INSERT INTO customer (tenant_id, id, email) VALUES (:t, 1, 'late@example.org')"),
            {"t": tenant_on(cluster, "s0")},
        )
        conn.execute(text("PREPARE TRANSACTION 'before'"))
        conn.commit()
    creating = Thread(target=both.create, args=(cluster,))
    creating.start()
    wait_until(lambda: blocked(cluster, "s0"))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.execute(text("COMMIT PREPARED 'before'"))
    creating.join()

    both.build(cluster)

    assert entries(cluster) == rows(cluster) != []


def test_a_snapshot_from_before_is_no_way_past_it(cluster: ShardCluster) -> None:
    settle(cluster, 20)
    with cluster.on(tenants, tenant_id=3) as old:
        old.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        customer = old.scalars(select(Customer).where(Customer.tenant_id == 3)).one()
        both.create(cluster)
        both.build(cluster)
        customer.email = "renamed@example.org"
        old.commit()

    assert entries(cluster) == rows(cluster)
    assert both.verify(cluster)[EMAIL].clean


def blocked(cluster: ShardCluster, shard: str) -> bool:
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'customer'::regclass"
    with cluster.engines[shard].connect() as conn:
        return bool(conn.scalar(text(waiting)))


def test_two_rows_with_one_key_are_told_and_it_is_built_when_they_are_mended(
    cluster: ShardCluster,
) -> None:
    settle(cluster, 60, twice=3)
    both.create(cluster)

    with pytest.raises(ShardIndexFailedError, match="3 rows have a key that another row has"):
        both.build(cluster, [EMAIL], pace=BuildPace(chunk_rows=7))

    [found] = both.status(cluster, [EMAIL])
    assert found.state == "failed"
    assert found.failure is not None
    assert "3 rows without entry" in found.failure
    told = both.conflicts(cluster, [EMAIL])
    assert sorted(one.key["email"] for one in told) == [f"{n}@example.org" for n in range(3)]
    assert all(one.row != one.holder for one in told)
    with cluster.session() as session, pytest.raises(ShardIndexNotReadyError, match="failed"):
        by_email.lookup(session, "0@example.org")

    for one in told:
        with cluster.session() as session, session.begin():
            key = (int(one.row["tenant_id"]), int(one.row["id"]))
            session.get_one(Customer, key).email = f"other {one.row['id']}"
    assert both.build(cluster, [EMAIL])[EMAIL].clean

    assert state(cluster) == "ready"
    assert both.conflicts(cluster) == []
    assert entries(cluster) == rows(cluster)


def test_a_double_in_one_page_is_told(cluster: ShardCluster) -> None:
    tenant = tenant_on(cluster, "s0")
    put(cluster, [{"tenant_id": tenant, "id": n, "email": "same"} for n in range(3)])
    both.create(cluster)

    with pytest.raises(ShardIndexFailedError):
        both.build(cluster, [EMAIL])

    assert len(both.conflicts(cluster)) == 2


def test_a_row_that_was_changed_after_it_was_read_is_no_conflict(cluster: ShardCluster) -> None:
    tenant, other = tenant_on(cluster, "s0"), tenant_on(cluster, "s1")
    email = email_on(cluster, "s1")
    put(cluster, [{"tenant_id": tenant, "id": 1, "email": email}])
    both.create(cluster)

    def hand_over() -> None:
        for old, new in ((tenant, None), (other, email)):
            with cluster.session() as session, session.begin():
                if new is None:
                    session.get_one(Customer, (old, 1)).email = None
                else:
                    session.add(Customer(tenant_id=old, id=1, email=new))

    with armed("index.page-read", hand_over):
        report = both.build(cluster, [EMAIL])[EMAIL]

    assert report.clean
    assert entries(cluster) == rows(cluster)
    with cluster.session() as session:
        [row] = by_email.lookup(session, email)
        assert row.tenant_id == other


def test_included_columns_that_change_meanwhile_are_right_in_the_end(cluster: ShardCluster) -> None:
    settle(cluster, 20)
    both.create(cluster)

    def rename() -> None:
        with cluster.session() as session, session.begin():
            session.execute(
                update(Customer).where(Customer.tenant_id.in_([3])).values(name="renamed")
            )

    with armed("index.page-read", rename):
        both.build(cluster, [EMAIL])

    assert entries(cluster) == rows(cluster)


def test_a_key_that_another_transaction_is_about_to_take_is_waited_for(
    cluster: ShardCluster,
) -> None:
    """Without the lock the backfill would see no row behind the claim, and take the key over."""
    tenant, other = tenant_on(cluster, "s0"), tenant_on(cluster, "s1")
    put(cluster, [{"tenant_id": tenant, "id": 1, "email": "wanted"}])
    both.create(cluster)
    claimed, settled = Event(), Event()

    def hire() -> None:
        with cluster.session() as session:
            session.add(Customer(tenant_id=other, id=1, email="wanted"))
            session.commit()

    def pause() -> None:
        claimed.set()
        wait_until(lambda: settled.is_set() or waits_for_advisory_lock(cluster))

    with armed("index.keys-claimed", pause):
        hiring = Thread(target=hire)
        hiring.start()
        claimed.wait()
        with pytest.raises(ShardIndexFailedError):
            both.build(cluster, [EMAIL])
        settled.set()
        hiring.join()

    assert len(rows(cluster)) == 2
    [told] = both.conflicts(cluster)
    assert int(told.holder["tenant_id"]) == other


def waits_for_advisory_lock(cluster: ShardCluster) -> bool:
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'advisory'"
    for engine in cluster.engines.values():
        with engine.connect() as conn:
            if conn.scalar(text(waiting)):
                return True
    return False


def test_two_processes_share_the_shards(cluster: ShardCluster) -> None:
    settle(cluster, 300)
    both.create(cluster)
    told: list[ShardProgress] = []
    pace = BuildPace(chunk_rows=11, on_chunk=told.append)

    builders = [
        Thread(target=both.build, args=(cluster, [EMAIL]), kwargs={"pace": pace}) for _ in range(3)
    ]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()

    assert state(cluster) == "ready"
    assert entries(cluster) == rows(cluster)
    done = [one for one in told if one.done]
    assert len({one.shard for one in done}) == len(done) == 2
    assert sum(one.rows_done for one in done) == 270


def test_a_dropped_index_is_not_read_and_not_written(cluster: ShardCluster) -> None:
    settle(cluster, 20)
    both.create(cluster)
    both.build(cluster)

    def look() -> None:
        with cluster.session() as session, pytest.raises(ShardIndexNotReadyError, match="dropping"):
            by_email.lookup(session, "1@example.org")
        with pytest.raises(ShardIndexNotReadyError, match="dropping"):
            both.build(cluster, [EMAIL])

    with armed("index.no-more-read", look):
        assert both.drop(cluster, [EMAIL]) == {EMAIL: True}

    assert entries(cluster) == []
    with cluster.engines["s0"].begin() as conn:
        conn.execute(text("UPDATE customer SET email = 'anybody' WHERE id = 1"))
    assert both.drop(cluster, [EMAIL]) == {EMAIL: False}
    assert state(cluster) == "missing"
    assert state(cluster, CITY) == "ready"
    both.create(cluster)
    both.build(cluster)
    assert entries(cluster) == rows(cluster)


def test_who_builds_what_is_dropped_is_told(cluster: ShardCluster) -> None:
    settle(cluster, 20)
    both.create(cluster)

    with (
        armed("index.backfilled", lambda: both.drop(cluster, [EMAIL])),
        pytest.raises(IndexMissingError),
    ):
        both.build(cluster, [EMAIL])
    both.create(cluster)

    def anew() -> None:
        both.drop(cluster, [EMAIL])
        both.create(cluster)

    with armed("index.verifying", anew), pytest.raises(ShardIndexGoneError):
        both.build(cluster, [EMAIL])
    assert state(cluster) == "building"


def test_a_bucket_may_move_while_it_is_built(cluster: ShardCluster) -> None:
    settle(cluster, 200)
    both.create(cluster)
    email_group = both.indexes[EMAIL].group
    moved = iter([(tenants, 3), (email_group, 5), (tenants, 9)])

    def move() -> None:
        group, bucket = next(moved)
        owner = cluster.router.map_of(group).owners[bucket]
        cluster.move(group, bucket, to="s1" if owner == "s0" else "s0", clean_after_seconds=0)

    with armed("index.page-claimed", move, visit=2), armed("index.page-read", move, visit=4):
        both.build(cluster, [EMAIL], pace=BuildPace(chunk_rows=20))

    assert entries(cluster) == rows(cluster)
    assert both.verify(cluster, [EMAIL])[EMAIL].clean


def test_an_empty_table_is_built_at_once(cluster: ShardCluster) -> None:
    both.create(cluster)
    assert {name: found.rows for name, found in both.build(cluster).items()} == {EMAIL: 0, CITY: 0}
    assert run(cluster, "SELECT 1 FROM customer") == 0


@pytest.mark.parametrize("at", ["index.backfilled", "index.verifying", "index.digested"])
def test_a_builder_whom_another_overtakes_ends_well(cluster: ShardCluster, at: str) -> None:
    settle(cluster, 30)
    both.create(cluster)

    with armed(at, lambda: both.build(cluster, [EMAIL])):
        assert both.build(cluster, [EMAIL])[EMAIL].clean

    assert state(cluster) == "ready"
