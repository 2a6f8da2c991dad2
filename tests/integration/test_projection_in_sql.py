"""Statements move a read model on, a range of the log at a time, each event once."""

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import (
    BigInteger,
    Connection,
    Engine,
    Executable,
    FromClause,
    MetaData,
    Table,
    create_engine,
    func,
    select,
    text,
)
from sqlalchemy.event import listen
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.schema import CreateSchema

from datapatterns.cqrs import Projections, SetProjection, upsert
from datapatterns.cqrs.running.leasing import Lease, claim
from datapatterns.cqrs.running.registering import register
from datapatterns.cqrs.schema import projection_tables
from datapatterns.cqrs.tables import set_projecting
from datapatterns.cqrs.tables.set_projecting import SetRunner
from datapatterns.errors import LeaseLostError, ProjectionDefinitionError, SegmentError
from datapatterns.event_sourcing import ANY, Archive, EventStore, StreamId, event
from datapatterns.failpoints import armed
from datapatterns.sql.migrating import upgrade
from tests.fixtures.read_models import DoorOpened, ItemScanned, ProductWithdrawn, append_all
from tests.fixtures.set_models import (
    ProductTotal,
    Shop,
    TotalByProduct,
    contents,
    create_tables,
    expected_contents,
    sums_by_product,
    totals,
)

pytestmark = pytest.mark.postgres

STORE = EventStore()
TABLES = projection_tables(STORE.schema)
PROJECTIONS = Projections(STORE)


@pytest.fixture
def shop(engine: Engine) -> Engine:
    create_tables(engine)
    return engine


def milk(number: int) -> list[object]:
    return [ItemScanned("milk", 100)] * number


def test_a_range_is_applied_by_one_statement(shop: Engine) -> None:
    append_all(shop, STORE, [ItemScanned("milk", 100), ItemScanned("tea", 250)] * 3)

    done = PROJECTIONS.catch_up(shop, TotalByProduct, page_events=4)

    assert (done.events, done.caught_up) == (6, True)
    assert totals(shop) == {"milk": (3, 300), "tea": (3, 750)}


STORY: list[tuple[list[object], str]] = [
    ([ItemScanned("milk", 100), ItemScanned("tea", 250)], "a"),
    ([DoorOpened(), ItemScanned("milk", 90), ProductWithdrawn("milk")], "b"),
    ([ItemScanned("milk", 80), DoorOpened(), DoorOpened()], "a"),
    ([ProductWithdrawn("tea"), ProductWithdrawn("gone")], "c"),
    ([ItemScanned("milk", 70), ProductWithdrawn("milk"), ItemScanned("milk", 1)], "b"),
]


@pytest.mark.parametrize("page_events", [1, 2, 3, 5, 100])
def test_several_statements_write_several_tables_whatever_the_pages(
    shop: Engine, page_events: int
) -> None:
    for events, basket in STORY:
        append_all(shop, STORE, events, basket=basket)

    done = PROJECTIONS.catch_up(shop, Shop, page_events=page_events)

    assert done.events == sum(len(events) for events, _ in STORY)
    assert contents(shop) == expected_contents((e, b) for events, b in STORY for e in events)
    assert PROJECTIONS.verify(shop, Shop, page_events=4).matches


def test_what_a_statement_leaves_out_begins_as_the_class_says(shop: Engine) -> None:
    append_all(shop, STORE, milk(1))

    PROJECTIONS.catch_up(shop, Shop)

    with shop.begin() as conn:
        assert conn.scalar(text("SELECT note FROM kept_product")) == "as it began"


def test_a_page_holds_as_many_events_as_were_asked_for_whatever_lies_between(shop: Engine) -> None:
    for _ in range(4):
        append_all(shop, STORE, [DoorOpened()] * 5)
        append_all(shop, STORE, milk(3))

    pages = [PROJECTIONS.run(shop, TotalByProduct, page_events=5).events for _ in range(4)]

    assert pages == [5, 5, 2, 0]
    assert totals(shop) == {"milk": (12, 1200)}


