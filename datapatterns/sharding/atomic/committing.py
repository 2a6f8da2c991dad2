"""Commit on several shards at once: all branches but one are prepared, and that one decides.

The primary's COMMIT makes its own work and the decision durable together, so whoever dies, and
whenever, anybody can find out from the primary whether the others have to follow.

Source: two-phase commit with presumed abort, Mohan, Lindsay and Obermarck, "Transaction Management
in the R* Distributed Database Management System" (1986); the last agent decides.
"""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn
from uuid import UUID, uuid4

from psycopg import Error as DriverError
from psycopg import sql
from psycopg.errors import ObjectNotInPrerequisiteState, OutOfMemory, UndefinedObject
from sqlalchemy import Connection, Engine, RootTransaction
from sqlalchemy.exc import DBAPIError, IntegrityError

from datapatterns.errors import (
    AbortedTransactionError,
    CitusTransactionError,
    OutcomeUnknownError,
    SettingsError,
    ShardTransactionRefusedError,
    ShardUnavailableError,
)
from datapatterns.failpoints import failpoint
from datapatterns.sharding.atomic.branches import Branch
from datapatterns.sharding.atomic.deciding import fate_of, own_xid, record_commit, settle_outcome
from datapatterns.sharding.atomic.waiting import wait_for_locks_at_most
from datapatterns.sharding.driver_calls import settled
from datapatterns.sharding.fan_out import FanOut
from datapatterns.sharding.maps.ownership import shard_errors
from datapatterns.transactions import fresh_reads

logger = logging.getLogger(__name__)

ATTEMPTED = "a transaction over several shards"
_COMMIT, _ROLLBACK = sql.SQL("COMMIT PREPARED {}"), sql.SQL("ROLLBACK PREPARED {}")
_SETTLED_BY_OTHERS = (UndefinedObject, ObjectNotInPrerequisiteState)


@dataclass(frozen=True, slots=True)
class Writer:
    """One shard's part of a transaction, not committed yet.

    Attributes:
        shard: Which shard.
        conn: A connection in a transaction that has written.
        transaction: That transaction.
    """

    shard: str
    conn: Connection
    transaction: RootTransaction


def deciding_first(writers: Sequence[Writer], citus: Collection[str]) -> Sequence[Writer]:
    """Return ``writers`` so that a coordinator of Citus is the one that decides.

    It prepares its nodes itself, and does not let others prepare the whole.

    Raises:
        CitusTransactionError: There are two of them.
    """
    deciders = [writer.shard for writer in writers if writer.shard in citus]
    if len(deciders) > 1:
        raise CitusTransactionError(tuple(deciders))
    return sorted(writers, key=lambda writer: writer.shard not in citus)


