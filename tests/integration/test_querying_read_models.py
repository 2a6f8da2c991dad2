"""Ask a read model as of one position, after one's own write, or with its age."""

import asyncio
from collections.abc import Callable, Iterator
from threading import Event, Thread
from typing import Protocol, TypeVar, Unpack

import pytest
from sqlalchemy import Connection, Engine, create_engine, func, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from datapatterns.cqrs import (
    Answer,
    Asked,
    InlineProjections,
    Projection,
    Projections,
    Token,
    on,
    rows_of,
)
from datapatterns.errors import (
    ForeignTokenError,
    IsolationLevelError,
    MarkUnpublishedError,
    ProjectionStoppedError,
    ReadModelBehindError,
    ReadModelMovedError,
)
from datapatterns.event_sourcing import EventStore, Position, RecordedEvent, StreamId, publish_mark
from tests.fixtures.read_models import (
    DoorOpened,
    ItemScanned,
    ProductSales,
    SalesByProduct,
    append_all,
    create_tables,
)

T = TypeVar("T")

STORE = EventStore()
PROJECTIONS = Projections(STORE)
MILK = ItemScanned("milk", 1)


def quantity(conn: Connection) -> int:
    return conn.scalar(select(func.sum(ProductSales.quantity))) or 0


class Query(Protocol):
    def __call__(
        self,
        projection: type[Projection],
        ask: Callable[[Connection], T],
        **asked: Unpack[Asked],
    ) -> Answer[T]: ...


@pytest.fixture
def shop(engine: Engine) -> Engine:
    create_tables(engine)
    return engine


@pytest.fixture(params=["sync", "async"])
def query(request: pytest.FixtureRequest, shop: Engine) -> Query:
    def query_sync(
        projection: type[Projection], ask: Callable[[Connection], T], **asked: Unpack[Asked]
    ) -> Answer[T]:
        return PROJECTIONS.query(shop, projection, ask, **asked)

    def query_async(
        projection: type[Projection], ask: Callable[[Connection], T], **asked: Unpack[Asked]
    ) -> Answer[T]:
        async def querying() -> Answer[T]:
            engine = create_async_engine(shop.url)
            try:
                return await PROJECTIONS.query_async(engine, projection, ask, **asked)
            finally:
                await engine.dispose()

        return asyncio.run(querying())

    return query_sync if request.param == "sync" else query_async


def test_an_answer_says_as_of_which_position_it_is(shop: Engine, query: Query) -> None:
    token = append_all(shop, STORE, [MILK, MILK])
    PROJECTIONS.run(shop, SalesByProduct)
    fresh = query(SalesByProduct, quantity, after=token)
    append_all(shop, STORE, [MILK] * 3)
    older = query(SalesByProduct, quantity)

    assert (fresh.value, fresh.position, fresh.positions_behind) == (2, token, 0)
    assert (fresh.seconds_behind, fresh.is_stale, fresh.parked) == (0.0, False, 0)
    assert (older.value, older.position, older.positions_behind) == (2, token, 3)
    assert older.seconds_behind > 0
    assert not older.is_stale  # nobody asked for more
    assert fresh.token == older.token
    assert str(fresh.token) == str(Token.parse(str(fresh.token)))


def test_a_statement_is_a_question(shop: Engine) -> None:
    token = append_all(shop, STORE, [MILK, ItemScanned("100% ☕'s", 2)])
    PROJECTIONS.run(shop, SalesByProduct)
    statement = select(ProductSales.product, ProductSales.cents).order_by(ProductSales.cents)
    answer = PROJECTIONS.query(shop, SalesByProduct, rows_of(statement), after=token)

    assert [(row.product, row.cents) for row in answer.value] == [("milk", 1), ("100% ☕'s", 2)]


def test_a_question_may_use_a_session(shop: Engine) -> None:
    append_all(shop, STORE, [MILK])
    PROJECTIONS.run(shop, SalesByProduct)

    def ask(conn: Connection) -> int:
        with Session(conn) as session:
            return session.get_one(ProductSales, "milk").quantity

    assert PROJECTIONS.query(shop, SalesByProduct, ask).value == 1