def test_a_log_without_anything_to_read_is_passed(shop: Engine) -> None:
    token = append_all(shop, STORE, [DoorOpened()] * 5)

    done = PROJECTIONS.run(shop, TotalByProduct)

    assert (done.events, done.position, done.caught_up) == (0, token, True)
    with shop.begin() as conn:
        assert PROJECTIONS.position(conn, TotalByProduct) == token


def test_pages_that_follow_a_full_one_are_not_counted_but_end_where_they_should(
    shop: Engine,
) -> None:
    for basket in range(10):
        append_all(shop, STORE, [*milk(9), DoorOpened()], basket=str(basket))
    statements: list[str] = []
    counted = create_engine(shop.url)
    listen(counted, "before_cursor_execute", lambda _c, _u, sql, *_: statements.append(sql))

    done = PROJECTIONS.catch_up(counted, TotalByProduct, page_events=2)
    counted.dispose()

    assert 90 <= done.events <= 100
    assert (done.position, done.caught_up) == (100, True)
    assert totals(shop) == {"milk": (90, 9_000)}
    assert sum("high_water_mark" in statement for statement in statements) <= 3
    assert PROJECTIONS.verify(shop, TotalByProduct, page_events=2).matches


def test_what_becomes_final_after_a_mark_was_read_is_not_passed_over(shop: Engine) -> None:
    append_all(shop, STORE, milk(6))
    runner = SetRunner.of(STORE, TotalByProduct, page_events=2)
    with shop.connect() as conn:
        with conn.begin():
            register(conn, TABLES, TotalByProduct, empty=True)
            (lease,) = claim(conn, TABLES, TotalByProduct, owner="one", seconds=60)
        lease, _ = runner.page(conn, lease)
        append_all(shop, STORE, [Weighed("new type", 1), *milk(1)], basket="2")
        pages = []
        for _ in range(4):
            lease, done = runner.page(conn, lease)
            pages.append((done.position, done.caught_up))

    assert pages == [(4, False), (6, False), (8, True), (8, True)]
    assert totals(shop) == {"milk": (7, 700)}


def test_a_mark_from_before_does_not_say_that_nothing_has_come_since(shop: Engine) -> None:
    append_all(shop, STORE, [*[DoorOpened()] * 5, *milk(2), *[DoorOpened()] * 5])
    runner = SetRunner.of(STORE, TotalByProduct, page_events=2)
    with shop.connect() as conn:
        with conn.begin():
            register(conn, TABLES, TotalByProduct, empty=True)
            (lease,) = claim(conn, TABLES, TotalByProduct, owner="one", seconds=60)
        lease, first = runner.page(conn, lease)
        append_all(shop, STORE, milk(1), basket="2")
        lease, second = runner.page(conn, lease)
        lease, third = runner.page(conn, lease)

    assert [(p.position, p.caught_up) for p in (first, second, third)] == [
        (7, False),
        (12, False),
        (13, True),
    ]


def test_a_mark_is_trusted_only_once_the_page_that_it_was_read_for_is_stored(shop: Engine) -> None:
    append_all(shop, STORE, milk(9))
    runner = SetRunner.of(STORE, TotalByProduct, page_events=2)
    asked: list[str] = []
    with shop.connect() as conn:
        with conn.begin():
            register(conn, TABLES, TotalByProduct, empty=True)
            (lease,) = claim(conn, TABLES, TotalByProduct, owner="one", seconds=60)
        listen(
            conn,
            "before_cursor_execute",
            lambda _c, _u, sql, *_: asked.append(sql) if "high_water_mark" in sql else None,
        )
        with pytest.raises(BrokenOffError), armed("projection.page-applied", break_off):
            runner.page(conn, lease)
        undone = len(asked)
        lease, _ = runner.page(conn, lease)
        stored = len(asked)
        runner.page(conn, lease)

    assert (undone, stored, len(asked)) == (1, 2, 2)


