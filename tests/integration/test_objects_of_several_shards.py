"""Objects of several shards are loaded at once, into one session, as if they came one by one."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import URL, event, func, insert, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import ORMExecuteState, joinedload, selectinload, with_loader_criteria

from datapatterns.errors import ShardUnavailableError, StaleShardMapError, UnmergeableQueryError
from datapatterns.sharding import ShardCluster
from tests.fixtures.atomic import keys_on_each
from tests.fixtures.blocking import until_waiting
from tests.fixtures.shard_model import Basket, Line, households, named, sharded_shop

pytestmark = pytest.mark.postgres

SHARDS = 3
KEYS = range(12)
EVERYTHING = select(Basket).order_by(Basket.household_id).execution_options(scatter=True)
WITH_LINES = EVERYTHING.options(selectinload(Basket.lines))


@pytest.fixture
def cluster(shard_urls: list[URL]) -> Iterator[ShardCluster]:
    """A basket with two lines for each household."""
    with sharded_shop(shard_urls[:SHARDS]) as cluster:
        for shard, keys in cluster.placed(households, KEYS, key=lambda key: key).items():
            with cluster.begin_bulk(households, shard) as conn:
                conn.execute(
                    insert(Basket), [{"household_id": key, "id": 1, "cents": key} for key in keys]
                )
                conn.execute(
                    insert(Line),
                    [
                        {"household_id": key, "basket_id": 1, "number": number, "quantity": number}
                        for key in keys
                        for number in (1, 2)
                    ],
                )
        yield cluster
        assert all(engine.pool.checkedout() == 0 for engine in cluster.engines.values())  # type: ignore[attr-defined]


def test_all_shards_are_asked_at_once_also_for_what_is_loaded_along(cluster: ShardCluster) -> None:
    found: list[Basket] = []

    def read() -> None:
        with cluster.session() as session:
            found.extend(session.scalars(WITH_LINES))

    for table in ("basket", "line"):
        found.clear()
        holders = [engine.connect() for engine in cluster.engines.values()]
        for holder in holders:
            holder.execute(text(f"LOCK TABLE {table}"))
        reader = threading.Thread(target=read)
        reader.start()
        for engine in cluster.engines.values():
            until_waiting(engine, 1)
        for holder in holders:
            holder.close()
        reader.join(30)

        assert [basket.household_id for basket in found] == list(KEYS)
        assert {len(basket.lines) for basket in found} == {2}


def test_objects_that_the_session_has_are_kept_with_their_changes(cluster: ShardCluster) -> None:
    with cluster.session() as session:
        mine, seen = session.get_one(Basket, (3, 1)), session.get_one(Basket, (4, 1))
        for engine in cluster.engines.values():
            with engine.begin() as conn:
                conn.execute(text("UPDATE basket SET cents = 100"))
        with session.no_autoflush:
            mine.cents = 77
            found = session.scalars(WITH_LINES).all()

        assert (found[3], found[4]) == (mine, seen)
        assert (mine.cents, seen.cents, found[5].cents) == (77, 4, 100)
        assert len(mine.lines) == 2


def test_objects_are_read_again_if_that_is_asked_for(cluster: ShardCluster) -> None:
    with cluster.session() as session:
        before = session.scalars(WITH_LINES).all()
        for engine in cluster.engines.values():
            with engine.begin() as conn:
                conn.execute(text("UPDATE basket SET cents = cents + 100"))
                conn.execute(text("DELETE FROM line WHERE number = 1"))
        again = session.scalars(
            WITH_LINES.execution_options(populate_existing=True, scatter=True)
        ).all()

        assert again == before
        assert [basket.cents for basket in before] == [key + 100 for key in KEYS]
        assert {len(basket.lines) for basket in before} == {1}


def test_expired_objects_are_filled_by_one_statement(cluster: ShardCluster) -> None:
    with cluster.session() as session:
        before = session.scalars(EVERYTHING).all()
        session.commit()
        session.scalars(EVERYTHING).all()
        asked: list[str] = []
        for engine in cluster.engines.values():
            event.listen(engine, "before_cursor_execute", lambda _c, _u, sql, *_: asked.append(sql))

        assert [basket.cents for basket in before] == list(KEYS)
        assert asked == []


def test_an_owner_is_loaded_along_with_its_rows(cluster: ShardCluster) -> None:
    lines = select(Line).options(joinedload(Line.basket)).execution_options(scatter=True)

    with cluster.session() as session:
        found = session.scalars(lines).all()

        assert len(found) == 2 * len(KEYS)
        assert all(line in line.basket.lines for line in found)
        session.get_one(Basket, (3, 1)).cents = 5
        session.commit()
        assert session.get_one(Basket, (3, 1)).cents == 5


@pytest.mark.parametrize("statement", [EVERYTHING, EVERYTHING.with_only_columns(Basket.id)])
def test_what_listeners_add_to_statements_holds_on_every_shard(
    cluster: ShardCluster, statement: object
) -> None:
    """Such as a filter of deleted rows."""
    with cluster.session() as session:

        @event.listens_for(session, "do_orm_execute")
        def filtered(state: ORMExecuteState) -> None:
            state.statement = state.statement.options(
                with_loader_criteria(Basket, Basket.cents < 3)
            )

        assert len(session.scalars(statement).all()) == 3  # type: ignore[call-overload]
        by_cents = select(func.count(Basket.cents.distinct())).execution_options(scatter=True)
        with pytest.raises(UnmergeableQueryError, match="listener"):
            session.scalar(by_cents)


@pytest.mark.usefixtures("cluster")
def test_one_thread_is_enough(shard_urls: list[URL]) -> None:
    with ShardCluster(
        control=shard_urls[0], shards=named(shard_urls[:SHARDS]), groups=[households]
    ) as narrow:
        one = ThreadPoolExecutor(1)
        narrow._fan_out._executors = dict.fromkeys(narrow.engines, one)  # noqa: SLF001 -- of all
        with narrow.session() as session:
            found = session.scalars(WITH_LINES).all()

            assert [len(basket.lines) for basket in found] == [2] * len(KEYS)


def test_a_shard_that_fails_is_named_when_all_have_ended(cluster: ShardCluster) -> None:
    with cluster.engines["s1"].begin() as conn:
        conn.execute(text("UPDATE datapatterns.bucket SET state = 'moved' WHERE bucket = 1"))
    try:
        with cluster.session() as session, pytest.raises(StaleShardMapError, match="'s1'"):
            session.scalars(EVERYTHING)
    finally:
        with cluster.engines["s1"].begin() as conn:
            conn.execute(text("UPDATE datapatterns.bucket SET state = 'owned' WHERE bucket = 1"))


def test_what_fails_on_a_shard_is_raised_as_it_is(cluster: ShardCluster) -> None:
    broken = select(Basket).where(Basket.cents / (Basket.household_id - 3) >= 0)

    with cluster.session(scatter=True) as session:
        with pytest.raises(DBAPIError, match="division by zero"):
            session.scalars(broken)
        session.rollback()
        assert len(session.scalars(EVERYTHING).all()) == len(KEYS)


def test_a_shard_that_is_away_leaves_no_connection_in_use(shard_urls: list[URL]) -> None:
    away = shard_urls[1].set(host="127.0.0.1", port=1, query={})
    with sharded_shop(shard_urls[:2]):
        pass  # there are tables and a map
    with ShardCluster(
        control=shard_urls[0], shards={"s0": shard_urls[0], "s1": away}, groups=[households]
    ) as cluster:
        with cluster.session(scatter=True) as session:
            with pytest.raises(ShardUnavailableError, match="'s1'"):
                session.scalars(select(Basket))
            session.rollback()
            there = keys_on_each(cluster)[0]
            assert session.get(Basket, (there, 1)) is None
        assert cluster.engines["s0"].pool.checkedout() == 0  # type: ignore[attr-defined]
