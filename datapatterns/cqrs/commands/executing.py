"""Execute a command once, however often it is tried, and whoever else tries it under its key."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import Connection, event

from datapatterns.cqrs.commands.claiming import ENDED, Claim, Recorded, claim_key, note_result
from datapatterns.cqrs.commands.contents import (
    Problems,
    digest_of,
    encoded_command,
    found_by,
    key_problems,
    misfits,
)
from datapatterns.cqrs.commands.context import CommandContext
from datapatterns.cqrs.commands.handlers import CommandType
from datapatterns.cqrs.commands.results import decode_result, kept
from datapatterns.errors import (
    CommandHandlerError,
    CommandInvalidError,
    ConflictError,
    IdempotencyKeyReusedError,
    OutcomeUnknownError,
)
from datapatterns.event_sourcing import CAUSATION_ID, CORRELATION_ID, EventStore, Position, Retry
from datapatterns.event_sourcing.appending.noting import noting_appends
from datapatterns.event_sourcing.commands.attempting import is_serialisation_failure
from datapatterns.event_sourcing.commands.retrying import Attempts
from datapatterns.event_sourcing.event_ids import new_id
from datapatterns.event_sourcing.states.decider import refuse_unfinished
from datapatterns.failpoints import failpoint
from datapatterns.transactions import refuse_aborted

_handling: Final[ContextVar[str | None]] = ContextVar("handling", default=None)
"""The command whose handler is running."""


@dataclass(frozen=True, slots=True)
class Executed:
    """What came of a command.

    Attributes:
        value: What its handler returned.
        position: The token for reading this write: read models that have reached it show it. 0
            if nothing was appended.
        repeated: It was executed before, under the same idempotency key; nothing was done now.
        attempts: How many there were; more than 1 if other writers were first.
        execution_id: The ``causation_id`` of its events.
    """

    value: Any
    position: Position
    repeated: bool
    attempts: int
    execution_id: UUID


class Asked(NamedTuple):
    """How one command is to be executed."""

    idempotency_key: str | None
    tenant: str
    metadata: Mapping[str, Any] | None
    retry: Retry


class Contents(NamedTuple):
    """A command that can be executed, as JSON, and what its validators have found.

    Attributes:
        problems: They count unless it was executed before.
    """

    encoded: str
    digest: bytes
    problems: Problems


def checked_command(kind: CommandType, command: object, key: str | None) -> Contents:
    """Return what a command says.

    Raises:
        CommandInvalidError: It does not fit its class; or what validators find, if there is no
            key under which it may have been executed while it was valid.
    """
    encoded, problems = encoded_command(kind.name, command)
    problems += key_problems(key)
    if encoded:
        problems += misfits(command, encoded, kind.decoder)
    if problems:
        raise CommandInvalidError(kind.name, problems)
    found = found_by(kind.validators, command)
    if found and key is None:
        raise CommandInvalidError(kind.name, found)
    # Of what the handler gets: a retry may say 1 where 1.0 was sent, as JSON does of some clients.
    digest = b"" if key is None else digest_of(kind.decoder.decode(encoded))
    return Contents(encoded, digest, found)


@dataclass(slots=True)
class Execution:
    """One command, however often it is tried. A `Task`."""

    store: EventStore
    kind: CommandType
    contents: Contents
    asked: Asked
    execution_id: UUID = field(default_factory=new_id)
    attempts: Attempts = field(init=False)
    unknown: OutcomeUnknownError | None = None
    executed: Executed | None = None
    _is_found: bool = False
    _is_handled: bool = False

    def __post_init__(self) -> None:
        self.attempts = Attempts(self.asked.retry, self.store.clock)

    @property
    def attempted(self) -> str:
        """What it is, in the words of an error message."""
        return f"command {self.kind.name}"

    @property
    def is_done(self) -> bool:
        """Whether it was found to be committed, so that nothing depends on this COMMIT."""
        return self._is_found

    def attempt(self, conn: Connection) -> None:
        """Find out what came of it before, or let the handler do it."""
        self.attempts.begin()
        self._is_handled = False
        claim = self._claim()
        if claim is not None:
            found = claim_key(conn, claim, schema=self.store.schema)
            # Whoever has the key, or finds another's row, knows that nothing of an earlier attempt
            # was committed.
            self.unknown = None
            if found is not None:
                self.executed = self._recalled(found, claim)
                self._is_found = True
                return
        if self.contents.problems:
            raise CommandInvalidError(self.kind.name, self.contents.problems)
        self.executed = self._handled(conn, claim)
        self._is_handled = True

    def delay_after(self, error: Exception) -> float:
        """Return how long to wait before the next attempt.

        Raises:
            Exception: The one given, or what it means, if there is no next attempt.
        """
        if self._is_found:
            return 0.0
        # What a handler raises about a COMMIT is not about ours, which is sent after it.
        if self._is_handled and isinstance(error, OutcomeUnknownError):
            if self.asked.idempotency_key is None:
                raise error
            self.unknown = error
        if self.unknown is None and not _may_pass(error):
            raise error
        seconds = self.attempts.delay()
        if seconds is not None:
            return seconds
        if self.unknown is None:
            raise error
        raise self.outcome(self.unknown) from self.unknown.__cause__

    def outcome(self, unknown: OutcomeUnknownError) -> OutcomeUnknownError:
        """Return the unknown outcome with the key, by which a repetition is recognised."""
        key = self.asked.idempotency_key
        ids = [] if key is None else [key]
        return OutcomeUnknownError(self.attempted, reason=unknown.reason, ids=ids)

    def _claim(self) -> Claim | None:
        key, kind = self.asked.idempotency_key, self.kind
        if key is None:
            return None
        digest = self.contents.digest
        return Claim(self.asked.tenant, key, kind.name, kind.version, digest, self.execution_id)

    def _recalled(self, found: Recorded, claim: Claim) -> Executed:
        # Another version of a command has another digest, whatever it says.
        is_same = found.version != claim.version or found.digest == claim.digest
        if found.command != claim.command or not is_same:
            raise IdempotencyKeyReusedError(
                claim.key, command=claim.command, executed=found.command
            )
        return Executed(
            decode_result(self.kind.name, found.result, self.kind.returned),
            found.position,
            found.execution_id != self.execution_id,
            self.attempts.made,
            found.execution_id,
        )

    def _handled(self, conn: Connection, claim: Claim | None) -> Executed:
        name = self.kind.name
        context = CommandContext(
            conn,
            self.store,
            self.asked.tenant,
            self._metadata(),
            self.execution_id,
            self.asked.idempotency_key,
            self.attempts.made,
        )
        # Each attempt gets an object of its own, as it may be changed.
        command = self.kind.decoder.decode(self.contents.encoded)
        with noting_appends(conn) as noted, _keeping(conn, name):
            answer = self.kind.handler(command, context)
            refuse_unfinished(answer, "the handler")
        refuse_aborted(conn, self.attempted)
        result, value = kept(name, answer, self.kind.returned)
        position = noted.position
        if claim is not None:
            note_result(conn, claim, result=result, position=position, schema=self.store.schema)
        failpoint("command.result-noted")
        made = self.attempts.made
        return Executed(
            value, position, repeated=False, attempts=made, execution_id=self.execution_id
        )

    def _metadata(self) -> Mapping[str, Any]:
        execution_id = str(self.execution_id)
        ids = {CORRELATION_ID: execution_id, CAUSATION_ID: execution_id}
        return ids | dict(self.asked.metadata or {})


def refuse_within_handler(command: str) -> None:
    """Refuse to execute a command from within the handler of another.

    It would be committed even if the other is rolled back, again in each attempt; under the
    other's key it would wait for itself.

    Raises:
        CommandHandlerError: A handler is running in this thread or task.
    """
    outer = _handling.get()
    if outer is not None:
        raise CommandHandlerError(
            command,
            f"the handler of {outer} executes it in a transaction of its own; call the function"
            " that handles it, with the same context, to have one transaction",
        )


@contextmanager
def _keeping(conn: Connection, command: str) -> Iterator[None]:
    """Refuse what would end the transaction within the block.

    Raises:
        CommandHandlerError: It was to be committed, or was rolled back.
    """
    begun, outer = conn.get_transaction(), _handling.set(command)

    def refuse(conn: Connection) -> None:
        # What fails here is given back to its pool as it is, with its transaction open.
        conn.connection.rollback()
        raise CommandHandlerError(command, ENDED)

    event.listen(conn, "commit", refuse)
    try:
        yield
    finally:
        event.remove(conn, "commit", refuse)
        _handling.reset(outer)
    if begun is None or not begun.is_active or conn.get_transaction() is not begun:
        raise CommandHandlerError(command, ENDED)


def _may_pass(error: Exception) -> bool:
    """Return whether to decide again, on what is there then."""
    return isinstance(error, ConflictError) or is_serialisation_failure(error)