def test_a_long_gap_is_passed_at_once(shop: Engine) -> None:
    append_all(shop, STORE, milk(1))
    with shop.begin() as conn:
        conn.execute(text("SELECT setval('datapatterns.event_position', 5000000)"))
    append_all(shop, STORE, milk(1))

    done = PROJECTIONS.run(shop, TotalByProduct, pages_max=4)

    assert (done.events, done.caught_up) == (2, True)


def test_an_append_that_is_rolled_back_leaves_no_trace(shop: Engine) -> None:
    with shop.connect() as conn:
        transaction = conn.begin()
        STORE.append(conn, StreamId("basket", "1"), milk(3), expected_version=ANY)
        transaction.rollback()
    append_all(shop, STORE, milk(1))

    PROJECTIONS.catch_up(shop, TotalByProduct)

    assert totals(shop) == {"milk": (1, 100)}


def test_an_event_that_commits_late_is_not_skipped(shop: Engine) -> None:
    with shop.connect() as slow:
        transaction = slow.begin()
        STORE.append(slow, StreamId("basket", "slow"), milk(1), expected_version=ANY)
        append_all(shop, STORE, milk(1))
        held = PROJECTIONS.run(shop, TotalByProduct)
        transaction.commit()

    PROJECTIONS.catch_up(shop, TotalByProduct)

    assert held.events == 0
    assert totals(shop) == {"milk": (2, 200)}


def test_archived_events_are_read_too(shop: Engine) -> None:
    append_all(shop, STORE, milk(4))
    archive = Archive(STORE)
    with shop.begin() as conn:
        archive.stop(conn, StreamId("basket", "1"), expected_version=4)
    archive.move_all(shop, limit=2)

    PROJECTIONS.catch_up(shop, TotalByProduct, page_events=3)

    assert totals(shop) == {"milk": (4, 400)}


HOSTILE = ["", "bröd", "茶", "it's", 'a "b"', "100%", "%s", ":name", "a\\b", "; DROP TABLE x"]


def test_products_may_be_called_anything(shop: Engine) -> None:
    append_all(shop, STORE, [ItemScanned(name, 1) for name in HOSTILE])

    PROJECTIONS.catch_up(shop, TotalByProduct, page_events=3)
    PROJECTIONS.catch_up(shop, Shop, page_events=3)

    assert totals(shop) == dict.fromkeys(HOSTILE, (1, 1))
    assert contents(shop)[0] == dict.fromkeys(HOSTILE, 1)


@event("test.weighed")
@dataclass(frozen=True, slots=True)
class Weighed:
    product: str
    cents: int | None


class WeightByProduct(SetProjection, into=ProductTotal, version=1, reads=(Weighed,)):
    def statements(self, events: FromClause, tables: Mapping[type, Table[Any]]) -> Executable:
        return upsert(tables[ProductTotal], sums_by_product(events), add=["quantity", "cents"])


@pytest.mark.parametrize("page_events", [1, 10])
def test_adding_nothing_changes_nothing(shop: Engine, page_events: int) -> None:
    weights = [None, 5, None, 7]
    append_all(shop, STORE, [Weighed("milk", cents) for cents in weights])
    append_all(shop, STORE, [Weighed("air", None), Weighed("air", None)])

    PROJECTIONS.catch_up(shop, WeightByProduct, page_events=page_events)

    assert totals(shop) == {"milk": (4, 12), "air": (2, None)}


class QuotedBase(DeclarativeBase):
    metadata = MetaData(schema='read "models" %s')


class Quoted(QuotedBase):
    __tablename__ = "a 'table': 100%"
    key: Mapped[str] = mapped_column('the "key" %(x)s', primary_key=True)
    number: Mapped[int] = mapped_column(":number %", BigInteger, default=0)


class CountInto(SetProjection, into=Quoted, version=1, reads=(ItemScanned,)):
    def statements(self, events: FromClause, tables: Mapping[type, Table[Any]]) -> Executable:
        key, number = (c.name for c in Quoted.__table__.c)
        product = events.c.data["product"].as_string()
        rows = select(product.label(key), func.count().label(number)).group_by(product)
        return upsert(tables[Quoted], rows, add=[number])


