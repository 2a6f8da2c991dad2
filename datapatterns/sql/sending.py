"""Send rows by the driver's COPY, on either kind of connection."""

from collections.abc import Iterator
from typing import Any, Final

from psycopg import AsyncConnection
from sqlalchemy import Connection
from sqlalchemy.util import await_only

_ROWS_PER_WRITE: Final = 2_000


def send_rows(conn: Connection, statement: str, rows: Iterator[str]) -> None:
    """Send ``rows`` by COPY, in the transaction of ``conn``; each ends its line."""
    driver: Any = conn.connection.driver_connection
    if isinstance(driver, AsyncConnection):
        await_only(_send_async(driver, statement, rows))
        return
    with driver.cursor() as cursor, cursor.copy(statement) as copy:
        for block in _blocks(rows):
            copy.write(block)


async def _send_async(driver: AsyncConnection[Any], statement: str, rows: Iterator[str]) -> None:
    async with driver.cursor() as cursor, cursor.copy(statement) as copy:
        for block in _blocks(rows):
            await copy.write(block)


def _blocks(rows: Iterator[str]) -> Iterator[str]:
    block: list[str] = []
    for row in rows:
        block.append(row)
        if len(block) == _ROWS_PER_WRITE:
            yield "".join(block)
            block.clear()
    yield "".join(block)
