"""Servers that are started from wheels."""

from datapatterns.errors.families import ConfigurationError, UnavailableError


class EmbeddedFolderError(ConfigurationError):
    """A folder cannot hold embedded servers.

    Attributes:
        folder: Which one.
    """

    def __init__(self, folder: object, advice: str) -> None:
        super().__init__(f"{folder}: {advice}")
        self.folder = str(folder)


class EmbeddedStartError(ConfigurationError):
    """An embedded server does not start.

    Attributes:
        server: Which one.
        problem: Why, with the end of its log if it has one.
    """

    def __init__(self, server: str, problem: str) -> None:
        super().__init__(f"{server} does not start: {problem}")
        self.server = server
        self.problem = problem


class EmbeddedTimeoutError(UnavailableError):
    """An embedded server started but does not answer.

    Attributes:
        server: Which one.
        seconds: How long it was waited for.
    """

    def __init__(self, server: str, *, seconds: float) -> None:
        super().__init__(
            f"{server} did not answer within {seconds:g} s; try again when the machine is less busy"
        )
        self.server = server
        self.seconds = seconds
