"""The row on the primary shard that says whether a transaction has happened."""

from typing import Literal
from uuid import UUID

from sqlalchemy import Connection, delete, func, literal, select
from sqlalchemy.dialects.postgresql import insert

from datapatterns.change_log.schema import Xid8
from datapatterns.change_log.snapshots import Xid
from datapatterns.sharding.atomic.branches import Branch
from datapatterns.sharding.schema import sharding_tables

Outcome = Literal["commit", "abort"]
Fate = Literal["committed", "aborted", "in progress"]


def record_commit(
    conn: Connection, transaction: UUID, xid: Xid, branches: list[str], *, schema: str
) -> None:
    """Write, in the primary's own transaction, that all is to be committed.

    Raises:
        IntegrityError: Recovery has decided otherwise.
    """
    table = sharding_tables(schema).transaction_decision
    conn.execute(
        insert(table).values(
            transaction_id=transaction, outcome="commit", primary_xid=xid, branches=branches
        )
    )


def settle_outcome(conn: Connection, branch: Branch) -> Outcome | None:
    """Return what was decided; if nothing was, decide that it has not happened.

    Waits for a primary that has written its decision and not ended; set a ``lock_timeout``. None
    if it was over already, and forgotten.
    """
    table = sharding_tables(branch.schema).transaction_decision
    conn.execute(
        insert(table)
        .values(
            transaction_id=branch.transaction, outcome="abort", primary_xid=branch.xid, branches=[]
        )
        .on_conflict_do_nothing()
    )
    found: Outcome | None = conn.scalar(
        select(table.c.outcome).where(table.c.transaction_id == branch.transaction)
    )
    return found


def outcome_so_far(conn: Connection, branch: Branch) -> Outcome:
    """Return what `settle_outcome` would, if nobody decides before; decides nothing itself."""
    table = sharding_tables(branch.schema).transaction_decision
    found: Outcome | None = conn.scalar(
        select(table.c.outcome).where(table.c.transaction_id == branch.transaction)
    )
    return found or "abort"


def fate_of(conn: Connection, xid: Xid) -> Fate | None:
    """Return what became of a transaction of this server; None if that is long ago."""
    found: Fate | None = conn.scalar(select(func.pg_xact_status(literal(xid, Xid8()))))
    return found


def forget(conn: Connection, transaction: UUID, *, schema: str) -> None:
    """Remove a decision that every branch has followed."""
    table = sharding_tables(schema).transaction_decision
    conn.execute(delete(table).where(table.c.transaction_id == transaction))


def own_xid(conn: Connection) -> Xid:
    """Return the id of the running transaction, which it gets now if it had none."""
    return conn.scalars(select(func.pg_current_xact_id(type_=Xid8()))).one()
