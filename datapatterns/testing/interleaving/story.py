"""What happened in a schedule, told in columns; pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

from datapatterns.testing.interleaving.choosing import Fault

_COLUMN_MIN, _COLUMN_MAX = 14, 44
_WIDTH_MAX = 132
_GAP = "  "


class Happening(Enum):
    """What a line of a story tells."""

    STEP = auto()
    WAIT = auto()
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

    def end(self, task: str, how: str, error: BaseException | None = None) -> None:
        """Tell how a task ended."""
        text = f"{how}: {_first_line(error)}" if error else how
        self.add(task, text, Happening.END)

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
                (_shortened(_told(line), width) if name == line.task else "").ljust(width)
                for name in self.tasks
            ]
            rows.append(_GAP.join([number, *cells]).rstrip())
        return "\n".join(rows)

    def _column_width(self) -> int:
        longest = max((len(_told(line)) for line in self.lines), default=0)
        share = _WIDTH_MAX // max(1, len(self.tasks))
        return max(_COLUMN_MIN, min(longest, share, max(share, _COLUMN_MAX)))


def _told(line: Line) -> str:
    if line.fault:
        return f"{line.text}  <- {line.fault.upper()}"
    return {
        Happening.STEP: line.text,
        Happening.WAIT: f"... {line.text}",
        Happening.END: f"({line.text})",
    }[line.happening]


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _shortened(text: str, width: int) -> str:
    if len(text) <= width:
        return text
    # The end of a statement says as much as its beginning.
    tail = width // 3
    return f"{text[: width - tail - 3]}...{text[-tail:]}"
