"""See all that has happened on a shard: end what is decided, and only prepared there, first.

A transaction over several shards has happened once its primary has committed. What it wrote on
another shard may be prepared there still, and is then seen by nobody.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from psycopg import sql
from psycopg.errors import (
    InsufficientPrivilege,
    ObjectNotInPrerequisiteState,
    UndefinedObject,
)
from sqlalchemy import Connection, Engine, func, select

from datapatterns.errors import BranchesUnsettledError
from datapatterns.sharding.atomic.branches import Branch
from datapatterns.sharding.atomic.deciding import fate_of, settle_outcome
from datapatterns.sharding.atomic.recovering import prepared_on
from datapatterns.sharding.atomic.waiting import wait_for_locks_at_most
from datapatterns.sharding.driver_calls import settled
from datapatterns.sharding.maps.ownership import shard_errors
from datapatterns.transactions import fresh_reads

_COMMIT, _ROLLBACK = sql.SQL("COMMIT PREPARED {}"), sql.SQL("ROLLBACK PREPARED {}")
_PAUSE_SECONDS = 0.02
_PATIENCE_SECONDS = 0.1
"""So long whoever has prepared something may take to end it himself."""


@dataclass(frozen=True, slots=True)
class Settling:
    """Ends what is prepared on a shard and decided elsewhere, by the rules of recovery.

    Attributes:
        engines: One for each shard.
        schema: Of the library's tables.
        wait_seconds: How long to wait for what others are ending.
    """

    engines: Mapping[str, Engine]
    schema: str
    wait_seconds: float = 5.0

    def settle(self, conn: Connection, shard: str) -> bool:
        """Return when a new snapshot on ``conn`` shows all that had happened before the call.

        What is under way is left alone: whether it happens is not decided yet.

        Args:
            conn: A connection to the shard, in a transaction or not.
            shard: Which shard it is.

        Returns:
            Whether there was anything.

        Raises:
            BranchesUnsettledError: Something is decided, and nobody could end it; or its primary is
                no shard of this cluster.
            ShardUnavailableError: A primary does not answer, so nobody knows.
        """
        waiting = self._decided(conn, shard)
        if not waiting:
            return False
        waited = 0.0
        while waited < self.wait_seconds:
            if waited >= _PATIENCE_SECONDS:
                for name, outcome in waiting.items():
                    self._end(shard, name, outcome)
            else:
                # On the server, so that an event loop is not held up.
                conn.execute(select(func.pg_sleep(_PAUSE_SECONDS))).close()
            waited += _PAUSE_SECONDS
            still = {name for name, _ in prepared_on(conn)}
            waiting = {name: outcome for name, outcome in waiting.items() if name in still}
            if not waiting:
                return True
            if waited > _PATIENCE_SECONDS:
                conn.execute(select(func.pg_sleep(_PAUSE_SECONDS))).close()
        raise BranchesUnsettledError(shard, waiting)

    def _decided(self, conn: Connection, shard: str) -> dict[str, str]:
        """Return what is prepared and decided, with what was decided."""
        found: dict[str, str] = {}
        for name, _ in prepared_on(conn):
            branch = Branch.named(name)
            if branch is None or (branch.schema, branch.shard) != (self.schema, shard):
                continue
            if branch.primary not in self.engines:
                raise BranchesUnsettledError(shard, [name])
            if (outcome := self._outcome(branch)) is not None:
                found[name] = outcome
        return found

    def _outcome(self, branch: Branch) -> str | None:
        with (
            shard_errors(branch.primary),
            fresh_reads(self.engines[branch.primary]) as conn,
            conn.begin(),
        ):
            # Who has not decided yet holds all his locks, and so is not one of those whose locks
            # the caller has waited for.
            if fate_of(conn, branch.xid) == "in progress":
                return None
            wait_for_locks_at_most(conn, seconds=self.wait_seconds)
            return settle_outcome(conn, branch)

    def _end(self, shard: str, name: str, outcome: str) -> None:
        statement = _COMMIT if outcome == "commit" else _ROLLBACK
        with shard_errors(shard), self.engines[shard].connect() as plain:
            # COMMIT PREPARED wants no transaction around it.
            conn = plain.execution_options(isolation_level="AUTOCOMMIT")
            driver: Any = conn.connection.driver_connection
            try:
                settled(driver.execute(statement.format(sql.Literal(name))))
            except (UndefinedObject, ObjectNotInPrerequisiteState, InsufficientPrivilege):
                return  # somebody else has ended it, or is at it, or will have to