def test_a_stale_answer_is_refused_or_served_with_its_age(shop: Engine, query: Query) -> None:
    shown = append_all(shop, STORE, [MILK])
    PROJECTIONS.run(shop, SalesByProduct)
    token = append_all(shop, STORE, [MILK])

    with pytest.raises(ReadModelBehindError) as refused:
        query(SalesByProduct, quantity, after=token, timeout_seconds=0)
    served = query(SalesByProduct, quantity, after=token, timeout_seconds=0, stale="serve")

    assert (refused.value.position, refused.value.token) == (shown, token)
    assert refused.value.reason == "idle"
    assert (served.value, served.position, served.positions_behind) == (1, shown, 1)
    assert served.is_stale
    assert served.seconds_behind > 0


def test_an_answer_is_as_young_as_asked_for(shop: Engine, query: Query) -> None:
    append_all(shop, STORE, [MILK])
    PROJECTIONS.run(shop, SalesByProduct)
    fresh = query(SalesByProduct, quantity, max_staleness_seconds=0)
    append_all(shop, STORE, [MILK])
    young = query(SalesByProduct, quantity, max_staleness_seconds=3_600)
    with pytest.raises(ReadModelBehindError):
        query(SalesByProduct, quantity, max_staleness_seconds=0, timeout_seconds=0)
    stale = query(
        SalesByProduct, quantity, max_staleness_seconds=0, timeout_seconds=0, stale="serve"
    )

    assert (fresh.value, fresh.is_stale) == (1, False)
    assert (young.value, young.is_stale, young.positions_behind) == (1, False, 1)
    assert (stale.value, stale.is_stale) == (1, True)


def test_what_was_never_built_is_not_served(shop: Engine, query: Query) -> None:
    token = append_all(shop, STORE, [MILK])

    with pytest.raises(ReadModelBehindError) as behind:
        query(SalesByProduct, quantity, after=token, timeout_seconds=0, stale="serve")
    with pytest.raises(ReadModelBehindError):
        query(SalesByProduct, quantity, timeout_seconds=0)

    assert behind.value.position is None


def test_what_cannot_be_asked_is_refused(shop: Engine, query: Query) -> None:
    with pytest.raises(ValueError, match="at most -1"):
        query(SalesByProduct, quantity, max_staleness_seconds=-1)
    with pytest.raises(ValueError, match="at most nan"):
        query(SalesByProduct, quantity, max_staleness_seconds=float("nan"))
    with pytest.raises(ValueError, match="neither"):
        query(SalesByProduct, quantity, stale="sometimes")  # type: ignore[arg-type] # on purpose
    with pytest.raises(ValueError, match="neither"), shop.connect() as conn:
        PROJECTIONS.answer(conn, SalesByProduct, quantity, stale="")  # type: ignore[arg-type] # ditto


def test_a_question_changes_nothing(shop: Engine, query: Query) -> None:
    append_all(shop, STORE, [MILK])
    PROJECTIONS.run(shop, SalesByProduct)

    def change(conn: Connection) -> None:
        conn.execute(text("DELETE FROM product_sales"))

    with pytest.raises(DBAPIError, match="read-only transaction"):
        query(SalesByProduct, change)
    assert query(SalesByProduct, quantity).value == 1