def test_tables_columns_and_schemas_may_be_called_anything(shop: Engine) -> None:
    with shop.begin() as conn:
        conn.execute(CreateSchema(QuotedBase.metadata.schema or ""))
    QuotedBase.metadata.create_all(shop)
    append_all(shop, STORE, milk(3))

    PROJECTIONS.catch_up(shop, CountInto, page_events=2)
    PROJECTIONS.rebuild(shop, CountInto)

    assert PROJECTIONS.verify(shop, CountInto).matches
    with shop.begin() as conn:
        assert conn.execute(select(Quoted.key, Quoted.number)).all() == [("milk", 3)]


def test_all_works_in_a_schema_of_another_name(shop: Engine) -> None:
    with shop.begin() as conn:
        upgrade(conn, schema="shop_log")
        conn.execute(text("DROP SCHEMA datapatterns CASCADE"))
    store = EventStore("shop_log")
    append_all(shop, store, milk(3))

    Projections(store).catch_up(shop, TotalByProduct, page_events=2)
    Projections(store).rebuild(shop, TotalByProduct)

    assert Projections(store).verify(shop, TotalByProduct).matches
    assert totals(shop) == {"milk": (3, 300)}


def test_verify_finds_what_is_wrong_and_rebuild_repairs_it(shop: Engine) -> None:
    append_all(shop, STORE, [*milk(3), ItemScanned("tea", 250), DoorOpened()])
    PROJECTIONS.catch_up(shop, Shop)
    with shop.begin() as conn:
        conn.execute(text("UPDATE kept_product SET quantity = 9 WHERE product = 'milk'"))
        conn.execute(text("DELETE FROM basket_total"))

    found = PROJECTIONS.verify(shop, Shop, page_events=2)
    done = PROJECTIONS.rebuild(shop, Shop, page_events=2)

    assert [(d.table, d.key) for d in found.differences] == [
        ("kept_product", ("milk",)),
        ("basket_total", ("1",)),
    ]
    assert done.events == 5
    assert PROJECTIONS.verify(shop, Shop).matches


class BrokenOffError(Exception):
    pass


def break_off() -> None:
    raise BrokenOffError


def test_a_page_that_dies_before_its_checkpoint_leaves_nothing(shop: Engine) -> None:
    append_all(shop, STORE, milk(10))

    with pytest.raises(BrokenOffError), armed("projection.page-applied", break_off):
        PROJECTIONS.run(shop, TotalByProduct, page_events=4)
    after = totals(shop)
    PROJECTIONS.catch_up(shop, TotalByProduct, page_events=4)

    assert after == {}
    assert totals(shop) == {"milk": (10, 1000)}


def test_a_page_that_dies_after_its_commit_is_not_applied_again(shop: Engine) -> None:
    append_all(shop, STORE, milk(10))

    with pytest.raises(BrokenOffError), armed("projection.page-committed", break_off):
        PROJECTIONS.run(shop, TotalByProduct, page_events=4)
    after = totals(shop)
    PROJECTIONS.catch_up(shop, TotalByProduct, page_events=4)

    assert after == {"milk": (4, 400)}
    assert totals(shop) == {"milk": (10, 1000)}


