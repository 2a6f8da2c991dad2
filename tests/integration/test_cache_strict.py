"""Writers that commit only behind a fence."""

from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace

import pytest
from redis import Redis
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from datapatterns.cache_aside import Cache, tracking
from datapatterns.embedded import ValkeyServer
from datapatterns.errors import OutcomeUnknownError, SettingsError, UnfencedWriteError
from datapatterns.failpoints import armed
from datapatterns.testing import ManualClock
from datapatterns.transactions import watch_commits
from tests.fixtures.caches import PATIENT, create_products, name_of, open_cache, rename, until
from tests.fixtures.local_tiers import LOCAL, until_kept, until_told
from tests.fixtures.lost_commits import Loss, Network

pytestmark = [pytest.mark.postgres, pytest.mark.redis]


class Base(DeclarativeBase):
    pass


class Row(Base):
    __tablename__ = "product"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    note: Mapped[str | None]


@pytest.fixture
def shop(engine: Engine) -> Engine:
    create_products(engine)
    return engine


@pytest.fixture
def cache(shop: Engine, redis_client: Redis) -> Iterator[Cache]:
    with closing(Cache(redis_client, shop, name="product", policy=PATIENT, strict=True)) as cache:
        yield cache


@pytest.fixture
def reader(shop: Engine, redis_client: Redis) -> Iterator[Cache]:
    """Another process; it has stored what it read."""
    with open_cache(redis_client, shop) as reader:
        assert (read(reader), read_tagged(reader)) == ("first", "first")
        yield reader


def read(cache: Cache, within: Connection | None = None) -> str | None:
    return cache.get_or_load(1, lambda conn: name_of(conn, 1), within=within)


def read_tagged(cache: Cache) -> str | None:
    return cache.get_or_load("list", lambda conn: name_of(conn, 1), tags=["shelf"])


def by_writes(cache: Cache, engine: Engine) -> None:
    with cache.writes(engine) as conn:
        rename(conn, 1, "second")
        cache.invalidate_in(conn, 1, tags=["shelf"])


def by_a_session(cache: Cache, engine: Engine) -> None:
    sessions = sessionmaker(engine)
    cache.watch(sessions, Row)
    with sessions.begin() as session:
        session.get_one(Row, 1).name = "second"  # flushed by the commit
        cache.invalidate_in(session, tags=["shelf"])


def by_a_plain_connection(cache: Cache, engine: Engine) -> None:
    with engine.begin() as conn:
        rename(conn, 1, "second")
        cache.invalidate_in(conn, 1, tags=["shelf"])


WRITERS = [by_writes, by_a_session, by_a_plain_connection]
every_writer = pytest.mark.parametrize("write", WRITERS)
Write = Callable[[Cache, Engine], None]


def fences(redis_client: Redis) -> list[str]:
    return [key.decode() for key in redis_client.keys("*:fences:*") if isinstance(key, bytes)]


@every_writer
def test_while_a_writer_commits_nobody_is_served_what_is_there_nor_stores_it(
    write: Write, cache: Cache, reader: Cache, engine: Engine
) -> None:
    seen: list[object] = []

    def look() -> None:
        filled = reader.stats().filled
        seen.extend([read(reader), read_tagged(reader), reader.stats().filled - filled])

    with armed("cache.write-fenced", look):
        write(cache, engine)

    assert seen == ["first", "first", 0]  # nothing has committed
    assert (read(reader), read_tagged(reader)) == ("second", "second")


def test_between_the_commit_and_the_delete_nobody_is_served_the_old_value(
    cache: Cache, reader: Cache, engine: Engine
) -> None:
    seen: list[object] = []
    with armed("cache.write-committed", lambda: seen.append((read(reader), read_tagged(reader)))):
        by_writes(cache, engine)

    assert seen == [("second", "second")]
    assert (read(reader), read_tagged(reader)) == ("second", "second")


def test_nor_is_anybody_in_the_writers_process_from_its_memory(
    cache: Cache, shop: Engine, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str | None] = []
    with open_cache(redis_client, shop, LOCAL) as reader:
        until_told(reader)
        until_kept(reader, lambda: read(reader))
        # News of the fence come too late for it.
        monkeypatch.setattr(tracking._Listener, "_pushed", lambda *_: None)  # noqa: SLF001
        with armed("cache.write-committed", lambda: seen.append(read(reader))):
            by_writes(cache, shop)

    assert seen == ["second"]


