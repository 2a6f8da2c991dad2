"""Projections that are folded at read."""

from datapatterns.errors.families import ConfigurationError


class LiveFoldLimitError(ConfigurationError):
    """There are more events than were to be folded at read.

    Attributes:
        projection: Its name.
        limit: How many were.
    """

    def __init__(self, projection: str, *, limit: int) -> None:
        super().__init__(
            f"{projection} at read would take more than {limit:,} events; ask for fewer of them or"
            " raise limit=, or let a worker run the projection and query its tables"
        )
        self.projection = projection
        self.limit = limit
