"""What a write makes obsolete is forgotten when it commits, and only then; nothing is lost."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from time import monotonic

import pytest
from redis import Redis
from sqlalchemy import Engine, String, delete, insert, text, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from datapatterns.cache_aside import Cache
from datapatterns.cache_aside.cached_function import CachedFunction
from datapatterns.errors import UnknownRowsError
from tests.fixtures.caches import (
    ENOUGH_SECONDS,
    Gate,
    Product,
    create_products,
    load_product,
    open_cache,
    rename,
)

pytestmark = [pytest.mark.postgres, pytest.mark.redis]


class Base(DeclarativeBase):
    pass


class ProductRow(Base):
    __tablename__ = "product"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(String)


@pytest.fixture
def cache(engine: Engine, redis_client: Redis) -> Iterator[Cache]:
    create_products(engine)
    with open_cache(redis_client, engine) as cache:
        yield cache


CachedProduct = CachedFunction[[int], Product | None]


@pytest.fixture
def product(cache: Cache) -> CachedProduct:
    product = cache.cached(load_product)
    for number in (1, 2, 3):
        assert product(number) == Product(number, "first")
    return product


def outbox(engine: Engine) -> list[list[str]]:
    with engine.connect() as conn:
        rows = conn.scalars(text("SELECT cache_keys FROM datapatterns.cache_outbox ORDER BY id"))
        return list(rows)


def test_a_commit_forgets(cache: Cache, product: CachedProduct, engine: Engine) -> None:
    with cache.writes() as conn:
        rename(conn, 1, "second")
        product.invalidate_in(conn, 1)
        assert outbox(engine) == []
        assert product(1) == Product(1, "first")

    assert product(1) == Product(1, "second")
    assert outbox(engine) == [["e:product:i1"]]


def test_a_rollback_forgets_nothing(cache: Cache, product: CachedProduct, engine: Engine) -> None:
    def write() -> None:
        with cache.writes() as conn:
            rename(conn, 1, "second")
            product.invalidate_in(conn, 1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write()

    assert product(1) == Product(1, "first")
    assert cache.stats().loads == 3
    assert outbox(engine) == []


def test_what_a_savepoint_undid_is_not_recorded(
    cache: Cache, product: CachedProduct, engine: Engine
) -> None:
    with cache.writes() as conn:
        with conn.begin_nested() as savepoint:
            rename(conn, 1, "never")
            product.invalidate_in(conn, 1)
            savepoint.rollback()
        with conn.begin_nested():
            rename(conn, 2, "second")
            product.invalidate_in(conn, 2)

    assert [product(number) for number in (1, 2)] == [Product(1, "first"), Product(2, "second")]
    assert outbox(engine) == [["e:product:i2"]]


def test_nothing_to_invalidate_records_nothing(cache: Cache, engine: Engine) -> None:
    with cache.writes() as conn:
        cache.invalidate_in(conn)

    assert outbox(engine) == []


def test_one_transaction_invalidates_in_several_caches(
    cache: Cache, product: CachedProduct, engine: Engine, redis_client: Redis
) -> None:
    with open_cache(redis_client, engine, name="price") as prices:
        assert prices.get_or_load(1, lambda _: 5) == 5
        with engine.connect() as conn, cache.writes(conn):
            product.invalidate_in(conn, 1)
            prices.invalidate_in(conn, 1)

        assert prices.get_or_load(1, lambda _: 6) == 6


def test_invalidating_by_hand_forgets(product: CachedProduct, engine: Engine) -> None:
    with engine.begin() as conn:
        rename(conn, 1, "second")
    product.invalidate(1)

    assert product(1) == Product(1, "second")


def test_a_writer_that_dies_after_its_commit_is_mended_by_the_relay(
    cache: Cache, product: CachedProduct, engine: Engine
) -> None:
    program = """
import os, sys
from sqlalchemy import create_engine, text
from datapatterns.cache_aside import Cache
engine = create_engine(sys.argv[1])
with engine.begin() as conn:
    conn.execute(text("UPDATE product SET name = 'second' WHERE id = 1"))
    Cache("redis://127.0.0.1:1", engine, name="product").invalidate_in(conn, 1)
