"""A COMMIT that fails, or whose answer is lost: no row is without its entry, no key in the way."""

from collections.abc import Iterable, Iterator

import pytest
from sqlalchemy import URL, text
from sqlalchemy.exc import DBAPIError

from datapatterns.errors import (
    IndexKeyTakenError,
    OutcomeUnknownError,
    ShardUnavailableError,
    StaleShardMapError,
)
from datapatterns.failpoints import armed
from datapatterns.index_table.over_shards import reserving
from datapatterns.index_table.over_shards.claiming import Claiming
from datapatterns.index_table.over_shards.entries import Claimed, Entries, remove_everywhere
from datapatterns.index_table.over_shards.sharded_index import ShardedIndex
from datapatterns.sharding import ShardCluster
from datapatterns.sharding.access import ShardAccess
from datapatterns.testing import Databases
from datapatterns.testing.faults import FaultProxy
from tests.fixtures.atomic import needs_prepared_transactions
from tests.fixtures.lost_commits import Loss, Network
from tests.fixtures.shard_model import named
from tests.fixtures.sharded_people import (
    Customer,
    both,
    by_email,
    email_on,
    empty,
    entries,
    people,
    rows,
    tenant_on,
    tenants,
)

pytestmark = pytest.mark.postgres


@pytest.fixture(scope="module")
def urls(databases: Databases) -> Iterator[list[URL]]:
    urls = [databases.new() for _ in range(2)]
    yield urls
    for url in urls:
        databases.drop(url)


@pytest.fixture(scope="module")
def shop(urls: list[URL]) -> Iterator[ShardCluster]:
    with people(urls) as cluster:
        yield cluster


@pytest.fixture
def two_phases(urls: list[URL]) -> None:
    needs_prepared_transactions(urls[0])


@pytest.fixture
def cluster(shop: ShardCluster) -> ShardCluster:
    empty(shop)
    return shop


@pytest.fixture
def network(urls: list[URL]) -> Iterator[Network]:
    """A network that can break, on the way to s0."""
    with FaultProxy(urls[0]) as network:
        yield network


@pytest.fixture
def far(urls: list[URL], network: Network) -> Iterator[ShardCluster]:
    """The same shards, of which s0 is at the far end of that network."""
    with ShardCluster(
        control=urls[0],
        shards=named([network.url, urls[1]]),
        groups=[tenants],
        indexes=both,
    ) as cluster:
        yield cluster


def put(cluster: ShardCluster, tenant: int, email: str, number: int = 1) -> None:
    with cluster.session() as session, session.begin():
        session.add(Customer(tenant_id=tenant, id=number, email=email))


def test_a_commit_whose_answer_is_lost_leaves_its_claims(
    cluster: ShardCluster, far: ShardCluster, network: Network, loss: Loss
) -> None:
    tenant, other = tenant_on(cluster, "s0"), tenant_on(cluster, "s1")
    email = email_on(cluster, "s1")
    put(far, tenant, email_on(cluster, "s1", nth=1), number=9)  # so that all connections are there

    with (
        armed("index.keys-claimed", lambda: loss.strike(network)),
        pytest.raises(OutcomeUnknownError),
    ):
        put(far, tenant, email)

    assert len(rows(cluster)) == (2 if loss.happens else 1)
    assert len(entries(cluster)) == 2
    if loss.happens:
        with pytest.raises(IndexKeyTakenError):
            put(cluster, other, email)
    else:
        put(cluster, other, email)
    assert entries(cluster) == rows(cluster)


def test_a_commit_that_fails_gives_its_claims_up(cluster: ShardCluster) -> None:
    shard = "s0"
    with cluster.engines[shard].begin() as conn:
        conn.execute(
            text("ALTER TABLE customer ADD CONSTRAINT named UNIQUE (name) INITIALLY DEFERRED")
        )
    try:
        with cluster.session() as session:
            tenant = tenant_on(cluster, shard)
            session.add_all(
                Customer(tenant_id=tenant, id=number, email=f"{number}@x", name="Bob", city="Rome")
                for number in range(3)
            )
            with pytest.raises(DBAPIError, match="named"):
                session.commit()
    finally:
        with cluster.engines[shard].begin() as conn:
            conn.execute(text("ALTER TABLE customer DROP CONSTRAINT named"))

    assert entries(cluster) == rows(cluster) == []


def test_a_shard_that_is_gone_keeps_rows_from_being_committed(
    cluster: ShardCluster, far: ShardCluster, network: Network
) -> None:
    tenant, email = tenant_on(cluster, "s1"), email_on(cluster, "s0")
    put(far, tenant, email_on(cluster, "s0", nth=1), number=9)

    def cut() -> None:
        network.cut_before_request("INSERT INTO customer_by_email")

    with armed("index.keys-locked", cut), pytest.raises(ShardUnavailableError, match="s0"):
        put(far, tenant, email)

    assert len(rows(cluster)) == 1
    assert entries(cluster) == rows(cluster)
    put(far, tenant, email)
    assert entries(cluster) == rows(cluster)


def test_what_cannot_be_forgotten_is_no_error_after_the_commit(
    cluster: ShardCluster, far: ShardCluster, network: Network
) -> None:
    tenant, email = tenant_on(cluster, "s1"), email_on(cluster, "s0")
    put(far, tenant, email)

    def cut() -> None:
        network.cut_before_request("DELETE FROM customer_by_email")

    with armed("index.base-committed", cut), far.session() as session, session.begin():
        session.delete(session.get_one(Customer, (tenant, 1)))

    assert rows(cluster) == []
    assert [entry[0] for entry in entries(cluster)] == [email]
    put(far, tenant, email, number=2)
    assert entries(cluster) == rows(cluster)