@dataclass(frozen=True, slots=True)
class Commit:
    """Commits the parts of a transaction on all shards, or on none.

    Attributes:
        engines: One for each shard.
        fan_out: Speaks to several shards at once.
        schema: Where the library's tables live.
    """

    engines: Mapping[str, Engine]
    fan_out: FanOut
    schema: str

    def run(self, writers: Sequence[Writer]) -> tuple[str, ...]:
        """Commit, and return the shards that show it only when recovery has been there.

        Raises:
            AbortedTransactionError: An error was caught; nothing was committed.
            OutcomeUnknownError: The COMMIT of the first shard was sent, its answer was lost, and
                the shard does not answer now. All have done it, or will all undo it.
            SettingsError: A server does not prepare transactions; nothing was committed.
            ShardTransactionRefusedError: Recovery gave it up; nothing was committed.
            ShardUnavailableError: A shard does not answer; nothing was committed.
        """
        primary, *others = writers
        with shard_errors(primary.shard):
            xid = own_xid(primary.conn)
        transaction = uuid4()
        branches = {
            each.shard: Branch(transaction, primary.shard, xid, each.shard, self.schema)
            for each in others
        }
        prepared: dict[str, Writer] = {}
        try:
            self._prepare(others, branches, prepared)
            self._decide(primary, branches)
        except OutcomeUnknownError:
            raise  # recovery will know
        except Exception:
            self._give_up(primary, branches, prepared)
            raise
        failpoint("atomic.decided")
        return self._settle(primary, branches, prepared)

    def _prepare(
        self, others: Sequence[Writer], branches: Mapping[str, Branch], into: dict[str, Writer]
    ) -> None:
        def ask(writer: Writer) -> Callable[[], None]:
            def prepare() -> None:
                _prepare(writer, branches[writer.shard])
                into[writer.shard] = writer
                failpoint("atomic.branch-prepared")

            return prepare

        self._each({writer.shard: ask(writer) for writer in others})

    def _decide(self, primary: Writer, branches: Mapping[str, Branch]) -> None:
        first = next(iter(branches.values()))
        try:
            with shard_errors(primary.shard):
                record_commit(
                    primary.conn, first.transaction, first.xid, [*branches], schema=self.schema
                )
        except IntegrityError as error:
            raise ShardTransactionRefusedError(primary.shard) from error
        failpoint("atomic.decision-written")
        try:
            with shard_errors(primary.shard):
                primary.transaction.commit()
        except OutcomeUnknownError as unknown:
            self._find_out(first, unknown)

    def _find_out(self, branch: Branch, unknown: OutcomeUnknownError) -> None:
        """Return if it was committed although the answer was lost.

        By the state of the primary's transaction: the row may have been collected already.

        Raises:
            OutcomeUnknownError: The primary does not answer, or cannot be asked.
            ShardUnavailableError: It was not committed.
        """
        try:
            with fresh_reads(self.engines[branch.primary]) as conn, conn.begin():
                wait_for_locks_at_most(conn, seconds=5)
                if fate_of(conn, branch.xid) == "in progress":
                    settle_outcome(conn, branch)  # waits until it has ended
                fate = fate_of(conn, branch.xid)
        except Exception as error:
            # Such as that of an exhausted pool: whatever it is, nothing says that it may be undone.
            raise unknown from error
        if fate == "aborted":
            raise ShardUnavailableError(branch.primary) from unknown
        if fate != "committed":
            raise unknown

    def _give_up(
        self, primary: Writer, branches: Mapping[str, Branch], prepared: Mapping[str, Writer]
    ) -> None:
        """Undo what can be undone now; recovery undoes the rest."""
        # First what could still commit, so that no branch is undone before.
        _roll_back(primary.conn)

        def ask(writer: Writer) -> Callable[[], bool]:
            return lambda: _finish(writer.conn, _ROLLBACK, branches[writer.shard])

        self._each_of(prepared, ask)

    def _settle(
        self, primary: Writer, branches: Mapping[str, Branch], prepared: Mapping[str, Writer]
    ) -> tuple[str, ...]:
        def ask(writer: Writer) -> Callable[[], bool]:
            def settle() -> bool:
                done = _finish(writer.conn, _COMMIT, branches[writer.shard])
                failpoint("atomic.branch-settled")
                return done

            return settle

        done = self._each_of(prepared, ask)
        left = tuple(
            sorted(branches.keys() - {shard for shard, is_done in done.items() if is_done})
        )
        if not left:
            first = next(iter(branches.values()))
            _forget(primary.conn, first.transaction, self.schema)
        return left

    def _each(self, questions: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
        """Ask in parallel; return when all have answered, or raise what the first one raised."""
        answers = self.fan_out.answers(questions)
        return {shard: answer.result() for shard, answer in answers.items()}

    def _each_of(
        self, writers: Mapping[str, Writer], ask: Callable[[Writer], Callable[[], bool]]
    ) -> dict[str, bool]:
        return self._each({shard: ask(writer) for shard, writer in writers.items()})


def _prepare(writer: Writer, branch: Branch) -> None:
    driver: Any = writer.conn.connection.driver_connection
    try:
        with shard_errors(writer.shard):
            # The name holds nothing that needs quoting, and no statement of this kind takes
            # parameters.
            answer = settled(
                driver.execute(sql.SQL("PREPARE TRANSACTION {}").format(sql.Literal(branch.name)))
            ).statusmessage
    except ObjectNotInPrerequisiteState as error:
        _refuse_server(writer.shard, "it is 0 on", error)
    except OutOfMemory as error:
        _refuse_server(writer.shard, "all are in use on", error)
    except DriverError as error:
        # As SQLAlchemy's, which the same constraint raises in the COMMIT of the first shard.
        dialect = writer.conn.dialect
        raise DBAPIError.instance(
            "PREPARE TRANSACTION", None, error, DriverError, hide_parameters=True, dialect=dialect
        ) from error
    if answer != "PREPARE TRANSACTION":
        # A transaction that had failed is rolled back, and no error says so.
        raise AbortedTransactionError(ATTEMPTED)


def _refuse_server(shard: str, reason: str, error: DriverError) -> NoReturn:
    raise SettingsError(
        "max_prepared_transactions",
        f"{reason} shard {shard!r}; set it to at least the number of connections, or write to one"
        " shard in a transaction",
    ) from error


def _finish(conn: Connection, statement: sql.SQL, branch: Branch) -> bool:
    """Commit or roll a prepared branch back; return whether it is certainly done."""
    if (driver := _usable(conn)) is None:
        return False
    try:
        # It is idle: what it had begun belongs to nobody's session any more.
        settled(driver.set_autocommit(True))
        settled(driver.execute(statement.format(sql.Literal(branch.name))))
        settled(driver.set_autocommit(False))
    except _SETTLED_BY_OTHERS:
        # Recovery was faster, or is at it; the decision stays until it has seen that through.
        settled(driver.set_autocommit(False))
        return False
    except DriverError as error:
        logger.warning("a branch on %s is left to recovery: %s", branch.shard, error)
        conn.invalidate()
        return False
    return True


def _forget(conn: Connection, transaction: UUID, schema: str) -> None:
    """Remove the decision, in one round trip and without waiting for the disk."""
    if (driver := _usable(conn)) is None:
        return  # it will be collected
    statement = sql.SQL(
        "BEGIN; SET LOCAL synchronous_commit = off;"
        " DELETE FROM {} WHERE transaction_id = {}; COMMIT"
    ).format(sql.Identifier(schema, "transaction_decision"), sql.Literal(transaction))
    try:
        settled(driver.set_autocommit(True))
        settled(driver.execute(statement))
        settled(driver.set_autocommit(False))
    except DriverError as error:
        logger.warning("a decision is left to be collected: %s", error)
        conn.invalidate()


def _usable(conn: Connection) -> Any | None:  # noqa: ANN401 -- psycopg's, which may be of any row
    """Return the driver's connection, unless it is lost."""
    driver: Any = None if conn.invalidated else conn.connection.driver_connection
    return None if driver is None or driver.closed else driver


def _roll_back(conn: Connection) -> None:
    # SQLAlchemy's transaction stays as it is: whoever opened it rolls it back, too.
    if (driver := _usable(conn)) is not None:
        try:
            settled(driver.rollback())
        except DriverError as error:
            logger.warning("a transaction ends with its connection: %s", error)
            conn.invalidate()