def test_without_a_fence_somebody_is(reader: Cache, engine: Engine) -> None:
    seen: list[object] = []
    with armed("cache.write-committed", lambda: seen.append((read(reader), read_tagged(reader)))):
        by_writes(reader, engine)

    assert seen == [("first", "first")]


@every_writer
def test_once_it_is_forgotten_others_store_again(
    write: Write, cache: Cache, reader: Cache, engine: Engine, redis_client: Redis
) -> None:
    write(cache, engine)
    if write is by_a_plain_connection:  # of whose commit only the relay learns
        assert len(fences(redis_client)) == 2
        reader.relay()
    assert fences(redis_client) == []

    filled = reader.stats().filled
    assert (read(reader), read_tagged(reader)) == ("second", "second")
    assert reader.stats().filled == filled + 2


def test_a_load_under_way_is_not_stored_behind_the_fence(cache: Cache, reader: Cache) -> None:
    def load(conn: Connection) -> str | None:
        name = name_of(conn, 2)
        with cache.writes() as writer:
            rename(writer, 2, "second")
            cache.invalidate_in(writer, 2)
        return name

    assert reader.get_or_load(2, load) == "first"
    assert reader.stats().refused == 1
    assert reader.get_or_load(2, lambda conn: name_of(conn, 2)) == "second"


def test_an_older_snapshot_is_not_stored_though_the_writer_has_died(
    cache: Cache, reader: Cache, engine: Engine, redis_client: Redis
) -> None:
    reader.relay()
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as conn:
        assert name_of(conn, 2) == "first"
        by_a_plain_connection(cache, engine)
        redis_client.delete(*fences(redis_client))  # as if its time were up

        assert read(reader, conn) == "first"
    assert read(reader) == "second"


@every_writer
def test_a_relay_round_behind_the_fence_does_not_wait_for_its_own_writer(
    write: Write, cache: Cache, reader: Cache, engine: Engine
) -> None:
    with engine.begin() as conn:
        cache.capture(conn, Row)
    cache._backing.gate.close()  # noqa: SLF001 -- as after a silence: the next round opens it
    with engine.begin() as conn:
        rename(conn, 2, "also captured")
        write(cache, engine)

    reader.relay()
    assert read(reader) == "second"


# -- What does not commit --------------------------------------------------------------------------


@pytest.fixture
def unique(shop: Engine) -> None:
    """Names are unique, which is checked when a transaction commits."""
    with shop.begin() as conn:
        conn.execute(text("UPDATE product SET name = id::text WHERE id > 1"))
        conn.execute(text("ALTER TABLE product ADD UNIQUE (name) DEFERRABLE INITIALLY DEFERRED"))


@every_writer
@pytest.mark.usefixtures("unique")
def test_a_commit_that_the_server_refuses_takes_the_fence_down(
    write: Write, cache: Cache, reader: Cache, engine: Engine, redis_client: Redis
) -> None:
    with engine.begin() as conn:
        rename(conn, 2, "second")
    with pytest.raises(IntegrityError):
        write(cache, engine)

    assert fences(redis_client) == []
    filled = reader.stats().filled
    assert read(reader) == "first"
    assert reader.stats().filled == filled + 1


def test_a_rollback_leaves_everything_as_it_was(
    cache: Cache, reader: Cache, redis_client: Redis
) -> None:
    with suppress(ZeroDivisionError), cache.writes() as conn:
        rename(conn, 1, "second")
        cache.invalidate_in(conn, 1)
        raise ZeroDivisionError

    assert fences(redis_client) == []
    loads = reader.stats().loads
    assert (read(reader), reader.stats().loads) == ("first", loads)


def test_a_connection_that_is_used_again_fences_what_it_has_written_since(
    cache: Cache, reader: Cache, engine: Engine, redis_client: Redis
) -> None:
    with engine.connect() as conn:
        cache.invalidate_in(conn, 1)
        conn.rollback()
        cache.invalidate_in(conn, 2)
        conn.commit()
        assert [key.rpartition(":")[2] for key in fences(redis_client)] == ["i2}"]
        # An error in the next transaction says nothing about the last commit.
        with pytest.raises(IntegrityError):
            conn.execute(text("INSERT INTO product VALUES (1, 'again')"))
    assert len(fences(redis_client)) == 1
    assert reader.relay().transactions == 1


