"""Read the rows of queries through a cache, in threads."""

from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final, TypeVar

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from datapatterns.cache_aside.driver import Driver
from datapatterns.cache_aside.query_plans import AnyQuery, PlanOutdatedError, Queries
from datapatterns.errors import UncacheableQueryError

T = TypeVar("T")

ATTEMPTS: Final = 5
"""How often a plan is made anew for one call."""


def read_query(
    queries: Queries,
    driver: Driver,
    statement: AnyQuery,
    value_type: object | None,
    tags: Iterable[str] | None,
    within: Connection | Session | None,
) -> list[Any]:
    """Return the rows of ``statement``, see `Cache.query`."""

    def read() -> list[Any]:
        asked = queries.asked(statement, value_type, tags)

        def load(conn: Connection) -> list[Any]:
            asked.check(conn)
            return asked.rows(conn.execute(statement))

        if within is not None:
            return driver.read_within(asked.codec, driver.policy, asked.wanted, load, within)
        return driver.read(asked.codec, driver.policy, asked.wanted, load)

    for _ in range(ATTEMPTS):
        with suppress(PlanOutdatedError):
            return read()
    raise always_outdated()


def always_outdated() -> UncacheableQueryError:
    """Return what to raise where no plan holds for as long as a load takes."""
    return UncacheableQueryError(
        "its tables are captured and released all the time", "name the tags yourself"
    )
