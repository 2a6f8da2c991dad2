"""The change log of one schema."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection, Engine, Table

from datapatterns.change_log import (
    bounding,
    capturing,
    collecting,
    consuming,
    rebasing,
    registering,
    releasing,
)
from datapatterns.change_log.consuming import Consumer
from datapatterns.change_log.snapshots import Snapshot
from datapatterns.change_log.status import ChangeLogStatus, read_status
from datapatterns.change_log.tokens import ChangeToken, has_consumed
from datapatterns.change_log.waiting import AwaitedChange, wait_for, wait_for_async
from datapatterns.clock import SYSTEM_CLOCK, Clock
from datapatterns.sql.metadata import DEFAULT_SCHEMA

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

COUNTED_ROWS_MAX: Final = 100_000
"""How far `ChangeLog.status` counts unless told otherwise."""


@dataclass(frozen=True, slots=True)
class ChangeLog:
    """Row changes as a set, taken by each consumer exactly once."""

    schema: str = DEFAULT_SCHEMA

    def capture(
        self,
        conn: Connection,
        table: Table | str,
        columns: Iterable[str],
        *,
        allow_row_security: bool = False,
    ) -> str:
        """Log changes of ``columns`` from now on; see `capturing.capture`."""
        return capturing.capture(
            conn, table, columns, schema=self.schema, allow_row_security=allow_row_security
        )

    def recapture(self, conn: Connection, *, consumer: str | None = None) -> list[str]:
        """Install what is missing at captured tables; see `capturing.recapture`."""
        return capturing.recapture(conn, schema=self.schema, consumer=consumer)

    def release(self, conn: Connection, table: Table | str) -> None:
        """Capture the changes of ``table`` no more; refuse while somebody consumes them."""
        releasing.release(conn, table, schema=self.schema)

    def register_consumer(
        self, conn: Connection, name: str, kind: str, *, log_names: Iterable[str] = ()
    ) -> None:
        """Let ``name`` consume changes from now on; see `registering.register_consumer`."""
        registering.register_consumer(conn, name, kind, schema=self.schema, log_names=log_names)

    def forget_consumer(self, conn: Connection, name: str) -> None:
        """Let ``name`` consume changes no more; do nothing if it does not."""
        registering.forget_consumer(conn, name, schema=self.schema)

    def lock_consumer(
        self, conn: Connection, name: str, *, skip_locked: bool = False
    ) -> Consumer | None:
        """Lock the consumer until the transaction ends; see `consuming.lock_consumer`."""
        return consuming.lock_consumer(conn, name, schema=self.schema, skip_locked=skip_locked)

    def advance_consumer(
        self,
        conn: Connection,
        name: str,
        snapshot: Snapshot,
        *,
        rebuilt: Consumer | None = None,
    ) -> bool:
        """Store how far ``name`` has consumed; see `consuming.advance_consumer`."""
        return consuming.advance_consumer(conn, name, snapshot, schema=self.schema, rebuilt=rebuilt)

    def collect_garbage(self, conn: Connection, *, limit: int = 10_000) -> int:
        """Delete logged changes that every consumer has consumed; return how many."""
        return collecting.collect_garbage(conn, schema=self.schema, limit=limit)

    def rebase(self, conn: Connection) -> int:
        """Let every consumer begin anew, in a restored database; see `rebasing.rebase`."""
        return rebasing.rebase(conn, schema=self.schema)

    def restart_laggards(self, conn: Connection, *, pending_rows_max: int) -> Mapping[str, int]:
        """Bound the growth of logs by who stands still; see `bounding.restart_laggards`."""
        return bounding.restart_laggards(
            conn, schema=self.schema, pending_rows_max=pending_rows_max
        )

    def status(self, conn: Connection, *, limit: int = COUNTED_ROWS_MAX) -> ChangeLogStatus:
        """Return how logs grow and for whom, rows counted up to ``limit`` each."""
        return read_status(conn, schema=self.schema, limit=limit)

    def has_consumed(self, conn: Connection, name: str, token: ChangeToken) -> bool:
        """Return whether consumer ``name`` has consumed what ``token`` stands for."""
        return has_consumed(conn, name, token, schema=self.schema)

    def wait(
        self,
        engine: Engine,
        name: str,
        token: ChangeToken,
        *,
        timeout_seconds: float,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """Return as soon as consumer ``name`` has consumed the write; see `waiting.wait_for`."""
        wait_for(engine, AwaitedChange(self.schema, name, token, timeout_seconds, clock))

    async def wait_async(
        self,
        engine: "AsyncEngine",
        name: str,
        token: ChangeToken,
        *,
        timeout_seconds: float,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """Do as `wait` does, in a task."""
        await wait_for_async(
            engine, AwaitedChange(self.schema, name, token, timeout_seconds, clock)
        )
