"""A cache that forgets whatever is written, by whomever: triggers tell the relay."""

from collections.abc import Iterator
from contextlib import closing
from uuid import UUID

import pytest
from redis import Redis
from sqlalchemy import (
    Connection,
    Engine,
    ForeignKey,
    Integer,
    Numeric,
    Text,
    Uuid,
    create_engine,
    func,
    select,
    text,
    update,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from datapatterns.cache_aside import TAGGED, Cache, tag
from datapatterns.change_log import ChangeLog
from datapatterns.errors import CacheKeyError, MissingRightsError
from tests.fixtures.caches import PATIENT, open_cache

pytestmark = [pytest.mark.postgres, pytest.mark.redis]


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "item"

    id: Mapped[int] = mapped_column(primary_key=True)
    department: Mapped[int | None] = mapped_column(Integer, info=TAGGED)
    name: Mapped[str] = mapped_column(Text)


class Note(Base):
    __tablename__ = "note"

    word: Mapped[str] = mapped_column(Text, primary_key=True)
    owner: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    item_id: Mapped[int | None] = mapped_column(ForeignKey("item.id", ondelete="CASCADE"))


class Weight(Base):
    __tablename__ = "weight"

    grams: Mapped[object] = mapped_column(Numeric, primary_key=True)


OWNER = UUID(int=5)


@pytest.fixture
def shop(engine: Engine) -> Engine:
    Base.metadata.create_all(engine)
    with engine.begin() as conn:
        conn.execute(text("INSERT INTO item SELECT n, n % 2, 'first' FROM generate_series(1, 6) n"))
    return engine


@pytest.fixture
def cache(shop: Engine, redis_client: Redis) -> Iterator[Cache]:
    with open_cache(redis_client, shop, name="item") as cache:
        with shop.begin() as conn:
            cache.capture(conn, Item)
        cache.relay()
        yield cache


def name(cache: Cache, item_id: int) -> str | None:
    return cache.get_or_load(
        item_id, lambda conn: conn.scalar(select(Item.name).where(Item.id == item_id))
    )


def names_in(cache: Cache, department: int | None) -> list[str]:
    return cache.get_or_load(
        ("department", department),
        lambda conn: [
            *conn.scalars(
                select(Item.name)
                .where(Item.department.is_not_distinct_from(department))
                .order_by(Item.id)
            )
        ],
        tags=[tag(Item.department == department)],
    )


def run(engine: Engine, *statements: str) -> None:
    with engine.begin() as conn:
        for statement in statements:
            conn.execute(text(statement))


def test_what_sql_text_writes_is_forgotten_by_the_relay(cache: Cache, shop: Engine) -> None:
    assert [name(cache, 1), name(cache, 2)] == ["first", "first"]
    run(shop, "UPDATE item SET name = 'second' WHERE id = 1")
    report = cache.relay()

    assert (report.transactions, report.has_new_generation) == (1, False)
    loads = cache.stats().loads
    assert [name(cache, 1), name(cache, 2)] == ["second", "first"]
    assert cache.stats().loads == loads + 1


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM item WHERE id = 1",
        "UPDATE item SET id = 10 WHERE id = 1",
        "INSERT INTO item VALUES (1, 1, 'x') ON CONFLICT (id) DO UPDATE SET name = 'second'",
        "MERGE INTO item USING (VALUES (1)) v (id) ON item.id = v.id WHEN MATCHED THEN DELETE",
        "WITH w AS (UPDATE item SET name = 'second' RETURNING id) SELECT count(*) FROM w",
    ],
)
def test_however_a_row_is_written(cache: Cache, shop: Engine, statement: str) -> None:
    name(cache, 1)
    run(shop, statement)
    cache.relay()

    with shop.connect() as conn:
        assert name(cache, 1) == conn.scalar(select(Item.name).where(Item.id == 1))


def test_an_absence_is_forgotten_by_copy(cache: Cache, shop: Engine) -> None:
    assert name(cache, 7) is None
    with shop.begin() as conn:
        driver = conn.connection.driver_connection
        assert driver is not None
        with driver.cursor() as cursor, cursor.copy("COPY item FROM STDIN") as copy:
            copy.write_row((7, None, "seventh"))
    cache.relay()

    assert name(cache, 7) == "seventh"


