"""Read the rows of queries through a cache, in tasks of one event loop."""

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from datapatterns.cache_aside.driver_async import AsyncDriver
from datapatterns.cache_aside.query_plans import AnyQuery, PlanOutdatedError, Queries
from datapatterns.cache_aside.querying import ATTEMPTS, always_outdated


async def read_query(
    queries: Queries,
    driver: AsyncDriver,
    statement: AnyQuery,
    value_type: object | None,
    tags: Iterable[str] | None,
    within: AsyncConnection | AsyncSession | None,
) -> list[Any]:
    """Return the rows of ``statement``, see `AsyncCache.query`."""

    async def read() -> list[Any]:
        asked = queries.known(statement, value_type, tags)
        if asked is None:  # the server has to be asked, which blocks
            asked = await asyncio.to_thread(queries.asked, statement, value_type, tags)

        async def load(conn: AsyncConnection) -> list[Any]:
            await conn.run_sync(asked.check)
            return asked.rows(await conn.execute(statement))

        if within is not None:
            return await driver.read_within(asked.codec, driver.policy, asked.wanted, load, within)
        return await driver.read(asked.codec, driver.policy, asked.wanted, load)

    for _ in range(ATTEMPTS):
        with suppress(PlanOutdatedError):
            return await read()
    raise always_outdated()
