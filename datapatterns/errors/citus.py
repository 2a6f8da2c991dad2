"""Growing out to Citus, and shards that are coordinators of it."""

from datapatterns.errors.families import ConfigurationError


class CitusUnfitError(ConfigurationError):
    """Citus would refuse tables as they are declared.

    Attributes:
        problems: What it would refuse, one line each.
    """

    def __init__(self, problems: tuple[str, ...]) -> None:
        more = f"; and {len(problems) - 1} more, see check_citus()" if len(problems) > 1 else ""
        super().__init__(f"Citus would refuse {problems[0]}{more}")
        self.problems = problems


class CitusTransactionError(ConfigurationError):
    """A transaction has written to two coordinators of Citus; nothing was committed.

    Attributes:
        shards: Which ones.
    """

    def __init__(self, shards: tuple[str, ...]) -> None:
        super().__init__(
            f"shards {', '.join(shards)} are coordinators of Citus, which prepare no transaction"
            " for others, so only one of them can take part; write to each in a transaction of its"
            " own"
        )
        self.shards = shards
