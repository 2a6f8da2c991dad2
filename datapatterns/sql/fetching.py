"""Fetch many rows by the driver's own cursor, in the transaction of a connection.

SQLAlchemy's rows cost more than most of what a hot path does with them, and its cursors are always
of the text format. An error passes through SQLAlchemy as if it had sent the statement itself.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import psycopg
from psycopg import AsyncConnection
from psycopg.abc import Buffer
from psycopg.types.string import ByteaBinaryLoader
from sqlalchemy import Connection
from sqlalchemy.util import await_only

Rows = list[tuple[Any, ...]]

JSON_OID: Final = 114
UUID_OID: Final = 2950
MOMENT_OID: Final = 1184


def fetch_rows(
    conn: Connection,
    statement: str,
    parameters: Mapping[str, Any],
    *,
    as_sent: Iterable[int] = (),
    prepare: bool | None = None,
) -> Rows:
    """Return what ``statement`` finds.

    Args:
        conn: A connection; a transaction is begun on it as by any statement.
        statement: As Core compiles it for psycopg.
        parameters: By name.
        as_sent: The types, by oid, whose values are given as the bytes that the server sends.
        prepare: False to have it planned anew each time; None to leave that to the driver.
    """
    if not conn.in_transaction():
        conn.begin()  # what SQLAlchemy does by itself before a statement
    driver: Any = conn.connection.driver_connection
    try:
        if isinstance(driver, AsyncConnection):
            return await_only(_fetch_async(driver, statement, parameters, as_sent, prepare=prepare))
        with driver.cursor(binary=True) as cursor:
            _give_as_sent(cursor, as_sent)
            rows: Rows = cursor.execute(statement, parameters, prepare=prepare).fetchall()
            return rows
    except psycopg.Error as error:
        # Nothing public wraps it, tells the listeners of the engine, and gives up a connection
        # that is lost.
        conn._handle_dbapi_exception(error, statement, None, None, None)  # noqa: SLF001


async def _fetch_async(
    driver: AsyncConnection[Any],
    statement: str,
    parameters: Mapping[str, Any],
    as_sent: Iterable[int],
    *,
    prepare: bool | None,
) -> Rows:
    async with driver.cursor(binary=True) as cursor:
        _give_as_sent(cursor, as_sent)
        await cursor.execute(statement, parameters, prepare=prepare)
        return await cursor.fetchall()


def _give_as_sent(cursor: Any, as_sent: Iterable[int]) -> None:  # noqa: ANN401 -- of either colour
    is_utf8 = cursor.connection.info.encoding == "utf-8"
    for oid in as_sent:
        loader = ByteaBinaryLoader if is_utf8 or oid != JSON_OID else _RecodingLoader
        cursor.adapters.register_loader(oid, loader)


class _RecodingLoader(ByteaBinaryLoader):
    """JSON is UTF-8, also where the session speaks another encoding."""

    def load(self, data: Buffer) -> bytes:
        assert self.connection is not None
        return bytes(data).decode(self.connection.info.encoding).encode()
