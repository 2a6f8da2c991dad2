"""Send rows by the driver's COPY, on either kind of connection."""

from collections.abc import Iterable
from typing import Any

from psycopg import AsyncConnection
from sqlalchemy import Connection
from sqlalchemy.util import await_only


def send_blocks(conn: Connection, statement: str, blocks: Iterable[bytes]) -> None:
    """Send ``blocks`` by COPY, in the transaction of ``conn``.

    The server works on one while the next is made; the driver cuts what is over 128 KiB.
    """
    driver: Any = conn.connection.driver_connection
    if isinstance(driver, AsyncConnection):
        await_only(_send_async(driver, statement, blocks))
        return
    with driver.cursor() as cursor, cursor.copy(statement) as copy:
        for block in blocks:
            copy.write(block)


async def _send_async(
    driver: AsyncConnection[Any], statement: str, blocks: Iterable[bytes]
) -> None:
    async with driver.cursor() as cursor, cursor.copy(statement) as copy:
        for block in blocks:
            await copy.write(block)