def test_bulk_statements_of_a_session_are_seen(cache: Cache, shop: Engine) -> None:
    name(cache, 1)
    with Session(shop) as session, session.begin():
        session.execute(update(Item).values(name="second"))
        session.bulk_insert_mappings(Item, [{"id": 8, "name": "eighth"}])
    cache.relay()

    assert [name(cache, 1), name(cache, 8)] == ["second", "eighth"]


def test_cascades_are_seen(cache: Cache, shop: Engine) -> None:
    def notes() -> int:
        count = select(func.count()).select_from(Note)
        return cache.get_or_load(
            "notes", lambda conn: conn.execute(count).scalar_one(), tags=[tag(Note)]
        )

    with shop.begin() as conn:
        cache.capture(conn, Note, by_key=False)
    cache.relay()
    run(shop, "INSERT INTO note VALUES ('a', gen_random_uuid(), 1)")
    cache.relay()
    assert notes() == 1
    run(shop, "DELETE FROM item WHERE id = 1")
    cache.relay()

    assert notes() == 0


def test_lists_that_a_row_leaves_and_enters_are_forgotten(cache: Cache, shop: Engine) -> None:
    assert [len(names_in(cache, 0)), len(names_in(cache, 1)), names_in(cache, None)] == [3, 3, []]
    run(shop, "UPDATE item SET department = NULL WHERE id = 1")
    cache.relay()
    assert [len(names_in(cache, 0)), len(names_in(cache, 1))] == [3, 2]
    assert names_in(cache, None) == ["first"]
    run(shop, "UPDATE item SET name = 'renamed' WHERE id = 1")
    cache.relay()

    assert names_in(cache, None) == ["renamed"]


def test_the_lists_of_others_are_not_forgotten(cache: Cache, shop: Engine) -> None:
    names_in(cache, 0)
    run(shop, "UPDATE item SET name = 'second' WHERE department = 1")
    cache.relay()
    names_in(cache, 0)

    assert cache.stats().loads == 1


def test_a_truncation_forgets_all(cache: Cache, shop: Engine) -> None:
    assert (name(cache, 1), len(names_in(cache, 1))) == ("first", 3)
    run(shop, "TRUNCATE item CASCADE")
    assert cache.relay().has_new_generation

    assert (name(cache, 1), names_in(cache, 1)) == (None, [])


def test_a_truncation_of_what_only_tags_depend_on_forgets_these(
    shop: Engine, redis_client: Redis
) -> None:
    with open_cache(redis_client, shop, name="item") as cache:
        with shop.begin() as conn:
            cache.capture(conn, Item, by_key=False)
        cache.relay()
        cache.get_or_load("other", lambda _: 1)
        assert len(names_in(cache, 1)) == 3
        run(shop, "TRUNCATE item CASCADE")

        assert not cache.relay().has_new_generation
        assert names_in(cache, 1) == []
        cache.get_or_load("other", lambda _: 1)
        assert cache.stats().loads == 3


def test_who_commits_late_is_not_missed(cache: Cache, shop: Engine) -> None:
    name(cache, 1)
    with shop.connect() as late, late.begin() as transaction:
        late.execute(text("UPDATE item SET name = 'late' WHERE id = 1"))
        run(shop, "UPDATE item SET name = 'early' WHERE id = 2")
        assert cache.relay().transactions == 1
        assert name(cache, 1) == "first"
        transaction.commit()
    assert cache.relay().transactions == 1

    assert [name(cache, 1), name(cache, 2)] == ["late", "early"]


def test_what_was_rolled_back_is_not_forgotten(cache: Cache, shop: Engine) -> None:
    name(cache, 1)
    with shop.begin() as conn:
        with conn.begin_nested() as savepoint:
            conn.execute(text("UPDATE item SET name = 'second' WHERE id = 1"))
            savepoint.rollback()
        conn.execute(text("UPDATE item SET name = 'second' WHERE id = 2"))
    cache.relay()
    name(cache, 1)

    assert cache.stats().loads == 1


