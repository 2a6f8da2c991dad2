"""COPY on a connection of the driver, for threads or for asyncio; in as few calls as each needs."""

from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

from psycopg import AsyncConnection, Connection


def read_all(
    driver: "Connection[Any] | AsyncConnection[Any]", command: str, values: Mapping[str, Any]
) -> bytes | Awaitable[bytes]:
    """Return all that ``command`` sends."""
    if isinstance(driver, AsyncConnection):
        return _read_all_async(driver, command, values)
    with driver.cursor() as cursor, cursor.copy(command.encode(), values) as rows:
        return b"".join(rows)


def write_all(
    driver: "Connection[Any] | AsyncConnection[Any]", command: str, parts: Sequence[Any]
) -> int | Awaitable[int]:
    """Send ``parts`` to ``command``; return how many rows came in."""
    if isinstance(driver, AsyncConnection):
        return _write_all_async(driver, command, parts)
    with driver.cursor() as cursor:
        with cursor.copy(command.encode()) as rows:
            for part in parts:
                rows.write(part)
        return cursor.rowcount


async def _read_all_async(
    driver: AsyncConnection[Any], command: str, values: Mapping[str, Any]
) -> bytes:
    async with driver.cursor() as cursor, cursor.copy(command.encode(), values) as rows:
        return b"".join([bytes(part) async for part in rows])


async def _write_all_async(driver: AsyncConnection[Any], command: str, parts: Sequence[Any]) -> int:
    async with driver.cursor() as cursor:
        async with cursor.copy(command.encode()) as rows:
            for part in parts:
                await rows.write(part)
        return cursor.rowcount
