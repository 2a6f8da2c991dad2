"""Segments are split and merged while workers move them on, and nothing is lost or doubled."""

from threading import Event, Thread

import pytest
from sqlalchemy import Engine, Executable, ForeignKey, LargeBinary, String, text
from sqlalchemy.dialects.postgresql import CITEXT, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from datapatterns.cqrs import Projection, Projections, SegmentStatus, SetProjection, on
from datapatterns.cqrs.running.working import ProjectionWorker
from datapatterns.errors import (
    LeaseLostError,
    ProjectionStoppedError,
    ReadModelBuildingError,
    SegmentError,
    SegmentKeyError,
    SegmentsBusyError,
)
from datapatterns.event_sourcing import EventStore, RecordedEvent
from datapatterns.testing import ManualClock
from datapatterns.testing.faults import halted_at
from tests.fixtures.read_models import (
    Dashboard,
    ItemScanned,
    ProductSales,
    SalesByProduct,
    append_all,
    create_tables,
    expected_sales,
    sales,
)

pytestmark = pytest.mark.postgres

STORE = EventStore()
PRODUCTS = [f"p{n}" for n in range(40)]
EVENTS = [ItemScanned(product, n) for n, product in enumerate(PRODUCTS * 3)]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def projections(clock: ManualClock) -> Projections:
    return Projections(STORE, clock=clock, declared=[SalesByProduct])


@pytest.fixture
def shop(engine: Engine, projections: Projections) -> Engine:
    create_tables(engine)
    append_all(engine, STORE, EVENTS)
    projections.catch_up(engine, SalesByProduct)
    return engine


def work(worker: ProjectionWorker, engine: Engine, clock: ManualClock) -> int:
    clock.advance(1)
    events = 0
    while done := worker.step(engine).events:
        events += done
    return events


def segments(engine: Engine, projections: Projections) -> list[SegmentStatus]:
    with engine.begin() as conn:
        (status,) = projections.status(conn)
    return list(status.segments)


def shares(engine: Engine) -> dict[str, int]:
    with engine.begin() as conn:
        rows = conn.execute(
            text(
                "SELECT owner, count(*) FROM datapatterns.projection_shard"
                " WHERE lease_until > clock_timestamp() GROUP BY owner"
            )
        ).all()
        return {str(owner): int(count) for owner, count in rows}


def assert_right(engine: Engine, projections: Projections, times: int) -> None:
    log = [(event, "1") for event in EVENTS * times]
    assert sales(engine) == expected_sales(log)
    assert projections.verify(engine, SalesByProduct).matches


def test_segments_are_split_and_merged_at_one_position(
    shop: Engine, projections: Projections
) -> None:
    assert projections.split(shop, SalesByProduct) == 2
    assert projections.split(shop, SalesByProduct, shard=1) == 3
    there = [(one.shard, one.mask) for one in segments(shop, projections)]
    assert there == [(0, 1), (1, 3), (3, 3)]
    assert len({one.position for one in segments(shop, projections)}) == 1
    append_all(shop, STORE, EVENTS)
    projections.catch_up(shop, SalesByProduct)
    assert_right(shop, projections, 2)

    assert projections.merge(shop, SalesByProduct) == 2
    assert projections.merge(shop, SalesByProduct, shard=1) == 1
    append_all(shop, STORE, EVENTS)
    projections.catch_up(shop, SalesByProduct)

    assert_right(shop, projections, 3)


@pytest.mark.parametrize("count", [1, 2, 8, 64])
def test_there_are_as_many_segments_as_were_asked_for(
    shop: Engine, projections: Projections, count: int
) -> None:
    projections.split_into(shop, SalesByProduct, 4)
    projections.split(shop, SalesByProduct, shard=2)

    assert projections.split_into(shop, SalesByProduct, count) == count

    assert {one.mask for one in segments(shop, projections)} == {count - 1}
    append_all(shop, STORE, EVENTS)
    projections.catch_up(shop, SalesByProduct)
    assert_right(shop, projections, 2)


def test_workers_that_come_and_go_have_even_shares(
    shop: Engine, projections: Projections, clock: ManualClock
) -> None:
    projections.split_into(shop, SalesByProduct, 8)
    crew = [projections.worker() for _ in range(3)]

    for count, worker in enumerate(crew, start=1):
        for one in [*crew[:count], worker, *crew[:count]]:
            work(one, shop, clock)
        held = shares(shop)
        assert len(held) == count
        assert sum(held.values()) == 8
        assert max(held.values()) - min(held.values()) <= 1
    append_all(shop, STORE, EVENTS)
    assert sum(work(one, shop, clock) for one in crew) >= len(EVENTS)
    with shop.connect() as conn:
        crew[0].leave(conn)
    for one in crew[1:]:
        work(one, shop, clock)

    assert sorted(shares(shop).values()) == [4, 4]
    assert_right(shop, projections, 2)