def test_thousands_of_rows_are_forgotten(cache: Cache, shop: Engine) -> None:
    run(shop, "INSERT INTO item SELECT n, 5, 'first' FROM generate_series(100, 3000) n")
    cache.relay()
    keys = range(100, 3001, 7)

    def load(conn: Connection, ids: list[int]) -> dict[int, str]:
        return {row.id: row.name for row in conn.execute(select(Item).where(Item.id.in_(ids)))}

    cache.get_many(keys, load)
    run(shop, "UPDATE item SET name = 'second' WHERE id >= 100")
    cache.relay()

    assert set(cache.get_many(keys, load).values()) == {"second"}


def test_keys_of_texts_and_uuids_are_named_alike(shop: Engine, redis_client: Redis) -> None:
    words = ["plain", "Ä: {ü}🥐", "x" * 300, "", "it's"]
    with open_cache(redis_client, shop, name="note") as cache:
        with shop.begin() as conn:
            cache.capture(conn, Note)
            conn.execute(
                text("INSERT INTO note VALUES (:word, :owner)"),
                [{"word": word, "owner": OWNER} for word in words],
            )
        cache.relay()
        count = select(func.count()).select_from(Note)

        def read(word: str) -> int:
            return cache.get_or_load(
                (word, OWNER), lambda conn: conn.execute(count).scalar_one()
            ) + cache.get_or_load(
                ("row", word),
                lambda conn: conn.execute(count).scalar_one(),
                tags=[tag(Note, word, OWNER)],
            )

        assert [read(word) for word in words] == [10] * 5
        run(shop, "DELETE FROM note")
        cache.relay()

        assert [read(word) for word in words] == [0] * 5


def test_a_key_whose_equal_values_may_differ_has_no_entries(cache: Cache, shop: Engine) -> None:
    with shop.begin() as conn, pytest.raises(CacheKeyError, match="use tags"):
        cache.capture(conn, Weight)
    with shop.begin() as conn:
        cache.capture(conn, Weight, by_key=False)
    cache.relay()
    count = select(func.count()).select_from(Weight)

    def weights() -> int:
        return cache.get_or_load(
            "weights", lambda conn: conn.execute(count).scalar_one(), tags=[tag(Weight)]
        )

    assert weights() == 0
    run(shop, "INSERT INTO weight VALUES (1.00)")
    cache.relay()
    assert weights() == 1


def test_several_caches_of_one_target_follow_one_table(
    cache: Cache, shop: Engine, redis_client: Redis
) -> None:
    with closing(Cache(redis_client, shop, name="other", policy=PATIENT)) as other:
        with shop.begin() as conn:
            other.capture(conn, Item)
            other.capture(conn, Item)
        cache.relay()
        assert [name(cache, 1), name(other, 1)] == ["first", "first"]
        run(shop, "UPDATE item SET name = 'second' WHERE id = 1")
        cache.relay()

        assert [name(cache, 1), name(other, 1)] == ["second", "second"]


def test_changes_that_go_unlogged_forget_all(cache: Cache, shop: Engine) -> None:
    name(cache, 1)
    run(
        shop,
        "ALTER TABLE item DISABLE TRIGGER ALL",
        "UPDATE item SET name = 'second' WHERE id = 1",
        "ALTER TABLE item ENABLE TRIGGER ALL",
    )

    assert cache.relay().has_new_generation
    assert name(cache, 1) == "second"


def test_a_table_that_is_followed_later_forgets_all_once(cache: Cache, shop: Engine) -> None:
    assert not cache.relay().has_new_generation
    with shop.begin() as conn:
        cache.capture(conn, Note)

    assert [cache.relay().has_new_generation for _ in range(2)] == [True, False]


def test_what_is_released_is_followed_no_more(cache: Cache, shop: Engine) -> None:
    name(cache, 1)
    with shop.begin() as conn:
        cache.release(conn, Item)
        cache.release(conn, Note)  # which it does not follow
        ChangeLog().release(conn, Item.__table__)  # type: ignore[arg-type]  # mapped: a Table
    run(shop, "UPDATE item SET name = 'second' WHERE id = 1")
    assert cache.relay().transactions == 0

    assert name(cache, 1) == "first"


