"""Captured row changes and those who consume them."""

from datapatterns.errors.families import ConfigurationError, UnavailableError


class CaptureRefusedError(ConfigurationError):
    """Changes of this table cannot be captured without missing some.

    Attributes:
        table: The table, with its schema.
        reason: What stands in the way, and the way out.
    """

    def __init__(self, table: str, reason: str) -> None:
        super().__init__(f"changes of {table} cannot be captured: {reason}")
        self.table = table
        self.reason = reason


class CapturedTableInUseError(ConfigurationError):
    """Somebody still consumes the changes of this table.

    Attributes:
        table: The table, with its schema.
        consumers: Who consumes its changes.
    """

    def __init__(self, table: str, consumers: list[str]) -> None:
        super().__init__(
            f"changes of {table} are still consumed by {', '.join(consumers)}; drop those first"
        )
        self.table = table
        self.consumers = consumers


class ConsumerMissingError(ConfigurationError):
    """Nobody of this name consumes changes.

    Attributes:
        name: The name that was asked for.
    """

    def __init__(self, name: str) -> None:
        super().__init__(f"no consumer is called {name!r}; register it first")
        self.name = name


class ForeignSnapshotError(ConfigurationError):
    """A consumer's snapshot speaks of another cluster's or another database's transactions.

    That is what a dump leaves behind that was restored elsewhere. Comparing transaction ids of
    two clusters would skip changes silently.

    Attributes:
        name: The consumer.
    """

    def __init__(self, name: str) -> None:
        super().__init__(
            f"{name!r} was last advanced in another database; call ChangeLog.rebase(),"
            " then populate its views again"
        )
        self.name = name


class ConsumerBehindError(UnavailableError):
    """A consumer did not consume a write before the deadline.

    Attributes:
        name: The consumer.
        timeout_seconds: How long was waited.
    """

    def __init__(self, name: str, *, timeout_seconds: float) -> None:
        super().__init__(
            f"{name!r} had not consumed the write after {timeout_seconds} s; see that whatever"
            " consumes for it runs, and ask ChangeLog.status() how far behind it is"
        )
        self.name = name
        self.timeout_seconds = timeout_seconds
