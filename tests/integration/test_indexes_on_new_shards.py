"""A shard that joins keeps the indexes of the others before it has rows; they stay readable."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import URL, create_engine, insert

from datapatterns.errors import MoveRefusedError
from datapatterns.sharding import ShardCluster
from datapatterns.sharding.companions import Companions, over_shards
from tests.fixtures.old_people import unindexed
from tests.fixtures.shard_model import named
from tests.fixtures.sharded_people import (
    Base,
    Customer,
    both,
    by_city,
    by_email,
    empty,
    entries,
    people,
    rows,
    tenants,
)

pytestmark = pytest.mark.postgres

NEW = "s2"


@pytest.fixture
def cluster(shard_urls: list[URL]) -> Iterator[ShardCluster]:
    """Two shards with rows and indexes that are ready, and one more that is configured."""
    with people(shard_urls[:2]) as smaller:
        empty(smaller)
        both.build(smaller)
    engine = create_engine(shard_urls[2])
    Base.metadata.create_all(engine)
    engine.dispose()
    with configured(shard_urls) as cluster:
        put(cluster, range(30))
        yield cluster


@contextmanager
def configured(urls: list[URL]) -> Iterator[ShardCluster]:
    with ShardCluster(
        control=urls[0], shards=named(urls[:3]), groups=[tenants], indexes=both
    ) as cluster:
        yield cluster


def put(cluster: ShardCluster, tenant_ids: range) -> None:
    for tenant in tenant_ids:
        with cluster.session() as session, session.begin():
            session.add(Customer(tenant_id=tenant, id=1, email=f"c{tenant}@x", city="Bonn"))


def move_some(cluster: ShardCluster) -> None:
    for shard in ("s0", "s1"):
        for bucket in cluster.router.map_of(tenants).buckets_on(shard)[:8]:
            cluster.move(tenants, bucket, to=NEW, clean_after_seconds=0)


def found(cluster: ShardCluster, tenant: int) -> list[int]:
    with cluster.session() as session:
        return [row.tenant_id for row in by_email.lookup(session, f"c{tenant}@x")]


def test_a_shard_that_joins_keeps_what_the_others_keep(cluster: ShardCluster) -> None:
    cluster.add_shard(NEW)
    states = {each.state for each in both.status(cluster)}
    move_some(cluster)
    put(cluster, range(30, 90))

    assert states == {"ready"}
    assert [found(cluster, tenant) for tenant in range(90)] == [[n] for n in range(90)]
    with cluster.session() as session:
        assert len(by_city.lookup(session, "Bonn")) == 90
    assert entries(cluster) == rows(cluster)
    assert any(cluster.router.map_of(tenants).shard_of(key) == NEW for key in range(30, 90))


def test_without_that_rows_of_the_new_shard_would_be_missed(
    cluster: ShardCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A negative control; and a move to such a shard is refused."""
    monkeypatch.setattr(Companions, "join", lambda *_: None)
    cluster.add_shard(NEW)

    with pytest.raises(MoveRefusedError, match=NEW):
        move_some(cluster)


def test_an_index_that_is_being_built_is_built_on_the_new_shard_too(
    shard_urls: list[URL],
) -> None:
    with unindexed(shard_urls[:2]) as smaller:
        both.create(smaller)
        assert {each.state for each in both.status(smaller)} == {"building"}
    engine = create_engine(shard_urls[2])
    Base.metadata.create_all(engine)
    engine.dispose()
    with configured(shard_urls) as cluster:
        cluster.add_shard(NEW)
        assert {each.state for each in both.status(cluster)} == {"building"}
        both.build(cluster)
        assert {each.state for each in both.status(cluster)} == {"ready"}


def test_a_shard_that_has_rows_already_is_not_said_to_be_whole(
    cluster: ShardCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows from before would be missed by every look-up."""
    with monkeypatch.context() as patched:
        patched.setattr(Companions, "join", lambda *_: None)
        cluster.add_shard(NEW)
    with cluster.engines[NEW].begin() as conn:
        conn.execute(insert(Customer), [{"tenant_id": 7, "id": 9, "email": "old@x"}])

    both.join(over_shards(cluster.session()).shard_access, NEW, ["s0", "s1"])

    assert {each.shards[NEW] for each in both.status(cluster)} == {"building"}


def test_nothing_is_made_where_nothing_was_created(shard_urls: list[URL]) -> None:
    for url in shard_urls[:3]:
        engine = create_engine(url)
        Base.metadata.create_all(engine)
        engine.dispose()
    with ShardCluster(
        control=shard_urls[0], shards=named(shard_urls[:2]), groups=[tenants], indexes=both
    ) as smaller:
        smaller.create_map()
    with configured(shard_urls) as cluster:
        cluster.add_shard(NEW)

        assert {each.state for each in both.status(cluster)} == {"missing"}
