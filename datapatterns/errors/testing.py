"""What `datapatterns.testing` refuses."""

from datapatterns.errors.families import ConfigurationError


class FaultRefusedError(ConfigurationError):
    """A fault can't be brought about here, or would reach further than asked.

    Attributes:
        fault: What was to be done.
        advice: Why not, and what to do instead.
    """

    def __init__(self, fault: str, advice: str) -> None:
        super().__init__(f"{fault}: {advice}")
        self.fault = fault
        self.advice = advice


class HistoryError(ConfigurationError):
    """A recorded history cannot be checked, because no clients can have done what it says.

    Attributes:
        reason: What is wrong with it.
        line: The line of its file, counted from 1; None if it was not read from a file.
        event: The index of the event; None if it has none.
    """

    def __init__(self, reason: str, *, line: int | None = None, event: int | None = None) -> None:
        places = [
            f"{name} {number}"
            for name, number in (("line", line), ("event", event))
            if number is not None
        ]
        where = f" at {', '.join(places)}" if places else ""
        super().__init__(f"the history cannot be checked{where}: {reason}; correct what records it")
        self.reason = reason
        self.line = line
        self.event = event


class SearchTooLargeError(ConfigurationError):
    """There are more schedules within the bounds than anybody would wait for.

    Attributes:
        explored: How many ran; nothing was found in them.
        known: How many more are known; each can lead to others.
    """

    def __init__(self, *, explored: int, known: int) -> None:
        self.explored, self.known = explored, known
        super().__init__(
            f"after {explored:,} schedules at least {known:,} are left; lower max_preemptions or "
            "narrow crash_at, use fewer or shorter tasks, set max_schedules, or let search() draw"
        )
