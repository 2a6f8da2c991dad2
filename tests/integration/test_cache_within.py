"""Reading through a cache in a transaction that writes itself."""

import asyncio
from collections.abc import Iterator

import pytest
from redis import Redis
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from datapatterns.cache_aside import AsyncCache, Cache, CachedFunction, tag
from datapatterns.errors import SettingsError, UncacheableValueError
from tests.fixtures.caches import (
    PATIENT,
    Product,
    create_products,
    load_product,
    name_of,
    open_cache,
    rename,
)

pytestmark = [pytest.mark.postgres, pytest.mark.redis]

Read = CachedFunction[[int], Product | None]


class Base(DeclarativeBase):
    pass


class Row(Base):
    __tablename__ = "product"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    note: Mapped[str | None]


@pytest.fixture
def cache(engine: Engine, redis_client: Redis) -> Iterator[Cache]:
    create_products(engine)
    with open_cache(redis_client, engine) as cache:
        yield cache


@pytest.fixture
def product(cache: Cache) -> Read:
    product = cache.cached(load_product)
    assert product.get_many([1, 2]) == {1: Product(1, "first"), 2: Product(2, "first")}
    return product


@pytest.fixture
def sessions(engine: Engine, cache: Cache) -> sessionmaker[Session]:
    made = sessionmaker(engine)
    cache.watch(made, Row)
    return made


def test_a_session_sees_what_it_has_written(sessions: sessionmaker[Session], product: Read) -> None:
    with sessions.begin() as session:
        session.get_one(Row, 1).name = "second"

        assert product.within(session, 1) == Product(1, "second")  # flushed, as before a query
        assert product(1) == Product(1, "first")  # what others see
    assert product(1) == Product(1, "second")


def test_the_rest_comes_from_the_cache(
    cache: Cache, sessions: sessionmaker[Session], product: Read
) -> None:
    loads = cache.stats().loads
    with sessions.begin() as session:
        session.get_one(Row, 1).name = "second"

        assert product.within(session, 2) == Product(2, "first")
    assert (cache.stats().loads, cache.stats().bypassed) == (loads, 0)


def test_what_was_rolled_back_is_not_kept(sessions: sessionmaker[Session], product: Read) -> None:
    with sessions() as session:
        session.get_one(Row, 1).name = "second"
        assert product.within(session, 1) == Product(1, "second")
        session.rollback()

        assert product.within(session, 1) == product(1) == Product(1, "first")


def test_a_savepoint_that_was_rolled_back_costs_a_load(
    cache: Cache, sessions: sessionmaker[Session], product: Read
) -> None:
    with sessions.begin() as session:
        with session.begin_nested() as savepoint:
            session.get_one(Row, 1).name = "second"
            session.flush()
            savepoint.rollback()

        assert product.within(session, 1) == Product(1, "first")
    assert cache.stats().bypassed == 1


def test_the_next_transaction_of_a_session_has_written_nothing(
    cache: Cache, sessions: sessionmaker[Session], product: Read
) -> None:
    with sessions() as session:
        session.get_one(Row, 1).name = "second"
        session.commit()

        assert product.within(session, 1) == Product(1, "second")
    assert cache.stats().bypassed == 0


def test_a_connection_sees_what_it_has_written(cache: Cache, product: Read) -> None:
    with cache.writes() as conn:
        rename(conn, 1, "second")
        cache.invalidate_in(conn, 1)

        assert product.within(conn, 1) == Product(1, "second")
        assert product(1) == Product(1, "first")
    assert product(1) == Product(1, "second")


def test_a_session_in_a_transaction_of_anothers_sees_what_that_has_written(
    cache: Cache, product: Read
) -> None:
    with cache.writes() as conn:
        rename(conn, 1, "second")
        cache.invalidate_in(conn, 1)
        with Session(bind=conn) as session:
            assert product.within(session, 1) == Product(1, "second")


def test_a_transaction_that_sees_one_moment_reads_it(
    cache: Cache, engine: Engine, product: Read
) -> None:
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as conn:
        assert name_of(conn, 1) == "first"
        with cache.writes() as writer:
            rename(writer, 1, "second")
            cache.invalidate_in(writer, 1)

        assert product(1) == Product(1, "second")
        assert product.within(conn, 1) == Product(1, "first")
    assert product(1) == Product(1, "second")


def test_a_server_whose_transactions_see_one_moment_is_asked(
    cache: Cache, engine: Engine, product: Read
) -> None:
    quoted = engine.dialect.identifier_preparer.quote(str(engine.url.database))
    with engine.begin() as conn:
        conn.execute(
            text(f"ALTER DATABASE {quoted} SET default_transaction_isolation = serializable")
        )
    own = create_engine(engine.url)
    loads = cache.stats().loads
    with own.connect() as conn:
        assert product.within(conn, 1) == Product(1, "first")
    own.dispose()
    assert cache.stats().loads == loads + 1


def test_what_depends_on_a_tag_that_was_written_is_loaded(cache: Cache, engine: Engine) -> None:
    def count(within: Session | None = None) -> int:
        return cache.get_or_load(
            "all",
            lambda conn: int(conn.execute(text("SELECT count(*) FROM product")).scalar_one()),
            tags=[tag(Row)],
            within=within,
        )

    sessions = sessionmaker(engine)
    cache.watch_tags(sessions, Row)
    assert count() == 20
    with sessions.begin() as session:
        session.add(Row(id=21, name="new"))

        assert (count(session), count()) == (21, 20)
    assert count() == 21


def test_what_would_come_back_as_another_type_is_refused_there_too(cache: Cache) -> None:
    with cache.writes() as conn:
        cache.invalidate_in(conn, "pair")

        with pytest.raises(UncacheableValueError):
            cache.get_or_load("pair", lambda _: (1, 2), within=conn)


def test_neither_connection_nor_session_is_refused(cache: Cache, engine: Engine) -> None:
    with pytest.raises(SettingsError, match="Engine is no Connection"):
        cache.get_or_load(1, load_nothing, within=engine)  # type: ignore[arg-type]  # the mistake


def load_nothing(_: Connection) -> None:
    return None


def test_tasks_see_what_they_have_written(engine: Engine, redis_url: str) -> None:
    create_products(engine)

    async def run() -> None:
        own = create_async_engine(engine.url)
        cache = AsyncCache(redis_url, own, name="product", policy=PATIENT)

        @cache.cached
        async def name(conn: AsyncConnection, product_id: int) -> str | None:
            return await conn.run_sync(name_of, product_id)

        try:
            assert [await name(1), await name(2)] == ["first", "first"]
            async with AsyncSession(own) as session:
                await session.execute(text("UPDATE product SET name = 'second' WHERE id = 1"))
                await session.run_sync(name.invalidate_in, 1)
                assert await name.within(session, 1) == "second"
                assert await name.within(session, 2) == "first"
                assert await name(1) == "first"
                await session.commit()
            assert await name(1) == "second"
            async with own.begin() as conn:
                assert await name.within(conn, 1) == "second"
            assert (cache.stats().bypassed, cache.stats().loads) == (1, 4)
        finally:
            await cache.close()
            await own.dispose()

    asyncio.run(run())
