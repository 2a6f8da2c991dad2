"""What reads read models: waits for a write to show in them, and asks them."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Hashable
from typing import TYPE_CHECKING, TypeVar, Unpack

from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.cluster import RedisCluster as AsyncRedisCluster
from sqlalchemy import Connection, Engine

from datapatterns.clock import Clock
from datapatterns.cqrs.definition import AnyProjection, RedisProjection, TableProjection
from datapatterns.cqrs.in_redis.redis_view import RedisView
from datapatterns.cqrs.in_redis.redis_view_async import AsyncRedisView
from datapatterns.cqrs.reading.answering import Question
from datapatterns.cqrs.reading.answering_redis import AsyncRedisQuestion, RedisQuestion
from datapatterns.cqrs.reading.answers import Answer, Asked, Missed, demanded
from datapatterns.cqrs.reading.log_identity import log_mark, shown_mark
from datapatterns.cqrs.reading.querying import (
    attempt_in_redis,
    attempt_in_snapshot,
    run_query,
)
from datapatterns.cqrs.reading.querying_async import (
    attempt_in_redis_async,
    attempt_in_snapshot_async,
    fresh_reads_async,
    run_query_async,
)
from datapatterns.cqrs.reading.querying_flow import check_stale, querying
from datapatterns.cqrs.reading.sights import Awaited, Sight
from datapatterns.cqrs.reading.tokens import Token, as_token
from datapatterns.cqrs.reading.waiting import Wait
from datapatterns.cqrs.reading.waiting_async import AsyncWait
from datapatterns.cqrs.running.leasing import read_build
from datapatterns.cqrs.schema import projection_tables
from datapatterns.event_sourcing.events import Position
from datapatterns.event_sourcing.store import EventStore
from datapatterns.transactions import fresh_reads

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

T = TypeVar("T")


class Reading(ABC):
    """Reads what projections have built; `Projections` can move them on, too.

    Nothing here holds a connection while it waits, and all who wait in one process (or one event
    loop) for the same read model share their looks at it: one connection at a time.
    """

    __slots__ = ()

    store: EventStore
    clock: Clock

    @abstractmethod
    def position(self, conn: Connection, projection: type[AnyProjection]) -> Position | None:
        """Return up to where the read model shows the log; None if it is not there or not whole."""

    @abstractmethod
    def view(self, projection: type[RedisProjection]) -> RedisView:
        """Return what reads the read model that ``projection`` builds in Redis."""

    @abstractmethod
    def async_view(
        self, client: AsyncRedis | AsyncRedisCluster, projection: type[RedisProjection]
    ) -> AsyncRedisView:
        """Return what reads it from asyncio, by a client of the same Redis."""

    def token(self, conn: Connection, position: Position) -> Token:
        """Return the token of a write that has returned ``position``, to be sent to its client."""
        return Token(position, log_mark(conn, self.store.schema))

    def wait(
        self,
        engine: Engine,
        projection: type[AnyProjection],
        token: Token | Position,
        *,
        timeout_seconds: float,
    ) -> Position:
        """Return how far the read model is, once it shows everything up to ``token``.

        Somebody else must be running the projection; this only looks.

        Args:
            engine: Where the checkpoints are.
            projection: Whose read model is about to be read.
            token: What a write has returned.
            timeout_seconds: How long to wait at most.

        Raises:
            ForeignTokenError: The token is of another log, or lies beyond this one.
            ReadModelBehindError: It does not show ``token`` in time; or cannot, as is said at
                once if an event has stopped the projection, or another version is live for good.
        """
        awaited = Awaited(projection, as_token(token))

        def look() -> Sight:
            with fresh_reads(engine) as conn:  # and back to the pool, where a runner may wait
                return Sight(self.position(conn, projection), self._mark(conn, awaited))

        place = self._place(projection)
        return Wait(engine, self.store.schema, awaited, look, place, self.clock).run(
            timeout_seconds
        )

    async def wait_async(
        self,
        engine: "AsyncEngine",
        projection: type[AnyProjection],
        token: Token | Position,
        *,
        timeout_seconds: float,
        redis: AsyncRedis | AsyncRedisCluster | None = None,
    ) -> Position:
        """Do as `wait` does, in a task; it may be cancelled at any moment.

        A read model in Redis is asked by the client ``redis``; unless it is given, by the other
        one in a thread, which would stop the loop.
        """
        awaited = Awaited(projection, as_token(token))

        async def look() -> Sight:
            async with fresh_reads_async(engine) as conn:
                if not issubclass(projection, RedisProjection):
                    position = await conn.run_sync(self.position, projection)
                    return Sight(position, await conn.run_sync(self._mark, awaited))
                mark = await conn.run_sync(self._mark, awaited)
                build = await conn.run_sync(self._build, projection)
            if redis is None:
                question = RedisQuestion(self.view(projection), lambda _: None)
                position, _ = await asyncio.to_thread(question.asked, build, lambda _: False)
            else:
                asking = AsyncRedisQuestion(self.async_view(redis, projection), _nothing)
                position, _ = await asking.asked(build, lambda _: False)
            return Sight(position, mark)

        place = self._place(projection) if redis is None else id(redis)
        return await AsyncWait(engine, self.store.schema, awaited, look, place, self.clock).run(
            timeout_seconds
        )

    def query(
        self,
        engine: Engine,
        projection: type[TableProjection],
        ask: Callable[[Connection], T],
        **asked: Unpack[Asked],
    ) -> Answer[T]:
        """Ask a read model in a table, once it is as fresh as asked for.

        Args:
            engine: Where the read model and the checkpoints are.
            projection: Whose read model is asked.
            ask: Is given a connection in a read-only transaction that sees one moment, and may be
                called again; `rows_of` makes one of a ``select()``.
            asked: How fresh it has to be, and what to do if it is not: see `Asked`.

        Raises:
            ForeignTokenError: The token is of another log, or lies beyond this one.
            ReadModelBehindError: It is not as fresh in time; with ``stale="serve"``, it is not
                there at all.
            ValueError: Nothing can be as fresh.
        """
        question = self._question(projection, ask)
        return run_query(
            querying(asked, self.clock.monotonic),
            lambda step: attempt_in_snapshot(engine, question, step),
            lambda goal, seconds: self.wait(engine, projection, goal, timeout_seconds=seconds),
            self.clock.sleep,
        )

    async def query_async(
        self,
        engine: "AsyncEngine",
        projection: type[TableProjection],
        ask: Callable[[Connection], T],
        **asked: Unpack[Asked],
    ) -> Answer[T]:
        """Do as `query` does, in a task; ``ask`` is run by ``run_sync``."""
        question = self._question(projection, ask)
        return await run_query_async(
            querying(asked, self.clock.monotonic),
            lambda step: attempt_in_snapshot_async(engine, question, step),
            lambda goal, seconds: self.wait_async(
                engine, projection, goal, timeout_seconds=seconds
            ),
        )

    def answer(
        self,
        conn: Connection,
        projection: type[TableProjection],
        ask: Callable[[Connection], T],
        **asked: Unpack[Asked],
    ) -> Answer[T]:
        """Ask a read model in a REPEATABLE READ transaction of the caller's; it cannot wait.

        Raises:
            ForeignTokenError: The token is of another log.
            IsolationLevelError: The transaction is READ COMMITTED.
            ReadModelBehindError: Its snapshot is older than was asked for.
            ReadModelMovedError: The table was replaced since it has its snapshot.
        """
        stale = check_stale(asked)
        question = self._question(projection, ask)
        tried = question.attempt_in(conn, demanded(asked), anyway=stale == "serve")
        if isinstance(tried, Missed):
            raise tried.error("this transaction's snapshot is of that moment", "snapshot")
        return tried

    def query_view(
        self,
        engine: Engine,
        projection: type[RedisProjection],
        ask: Callable[[RedisView], T],
        **asked: Unpack[Asked],
    ) -> Answer[T]:
        """Ask a read model in Redis, once it is as fresh as asked for.

        Args:
            engine: Where the events and the checkpoints are.
            projection: Whose read model is asked.
            ask: Is given what `view` returns, and may be called again: until all that it has read
                is of one position.
            asked: How fresh it has to be, and what to do if it is not: see `Asked`.

        Raises:
            ForeignTokenError: The token is of another log, or lies beyond this one.
            ReadModelBehindError: It is not as fresh in time; with ``stale="serve"``, it is not
                there at all.
            ReadModelMovedError: It has moved on in the middle, each time.
            ServerUnavailableError: Redis does not answer.
            ValueError: Nothing can be as fresh.
        """
        question = RedisQuestion(self.view(projection), ask)
        return run_query(
            querying(asked, self.clock.monotonic),
            lambda step: attempt_in_redis(
                engine,
                self.store.schema,
                projection,
                question,
                lambda conn: self._build(conn, projection),
                step,
            ),
            lambda goal, seconds: self.wait(engine, projection, goal, timeout_seconds=seconds),
            self.clock.sleep,
        )

    async def query_view_async(
        self,
        engine: "AsyncEngine",
        redis: AsyncRedis | AsyncRedisCluster,
        projection: type[RedisProjection],
        ask: Callable[[AsyncRedisView], Awaitable[T]],
        **asked: Unpack[Asked],
    ) -> Answer[T]:
        """Do as `query_view` does, in a task, by a client of the same Redis."""
        question = AsyncRedisQuestion(self.async_view(redis, projection), ask)
        return await run_query_async(
            querying(asked, self.clock.monotonic),
            lambda step: attempt_in_redis_async(
                engine,
                self.store.schema,
                projection,
                question,
                lambda conn: self._build(conn, projection),
                step,
            ),
            lambda goal, seconds: self.wait_async(
                engine, projection, goal, timeout_seconds=seconds, redis=redis
            ),
        )

    def _question(
        self, projection: type[TableProjection], ask: Callable[[Connection], T]
    ) -> Question[T]:
        return Question(self.store, projection, ask)

    def _mark(self, conn: Connection, awaited: Awaited) -> str | None:
        if awaited.token.log is None:
            return None
        return shown_mark(conn, self.store.schema, awaited.projection)

    def _place(self, projection: type[AnyProjection]) -> Hashable:
        if not issubclass(projection, RedisProjection):
            return None
        model = self.view(projection).model
        return id(model.client), model.keys

    def _build(self, conn: Connection, projection: type[AnyProjection]) -> str | None:
        build = read_build(conn, projection_tables(self.store.schema), projection)
        return None if build is None else str(build)


async def _nothing(_: AsyncRedisView) -> None:
    """Ask nothing but where it is."""
