"""Who reads logs of several tables comes for them in the order in which others lock them."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine, event, func, select, text

from datapatterns.change_log.capture_names import capture_names
from datapatterns.materialized_view import MaterializedView
from tests.fixtures.blocking import until_blocked_by
from tests.fixtures.view_tables import AnySelect, Line, Product, create, create_tables, refresh, run

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
    with engine.connect() as capturing, ThreadPoolExecutor() as pool:
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