def test_after_a_commit_without_an_answer_the_fence_stands(
    loss: Loss, network: Network, redis_client: Redis, engine: Engine
) -> None:
    create_products(engine)
    own = create_engine(network.url)
    with (
        closing(Cache(redis_client, engine, name="product", policy=PATIENT, strict=True)) as cache,
        open_cache(redis_client, engine) as reader,
    ):
        assert read(reader) == "first"
        loss.strike(network)
        with pytest.raises(OutcomeUnknownError):
            by_writes(cache, own)

        assert len(fences(redis_client)) == 2
        until(lambda: read(reader) == ("second" if loss.happens else "first"))
        reader.relay()
        assert len(fences(redis_client)) == (0 if loss.happens else 2)
    own.dispose()


def test_the_fence_of_a_dead_writer_falls_by_itself(
    reader: Cache, engine: Engine, redis_client: Redis
) -> None:
    policy = replace(PATIENT, fence_seconds=0.01)
    with closing(Cache(redis_client, engine, name="product", policy=policy, strict=True)) as hasty:
        by_a_plain_connection(hasty, engine)
    filled = reader.stats().filled

    until(lambda: read(reader) == "second" and reader.stats().filled > filled)


def test_a_commit_that_outlives_its_fence_is_counted(
    cache: Cache, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    clock = ManualClock()
    assert cache._backing._fences is not None  # noqa: SLF001 -- whose clock it is
    cache._backing._fences.clock = clock  # noqa: SLF001
    by_writes(cache, engine)
    assert cache.stats().outlived == 0

    with armed("cache.write-fenced", lambda: clock.advance(PATIENT.fence_seconds)):
        by_writes(cache, engine)

    assert cache.stats().outlived == 1
    assert "fence_seconds" in caplog.text


# -- Redis is away ---------------------------------------------------------------------------------


@pytest.fixture
def away(engine: Engine, valkey_server: ValkeyServer) -> Iterator[Cache]:
    create_products(engine)
    with closing(Cache(valkey_server.url, engine, name="product", strict=True)) as cache:
        assert read(cache) == "first"
        valkey_server.stop()
        yield cache


@every_writer
@pytest.mark.parametrize("watched", [False, True])
def test_without_a_fence_nothing_commits(
    write: Write,
    watched: bool,  # noqa: FBT001 -- as pytest gives it
    away: Cache,
    engine: Engine,
) -> None:
    if watched:
        watch_commits(engine)
    with pytest.raises(UnfencedWriteError, match="rolled back"):
        write(away, engine)

    assert read(away) == "first"
    # Nothing is left open on a connection that others are given.
    with engine.connect() as conn:
        assert conn.scalar(text("SELECT pg_current_xact_id_if_assigned() IS NULL"))
        open_transactions = text(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND state LIKE 'idle in transaction%' AND pid <> pg_backend_pid()"
        )
        assert conn.scalar(open_transactions) == 0


def test_a_session_may_try_again(away: Cache, engine: Engine, valkey_server: ValkeyServer) -> None:
    with Session(engine) as session:
        session.get_one(Row, 1).name = "second"
        away.invalidate_in(session, 1)
        with pytest.raises(UnfencedWriteError):
            session.commit()
        session.rollback()
        assert session.get_one(Row, 1).name == "first"

        valkey_server.start()
        session.get_one(Row, 1).name = "second"
        away.invalidate_in(session, 1)
        until(lambda: commits(session))
    assert read(away) == "second"


def commits(session: Session) -> bool:
    try:
        session.commit()
    except UnfencedWriteError:
        session.rollback()
        return False
    return True


def test_to_forget_what_was_written_before_needs_no_fence(away: Cache) -> None:
    away.invalidate(1)

    assert away.stats().undelivered == 1


def test_readers_go_on(away: Cache) -> None:
    assert read(away) == "first"


def test_a_prepared_transaction_is_refused(cache: Cache, engine: Engine) -> None:
    with (
        engine.connect() as conn,
        conn.begin_twophase(),
        pytest.raises(SettingsError, match="one phase"),
    ):
        cache.invalidate_in(conn, 1)