def test_a_page_that_is_under_way_is_undone_by_a_split_and_applied_by_both_halves(
    shop: Engine, projections: Projections
) -> None:
    append_all(shop, STORE, EVENTS)
    refused: list[Exception] = []

    def run() -> None:
        try:
            projections.run(shop, SalesByProduct)
        except LeaseLostError as error:
            refused.append(error)

    with halted_at("projection.page-applied") as page:
        runner = Thread(target=run)
        runner.start()
        page.wait()
        projections.split(shop, SalesByProduct)
        page.release()
        runner.join()

    assert refused
    assert_right(shop, projections, 1)
    projections.catch_up(shop, SalesByProduct)
    assert_right(shop, projections, 2)


def test_a_worker_whose_segment_was_split_takes_both_halves(
    shop: Engine, projections: Projections, clock: ManualClock
) -> None:
    worker = projections.worker()
    work(worker, shop, clock)

    projections.split(shop, SalesByProduct)
    append_all(shop, STORE, EVENTS)
    work(worker, shop, clock)

    assert shares(shop) == {worker.terms.owner: 2}
    assert_right(shop, projections, 2)


def test_the_half_that_is_behind_is_brought_level_before_they_are_merged(
    shop: Engine, projections: Projections, clock: ManualClock
) -> None:
    projections.split(shop, SalesByProduct)
    append_all(shop, STORE, EVENTS)
    with shop.begin() as conn:  # somebody else is busy with the second
        conn.execute(
            text(
                "UPDATE datapatterns.projection_shard SET owner = 'busy',"
                " lease_until = now() + interval '1 h' WHERE shard = 1"
            )
        )
    work(projections.worker(), shop, clock)
    apart = {one.position for one in segments(shop, projections)}

    assert projections.merge(shop, SalesByProduct) == 1

    assert len(apart) == 2
    (whole,) = segments(shop, projections)
    assert whole.position == max(apart)
    assert whole.owner is None
    assert_right(shop, projections, 2)


def test_a_half_that_is_stopped_cannot_be_merged_and_holds_nobody_up(
    shop: Engine, projections: Projections, clock: ManualClock
) -> None:
    class Strict(SalesByProduct, into=ProductSales, version=1, name="sales_by_product"):
        @on(ItemScanned, key=lambda e, _: e.product)
        def refuse(self, _row: ProductSales, e: ItemScanned, _meta: RecordedEvent) -> None:
            if e.product == "p1" and e.cents == -1:
                raise LookupError(e.product)

    projections.split(shop, SalesByProduct)
    append_all(shop, STORE, [ItemScanned("p1", -1), *EVENTS])
    work(projections.worker([Strict]), shop, clock)
    (stopped, other) = sorted(segments(shop, projections), key=lambda one: one.position)

    with pytest.raises(ProjectionStoppedError):
        projections.merge(shop, Strict)

    assert stopped.error is not None
    assert other.error is None
    assert [one.owner for one in segments(shop, projections)] == [None, None]
    projections.run(shop, SalesByProduct)  # without the handler that refuses
    assert projections.merge(shop, SalesByProduct) == 1
    assert projections.verify(shop, SalesByProduct).matches


def test_parked_events_go_with_the_segment_that_owns_their_row(
    engine: Engine, clock: ManualClock
) -> None:
    class Parking(Projection, into=ProductSales, version=1, on_poison="park"):
        mended = False

        @on(ItemScanned, key=lambda e, _: e.product)
        def _(self, row: ProductSales, e: ItemScanned, meta: RecordedEvent) -> None:
            if not self.mended and e.product in PRODUCTS[:10]:
                raise LookupError(e.product)
            row.quantity += 1
            row.cents += e.cents
            row.last_basket = meta.stream.key

    create_tables(engine)
    append_all(engine, STORE, EVENTS)
    projections = Projections(STORE, clock=clock, declared=[Parking])
    projections.catch_up(engine, Parking)
    (whole,) = segments(engine, projections)

    projections.split_into(engine, Parking, 4)
    parked = [one.parked for one in segments(engine, projections)]
    append_all(engine, STORE, EVENTS)
    projections.catch_up(engine, Parking)
    projections.split_into(engine, Parking, 2)
    merged = [one.parked for one in segments(engine, projections)]
    Parking.mended = True
    projections.retry(engine, Parking)

    assert whole.parked == 30
    assert sum(parked) == 30
    assert max(parked) < 30
    assert sum(merged) == 60
    assert sum(one.parked for one in segments(engine, projections)) == 0
    assert sales(engine) == expected_sales((event, "1") for event in EVENTS * 2)


