"""The engines, connections and clients that an explorer hands out, and what becomes of them."""

# ruff: noqa: ANN401 -- options of SQLAlchemy, psycopg and redis-py

import gc
from collections.abc import Iterable
from typing import Any, TypeVar
from weakref import WeakSet

import redis
import redis.asyncio as redis_async
from sqlalchemy import URL, Engine, create_engine, event, make_url
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from datapatterns.testing.interleaving.loop import LoopThread
from datapatterns.testing.interleaving.postgres_gates import GatedAsyncConnection, GatedConnection
from datapatterns.testing.interleaving.redis_gates import gated_async_client, gated_client
from datapatterns.testing.interleaving.redis_servers import RedisServer
from datapatterns.testing.interleaving.servers import Backend
from datapatterns.testing.interleaving.stage import Stage
from datapatterns.testing.interleaving.tasks import CURRENT, Task, in_flight

Gated = TypeVar("Gated", GatedConnection, GatedAsyncConnection)
_Closed = Engine | AsyncEngine | redis.Redis | redis_async.Redis | GatedConnection

# The least that PostgreSQL allows: whoever waited first has looked for a deadlock, and found none,
# before the next one waits. So it is always the last one whom the server chooses for its victim.
_DEADLOCK_TIMEOUT = b"SET deadlock_timeout = 1"
_DRIVERS = {"postgres", "postgresql", "postgresql+psycopg", "postgresql+psycopg_async"}
# What psycopg's connect() takes for itself; all else goes to the server.
_OWN_OPTIONS = {"autocommit", "row_factory", "cursor_factory", "prepare_threshold", "context"}


class Connections:
    """Everything gated that users have been given.

    Args:
        stage: Where tasks and connections meet.
        loop: Where asynchronous engines and clients live.
    """

    def __init__(self, stage: Stage, loop: LoopThread) -> None:
        self._stage, self._loop = stage, loop
        self._engines: WeakSet[Engine] = WeakSet()
        self._async_engines: WeakSet[AsyncEngine] = WeakSet()
        self._clients: WeakSet[redis.Redis] = WeakSet()
        self._async_clients: WeakSet[redis_async.Redis] = WeakSet()
        # What a scenario or a task makes, it makes in each schedule: one that nobody closes before
        # the next would soon be too many.
        self._kept: list[_Closed] = []
        self._made_in_schedule: list[_Closed] = []
        self._in_schedule = False
        self._redis_servers: dict[str, RedisServer] = {}
        self._unpooled: WeakSet[GatedConnection] = WeakSet()

    def engine(self, url: URL, **options: Any) -> Engine:
        """Return an engine whose connections are gated."""
        _check_options(options)
        engine = create_engine(url, **options)

        @event.listens_for(engine, "do_connect")
        def connect(_dialect: Any, _record: Any, args: Any, kwargs: Any) -> GatedConnection:
            with in_flight():
                return self._gate(GatedConnection.connect(*args, **kwargs), args, kwargs)

        _lend_and_take_back(engine)
        self._engines.add(engine)
        self._keep(engine)
        engine.connect().close()  # the dialect asks its questions now, not in the first schedule
        return engine

    def async_engine(self, url: URL, **options: Any) -> AsyncEngine:
        """Return an asynchronous engine whose connections are gated."""
        _check_options(options)
        engine = create_async_engine(url, **options)

        @event.listens_for(engine.sync_engine, "do_connect")
        def connect(_dialect: Any, _record: Any, _args: Any, kwargs: Any) -> None:
            async def gated(*args: Any, **kwargs: Any) -> GatedAsyncConnection:
                with in_flight():
                    connection = await GatedAsyncConnection.connect(*args, **kwargs)
                    return self._gate(connection, args, kwargs)

            kwargs["async_creator_fn"] = gated

        _lend_and_take_back(engine.sync_engine)
        self._async_engines.add(engine)
        self._keep(engine)
        self._loop.wait_for(_ask(engine))
        return engine

    def connect(self, url: URL, **options: Any) -> GatedConnection:
        """Return a connection that is gated, and closed when the task that opens it ends."""
        address = url.set(drivername="postgresql").render_as_string(hide_password=False)
        with in_flight():
            connection = GatedConnection.connect(address, **options)
            self._gate(connection, (address,), options)
        connection.on_loan, connection.owner = True, CURRENT.get()
        self._unpooled.add(connection)
        if self._in_schedule:
            self._made_in_schedule.append(connection)
        return connection

    def redis(self, url: str, **options: Any) -> redis.Redis:
        """Return a client whose connections are gated."""
        client = gated_client(url, self._stage, self._redis_server(url), **options)
        self._clients.add(client)
        self._keep(client)
        client.ping()
        return client

    def async_redis(self, url: str, **options: Any) -> redis_async.Redis:
        """Return an asynchronous client whose connections are gated."""
        client = gated_async_client(url, self._stage, self._redis_server(url), **options)
        self._async_clients.add(client)
        self._keep(client)
        self._loop.wait_for(_ping(client))
        return client

    def begin(self) -> None:
        """Close what was made while the schedule before was prepared and ran."""
        for made in self._made_in_schedule:
            self._close(made)
        self._made_in_schedule.clear()
        self._in_schedule = True

    def tidy(self, tasks: Iterable[Task]) -> None:
        """Close what would carry something over into the next schedule."""
        self._in_schedule = False
        links: dict[Backend, Any] = {
            backend: link
            for task in tasks
            for link in task.links
            if (backend := link.backend()) is not None
        }
        locking = self._stage.servers.locking(links)
        for backend, link in links.items():
            if link.has_traces or backend in locking:
                link.hang_up()
        self._restore_pools()

    def close(self) -> None:
        """Close all of them, and the explorer's own."""
        every: tuple[_Closed, ...] = (
            *self._engines,
            *self._async_engines,
            *self._clients,
            *self._async_clients,
            *self._unpooled,
        )
        for made in every:
            self._close(made)
        for server in self._redis_servers.values():
            server.close()
        self._stage.servers.close()

    def _keep(self, made: _Closed) -> None:
        (self._made_in_schedule if self._in_schedule else self._kept).append(made)

    def _close(self, made: _Closed) -> None:
        match made:
            case Engine():
                made.dispose()
            case AsyncEngine():
                self._loop.wait_for(made.dispose())
            case redis.Redis():
                made.connection_pool.disconnect()
            case redis_async.Redis():
                self._loop.wait_for(made.connection_pool.disconnect())
            case _:
                made.close()

    def _restore_pools(self) -> None:
        # The dead have not given back what they had: their frames still hold it, or a cycle.
        engines = [*self._engines, *(engine.sync_engine for engine in self._async_engines)]
        if any(_is_lent(engine) for engine in engines):
            gc.collect()
        for engine in self._engines:
            if _is_lent(engine):
                engine.dispose()
        for async_engine in self._async_engines:
            if _is_lent(async_engine.sync_engine):
                self._loop.wait_for(async_engine.dispose())

    def _gate(self, connection: Gated, args: Any, kwargs: Any) -> Gated:
        options = {name: value for name, value in kwargs.items() if name not in _OWN_OPTIONS}
        options["application_name"] = "datapatterns explorer"
        connection.stage = self._stage
        connection.server = self._stage.servers.watch(connection.info, *args, **options)
        connection.on_loan = False
        if self._stage.servers.has_quick_deadlocks(connection.server):
            # Beneath the connection: no transaction begins, and no gate is passed.
            connection.pgconn.exec_(_DEADLOCK_TIMEOUT)
        return connection

    def _redis_server(self, url: str) -> RedisServer:
        return self._redis_servers.setdefault(url, RedisServer(url))


