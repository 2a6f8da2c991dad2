"""Values that depend on rows, on tables and on the values of columns."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import closing
from decimal import Decimal
from threading import Thread

import pytest
from redis import Redis
from sqlalchemy import (
    Column,
    Connection,
    Engine,
    ForeignKey,
    Integer,
    Numeric,
    Table,
    Text,
    func,
    select,
    text,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    relationship,
    sessionmaker,
)

from datapatterns.cache_aside import TAGGED, AsyncCache, Cache, tag
from datapatterns.errors import CacheKeyError
from tests.fixtures.caches import PATIENT, Gate, open_cache, until

pytestmark = [pytest.mark.postgres, pytest.mark.redis]


class Base(DeclarativeBase):
    pass


stocked = Table(
    "stocked",
    Base.metadata,
    Column("item_id", ForeignKey("item.id"), primary_key=True),
    Column("shop_id", ForeignKey("shop.id"), primary_key=True),
)


class Shop(Base):
    __tablename__ = "shop"

    id: Mapped[int] = mapped_column(primary_key=True)


class Item(Base):
    __tablename__ = "item"

    id: Mapped[int] = mapped_column(primary_key=True)
    department: Mapped[int | None] = mapped_column(Integer, info=TAGGED)
    name: Mapped[str] = mapped_column(Text)
    shops: Mapped[list[Shop]] = relationship(secondary=stocked)


class Weighed(Base):
    __tablename__ = "weighed"

    grams: Mapped[Decimal] = mapped_column(Numeric, primary_key=True)


@pytest.fixture
def shop(engine: Engine) -> Engine:
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.add_all(Item(id=n, department=n % 2, name="first") for n in range(1, 7))
        session.add(Shop(id=1))
    return engine


@pytest.fixture
def cache(shop: Engine, redis_client: Redis) -> Iterator[Cache]:
    with open_cache(redis_client, shop) as cache:
        yield cache


@pytest.fixture
def sessions(shop: Engine, cache: Cache) -> sessionmaker[Session]:
    made = sessionmaker(shop)
    cache.watch_tags(made, Item)
    return made


@pytest.fixture
def in_department(cache: Cache) -> Callable[[int | None], list[str]]:
    @cache.cached(tags=lambda department: [tag(Item.department == department)])
    def names(conn: Connection, department: int | None) -> list[str]:
        wanted = Item.department.is_not_distinct_from(department)
        return [*conn.scalars(select(Item.name).where(wanted).order_by(Item.id))]

    return names


def load_count(conn: Connection) -> int:
    return conn.execute(select(func.count()).select_from(Item)).scalar_one()


def test_a_value_is_forgotten_with_its_tag(cache: Cache) -> None:
    def count() -> int:
        return cache.get_or_load("all", load_count, tags=[tag(Item)])

    assert [count(), count()] == [6, 6]
    cache.invalidate(tags=["another"])
    assert (count(), cache.stats().loads) == (6, 1)
    cache.invalidate(tags=[tag(Item)])
    assert (count(), cache.stats().loads) == (6, 2)


def test_a_tag_is_forgotten_with_the_commit_alone(cache: Cache, shop: Engine) -> None:
    def count() -> int:
        return cache.get_or_load("all", load_count, tags=[tag(Item)])

    assert count() == 6
    with shop.connect() as conn, conn.begin() as transaction:
        conn.execute(text("DELETE FROM item WHERE id = 1"))
        cache.invalidate_in(conn, tags=[tag(Item)])
        transaction.rollback()
    assert (count(), cache.stats().loads) == (6, 1)

    with cache.writes() as conn:
        conn.execute(text("DELETE FROM item WHERE id = 1"))
        cache.invalidate_in(conn, tags=[tag(Item)])
        assert count() == 6  # as others still see it
    assert count() == 5


def test_the_relay_forgets_tags_when_the_writer_died(cache: Cache, shop: Engine) -> None:
    def count() -> int:
        return cache.get_or_load("all", load_count, tags=[tag(Item)])

    assert count() == 6
    with shop.begin() as conn:  # nobody acts on its commit
        conn.execute(text("DELETE FROM item WHERE id = 1"))
        cache.invalidate_in(conn, tags=[tag(Item)])
    report = cache.relay()

    assert (report.transactions, report.entries) == (1, 1)
    assert count() == 5


def test_a_load_that_a_tag_overtakes_is_not_served_again(cache: Cache) -> None:
    gate, found = Gate(), []

    def slow(conn: Connection) -> int:
        count = load_count(conn)
        gate.stop_here()
        return count

    reading = Thread(target=lambda: found.append(cache.get_or_load("all", slow, tags=[tag(Item)])))
    reading.start()
    gate.wait_until_reached()
    with cache.writes() as conn:
        conn.execute(text("DELETE FROM item WHERE id = 1"))
        cache.invalidate_in(conn, tags=[tag(Item)])
    # Nobody joins it, either: this caller must see the write.
    assert cache.get_or_load("other", load_count, tags=[tag(Item)]) == 5
    gate.open()
    reading.join()

    assert found == [6]
    assert cache.get_or_load("all", load_count, tags=[tag(Item)]) == 5


def test_whoever_wrote_joins_no_load_under_way_of_what_he_changed(cache: Cache) -> None:
    gate = Gate()
    lags = [True]

    def slow(conn: Connection) -> int:
        count = load_count(conn)
        if lags.pop() if lags else False:
            gate.stop_here()
        return count

    reading = Thread(target=lambda: cache.get_or_load("all", slow, tags=[tag(Item)]))
    reading.start()
    gate.wait_until_reached()
    cache.invalidate(tags=[tag(Item)])
    found: list[int] = []
    writer = Thread(target=lambda: found.append(cache.get_or_load("all", slow, tags=[tag(Item)])))
    writer.start()
    # It waits for the lease, in vain or not, but not for the other's outcome.
    until(lambda: cache.stats().waits > 0)
    gate.open()
    reading.join()
    writer.join()

    assert found == [6]


def test_stamps_that_were_evicted_cost_a_load(cache: Cache, redis_client: Redis) -> None:
    def count() -> int:
        return cache.get_or_load("all", load_count, tags=[tag(Item)])

    count()
    redis_client.delete(*redis_client.keys("*:stamp:*"))

    assert (count(), cache.stats().loads) == (6, 2)
    assert (count(), cache.stats().loads) == (6, 2)


def test_a_session_forgets_the_lists_that_a_row_leaves_and_enters(
    sessions: sessionmaker[Session], in_department: Callable[[int | None], list[str]]
) -> None:
    assert [len(in_department(0)), len(in_department(1)), len(in_department(None))] == [3, 3, 0]

    with sessions.begin() as session:
        item = session.get_one(Item, 2)
        item.department = 1
    assert [len(in_department(0)), len(in_department(1))] == [2, 4]

    with sessions.begin() as session:
        session.get_one(Item, 2).department = None
    assert [len(in_department(1)), len(in_department(None))] == [3, 1]

    with sessions.begin() as session:
        session.delete(session.get_one(Item, 2))
    assert in_department(None) == []

    with sessions.begin() as session:
        session.add(Item(id=9, department=None, name="ninth"))
    assert in_department(None) == ["ninth"]


def test_a_list_is_forgotten_that_others_moved_the_row_to_meanwhile(
    sessions: sessionmaker[Session],
    in_department: Callable[[int | None], list[str]],
    shop: Engine,
) -> None:
    with sessions() as session:
        item = session.get_one(Item, 2)
        session.commit()
        assert item.department == 0  # read again, and known from then on
        with shop.begin() as conn:
            conn.execute(text("UPDATE item SET department = 7 WHERE id = 2"))
        assert in_department(7) == ["first"]
        item.name = "renamed"
        session.commit()

    assert in_department(7) == ["renamed"]


def test_rows_of_other_departments_cost_nothing(
    sessions: sessionmaker[Session],
    in_department: Callable[[int | None], list[str]],
    cache: Cache,
) -> None:
    in_department(0)
    with sessions.begin() as session:
        session.get_one(Item, 1).name = "renamed"

    in_department(0)
    assert cache.stats().loads == 1


def test_what_a_savepoint_rolled_back_or_a_session_did_is_forgotten_at_most(
    sessions: sessionmaker[Session], in_department: Callable[[int | None], list[str]]
) -> None:
    in_department(0)
    with sessions.begin() as session:
        with session.begin_nested() as savepoint:
            session.get_one(Item, 2).name = "renamed"
            session.flush()
            savepoint.rollback()
        session.get_one(Item, 4).name = "renamed"

    assert in_department(0) == ["first", "renamed", "first"]


def test_a_write_of_unknown_rows_forgets_what_depends_on_any(
    sessions: sessionmaker[Session],
    in_department: Callable[[int | None], list[str]],
    cache: Cache,
) -> None:
    def row() -> str | None:
        return cache.get_or_load(
            "row", lambda conn: conn.scalars(select(Item.name)).first(), tags=[tag(Item, 1)]
        )

    assert (row(), in_department(1)) == ("first", ["first"] * 3)
    with sessions.begin() as session:
        session.execute(update(Item).values(name="renamed"))

    assert (row(), in_department(1)) == ("renamed", ["renamed"] * 3)


def test_a_value_that_the_server_computes_forgets_what_depends_on_any(
    sessions: sessionmaker[Session], in_department: Callable[[int | None], list[str]]
) -> None:
    assert in_department(7) == []
    with sessions.begin() as session:
        session.get_one(Item, 2).department = Item.department + 7

    assert in_department(7) == ["first"]


def test_a_row_whose_key_has_no_certain_name_is_still_written(cache: Cache, shop: Engine) -> None:
    made = sessionmaker(shop)
    cache.watch_tags(made, Weighed)
    count = select(func.count()).select_from(Weighed)

    def weighed() -> int:
        return cache.get_or_load(
            "weighed", lambda conn: conn.execute(count).scalar_one(), tags=[tag(Weighed)]
        )

    assert weighed() == 0
    with made.begin() as session:
        session.add(Weighed(grams=Decimal("1.00")))
    assert weighed() == 1


def test_an_object_that_did_not_change_forgets_nothing(
    sessions: sessionmaker[Session],
    in_department: Callable[[int | None], list[str]],
    cache: Cache,
) -> None:
    in_department(0)
    with sessions.begin() as session:
        item = session.get_one(Item, 2)
        item.name = item.name
        session.get_one(Item, 1).name = "renamed"

    in_department(0)
    assert cache.stats().loads == 1


def test_links_between_rows_are_a_table_of_their_own(
    sessions: sessionmaker[Session], cache: Cache
) -> None:
    def links() -> int:
        count = select(func.count()).select_from(stocked)
        return cache.get_or_load(
            "links", lambda conn: conn.execute(count).scalar_one(), tags=[tag(stocked)]
        )

    assert links() == 0
    with sessions.begin() as session:
        item = session.get_one(Item, 1)
        item.shops.append(session.get_one(Shop, 1))
    assert links() == 1


def test_many_values_with_tags_are_read_at_once(cache: Cache) -> None:
    asked: list[list[int]] = []

    def names(conn: Connection, ids: list[int]) -> dict[int, str]:
        asked.append(ids)
        rows = conn.execute(select(Item.id, Item.name).where(Item.id.in_(ids)))
        return {row.id: row.name for row in rows}

    def read() -> dict[int, str | None]:
        return cache.get_many([1, 2, 3], names, tags=lambda item_id: [tag(Item, item_id)])

    assert len(read()) == 3
    cache.invalidate(tags=[tag(Item, 2)])
    assert len(read()) == 3
    assert asked == [[1, 2, 3], [2]]


def test_a_value_without_tags_is_none_with_tags(cache: Cache) -> None:
    """Two releases of an application, of which one knows of a dependency."""
    cache.get_or_load("all", load_count)
    cache.get_or_load("all", load_count, tags=[tag(Item)])
    cache.get_or_load("all", load_count, tags=[tag(Item)])

    assert cache.stats().loads == 2
    cache.get_or_load("all", load_count)
    assert cache.stats().loads == 3


def test_tasks_depend_on_tags(shop: Engine, redis_url: str) -> None:
    async def run() -> None:
        own = create_async_engine(shop.url)
        cache = AsyncCache(redis_url, own, name="item", policy=PATIENT)

        @cache.cached(tags=lambda: [tag(Item)])
        async def count(conn: AsyncConnection) -> int:
            return await conn.run_sync(load_count)

        try:
            assert [await count(), await count()] == [6, 6]
            async with cache.writes() as conn:
                await conn.execute(text("DELETE FROM item WHERE id = 1"))
                await conn.run_sync(lambda writer: cache.invalidate_in(writer, tags=[tag(Item)]))
            assert await count() == 5
            await cache.invalidate(tags=[tag(Item)])
            assert await count() == 5
            assert cache.stats().loads == 3
        finally:
            await cache.close()
            await own.dispose()

    asyncio.run(run())


def test_two_caches_of_one_target_share_tags(
    cache: Cache, shop: Engine, redis_client: Redis
) -> None:
    with closing(Cache(redis_client, shop, name="other", policy=PATIENT)) as other:
        other.get_or_load("all", load_count, tags=[tag(Item)])
        cache.relay()
        cache.invalidate(tags=[tag(Item)])
        other.get_or_load("all", load_count, tags=[tag(Item)])

        assert other.stats().loads == 2


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: tag(Item.name == "x"), "info=TAGGED"),
        (lambda: tag(Item.department == "5"), "holds int"),
        (lambda: tag(Item.id == True), "column of a table == a value"),  # noqa: E712 -- SQL
        (lambda: tag(Item.department > 5), "column of a table == a value"),
        (lambda: tag(Item, 1, 2), "primary key of item has 1 columns"),
        (lambda: tag(int), "a mapped class"),
    ],
)
def test_tags_that_a_writer_would_call_otherwise_are_refused(
    make: Callable[[], str], reason: str
) -> None:
    with pytest.raises(CacheKeyError, match=reason):
        make()


def test_too_many_tags_are_refused(cache: Cache) -> None:
    with pytest.raises(CacheKeyError, match="at most 255 tags"):
        cache.get_or_load("all", load_count, tags=[f"t{number}" for number in range(256)])
