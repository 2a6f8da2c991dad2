"""Appending events, reading them and rebuilding state from them."""

from datapatterns.errors.families import ConfigurationError, ConflictError, CorruptionError


class AggregateError(ConfigurationError):
    """An aggregate is declared so that it cannot be rebuilt from its events.

    Attributes:
        aggregate: The name of its class.
    """

    def __init__(self, aggregate: str, advice: str) -> None:
        super().__init__(f"{aggregate}: {advice}")
        self.aggregate = aggregate


class EventIdsReusedError(ConfigurationError):
    """The ids of an append were given before, to other events.

    Attributes:
        stream: What was to be appended to.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(
            f"some of these event ids for {stream} were appended before, with other events"
            " behind it; give new events new ids, and a retry exactly those that it had"
        )
        self.stream = stream


class MarkUnpublishedError(ConfigurationError):
    """Somebody wants to read up to the published mark, and nobody has published one."""

    def __init__(self) -> None:
        super().__init__(
            "no high-water mark was published yet; let a worker call publish_mark() now and then,"
            " or read without published=True"
        )


class StreamArchivedError(ConfigurationError):
    """A stream has ended: it was archived, and takes no more events.

    Attributes:
        stream: The stream.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(
            f"{stream} is archived and takes no more events; begin another stream, or restore it"
        )
        self.stream = stream


class ConditionConflictError(ConflictError):
    """An event that the decision did not know of matches the condition of an append.

    Attributes:
        stream: What was to be appended to.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(
            f"nothing was appended to {stream}: an event that matches the condition was appended"
            " since; read again what the decision is based on, and decide again"
        )
        self.stream = stream


class VersionConflictError(ConflictError):
    """The stream is not at the version that the decision was based on.

    Attributes:
        stream: The stream.
        expected: What the caller expected: a version, or ``exists``.
        found: The version that the stream has; 0 if it does not exist.
    """

    def __init__(self, stream: str, *, expected: int | str, found: int) -> None:
        super().__init__(
            f"{stream} is at version {found}, expected {expected}; load it and decide again"
            if found != expected
            else f"{stream} is at version {found}, but the events that the decision was based on"
            " were rolled back and others took their place; load it and decide again"
        )
        self.stream = stream
        self.expected = expected
        self.found = found


class CheckpointError(CorruptionError):
    """A reader has got further than the log goes: the log was restored to an earlier state.

    Attributes:
        checkpoint: Where the reader wants to go on.
        drawn: The last position that the log has given out.
    """

    def __init__(self, *, checkpoint: int, drawn: int) -> None:
        super().__init__(
            f"checkpoint {checkpoint} lies beyond the log, which ends at {drawn}; if the database"
            " was restored, rebuild what was derived from the lost events"
        )
        self.checkpoint = checkpoint
        self.drawn = drawn


class EventGapError(CorruptionError):
    """A stream lacks an event between two others.

    Attributes:
        stream: The stream.
        version: The version that is missing.
    """

    def __init__(self, stream: str, *, version: int) -> None:
        super().__init__(f"{stream} lacks version {version}; compare it with a backup")
        self.stream = stream
        self.version = version


class EventOrphanedError(CorruptionError):
    """An event's stream, or its type, is not in the database.

    Attributes:
        position: Where the event stands.
    """

    def __init__(self, *, position: int) -> None:
        super().__init__(
            f"the event at position {position} belongs to a stream, or is of a type, that is not"
            " in the database; was only a part of it restored?"
        )
        self.position = position
