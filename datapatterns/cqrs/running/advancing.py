"""Move a checkpoint on, in the transaction of its effects and under the latest lease only."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from functools import cache
from typing import Any, Final

from psycopg.types.json import Jsonb
from sqlalchemy import (
    Connection,
    Interval,
    Text,
    bindparam,
    exists,
    func,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

from datapatterns.cqrs.running.leasing import Lease, held
from datapatterns.cqrs.schema import ProjectionTables
from datapatterns.errors import LeaseLostError
from datapatterns.event_sourcing.events import Position

_DIALECT: Final = PGDialect_psycopg()  # type: ignore[no-untyped-call] # SQLAlchemy's own


SILENCE_LEASES: Final = 10
"""For how many leases a page may say nothing to the server, while it folds.

More than one: a page that takes long may have its lease renewed meanwhile.
"""

_SILENCE: Final = "idle_in_transaction_session_timeout"


class BarrierError(Exception):
    """The checkpoint may not move beyond a barrier for now; the page must end there."""

    def __init__(self, barrier: Position) -> None:
        super().__init__(barrier)
        self.barrier = barrier


def advance(
    conn: Connection,
    tables: ProjectionTables,
    lease: Lease,
    position: Position,
    *,
    error: Mapping[str, Any] | None = None,
    parked: int | None = None,
) -> Lease:
    """Move the checkpoint to ``position`` and renew the lease, or refuse both.

    The last statement of the transaction that holds the effects: so whoever lost the lease loses
    its page as well, and the checkpoint is never ahead of the effects or behind them.

    Args:
        conn: A connection in the transaction of the effects.
        tables: Where the leases are.
        lease: Under which they were made.
        position: Up to where.
        error: Why it goes no further.
        parked: How many events of the segment are parked now, if that has changed.

    Raises:
        BarrierError: It may not go so far for now.
        LeaseLostError: Another lease was given since, or the checkpoint was moved.
    """
    moved = conn.exec_driver_sql(
        _advance_statement(tables),
        {
            "name": lease.name,
            "version": lease.version,
            "shard": lease.segment.shard,
            "epoch": lease.epoch,
            "status": lease.status,
            "before": lease.position,
            "after": position,
            "lease": timedelta(seconds=lease.seconds),
            "failure": None if error is None else Jsonb(dict(error)),
            "parked": lease.parked if parked is None else parked,
            "setting": _SILENCE,
            "silence": _silence(lease),
        },
    )
    if moved.rowcount == 0:
        barrier = _read_barrier(conn, tables, lease)
        if barrier is not None and barrier < position:
            raise BarrierError(barrier)
        raise LeaseLostError(f"projection {lease.name}", epoch=lease.epoch)
    parked = lease.parked if parked is None else parked
    return replace(lease, position=position, parked=parked, seen=None)


def bound_silence(conn: Connection, lease: Lease) -> None:
    """Let the server end the transaction if nothing is heard of the runner for too long.

    Called before it locks rows. A machine that stands still keeps its connection, and would keep
    what it has locked from whoever has taken the lease over.
    """
    asked = {"name": _SILENCE, "silence": _silence(lease)}
    conn.exec_driver_sql("SELECT set_config(%(name)s, %(silence)s, true)", asked)


def _silence(lease: Lease) -> str:
    return f"{round(lease.seconds * SILENCE_LEASES * 1_000)}ms"


def current_barrier(conn: Connection, tables: ProjectionTables, lease: Lease) -> Position | None:
    """Return up to where a page may go; None if there is no barrier.

    Whoever meets a barrier learns of it by `advance`, so only those are asked for it.
    """
    return None if lease.barrier is None else _read_barrier(conn, tables, lease)


@cache
def _advance_statement(tables: ProjectionTables) -> str:
    # Compiled once, as each page moves a checkpoint: Core's execute costs more than the server's.
    shards, projections = tables.shards, tables.projections
    # Again, although the claim looked: a claim that waited for another version to take the place
    # saw the state before, and would write into the tables of the other.
    as_claimed = exists().where(
        projections.c.name == shards.c.name,
        projections.c.version == shards.c.version,
        projections.c.status == bindparam("status"),
    )
    unbarred = or_(
        shards.c.barrier.is_(None),
        shards.c.barrier >= bindparam("after"),
        shards.c.barrier_until < func.clock_timestamp(),
    )
    moving = (
        update(shards)
        .where(
            shards.c.name == bindparam("name"),
            shards.c.version == bindparam("version"),
            shards.c.shard == bindparam("shard"),
            shards.c.epoch == bindparam("epoch"),
            shards.c.position == bindparam("before"),
            as_claimed,
            unbarred,
        )
        .values(
            position=bindparam("after"),
            lease_until=func.clock_timestamp() + bindparam("lease", type_=Interval),
            updated_at=func.clock_timestamp(),
            error=bindparam("failure"),
            parked=bindparam("parked"),
        )
        # From here to the COMMIT the row is locked, and with it the way of whoever comes next.
        .returning(
            func.set_config(
                bindparam("setting", type_=Text), bindparam("silence", type_=Text), true()
            )
        )
    )
    return str(moving.compile(dialect=_DIALECT))


def _read_barrier(conn: Connection, tables: ProjectionTables, lease: Lease) -> Position | None:
    shards = tables.shards
    barrier = conn.scalar(
        select(shards.c.barrier).where(
            held(tables, lease), shards.c.barrier_until >= func.clock_timestamp()
        )
    )
    return None if barrier is None else Position(barrier)
