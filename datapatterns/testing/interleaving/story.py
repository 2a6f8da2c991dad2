"""What happened in a schedule, told in columns; pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

from datapatterns.testing.interleaving.choosing import Fault

_COLUMN_MIN = 14
_WIDTH_MAX = 132
_GAP = "  "


class Happening(Enum):
    """What a line of a story tells."""

    STEP = auto()
    WAIT = auto()
    RESUME = auto()
    ERROR = auto()
    END = auto()


@dataclass(frozen=True, slots=True)
class Line:
    """One line: what one task did or met."""

    task: str
    text: str
    happening: Happening
    fault: Fault | None = None


class Story:
    """Who did what, in order.

    Attributes:
        tasks: The names of the tasks, one for each column.
        lines: What happened.
    """

    def __init__(self, tasks: Sequence[str] = ()) -> None:
        self.tasks = list(tasks)
        self.lines: list[Line] = []

    def add(self, task: str, text: str, happening: Happening, fault: Fault | None = None) -> None:
        """Tell what a task did or met."""
        self.lines.append(Line(task, text, happening, fault))

    @property
    def steps(self) -> int:
        """How many gates were passed."""
        return sum(line.happening is Happening.STEP for line in self.lines)

    @property
    def blocked_steps(self) -> int:
        """How often a task had to wait for another."""
        return sum(line.happening is Happening.WAIT for line in self.lines)

    def __str__(self) -> str:
        width = self._column_width()
        head = _GAP.join(["   ", *(name.ljust(width) for name in self.tasks)]).rstrip()
        rows, step = [head, _GAP.join(["   ", *("-" * width for _ in self.tasks)])], 0
        for line in self.lines:
            step += line.happening is Happening.STEP
            number = f"{step:3d}" if line.happening is Happening.STEP else "   "
            cells = [
                (shortened(_told(line), width) if name == line.task else "").ljust(width)
                for name in self.tasks
            ]
            rows.append(_GAP.join([number, *cells]).rstrip())
        return "\n".join(rows)

    def _column_width(self) -> int:
        longest = max((len(_told(line)) for line in self.lines), default=0)
        names = max((len(name) for name in self.tasks), default=0)
        share = _WIDTH_MAX // max(1, len(self.tasks))
        return max(_COLUMN_MIN, names, min(longest, share))


def shortened(text: str, width: int) -> str:
    """Return a text of at most ``width`` characters; at least 10 of them.

    >>> shortened("UPDATE seats SET free = 0", 17)
    'UPDATE se...e = 0'
    """
    if len(text) <= width:
        return text
    # The end of a statement says as much as its beginning.
    tail = width // 3
    return f"{text[: width - tail - 3]}...{text[-tail:]}"


def first_line(error: BaseException) -> str:
    """Return the kind of an error, and what it says first."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _told(line: Line) -> str:
    if line.fault:
        return f"{line.text}  <- {line.fault.upper()}"
    return {
        Happening.STEP: line.text,
        Happening.WAIT: f"... {line.text}",
        Happening.RESUME: f"... {line.text}",
        Happening.ERROR: f"! {line.text}",
        Happening.END: f"({line.text})",
    }[line.happening]


_SQLSTATES = {
    "40001": "serialization failure",
    "40P01": "deadlock, broken by the server",
    "55P03": "lock timeout, or NOWAIT",
    "57014": "cancelled, or statement timeout",
}


def described(error: BaseException) -> str:
    """Return what an error is, by the server's name for it if it has one.

    SQLAlchemy's errors hold the driver's; the first SQLSTATE down the chain counts.
    """
    inner: BaseException | None = error
    while inner is not None:
        if state := getattr(inner, "sqlstate", None):
            meaning = f"{_SQLSTATES[state]}: " if state in _SQLSTATES else ""
            return f"{meaning}{first_line(inner)} ({state})"
        inner = getattr(inner, "orig", None) or inner.__cause__
    return first_line(error)


def sqlstate_of(error: BaseException) -> str | None:
    """Return the server's code for an error, from wherever in its chain it stands."""
    inner: BaseException | None = error
    while inner is not None:
        if state := getattr(inner, "sqlstate", None):
            return str(state)
        inner = getattr(inner, "orig", None) or inner.__cause__
    return None
