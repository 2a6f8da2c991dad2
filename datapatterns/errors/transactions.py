"""Transactions of the caller, and COMMITs whose answer was lost."""

from collections.abc import Iterable

from datapatterns.errors.families import ConfigurationError, DataPatternsError, UnavailableError


class AbortedTransactionError(ConfigurationError):
    """An error of a statement was caught inside its transaction, which then was to be committed.

    PostgreSQL answers such a COMMIT with a ROLLBACK and no error, so all of it would be lost
    without a word.

    Attributes:
        attempted: What was to be committed.
    """

    def __init__(self, attempted: str) -> None:
        super().__init__(
            f"{attempted} cannot be committed: one of its statements has failed, and the error was"
            " caught; let the error out, or put what may fail into conn.begin_nested()"
        )
        self.attempted = attempted


class IsolationLevelError(ConfigurationError):
    """The transaction sees too little, or too much, for this operation to be right.

    Attributes:
        found: The isolation level of the caller's transaction.
        needed: The level that the operation needs.
    """

    def __init__(self, *, found: str, needed: str) -> None:
        super().__init__(f"this needs a {needed} transaction, not {found}; open one for it")
        self.found = found
        self.needed = needed


class TransactionInUseError(ConfigurationError):
    """This needs a transaction that has not written anything yet.

    Whether a snapshot shows its own transaction depends on what others do meanwhile; changes
    made by the transaction that consumes them would be applied twice or never.

    Attributes:
        operation: What was asked for.
    """

    def __init__(self, operation: str) -> None:
        super().__init__(
            f"{operation} needs a transaction that has written nothing yet; commit, then begin one"
        )
        self.operation = operation


class CommitUnansweredError(UnavailableError):
    """The answer to a COMMIT was lost, of an operation that finds out what it has done.

    Attributes:
        attempted: What was to be committed.
        reason: How the answer was lost.
    """

    def __init__(self, attempted: str, *, reason: str) -> None:
        super().__init__(
            f"the COMMIT of {attempted} was not answered ({reason}); run it again: it goes on from"
            " what was committed"
        )
        self.attempted = attempted
        self.reason = reason


class OutcomeUnknownError(DataPatternsError):
    """A COMMIT was sent and its answer was lost: the transaction has happened, or it has not.

    Not an `UnavailableError`: to repeat what has happened may do it twice.

    Attributes:
        attempted: What was to be committed.
        reason: How the answer was lost.
        ids: What makes a repetition recognisable, such as the ids of the events.
        xid: The transaction, if it was traced; `read_outcome` asks what became of it.
        server: In which life of which server ``xid`` means this transaction.
    """

    def __init__(
        self,
        attempted: str,
        *,
        reason: str,
        ids: Iterable[object] = (),
        xid: int | None = None,
        server: str | None = None,
    ) -> None:
        self.attempted = attempted
        self.reason = reason
        self.ids = tuple(ids)
        self.xid = xid
        self.server = server
        advice = "repeat it only if it recognises its repetition, or look for what it wrote"
        if self.ids:
            advice = f"repeat it with the same ids ({', '.join(map(str, self.ids[:3]))})"
        if xid is not None:
            advice += f", or ask read_outcome() about its transaction {xid}"
        super().__init__(
            f"whether {attempted} has been committed is unknown, for the answer was lost"
            f" ({reason}); {advice}"
        )
