"""Reads on replicas: a session sees what it, or whoever gave it a token, has written."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, func, insert, select, text, update

from datapatterns.errors import TokenError
from datapatterns.sharding import Shard, ShardCluster, ShardSession, ShardToken
from datapatterns.testing import wait_until
from tests.fixtures.shard_model import Basket, create_tables, households
from tests.fixtures.standbys import Pair, replicated

pytestmark = pytest.mark.postgres

EVERYTHING = select(Basket.household_id).execution_options(scatter=True)
WHERE = (
    select(func.pg_is_in_recovery()).select_from(Basket).where(Basket.household_id == 1).limit(1)
)


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with replicated() as pair:
        create_tables(pair.primary.url)
        with cluster_of(pair) as cluster:
            cluster.create_map()
            with cluster.session() as session, session.begin():
                session.add(Basket(household_id=1, id=1, cents=0))
        yield pair


@pytest.fixture
def cluster(pair: Pair) -> Iterator[ShardCluster]:
    with cluster_of(pair) as cluster:
        caught_up(pair)
        yield cluster
        run(pair.standby, "SELECT pg_wal_replay_resume()")


def cluster_of(pair: Pair) -> ShardCluster:
    servers = Shard(pair.primary.url, replicas=[pair.standby.url])
    return ShardCluster(
        control=pair.primary.url, shards={"s0": servers}, groups=[households], poll_seconds=0
    )


def run(engine: Engine, sql: str) -> object:
    with engine.connect() as conn:
        return conn.scalar(text(sql))


def flush(pair: Pair) -> None:
    """Send what is in the log: its end may be of others, who flush it when they commit."""
    with pair.primary.begin() as conn:
        conn.execute(text("SELECT pg_logical_emit_message(true, '', '')"))


def caught_up(pair: Pair) -> None:
    flush(pair)
    here = run(pair.primary, "SELECT pg_current_wal_flush_lsn()")
    behind = f"SELECT pg_last_wal_replay_lsn() >= CAST('{here}' AS pg_lsn)"
    wait_until(lambda: bool(run(pair.standby, behind)))


def is_replica(session: ShardSession) -> bool:
    return bool(session.scalar(WHERE))


def write(cluster: ShardCluster, cents: int) -> ShardToken:
    with cluster.session() as session, session.begin():
        session.get_one(Basket, (1, 1)).cents = cents
    return session.token


def seen(session: ShardSession) -> int | None:
    return session.scalar(select(Basket.cents).where(Basket.household_id == 1))


def test_a_session_reads_on_replicas_if_it_asks_for_that(cluster: ShardCluster) -> None:
    with cluster.session(replicas=True) as session:
        assert is_replica(session)
        assert session.get_one(Basket, (1, 1)).id == 1
        assert session.scalars(EVERYTHING).all() == [1]
        session.commit()
    with cluster.session() as session:
        assert not is_replica(session)


def test_a_replica_that_is_behind_is_not_read_with_a_token(
    cluster: ShardCluster, pair: Pair
) -> None:
    before = write(cluster, 5)
    caught_up(pair)
    run(pair.standby, "SELECT pg_wal_replay_pause()")
    token = write(cluster, 6)

    with cluster.session(replicas=True) as session:
        assert (is_replica(session), seen(session)) == (True, 5)
    with cluster.session(replicas=True, after=before) as session:
        assert (is_replica(session), seen(session)) == (True, 5)
    with cluster.session(replicas=True, after=str(token)) as session:
        assert (is_replica(session), seen(session)) == (False, 6)
        assert session.scalars(EVERYTHING).all() == [1]
    with cluster.session(replicas=True, after=token.with_all_of(before)) as session:
        assert not is_replica(session)


def test_a_reader_waits_for_a_replica_that_comes_in_time(cluster: ShardCluster, pair: Pair) -> None:
    token = write(cluster, 7)
    flush(pair)

    with cluster.session(replicas=True, after=token, wait_seconds=30) as session:
        assert (is_replica(session), seen(session)) == (True, 7)


def test_a_session_sees_what_it_wrote_before(cluster: ShardCluster, pair: Pair) -> None:
    run(pair.standby, "SELECT pg_wal_replay_pause()")
    with cluster.session(replicas=True) as session:
        assert is_replica(session)
        session.rollback()
        session.get_one(Basket, (1, 1)).cents = 8
        session.commit()

        assert (is_replica(session), seen(session)) == (False, 8)


def test_a_transaction_that_has_written_reads_the_primary(
    cluster: ShardCluster, pair: Pair
) -> None:
    run(pair.standby, "SELECT pg_wal_replay_pause()")
    with cluster.session(replicas=True) as session:
        assert is_replica(session)
        session.execute(update(Basket).where(Basket.household_id == 1).values(cents=9))
        assert (is_replica(session), seen(session)) == (False, 9)
        session.rollback()
        assert is_replica(session)
        session.get_one(Basket, (1, 1)).cents = 10  # not flushed yet
        assert seen(session) == 10
        session.rollback()


def test_a_bucket_that_has_just_arrived_is_not_read_where_it_looks_empty(
    cluster: ShardCluster, pair: Pair
) -> None:
    with cluster.session(replicas=True) as session:
        assert is_replica(session)
    run(pair.standby, "SELECT pg_wal_replay_pause()")
    with pair.primary.begin() as conn:  # as a move does: the rows, the shard, and then the map
        conn.execute(insert(Basket).values(household_id=2, id=1))
        conn.execute(text("UPDATE datapatterns.shard_group SET epoch = epoch + 1"))
    try:
        arrived = select(Basket.id).where(Basket.household_id == 2)
        with cluster.session(replicas=True) as session:
            assert session.scalars(arrived).all() == [1]
            assert not is_replica(session)
        run(pair.standby, "SELECT pg_wal_replay_resume()")
        caught_up(pair)
        with cluster.session(replicas=True) as session:
            assert is_replica(session)
            assert session.scalars(arrived).all() == [1]
    finally:
        with pair.primary.begin() as conn:
            conn.execute(text("DELETE FROM basket WHERE household_id = 2"))


def test_a_replica_does_not_answer_for_what_it_does_not_know_to_be_owned(
    cluster: ShardCluster, pair: Pair
) -> None:
    """Its own snapshot is asked; the primary knows better."""
    own = "UPDATE datapatterns.bucket SET state = '{}'"
    with pair.primary.begin() as conn:
        conn.execute(text(own.format("incoming")))
    caught_up(pair)
    run(pair.standby, "SELECT pg_wal_replay_pause()")
    with pair.primary.begin() as conn:
        conn.execute(text(own.format("owned")))

    with cluster.session(replicas=True) as session:
        assert not is_replica(session)
        assert seen(session) is not None


def test_a_replica_that_is_away_is_done_without(pair: Pair) -> None:
    away = Shard(pair.primary.url, replicas=["postgresql://[::1]:1/x", pair.standby.url])
    caught_up(pair)
    with ShardCluster(
        control=pair.primary.url, shards={"s0": away}, groups=[households]
    ) as cluster:
        for _ in range(3):
            with cluster.session(replicas=True) as session:
                assert is_replica(session)


def test_a_primary_is_no_replica(pair: Pair) -> None:
    twice = Shard(pair.primary.url, replicas=[pair.primary.url])
    with (
        ShardCluster(control=pair.primary.url, shards={"s0": twice}, groups=[households]) as shop,
        shop.session(replicas=True) as session,
    ):
        assert not is_replica(session)


@pytest.mark.parametrize(
    "text", ["x", "s0:1", "s0:0/1;x", "s0:0/1,;1:1", "S0:0/1;1:1", "a" * 9_000]
)
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(TokenError):
        ShardToken.parse(text)