@pytest.mark.parametrize("group", [tenants, both.indexes["customer_by_email"].group])
def test_a_map_that_is_old_is_read_again(
    cluster: ShardCluster, urls: list[URL], group: object
) -> None:
    tenant, email = tenant_on(cluster, "s0"), email_on(cluster, "s0")
    put(cluster, tenant, email)
    with ShardCluster(control=urls[0], shards=named(urls), groups=[tenants], indexes=both) as other:
        index_group = both.indexes["customer_by_email"].group
        moved = tenants if group is tenants else index_group
        bucket = moved.strategy.bucket(tenant if moved is tenants else email)
        other.move(moved, bucket, to="s1", clean_after_seconds=0)

        with cluster.session() as session:
            if moved is index_group:  # entries are looked for again
                assert [r.tenant_id for r in by_email.lookup(session, email)] == [tenant]
        refused: list[type[Exception]] = []
        for number in range(2):
            try:
                put(cluster, tenant_on(cluster, "s1", nth=3), email, number=number)
            except (StaleShardMapError, IndexKeyTakenError) as error:
                refused.append(type(error))
        assert refused[-1] is IndexKeyTakenError
        assert entries(cluster) == rows(cluster)
        other.move(moved, bucket, to="s0", clean_after_seconds=0)
    cluster.router.refresh()


@pytest.mark.usefixtures("two_phases")
def test_what_recovery_has_to_bring_about_is_not_forgotten_before(
    cluster: ShardCluster, far: ShardCluster, network: Network
) -> None:
    decides, follows = tenant_on(cluster, "s1"), tenant_on(cluster, "s0")
    with far.session(atomic=True) as session:
        for tenant in (decides, follows):
            session.add(Customer(tenant_id=tenant, id=1, email=f"old-{tenant}@x"))
        session.commit()
        assert session.left_to_recovery == ()

    def cut() -> None:
        network.cut_before_request("COMMIT PREPARED")

    with far.session(atomic=True) as session, armed("atomic.decided", cut):
        for tenant in (decides, follows):
            session.get_one(Customer, (tenant, 1)).email = f"new-{tenant}@x"
            session.flush()
        session.commit()
        assert session.left_to_recovery == ("s0",)
    assert (f"old-{follows}@x", follows, 1, None) in rows(cluster)
    assert {*rows(cluster)} <= {*entries(cluster)}

    cluster.recover(grace_seconds=0)
    assert {row[0] for row in rows(cluster)} == {f"new-{decides}@x", f"new-{follows}@x"}
    assert {*rows(cluster)} <= {*entries(cluster)}


@pytest.mark.usefixtures("cluster")
def test_neither_claims_nor_rows_are_taken_back_by_a_crash_of_one_server(urls: list[URL]) -> None:
    """Where commits need not be on the disk, one of the two could be lost without the other."""
    hasty = {"connect_args": {"options": "-c synchronous_commit=off"}}
    seen: list[str] = []
    with (
        ShardCluster(
            control=urls[0],
            shards=named(urls),
            groups=[tenants],
            indexes=both,
            engine_options=hasty,
        ) as other,
        other.session() as session,
    ):
        access = session.shard_access
        index = both.indexes["customer_by_email"]
        session.add(Customer(tenant_id=1, id=1, email="a@x"))
        session.flush()
        [conn] = session.written_parts.values()
        assert conn.scalar(text("SHOW synchronous_commit")) == "off"
        with armed(
            "index.keys-claimed",
            lambda: seen.append(conn.scalar(text("SHOW synchronous_commit")) or ""),
        ):
            session.commit()
        of_index = Entries(access, index)
        [(shard, keys)] = of_index.by_shard([("a@x",)]).items()
        with of_index.writing(shard, keys) as claiming:
            seen.append(claiming.scalar(text("SHOW synchronous_commit")) or "")
    assert seen == ["on", "on"]


def test_why_a_commit_is_refused_is_told_also_if_claims_cannot_be_given_up(
    cluster: ShardCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_: object) -> None:
        raise ShardUnavailableError("s0")

    with cluster.session() as session, session.begin():
        session.add(Customer(tenant_id=1, id=1, email="taken@x"))
    monkeypatch.setattr(Claiming, "give_up", away)

    with cluster.session() as session:
        session.add(Customer(tenant_id=2, id=1, email="taken@x"))
        with pytest.raises(IndexKeyTakenError) as refused:
            session.commit()

    assert any("left to a sweep" in note for note in refused.value.__notes__)


def test_one_index_that_is_away_keeps_no_key_of_another(
    cluster: ShardCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cluster.session() as session, session.begin():
        session.add(Customer(tenant_id=1, id=1, email="old@x", city="Bonn"))

    def without_cities(access: ShardAccess, index: ShardedIndex, seen: Iterable[Claimed]) -> int:
        if index.name == "customer_by_city":
            raise ShardUnavailableError("s0")
        return remove_everywhere(access, index, seen)

    monkeypatch.setattr(reserving, "remove_everywhere", without_cities)
    with cluster.session() as session, session.begin():
        session.get_one(Customer, (1, 1)).city = "Rome"
        session.get_one(Customer, (1, 1)).email = "new@x"
    monkeypatch.undo()

    assert [email for email, *_ in entries(cluster)] == ["new@x"]
