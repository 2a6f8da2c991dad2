"""Pass messages on, at least once and in the order of each key, in bounded steps."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection, Engine, func, select

from datapatterns.cqrs.messages.outbox import Outbox
from datapatterns.cqrs.messages.passing_on import Message, PassingOn, Relayed
from datapatterns.errors import CommitUnansweredError, OutcomeUnknownError
from datapatterns.failpoints import failpoint
from datapatterns.transactions import fresh_reads, resuming

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

_THIS: Final = "a step of the relay of messages"


def relay_messages(
    engine: Engine,
    publish: Callable[[Message], object],
    *,
    outbox: Outbox | None = None,
    limit: int = 100,
    attempts_max: int | None = None,
    silence_seconds_max: float = 60.0,
) -> Relayed:
    """Give at most ``limit`` messages to ``publish``, and delete those that it took.

    Any number of relays may run: each takes other keys. If one dies between publishing and the
    commit, its messages are published again, with the same ``message_id``. A message that
    ``publish`` refuses by an error is tried again after 1, 2, 4, ... 300 seconds; its key waits
    for it, others do not.

    Args:
        engine: Where the outbox is.
        publish: Returns when the message is safe elsewhere. It should give up by itself: a message
            of which nothing is heard holds up its step.
        outbox: Of which schema.
        limit: How many messages one transaction takes.
        attempts_max: After so many a message is given up, and its key goes on without it; unless
            given, it is tried for ever.
        silence_seconds_max: When ``publish`` takes longer, as in a process that was paused, the
            server ends the transaction, and other relays take its messages.

    Raises:
        CommitUnansweredError: The connection broke during the COMMIT; messages may come again.
        IsolationLevelError: The engine is in autocommit mode.
        ValueError: ``limit`` is not positive.
    """
    outbox = outbox or Outbox()
    with fresh_reads(engine) as conn, resuming(conn, _THIS):
        step = _begin_step(conn, outbox, limit, silence_seconds_max)
        for message in step:
            try:
                publish(message)
            except Exception as error:  # noqa: BLE001 -- whatever the broker's client raises
                step.fail(message, error)
            else:
                step.succeed(message)
        failpoint("messages.published")
        _end_step(conn, outbox, step, attempts_max)
    return step.report


async def relay_messages_async(
    engine: "AsyncEngine",
    publish: Callable[[Message], Awaitable[object]],
    *,
    outbox: Outbox | None = None,
    limit: int = 100,
    attempts_max: int | None = None,
    silence_seconds_max: float = 60.0,
) -> Relayed:
    """Do as `relay_messages` does; ``publish`` is awaited for one message after the other.

    If it is cancelled, what was published in this step is published again.
    """
    from datapatterns.aio import transaction  # noqa: PLC0415 -- it needs the async extra

    outbox = outbox or Outbox()
    fresh = engine.execution_options(isolation_level="READ COMMITTED")
    try:
        async with transaction(fresh, attempted=_THIS) as conn:
            step = await conn.run_sync(_begin_step, outbox, limit, silence_seconds_max)
            for message in step:
                try:
                    await publish(message)
                except Exception as error:  # noqa: BLE001 -- whatever the broker's client raises
                    step.fail(message, error)
                else:
                    step.succeed(message)
            failpoint("messages.published")
            await conn.run_sync(_end_step, outbox, step, attempts_max)
    except OutcomeUnknownError as error:
        raise CommitUnansweredError(_THIS, reason=error.reason) from error.__cause__
    return step.report


def _begin_step(
    conn: Connection, outbox: Outbox, limit: int, silence_seconds_max: float
) -> PassingOn:
    """Take messages in a transaction that ends by itself if nothing is heard for too long."""
    silence = f"{round(silence_seconds_max * 1_000)}ms"
    conn.execute(select(func.set_config("idle_in_transaction_session_timeout", silence, True)))
    batch = outbox.take_batch(conn, limit=limit)
    # The server keeps the snapshot of a query until the next command, and with it what vacuum
    # would remove. This one needs none.
    conn.exec_driver_sql("SHOW transaction_isolation")
    return PassingOn(batch.messages, batch.more)


def _end_step(conn: Connection, outbox: Outbox, step: PassingOn, attempts_max: int | None) -> None:
    """Note what came of them."""
    if step.passed_on:
        outbox.remove(conn, step.passed_on)
    outbox.put_off(conn, step.refused, attempts_max=attempts_max)
