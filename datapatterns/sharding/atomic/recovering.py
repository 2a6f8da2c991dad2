"""Finish what others have begun and not ended: any process may, at any time, and several at once.

No clock decides and no list of the living: a transaction that has not been decided is decided here,
on the row that its primary would need.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from psycopg import sql
from psycopg.errors import (
    InsufficientPrivilege,
    LockNotAvailable,
    ObjectNotInPrerequisiteState,
    QueryCanceled,
    UndefinedObject,
)
from sqlalchemy import Connection, Engine, Float, Text, column, func, or_, select
from sqlalchemy import table as named_table
from sqlalchemy.exc import DBAPIError

from datapatterns.change_log.schema import Xid8
from datapatterns.errors import ReadOnlyServerError, ShardUnavailableError
from datapatterns.sharding.atomic.branches import Branch
from datapatterns.sharding.atomic.deciding import fate_of, forget, outcome_so_far, settle_outcome
from datapatterns.sharding.atomic.waiting import wait_for_locks_at_most
from datapatterns.sharding.maps.ownership import shard_errors
from datapatterns.sharding.schema import sharding_tables
from datapatterns.sql.metadata import DEFAULT_SCHEMA
from datapatterns.transactions import fresh_reads

_COMMIT, _ROLLBACK = sql.SQL("COMMIT PREPARED {}"), sql.SQL("ROLLBACK PREPARED {}")
PREPARED = named_table(
    "pg_prepared_xacts", column("gid", Text), column("prepared"), column("database")
)


@dataclass(slots=True)
class Recovered:
    """What a round of recovery did.

    Attributes:
        committed: The names of branches that were committed.
        rolled_back: The names of those that were rolled back.
        waiting: Those whose transaction is under way still, or whose primary did not answer or only
            allows reading, with the seconds since they were prepared. Each holds back VACUUM on its
            shard.
        foreign: Those whose primary is no shard of this cluster; configure it, or end them by hand.
        denied: Those that another role has prepared; run recovery as that role, or as a superuser.
        unreachable: The shards that did not answer, or only allow reading.
        forgotten: How many decisions nobody needs any more were removed.
    """

    committed: list[str] = field(default_factory=list)
    rolled_back: list[str] = field(default_factory=list)
    waiting: dict[str, float] = field(default_factory=dict)
    foreign: list[str] = field(default_factory=list)
    denied: list[str] = field(default_factory=list)
    unreachable: list[str] = field(default_factory=list)
    forgotten: int = 0


class Recovery:
    """Ends the transactions over several shards whose process died.

    Args:
        engines: One for each shard; all of them, or decisions stay.
        schema: Where the library's tables live.
        grace_seconds: How long a transaction that is still under way is left alone.
        dry_run: Only say what would be done.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        *,
        schema: str = DEFAULT_SCHEMA,
        grace_seconds: float = 60.0,
        dry_run: bool = False,
    ) -> None:
        self._dry_run = dry_run
        self._engines = engines
        self._schema = schema
        self._grace_seconds = grace_seconds

    def run(self) -> Recovered:
        """Look at every shard once, and end what can be ended."""
        report = Recovered()
        for shard in self._engines:
            try:
                with shard_errors(shard):
                    self._recover(shard, report)
            except ShardUnavailableError:
                report.unreachable.append(shard)
        for shard in self._engines:
            if shard not in report.unreachable:
                try:
                    report.forgotten += self._collect(shard)
                except ShardUnavailableError as error:
                    report.unreachable.append(error.shard)
                except ReadOnlyServerError:
                    report.unreachable.append(shard)
        return report

    def _recover(self, shard: str, report: Recovered) -> None:
        with self._engines[shard].connect() as plain:
            # COMMIT PREPARED wants no transaction around it.
            conn = plain.execution_options(isolation_level="AUTOCOMMIT")
            for name, seconds in prepared_on(conn):
                branch = Branch.named(name)
                if branch is None or (branch.schema, branch.shard) != (self._schema, shard):
                    continue
                if branch.primary not in self._engines:
                    report.foreign.append(name)
                elif (outcome := self._outcome(branch, seconds)) is None:
                    report.waiting[name] = seconds
                elif self._dry_run or _end(conn, name, outcome, report):
                    ended = report.committed if outcome == "commit" else report.rolled_back
                    ended.append(name)

    def _outcome(self, branch: Branch, seconds: float) -> str | None:
        """Return what was decided, or None if that has to wait."""
        try:
            # Who has waited for a decision is to see it.
            with fresh_reads(self._engines[branch.primary]) as conn, conn.begin():
                wait_for_locks_at_most(conn, seconds=2)
                # Whoever is alive need not be disturbed; that it is safe does not make it kind.
                alive = fate_of(conn, branch.xid) == "in progress"
                if alive and seconds < self._grace_seconds:
                    return None
                return (outcome_so_far if self._dry_run else settle_outcome)(conn, branch)
        except DBAPIError as error:
            is_slow = isinstance(error.orig, LockNotAvailable | QueryCanceled)
            if is_slow or error.connection_invalidated:
                return None
            with shard_errors(branch.primary):
                raise
        except (ReadOnlyServerError, ShardUnavailableError):
            return None

    def _collect(self, shard: str) -> int:
        """Remove the decisions on ``shard`` that nobody can ask for any more."""
        decision = sharding_tables(self._schema).transaction_decision
        with shard_errors(shard), self._engines[shard].begin() as conn:
            # A primary whose transaction has ended can commit no more. One of the future, after a
            # restore, is not asked for: that would be an error.
            ended = func.pg_xact_status(decision.c.primary_xid) != "in progress"
            known = decision.c.primary_xid < func.pg_snapshot_xmax(
                func.pg_current_snapshot(), type_=Xid8()
            )
            aborted = conn.scalars(
                select(decision.c.transaction_id).where(
                    decision.c.outcome == "abort", known, or_(ended, ended.is_(None))
                )
            ).all()
            committed = conn.execute(
                select(decision.c.transaction_id, decision.c.branches).where(
                    decision.c.outcome == "commit"
                )
            ).all()
        gone = [*aborted]
        for transaction, branches in committed:
            names = self._names_on(branches)
            if names is not None and not any(transaction.hex in name for name in names):
                gone.append(transaction)
        if self._dry_run:
            return len(gone)
        with shard_errors(shard), self._engines[shard].begin() as conn:
            for transaction in gone:
                forget(conn, transaction, schema=self._schema)
        return len(gone)

    def _names_on(self, shards: list[str]) -> list[str] | None:
        """Return what is prepared on ``shards``; None if one cannot be asked."""
        found: list[str] = []
        for shard in shards:
            if shard not in self._engines:
                return None
            with shard_errors(shard), self._engines[shard].connect() as conn:
                found += [name for name, _ in prepared_on(conn)]
        return found


def prepared_on(conn: Connection) -> list[tuple[str, float]]:
    """Return the names of what is prepared in this database, and for how many seconds."""
    age = func.extract("epoch", func.clock_timestamp() - PREPARED.c.prepared).cast(Float)
    found = select(PREPARED.c.gid, age).where(
        PREPARED.c.database == func.current_database(), PREPARED.c.gid.startswith("datapatterns/")
    )
    return [(name, seconds) for name, seconds in conn.execute(found)]


def _end(conn: Connection, name: str, outcome: str, report: Recovered) -> bool:
    statement = _COMMIT if outcome == "commit" else _ROLLBACK
    driver: Any = conn.connection.driver_connection
    try:
        driver.execute(statement.format(sql.Literal(name)))
    except (UndefinedObject, ObjectNotInPrerequisiteState):
        return False  # somebody else has ended it, or is at it
    except InsufficientPrivilege:
        report.denied.append(name)
        return False
    return True
