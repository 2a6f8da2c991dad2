"""Index tables."""

from datapatterns.errors.families import (
    ConfigurationError,
    ConflictError,
    CorruptionError,
    UnavailableError,
)


class IndexChangedError(ConfigurationError):
    """An index table was built from another definition than the one declared.

    Attributes:
        index: Its name.
    """

    def __init__(self, index: str) -> None:
        super().__init__(
            f"index table {index!r} was built from another definition; declare that one, or"
            " drop() it, create() it anew and backfill()"
        )
        self.index = index


class IndexDefinitionError(ConfigurationError):
    """An index table cannot be declared like this, or not on this table.

    Attributes:
        index: Its name.
        problem: What stands in the way, and the way out.
    """

    def __init__(self, index: str, problem: str) -> None:
        super().__init__(f"index table {index!r}: {problem}")
        self.index = index
        self.problem = problem


class IndexDetachedError(ConfigurationError):
    """Rows were written past an index table: its triggers don't fire for its table.

    Attributes:
        index: Its name.
        table: The table that it was declared on.
    """

    def __init__(self, index: str, *, table: str) -> None:
        super().__init__(
            f"the triggers of index table {index!r} don't all fire for table {table}; if they"
            " were disabled, repair() it; if another table took the place of the one it was"
            " built on, drop() it, create() it anew and backfill()"
        )
        self.index = index
        self.table = table


class IndexMissingError(ConfigurationError):
    """An index table is declared but was never created in this database.

    Attributes:
        index: Its name.
    """

    def __init__(self, index: str) -> None:
        super().__init__(
            f"there is no index table {index!r} in this database; create() it in a migration"
        )
        self.index = index


class IndexModeError(ConfigurationError):
    """An index table cannot be kept this way.

    Attributes:
        index: Its name.
        mode: The mode that was asked for.
        problem: Why not, and the way out.
    """

    def __init__(self, index: str, *, mode: str, problem: str | None = None) -> None:
        problem = problem or (
            "is not available yet; use 'local', which keeps the index in the database of the rows:"
            " over shards, one on each; or 'reserve', which shards it by its own key"
        )
        super().__init__(f"index table {index!r}: mode {mode!r} {problem}")
        self.index = index
        self.mode = mode
        self.problem = problem


class IndexPlaceError(ConfigurationError):
    """An index table is asked for something in a way that its mode has not.

    Attributes:
        index: Its name.
        mode: How it is kept.
    """

    def __init__(self, index: str, *, mode: str, advice: str) -> None:
        super().__init__(f"index table {index!r} is kept in mode {mode!r}; {advice}")
        self.index = index
        self.mode = mode
        self.advice = advice


class IndexKeyTransferError(ConfigurationError):
    """In one transaction a row gives up a key of a unique index that another row takes.

    Claimed before the commit, it would be missed if that fails; only a transaction that may write
    to several shards can hand it over.

    Attributes:
        index: The index table's name.
    """

    def __init__(self, index: str) -> None:
        super().__init__(
            f"one transaction takes a key of the unique index table {index!r} from a row and gives"
            " it to another; use session(atomic=True) or atomically(), or commit in between"
        )
        self.index = index


class IndexBusyError(UnavailableError):
    """Other transactions did not let go of a key of an index table in time.

    PostgreSQL may accept nothing more in the transaction.

    Attributes:
        index: The index table's name.
    """

    def __init__(self, index: str) -> None:
        super().__init__(
            f"others are about to change who has a key of index table {index!r}; roll back, and"
            " repeat the transaction after a moment"
        )
        self.index = index


class IndexKeyTakenError(ConflictError):
    """Another row has the key that a unique index table was to take.

    In mode ``local`` the statement failed, so PostgreSQL accepts nothing more in the transaction:
    roll it back, or back to a savepoint. In mode ``reserve`` the commit is refused.

    Attributes:
        index: The index table's name.
    """

    def __init__(self, index: str) -> None:
        super().__init__(
            f"another row has this key in the unique index table {index!r}; roll back, look it"
            " up and decide again"
        )
        self.index = index


class IndexNotReadyError(UnavailableError):
    """An index table is not built, so what it doesn't hold may exist all the same.

    Attributes:
        index: Its name.
        state: The state it is in.
    """

    def __init__(self, index: str, *, state: str) -> None:
        advice = "backfill() and activate() it"
        if state == "failed":
            advice = "datapatterns indexes list says why; mend that, and retry it"
        super().__init__(
            f"index table {index!r} is {state}; {advice}, or look rows up with miss='scan'"
            " meanwhile"
        )
        self.index = index
        self.state = state


class IndexBehindError(UnavailableError):
    """An index table that is kept behind its writers has not taken in yet what it should show.

    Attributes:
        index: Its name.
        timeout_seconds: How long it was waited for; None if it was not.
    """

    def __init__(self, index: str, *, timeout_seconds: float | None = None) -> None:
        waited = "" if timeout_seconds is None else f" after {timeout_seconds} s"
        super().__init__(
            f"index table {index!r} is behind its table{waited}; see that a worker runs which keeps"
            " it (datapatterns indexes lag says how far it is), and try again"
        )
        self.index = index
        self.timeout_seconds = timeout_seconds


class IndexDiffersError(CorruptionError):
    """An index table and the rows it was built from do not agree.

    Attributes:
        index: Its name.
        missing: Rows without their index row.
        orphaned: Index rows without their row.
        different: Index rows that carry other values than their row.
    """

    def __init__(self, index: str, *, missing: int, orphaned: int, different: int) -> None:
        super().__init__(
            f"index table {index!r} differs from its table: {missing} missing, {orphaned}"
            f" orphaned, {different} different; repair() it (rows missing from a unique index"
            " after that have a key that another row has: resolve these first)"
        )
        self.index = index
        self.missing = missing
        self.orphaned = orphaned
        self.different = different


class IndexFailedError(CorruptionError):
    """The building of an index table has failed: it does not agree with its table.

    Attributes:
        index: Its name.
        failure: What was found.
    """

    def __init__(self, index: str, *, failure: str) -> None:
        super().__init__(
            f"the building of index table {index!r} has failed: {failure}; see what it is about"
            f" (datapatterns indexes conflicts {index}), change or delete one of each two rows with"
            f" one key, then: datapatterns indexes retry {index}"
        )
        self.index = index
        self.failure = failure


class IndexUndeclaredError(ConfigurationError):
    """No index table of that name is declared, or two are.

    Attributes:
        index: The name.
    """

    def __init__(self, index: str, problem: str) -> None:
        super().__init__(f"index table {index!r}: {problem}")
        self.index = index


class IndexMigrationError(ConfigurationError):
    """A migration cannot do this to an index table, or not here.

    Attributes:
        index: Its name.
    """

    def __init__(self, index: str, problem: str) -> None:
        super().__init__(f"index table {index!r}: {problem}")
        self.index = index