def driven(url: str | URL) -> URL:
    """Return the address of a database for psycopg 3.

    Raises:
        ValueError: It is for another driver or server.
    """
    made = make_url(url)
    if made.drivername not in _DRIVERS:
        raise ValueError(f"the explorer needs postgresql+psycopg, not {made.drivername}")
    return made.set(drivername="postgresql+psycopg")


def _check_options(options: dict[str, Any]) -> None:
    if not_ours := {"creator", "async_creator", "async_creator_fn", "pool"} & options.keys():
        raise ValueError(
            f"{', '.join(sorted(not_ours))} would open connections that pass no gate; "
            "give the explorer the address"
        )


def _lend_and_take_back(engine: Engine) -> None:
    # What a pool asks on its own, before it lends a connection, is no step: it happens or not,
    # as the pool's past will have it.
    @event.listens_for(engine, "checkout")
    def lend(_connection: Any, record: Any, _proxy: Any) -> None:
        if record.driver_connection.closed:
            raise DisconnectionError("a task has died with this connection")
        record.driver_connection.on_loan = True
        if (task := CURRENT.get()) is not None:
            task.uses(record.driver_connection)  # and nobody else's any more, should they die

    @event.listens_for(engine, "checkin")
    def take_back(_connection: Any, record: Any) -> None:
        if record.driver_connection is not None:
            record.driver_connection.on_loan = False


def _is_lent(engine: Engine) -> bool:
    checked_out = getattr(engine.pool, "checkedout", None)
    return bool(checked_out and checked_out())


async def _ask(engine: AsyncEngine) -> None:
    async with engine.connect():
        pass


async def _ping(client: redis_async.Redis) -> None:
    await client.ping()
