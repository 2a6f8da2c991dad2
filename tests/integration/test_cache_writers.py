"""Who may write, and when a write is known to have committed."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import pytest
from redis import Redis
from sqlalchemy import ForeignKey, create_engine, text, update
from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    scoped_session,
    sessionmaker,
)

from datapatterns.cache_aside import Cache, CachePolicy
from datapatterns.errors import IsolationLevelError, SettingsError, UnknownRowsError
from tests.fixtures.blocking import until_blocked_by
from tests.fixtures.caches import (
    ENOUGH_SECONDS,
    PATIENT,
    create_products,
    name_of,
    open_cache,
    rename,
)

pytestmark = [pytest.mark.postgres, pytest.mark.redis]


@pytest.fixture
def cache(engine: Engine, redis_client: Redis) -> Iterator[Cache]:
    create_products(engine)
    with open_cache(redis_client, engine) as cache:
        yield cache


def read(cache: Cache) -> str | None:
    return cache.get_or_load(1, lambda conn: name_of(conn, 1))


JoinMode = Literal["conditional_savepoint", "create_savepoint", "rollback_only"]


@pytest.mark.parametrize("mode", ["conditional_savepoint", "create_savepoint", "rollback_only"])
def test_a_session_that_joined_a_transaction_forgets_when_that_commits(
    cache: Cache, mode: JoinMode
) -> None:
    """A reader that came between the two commits would store the old row again."""
    assert read(cache) == "first"
    with cache.writes() as conn:
        with Session(conn, join_transaction_mode=mode) as session:
            rename(session.connection(), 1, "second")
            cache.invalidate_in(session, 1)
            session.commit()
        assert read(cache) == "first"
        assert cache.stats().loads == 1

    assert read(cache) == "second"


def test_a_session_that_joined_a_plain_connection_is_left_to_the_relay(
    cache: Cache, engine: Engine
) -> None:
    read(cache)
    with engine.begin() as conn:
        with Session(conn, join_transaction_mode="create_savepoint") as session:
            rename(session.connection(), 1, "second")
            cache.invalidate_in(session, 1)
            session.commit()
        read(cache)
        assert cache.stats().loads == 1

    assert cache.relay().entries == 1
    assert read(cache) == "second"


def test_a_scoped_session_is_the_session_of_its_thread(cache: Cache, engine: Engine) -> None:
    read(cache)
    sessions = scoped_session(sessionmaker(engine))
    rename(sessions.connection(), 1, "second")
    cache.invalidate_in(sessions, 1)  # type: ignore[arg-type]  # it passes for one
    sessions.commit()

    assert read(cache) == "second"
    with ThreadPoolExecutor(1) as pool:
        pool.submit(sessions.commit).result(ENOUGH_SECONDS)


def test_a_writer_in_autocommit_mode_is_refused(cache: Cache, engine: Engine) -> None:
    """What it records commits before its write, and is sent before it."""
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
    with autocommit.begin() as conn, pytest.raises(IsolationLevelError, match="autocommit"):
        cache.invalidate_in(conn, 1)
    with Session(autocommit) as session, pytest.raises(IsolationLevelError, match="autocommit"):
        cache.invalidate_in(session, 1)

    with open_cache("redis://127.0.0.1:1", autocommit, name="other") as other:
        other.invalidate(1)
    with engine.connect() as conn:
        assert conn.scalar(text("SELECT count(*) FROM datapatterns.cache_outbox")) == 1


def test_a_writer_to_another_database_is_refused(
    cache: Cache, engine: Engine, shard_urls: list[str]
) -> None:
    """No relay looks into the outbox there."""
    elsewhere, same = create_engine(shard_urls[0]), create_engine(engine.url)
    with elsewhere.begin() as conn, pytest.raises(SettingsError, match="another database"):
        cache.invalidate_in(conn, 1)
    for _ in range(2):
        with same.begin() as conn:
            cache.invalidate_in(conn, 1)
    elsewhere.dispose()
    same.dispose()


def test_an_async_writer_is_refused_with_advice(cache: Cache, engine: Engine) -> None:
    async_engine = create_async_engine(engine.url)
    for writer in (AsyncConnection(async_engine), AsyncSession(async_engine)):
        with pytest.raises(SettingsError, match="run_sync"):
            cache.invalidate_in(writer, 1)  # type: ignore[arg-type]  # that is the point


class Base(DeclarativeBase):
    pass


class Staff(Base):
    __tablename__ = "staff"
    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "staff"}  # noqa: RUF012 -- SQLAlchemy's


def test_a_bulk_write_to_a_subclass_must_say_which_rows(cache: Cache, engine: Engine) -> None:
    sessions = sessionmaker(engine)
    cache.watch(sessions, Staff)

    class Manager(Staff):
        __tablename__ = "manager"
        id: Mapped[str] = mapped_column(ForeignKey("staff.id"), primary_key=True)
        car: Mapped[str]
        __mapper_args__ = {"polymorphic_identity": "manager"}  # noqa: RUF012 -- SQLAlchemy's

    with sessions() as session, pytest.raises(UnknownRowsError):
        session.execute(update(Manager).values(car="red"))


def test_a_key_alone_is_not_taken_to_pieces(cache: Cache, engine: Engine) -> None:
    Base.metadata.tables["staff"].create(engine)
    sessions = sessionmaker(engine)
    cache.watch(sessions, Staff)
    with sessions.begin() as session:
        session.execute(
            update(Staff).where(Staff.id == "ann").values(kind="staff"),
            execution_options={"cache_keys": "ann"},
        )

    with engine.connect() as conn:
        rows = conn.scalars(text("SELECT cache_keys FROM datapatterns.cache_outbox")).all()
    assert rows == [["e:product:sann"]]


def test_another_database_of_the_server_is_another_target(
    cache: Cache, engine: Engine, redis_client: Redis, redis_url: str
) -> None:
    """Its entries have not been told what was sent to this one."""
    cache.relay()
    number = redis_client.connection_pool.connection_kwargs.get("db", 0)
    with Redis.from_url(redis_url) as elsewhere:
        elsewhere.connection_pool.connection_kwargs["db"] = (int(number) + 1) % 16
        with open_cache(elsewhere, engine) as other:
            assert other.relay().has_new_generation
            assert cache.relay().has_new_generation


def test_a_longer_trust_of_another_cache_is_not_this_ones(
    cache: Cache, engine: Engine, redis_client: Redis
) -> None:
    short = CachePolicy(vouched_seconds=0.1, redis_timeout_seconds=5)
    assert PATIENT.vouched_seconds == 60
    with open_cache(redis_client, engine, short) as strict:
        assert read(strict) == "first"
        cache.relay()
        with engine.begin() as conn:
            rename(conn, 1, "second")
            cache.invalidate_in(conn, 1)

        # Within its own tenth of a second, one more that the gate is not asked, and some work.
        wait_for(
            lambda: read(strict) == "second", redis_client, seconds=PATIENT.vouched_seconds / 4
        )
        assert read(cache) == "second"


def test_a_round_that_took_long_vouches_for_what_it_saw(
    engine: Engine, redis_client: Redis
) -> None:
    create_products(engine)
    policy = CachePolicy(vouched_seconds=1, redis_timeout_seconds=5)
    with open_cache(redis_client, engine, policy) as cache, ThreadPoolExecutor(1) as pool:
        cache.relay()
        with engine.begin() as conn:
            # The round wants this row once it has sent what there is.
            conn.execute(
                text(
                    "ALTER TABLE datapatterns.cache_outbox ADD FOREIGN KEY (id)"
                    " REFERENCES product (id) NOT VALID"
                )
            )
            began = now_ms(redis_client)
            relay = pool.submit(cache.relay)
            until_blocked_by(engine, conn)
            wait_for(lambda: now_ms(redis_client) > began + 1_500, redis_client, seconds=30)
            conn.rollback()
        relay.result(ENOUGH_SECONDS)

        assert redis_client.keys("*:server") == []


def now_ms(redis: Redis) -> int:
    seconds, microseconds = redis.time()
    return int(seconds) * 1000 + int(microseconds) // 1000


def wait_for(condition: Callable[[], bool], redis: Redis, *, seconds: float) -> None:
    deadline = now_ms(redis) + seconds * 1000
    while not condition():
        assert now_ms(redis) < deadline
