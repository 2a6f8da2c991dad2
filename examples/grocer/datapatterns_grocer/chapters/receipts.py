"""The grocer's own tables on the main database: the catalogue and the receipts."""

from collections.abc import Iterable
from itertools import chain, islice
from typing import Any

from psycopg import Connection as PsycopgConnection
from psycopg import sql
from sqlalchemy import Connection, insert

from datapatterns_grocer.dataset import Line
from datapatterns_grocer.model import Central, LineRow, Product
from datapatterns_grocer.stage import Stage

ROWS_AT_ONCE = 50_000
PRODUCT = ("product_id", "department", "brand", "category", "type", "package_size")
LINE = ("basket_id", "product_id", "household_id", "store_id", "week", "quantity", "cents")


def play(stage: Stage) -> None:
    """Create the tables and copy what the tills had printed before the demo began."""
    stage.screen.heading(
        "The grocer's data",
        '84.51° "The Complete Journey": one grocery chain, its households, baskets and products.',
    )
    Central.metadata.create_all(stage.layer.engine)
    dataset = stage.dataset
    counted = ["lines", "baskets", "households", "stores"]
    stage.screen.table(
        ["weeks", *counted, "products"],
        [[dataset.weeks, *map(dataset.count, counted), len(dataset.products())]],
    )
    with stage.layer.engine.begin() as conn:
        copy_rows(conn, Product.__tablename__, PRODUCT, dataset.products())
    lines = chain.from_iterable(stage.loaded_baskets())
    total = dataset.count("lines") - sum(map(len, stage.live))
    tracked = (
        _receipt(line) for line in stage.screen.track(lines, "copying receipts", total=total)
    )
    while batch := list(islice(tracked, ROWS_AT_ONCE)):
        with stage.layer.engine.begin() as conn:
            copy_rows(conn, LineRow.__tablename__, LINE, batch)
    with stage.layer.engine.begin() as conn:
        conn.exec_driver_sql("ANALYZE line, product")


def file_receipt(conn: Connection, lines: list[Line]) -> None:
    """Write the lines of one basket, as a till does."""
    conn.execute(insert(LineRow), [dict(zip(LINE, _receipt(line), strict=True)) for line in lines])


def copy_rows(
    conn: Connection, table: str, columns: Iterable[str], rows: Iterable[tuple[Any, ...]]
) -> None:
    """Write ``rows`` by COPY in the caller's transaction."""
    driver = conn.connection.driver_connection
    assert isinstance(driver, PsycopgConnection)
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(
        sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    with driver.cursor() as cursor, cursor.copy(statement) as copy:
        for row in rows:
            copy.write_row(row)


def _receipt(line: Line) -> tuple[int, ...]:
    return (
        line.basket_id,
        line.product_id,
        line.household_id,
        line.store_id,
        line.week,
        line.quantity,
        line.cents,
    )
