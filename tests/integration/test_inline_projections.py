"""Read models that are kept in the transaction of the append."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from uuid import uuid4

import pytest
from psycopg.errors import ObjectNotInPrerequisiteState
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from datapatterns import DataLayer
from datapatterns.cqrs import InlineProjections, Projection, Projections, on
from datapatterns.errors import (
    InlineKeyError,
    InlineProjectionError,
    IsolationLevelError,
    ProjectionDefinitionError,
    ProjectionModeError,
    ProjectionVersionError,
    ReadModelBehindError,
    VersionConflictError,
    WritersInTheWayError,
)
from datapatterns.event_sourcing import (
    ANY,
    NEW_STREAM,
    Archive,
    EventStore,
    EventWriter,
    ImportedEvent,
    Partitioning,
    RecordedEvent,
    StreamEvents,
    StreamId,
)
from datapatterns.failpoints import armed
from tests.fixtures.read_models import (
    Dashboard,
    DoorOpened,
    ItemScanned,
    ProductSales,
    ProductsMerged,
    ProductWithdrawn,
    SalesByProduct,
    append_all,
    create_tables,
    expected_sales,
    sales,
)

pytestmark = pytest.mark.postgres

PLAIN = EventStore()
STORE = EventStore(inline=InlineProjections((SalesByProduct,)))
PROJECTIONS = Projections(STORE)


@pytest.fixture
def shop(engine: Engine) -> Engine:
    create_tables(engine)
    append_all(engine, STORE, [ItemScanned("milk", 10), ItemScanned("tea", 1)])
    PROJECTIONS.make_inline(engine, SalesByProduct)
    return engine


def scanned(product: str, cents: int = 1) -> ItemScanned:
    return ItemScanned(product, cents)


def test_an_append_shows_in_its_own_transaction(shop: Engine) -> None:
    with Session(shop) as session:
        STORE.append(
            session.connection(), StreamId("basket", "2"), [scanned("milk")], expected_version=ANY
        )

        assert session.get_one(ProductSales, "milk").quantity == 2
        session.rollback()

    assert sales(shop)["milk"] == (1, 10, "1")


def test_it_is_what_a_replay_gives(shop: Engine) -> None:
    log: list[tuple[object, str]] = [(scanned("milk", 10), "1"), (scanned("tea"), "1")]
    for basket, event in [
        ("2", ItemScanned("milk", 5)),
        ("3", ProductWithdrawn("tea")),
        ("2", ProductsMerged(["milk", "bread", "milk"])),
        ("4", DoorOpened()),
        ("4", ItemScanned("tea", 7)),
    ]:
        append_all(shop, STORE, [event], basket=basket)
        log.append((event, basket))

    assert sales(shop) == expected_sales(log)
    assert PROJECTIONS.verify(shop, SalesByProduct).matches


def test_verify_sees_what_somebody_changed(shop: Engine) -> None:
    with shop.begin() as conn:
        conn.execute(text("UPDATE product_sales SET quantity = 7 WHERE product = 'tea'"))

    found = PROJECTIONS.verify(shop, SalesByProduct)

    assert [difference.key for difference in found.differences] == [("tea",)]


def test_writers_of_one_row_that_does_not_exist_yet_count_both(shop: Engine) -> None:
    barrier = Barrier(4)

    def write(number: int) -> None:
        barrier.wait()
        for _ in range(5):
            append_all(shop, STORE, [scanned("new")], basket=f"b{number}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))

    assert sales(shop)["new"][0] == 20
    assert PROJECTIONS.verify(shop, SalesByProduct).matches


def test_the_last_one_in_the_log_is_the_last_one_in_the_row(shop: Engine) -> None:
    # Without the lock on the key before the position is drawn, the other way round.
    with shop.connect() as early, shop.connect() as late, ThreadPoolExecutor(1) as pool:
        begun = early.begin()
        STORE.append(early, StreamId("basket", "early"), [scanned("milk")], expected_version=ANY)

        def append_late() -> None:
            with late.begin():
                stream = StreamId("basket", "late")
                STORE.append(late, stream, [scanned("milk")], expected_version=ANY)

        waiting = pool.submit(append_late)
        begun.commit()
        waiting.result(timeout=20)

    assert sales(shop)["milk"][2] == "late"
    assert PROJECTIONS.verify(shop, SalesByProduct).matches


def test_an_append_of_more_rows_than_are_locked_one_by_one(shop: Engine) -> None:
    events = [scanned(f"p{number}") for number in range(600)]
    barrier = Barrier(2)

    def write(basket: str) -> None:
        barrier.wait()
        append_all(shop, STORE, events, basket=basket)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, ["a", "b"]))

    assert {quantity for _, (quantity, _, _) in sales(shop).items()} == {1, 2}
    assert PROJECTIONS.verify(shop, SalesByProduct).matches


def test_a_repeated_append_changes_no_row_again(shop: Engine) -> None:
    ids = [uuid4()]

    def append() -> bool:
        with shop.begin() as conn:
            return STORE.append(
                conn,
                StreamId("basket", "9"),
                [scanned("milk")],
                expected_version=NEW_STREAM,
                event_ids=ids,
            ).repeated

    assert [append(), append()] == [False, True]
    assert sales(shop)["milk"][0] == 2


def test_a_conflict_changes_no_row_and_leaves_the_transaction_usable(shop: Engine) -> None:
    with shop.begin() as conn:
        with pytest.raises(VersionConflictError):
            STORE.append(conn, StreamId("basket", "1"), [scanned("milk")], expected_version=7)
        STORE.append(conn, StreamId("basket", "5"), [scanned("milk")], expected_version=ANY)

    assert sales(shop)["milk"][0] == 2


def test_a_savepoint_takes_event_and_row_back_together(shop: Engine) -> None:
    with shop.begin() as conn:
        savepoint = conn.begin_nested()
        STORE.append(conn, StreamId("basket", "6"), [scanned("milk")], expected_version=ANY)
        savepoint.rollback()
        STORE.append(conn, StreamId("basket", "7"), [scanned("milk")], expected_version=ANY)

    assert sales(shop)["milk"] == (2, 11, "7")
    assert PROJECTIONS.verify(shop, SalesByProduct).matches


def test_what_the_table_refuses_is_not_appended(shop: Engine) -> None:
    with shop.begin() as conn:
        with pytest.raises(InlineProjectionError, match="not_negative"):
            STORE.append(
                conn, StreamId("basket", "8"), [ItemScanned("milk", -100)], expected_version=ANY
            )
        assert STORE.read_stream(conn, StreamId("basket", "8")) == []
        STORE.append(conn, StreamId("basket", "8"), [scanned("milk")], expected_version=NEW_STREAM)

    assert sales(shop)["milk"] == (2, 11, "8")


def test_every_way_to_append_keeps_it(shop: Engine) -> None:
    with shop.begin() as conn:
        STORE.append_to_streams(
            conn,
            [
                StreamEvents(StreamId("basket", "b"), [scanned("milk")], ANY),
                StreamEvents(StreamId("basket", "a"), [scanned("milk"), scanned("tea")], ANY),
            ],
        )
    with shop.begin() as conn, STORE.unit(conn) as unit:
        unit.append(StreamId("basket", "c"), [scanned("milk")], expected_version=ANY)
    with Session(shop) as session:
        STORE.unit(session).append(StreamId("basket", "d"), [scanned("tea")], expected_version=ANY)
        session.commit()

    assert {product: sale[0] for product, sale in sales(shop).items()} == {"milk": 4, "tea": 3}
    assert PROJECTIONS.verify(shop, SalesByProduct).matches


def test_a_writer_that_does_not_know_of_it_is_refused(shop: Engine) -> None:
    with pytest.raises(OperationalError, match="does not keep projection sales_by_product"):
        append_all(shop, PLAIN, [scanned("milk")])
    with (
        EventWriter(PLAIN, shop) as writer,
        pytest.raises(OperationalError, match="does not keep projection"),
    ):
        writer.append(StreamId("basket", "1"), [scanned("milk")], expected_version=ANY)
    events = [ImportedEvent(StreamId("basket", "i"), scanned("milk"))]
    refused = pytest.raises(ObjectNotInPrerequisiteState, match="does not keep")
    with refused, shop.begin() as conn:
        STORE.import_events(conn, events, source="file", chunk=1)

    assert sales(shop)["milk"][0] == 1
    assert PROJECTIONS.verify(shop, SalesByProduct).matches


def test_a_writer_with_an_old_snapshot_is_refused(shop: Engine) -> None:
    strict = create_engine(shop.url, isolation_level="REPEATABLE READ")
    with pytest.raises(IsolationLevelError), strict.begin() as conn:
        STORE.append(conn, StreamId("basket", "1"), [scanned("milk")], expected_version=ANY)

    PROJECTIONS.make_async(shop, SalesByProduct)
    with strict.connect() as conn, conn.begin():
        conn.execute(text("SELECT 1"))
        PROJECTIONS.make_inline(shop, SalesByProduct)
        # It cannot see that the projection is kept inline; the trigger does not look.
        with pytest.raises(OperationalError, match="does not keep projection"):
            STORE.append(conn, StreamId("basket", "1"), [scanned("milk")], expected_version=ANY)
    strict.dispose()


def test_another_version_is_refused(shop: Engine) -> None:
    class Next(SalesByProduct, into=ProductSales, version=2, name=SalesByProduct.name):
        pass

    store = EventStore(inline=InlineProjections((Next,)))
    with pytest.raises(ProjectionVersionError):
        append_all(shop, store, [scanned("milk")])


def test_runners_have_nothing_to_do_and_it_is_never_behind(shop: Engine) -> None:
    token = append_all(shop, STORE, [scanned("milk")])

    progress = PROJECTIONS.run(shop, SalesByProduct)
    caught_up = PROJECTIONS.catch_up(shop, SalesByProduct)
    waited = PROJECTIONS.wait(shop, SalesByProduct, token, timeout_seconds=0)

    assert (progress.events, progress.position, progress.caught_up) == (0, token, True)
    assert (caught_up, waited) == (progress, token)
    with shop.begin() as conn:
        (status,) = PROJECTIONS.status(conn)
    assert (status.mode, status.position, status.positions_behind) == ("inline", token, 0)
    assert status.seconds_behind == 0.0


def test_it_has_caught_up_only_where_no_open_append_comes_before(shop: Engine) -> None:
    with shop.connect() as conn:
        STORE.append(conn, StreamId("door", "open"), [DoorOpened()], expected_version=0)
        token = append_all(shop, STORE, [scanned("milk")])
        with pytest.raises(ReadModelBehindError):
            PROJECTIONS.catch_up(shop, SalesByProduct, until=token, timeout_seconds=0)
        conn.rollback()

    assert PROJECTIONS.catch_up(shop, SalesByProduct, until=token).position == token


def test_runners_go_on_where_appends_ended(shop: Engine) -> None:
    append_all(shop, STORE, [scanned("milk")])

    PROJECTIONS.make_async(shop, SalesByProduct)
    append_all(shop, STORE, [scanned("milk")])
    append_all(shop, PLAIN, [scanned("milk")])

    assert sales(shop)["milk"][0] == 2
    PROJECTIONS.catch_up(shop, SalesByProduct)
    assert sales(shop)["milk"][0] == 4
    PROJECTIONS.make_inline(shop, SalesByProduct)
    append_all(shop, STORE, [scanned("milk")])
    assert sales(shop)["milk"][0] == 5
    assert PROJECTIONS.verify(shop, SalesByProduct).matches


def test_switching_twice_changes_nothing(shop: Engine) -> None:
    PROJECTIONS.make_inline(shop, SalesByProduct)
    PROJECTIONS.make_async(shop, SalesByProduct)
    PROJECTIONS.make_async(shop, SalesByProduct)
    append_all(shop, STORE, [scanned("milk")])
    PROJECTIONS.catch_up(shop, SalesByProduct)

    assert sales(shop)["milk"][0] == 2


def test_a_switch_waits_for_who_appends_and_loses_nothing(shop: Engine) -> None:
    PROJECTIONS.make_async(shop, SalesByProduct)
    with shop.connect() as conn:
        begun = conn.begin()
        PLAIN.append(conn, StreamId("basket", "x"), [scanned("milk")], expected_version=ANY)
        with pytest.raises(WritersInTheWayError):
            PROJECTIONS.make_inline(shop, SalesByProduct, timeout_seconds=0)
        begun.commit()

    PROJECTIONS.make_inline(shop, SalesByProduct)

    assert sales(shop)["milk"][0] == 2


@pytest.mark.parametrize("switch", [PROJECTIONS.make_inline, PROJECTIONS.make_async])
def test_writers_go_on_while_it_is_switched(shop: Engine, switch: object) -> None:
    stop, barrier = [False], Barrier(4)

    def write(number: int) -> int:
        barrier.wait()
        written = 0
        while not stop[0]:
            append_all(shop, STORE, [scanned("milk"), scanned(f"p{number}")], basket=f"b{number}")
            written += 1
        return written

    with ThreadPoolExecutor(3) as pool:
        writing = [pool.submit(write, number) for number in range(3)]
        barrier.wait()
        for _ in range(3):
            PROJECTIONS.make_async(shop, SalesByProduct)
            PROJECTIONS.make_inline(shop, SalesByProduct)
        switch(shop, SalesByProduct)  # type: ignore[operator] # one of the two above
        stop[0] = True
        written = sum(each.result(timeout=30) for each in writing)
    PROJECTIONS.catch_up(shop, SalesByProduct)

    assert sales(shop)["milk"][0] == 1 + written
    assert PROJECTIONS.verify(shop, SalesByProduct).matches


def _die() -> None:
    raise LookupError


def test_a_switch_that_dies_half_way_has_changed_nothing(shop: Engine) -> None:
    for switch in (PROJECTIONS.make_async, PROJECTIONS.make_inline):
        with armed("projection.mode-set", _die), pytest.raises(LookupError):
            switch(shop, SalesByProduct)
        append_all(shop, STORE, [scanned("milk")])
        PROJECTIONS.catch_up(shop, SalesByProduct)
        assert PROJECTIONS.verify(shop, SalesByProduct).matches
        switch(shop, SalesByProduct)

    assert sales(shop)["milk"][0] == 3


def test_parked_events_come_first(engine: Engine) -> None:
    create_tables(engine)

    class Parking(SalesByProduct, into=ProductSales, version=1, on_poison="park"):
        pass

    store = EventStore(inline=InlineProjections((Parking,)))
    projections = Projections(store)
    append_all(engine, store, [ItemScanned("milk", -1), scanned("tea")])

    with pytest.raises(ProjectionModeError, match="parked"):
        projections.make_inline(engine, Parking)
    with engine.connect() as conn:
        (key,) = projections.parked(conn, Parking)
    projections.discard(engine, Parking, key_digest=key.key_digest)
    projections.make_inline(engine, Parking)


def test_a_key_that_is_known_only_afterwards_is_refused(engine: Engine) -> None:
    create_tables(engine)

    class ByPosition(Projection, into=ProductSales, version=1):
        @on(ItemScanned, key=lambda _, meta: str(meta.position))
        def _(self, row: ProductSales, _e: ItemScanned, _meta: RecordedEvent) -> None:
            row.quantity += 1

    store = EventStore(inline=InlineProjections((ByPosition,)))
    Projections(store).make_inline(engine, ByPosition)

    with pytest.raises(InlineKeyError, match="position"):
        append_all(engine, store, [scanned("milk")])


def test_events_of_other_kinds_need_not_be_known(shop: Engine) -> None:
    append_all(shop, STORE, [DoorOpened()])

    assert PROJECTIONS.verify(shop, SalesByProduct).matches


def test_it_is_not_rebuilt_while_appends_keep_it(shop: Engine) -> None:
    with pytest.raises(ProjectionModeError, match="make it async"):
        PROJECTIONS.rebuild(shop, SalesByProduct)


def test_a_constraint_of_the_callers_own_is_left_deferred(shop: Engine) -> None:
    with shop.begin() as conn:
        conn.execute(text("CREATE TABLE parent (id int PRIMARY KEY)"))
        conn.execute(
            text("CREATE TABLE child (id int REFERENCES parent DEFERRABLE INITIALLY DEFERRED)")
        )
    with shop.begin() as conn:
        conn.execute(text("INSERT INTO child VALUES (1)"))
        STORE.append(conn, StreamId("basket", "1"), [scanned("milk")], expected_version=ANY)
        conn.execute(text("INSERT INTO parent VALUES (1)"))

    assert sales(shop)["milk"][0] == 2


def test_only_tables_are_kept_inline() -> None:
    with pytest.raises(ProjectionDefinitionError, match="only a Projection that folds"):
        InlineProjections((Dashboard,))  # type: ignore[arg-type]


def test_the_layer_keeps_what_is_declared_to_be_inline(engine: Engine) -> None:
    create_tables(engine)

    class Inline(SalesByProduct, into=ProductSales, version=1, inline=True):
        pass

    layer = DataLayer(engine.url, projections=[Inline, Dashboard])
    layer.projections.make_inline(layer.engine, Inline)
    append_all(layer.engine, layer.events, [scanned("milk")])

    assert sales(engine)["milk"][0] == 1
    layer.close()


def test_nothing_is_kept_that_was_not_switched(engine: Engine) -> None:
    create_tables(engine)
    append_all(engine, STORE, [scanned("milk")])

    assert sales(engine) == {}
    PROJECTIONS.catch_up(engine, SalesByProduct)
    assert sales(engine)["milk"][0] == 1


def test_it_is_kept_for_partitioned_events_which_stay_so_meanwhile(shop: Engine) -> None:
    PROJECTIONS.make_async(shop, SalesByProduct)
    partitioning = Partitioning(STORE)
    partitioning.partition(shop, size=10)
    PROJECTIONS.make_inline(shop, SalesByProduct)
    append_all(shop, STORE, [scanned("milk")])
    with shop.begin() as conn:
        partitioning.extend(conn, ahead=3)

    with pytest.raises(OperationalError, match="does not keep projection"):
        append_all(shop, PLAIN, [scanned("milk")])
    with pytest.raises(OperationalError, match="make the projection async"), shop.begin() as conn:
        partitioning.undo(conn)
    append_all(shop, STORE, [scanned("milk")])

    assert sales(shop)["milk"][0] == 3
    assert PROJECTIONS.verify(shop, SalesByProduct).matches


def test_events_come_back_from_the_archive_and_are_not_kept_twice(shop: Engine) -> None:
    archive, basket = Archive(STORE), StreamId("basket", "old")
    append_all(shop, STORE, [scanned("milk")] * 3, basket="old")
    with shop.begin() as conn:
        archive.stop(conn, basket)
        archive.move(conn, basket)
    with shop.begin() as conn:
        assert archive.restore(conn, basket)
        with pytest.raises(OperationalError, match="does not keep"), conn.begin_nested():
            PLAIN.append(conn, basket, [scanned("milk")], expected_version=ANY)
    append_all(shop, STORE, [scanned("milk")], basket="old")

    assert sales(shop)["milk"][0] == 5
    assert PROJECTIONS.verify(shop, SalesByProduct).matches
