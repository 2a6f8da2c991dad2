"""Sessions that write to several shards: on all of them, or on none."""

from collections.abc import Iterator
from contextlib import suppress

import pytest
from sqlalchemy import URL, Connection, event, select, update
from sqlalchemy.exc import IntegrityError

from datapatterns.errors import (
    MultiShardWriteError,
    ShardTransactionEndedError,
    ShardUnavailableError,
)
from datapatterns.failpoints import armed
from datapatterns.sharding import ShardCluster
from datapatterns.sharding.atomic import parts
from tests.fixtures.atomic import (
    Died,
    baskets,
    decisions,
    keys_on_each,
    needs_prepared_transactions,
    prepared,
    put_on_each,
    sums,
)
from tests.fixtures.shard_model import Basket, Line, sharded_shop

pytestmark = pytest.mark.postgres


@pytest.fixture
def cluster(shard_urls: list[URL]) -> Iterator[ShardCluster]:
    needs_prepared_transactions(shard_urls[0])
    with sharded_shop(shard_urls[:3]) as cluster:
        yield cluster
        assert all(engine.pool.checkedout() == 0 for engine in cluster.engines.values())  # type: ignore[attr-defined]


def on_each(cluster: ShardCluster) -> list[Basket]:
    return [Basket(household_id=key, id=1, cents=key) for key in keys_on_each(cluster)]


def test_objects_of_all_shards_are_committed_together(cluster: ShardCluster) -> None:
    with cluster.session(atomic=True) as session, session.begin():
        session.add_all(on_each(cluster))

    assert session.left_to_recovery == ()
    assert len(baskets(cluster)) == 3
    assert (prepared(cluster), decisions(cluster)) == ([], [])


def test_what_is_read_and_changed_on_all_shards_is_committed_together(
    cluster: ShardCluster,
) -> None:
    put_on_each(cluster)
    everything = select(Basket).execution_options(scatter=True)

    with cluster.session(atomic=True) as session, session.begin():
        for basket in session.scalars(everything).all():
            basket.cents = 5
        for key in keys_on_each(cluster)[:2]:
            raised = update(Basket).where(Basket.household_id == key).values(cents=6)
            session.execute(raised)

    assert [*sums(cluster).values()] == [6, 6, 5]


def test_a_rollback_undoes_all(cluster: ShardCluster) -> None:
    with cluster.session(atomic=True) as session:
        session.add_all(on_each(cluster))
        session.flush()
        session.rollback()
        session.add(on_each(cluster)[0])
        session.commit()

    assert len(baskets(cluster)) == 1


def test_an_error_of_one_shard_undoes_all(cluster: ShardCluster) -> None:
    last = keys_on_each(cluster)[-1]

    with cluster.session(atomic=True) as session:
        session.add_all(on_each(cluster))
        session.add(Line(household_id=last, basket_id=99, number=1))
        with pytest.raises(IntegrityError):
            session.commit()

    assert baskets(cluster) == []


def test_a_savepoint_undoes_what_came_after_it_on_each_shard(cluster: ShardCluster) -> None:
    first, second, third = on_each(cluster)
    kept = sorted([first.household_id, third.household_id])

    with cluster.session(atomic=True) as session, session.begin():
        session.add(first)
        with suppress(LookupError), session.begin_nested():
            session.add(second)
            session.flush()
            raise LookupError
        session.add(third)

    assert baskets(cluster) == kept


@pytest.mark.parametrize(
    ("failpoint", "happened"),
    [
        ("atomic.branch-prepared", False),
        ("atomic.decision-written", False),
        ("atomic.decided", True),
    ],
)
def test_a_session_that_dies_leaves_all_or_nothing(
    cluster: ShardCluster, failpoint: str, *, happened: bool
) -> None:
    def die() -> None:
        raise Died

    with armed(failpoint, die), suppress(Died), cluster.session(atomic=True) as session:
        session.add_all(on_each(cluster))
        session.commit()

    cluster.recover(grace_seconds=0)

    assert len(baskets(cluster)) == (3 if happened else 0)


def test_a_session_can_go_on_after_its_commit(cluster: ShardCluster) -> None:
    with cluster.session(atomic=True) as session:
        for cents in (1, 2):
            for basket in on_each(cluster):
                basket.cents = cents
                session.merge(basket)
            session.commit()

        assert [*sums(cluster).values()] == [2, 2, 2]
        assert session.scalars(select(Basket).execution_options(scatter=True)).all()


def test_what_a_listener_changes_after_the_commit_is_not_lost_silently(
    cluster: ShardCluster,
) -> None:
    with cluster.session(atomic=True) as session:
        session.add_all(on_each(cluster))

        @event.listens_for(session, "before_commit")
        def too_late(_: object) -> None:
            session.add(Basket(household_id=keys_on_each(cluster)[0], id=2))

        with pytest.raises(ShardTransactionEndedError):
            session.commit()


def test_a_plain_session_still_writes_to_one_shard_only(cluster: ShardCluster) -> None:
    with cluster.session() as session:
        session.add_all(on_each(cluster))
        with pytest.raises(MultiShardWriteError):
            session.commit()

    assert baskets(cluster) == []


@pytest.mark.parametrize("sql", [["COMMIT"], ["ROLLBACK"], ["COMMIT", "SELECT 1"]])
def test_a_part_that_sql_text_has_ended_is_noticed(cluster: ShardCluster, sql: list[str]) -> None:
    with cluster.session(atomic=True) as session:
        session.add_all(on_each(cluster))
        session.flush()
        conn = session.connection(bind_arguments={"shard_id": "s1"})
        for each in sql:
            conn.exec_driver_sql(each)
        with pytest.raises(ShardTransactionEndedError, match="'s1'"):
            session.commit()

    assert len(baskets(cluster)) == (1 if "COMMIT" in sql else 0)


def test_nothing_is_committed_if_a_shard_that_was_only_read_is_gone(
    cluster: ShardCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, read, _ = keys_on_each(cluster)

    def gone(_: Connection) -> None:
        raise ShardUnavailableError("s1")

    monkeypatch.setattr(parts, "commit_reader", gone)
    with cluster.session() as session:
        assert session.get(Basket, (read, 1)) is None
        session.add(Basket(household_id=written, id=1))
        with pytest.raises(ShardUnavailableError):
            session.commit()

    assert baskets(cluster) == []
