"""Events on their way into a store, out of it, and into another stream; what is kept of them."""

from datapatterns.errors.families import ConfigurationError, CorruptionError


class EventLineError(ConfigurationError):
    """A line of a file of events is not an event that could be stored.

    Attributes:
        line: Its number, from 1.
        reason: What is wrong with it; values are not quoted at length.
    """

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"line {line}: {reason}")
        self.line = line
        self.reason = reason


class ExportFileError(ConfigurationError):
    """An export cannot be written into this file, or continued in it.

    Attributes:
        path: The file.
    """

    def __init__(self, path: str, advice: str) -> None:
        super().__init__(f"{path}: {advice}")
        self.path = path


class ImportChunkError(ConfigurationError):
    """A chunk of this number was imported before, with other events.

    Attributes:
        source: The name of what is imported.
        chunk: The number of the chunk.
    """

    def __init__(self, source: str, *, chunk: int) -> None:
        super().__init__(
            f"chunk {chunk} of {source!r} was imported before, with other events; cut the source"
            " into the same chunks as before, or import it under another name"
        )
        self.source = source
        self.chunk = chunk


class ImportVersionError(ConfigurationError):
    """Events that are imported would get other versions than they had.

    Attributes:
        stream: Which stream, as text.
        expected: The version in what is imported.
        found: The version that the event would get; None if it is not known.
    """

    def __init__(self, stream: str, *, expected: int, found: int | None) -> None:
        got = "another one" if found is None else str(found)
        super().__init__(
            f"{stream}: the event of version {expected} would get {got}; import into a store"
            " without these streams, from a source that holds them whole, or give up the versions"
            " (keep_versions=False, --renumber)"
        )
        self.stream = stream
        self.expected = expected
        self.found = found


class PurgeRefusedError(ConfigurationError):
    """Events cannot be exported or removed for good: they are needed, or not where they should be.

    Attributes:
        stream: The stream.
        reason: What stands in the way.
    """

    def __init__(self, stream: str, reason: str) -> None:
        super().__init__(f"events of {stream} cannot be purged: {reason}")
        self.stream = stream
        self.reason = reason


class SourceEventError(ConfigurationError):
    """An event of another library's store cannot become one of ours.

    Attributes:
        event: Which one, in the words of its store.
        reason: What is wrong with it.
    """

    def __init__(self, event: str, reason: str) -> None:
        super().__init__(f"{event}: {reason}")
        self.event = event
        self.reason = reason


class StreamCopyError(ConfigurationError):
    """A stream cannot be copied into another, or the copy cannot be gone on with.

    Attributes:
        source: The stream to be copied.
        target: The stream that would hold the copy.
        reason: What is in the way.
    """

    def __init__(self, source: str, target: str, reason: str) -> None:
        super().__init__(f"{source} cannot be copied into {target}: {reason}")
        self.source = source
        self.target = target
        self.reason = reason


class AnchorError(CorruptionError):
    """What was written down of a hash chain cannot be read, or is not what the database says.

    Attributes:
        anchor: Where it was written down.
        reason: What is wrong.
    """

    def __init__(self, anchor: str, reason: str) -> None:
        super().__init__(f"the anchor {anchor}: {reason}")
        self.anchor = anchor
        self.reason = reason
