"""Who executes a command under an idempotency key, and what came of it.

The row of the key is inserted before the handler runs: whoever inserts the same key waits until
the transaction has ended, and then either finds the row or has it. Waiting is the server's, so it
ends with the other's transaction, however that ends.
"""

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection, Integer, Text, cast, literal, select, update
from sqlalchemy.dialects.postgresql import JSON, insert

from datapatterns.cqrs.schema import command_executions
from datapatterns.errors import CommandHandlerError, ExecutionUnfinishedError
from datapatterns.event_sourcing import Position


@dataclass(frozen=True, slots=True)
class Claim:
    """An execution that wants to be the only one under its key."""

    tenant: str
    key: str
    command: str
    version: int
    digest: bytes
    execution_id: UUID


@dataclass(frozen=True, slots=True)
class Recorded:
    """What was executed under a key.

    Attributes:
        result: As JSON.
    """

    command: str
    version: int
    digest: bytes
    execution_id: UUID
    position: Position
    result: str


def claim_key(conn: Connection, claim: Claim, *, schema: str) -> Recorded | None:
    """Take the key for this transaction; or return what was executed under it.

    Under REPEATABLE READ and SERIALIZABLE an execution that was committed meanwhile raises
    SQLSTATE 40001; in the next transaction it is found.

    Raises:
        ExecutionUnfinishedError: What was executed has no result.
    """
    executions = command_executions(schema)
    mine = {
        "tenant": claim.tenant,
        "key": claim.key,
        "command": claim.command,
        "version": claim.version,
        "digest": claim.digest,
        "execution_id": claim.execution_id,
    }
    taken = insert(executions).values(mine).on_conflict_do_nothing()
    found = select(
        executions.c.command,
        executions.c.version,
        executions.c.digest,
        executions.c.execution_id,
        executions.c.position,
        cast(executions.c.result, Text),
    ).where(executions.c.tenant == claim.tenant, executions.c.key == claim.key)
    while conn.execute(taken.returning(literal(1, Integer))).first() is None:
        # A statement of its own, so that it sees what the other one has committed meanwhile.
        row = conn.execute(found).one_or_none()
        if row is not None:
            command, version, digest, execution_id, position, result = row
            if position is None or result is None:
                raise ExecutionUnfinishedError(claim.key, command=command)
            return Recorded(
                command, version, bytes(digest), execution_id, Position(position), result
            )
        # It was forgotten in between.
    return None


def note_result(
    conn: Connection, claim: Claim, *, result: str, position: Position, schema: str
) -> None:
    """Write down what came of a claimed execution.

    Raises:
        CommandHandlerError: The claim is gone: its transaction was ended meanwhile.
    """
    executions = command_executions(schema)
    noted = (
        update(executions)
        .where(
            executions.c.tenant == claim.tenant,
            executions.c.key == claim.key,
            executions.c.execution_id == claim.execution_id,
        )
        .values(position=position, result=cast(literal(result, Text), JSON))
        .returning(literal(1, Integer))
    )
    if conn.execute(noted).first() is None:
        raise CommandHandlerError(claim.command, ENDED)


ENDED = (
    "its handler has ended the transaction, which is not its own; let it return to commit, and"
    " raise to roll back"
)
"""What to tell the author of a handler that commits or rolls back."""
