"""Who consumes changes learns of those that no trigger tells of, and reads everything anew."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Connection, Engine, event, except_all, func, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from datapatterns.change_log import ChangeLog, Consumer, capture_changed, current_snapshot
from datapatterns.errors import SnapshotOutdatedError
from datapatterns.failpoints import armed
from datapatterns.materialized_view import MaterializedView, RefreshReport, Strategy
from tests.fixtures.blocking import until_blocked_by
from tests.fixtures.view_tables import AnySelect, create, differences, refresh, run, verify

LOG = ChangeLog()


class Base(DeclarativeBase):
    pass


class Sale(Base):
    __tablename__ = "sale"
    __table_args__ = {"postgresql_partition_by": "RANGE (day)"}  # noqa: RUF012 -- as SQLAlchemy says

    id: Mapped[int] = mapped_column(primary_key=True)
    day: Mapped[int] = mapped_column(primary_key=True)
    region: Mapped[str]
    cents: Mapped[int]


class Region(Base):
    __tablename__ = "region"

    name: Mapped[str] = mapped_column(primary_key=True)
    manager: Mapped[str]


QUERY: AnySelect = (
    select(Region.manager, func.count().label("n"), func.sum(Sale.cents).label("cents"))
    .join(Region, Region.name == Sale.region)
    .group_by(Region.manager)
)
LARGEST: AnySelect = select(Sale.region, func.max(Sale.cents).label("cents")).group_by(Sale.region)
managed = MaterializedView("managed", QUERY)
largest = MaterializedView("largest", LARGEST)
ATTACH = "ALTER TABLE sale ATTACH PARTITION sale_2 FOR VALUES FROM (10) TO (20)"
NORTH = "INSERT INTO region VALUES ('n', 'ann')"


@pytest.fixture
def log_name(engine: Engine) -> str:
    """The log of sales in one partition; another table is ready to become the second."""
    with engine.begin() as conn:
        Base.metadata.create_all(conn)
    run(
        engine,
        "CREATE TABLE sale_1 PARTITION OF sale FOR VALUES FROM (0) TO (10)",
        "CREATE TABLE sale_2 (LIKE sale INCLUDING ALL)",
        NORTH,
        "INSERT INTO sale VALUES (1, 1, 'n', 100)",
        "INSERT INTO sale_2 VALUES (2, 12, 'n', 200)",
    )
    with engine.begin() as conn:
        log_name = LOG.capture(conn, "sale", ["region", "cents"])
        LOG.register_consumer(conn, "relay", "test", log_names=[log_name])
    return log_name


def locked(conn: Connection, name: str = "relay") -> Consumer:
    consumer = LOG.lock_consumer(conn, name)
    assert consumer is not None
    return consumer


def advance(conn: Connection, consumer: Consumer, *, rebuilt: bool) -> bool:
    snapshot = conn.execute(select(current_snapshot)).scalar_one()
    return LOG.advance_consumer(
        conn, consumer.name, snapshot, rebuilt=consumer if rebuilt else None
    )


def refreshed(engine: Engine, view: MaterializedView) -> RefreshReport:
    with engine.begin() as conn:
        report = view.refresh(conn)
    assert report is not None
    return report


def attach(engine: Engine) -> None:
    """Attach the partition as somebody else does, in the midst of an operation of ours."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(run, engine, ATTACH).result()


def recapture(engine: Engine) -> list[str]:
    with engine.begin() as conn:
        return LOG.recapture(conn, consumer="relay")


def test_a_consumer_that_registers_now_has_nothing_to_read_anew(
    engine: Engine, log_name: str
) -> None:
    with engine.begin() as conn:
        consumer = locked(conn)
        assert advance(conn, consumer, rebuilt=False) is False

    with engine.begin() as conn:
        assert (consumer.changed_logs, locked(conn).must_rebuild) == ((), False)
        assert conn.scalar(select(capture_changed("relay", schema=LOG.schema))) is False
        assert conn.scalar(select(capture_changed("nobody", schema=LOG.schema))) is True
    assert [*consumer.shapes] == [log_name]


