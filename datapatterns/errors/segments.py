"""Parts of read models that different workers move on."""

from datapatterns.errors.families import ConfigurationError, ConflictError


class SegmentError(ConfigurationError):
    """The segments of a projection cannot be what was asked for.

    Attributes:
        projection: Its name.
    """

    def __init__(self, projection: str, detail: str) -> None:
        super().__init__(f"segments of projection {projection}: {detail}")
        self.projection = projection
        self.detail = detail


class SegmentKeyError(ConfigurationError):
    """A key of a read model cannot be told apart in every process alike.

    Attributes:
        kind: Its class.
    """

    def __init__(self, kind: str) -> None:
        super().__init__(
            f"a key of class {kind} may look different in another process, so it cannot say which"
            " worker it belongs to; use text, numbers, UUIDs, dates, times, bytes or tuples of them"
        )
        self.kind = kind


class SegmentsBusyError(ConflictError):
    """The segments of a projection cannot be changed just now.

    Attributes:
        projection: Its name.
    """

    def __init__(self, projection: str) -> None:
        super().__init__(
            f"another version of projection {projection} is taking its place, or its segments are"
            " being merged; try again when that is done"
        )
        self.projection = projection