os._exit(9)
"""
    url = engine.url.render_as_string(hide_password=False)
    died = subprocess.run(  # noqa: S603 -- our own program
        [sys.executable, "-c", program, url], check=False, timeout=60
    )
    assert died.returncode == 9
    assert product(1) == Product(1, "first")

    report = cache.relay()

    assert (report.transactions, report.entries, report.has_new_generation) == (1, 1, False)
    assert product(1) == Product(1, "second")


def test_an_early_write_that_commits_late_is_relayed(
    cache: Cache, product: CachedProduct, engine: Engine
) -> None:
    with engine.connect() as slow, slow.begin():
        rename(slow, 1, "second")
        cache.invalidate_in(slow, 1)
        with engine.begin() as quick:
            rename(quick, 2, "second")
            cache.invalidate_in(quick, 2)
        assert cache.relay().entries == 1

    assert cache.relay().entries == 1
    assert [product(number) for number in (1, 2)] == [Product(1, "second"), Product(2, "second")]


def test_what_has_been_relayed_is_collected(cache: Cache, engine: Engine) -> None:
    cache.relay()
    for number in range(600):
        with engine.begin() as conn:
            cache.invalidate_in(conn, number)

    assert cache.relay().transactions == 600
    # Transactions of others on this server may hold the horizon back for a while.
    deadline = monotonic() + ENOUGH_SECONDS
    while outbox(engine) and monotonic() < deadline:
        assert cache.relay().transactions == 0
    assert outbox(engine) == []


def test_a_large_transaction_is_relayed_whole(
    cache: Cache, product: CachedProduct, engine: Engine
) -> None:
    with engine.begin() as conn:
        rename(conn, 3, "second")
        cache.invalidate_in(conn, *range(5_000))

    assert cache.relay().entries == 5_000
    assert product(3) == Product(3, "second")


def test_a_second_relay_stands_by(cache: Cache, engine: Engine) -> None:
    cache.relay()
    with engine.begin() as conn:
        conn.execute(text("SELECT FROM datapatterns.cache_target FOR UPDATE"))

        assert not cache.relay().is_leading
    assert cache.relay().is_leading


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE", "AUTOCOMMIT"])
def test_the_applications_isolation_level_does_not_reach_the_relay(
    engine: Engine, redis_client: Redis, level: str
) -> None:
    create_products(engine)
    with open_cache(redis_client, engine.execution_options(isolation_level=level)) as cache:
        product = cache.cached(load_product)
        product(1)
        with engine.begin() as conn:
            rename(conn, 1, "second")
            cache.invalidate_in(conn, 1)

        assert cache.relay().entries == 1
        assert product(1) == Product(1, "second")


def test_a_session_forgets_when_it_commits(product: CachedProduct, engine: Engine) -> None:
    with Session(engine) as session:
        session.execute(update(ProductRow).where(ProductRow.id == 1).values(name="second"))
        product.invalidate_in(session, 1)
        assert product(1) == Product(1, "first")
        session.commit()
        assert product(1) == Product(1, "second")


def test_releasing_a_savepoint_of_a_session_forgets_nothing_yet(
    cache: Cache, product: CachedProduct, engine: Engine
) -> None:
    """A reader that was sent to the database now would store the old row."""
    with Session(engine) as session:
        with session.begin_nested():
            session.execute(update(ProductRow).where(ProductRow.id == 1).values(name="second"))
            product.invalidate_in(session, 1)
        assert product(1) == Product(1, "first")
        assert cache.stats().loads == 3
        session.commit()

    assert product(1) == Product(1, "second")


def test_a_session_that_rolls_back_forgets_nothing_later(
    cache: Cache, product: CachedProduct, engine: Engine
) -> None:
    with Session(engine) as session:
        product.invalidate_in(session, 1)
        session.rollback()
        session.add(ProductRow(id=99, name="unrelated"))
        session.commit()

    assert product(1) == Product(1, "first")
    assert cache.stats().loads == 3


@pytest.fixture
def sessions(cache: Cache, engine: Engine) -> sessionmaker[Session]:
    sessions = sessionmaker(engine)
    cache.watch(sessions, ProductRow)
    return sessions


def test_a_watched_session_forgets_what_it_flushed(
    product: CachedProduct, sessions: sessionmaker[Session]
) -> None:
    assert product(21) is None
    with sessions.begin() as session:
        session.add(ProductRow(id=21, name="new"))
        session.get_one(ProductRow, 1).name = "second"
        session.delete(session.get_one(ProductRow, 2))

    assert [product(number) for number in (1, 2, 3, 21)] == [
        Product(1, "second"),
        None,
        Product(3, "first"),
        Product(21, "new"),
    ]


def test_a_changed_primary_key_forgets_both(
    product: CachedProduct, sessions: sessionmaker[Session]
) -> None:
    assert product(50) is None
    with sessions.begin() as session:
        session.get_one(ProductRow, 1).id = 50

    assert (product(1), product(50)) == (None, Product(50, "first"))


@pytest.mark.parametrize(
    "statement",
    [
        update(ProductRow).values(name="second"),
        update(ProductRow.__table__).values(name="second"),  # type: ignore[arg-type]  # a Table
        delete(ProductRow),
        insert(ProductRow).values(id=50, name="new"),
    ],
)
def test_a_bulk_write_must_say_which_rows(
    product: CachedProduct, sessions: sessionmaker[Session], statement: object
) -> None:
    with sessions() as session, pytest.raises(UnknownRowsError):
        session.execute(statement)  # type: ignore[call-overload]  # one of several kinds
    with sessions.begin() as session:
        session.execute(
            update(ProductRow).where(ProductRow.id == 1).values(name="second"),
            execution_options={"cache_keys": [1]},
        )

    assert product(1) == Product(1, "second")


def test_sessions_that_are_not_watched_are_left_alone(
    sessions: sessionmaker[Session], engine: Engine
) -> None:
    assert sessions.class_ is not Session
    with Session(engine) as session, session.begin():
        session.execute(update(ProductRow).values(name="second"))


def test_two_writers_of_one_row_leave_the_last_value(
    cache: Cache, product: CachedProduct, engine: Engine
) -> None:
    """The first to commit is the last to delete."""
    gate = Gate()

    def first() -> None:
        with engine.begin() as conn:
            rename(conn, 1, "second")
            cache.invalidate_in(conn, 1)
        gate.stop_here()
        cache.invalidate(1)

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(first)
        gate.wait_until_reached()
        with cache.writes() as conn:
            rename(conn, 1, "third")
            product.invalidate_in(conn, 1)
        assert product(1) == Product(1, "third")
        gate.open()
        writer.result(ENOUGH_SECONDS)

    assert product(1) == Product(1, "third")