def test_a_consumer_reads_everything_anew_until_capture_was_called_and_once_more(
    engine: Engine, log_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    run(engine, ATTACH)

    for _ in range(2):
        with engine.begin() as conn, caplog.at_level(logging.WARNING):
            consumer = locked(conn)
            assert consumer.changed_logs == (log_name,)
            assert advance(conn, consumer, rebuilt=True) is True
    assert "triggers of sale_2 are missing" in caplog.text
    assert "ChangeLog.recapture()" in caplog.text

    assert recapture(engine) == ["public.sale"]
    caplog.clear()
    with engine.begin() as conn:
        consumer = locked(conn)
        assert consumer.must_rebuild
        assert advance(conn, consumer, rebuilt=True) is False
    with engine.begin() as conn:
        assert not locked(conn).must_rebuild
    assert caplog.text == ""


@pytest.mark.usefixtures("log_name")
def test_who_only_takes_what_is_pending_is_told_again(engine: Engine) -> None:
    run(engine, "ALTER TABLE sale DETACH PARTITION sale_1")

    for _ in range(2):
        with engine.begin() as conn:
            consumer = locked(conn)
            assert consumer.must_rebuild
            assert advance(conn, consumer, rebuilt=False) is True


@pytest.mark.usefixtures("log_name")
def test_each_consumer_is_told(engine: Engine) -> None:
    with engine.begin() as conn:
        LOG.register_consumer(conn, "other", "test")
        LOG.register_consumer(
            conn, "third", "test", log_names=[LOG.capture(conn, "sale", ["cents"])]
        )
    run(engine, "ALTER TABLE sale DETACH PARTITION sale_1")

    with engine.begin() as conn:
        advance(conn, locked(conn), rebuilt=True)
    changed = []
    for name in ("relay", "other", "third"):
        with engine.begin() as conn:
            changed.append(bool(locked(conn, name).changed_logs))
    assert changed == [False, False, True]


def test_another_column_in_the_log_is_nothing_to_read_anew_for(
    engine: Engine, log_name: str
) -> None:
    with engine.begin() as conn:
        advance(conn, locked(conn), rebuilt=False)
    with engine.begin() as conn:
        LOG.capture(conn, "sale", ["id"])

    with engine.begin() as conn:
        assert not locked(conn).changed_logs

    run(engine, "ALTER TABLE sale DISABLE TRIGGER ALL")
    with engine.begin() as conn:
        LOG.capture(conn, "sale", ["day"])  # which puts the triggers right as well
    with engine.begin() as conn:
        assert locked(conn).changed_logs == (log_name,)


@pytest.mark.usefixtures("log_name")
def test_who_waited_for_the_lock_knows_what_was_read_anew_meanwhile(engine: Engine) -> None:
    run(engine, "ALTER TABLE sale DETACH PARTITION sale_1")
    found: list[Consumer] = []

    def consume_too() -> None:
        with engine.begin() as conn:
            found.append(locked(conn))

    with engine.connect() as first:
        consumer = locked(first)
        second = threading.Thread(target=consume_too)
        second.start()
        until_blocked_by(engine, first)
        advance(first, consumer, rebuilt=True)
        first.commit()
        second.join(timeout=30)

    assert [consumer.changed_logs for consumer in found] == [()]


@pytest.mark.usefixtures("log_name")
@pytest.mark.parametrize(("view", "query"), [(managed, QUERY), (largest, LARGEST)])
@pytest.mark.parametrize(
    "change", [ATTACH, "ALTER TABLE sale DETACH PARTITION sale_1", "DROP TABLE sale_1"]
)
def test_a_view_is_rebuilt_when_partitions_come_and_go(
    engine: Engine, view: MaterializedView, query: AnySelect, change: str
) -> None:
    create(engine, view)
    run(engine, change)
    with engine.connect() as conn:
        stale = view.freshness(conn)
        for one, other in [(select(view.realtime), query), (query, select(view.realtime))]:
            assert conn.execute(except_all(one, other)).all() == []

    assert (stale.pending_rows, stale.has_to_be_rebuilt, stale.stale_seconds > 0) == (0, True, True)
    assert refreshed(engine, view).strategy is Strategy.REBUILD
    assert differences(engine, view, query) == 0


@pytest.mark.usefixtures("log_name")
def test_a_view_stays_right_while_a_new_partition_is_not_captured(engine: Engine) -> None:
    create(engine, managed)
    run(engine, ATTACH)
    for cents in (1, 2):
        run(engine, f"UPDATE sale_2 SET cents = {cents}")  # noqa: S608 -- nobody logs it
        refresh(engine, managed)
        assert differences(engine, managed, QUERY) == 0
    recapture(engine)
    refresh(engine, managed)
    run(engine, "UPDATE sale_2 SET cents = 3", "UPDATE sale SET cents = cents + 1 WHERE id = 1")

    assert refreshed(engine, managed).strategy is Strategy.COUNTING
    assert differences(engine, managed, QUERY) == 0
    assert verify(engine, managed) == []


@pytest.mark.usefixtures("log_name")
def test_a_partition_that_comes_during_a_rebuild_is_read_by_the_next(engine: Engine) -> None:
    with engine.begin() as conn:
        managed.create(conn)

    def attach_and_capture() -> None:
        attach(engine)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(recapture, engine).result()

    with armed("view.rows-written", attach_and_capture), engine.begin() as conn:
        managed.populate(conn)  # had this read the shape last, it would be the one with sale_2

    assert differences(engine, managed, QUERY) > 0
    assert refreshed(engine, managed).strategy is Strategy.REBUILD
    assert differences(engine, managed, QUERY) == 0


@pytest.mark.usefixtures("log_name")
def test_a_partition_that_comes_while_changes_are_counted_makes_the_view_be_rebuilt(
    engine: Engine,
) -> None:
    create(engine, managed)
    run(engine, "INSERT INTO sale VALUES (3, 3, 'n', 300)")

    with armed("view.rows-written", lambda: attach(engine)):
        report = refreshed(engine, managed)

    assert report.strategy is Strategy.REBUILD
    assert differences(engine, managed, QUERY) == 0


@pytest.mark.usefixtures("log_name")
def test_rows_of_a_partition_that_came_meanwhile_are_no_sign_of_missed_changes(
    engine: Engine,
) -> None:
    create(engine, managed)
    run(engine, "DELETE FROM region")  # takes away one row that was counted, and one that was not

    with engine.begin() as conn:
        at_last = once("FROM datapatterns.change_log_sale", lambda: attach(engine))
        event.listen(conn, "before_cursor_execute", at_last)
        report = managed.refresh(conn)

    assert report is not None
    assert report.strategy is Strategy.REBUILD
    assert differences(engine, managed, QUERY) == 0


@pytest.mark.usefixtures("log_name")
def test_a_merge_that_moves_a_row_is_in_the_view(engine: Engine) -> None:
    with engine.connect() as conn:
        if conn.dialect.server_version_info < (15,):  # type: ignore[operator]  # it is connected
            pytest.skip("needs PostgreSQL 15")
    run(engine, ATTACH)
    recapture(engine)
    create(engine, managed)
    run(
        engine,
        "MERGE INTO sale s USING (VALUES (1)) v(id) ON s.id = v.id"
        " WHEN MATCHED THEN UPDATE SET day = 15, cents = 7",
    )

    assert refreshed(engine, managed).strategy is Strategy.REBUILD
    assert differences(engine, managed, QUERY) == 0


@pytest.mark.usefixtures("log_name")
@pytest.mark.parametrize("moment", ["SET TRANSACTION", "EXCEPT ALL"])
def test_verifying_in_an_old_snapshot_begins_again_when_a_partition_comes(
    engine: Engine, moment: str
) -> None:
    create(engine, managed)
    assert verify(engine, managed) == []
    snapshot = engine.execution_options(isolation_level="REPEATABLE READ")

    with snapshot.connect() as conn:
        conn.execute(text("SELECT FROM sale"))
        event.listen(conn, "before_cursor_execute", once(moment, lambda: attach(engine)))
        conn.execute(text("SET TRANSACTION READ ONLY"))
        with pytest.raises(SnapshotOutdatedError):
            managed.verify(conn)
    assert verify(engine, managed) == []


def once(moment: str, act: Callable[[], None]) -> Callable[..., None]:
    """Return a listener that acts before the first statement with ``moment`` in it."""
    left = [act]

    def before(_conn: Connection, _cursor: object, statement: str, *_: object) -> None:
        if moment in statement and left:
            left.pop()()

    return before


@pytest.mark.usefixtures("log_name")
def test_another_timeline_is_told_once(engine: Engine) -> None:
    with engine.begin() as conn:
        assert not locked(conn).has_switched
        conn.execute(text("UPDATE datapatterns.change_consumer SET timeline = timeline + 1"))

    with engine.begin() as conn:
        consumer = locked(conn)
        advance(conn, consumer, rebuilt=False)
        assert consumer.has_switched
    with engine.begin() as conn:
        assert not locked(conn).has_switched


def test_a_table_that_was_dropped_keeps_no_other_one_from_being_put_right(
    engine: Engine, log_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    run(engine, "CREATE TABLE article (id int)")
    with engine.begin() as conn:
        gone = LOG.capture(conn, "article", ["id"])
    run(engine, "DROP TABLE article CASCADE", ATTACH)

    with engine.begin() as conn, caplog.at_level(logging.WARNING):
        assert LOG.recapture(conn) == ["public.sale"]
        obstacle = LOG.status(conn).logs[gone].obstacle
        LOG.release(conn, "article")

    assert "release() it" in caplog.text
    assert obstacle is not None
    assert obstacle in caplog.text
    with engine.begin() as conn:
        assert [*LOG.status(conn).logs] == [log_name]
