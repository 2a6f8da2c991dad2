"""Roles that may not run rounds of the relay: they are served hits if somebody else does."""

from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from sqlalchemy import Column, Engine, Integer, MetaData, Table, create_engine, text

from datapatterns.cache_aside import Cache, gate
from datapatterns.cache_aside.links import Links
from datapatterns.errors import MissingRightsError
from tests.fixtures.caches import PATIENT, create_products, name_of, open_cache, rename

pytestmark = [pytest.mark.postgres, pytest.mark.redis]

READER, WRITER = "reads_caches", "writes_caches"
GRANTS = {
    READER: ("SELECT ON datapatterns.cache_target", "SELECT ON product"),
    # As docs/how-to/run-with-the-least-rights.md says: all but to move the consumer on.
    WRITER: (
        "SELECT, INSERT, UPDATE ON datapatterns.cache_target",
        "INSERT (cache_keys), SELECT, DELETE ON datapatterns.cache_outbox",
        "SELECT ON ALL TABLES IN SCHEMA datapatterns",
        "SELECT, UPDATE ON product",
    ),
}


@pytest.fixture(autouse=True)
def _looks_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "CHECK_SECONDS", 0.0)


@pytest.fixture
def worker(engine: Engine, redis_url: str, redis_client: Redis) -> Iterator[Cache]:
    """A cache that follows a table, of an owner that runs rounds."""
    assert redis_client.dbsize() == 0
    create_products(engine)
    with open_cache(redis_url, engine) as cache:
        with engine.begin() as conn:
            cache.capture(
                conn, Table("product", MetaData(), Column("id", Integer, primary_key=True))
            )
        yield cache


@contextmanager
def role(engine: Engine, name: str) -> Iterator[Engine]:
    with engine.begin() as conn:
        conn.execute(text(f"CREATE ROLE {name} LOGIN PASSWORD 'x'"))
        conn.execute(text(f"GRANT USAGE ON SCHEMA datapatterns TO {name}"))
        for grant in GRANTS[name]:
            conn.execute(text(f"GRANT {grant} TO {name}"))
    own = create_engine(engine.url.set(username=name, password="x"))
    try:
        yield own
    finally:
        own.dispose()
        with engine.begin() as conn:
            conn.execute(text(f"DROP OWNED BY {name}; DROP ROLE {name}"))


@pytest.fixture
def reader(engine: Engine, worker: Cache, redis_url: str) -> Iterator[Cache]:
    assert worker.name == "product"
    with (
        role(engine, READER) as own,
        closing(Cache(redis_url, own, name="product", policy=PATIENT)) as cache,
    ):
        yield cache


@pytest.fixture
def writer(engine: Engine, worker: Cache, redis_url: str) -> Iterator[Cache]:
    assert worker.name == "product"
    with (
        role(engine, WRITER) as own,
        closing(Cache(redis_url, own, name="product", policy=PATIENT)) as cache,
    ):
        yield cache


def read(cache: Cache) -> str | None:
    return cache.get_or_load(1, lambda conn: name_of(conn, 1))


def test_a_role_that_only_reads_is_served_while_another_relays(
    reader: Cache, worker: Cache, engine: Engine
) -> None:
    assert read(reader) == "first"
    assert (reader.stats().hits, reader.stats().bypassed) == (0, 1)
    worker.relay()

    assert [read(reader) for _ in range(3)] == ["first"] * 3
    assert reader.stats().hits == 2
    with engine.begin() as conn:
        rename(conn, 1, "second")
    worker.relay()
    assert [read(reader) for _ in range(2)] == ["second"] * 2


def test_so_is_one_whose_transactions_only_read(
    worker: Cache, engine: Engine, redis_url: str
) -> None:
    worker.relay()
    own = create_engine(engine.url, connect_args={"options": "-c default_transaction_read_only=on"})
    with closing(Cache(redis_url, own, name="product", policy=PATIENT)) as cache:
        assert read(cache) == read(cache) == "first"
        assert cache.stats().hits == 1
    own.dispose()


def test_whoever_may_not_relay_is_told(reader: Cache) -> None:
    with pytest.raises(MissingRightsError, match="let a worker run them"):
        reader.relay()


def test_nobody_is_served_from_a_server_that_nobody_vouches_for(
    reader: Cache, worker: Cache, redis_client: Redis
) -> None:
    worker.relay()
    read(reader)
    [mark] = redis_client.keys("datapatterns:*:server")
    redis_client.delete(mark)

    read(reader)
    assert reader.stats().hits == 0


def test_nobody_is_served_in_a_copy_of_the_database(
    reader: Cache, worker: Cache, engine: Engine
) -> None:
    worker.relay()
    with engine.begin() as conn:
        conn.execute(text("UPDATE datapatterns.cache_target SET identity = identity || '0'"))

    assert read(reader) == read(reader) == "first"
    assert reader.stats().hits == 0


def test_own_writes_are_seen_until_a_round_that_began_after_them(
    writer: Cache, worker: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.relay()
    assert read(writer) == read(writer) == "first"
    hits = writer.stats().hits
    go_silent(writer, monkeypatch)

    assert read(writer) == read(writer) == "second"
    assert writer.stats().hits == hits
    worker.relay()
    assert [read(writer) for _ in range(3)] == ["second"] * 3
    assert writer.stats().hits > hits


def test_a_gate_that_trusts_any_round_serves_what_its_process_has_overwritten(
    writer: Cache, worker: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.relay()
    assert read(writer) == read(writer) == "first"
    go_silent(writer, monkeypatch)
    monkeypatch.setattr(gate, "_NEVER_CLOSED", writer._backing.gate.closings)  # noqa: SLF001

    assert read(writer) == "first"


def go_silent(writer: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commit a write of which Redis does not hear."""

    def call_all(links: Links, *_: object, **__: object) -> list[object]:
        raise links.silence(RedisConnectionError("away"))

    with monkeypatch.context() as away:
        away.setattr(Links, "call_all", call_all)
        with writer.writes() as conn:
            rename(conn, 1, "second")
            writer.invalidate_in(conn, 1)
    assert writer.stats().undelivered == 1
