"""Who reads logs of several tables comes for them in the order in which others lock them."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from sqlalchemy import Connection, Engine, event, func, select, text

from datapatterns.change_log import ChangeLog, locking
from datapatterns.change_log.capture_names import capture_names
from datapatterns.errors import MigrationBlockedError
from datapatterns.materialized_view import MaterializedView
from tests.fixtures.blocking import until_blocked_by
from tests.fixtures.view_tables import (
    AnySelect,
    Line,
    Product,
    create,
    create_tables,
    refresh,
    run,
    verify,
)

pytestmark = pytest.mark.postgres


def counted() -> AnySelect:
    joined = select(Product.id, func.count().label("lines")).join(
        Line, Line.product_id == Product.id
    )
    return joined.group_by(Product.id)


def grouped() -> AnySelect:
    joined = select(Product.id, func.max(Line.cents).label("most")).join(
        Line, Line.product_id == Product.id, isouter=True
    )
    return joined.group_by(Product.id)


ONE = pytest.mark.parametrize("view", [counted], indirect=True)


@pytest.fixture(params=[counted, grouped])
def view(engine: Engine, request: pytest.FixtureRequest) -> MaterializedView:
    """A view whose query names product before line, with changes of both to take in."""
    view = MaterializedView("sales", request.param())
    with engine.begin() as conn:
        create_tables(conn)
    create(engine, view)
    run(engine, "INSERT INTO product VALUES (1, 'tea')", "INSERT INTO line VALUES (1, 1, 1, 1, 1)")
    return view


def log_of(view: MaterializedView, table: str) -> str:
    return capture_names(view.definition.names.schema, "public", table).log_name


def test_a_view_as_of_now_comes_for_logs_by_their_tables_names(
    engine: Engine, view: MaterializedView
) -> None:
    def read() -> None:
        with engine.connect() as conn:
            conn.execute(select(view.realtime)).all()

    lock = "LOCK TABLE datapatterns.{} IN ACCESS EXCLUSIVE MODE {}"
    with ThreadPoolExecutor() as pool, engine.connect() as capturing:
        capturing.execute(text(lock.format(log_of(view, "line"), "")))
        reading = pool.submit(read)
        until_blocked_by(engine, capturing)
        # Who had the log of product by now would wait for the other.
        capturing.execute(text(lock.format(log_of(view, "product"), "NOWAIT")))
        capturing.commit()
        reading.result()


def test_a_refresh_comes_for_logs_by_their_tables_names(
    engine: Engine, view: MaterializedView
) -> None:
    line, product = (f"datapatterns.{log_of(view, table)}" for table in ("line", "product"))
    places: list[tuple[int, int]] = []

    @event.listens_for(engine, "before_cursor_execute")
    def note(*arguments: object) -> None:
        statement = str(arguments[2])
        if line in statement and product in statement:
            places.append((statement.index(line), statement.index(product)))

    refresh(engine, view)

    # PostgreSQL locks what is in WITH as it is written.
    assert places
    assert all(of_line < of_product for of_line, of_product in places)


def at_first(engine: Engine, what: str, act: Callable[[Connection], object]) -> None:
    """Do something just before a statement with ``what`` in it is sent for the first time."""
    left = [act]

    @event.listens_for(engine, "before_cursor_execute")
    def look(conn: Connection, _cursor: object, statement: str, *_: object) -> None:
        if left and what in statement:
            left.pop()(conn)


@ONE
def test_a_view_is_dropped_beside_another_that_is_created(
    engine: Engine, view: MaterializedView
) -> None:
    other = MaterializedView("other", counted().add_columns(func.sum(Line.weight).label("weight")))
    coming = MaterializedView("coming", counted().add_columns(func.sum(Line.week).label("weeks")))
    create(engine, other)

    def create_coming() -> None:
        with engine.begin() as conn:
            coming.create(conn)

    with ThreadPoolExecutor() as pool:
        creating: list[Future[None]] = []

        def begin_to_create(dropping: Connection) -> None:
            creating.append(pool.submit(create_coming))
            # Who had the tables by now, and waited for what is gone, would wait for ever.
            until_blocked_by(engine, dropping)

        at_first(engine, 'LOCK TABLE "public"."line"', begin_to_create)
        with engine.begin() as conn:
            other.drop(conn)
        creating[0].result()

    assert not verify(engine, view)


@ONE
def test_a_table_is_locked_before_the_log_of_another(
    engine: Engine, view: MaterializedView
) -> None:
    """Who writes the one, and looks at both as of now, is not in the way of who captures more."""
    more = select(Product.department, func.sum(Line.cents).label("cents")).join(
        Line, Line.product_id == Product.id
    )
    coming = MaterializedView("coming", more.group_by(Product.department))

    def create_coming() -> None:
        with engine.begin() as conn:
            coming.create(conn)

    with ThreadPoolExecutor() as pool, engine.connect() as conn:
        conn.execute(text("UPDATE product SET department = 'coffee'"))
        creating = pool.submit(create_coming)
        until_blocked_by(engine, conn)
        conn.execute(select(view.realtime)).all()
        conn.commit()
        creating.result()


@ONE
def test_who_looks_at_all_logs_comes_for_them_by_their_tables_names(
    engine: Engine, view: MaterializedView
) -> None:
    def look() -> None:
        with engine.begin() as conn:
            assert ChangeLog().status(conn).consumers["view:sales"].pending_rows == 2
            assert not ChangeLog().restart_laggards(conn, pending_rows_max=10)

    lock = "LOCK TABLE datapatterns.{} IN ACCESS EXCLUSIVE MODE {}"
    with ThreadPoolExecutor() as pool, engine.connect() as capturing:
        capturing.execute(text(lock.format(log_of(view, "line"), "")))
        looking = pool.submit(look)
        until_blocked_by(engine, capturing)
        capturing.execute(text(lock.format(log_of(view, "product"), "NOWAIT")))
        capturing.commit()
        looking.result()


@ONE
@pytest.mark.usefixtures("view")
def test_who_is_to_begin_anew_is_not_waited_for(engine: Engine) -> None:
    subscriptions = text("SELECT FROM datapatterns.change_subscription LIMIT 1 FOR UPDATE")
    with engine.connect() as capturing, engine.begin() as conn:
        capturing.execute(subscriptions)
        assert not ChangeLog().restart_laggards(conn, pending_rows_max=1)
        capturing.rollback()
        assert ChangeLog().restart_laggards(conn, pending_rows_max=1) == {"view:sales": 2}


@ONE
def test_a_collector_meets_who_captures_less_of_one_table_and_nothing_of_another(
    engine: Engine, view: MaterializedView
) -> None:
    with engine.begin() as conn:
        view.drop(conn)
    lines = MaterializedView("lines", select(func.count(Line.cents).label("n")))
    other = MaterializedView("other", grouped())
    create(engine, lines, other)
    run(engine, "INSERT INTO line VALUES (2, 1, 1, 1, 1)")
    with ThreadPoolExecutor() as pool:
        collecting: list[Future[None]] = []

        def collect() -> None:
            with engine.begin() as conn:
                ChangeLog().collect_garbage(conn)

        def begin_to_collect(_dropping: Connection) -> None:
            # It has to leave out what is being changed, and need not wait.
            collecting.append(pool.submit(collect))
            collecting[0].result(timeout=30)

        at_first(engine, "DROP COLUMN", begin_to_collect)
        with engine.begin() as conn:
            other.drop(conn)

    assert not verify(engine, lines)


@ONE
@pytest.mark.usefixtures("view")
def test_no_writer_is_ended_by_who_captures_more_of_two_tables(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locking, "TRIES", 10_000)
    more = select(Product.department, func.sum(Line.cents).label("cents")).join(
        Line, Line.product_id == Product.id
    )
    coming = MaterializedView("coming", more.group_by(Product.department))

    def create_coming() -> None:
        with engine.begin() as conn:
            # Looking only once, before there is a deadlock, it would leave that to the writer.
            conn.execute(text("SET LOCAL deadlock_timeout = '20ms'"))
            coming.create(conn)

    with ThreadPoolExecutor() as pool, engine.connect() as conn:
        # Against the order of their names.
        conn.execute(text("UPDATE product SET department = 'coffee'"))
        creating = pool.submit(create_coming)
        until_blocked_by(engine, conn)
        conn.execute(text("UPDATE line SET cents = 2"))
        conn.commit()
        creating.result()


@ONE
@pytest.mark.usefixtures("view")
def test_who_waits_for_a_table_gives_back_its_turn(engine: Engine) -> None:
    """A migration changes a table before it captures more of that."""

    def mend() -> None:
        with engine.begin() as conn:
            ChangeLog().recapture(conn)

    with ThreadPoolExecutor() as pool, engine.connect() as conn:
        conn.execute(text("ALTER TABLE line DISABLE TRIGGER datapatterns_capture_insert"))
        conn.commit()
        conn.execute(text("ALTER TABLE line ADD COLUMN more int"))
        mending = pool.submit(mend)
        until_blocked_by(engine, conn)
        ChangeLog().capture(conn, "line", ["more"])
        conn.commit()
        mending.result()


@ONE
@pytest.mark.usefixtures("view")
def test_who_is_ended_for_a_deadlock_after_all_is_told_to_try_again(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locking, "TRIES", 0)
    query = select(Product.department, func.sum(Line.cents).label("cents"))
    more = query.join(Line, Line.product_id == Product.id).group_by(Product.department)
    coming = MaterializedView("coming", more)

    with ThreadPoolExecutor() as pool, engine.connect() as writer:
        writer.execute(text("UPDATE product SET department = 'coffee'"))

        def write_the_other(creating: Connection) -> None:
            pool.submit(writer.execute, text("UPDATE line SET cents = 2"))
            until_blocked_by(engine, creating)

        at_first(engine, 'LOCK TABLE "public"."product"', write_the_other)
        with engine.connect() as conn, conn.begin():
            conn.execute(text("SET LOCAL deadlock_timeout = '10ms'"))
            with pytest.raises(MigrationBlockedError, match="try again"):
                coming.create(conn)
