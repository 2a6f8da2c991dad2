"""What fails is recorded and rests; everything else goes on, and what was lost is waited for."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from threading import Thread

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from datapatterns.cqrs import (
    Projection,
    Projections,
    ProjectionStatus,
    ProjectionWorker,
    on,
)
from datapatterns.embedded import EmbeddedServers, PostgresServer
from datapatterns.errors import ProjectionStoppedError, ReadOnlyServerError
from datapatterns.event_sourcing import EventStore, RecordedEvent
from datapatterns.migrations import Migrations
from datapatterns.runtime import MarkLoop, Worker
from datapatterns.telemetry import SilentObserver
from datapatterns.testing import ManualClock, wait_until
from tests.fixtures.read_models import (
    Dashboard,
    ItemScanned,
    SalesByProduct,
    append_all,
    create_tables,
    sales,
)

pytestmark = pytest.mark.postgres

STORE = EventStore()
MILK, TEA = ItemScanned("milk", 1), ItemScanned("tea", 1)
SECONDS = 60.0
END_OTHERS = text(
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
)


class Base(DeclarativeBase):
    pass


class Count(Base):
    __tablename__ = "scan_count"
    product: Mapped[str] = mapped_column(primary_key=True)
    count: Mapped[int] = mapped_column(default=0)


class Picky(Projection, into=Count, version=1):
    refused = ""

    @on(ItemScanned, key=lambda e, _: e.product)
    def _(self, row: Count, e: ItemScanned, _meta: RecordedEvent) -> None:
        if e.product == self.refused:
            raise LookupError(e.product)
        row.count += 1


class Counted(SilentObserver):
    def __init__(self) -> None:
        self.counts: dict[tuple[str, str], int] = {}

    def count(self, name: str, amount: int = 1, /, **attributes: str) -> None:
        key = name.removeprefix("datapatterns.projection."), attributes["projection"]
        self.counts[key] = self.counts.get(key, 0) + amount


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def projections(clock: ManualClock) -> Projections:
    return Projections(STORE, clock=clock, declared=[Picky, SalesByProduct])


@pytest.fixture
def shop(engine: Engine) -> Engine:
    create_tables(engine)
    Base.metadata.create_all(engine)
    return engine


def work(worker: ProjectionWorker, engine: Engine, clock: ManualClock, *, after: float = 1) -> int:
    clock.advance(after)
    events = 0
    while done := worker.step(engine).events:
        events += done
    return events


def status_of(
    engine: Engine, projections: Projections, projection: type[Projection]
) -> ProjectionStatus:
    with engine.begin() as conn:
        return next(one for one in projections.status(conn) if one.name == projection.name)


def count(engine: Engine) -> int:
    with engine.begin() as conn:
        return int(conn.scalar(text("SELECT coalesce(sum(count), 0) FROM scan_count")) or 0)


def milk(engine: Engine) -> int:
    return sales(engine).get("milk", (0, 0, None))[0]


def test_an_event_that_cannot_be_applied_stops_its_projection_alone_until_it_is_mended(
    shop: Engine, projections: Projections, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Picky, "refused", "tea")
    append_all(shop, STORE, [MILK, TEA])
    observer = Counted()
    worker = projections.worker(observer=observer)

    assert work(worker, shop, clock) >= 2
    append_all(shop, STORE, [MILK])
    work(worker, shop, clock)
    stopped = status_of(shop, projections, Picky)
    trouble = worker.troubles["picky", 1]
    monkeypatch.setattr(Picky, "refused", "")
    work(worker, shop, clock, after=61)

    assert isinstance(trouble, ProjectionStoppedError)
    assert not worker.troubles
    assert stopped.error is not None
    assert stopped.error["position"] == 2
    assert stopped.owner is None  # somebody with a mended handler may take it
    assert milk(shop) == 2
    assert count(shop) == 3
    assert status_of(shop, projections, Picky).error is None
    assert observer.counts["failed", "picky"] >= 1
    assert observer.counts["events", "sales_by_product"] == 3


def test_the_longer_something_fails_the_less_often_it_is_tried(
    shop: Engine, projections: Projections, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Picky, "refused", "tea")
    append_all(shop, STORE, [TEA])
    observer = Counted()
    worker = projections.worker([Picky], observer=observer)

    for _ in range(300):
        work(worker, shop, clock)

    assert 5 < observer.counts["failed", "picky"] < 20


def test_a_table_that_is_missing_is_recorded_and_waited_for(
    shop: Engine, projections: Projections, clock: ManualClock
) -> None:
    append_all(shop, STORE, [MILK])
    worker = projections.worker()
    work(worker, shop, clock)
    with shop.begin() as conn:
        conn.execute(text("ALTER TABLE scan_count RENAME TO scan_count_before"))
    append_all(shop, STORE, [MILK])
    work(worker, shop, clock)
    failed = status_of(shop, projections, Picky)
    with shop.begin() as conn:
        conn.execute(text("ALTER TABLE scan_count_before RENAME TO scan_count"))
    work(worker, shop, clock, after=61)

    assert failed.error is not None
    assert "scan_count" in failed.error["message"]
    assert (count(shop), milk(shop)) == (2, 2)
    assert status_of(shop, projections, Picky).error is None


def test_what_cannot_be_registered_does_not_stop_the_others(
    engine: Engine, projections: Projections, clock: ManualClock
) -> None:
    create_tables(engine)  # and not that of the other
    append_all(engine, STORE, [MILK])
    worker = projections.worker()

    assert work(worker, engine, clock) == 1
    assert worker.troubles.keys() == {("picky", 1)}
    Base.metadata.create_all(engine)
    assert work(worker, engine, clock, after=61) == 1

    assert not worker.troubles


def test_what_one_worker_cannot_do_another_takes_over(
    shop: Engine, clock: ManualClock, redis_url: str
) -> None:
    append_all(shop, STORE, [MILK])
    nowhere = Redis(port=1, retry=Retry(NoBackoff(), 0))
    declared = [Dashboard, SalesByProduct]
    cut_off = Projections(STORE, clock=clock, redis=nowhere, declared=declared).worker()
    for _ in range(4):  # it fails twice in a row, and lets others know
        work(cut_off, shop, clock)
    append_all(shop, STORE, [MILK])
    assert work(cut_off, shop, clock) == 1
    with Redis.from_url(redis_url) as redis:
        projections = Projections(STORE, clock=clock, redis=redis, declared=declared)
        other = projections.worker()
        work(other, shop, clock)

        assert projections.view(Dashboard).top("best_sellers") == [("milk", 2)]
    assert milk(shop) == 2
    assert ("dashboard", 1) in cut_off.troubles


def test_a_redis_that_is_not_given_is_a_trouble_of_its_projection_alone(
    shop: Engine, clock: ManualClock
) -> None:
    append_all(shop, STORE, [MILK])
    worker = Projections(STORE, clock=clock, declared=[Dashboard, SalesByProduct]).worker()

    work(worker, shop, clock)

    assert milk(shop) == 1
    assert "give a client" in str(worker.troubles["dashboard", 1])


# -- threads, and a database that goes away --------------------------------------------------------


@contextmanager
def running(worker: Worker) -> Iterator[None]:
    failures: list[Exception] = []

    def run() -> None:
        try:
            worker.run()
        except Exception as error:  # noqa: BLE001 -- told by the test
            failures.append(error)

    thread = Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        worker.stop()
        thread.join(SECONDS)
    assert not thread.is_alive()
    assert not failures


def worker_on(engine: Engine) -> Worker:
    front = Projections(STORE, declared=[Picky, SalesByProduct])
    return Worker(engine, front.worker(page_events=100), [MarkLoop(STORE, engine, 0.01)])


def test_lost_connections_are_replaced_and_each_event_counts_once(shop: Engine) -> None:
    engine = create_engine(shop.url)
    with running(worker_on(engine)):
        for n in range(1, 6):
            append_all(shop, STORE, [MILK] * 10)
            with shop.begin() as conn:
                conn.execute(END_OTHERS)
            shop.dispose()
            wait_until(lambda: milk(shop) == 10 * n, deadline_seconds=SECONDS)  # noqa: B023
        wait_until(lambda: count(shop) == 50, deadline_seconds=SECONDS)
    engine.dispose()

    with shop.begin() as conn:
        owners = conn.scalars(text("SELECT owner FROM datapatterns.projection_shard")).all()
    assert set(owners) == {None}


def test_a_pool_with_too_few_connections_slows_a_worker_down_and_stops_nothing(
    shop: Engine,
) -> None:
    engine = create_engine(shop.url, pool_size=2, max_overflow=0, pool_timeout=0.05)
    append_all(shop, STORE, [MILK] * 500)

    with running(worker_on(engine)):
        wait_until(lambda: milk(shop) == 500, deadline_seconds=SECONDS)
    engine.dispose()


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    with EmbeddedServers(durable=True) as servers:
        yield servers.postgres("own")


def test_a_server_that_is_killed_and_comes_back_is_waited_for(own_postgres: PostgresServer) -> None:
    Migrations({"main": own_postgres.url}).upgrade()
    engine, workers = create_engine(own_postgres.url), create_engine(own_postgres.url)
    create_tables(engine)
    Base.metadata.create_all(engine)
    with running(worker_on(workers)):
        for n in range(1, 4):
            append_all(engine, STORE, [MILK] * 10)
            own_postgres.kill()
            own_postgres.start()
            engine.dispose()
            wait_until(lambda: milk(engine) == 10 * n, deadline_seconds=SECONDS)  # noqa: B023
        wait_until(lambda: count(engine) == 30, deadline_seconds=SECONDS)
    engine.dispose()
    workers.dispose()


def only_reads(engine: Engine, *, on: bool) -> None:
    """Let new sessions only read, or write again; end the others."""
    with engine.begin() as conn:
        conn.execute(text("SET TRANSACTION READ WRITE"))
        name = conn.dialect.identifier_preparer.quote(engine.url.database or "")
        conn.execute(text(f"ALTER DATABASE {name} SET default_transaction_read_only = {on}"))
    with engine.begin() as conn:
        conn.execute(END_OTHERS)
    engine.dispose()


def test_a_server_that_only_reads_since_a_failover_is_waited_for(
    shop: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    engine = create_engine(shop.url)

    def is_told() -> bool:
        return any("ReadOnlyServerError" in getattr(one, "reason", "") for one in caplog.records)

    with running(worker_on(engine)):
        append_all(shop, STORE, [MILK] * 10)
        wait_until(lambda: count(shop) == 10, deadline_seconds=SECONDS)
        only_reads(shop, on=True)
        wait_until(is_told, deadline_seconds=SECONDS)
        only_reads(shop, on=False)
        append_all(shop, STORE, [MILK] * 10)
        wait_until(lambda: count(shop) == milk(shop) == 20, deadline_seconds=SECONDS)
    engine.dispose()


def test_one_that_only_reads_from_the_first_is_an_error(shop: Engine) -> None:
    only_reads(shop, on=True)
    engine = create_engine(shop.url)

    with pytest.raises(ReadOnlyServerError):
        worker_on(engine).run()
    engine.dispose()


@pytest.mark.parametrize(("threads", "grace"), [(0, 1.0), (1, -1.0)])
def test_a_worker_that_could_do_nothing_is_refused(
    shop: Engine, threads: int, grace: float
) -> None:
    with pytest.raises(ValueError, match=r"threads|time"):
        Worker(shop, Projections(STORE).worker(), threads=threads, grace_seconds=grace)


@pytest.mark.parametrize(
    ("size", "overflow", "refused"), [(1, 0, True), (1, 1, False), (0, 0, False), (1, -1, False)]
)
def test_a_pool_of_one_connection_is_refused_as_it_would_move_nothing_on(
    shop: Engine, size: int, overflow: int, *, refused: bool
) -> None:
    engine = create_engine(shop.url, pool_size=size, max_overflow=overflow)
    with pytest.raises(ValueError, match="pool_size") if refused else nullcontext():
        Worker(engine, Projections(STORE).worker())
