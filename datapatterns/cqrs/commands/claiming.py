"""Who executes a command under an idempotency key, and what came of it.

The row of the key is inserted before the handler runs: whoever inserts the same key waits until
the transaction has ended, and then either finds the row or has it. Waiting is the server's, so it
ends with the other's transaction, however that ends.
"""

from dataclasses import asdict, dataclass, fields
from functools import cache
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    BindParameter,
    Connection,
    Integer,
    Select,
    Text,
    bindparam,
    cast,
    literal,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSON, insert
from sqlalchemy.sql.dml import ReturningInsert, ReturningUpdate

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
    statements = _statements(schema)
    while conn.execute(statements.claim, asdict(claim)).first() is None:
        # A statement of its own, so that it sees what the other one has committed meanwhile.
        row = conn.execute(
            statements.find, {"of_tenant": claim.tenant, "of_key": claim.key}
        ).first()
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
    mine = {"of_tenant": claim.tenant, "of_key": claim.key, "of_execution": claim.execution_id}
    came = {"of_position": position, "of_result": result}
    if conn.execute(_statements(schema).note, mine | came).first() is None:
        raise CommandHandlerError(claim.command, ENDED)


class _Statements(NamedTuple):
    claim: ReturningInsert[int]
    find: Select[str, int, bytes, UUID, int | None, str]
    note: ReturningUpdate[int]


@cache
def _statements(schema: str) -> _Statements:
    # Made once: to make them takes as long as to execute them.
    executions = command_executions(schema)
    named = (
        executions.c.tenant == bindparam("of_tenant"),
        executions.c.key == bindparam("of_key"),
    )
    given: dict[str, BindParameter[Any]] = {
        part.name: bindparam(part.name) for part in fields(Claim)
    }
    return _Statements(
        claim=insert(executions)
        .values(given)
        .on_conflict_do_nothing()
        .returning(literal(1, Integer)),
        find=select(
            executions.c.command,
            executions.c.version,
            executions.c.digest,
            executions.c.execution_id,
            executions.c.position,
            cast(executions.c.result, Text),
        ).where(*named),
        note=update(executions)
        .where(*named, executions.c.execution_id == bindparam("of_execution"))
        .values(
            position=bindparam("of_position"),
            result=cast(bindparam("of_result", type_=Text()), JSON),
        )
        .returning(literal(1, Integer)),
    )


ENDED = (
    "its handler has ended the transaction, which is not its own; let it return to commit, and"
    " raise to roll back"
)
"""What to tell the author of a handler that commits or rolls back."""