def test_without_a_relay_a_reader_runs_a_round(shop: Engine, redis_client: Redis) -> None:
    with open_cache(redis_client, shop, name="item") as cache:
        with shop.begin() as conn:
            cache.capture(conn, Item)
        assert name(cache, 1) == "first"
        run(shop, "UPDATE item SET name = 'second' WHERE id = 1")
        redis_client.delete(*redis_client.keys("*:server"))
        cache._backing.close_gate()  # noqa: SLF001 -- as when the mark runs out

        assert name(cache, 1) == "second"


def test_another_process_is_at_it(cache: Cache, shop: Engine) -> None:
    with shop.begin() as conn:
        ChangeLog().lock_consumer(conn, "cache_relay:datapatterns")

        assert not cache.relay().is_leading


def test_a_copy_of_the_database_serves_no_hits(cache: Cache, shop: Engine) -> None:
    name(cache, 1)
    run(shop, "UPDATE datapatterns.change_consumer SET database_oid = 1")
    cache._backing.close_gate()  # noqa: SLF001 -- as when the mark runs out

    assert [name(cache, 1), name(cache, 1)] == ["first", "first"]
    assert cache.stats().bypassed == 2


def test_columns_that_no_model_maps_are_seen(cache: Cache, shop: Engine) -> None:
    run(shop, "ALTER TABLE item ADD COLUMN colour text")
    with shop.begin() as conn:
        cache.capture(conn, Item)
    cache.relay()
    colour = text("SELECT colour FROM item WHERE id = 1")

    def load(conn: Connection) -> str | None:
        found: str | None = conn.scalar(colour)
        return found

    def read() -> str | None:
        return cache.get_or_load(1, load)

    assert read() is None
    run(shop, "UPDATE item SET colour = 'red' WHERE id = 1")
    cache.relay()

    assert read() == "red"


def test_a_column_that_came_later_forgets_all_until_it_is_captured(
    cache: Cache, shop: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    run(shop, "ALTER TABLE item ADD COLUMN colour text")

    assert [cache.relay().has_new_generation for _ in range(2)] == [True, True]
    assert "changes of colour, columns of item, are not logged" in caplog.text
    with shop.begin() as conn:
        cache.capture(conn, Item)
    cache.relay()
    assert not cache.relay().has_new_generation


def test_a_transaction_of_many_rows_counts_once(cache: Cache, shop: Engine) -> None:
    run(shop, "INSERT INTO item SELECT n, 5, 'first' FROM generate_series(100, 3000) n")

    assert cache.relay().transactions == 1


@pytest.mark.usefixtures("cache")
def test_a_role_that_may_not_relay_reads_from_the_database_while_nobody_does(
    shop: Engine, redis_client: Redis
) -> None:
    for mark in redis_client.keys("datapatterns:*:server"):
        redis_client.delete(mark)  # as it goes when the last round is too long ago
    role = f"reader_{str(shop.url.database)[-20:]}"
    with shop.connect() as conn, conn.begin() as transaction:
        conn.execute(text(f"CREATE ROLE {role}"))
        for grant in (
            "USAGE ON SCHEMA datapatterns",
            "SELECT ON ALL TABLES IN SCHEMA public, datapatterns",
            "INSERT, UPDATE ON datapatterns.cache_target",
            "DELETE ON datapatterns.cache_outbox",
        ):
            conn.execute(text(f"GRANT {grant} TO {role}"))
        transaction.commit()
    own = create_engine(shop.url.update_query_dict({"options": f"-c role={role}"}))
    try:
        with closing(Cache(redis_client, own, name="item", policy=PATIENT)) as other:
            assert [name(other, 1), name(other, 1)] == ["first", "first"]
            assert other.stats().bypassed == 2
            with pytest.raises(MissingRightsError, match="may not update change_consumer"):
                other.relay()
    finally:
        own.dispose()
        run(shop, f"DROP OWNED BY {role}", f"DROP ROLE {role}")