def test_segments_are_split_and_merged_under_workers_and_the_view_is_the_replay(
    shop: Engine,
) -> None:
    projections = Projections(STORE, declared=[SalesByProduct])
    stopping = Event()
    failures: list[Exception] = []

    def run() -> None:
        worker = projections.worker(page_events=10)
        try:
            while not stopping.is_set():
                stopping.wait(min(worker.step(shop).pause_seconds, 0.02))
            with shop.connect() as conn:
                worker.leave(conn)
        except Exception as error:  # noqa: BLE001 -- told by the test
            failures.append(error)

    crew = [Thread(target=run) for _ in range(3)]
    for thread in crew:
        thread.start()
    try:
        for count in (4, 1, 8, 2, 1, 2):
            append_all(shop, STORE, EVENTS)
            projections.split_into(shop, SalesByProduct, count)
        token = append_all(shop, STORE, EVENTS)
        projections.wait(shop, SalesByProduct, token, timeout_seconds=60)
    finally:
        stopping.set()
        for thread in crew:
            thread.join()

    assert not failures
    assert_right(shop, projections, 8)


# -- what is refused -------------------------------------------------------------------------------


class Base(DeclarativeBase):
    pass


class Shelf(Base):
    __tablename__ = "segment_shelf"
    product: Mapped[str] = mapped_column(primary_key=True)
    place: Mapped[str | None] = mapped_column(unique=True)


class Folded(Base):
    __tablename__ = "segment_folded"
    product: Mapped[str] = mapped_column(CITEXT, primary_key=True)
    count: Mapped[int] = mapped_column(default=0)


class Family(Base):
    __tablename__ = "segment_family"
    product: Mapped[str] = mapped_column(String, primary_key=True)


class Member(Base):
    __tablename__ = "segment_member"
    product: Mapped[str] = mapped_column(ForeignKey("segment_family.product"), primary_key=True)


class Blob(Base):
    __tablename__ = "segment_blob"
    key: Mapped[dict[str, str]] = mapped_column(JSONB, primary_key=True)
    data: Mapped[bytes | None] = mapped_column(LargeBinary)


def counting(*into: type) -> type[Projection]:
    class Counting(Projection, into=into, version=1):
        for table in into:

            @on(ItemScanned, key=lambda e, _: e.product, into=table)
            def _(self, _row: object, _e: ItemScanned, _meta: RecordedEvent) -> None:
                pass

        del table

    return Counting


@pytest.mark.parametrize(
    ("into", "error", "reason"),
    [
        ((Shelf,), SegmentError, "unique by more than their key"),
        ((Folded,), SegmentError, "equal to the database"),
        ((Family, Member), SegmentError, "refers to another of its tables"),
        ((Blob,), SegmentKeyError, "class object"),
    ],
)
def test_rows_that_depend_on_each_other_are_not_split(
    engine: Engine, into: tuple[type, ...], error: type[Exception], reason: str
) -> None:
    with engine.begin() as conn:
        conn.execute(text("CREATE EXTENSION IF NOT EXISTS citext"))
    Base.metadata.create_all(engine)
    projections = Projections(STORE)
    projection = counting(*into)
    projections.run(engine, projection)

    with pytest.raises(error, match=reason):
        projections.split(engine, projection)
    with pytest.raises(error, match=reason):
        projections.split_into(engine, projection, 2)
    assert projections.split_into(engine, projection, 1) == 1


def test_what_cannot_be_split_so_says_why(shop: Engine, projections: Projections) -> None:
    class Ordered(SetProjection, into=ProductSales, version=1, reads=(ItemScanned,)):
        def statements(self, events: object, tables: object) -> Executable:
            raise NotImplementedError

    with pytest.raises(SegmentError, match="one segment"):
        projections.split(shop, Dashboard)
    with pytest.raises(SegmentError, match="additive"):
        projections.split(shop, Ordered)
    with pytest.raises(SegmentError, match="power of two"):
        projections.split_into(shop, SalesByProduct, 3)
    with pytest.raises(SegmentError, match="power of two"):
        projections.split_into(shop, SalesByProduct, 2_048)
    with pytest.raises(SegmentError, match="there is no 5, only 0"):
        projections.split(shop, SalesByProduct, shard=5)
    with pytest.raises(SegmentError, match="owns all keys"):
        projections.merge(shop, SalesByProduct)
    with pytest.raises(ReadModelBuildingError):
        projections.merge(shop, counting(Family))


def test_segments_are_left_alone_while_another_version_takes_the_place(
    shop: Engine, projections: Projections
) -> None:
    with shop.begin() as conn:
        conn.execute(
            text(
                "UPDATE datapatterns.projection_shard SET owner = 'promoter', barrier = position,"
                " lease_until = now() + interval '1 h', barrier_until = now() + interval '1 h'"
            )
        )

    with pytest.raises(SegmentsBusyError):
        projections.split(shop, SalesByProduct)
    with shop.begin() as conn:
        conn.execute(text("UPDATE datapatterns.projection_shard SET barrier_until = now()"))
    assert projections.split(shop, SalesByProduct) == 2
