"""The front object: declare handlers, execute commands."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from sqlalchemy import Engine

from datapatterns.cqrs.commands.context import CommandContext
from datapatterns.cqrs.commands.executing import (
    Asked,
    Executed,
    Execution,
    checked_command,
    refuse_within_handler,
)
from datapatterns.cqrs.commands.handlers import CommandHandlers
from datapatterns.event_sourcing import EventStore, Retry, StreamId
from datapatterns.event_sourcing.commands.attempting import carry_out, carry_out_async
from datapatterns.event_sourcing.commands.retrying import DEFAULT_RETRY
from datapatterns.failpoints import failpoint

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

C = TypeVar("C")
R = TypeVar("R")


class ExecuteOptions(TypedDict, total=False):
    """What may be said about one execution, as `Commands.execute` takes it."""

    idempotency_key: str | None
    tenant: str
    metadata: Mapping[str, Any] | None
    retry: Retry


@dataclass(frozen=True, slots=True)
class Commands:
    """Executes typed commands, each in one transaction, each key once.

    Attributes:
        store: Where events are appended and executions are recorded.
        handlers: What handles which command.
    """

    store: EventStore = field(default_factory=EventStore)
    handlers: CommandHandlers = field(default_factory=CommandHandlers)

    def handles(
        self,
        command: type[C],
        *,
        name: str | None = None,
        version: int = 1,
        validate: Callable[[C], Any] | None = None,
    ) -> Callable[[Callable[[C, CommandContext], R]], Callable[[C, CommandContext], R]]:
        """Declare the function that handles a command, as `CommandHandlers.handles` does."""
        return self.handlers.handles(command, name=name, version=version, validate=validate)

    def execute(
        self,
        engine: Engine,
        command: object,
        *,
        idempotency_key: str | None = None,
        tenant: str = "",
        metadata: Mapping[str, Any] | None = None,
        retry: Retry = DEFAULT_RETRY,
    ) -> Executed:
        """Execute ``command`` in a transaction of its own, and return what came of it.

        If another writer was first, or the server has ended the transaction for a deadlock or to
        keep it serialisable, the handler runs again, on what is there then. Whatever else it
        raises comes out as it is: nothing was written, and nothing is recorded.

        With an idempotency key it is executed once: whoever repeats it, now or later, gets the
        first result. If the answer to the COMMIT is lost, the key tells what became of it.
        Without one that is an `OutcomeUnknownError` at once.

        Args:
            engine: Of the server of events. Nothing else is asked.
            command: An object of a class that has a handler.
            idempotency_key: Chosen by whoever wants it done, one for each intention. Up to 255
                bytes of printable text, unique within the tenant.
            tenant: Whose.
            metadata: Added to each event, beside what says where it came from.
            retry: How often it is tried, and for how long.

        Raises:
            CommandHandlerError: Nothing handles it, its handler ends the transaction, or it is
                executed by the handler of another.
            CommandInvalidError: It does not say what it may say. Nothing was written.
            CommandResultError: What the handler returned cannot be kept. Nothing was written.
            ConflictError: Other writers were first each time.
            ExecutionUnfinishedError: A handler has committed by itself under this key.
            IdempotencyKeyReusedError: The key was given to another command, or to other contents.
            IsolationLevelError: The engine is in autocommit mode.
            OutcomeUnknownError: The COMMIT was sent, and nobody could be asked in time whether it
                was carried out. Send it again under the same key.
            ReadOnlyServerError: The server is a standby, or only allows reading. Nothing was
                written; the next execution connects anew.
            ValueError: There is no such tenant.
        """
        execution = self._execution(command, Asked(idempotency_key, tenant, metadata, retry))
        carry_out(execution, engine, self.store.clock)
        return _told(execution)

    async def execute_async(
        self,
        engine: "AsyncEngine",
        command: object,
        *,
        idempotency_key: str | None = None,
        tenant: str = "",
        metadata: Mapping[str, Any] | None = None,
        retry: Retry = DEFAULT_RETRY,
    ) -> Executed:
        """Do as `execute`, on an async engine, by the same handlers; needs the ``async`` extra.

        A cancelled command stays a cancellation; if it may have been carried out, an
        `OutcomeUnknownError` with its key is its cause, which `find_unknown_outcome` finds.
        """
        execution = self._execution(command, Asked(idempotency_key, tenant, metadata, retry))
        await carry_out_async(execution, engine)
        return _told(execution)

    def _execution(self, command: object, asked: Asked) -> Execution:
        StreamId("command", "of", asked.tenant)  # whose streams it will append to
        kind = self.handlers.of(command)
        refuse_within_handler(kind.name)
        contents = checked_command(kind, command, asked.idempotency_key)
        return Execution(self.store, kind, contents, asked)


def _told(execution: Execution) -> Executed:
    failpoint("command.committed")
    assert execution.executed is not None
    return execution.executed