def test_a_question_that_fails_gives_its_connection_back(shop: Engine) -> None:
    single = create_engine(shop.url, pool_size=1, max_overflow=0, pool_timeout=1)
    append_all(shop, STORE, [MILK])
    PROJECTIONS.run(shop, SalesByProduct)

    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            PROJECTIONS.query(single, SalesByProduct, lambda _: 1 // 0)
    with single.begin() as conn:  # and as it was
        conn.execute(text("CREATE TABLE written (n int)"))
        level = conn.scalar(text("SHOW transaction_isolation"))
    single.dispose()
    assert level == "read committed"


def test_all_of_an_answer_is_of_one_moment(shop: Engine) -> None:
    append_all(shop, STORE, [MILK])
    PROJECTIONS.run(shop, SalesByProduct)

    def ask(conn: Connection) -> tuple[int, int]:
        first = quantity(conn)
        append_all(shop, STORE, [MILK])
        PROJECTIONS.run(shop, SalesByProduct)
        return first, quantity(conn)

    answer = PROJECTIONS.query(shop, SalesByProduct, ask)

    assert answer.value == (1, 1)
    assert answer.position == 1


def test_a_table_is_not_replaced_under_a_question(shop: Engine) -> None:
    append_all(shop, STORE, [MILK])
    PROJECTIONS.run(shop, SalesByProduct)

    def ask(conn: Connection) -> int:
        with shop.connect() as other:
            other.execute(text("SET LOCAL lock_timeout = '50ms'"))
            with pytest.raises(DBAPIError, match="lock timeout"):
                other.execute(text("LOCK TABLE product_sales IN ACCESS EXCLUSIVE MODE"))
        return quantity(conn)

    assert PROJECTIONS.query(shop, SalesByProduct, ask).value == 1


# -- in a transaction of the caller's -------------------------------------------------------------


def test_a_transaction_of_the_callers_gets_what_its_snapshot_shows(shop: Engine) -> None:
    strict = create_engine(shop.url, isolation_level="REPEATABLE READ")
    shown = append_all(shop, STORE, [MILK])
    PROJECTIONS.run(shop, SalesByProduct)
    with strict.connect() as conn:
        before = PROJECTIONS.answer(conn, SalesByProduct, quantity, after=shown)
        token = append_all(shop, STORE, [MILK])
        PROJECTIONS.run(shop, SalesByProduct)
        again = PROJECTIONS.answer(conn, SalesByProduct, quantity)
        with pytest.raises(ReadModelBehindError) as older:
            PROJECTIONS.answer(conn, SalesByProduct, quantity, after=token)
        served = PROJECTIONS.answer(conn, SalesByProduct, quantity, after=token, stale="serve")
    with strict.connect() as conn:
        after = PROJECTIONS.answer(conn, SalesByProduct, quantity, after=token)
    strict.dispose()

    assert (before.value, again.value, served.value, after.value) == (1, 1, 1, 2)
    assert (again.position, served.position, after.position) == (shown, shown, token)
    assert (again.positions_behind, served.is_stale) == (0, True)  # as of the same snapshot
    assert older.value.reason == "snapshot"


def test_a_transaction_whose_statements_see_different_moments_is_refused(shop: Engine) -> None:
    append_all(shop, STORE, [MILK])
    PROJECTIONS.run(shop, SalesByProduct)

    with shop.connect() as conn, pytest.raises(IsolationLevelError):
        PROJECTIONS.answer(conn, SalesByProduct, quantity)


@pytest.mark.parametrize(
    "replace",
    [
        [
            "CREATE TABLE product_sales__v2 (LIKE product_sales INCLUDING ALL)",
            "INSERT INTO product_sales__v2 SELECT * FROM product_sales",
            "ALTER TABLE product_sales RENAME TO product_sales__v1",
            "ALTER TABLE product_sales__v2 RENAME TO product_sales",
        ],
        [
            "INSERT INTO made_before SELECT * FROM product_sales",
            "ALTER TABLE product_sales RENAME TO product_sales__v1",
            "ALTER TABLE made_before RENAME TO product_sales",
        ],
        [
            "CREATE TEMPORARY TABLE kept ON COMMIT DROP AS SELECT * FROM product_sales",
            "TRUNCATE product_sales",
            "INSERT INTO product_sales SELECT * FROM kept",
        ],
    ],
    ids=["renamed", "made before", "truncated"],
)
def test_a_snapshot_from_before_the_table_was_replaced_is_refused(
    shop: Engine, replace: list[str]
) -> None:
    strict = create_engine(shop.url, isolation_level="REPEATABLE READ")
    token = append_all(shop, STORE, [MILK])
    PROJECTIONS.run(shop, SalesByProduct)
    with shop.begin() as conn:
        conn.execute(text("CREATE TABLE made_before (LIKE product_sales INCLUDING ALL)"))
    with strict.connect() as conn:
        conn.execute(text("SELECT 1 FROM pg_class LIMIT 1"))  # now it has a snapshot
        with shop.begin() as other:
            for statement in replace:
                other.execute(text(statement))
        seen = conn.scalar(select(func.count()).select_from(ProductSales))
        with pytest.raises(ReadModelMovedError):
            PROJECTIONS.answer(conn, SalesByProduct, quantity, after=token)
    strict.dispose()

    assert seen == 0, "which would have been the answer"
    assert PROJECTIONS.query(shop, SalesByProduct, quantity, after=token).value == 1


def test_a_table_that_is_replaced_while_a_query_waits_for_it_is_read_anew(shop: Engine) -> None:
    token = append_all(shop, STORE, [MILK])
    PROJECTIONS.run(shop, SalesByProduct)
    done, results = Event(), list[Answer[int]]()

    with shop.connect() as other:
        for statement in (
            "CREATE TABLE product_sales__v2 (LIKE product_sales INCLUDING ALL)",
            "INSERT INTO product_sales__v2 SELECT * FROM product_sales",
            "LOCK TABLE product_sales IN ACCESS EXCLUSIVE MODE",
        ):
            other.execute(text(statement))

        def ask() -> None:
            results.append(PROJECTIONS.query(shop, SalesByProduct, quantity, after=token))
            done.set()

        thread = Thread(target=ask)
        thread.start()
        while not _blocked_by(shop, other):
            assert thread.is_alive()
        other.execute(text("ALTER TABLE product_sales RENAME TO product_sales__v1"))
        other.execute(text("ALTER TABLE product_sales__v2 RENAME TO product_sales"))
        other.commit()
    assert done.wait(timeout=30)
    thread.join()

    assert [answer.value for answer in results] == [1]


def _blocked_by(engine: Engine, holder: Connection) -> bool:
    pid = holder.scalar(text("SELECT pg_backend_pid()"))
    with engine.connect() as conn:
        waits = text("SELECT bool_or(:pid = ANY(pg_blocking_pids(pid))) FROM pg_stat_activity")
        return bool(conn.scalar(waits, {"pid": pid}))


# -- tokens of other logs, and why it does not go on ----------------------------------------------


def test_a_token_of_another_log_is_refused_although_its_position_is_shown(
    shop: Engine, query: Query
) -> None:
    position = append_all(shop, STORE, [MILK])
    PROJECTIONS.run(shop, SalesByProduct)
    with shop.connect() as conn:
        ours = PROJECTIONS.token(conn, position)
    theirs = Token(position, "0" * 8)

    assert query(SalesByProduct, quantity, after=ours).token == ours
    assert PROJECTIONS.wait(shop, SalesByProduct, ours, timeout_seconds=0) == position
    with pytest.raises(ForeignTokenError, match="another database"):
        query(SalesByProduct, quantity, after=theirs, stale="serve")
    with pytest.raises(ForeignTokenError, match="another database"):
        PROJECTIONS.wait(shop, SalesByProduct, theirs, timeout_seconds=60)


def test_a_token_beyond_the_log_is_refused_at_once(shop: Engine, query: Query) -> None:
    position = append_all(shop, STORE, [MILK])
    PROJECTIONS.run(shop, SalesByProduct)

    with pytest.raises(ForeignTokenError, match=f"only got to {position}"):
        query(SalesByProduct, quantity, after=Position(position + 1), timeout_seconds=60)


def test_the_write_of_a_token_that_was_undone_is_waited_for_no_longer_than_the_others(
    shop: Engine, query: Query
) -> None:
    with shop.connect() as conn:
        undone = STORE.append(conn, StreamId("basket", "0"), [MILK], expected_version=0).position
        conn.rollback()
    append_all(shop, STORE, [MILK])
    PROJECTIONS.catch_up(shop, SalesByProduct)

    assert query(SalesByProduct, quantity, after=undone).value == 1


def test_a_stopped_projection_is_not_waited_for(shop: Engine, query: Query) -> None:
    shown = append_all(shop, STORE, [MILK])
    token = append_all(shop, STORE, [ItemScanned("x" * 21, 1)])
    with pytest.raises(ProjectionStoppedError):
        PROJECTIONS.run(shop, SalesByProduct)

    with pytest.raises(ReadModelBehindError) as stopped:
        query(SalesByProduct, quantity, after=token, timeout_seconds=86_400)
    served = query(SalesByProduct, quantity, after=token, timeout_seconds=86_400, stale="serve")

    assert stopped.value.reason == "stopped"
    assert "test.item_scanned at 2" in str(stopped.value)
    assert (served.value, served.position, served.is_stale) == (1, shown, True)


class Base(DeclarativeBase):
    pass


class Tally(Base):
    __tablename__ = "tally"
    product: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(default=0)


class OldTally(Projection, into=Tally, version=1, name="tally"):
    @on(ItemScanned, key=lambda e, _: e.product)
    def _(self, row: Tally, _e: ItemScanned, _meta: RecordedEvent) -> None:
        row.number += 1


class NewTally(Projection, into=Tally, version=2, name="tally"):
    @on(ItemScanned, key=lambda e, _: e.product)
    def _(self, row: Tally, _e: ItemScanned, _meta: RecordedEvent) -> None:
        row.number += 2


def numbers(conn: Connection) -> int:
    return conn.scalar(select(func.sum(Tally.number))) or 0


def test_rows_of_another_version_are_never_an_answer(shop: Engine, query: Query) -> None:
    Base.metadata.create_all(shop)
    token = append_all(shop, STORE, [MILK])
    PROJECTIONS.run(shop, OldTally)

    with pytest.raises(ReadModelBehindError) as other:
        query(NewTally, numbers, after=token, timeout_seconds=86_400, stale="serve")
    PROJECTIONS.rebuild(shop, NewTally)
    # Those who promoted it have said that it answers what the old one was asked.
    assert query(OldTally, numbers, after=token).value == 2
    PROJECTIONS.retire(shop, OldTally)
    with pytest.raises(ReadModelBehindError) as retired:
        query(OldTally, numbers, after=token, timeout_seconds=86_400, stale="serve")

    assert (other.value.reason, other.value.stopped_by) == (
        "version",
        "version 1 has built the table",
    )
    assert retired.value.reason == "version"
    assert query(NewTally, numbers, after=token).value == 2


# -- kept by appends, or with events put aside ----------------------------------------------------


@pytest.fixture
def inline(shop: Engine) -> Iterator[EventStore]:
    store = EventStore(inline=InlineProjections((SalesByProduct,)))
    append_all(shop, store, [MILK])
    PROJECTIONS.make_inline(shop, SalesByProduct)
    yield store
    PROJECTIONS.make_async(shop, SalesByProduct)


def test_what_appends_keep_is_as_young_as_the_log(
    shop: Engine, query: Query, inline: EventStore
) -> None:
    strict = create_engine(shop.url, isolation_level="REPEATABLE READ")
    token = append_all(shop, inline, [MILK])
    answer = query(SalesByProduct, quantity, after=token, max_staleness_seconds=0)

    assert PROJECTIONS.wait(strict, SalesByProduct, token, timeout_seconds=0) == token
    strict.dispose()
    assert (answer.value, answer.position) == (2, token)
    assert (answer.positions_behind, answer.seconds_behind, answer.is_stale) == (0, 0.0, False)


def test_what_appends_keep_is_whole_only_before_the_oldest_that_is_open(
    shop: Engine, query: Query, inline: EventStore
) -> None:
    shown = append_all(shop, inline, [MILK])
    with shop.connect() as conn:
        inline.append(conn, StreamId("basket", "open"), [DoorOpened()], expected_version=0)
        token = append_all(shop, inline, [MILK])
        with pytest.raises(ReadModelBehindError, match="is still open"):
            query(SalesByProduct, quantity, after=token, timeout_seconds=0)
        served = query(SalesByProduct, quantity, after=token, timeout_seconds=0, stale="serve")
        conn.rollback()

    assert (served.value, served.position, served.is_stale) == (3, shown, True)
    assert query(SalesByProduct, quantity, after=token).value == 3


def test_a_transaction_of_the_callers_needs_the_published_mark_of_what_appends_keep(
    shop: Engine, inline: EventStore
) -> None:
    strict = create_engine(shop.url, isolation_level="REPEATABLE READ")
    token = append_all(shop, inline, [MILK])
    with strict.connect() as conn, pytest.raises(MarkUnpublishedError):
        PROJECTIONS.answer(conn, SalesByProduct, quantity, after=token)
    with shop.begin() as conn:
        publish_mark(conn, inline)
    with strict.connect() as conn:
        answer = PROJECTIONS.answer(conn, SalesByProduct, quantity, after=token)
    strict.dispose()

    assert (answer.value, answer.position) == (2, token)


def test_an_answer_tells_of_events_that_were_put_aside(shop: Engine, query: Query) -> None:
    token = append_all(shop, STORE, [MILK])
    PROJECTIONS.run(shop, SalesByProduct)
    with shop.begin() as conn:
        conn.execute(text("UPDATE datapatterns.projection_shard SET parked = 3"))

    assert query(SalesByProduct, quantity, after=token).parked == 3