def test_a_checkpoint_in_a_transaction_of_its_own_counts_a_page_twice(
    shop: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control of the two before."""
    append_all(shop, STORE, milk(10))

    def after_a_commit(conn: Connection, *_: object, **__: object) -> None:
        conn.commit()
        break_off()

    monkeypatch.setattr(set_projecting, "advance", after_a_commit)
    with pytest.raises(BrokenOffError):
        PROJECTIONS.run(shop, TotalByProduct, page_events=4)
    monkeypatch.undo()
    PROJECTIONS.catch_up(shop, TotalByProduct)

    assert totals(shop) == {"milk": (14, 1400)}


def test_a_runner_that_lost_its_lease_is_fenced(shop: Engine) -> None:
    append_all(shop, STORE, milk(4))
    runner = SetRunner.of(STORE, TotalByProduct, page_events=2)
    with shop.connect() as conn:
        with conn.begin():
            register(conn, TABLES, TotalByProduct, empty=True)
            (stale,) = claim(conn, TABLES, TotalByProduct, owner="sleeper", seconds=60)
        with conn.begin():
            conn.execute(text("UPDATE datapatterns.projection_shard SET lease_until = now()"))
            claim(conn, TABLES, TotalByProduct, owner="heir", seconds=60)

        with pytest.raises(LeaseLostError):
            runner.page(conn, stale)

    assert totals(shop) == {}


def test_runners_at_once_share_the_work_without_doubling_it(shop: Engine) -> None:
    for basket in range(20):
        append_all(shop, STORE, milk(25), basket=str(basket))
    barrier = threading.Barrier(3)

    def run() -> int:
        barrier.wait(timeout=10)
        return PROJECTIONS.catch_up(shop, TotalByProduct, page_events=40).events

    with ThreadPoolExecutor() as pool:
        shares = [pool.submit(run) for _ in range(3)]
        applied = sum(share.result(timeout=60) for share in shares)

    assert applied == 500
    assert totals(shop) == {"milk": (500, 50_000)}


def test_an_engine_that_defaults_to_repeatable_read_changes_nothing(shop: Engine) -> None:
    append_all(shop, STORE, milk(2))
    strict = create_engine(shop.url, isolation_level="REPEATABLE READ")

    PROJECTIONS.catch_up(strict, TotalByProduct)
    matches = PROJECTIONS.verify(strict, TotalByProduct).matches
    strict.dispose()

    assert matches
    assert totals(shop) == {"milk": (2, 200)}


def halve(engine: Engine, name: str) -> None:
    """Split the one segment of a projection, as SQL."""
    with engine.begin() as conn:
        conn.execute(
            text("UPDATE datapatterns.projection_shard SET mask = 1 WHERE name = :n"), {"n": name}
        )
        conn.execute(
            text(
                "INSERT INTO datapatterns.projection_shard (name, version, shard, mask, position)"
                " SELECT name, version, 1, 1, position FROM datapatterns.projection_shard"
                " WHERE name = :n"
            ),
            {"n": name},
        )


def test_segments_of_streams_add_to_the_same_rows_at_once(shop: Engine) -> None:
    products = [ItemScanned(f"p{n}", 1) for n in range(30)]
    for basket in range(40):
        append_all(shop, STORE, products, basket=str(basket))
    PROJECTIONS.run(shop, TotalByProduct, page_events=1)
    halve(shop, TotalByProduct.name)
    with shop.begin() as conn:
        halves = {
            lease.segment.shard: lease
            for lease in claim(conn, TABLES, TotalByProduct, owner="both", seconds=60)
        }
    both_wrote = threading.Barrier(2)

    def run(lease: Lease) -> int:
        runner, events = SetRunner.of(STORE, TotalByProduct, page_events=50), 0
        with shop.connect() as conn:
            both_wrote.wait(timeout=10)
            while True:
                lease, done = runner.page(conn, lease)
                events += done.events
                if done.caught_up:
                    return events

    with ThreadPoolExecutor() as pool:
        events = [pool.submit(run, lease) for lease in halves.values()]
        counted = [share.result(timeout=60) for share in events]

    assert all(counted)
    assert totals(shop) == {f"p{n}": (40, 40) for n in range(30)}


def test_segments_at_different_positions_are_verified_each_as_far_as_it_is(shop: Engine) -> None:
    for basket in range(10):
        append_all(shop, STORE, milk(3), basket=str(basket))
    PROJECTIONS.run(shop, TotalByProduct, page_events=1)
    halve(shop, TotalByProduct.name)
    away = (
        "UPDATE datapatterns.projection_shard SET owner = 'away',"
        " lease_until = now() + interval '1 hour' WHERE shard = 1"
    )
    with shop.begin() as conn:
        conn.execute(text(away))

    PROJECTIONS.run(shop, TotalByProduct)

    assert 1 < totals(shop)["milk"][0] < 30
    assert PROJECTIONS.verify(shop, TotalByProduct, page_events=4).matches
    with shop.begin() as conn:
        conn.execute(text("UPDATE product_total SET quantity = quantity + 1"))
    assert not PROJECTIONS.verify(shop, TotalByProduct).matches


def test_it_is_split_and_merged_while_it_runs(shop: Engine) -> None:
    for basket in range(12):
        append_all(shop, STORE, milk(3), basket=str(basket))
    PROJECTIONS.run(shop, TotalByProduct, page_events=5)

    assert PROJECTIONS.split(shop, TotalByProduct) == 2
    PROJECTIONS.run(shop, TotalByProduct, page_events=4)
    assert PROJECTIONS.verify(shop, TotalByProduct).matches
    assert PROJECTIONS.merge(shop, TotalByProduct) == 1
    PROJECTIONS.catch_up(shop, TotalByProduct)

    assert totals(shop) == {"milk": (36, 3_600)}
    PROJECTIONS.run(shop, Shop)
    with pytest.raises(SegmentError, match="additive=True"):
        PROJECTIONS.split(shop, Shop)


def test_what_depends_on_the_order_of_streams_is_not_run_in_segments(shop: Engine) -> None:
    append_all(shop, STORE, milk(2))
    PROJECTIONS.run(shop, Shop, page_events=1)
    halve(shop, Shop.name)

    with pytest.raises(ProjectionDefinitionError, match="additive=True"):
        PROJECTIONS.run(shop, Shop)

    assert contents(shop)[0] == {"milk": 1}


def test_a_page_ends_at_a_barrier(shop: Engine) -> None:
    append_all(shop, STORE, milk(6))
    PROJECTIONS.run(shop, TotalByProduct, page_events=1)
    barrier = text(
        "UPDATE datapatterns.projection_shard SET barrier = 3,"
        " barrier_until = clock_timestamp() + make_interval(secs => :seconds)"
    )
    with shop.begin() as conn:
        conn.execute(barrier, {"seconds": 60})

    held = [PROJECTIONS.run(shop, TotalByProduct).position for _ in range(3)]
    with shop.begin() as conn:
        conn.execute(barrier, {"seconds": -1})
    freed = PROJECTIONS.run(shop, TotalByProduct).position

    assert (held, freed) == ([3, 3, 3], 6)
    assert totals(shop) == {"milk": (6, 600)}


def test_a_barrier_that_comes_in_the_middle_of_a_page_undoes_it(shop: Engine) -> None:
    append_all(shop, STORE, milk(6))
    PROJECTIONS.run(shop, TotalByProduct, page_events=1)

    def bar() -> None:
        with shop.begin() as conn:
            conn.execute(
                text(
                    "UPDATE datapatterns.projection_shard SET barrier = 3,"
                    " barrier_until = clock_timestamp() + interval '1 minute'"
                )
            )

    with armed("projection.page-applied", bar):
        first = PROJECTIONS.run(shop, TotalByProduct)
    second = PROJECTIONS.run(shop, TotalByProduct)

    assert (first.events, first.position) == (0, 1)
    assert (second.events, second.position) == (2, 3)
    assert totals(shop) == {"milk": (3, 300)}


def test_a_version_that_is_not_live_writes_its_own_table(shop: Engine) -> None:
    append_all(shop, STORE, milk(2))
    with shop.begin() as conn:
        register(conn, TABLES, TotalByProduct, empty=True)
        conn.execute(text("UPDATE datapatterns.projection SET status = 'building'"))
        conn.execute(text("CREATE TABLE product_total__v1 (LIKE product_total INCLUDING ALL)"))
        (lease,) = claim(conn, TABLES, TotalByProduct, owner="one", seconds=60)

    with shop.connect() as conn:
        SetRunner.of(STORE, TotalByProduct, page_events=10).page(conn, lease)

    with shop.begin() as conn:
        shadow = conn.execute(text("SELECT product, quantity FROM product_total__v1")).all()
    assert shadow == [("milk", 2)]
    assert totals(shop) == {}
