"""Leave a shard alone that cannot be connected to, so that nobody waits for it for long."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from sqlalchemy import Dialect, Engine, event

from datapatterns.breaker import Breaker
from datapatterns.errors import ShardUnavailableError

_SECONDS: ContextVar[float | None] = ContextVar("connecting_within", default=None)


@contextmanager
def connecting_within(seconds: float | None) -> Iterator[None]:
    """Bound how long connections may take to be opened in the block, if they need to be."""
    token = _SECONDS.set(seconds)
    try:
        yield
    finally:
        _SECONDS.reset(token)


def watch_connecting(engine: Engine, shard_id: str, breaker: Breaker) -> Engine:
    """Let connections of ``engine`` be opened only while ``breaker`` allows it; return the engine.

    Only connecting counts. A connection that breaks may have been ended alone, by an administrator
    or a time-out; SQLAlchemy drops its pool then, so the next one to ask has to connect, and that
    tells whether the server is there.

    Listeners that are added later are asked, too: one may fetch a password that has just changed.

    Raises (when a connection is opened):
        ShardUnavailableError: It has failed so often that the shard is left alone for a moment.
    """

    @event.listens_for(engine, "do_connect")
    def connect(
        dialect: Dialect, record: object, arguments: list[Any], named: dict[str, Any]
    ) -> Any:  # noqa: ANN401 -- the driver's connection
        if not breaker.allows():
            raise ShardUnavailableError(shard_id)
        if (seconds := _SECONDS.get()) is not None:
            # libpq takes whole seconds, and 2 for fewer.
            declared = float(named.get("connect_timeout") or seconds)
            named["connect_timeout"] = max(2, math.ceil(min(seconds, declared)))
        try:
            connection = _of_later_listeners(connect, dialect, record, arguments, named)
            if connection is None:
                connection = dialect.connect(*arguments, **named)
        except Exception:
            breaker.failed()
            raise
        breaker.succeeded()
        return connection

    return engine


def _of_later_listeners(
    own: Callable[..., object],
    dialect: Dialect,
    record: object,
    arguments: list[Any],
    named: dict[str, Any],
) -> Any | None:  # noqa: ANN401 -- the driver's connection
    """Return the connection of a listener that comes after ``own``; None if there is none.

    SQLAlchemy asks no further when it gets a connection, and it gets one from ``own``.
    """
    listeners = iter(dialect.dispatch.do_connect)
    for listener in listeners:
        if listener is own:
            break
    for listener in listeners:
        if (connection := listener(dialect, record, arguments, named)) is not None:
            return connection
    return None
