"""Query a read model in a task: as `querying` does in a thread."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import Connection

from datapatterns.cqrs.definition import RedisProjection
from datapatterns.cqrs.reading.answering import FinalPositionNeededError, Question, read_age
from datapatterns.cqrs.reading.answering_redis import AsyncRedisQuestion
from datapatterns.cqrs.reading.answers import Answer, Attempted
from datapatterns.cqrs.reading.querying import SNAPSHOT, enough, judged, place_in_redis
from datapatterns.cqrs.reading.querying_flow import Attempt, Await, Rest, Steps
from datapatterns.cqrs.reading.tokens import Token
from datapatterns.errors import ReadModelBehindError
from datapatterns.event_sourcing.events import START, Position

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

T = TypeVar("T")


async def run_query_async(
    steps: Steps,
    attempt: Callable[[Attempt], Awaitable[Attempted[T]]],
    wait: Callable[[Token, float], Awaitable[object]],
) -> Answer[T]:
    """Take the steps of a query and return its answer."""
    result: object = None
    try:
        while True:
            step = steps.send(result)
            match step:
                case Attempt():
                    result = await attempt(step)
                case Await(goal, seconds):
                    result = await _error_of(wait, goal, seconds)
                case Rest(seconds):
                    await asyncio.sleep(seconds)
                    result = None
    except StopIteration as done:
        found: Answer[T] = done.value
        return found


async def attempt_in_snapshot_async(
    engine: "AsyncEngine", question: Question[T], step: Attempt
) -> Attempted[T]:
    """Ask in a snapshot of its own."""

    async def ask(final: Position | None) -> Attempted[T]:
        async with engine.connect() as conn:
            conn = await conn.execution_options(**SNAPSHOT)  # noqa: PLW2901 -- the same
            async with conn.begin() as begun:
                tried = await conn.run_sync(
                    question.attempt, step.demand, anyway=step.anyway, final=final
                )
                await begun.rollback()
                return tried

    try:
        return await ask(None)
    except FinalPositionNeededError:
        async with fresh_reads_async(engine) as conn:
            final = await conn.run_sync(question.store.high_water_mark)
        return await ask(final)


@asynccontextmanager
async def fresh_reads_async(engine: "AsyncEngine") -> "AsyncIterator[AsyncConnection]":
    """Do as `fresh_reads` does."""
    async with engine.connect() as conn:
        yield await conn.execution_options(isolation_level="READ COMMITTED")


async def attempt_in_redis_async(
    engine: "AsyncEngine",
    schema: str,
    projection: type[RedisProjection],
    question: AsyncRedisQuestion[T],
    build: Callable[[Connection], str | None],
    step: Attempt,
) -> Attempted[T]:
    """Ask Redis, and the database before and after."""
    async with engine.connect() as conn:
        mark, ours = await conn.run_sync(place_in_redis, schema, projection, build, step.demand)
    position, values = await question.asked(ours, enough(step))
    async with engine.connect() as conn:
        age = await conn.run_sync(read_age, schema, projection, position or START)
    return judged(projection.name, step, (position, values), age, mark)


async def _error_of(
    wait: Callable[[Token, float], Awaitable[object]], goal: Token, seconds: float
) -> ReadModelBehindError | None:
    try:
        await wait(goal, seconds)
    except ReadModelBehindError as error:
        return error
    return None
